"""Several limits at once, such as 5 per second and 100 per minute: a permit is held for each. Pure.

Each window keeps its own promise (see `window`), so that a permit which is in none of them too much is refused by none.
A 429 does not say whose it is: blamed is the shortest that its pause fits into, else the fullest; it alone learns.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Final

import attrs

from flux2_async._limiter.window import (
    CLOCK_MARGIN,
    HELD_FOR,
    PermitEvent,
    Starts,
    Supply,
    Ticket,
    Window,
    pause_after,
    starts_of,
)
from flux2_async._protocol.told_limits import Told
from flux2_async.models import RateLimit

# More than any service tells; each is asked for every permit.
MAX_WINDOWS: Final = 8


def tightest(rates: Iterable[RateLimit]) -> RateLimit | None:
    """Give the one that allows the fewest in the long run; None without any."""
    return min(rates, key=lambda rate: rate.limit / rate.period, default=None)


def windows_of(rates: Sequence[RateLimit]) -> Starts:
    """Give the window of a limit, of several, or of none."""
    return starts_of(rates[0] if rates else None) if len(rates) <= 1 else Windows([Window(rate) for rate in rates])


def believing(starts: Starts, told: Told, now: float) -> Starts:
    """Give the window, or windows, that keep to what the service told as well; where that is more nothing changes."""
    windows = starts.windows if isinstance(starts, Windows) else [starts] if isinstance(starts, Window) else []
    meant = [each for each in windows if told.seconds is None or math.isclose(each.rate.period, told.seconds)]
    # Without its seconds it may be the limit of any of several.
    if len(meant) == 1:
        meant[0].believe(told, now)
    elif windows and told.limit is not None and told.seconds is not None and len(windows) < MAX_WINDOWS:
        another = Window(RateLimit(max(told.limit, 1), told.seconds))
        for _ in range(max(each.out for each in windows)):
            another.hold(now + told.seconds * CLOCK_MARGIN)
        another.believe(told, now)
        return Windows([*windows, another])
    return starts


@attrs.frozen(eq=False)
class Tickets(Ticket):
    """One permit as several windows keep it."""

    parts: tuple[Ticket, ...] = ()


@attrs.define(eq=False)
class Windows:
    """Starts that are within each of several windows."""

    windows: list[Window]
    _blamed: Window | None = attrs.field(init=False, default=None)

    @property
    def learned_limit(self) -> int | None:
        """That of the tightest, which is what the session says it keeps to."""
        rate = tightest(each.rate for each in self.windows)
        return next(each.learned_limit for each in self.windows if each.rate is rate)

    def ready_at(self, now: float, ahead: int = 0) -> float:
        return max(each.ready_at(now, ahead) for each in self.windows)

    def supply(self, now: float, begin: float) -> Supply:
        """That of the tightest: the others matter for its first permits alone."""
        rate = tightest(each.rate for each in self.windows)
        return next(each for each in self.windows if each.rate is rate).supply(now, max(begin, self.ready_at(now)))

    def take(self, now: float) -> Tickets:
        return Tickets(now, parts=tuple(each.take(now) for each in self.windows))

    def pause_of(self, retry_after: float | None) -> float:
        """Give the pause after a 429, and remember whose it is."""
        longest = max(self.windows, key=lambda each: each.rate.period)
        if retry_after is not None and retry_after > 0:
            fitting = [each for each in self.windows if each.rate.period >= retry_after] or [longest]
            self._blamed = min(fitting, key=lambda each: each.rate.period)
        else:
            self._blamed = max(self.windows, key=lambda each: (each.out / each.rate.limit, each.rate.period))
        return pause_after(self._blamed.rate, retry_after)

    def settle(self, ticket: Ticket, event: PermitEvent, now: float, pause: float = 0.0) -> None:
        parts = ticket.parts if isinstance(ticket, Tickets) else (ticket,)
        for window, part in zip_longest(self.windows, parts):
            if part is None:
                # It was told while the request was under way, which it counts from now on.
                if event in HELD_FOR:
                    window.hold(now + HELD_FOR[event] * window.rate.period * CLOCK_MARGIN)
            elif event is not PermitEvent.THROTTLED or window is self._blamed:
                window.settle(part, event, now, pause)

    def hold(self, until: float) -> None:
        for each in self.windows:
            each.hold(until)

    def abandon(self, now: float) -> None:
        for each in self.windows:
            each.abandon(now)
