"""How many requests may start, and when: the arithmetic of the limiter. Pure: time comes in as an argument.

Claim: n permits, each taken before a send and back one period P after the response, are never refused by a server
that allows n per P. Proof: let s <= a <= r be the send, count-on-server and response instants. Of any n + 1 accepted
requests two, i before j, used the same permit, so a_j >= s_j >= r_i + P >= a_i + P: no half-open interval of length P
holds n + 1 counts, whatever the delays. A fixed window is such an interval; a token bucket of n does not run dry
either. Only the clocks' rates must agree (`HAIR`). A request given up may be counted later: its permit is held 2 P.

When a 429 comes nevertheless (a lower limit, strangers on the key, a server that refuses legal bursts):

* Level. The limit becomes what the server took of ours in the last period, once per pause: everything sent before
  the first 429 is one burst and one piece of news, so what is still under way and turns out accepted counts as well.
* Pace. From then on sends are period / limit apart, because a two-window counter and a smaller token bucket refuse
  legal bursts; only as many as the server took at once may go at once again. (An even stream loses a whole period of
  sends by every pause, bursts lose nothing: their permits are out as long.) If the server had taken a full window
  before, or takes less than two thirds of the burst later, bursts are what it refuses: then nothing goes at once.
  The level stays one below the configured limit, where a two-window counter refuses next to nothing.
* Growth. By one after `PATIENCE` clean periods, then by twice as much after each further one. A level that was
  refused before it lasted a period is tried four times as rarely, up to `MAX_PATIENCE` periods: a probe costs a
  refusal and at worst a period, so 1 in 32 costs 3 %. A period counts only if all permits were out: an idle one
  proves nothing. After the first 429 growth starts at once, since that one spoke of a burst, not of this pace.
* Forgetting. After `FORGET` clean periods at the top the configured limit holds again, bursts included; where bursts
  are never legal this costs at most n refusals in 60 n submissions.
"""

import enum
import heapq
import math
from typing import Final, Protocol

import attrs

from flux2_async.models import RateLimit

HAIR: Final = 1.001
PATIENCE: Final = 4
MAX_PATIENCE: Final = 32
FORGET: Final = 60


class Fate(enum.Enum):
    """What became of a request that had a permit."""

    NEVER_SENT = "never_sent"
    ANSWERED = "answered"
    AMBIGUOUS = "ambiguous"
    REFUSED = "refused"
    DROPPED = "dropped"


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
class Window:
    """At most `rate.limit` counts in any `rate.period` on the server's side, less where a 429 taught so."""

    _rate: RateLimit
    _limit: int = attrs.field(init=False, default=attrs.Factory(lambda self: self._rate.limit, takes_self=True))
    _out: int = attrs.field(init=False, default=0)
    # When the permits of settled requests come back, and whether the server certainly took the request.
    _returns: list[tuple[float, bool]] = attrs.field(init=False, factory=list)
    _news_at: float = attrs.field(init=False, default=-math.inf)
    _accepted: int = attrs.field(init=False, default=0)
    _took_full_window: bool = attrs.field(init=False, default=False)
    _paced: bool = attrs.field(init=False, default=False)
    # The pace is a bucket (GCRA) of this many sends, and when it is full again.
    _burst: int = attrs.field(init=False, default=attrs.Factory(lambda self: self._rate.limit, takes_self=True))
    _measures_burst: bool = attrs.field(init=False, default=False)
    _full_at: float = attrs.field(init=False, default=-math.inf)
    _growth: "Growth" = attrs.field(
        init=False, default=attrs.Factory(lambda self: Growth(self._rate.period, self._rate.limit), takes_self=True)
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
        at_once = min(self._burst, self._limit) - 1
        paced = max(now, max(self._full_at, now) + (ahead - at_once) * self._spacing)
        missing = self._out + ahead + 1 - self._limit
        if missing <= 0:
            return paced
        if missing > len(self._returns):
            return math.inf
        first = self._returns[0] if missing == 1 else heapq.nsmallest(missing, self._returns)[-1]
        return max(paced, first[0])

    def take(self, now: float) -> Ticket:
        self._out += 1
        self._full_at = max(self._full_at, now) + self._spacing
        return Ticket(now, self._out >= self._limit, self._spacing)

    def never_sent(self, ticket: Ticket) -> None:
        self._out -= 1
        self._full_at -= ticket.spacing

    def answered(self, ticket: Ticket, now: float) -> None:
        self._collect(now)
        heapq.heappush(self._returns, (now + self._rate.period * HAIR, True))
        if ticket.sent_at <= self._news_at:
            self._accepted += 1
            self._limit = max(self._limit, min(self._top, self._accepted))
            if self._measures_burst:
                self._burst = self._accepted
        elif not self._paced:
            self._took_full_window |= len(self._returns) >= self._rate.limit
        elif ticket.last:
            self._limit += self._growth.after_clean_answer(now, room=self._top - self._limit)
            if self._growth.forgets:
                self._forget()

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
            return
        self._collect(now)
        self._news_at = now
        self._accepted = sum(taken for _, taken in self._returns)
        self._limit = max(1, min(self._top, self._accepted))
        self._full_at = -math.inf
        self._learn_burst()
        if self._paced:
            self._growth.stop()
        self._paced = True

    def _learn_burst(self) -> None:
        self._measures_burst = not self._paced and not self._took_full_window
        if self._measures_burst or (self._paced and 3 * self._accepted >= 2 * self._burst):
            self._burst = max(1, min(self._burst, self._accepted))
        else:
            self._burst = 1

    def _collect(self, now: float) -> None:
        while self._returns and self._returns[0][0] <= now:
            heapq.heappop(self._returns)
            self._out -= 1

    def _forget(self) -> None:
        self._limit = self._burst = self._rate.limit
        self._paced = self._took_full_window = False
        self._growth = Growth(self._rate.period, self._rate.limit)


@attrs.define(eq=False)
class Growth:
    """Counts clean periods at the present level and says when to try a higher one."""

    _period: float
    _top: int
    _patience: int = attrs.field(init=False, default=PATIENCE)
    _wait: int = attrs.field(init=False, default=1)
    _step: int = attrs.field(init=False, default=1)
    _trying: bool = attrs.field(init=False, default=False)
    _clean: int = attrs.field(init=False, default=0)
    _clean_since: float | None = attrs.field(init=False, default=None)

    @property
    def forgets(self) -> bool:
        return self._clean >= FORGET

    def after_clean_answer(self, now: float, *, room: int) -> int:
        """Steps to grow, at most `room`, after a request that used the last permit was accepted."""
        if self._clean_since is None or now < self._clean_since + self._period:
            self._clean_since = now if self._clean_since is None else self._clean_since
            return 0
        self._clean += 1
        self._clean_since = now
        if self._trying:
            self._trying, self._patience = False, PATIENCE
            self._step = min(2 * self._step, max(1, self._top // 4))
        if self._clean < self._wait or room <= 0:
            return 0
        self._restart(wait=1)
        self._trying = True
        return min(self._step, room)

    def stop(self) -> None:
        """A refusal: wait before the next try, longer when it was a try that failed."""
        if self._trying:
            self._patience = min(4 * self._patience, MAX_PATIENCE)
        self._trying, self._step = False, 1
        self._restart(wait=self._patience)

    def _restart(self, *, wait: int) -> None:
        self._wait, self._clean, self._clean_since = wait, 0, None
