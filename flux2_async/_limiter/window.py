"""How many requests may start, and when: the arithmetic of the limiter. Pure: time comes in as an argument.

Claim: n permits, each taken before a send and back one period P after the response, are never refused by a server
that allows n per P. Proof: let s <= a <= r be the send, count-on-server and response instants. Of any n + 1 accepted
requests two, i before j, used the same permit, so a_j >= s_j >= r_i + P >= a_i + P: no half-open interval of length P
holds n + 1 counts, whatever the delays. A fixed window is such an interval; a token bucket of n does not run dry
either. Only the clocks' rates must agree (`CLOCK_MARGIN`). A request given up may be counted later: its permit is held
2 P. What a 429 that comes nevertheless teaches stands in `probing`.
"""

import heapq
import math
from collections.abc import Sequence
from typing import Final

import attrs

from flux2_async._limiter.permit import ANSWERED, DROPPED, PermitEvent
from flux2_async._limiter.probing import Probing, Ticket
from flux2_async.models import RateLimit
from flux2_async.models.settings import Told

CLOCK_MARGIN: Final = 1.001
# Upstream's documented period, for a session that was told none.
PAUSE_WITHOUT_LIMIT: Final = 10.0
# A shorter answer would have everybody asking again and again.
MIN_PAUSE: Final = 1.0
# An hour holds any real window; a longer answer is more likely a broken clock than a plan.
MAX_PAUSE: Final = 3600.0


HELD_FOR: Final = {ANSWERED: 1, PermitEvent.UNCLEAR: 2, DROPPED: 2}
"""Periods after which the permit of a request comes back; of other requests it does at once."""


def pause_after(rate: RateLimit | None, retry_after: float | None) -> float:
    """Give the seconds for which nobody may send after a 429.

    Args:
        rate: The limit, or None where there is none.
        retry_after: Seconds the service named. None, 0, negative or not a number: it named none, so the period.

    Returns:
        At least a second and `period / limit`, since no permit can be due sooner; of what was named at most an hour.
    """
    floor = max(MIN_PAUSE, rate.period / rate.limit if rate else 0.0)
    if retry_after is None or not retry_after > 0:
        return max(rate.period if rate else PAUSE_WITHOUT_LIMIT, floor)
    return min(max(retry_after, floor), MAX_PAUSE)


@attrs.frozen(eq=False, repr=False)
class Supply:
    """When there will be permits, where each is taken as soon as there is one; times as those of the window.

    Attributes:
        times: Of the first ones, as many as may be out at once, in order; empty where there is no limit.
        period: Seconds after which each is back.
        begin: Before this time there is none.
        paced: When the first one is allowed by the pace.
        spacing: Seconds between two of them by the pace.
        also: That of another limit which holds as well.
    """

    times: tuple[float, ...]
    period: float
    begin: float
    paced: float = -math.inf
    spacing: float = 0.0
    also: "Supply | None" = None

    def shared(self, by: int, later: float) -> "Supply":
        """Give what comes to one of so many who take turns, the last of them, by a clock that is so many seconds on."""
        mine = self.times[by - 1 :: by] or self.times[-1:]
        # Where there are more who take turns than permits, each has one in several periods.
        periods = max(by / len(self.times), 1.0) if self.times else 1.0
        return Supply(
            tuple(at + later for at in mine),
            self.period * periods,
            self.begin + later,
            self.paced + later + (by - 1) * self.spacing,
            by * self.spacing,
            self.also and self.also.shared(by, later),
        )

    def at(self, number: int, taken: Sequence[float]) -> float:
        """Give when there is one, where those before were taken at these times."""
        at = max(self.begin, self.paced + number * self.spacing)
        if self.also:
            at = max(at, self.also.at(number, taken))
        if not self.times:
            return at
        most = len(self.times)
        return max(at, self.times[number] if number < most else taken[number - most] + self.period)


