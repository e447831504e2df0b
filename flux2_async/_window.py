"""How many requests may start, and when: the arithmetic of the limiter. Pure: time comes in as an argument.

Claim: n permits, each taken before a send and back one period P after the response, are never refused by a server
that allows n per P. Proof: let s <= a <= r be the send, count-on-server and response instants. Of any n + 1 accepted
requests two, i before j, used the same permit, so a_j >= s_j >= r_i + P >= a_i + P: no half-open interval of length P
holds n + 1 counts, whatever the delays. A fixed window is such an interval; a token bucket of n does not run dry
either. Only the clocks' rates must agree (`HAIR`). A request given up may be counted later: its permit is held 2 P.

When a 429 comes nevertheless (a lower limit, strangers on the key, a server that refuses legal bursts):

* Level. The limit becomes what the server took of ours in the last period: everything sent before the first 429 is
  one burst and one piece of news, so what is still under way and turns out accepted counts as well. Later news holds
  for one period; then bursts go half way back to the level refused, since strangers come and go. The level stays one
  below the configured limit, where a two-window counter refuses next to nothing.
* Manner. Bursts of as many as the server took at once, what the level allows beyond them period / limit apart: a
  pause costs bursts nothing, their permits are out as long, and an even stream a period of sends. A burst grows by
  one with news of a higher level, and shrinks by what is refused at a level that had passed (a smaller token bucket).
  Where the server had taken a full window before, or takes less than two thirds at a level that had passed, bursts
  may be what it refuses (a two-window counter): then sends go evenly, and the level only one down. An even stream
  refused at a level that had passed has met strangers: bursts again, unless too much was refused already.
* Growth and forgetting stand in `_growth`; the configured limit, bursts included, holds again when they say so.
"""

import enum
import heapq
import math
from typing import Final, Protocol

import attrs

from flux2_async._growth import Growth
from flux2_async.models import RateLimit

HAIR: Final = 1.001
# Upstream's documented period, for a session that was told none.
PAUSE_WITHOUT_LIMIT: Final = 10.0
# A shorter answer would have everybody asking again and again.
MIN_PAUSE: Final = 1.0
# An hour holds any real window; a longer answer is more likely a broken clock than a plan.
MAX_PAUSE: Final = 3600.0


class Fate(enum.Enum):
    """What became of a request that had a permit."""

    NEVER_SENT = "never_sent"
    ANSWERED = "answered"
    AMBIGUOUS = "ambiguous"
    REFUSED = "refused"
    DROPPED = "dropped"


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


@attrs.frozen(eq=False)
class Ticket:
    """One permit as the window keeps it.

    Attributes:
        sent_at: When it was taken.
        last: Whether it was the last one free, so that its answer tells about the whole level.
        spacing: The seconds it moved the pace on.
    """

    sent_at: float
    last: bool = False
    spacing: float = 0.0


class Starts(Protocol):
    """What the limiter asks of a window; times are loop times in seconds."""

    @property
    def learned_limit(self) -> int | None: ...
    def ready_at(self, now: float) -> float: ...
    def take(self, now: float) -> Ticket: ...
    def never_sent(self, ticket: Ticket) -> None: ...
    def answered(self, ticket: Ticket, now: float) -> None: ...
    def ambiguous(self, now: float) -> None: ...
    def refused(self, ticket: Ticket, now: float) -> None: ...


class Unlimited:
    """No window: everything may start at once, and nothing is learned."""

    learned_limit = None

    def ready_at(self, now: float) -> float:
        return now

    def take(self, now: float) -> Ticket:
        return Ticket(now)

    def never_sent(self, ticket: Ticket) -> None:
        """Nothing to give back."""

    def answered(self, ticket: Ticket, now: float) -> None:
        """Nothing to hold back."""

    def ambiguous(self, now: float) -> None:
        """Nothing to hold back."""

    def refused(self, ticket: Ticket, now: float) -> None:
        """The gate alone answers a 429."""


@attrs.define(eq=False)
class News:
    """One burst that met a 429.

    Attributes:
        limit: The limit before.
        first: Whether the configured limit held before.
        repeated: Whether a period had not passed since the last news: it tells about the same moment.
        accepted: What the server took of ours in the period before, as far as is known.
        refused: How many of the burst it refused.
    """

    limit: int
    first: bool
    repeated: bool
    accepted: int
    refused: int = 1


