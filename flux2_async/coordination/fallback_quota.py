"""What a session may send by itself while the shared state cannot be asked. Pure: time comes in as an argument."""

import itertools
import math
from typing import Final

import attrs

from flux2_async._limiter.window import CLOCK_MARGIN, HELD_FOR, PermitEvent, Ticket, starts_of
from flux2_async.models import RateLimit

# For a session that has never seen the others.
ASSUMED_PEERS: Final = 8
# Who is back first after an outage sees nobody; the others need a few seconds, and the next outage may be as near.
FEWER_AFTER: Final = 60.0


def quota_of(limit: int, peers: int | None) -> int:
    """Give one session's part of a limit, at least 1; peers None: never seen, so many are assumed."""
    return max(1, limit // (ASSUMED_PEERS if peers is None else peers))


@attrs.define(eq=False)
class _Taken:
    ticket: Ticket
    back_at: float | None = None


class FallbackQuota:
    """A window of its own, and what was taken from it, to be declared later.

    It starts as used up for two periods: nobody knows what was sent just before, and what was under way then may be
    counted a period later.

    Args:
        rate: The session's part of the limit, or None for no limit.
        now: The time.
    """

    def __init__(self, rate: RateLimit | None, now: float) -> None:
        self._window = starts_of(rate)
        self._period = rate.period if rate else 0.0
        self._numbers = itertools.count(1)
        self._taken: dict[int, _Taken] = {}
        for _ in range(rate.limit if rate else 0):
            self.hold(now + 2 * self._period * CLOCK_MARGIN)

    def ready_at(self, now: float) -> float:
        """See `Window.ready_at`."""
        return self._window.ready_at(now)

    def take(self, now: float) -> int:
        """Take a permit and give its number."""
        number, ticket = next(self._numbers), self._window.take(now)
        if self._period:
            self._taken[number] = _Taken(ticket)
        return number

    def settle(self, number: int, event: PermitEvent, now: float, pause: float = 0.0) -> None:
        """Say what became of a permit's request, and for how long nobody sends because of it."""
        taken = self._taken.get(number)
        if taken is None:
            return
        self._window.settle(taken.ticket, event, now, pause)
        if event in HELD_FOR:
            taken.back_at = now + HELD_FOR[event] * self._period * CLOCK_MARGIN
        elif event is not PermitEvent.THROTTLED:
            del self._taken[number]

    def hold(self, until: float) -> None:
        """Count a permit that was taken elsewhere."""
        self._window.hold(until)

    def held(self, now: float) -> dict[int, float]:
        """Give, by number, the seconds until what was taken comes back; what is under way may take two periods."""
        unknown = now + 2 * self._period * CLOCK_MARGIN
        back = {number: taken.back_at or unknown for number, taken in self._taken.items()}
        for number in [number for number, at in back.items() if at <= now]:
            del self._taken[number], back[number]
        return {number: at - now for number, at in back.items()}


class Fallback:
    """Whether a session goes on by itself, and what it needs to know to do that.

    Args:
        rate: The account's limit, or None for no limit.

    Attributes:
        quota: What it sends by, or None while the shared state can be asked.
        learned: Starts per period that 429s have taught all processes, or None while the configured limit holds.
    """

    def __init__(self, rate: RateLimit | None) -> None:
        self.quota: FallbackQuota | None = None
        self.learned: int | None = None
        self._rate = rate
        self._peers: int | None = None
        self._fewer_at = -math.inf
        self._declared: set[int] = set()

    def count(self, peers: int, now: float) -> None:
        """Believe in more processes at once, in fewer only after a while."""
        if peers >= (self._peers or 0) or now >= self._fewer_at:
            self._peers, self._fewer_at = peers, now + FEWER_AFTER

    def begin(self, now: float) -> None:
        """Go on by a part of the limit."""
        rate = self._rate
        if rate:
            rate = RateLimit(quota_of(min(self.learned or rate.limit, rate.limit), self._peers), rate.period)
        self.quota = FallbackQuota(rate, now)

    def declare(self, now: float) -> tuple[float, ...]:
        """Give, for each permit that was taken, the seconds until it comes back."""
        held = self.quota.held(now) if self.quota else {}
        self._declared = set(held)
        return tuple(held.values())

    def end(self, now: float) -> dict[int, float]:
        """Send by the shared state again; give, by number, when what was not declared was taken."""
        quota, self.quota = self.quota, None
        self._fewer_at = now + FEWER_AFTER
        if quota is None or self._rate is None:
            return {}
        held = 2 * self._rate.period * CLOCK_MARGIN
        taken = {number: now + seconds - held for number, seconds in quota.held(now).items()}
        return {number: at for number, at in taken.items() if number not in self._declared}
