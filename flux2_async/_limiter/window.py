"""How many requests may start, and when: the arithmetic of the limiter. Pure: time comes in as an argument.

Claim: n permits, each taken before a send and back one period P after the response, are never refused by a server
that allows n per P. Proof: let s <= a <= r be the send, count-on-server and response instants. Of any n + 1 accepted
requests two, i before j, used the same permit, so a_j >= s_j >= r_i + P >= a_i + P: no half-open interval of length P
holds n + 1 counts, whatever the delays. A fixed window is such an interval; a token bucket of n does not run dry
either. Only the clocks' rates must agree (`CLOCK_MARGIN`). A request given up may be counted later: its permit is held
2 P.

When a 429 comes nevertheless (a lower limit, strangers on the key, a server that refuses legal bursts), what the
server took of ours in the last period is certain, what lies above is not, and asking costs a refusal and a pause:

* Limit. After the first 429 (everything sent before it is one burst and one piece of news) as many as were taken go
  at once, then one more, 2, 4, 8 ... `PACE` x period / limit apart, each step when the last was answered: where a
  stranger had used the rest, the whole limit is back after one period. At a refusal the limit is what was taken. Only
  where the burst itself was refused, or a question for a pause that `PATIENCE` allows to ask for again by then, the
  next period asks once more: a count that fades may have met it.
* Manner. A burst of which at most one was taken, or one that had passed and lost more than `NEARLY` leaves, may be
  what the server refuses (no burst, a small bucket, a two-window counter), also where a question came right behind it:
  then sends go one at a time, and the limit stays. When that is refused as well, the limit is what was taken, but
  shrinks by a quarter at most.
* Dear. Once a question or a burst has cost a pause of more than `DEAR` periods, sends go one at a time as well, at the
  limit: another refused burst would cost far more than the period that an even pace takes to begin. The limit is what
  had passed before the question, since what was taken then may lie in two of the server's windows. When sends one at a
  time are refused as well, what was taken is believed at once where it is half of the limit.
* Again. What was refused is asked for again after `PATIENCE` pauses of at least a period (twice as many for sends one
  at a time, which a pause costs a period of sends): the limit first, then the burst, a step in two periods in which
  all was used. When both are whole, everything is forgotten.
* One 429 where nothing had been sent before tells nothing, but for its pause.
"""

import enum
import heapq
import math
from collections.abc import Sequence
from typing import Final

import attrs

from flux2_async.models import RateLimit
from flux2_async.models.settings import Told

CLOCK_MARGIN: Final = 1.001
# Jitter would meet a server that takes exactly one per period / limit.
PACE: Final = 1.1
PATIENCE: Final = 10
# Periods. A shorter pause costs little, because all permits are out for a period anyway.
DEAR: Final = 2
# Of the limit: what was taken where it is the limit that is too high, and not the burst.
NEARLY: Final = 0.85
# Periods in which the limit is felt upwards and something refused, at most.
QUESTIONS: Final = 2
# Upstream's documented period, for a session that was told none.
PAUSE_WITHOUT_LIMIT: Final = 10.0
# A shorter answer would have everybody asking again and again.
MIN_PAUSE: Final = 1.0
# An hour holds any real window; a longer answer is more likely a broken clock than a plan.
MAX_PAUSE: Final = 3600.0


class PermitEvent(enum.Enum):
    """What became of a request that had a permit; `THROTTLED` is not the end: a 429 came, and whose it is is open."""

    NEVER_SENT = "never_sent"
    THROTTLED = "throttled"
    ANSWERED = "answered"
    UNCLEAR = "unclear"
    REFUSED = "refused"
    DROPPED = "dropped"


HELD_FOR: Final = {PermitEvent.ANSWERED: 1, PermitEvent.UNCLEAR: 2, PermitEvent.DROPPED: 2}
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


# Made twice as fast as a frozen one, for each request.
@attrs.define(eq=False)
class Ticket:
    """One permit as the window keeps it, which does not change it.

    Attributes:
        sent_at: When it was taken.
        last: Whether it was the last one of the limit or of the burst, so that its answer tells about them.
        spacing: The seconds it moved the pace on.
    """

    sent_at: float
    last: bool = False
    spacing: float = 0.0


@attrs.frozen
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