@attrs.define(eq=False)
class Window:
    """At most `rate.limit` counts in any `rate.period` on the server's side, less where a 429 taught so."""

    _rate: RateLimit
    _limit: int = attrs.field(init=False, default=attrs.Factory(lambda self: self._rate.limit, takes_self=True))
    _out: int = attrs.field(init=False, default=0)
    # When the permits of settled requests come back, and whether the server certainly took the request.
    _returns: list[tuple[float, bool]] = attrs.field(init=False, factory=list)
    _took_full_window: bool = attrs.field(init=False, default=False)
    _paced: bool = attrs.field(init=False, default=False)
    _news_at: float = attrs.field(init=False, default=-math.inf)
    # News is judged when the next request starts, since answers come in any order.
    _news: News | None = attrs.field(init=False, default=None)
    # The limit from one period after the last news on.
    _limit_later: int = attrs.field(init=False, default=0)
    # The pace is a bucket (GCRA) of this many sends, and when it is full again.
    _burst: int = attrs.field(init=False, default=attrs.Factory(lambda self: self._rate.limit, takes_self=True))
    _full_at: float = attrs.field(init=False, default=-math.inf)
    _even: bool = attrs.field(init=False, default=False)
    _growth: Growth = attrs.field(
        init=False, default=attrs.Factory(lambda self: Growth(self._rate.period), takes_self=True)
    )

    @property
    def learned_limit(self) -> int | None:
        return self._limit if self._paced else None

    @property
    def _top(self) -> int:
        return max(1, self._rate.limit - 1)

    @property
    def _spacing(self) -> float:
        return self._rate.period / self._limit if self._paced else 0.0

    def ready_at(self, now: float, ahead: int = 0) -> float:
        """When to ask again: `now` if a permit is free, infinity if first something in flight must be settled.

        Args:
            now: The time.
            ahead: Permits that others are to have before.
        """
        self._collect(now)
        unjudged = self._news is not None and not self._news.first
        at_once = 1 if self._even or unjudged else min(self._burst, self._limit)
        paced = max(now, max(self._full_at, now) + (ahead + 1 - at_once) * self._spacing)
        missing = self._out + ahead + 1 - self._limit
        if missing <= 0:
            return paced
        if missing > len(self._returns):
            return math.inf
        first = self._returns[0] if missing == 1 else heapq.nsmallest(missing, self._returns)[-1]
        return max(paced, first[0])

    def take(self, now: float) -> Ticket:
        if self._news:
            self._judge(self._news)
            self._news = None
        self._out += 1
        self._full_at = max(self._full_at, now) + self._spacing
        return Ticket(now, self._out >= self._limit, self._spacing)

    def never_sent(self, ticket: Ticket) -> None:
        self._out -= 1
        self._full_at -= ticket.spacing

    def answered(self, ticket: Ticket, now: float) -> None:
        self._collect(now)
        heapq.heappush(self._returns, (now + self._rate.period * HAIR, True))
        self._growth.earn()
        if ticket.sent_at <= self._news_at:
            if self._news:
                self._news.accepted += 1
                self._limit = self._taken(self._news)
        elif not self._paced:
            self._took_full_window |= len(self._returns) >= self._rate.limit
        elif ticket.last:
            self._grow(now)

    def ambiguous(self, now: float) -> None:
        heapq.heappush(self._returns, (now + 2 * self._rate.period * HAIR, False))

    def hold(self, until: float) -> None:
        """Count a permit that was taken without this window and comes back at `until`."""
        self._out += 1
        heapq.heappush(self._returns, (until, True))

    def reset(self, rate: RateLimit) -> None:
        """Believe in another limit from now on; what is out stays out."""
        self._rate = rate
        self._forget()

    def refused(self, ticket: Ticket, now: float) -> None:
        # The server did not count it; the gate, not this permit, is what waits.
        self._out -= 1
        if ticket.sent_at <= self._news_at:
            if self._news:
                self._news.refused += 1
            return
        self._collect(now)
        repeated = now < self._news_at + self._rate.period
        limit = max(self._limit, self._limit_later) if repeated else self._limit
        accepted = sum(taken for _, taken in self._returns)
        self._news = News(limit, first=not self._paced, repeated=repeated, accepted=accepted)
        self._news_at = now
        self._limit, self._limit_later = self._taken(self._news), 0
        self._full_at = -math.inf
        if not self._paced:
            self._paced, self._even = True, self._took_full_window

    def _taken(self, news: News) -> int:
        return max(1, min(news.accepted, news.limit - 1, self._top))

    def _judge(self, news: News) -> None:
        taken = self._limit
        if news.first:
            self._burst = taken
            self._limit_later = self._top if self._even else taken
            return
        was_even, tried = self._even, self._growth.trying
        self._growth.spend(news.refused)
        if not news.repeated:
            self._learn(news)
        if self._even != was_even:
            self._limit_later = news.limit - 1
        elif not self._even:
            self._limit_later = (taken + news.limit) // 2
        if tried or news.limit <= self._burst:
            self._burst = min(self._burst + 1, max(taken, self._limit_later))
        else:
            self._burst = max(1, self._burst - news.refused)

    def _learn(self, news: News) -> None:
        if not self._growth.trying:
            short = 3 * news.accepted < 2 * news.limit
            self._even = self._growth.overspent if self._even else short
        firm = self._even or news.accepted >= news.limit - 1
        self._growth.stop(limit=self._limit, even=self._even, firm=firm)

    def _collect(self, now: float) -> None:
        while self._returns and self._returns[0][0] <= now:
            heapq.heappop(self._returns)
            self._out -= 1
        if now >= self._news_at + self._rate.period:
            self._limit = max(self._limit, min(self._top, self._limit_later))
            self._limit_later = 0

    def _grow(self, now: float) -> None:
        room = self._limit < self._top
        self._limit += self._growth.tries(now, limit=self._limit, even=self._even, room=room)
        if self._growth.forgets:
            self._forget()

    def _forget(self) -> None:
        self._limit = self._burst = self._rate.limit
        self._limit_later, self._news = 0, None
        self._paced = self._even = self._took_full_window = False
        self._growth = Growth(self._rate.period)
