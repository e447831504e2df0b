"""What a session may send by itself while the shared state cannot be asked. Pure: time comes in as an argument."""

import itertools
import math
from collections.abc import Iterable
from typing import Final

import attrs

from flux2_async._limiter.permit import PermitEvent
from flux2_async._limiter.window import CLOCK_MARGIN, HELD_FOR
from flux2_async._limiter.windows import Tickets, Windows
from flux2_async.coordination.contract import Answer, Settlement
from flux2_async.models import RateLimit
from flux2_async.models.settings import Told

# For a session that has never seen the others.
ASSUMED_PEERS: Final = 8
# Who is back first after an outage sees nobody; the others need a few seconds, and the next outage may be as near.
FEWER_AFTER: Final = 60.0


def quota_of(limit: int, peers: int | None) -> int:
    """Give one session's part of a limit, at least 1; peers None: never seen, so many are assumed."""
    return max(1, limit // (peers or ASSUMED_PEERS))


class FallbackQuota:
    """Windows of its own, and what was taken from them, to be declared later.

    They start as used up for two periods: nobody knows what was sent just before, and what was under way then may be
    counted a period later. `rates` are the session's part of each limit.
    """

    def __init__(self, rates: Iterable[RateLimit], now: float) -> None:
        self.windows: Windows = Windows(rates)
        self.windows.use_up(now)
        self._numbers = itertools.count(1)
        # What became of each, and when, as far as it is known.
        self._taken: dict[int, tuple[Tickets, PermitEvent, float | None]] = {}

    def take(self, now: float) -> int:
        """Take a permit and give its number."""
        number, tickets = next(self._numbers), self.windows.take(now)
        if tickets.parts:
            self._taken[number] = tickets, PermitEvent.UNCLEAR, None
        return number

    def settle(self, number: int, event: PermitEvent, now: float, pause: float = 0.0) -> float:
        """Say what became of a permit's request; give the seconds for which nobody sends because of it.

        Of a 429 `pause` is what the service named; 0: nothing.
        """
        taken = self._taken.get(number)
        pause = (pause or self.windows.pause_of(None, now)) if event is PermitEvent.THROTTLED else 0.0
        if taken is not None:
            self.windows.settle(taken[0], event, now, pause)
            if event in HELD_FOR:
                self._taken[number] = taken[0], event, now
            elif not pause:
                del self._taken[number]
        return pause

    def held(self, now: float) -> dict[int, Settlement]:
        """Give, by number, what was taken and is not back yet; what is under way may take two periods."""
        longest = self.windows.longest * CLOCK_MARGIN
        self._taken = {
            number: (tickets, event, at)
            for number, (tickets, event, at) in self._taken.items()
            if at is None or at + HELD_FOR[event] * longest > now
        }
        return {
            number: Settlement(f"away:{number}", event, 0.0 if at is None else now - at)
            for number, (_, event, at) in self._taken.items()
        }


class Fallback:
    """Whether a session goes on by itself, and what it needs to know to do that.

    Attributes:
        quota: What it sends by, or None while the shared state can be asked.
        learned: Starts per period that 429s have taught all processes, or None while the configured limit holds.
    """

    def __init__(self, rates: tuple[RateLimit, ...]) -> None:
        self.quota: FallbackQuota | None = None
        self.learned: int | None = None
        self._rates = self._believed = rates
        self._peers: int | None = None
        self._fewer_at = -math.inf
        self._declared: set[int] = set()

    @property
    def has_peers(self) -> bool:
        """Whether there are other processes, as far as is known."""
        return self._peers != 1

    def part(self, of: float) -> float:
        """Give one session's part, at least 1."""
        return max(of // (self._peers or ASSUMED_PEERS), 1)

    def count(self, peers: int, rates: tuple[RateLimit, ...], now: float) -> None:
        """Believe in more processes and in what limits them at once, in fewer only after a while."""
        if peers >= (self._peers or 0) or now >= self._fewer_at:
            self._peers, self._believed, self._fewer_at = peers, rates, now + FEWER_AFTER
        else:
            self._believed = tuple({*self._believed, *rates})

    def learn(self, answer: Answer, now: float) -> None:
        """Keep what the shared state told of the limits, and of the processes."""
        self.learned = answer.learned_limit
        self.count(answer.peers, answer.rates, now)

    def begin(self, now: float) -> None:
        """Go on by a part of the limits."""
        # Of two with one period the lower counts.
        rates = (*self._rates, *self._believed) if self._rates else ()
        self.quota = FallbackQuota([attrs.evolve(rate, limit=quota_of(rate.limit, self._peers)) for rate in rates], now)

    def believe(self, told: Told, now: float) -> None:
        """Keep to a part of what the service told of its limits."""
        if self.quota is not None:
            limit = None if told.limit is None else quota_of(told.limit, self._peers)
            remaining = None if told.remaining is None else told.remaining // (self._peers or ASSUMED_PEERS)
            self.quota.windows.believe(told._replace(limit=limit, remaining=remaining), now)

    def declare(self, now: float) -> tuple[Settlement, ...]:
        """Give what was taken and is not back yet."""
        held = self.quota.held(now) if self.quota else {}
        self._declared = set(held)
        return tuple(held.values())

    def end(self, now: float) -> list[Settlement]:
        """Send by the shared state again; give what was taken and not declared."""
        quota, self.quota = self.quota, None
        self._fewer_at = now + FEWER_AFTER
        held = quota.held(now) if quota else {}
        return [settlement for number, settlement in held.items() if number not in self._declared]
