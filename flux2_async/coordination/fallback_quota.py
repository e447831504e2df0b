"""What a session may send by itself while the shared state cannot be asked. Pure: time comes in as an argument."""

import itertools
from typing import Final

import attrs

from flux2_async._limiter.window import CLOCK_MARGIN, Fate, Ticket, Window
from flux2_async.models import RateLimit

__all__ = ["Share", "share_of"]

# For a session that has never seen the others.
ASSUMED_PEERS: Final = 8


def share_of(limit: int, peers: int | None) -> int:
    """Give one session's part of a limit, at least 1; peers None: never seen, so many are assumed."""
    return max(1, limit // (ASSUMED_PEERS if peers is None else peers))


@attrs.define(eq=False)
class _Taken:
    ticket: Ticket
    back_at: float | None = None


class Share:
    """A window of its own, and what was taken from it, to be declared later.

    It starts as used up for two periods: nobody knows what was sent just before, and what was under way then may be
    counted a period later.

    Args:
        rate: The session's part of the limit, or None for no limit.
        now: The time.
    """

    def __init__(self, rate: RateLimit | None, now: float) -> None:
        self._window = Window(rate) if rate else None
        self._period = rate.period if rate else 0.0
        self._numbers = itertools.count(1)
        self._taken: dict[int, _Taken] = {}
        for _ in range(rate.limit if rate else 0):
            self.hold(now + 2 * self._period * CLOCK_MARGIN)

    def ready_at(self, now: float) -> float:
        """See `Window.ready_at`."""
        return self._window.ready_at(now) if self._window else now

    def take(self, now: float) -> int:
        """Take a permit and give its number."""
        number = next(self._numbers)
        if self._window:
            self._taken[number] = _Taken(self._window.take(now))
        return number

    def settle(self, number: int, fate: Fate, now: float, pause: float = 0.0) -> None:
        """Say what became of a permit's request, and for how long nobody sends because of it."""
        taken = self._taken.get(number)
        if taken is None or self._window is None:
            return
        match fate:
            case Fate.NEVER_SENT:
                self._window.never_sent(taken.ticket)
            case Fate.REFUSED:
                self._window.refused(taken.ticket, now, pause)
            case Fate.ANSWERED:
                self._window.answered(taken.ticket, now)
            case Fate.AMBIGUOUS | Fate.DROPPED:
                self._window.ambiguous(now)
        if fate in (Fate.NEVER_SENT, Fate.REFUSED):
            del self._taken[number]
        else:
            taken.back_at = now + (1 if fate is Fate.ANSWERED else 2) * self._period * CLOCK_MARGIN

    def hold(self, until: float) -> None:
        """Count a permit that was taken elsewhere."""
        if self._window:
            self._window.hold(until)

    def held(self, now: float) -> dict[int, float]:
        """Give, by number, the seconds until what was taken comes back; what is under way may take two periods."""
        unknown = now + 2 * self._period * CLOCK_MARGIN
        back = {number: taken.back_at or unknown for number, taken in self._taken.items()}
        for number in [number for number, at in back.items() if at <= now]:
            del self._taken[number], back[number]
        return {number: at - now for number, at in back.items()}
