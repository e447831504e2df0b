"""The limits of an account, such as 5 per second and 100 per minute: a permit is held for each. Pure.

Each window keeps its own promise (see `window`), so that a permit which is in none of them too much is refused by none.
A 429 does not say whose it is: blamed is the shortest that its pause fits into, else the fullest; it alone learns.
Without any limit everything may start at once, and nothing is learned.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from flux2_async._limiter.permit import THROTTLED, PermitEvent
from flux2_async._limiter.probing import Ticket
from flux2_async._limiter.window import (
    CLOCK_MARGIN,
    HELD_FOR,
    MIN_PAUSE,
    PAUSE_WITHOUT_LIMIT,
    Supply,
    Window,
    pause_after,
)
from flux2_async.models import RateLimit
from flux2_async.models.settings import Told

# More than any service tells; each is asked for every permit.
MAX_WINDOWS: Final = 8
# Seconds and permits of a limit that only the service tells. What is beyond would stop everybody for years, after a
# slip of one header, or fill the memory: each permit is kept for as long.
MAX_TOLD_PERIOD: Final = 86400.0
MAX_TOLD_LIMIT: Final = 10_000


def rates_of(rate: RateLimit | Iterable[RateLimit] | None) -> tuple[RateLimit, ...]:
    """Give the limits that are meant by one, several or none."""
    return (rate,) if isinstance(rate, RateLimit) else tuple(rate or ())


def tightest(rates: Iterable[RateLimit]) -> RateLimit | None:
    """Give the one that allows the fewest in the long run; None without any."""
    return min(rates, key=lambda rate: rate.limit / rate.period, default=None)


# Made twice as fast as a frozen one; nobody changes it.
@attrs.define(eq=False, repr=False)
class Tickets:
    """One permit as several windows keep it, each known by its period; those made later have none."""

    sent_at: float
    parts: Mapping[float, Ticket]


@attrs.define(eq=False, repr=False)
class Windows:
    """Starts that are within each of several windows; of two limits with one period the lower counts.

    Args:
        given: The limits.

    Attributes:
        windows: One for each limit, and for each that only the service told.
        told: The periods of the latter.
    """

    _given: tuple[RateLimit, ...] = attrs.field(default=(), converter=rates_of)
    windows: list[Window] = attrs.field(init=False, factory=list)
    told: set[float] = attrs.field(init=False, factory=set)

    def __attrs_post_init__(self) -> None:
        self.change(self._given, 0.0)

    def change(self, rates: Iterable[RateLimit], now: float) -> None:
        """Believe in other limits from now on; what is out stays out, and counts for those that are new."""
        before = {each.rate.period: each for each in self.windows}
        given = {rate.period: rate for rate in sorted(rates, key=lambda rate: -rate.limit)}
        if given == {period: each.rate for period, each in before.items() if period not in self.told}:
            return
        made = [before.get(period) or self._made(rate, now) for period, rate in given.items()]
        for window in made:
            if (rate := given[window.rate.period]) != window.rate:
                window.reset(rate)
        self.windows, self.told = made, set()

    def _made(self, rate: RateLimit, now: float) -> Window:
        made = Window(rate)
        for _ in range(max((each.out(now) for each in self.windows), default=0)):
            made.hold(now + rate.period * CLOCK_MARGIN)
        return made

    def believe(self, told: Told, now: float) -> None:
        """Keep to what the service told, where that is less, or of a limit that nobody else gave."""
        meant = self._meant(told)
        rate = _told_rate(told)
        if not meant and rate is not None and 0 < len(self.windows) < MAX_WINDOWS:
            meant = [self._made(rate, now)]
            self.windows += meant
            self.told.add(rate.period)
        if len(meant) == 1:
            window = meant[0]
            if rate is not None and rate.limit > window.rate.limit and window.rate.period in self.told:
                window.reset(attrs.evolve(window.rate, limit=rate.limit))
            window.believe(told, now)

    def _meant(self, told: Told) -> list[Window]:
        """Give whose limit it may be; without its seconds of several that of the same number, or that lasts as long.

        What lasts longer than all of them is told of the longest.
        """
        if told.seconds is not None:
            return [each for each in self.windows if math.isclose(each.rate.period, told.seconds)]
        reset = min(told.reset or 0.0, self.longest)
        lasting = [each for each in self.windows if reset <= each.rate.period * CLOCK_MARGIN]
        return [each for each in lasting if each.rate.limit == told.limit] or lasting

    @property
    def rates(self) -> tuple[RateLimit, ...]:
        """What each is believed to be now."""
        return tuple(attrs.evolve(each.rate, limit=each.learned_limit or each.rate.limit) for each in self.windows)

    @property
    def learned_limit(self) -> int | None:
        """That of the tightest, which is what the session says it keeps to."""
        windows = {each.rate: each for each in self.windows}
        rate = tightest(windows)
        return None if rate is None else windows[rate].learned_limit

    @property
    def shortest(self) -> float:
        """The shortest period; without any that of a pause."""
        return min((each.rate.period for each in self.windows), default=PAUSE_WITHOUT_LIMIT)

    @property
    def longest(self) -> float:
        """The longest period, likewise."""
        return max((each.rate.period for each in self.windows), default=PAUSE_WITHOUT_LIMIT)

    def ready_at(self, now: float, ahead: int = 0) -> float:
        """When each has a permit, see `Window`."""
        ready_at = now
        for each in self.windows:
            ready_at = max(ready_at, each.ready_at(now, ahead))
        return ready_at

    def ask_at(self, now: float, ahead: int = 0) -> float:
        """When to ask again: what is in flight is back in a period at the earliest."""
        back = ((each.ready_at(now, ahead), now + each.rate.period * CLOCK_MARGIN) for each in self.windows)
        return max(map(min, back), default=now)

    def supply(self, now: float, begin: float) -> Supply:
        """When each has permits, see `Window`."""
        supply: Supply | None = None
        for window in self.windows:
            supply = attrs.evolve(window.supply(now, begin), also=supply)
        return supply or Supply((), 0.0, max(now, begin))

    def take(self, now: float) -> Tickets:
        """Take a permit of each, which are free."""
        return Tickets(now, {each.rate.period: each.take(now) for each in self.windows})

    def pause_of(self, retry_after: float | None, now: float) -> float:
        """Give the pause after a 429; see `pause_after`."""
        if retry_after is not None and retry_after > 0:
            blamed = self._blamed(retry_after)
        else:
            blamed = max(
                self.windows, key=lambda each: (each.out(now) / each.rate.limit, each.rate.period), default=None
            )
        return pause_after(None if blamed is None else blamed.rate, retry_after)

    def _blamed(self, pause: float) -> Window | None:
        fitting = [each for each in self.windows if max(each.rate.period, MIN_PAUSE) >= pause]
        longest = max(self.windows, key=lambda each: each.rate.period, default=None)
        return min(fitting, key=lambda each: each.rate.period, default=longest)

    def settle(self, tickets: Tickets, event: PermitEvent, now: float, pause: float = 0.0) -> None:
        """Take a permit back, or learn from a 429, see `Window`."""
        taught = [self._blamed(pause)] if event is THROTTLED else self.windows
        for window in self.windows:
            part = tickets.parts.get(window.rate.period)
            if part is None:
                # It was told while the request was under way, which it counts from now on.
                _hold(window, event, now)
            elif window in taught:
                window.settle(part, event, now, pause)

    def hold(self, event: PermitEvent, at: float) -> None:
        """Count a permit that was taken without these windows, and what became of its request at that time."""
        for window in self.windows:
            _hold(window, event, at)

    def use_up(self, now: float) -> None:
        """Take that all were just taken, by requests of which nobody knows what became."""
        for window in self.windows:
            for _ in range(window.rate.limit):
                _hold(window, PermitEvent.UNCLEAR, now)

    def abandon(self, now: float) -> None:
        """Take all that are out for unclear, see `Window`."""
        for window in self.windows:
            window.abandon(now)


def _told_rate(told: Told) -> RateLimit | None:
    """Give the limit that is told; None: none to keep to."""
    limit, seconds = told.limit or 0, told.seconds or 0.0
    return RateLimit(limit, seconds) if 0 < limit <= MAX_TOLD_LIMIT and 0 < seconds <= MAX_TOLD_PERIOD else None


def _hold(window: Window, event: PermitEvent, at: float) -> None:
    if event in HELD_FOR:
        window.hold(at + HELD_FOR[event] * window.rate.period * CLOCK_MARGIN)