@attrs.define(eq=False, repr=False)
class Window:
    """At most `rate.limit` counts in any `rate.period` on the server's side, less where a 429 taught so."""

    rate: RateLimit
    _out: int = attrs.field(init=False, default=0)
    # When the permits of settled requests come back, and whether the server certainly took the request.
    _returns: list[tuple[float, bool]] = attrs.field(init=False, factory=list)
    _probing: Probing = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._probing = Probing(self.rate)

    def out(self, now: float) -> int:
        """Permits that are taken, or not back yet."""
        self._collect(now)
        return self._out

    @property
    def learned_limit(self) -> int | None:
        """See `Gate`."""
        return self._probing.limit if self._probing.limit < self.rate.limit else None

    def believe(self, told: Told, now: float) -> None:
        """Keep to what the service tells of its limit, where that is less; it is felt upwards again like a learned one.

        What `remaining` leaves no room for is held until the reset: others use the account as well.
        """
        self._collect(now)
        longer = told.seconds is None and told.reset is not None and told.reset > self.rate.period * CLOCK_MARGIN
        if told.limit is not None and told.limit < self._probing.limit and not longer:
            self._probing.lower(max(told.limit, 1), now)
        if told.remaining is not None:
            until = now + min(self.rate.period if told.reset is None else told.reset, MAX_PAUSE) * CLOCK_MARGIN
            for _ in range(self._probing.limit - self._out - told.remaining):
                self._out += 1
                heapq.heappush(self._returns, (until, False))

    def ready_at(self, now: float, ahead: int = 0) -> float:
        """When to ask again: `now` if a permit is free, infinity if first something in flight must be settled.

        Args:
            now: The time.
            ahead: Permits that others are to have before.
        """
        self._collect(now)
        paced = max(now, self._probing.paced_at(now, ahead))
        missing = self._out + ahead + 1 - self._probing.limit
        if missing <= 0:
            return paced
        if missing > len(self._returns):
            return math.inf
        first = self._returns[0] if missing == 1 else heapq.nsmallest(missing, self._returns)[-1]
        return max(paced, first[0])

    def supply(self, now: float, begin: float) -> Supply:
        """When there will be permits, none of them before `begin`, as far as is known; see `Supply`."""
        self._collect(now)
        period, limit = self.rate.period * CLOCK_MARGIN, self._probing.limit
        # What is under way is taken to be answered now.
        times = [*(at for at, _ in self._returns), *[now + period] * (self._out - len(self._returns))]
        times = sorted([*[now] * (limit - self._out), *times])[-limit:]
        return Supply(tuple(times), period, max(now, begin), self._probing.paced_at(now), self._probing.spacing)

    def take(self, now: float) -> Ticket:
        """Take a permit, which is free."""
        self._out += 1
        return self._probing.take(now, self._out)

    def settle(self, ticket: Ticket, event: PermitEvent, now: float, pause: float = 0.0) -> None:
        """Take a permit back, or learn from a 429, after which the permit is still out.

        Args:
            ticket: The permit.
            event: What became of its request.
            now: When.
            pause: Of a 429, seconds for which nobody sends because of it.
        """
        self._collect(now)
        match event:
            case PermitEvent.NEVER_SENT:
                self._out -= 1
                self._probing.never_sent(ticket)
            case PermitEvent.ANSWERED:
                heapq.heappush(self._returns, (now + self.rate.period * CLOCK_MARGIN, True))
                self._probing.answered(ticket, now)
            case PermitEvent.THROTTLED:
                self._probing.throttled(ticket, now, pause, self._returns)
            case PermitEvent.REFUSED:
                # The server did not count it; the gate, not this permit, is what waits.
                self._out -= 1
            case PermitEvent.UNCLEAR | PermitEvent.DROPPED:
                heapq.heappush(self._returns, (now + 2 * self.rate.period * CLOCK_MARGIN, False))

    def abandon(self, now: float) -> None:
        """Take all that are out for unclear: nobody is left who would say what became of them."""
        for _ in range(self._out - len(self._returns)):
            self.settle(Ticket(now), PermitEvent.UNCLEAR, now)

    def hold(self, until: float) -> None:
        """Count a permit that was taken without this window and comes back at `until`."""
        self._out += 1
        heapq.heappush(self._returns, (until, True))

    def reset(self, rate: RateLimit) -> None:
        """Believe in another limit from now on; what is out stays out."""
        self.rate = rate
        self._probing.reset(rate)

    def _collect(self, now: float) -> None:
        while self._returns and self._returns[0][0] <= now:
            heapq.heappop(self._returns)
            self._out -= 1