@attrs.define(eq=False)
class News:
    """One burst that met a 429, and what was believed before.

    Attributes:
        limit: The limit.
        burst: How many went at once.
        passed: Limit and burst that had passed before more was tried.
        first: Whether nothing had been learned.
        rising: How many refusals, with this one, were left to be met while the limit is felt upwards.
        accepted: What the server took of ours in the period before, as far as is known.
        pause: That of its first 429, in periods.
        refused: How many of the burst it refused.
    """

    limit: int
    burst: int
    passed: tuple[int, int]
    first: bool
    rising: int
    accepted: int
    pause: float
    refused: int = 1

    @property
    def asked(self) -> bool:
        """Whether more was tried than had passed."""
        return self.limit > self.passed[0] or self.burst > self.passed[1]

    @property
    def dear(self) -> bool:
        """Whether the pause is so long that another refusal is to be avoided."""
        return self.pause > DEAR


@attrs.define(eq=False)
class Window:
    """At most `rate.limit` counts in any `rate.period` on the server's side, less where a 429 taught so."""

    _rate: RateLimit
    _out: int = attrs.field(init=False, default=0)
    # When the permits of settled requests come back, and whether the server certainly took the request.
    _returns: list[tuple[float, bool]] = attrs.field(init=False, factory=list)
    _news_at: float = attrs.field(init=False, default=-math.inf)
    # Open until the next request starts, since answers come in any order.
    _news: News | None = attrs.field(init=False, default=None)
    # The pace is a bucket (GCRA) of `_burst` sends, and when it is full again.
    _full_at: float = attrs.field(init=False, default=-math.inf)
    _limit: int = attrs.field(init=False)
    _burst: int = attrs.field(init=False)
    # Limit and burst that had passed before more was tried.
    _passed: tuple[int, int] = attrs.field(init=False)
    _paced: bool = attrs.field(init=False)
    # How many more refusals are to be met while the limit is felt upwards within the same period; 0: it is not.
    _rising: int = attrs.field(init=False)
    _step: int = attrs.field(init=False)
    _stepped_at: float = attrs.field(init=False)
    _patient_until: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._forget()

    @property
    def rate(self) -> RateLimit:
        """What it was given."""
        return self._rate

    def out(self, now: float) -> int:
        """Permits that are taken, or not back yet."""
        self._collect(now)
        return self._out

    @property
    def learned_limit(self) -> int | None:
        return self._limit if self._limit < self._rate.limit else None

    def believe(self, told: Told, now: float) -> None:
        """Keep to what the service tells of its limit, where that is less; it is felt upwards again like a learned one.

        What `remaining` leaves no room for is held until the reset: others use the account as well.
        """
        self._collect(now)
        longer = told.seconds is None and told.reset is not None and told.reset > self._rate.period * CLOCK_MARGIN
        if told.limit is not None and told.limit < self._limit and not longer:
            self._limit = max(told.limit, 1)
            self._burst = min(self._burst, self._limit)
            self._passed = self._limit, self._burst
            self._paced, self._rising, self._step = True, 0, 1
            self._patient_until = max(self._patient_until, now + PATIENCE * self._rate.period)
        if told.remaining is not None:
            until = now + min(self._rate.period if told.reset is None else told.reset, MAX_PAUSE) * CLOCK_MARGIN
            for _ in range(self._limit - self._out - told.remaining):
                self._out += 1
                heapq.heappush(self._returns, (until, False))

    @property
    def _spacing(self) -> float:
        if not self._paced:
            return 0.0
        whole = PACE * self._rate.period / self._rate.limit
        return whole if self._rising else max(whole, self._rate.period / self._limit)

    def ready_at(self, now: float, ahead: int = 0) -> float:
        """When to ask again: `now` if a permit is free, infinity if first something in flight must be settled.

        Args:
            now: The time.
            ahead: Permits that others are to have before.
        """
        self._collect(now)
        paced = now
        if self._burst < self._limit or self._burst == 1:
            paced = max(now, max(self._full_at, now) + (ahead + 1 - self._burst) * self._spacing)
        missing = self._out + ahead + 1 - self._limit
        if missing <= 0:
            return paced
        if missing > len(self._returns):
            return math.inf
        first = self._returns[0] if missing == 1 else heapq.nsmallest(missing, self._returns)[-1]
        return max(paced, first[0])

    def supply(self, now: float, begin: float) -> Supply:
        """When there will be permits, none of them before `begin`, as far as is known; see `Supply`."""
        self._collect(now)
        period = self._rate.period * CLOCK_MARGIN
        # What is under way is taken to be answered now.
        times = [*(at for at, _ in self._returns), *[now + period] * (self._out - len(self._returns))]
        times = sorted([*[now] * (self._limit - self._out), *times])[-self._limit :]
        paced = -math.inf
        if self._burst < self._limit or self._burst == 1:
            paced = max(self._full_at, now) + (1 - self._burst) * self._spacing
        return Supply(tuple(times), period, max(now, begin), paced, self._spacing)

    def take(self, now: float) -> Ticket:
        self._news = None
        self._out += 1
        spacing = self._spacing
        self._full_at = min(max(self._full_at, now) + spacing, now + self._burst * spacing)
        burst_is_out = self._full_at - now >= (self._burst - 0.5) * spacing
        return Ticket(now, self._out >= self._limit or burst_is_out, spacing)

    def settle(self, ticket: Ticket, event: PermitEvent, now: float, pause: float = 0.0) -> None:
        """Take a permit back, or learn from a 429, after which the permit is still out.

        Args:
            ticket: The permit.
            event: What became of its request.
            now: When.
            pause: Of a 429, seconds for which nobody sends because of it.
        """
        match event:
            case PermitEvent.NEVER_SENT:
                self._out -= 1
                self._full_at -= ticket.spacing
            case PermitEvent.ANSWERED:
                self._answered(ticket, now)
            case PermitEvent.THROTTLED:
                self._throttled(ticket, now, pause)
            case PermitEvent.REFUSED:
                # The server did not count it; the gate, not this permit, is what waits.
                self._out -= 1
            case PermitEvent.UNCLEAR | PermitEvent.DROPPED:
                heapq.heappush(self._returns, (now + 2 * self._rate.period * CLOCK_MARGIN, False))

    def _answered(self, ticket: Ticket, now: float) -> None:
        self._collect(now)
        heapq.heappush(self._returns, (now + self._rate.period * CLOCK_MARGIN, True))
        if ticket.sent_at <= self._news_at:
            if self._news:
                self._news.accepted += 1
                self._judge(self._news)
        elif self._paced and ticket.last and ticket.sent_at >= self._stepped_at:
            self._ask(now)

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
        self._rate = rate
        self._forget()

    def _throttled(self, ticket: Ticket, now: float, pause: float) -> None:
        if ticket.sent_at > self._news_at:
            self._collect(now)
            accepted = sum(taken for _, taken in self._returns)
            before = self._limit, self._burst, self._passed
            self._news = News(*before, not self._paced, self._rising, accepted, pause / self._rate.period)
            self._news_at, self._step, self._full_at = now, 1, -math.inf
        elif self._news:
            self._news.refused += 1
        if self._news:
            self._judge(self._news)
        patience = PATIENCE * max(pause, self._rate.period) * (2 if self._burst == 1 else 1)
        self._patient_until = max(self._patient_until, now + patience)

    def _judge(self, news: News) -> None:
        taken = max(1, min(news.accepted, news.limit - 1))
        if news.first and not news.accepted and news.refused == 1:
            return
        again = not news.dear and (not news.asked or PATIENCE * news.pause <= 1)
        left = QUESTIONS if news.first else max(news.rising - 1, 0) * again
        self._rising = left if taken > 1 else 0
        if news.first:
            self._limit, self._burst = (taken, taken) if taken > 1 else (self._rate.limit, 1)
        elif news.asked and not (news.rising and news.accepted < NEARLY * news.passed[0]):
            self._limit = news.passed[0] if news.dear else max(taken, news.passed[0])
            self._burst = 1 if news.dear else min(news.passed[1], self._limit)
        elif news.burst == 1:
            believed = news.dear and 2 * taken >= news.limit
            self._limit = taken if believed else max(taken, 3 * news.limit // 4)
        elif news.accepted >= NEARLY * news.limit or news.accepted >= news.limit - 1 > 1:
            self._limit, self._burst = taken, 1 if news.dear else min(news.burst, taken)
        else:
            self._limit, self._burst, self._rising = self._rate.limit if news.rising else news.limit, 1, 0
        self._paced = True
        self._passed = self._limit, self._burst

    def _ask(self, now: float) -> None:
        """Try more after all that was allowed has passed."""
        if not self._rising and now < max(self._patient_until, self._stepped_at + 2 * self._rate.period):
            return
        if self._limit < self._rate.limit:
            self._limit = min(self._limit + self._step, self._rate.limit)
        elif self._burst < self._rate.limit:
            self._burst = min(self._burst + self._step, self._rate.limit)
        else:
            self._forget()
            return
        self._step *= 2
        self._stepped_at = now
        if self._rising and self._limit == self._rate.limit:
            self._rising, self._step = 0, 1

    def _collect(self, now: float) -> None:
        while self._returns and self._returns[0][0] <= now:
            heapq.heappop(self._returns)
            self._out -= 1

    def _forget(self) -> None:
        self._limit = self._burst = self._rate.limit
        self._passed = self._limit, self._burst
        self._paced, self._rising = False, 0
        self._news, self._step = None, 1
        self._full_at = self._stepped_at = self._patient_until = -math.inf
