"""What 429s teach of a limit, and how more is tried. Pure: time comes in as an argument.

When a 429 comes all the same (a lower limit, strangers on the key, a server that refuses legal bursts), what the
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

import math
from collections.abc import Sequence
from typing import Final

import attrs

from flux2_async.models import RateLimit

# Jitter would meet a server that takes exactly one per period / limit.
PACE: Final = 1.1
PATIENCE: Final = 10
# Periods. A shorter pause costs little, because all permits are out for a period anyway.
DEAR: Final = 2
# Of the limit: what was taken where it is the limit that is too high, and not the burst.
NEARLY: Final = 0.85
# Periods in which the limit is felt upwards and something refused, at most.
QUESTIONS: Final = 2


# Made twice as fast as a frozen one, for each request.
@attrs.define(eq=False, repr=False)
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


@attrs.define(eq=False, repr=False)
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


@attrs.define(eq=False, repr=False)
class Probing:
    """How many may be out at once, and how fast they may go, by what 429s have taught.

    Attributes:
        limit: Starts per period; at first the whole limit.
        burst: Of them so many at once.
    """

    _rate: RateLimit
    _news_at: float = attrs.field(init=False, default=-math.inf)
    # Open until the next request starts, since answers come in any order.
    _news: News | None = attrs.field(init=False)
    # The pace is a bucket (GCRA) of `burst` sends, and when it is full again.
    _full_at: float = attrs.field(init=False)
    limit: int = attrs.field(init=False)
    burst: int = attrs.field(init=False)
    # Limit and burst that had passed before more was tried.
    _passed: tuple[int, int] = attrs.field(init=False)
    _paced: bool = attrs.field(init=False)
    # How many more refusals are to be met while the limit is felt upwards within the same period; 0: it is not.
    _rising: int = attrs.field(init=False)
    _step: int = attrs.field(init=False)
    _stepped_at: float = attrs.field(init=False)
    _patient_until: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reset(self._rate)

    def reset(self, rate: RateLimit) -> None:
        """Know nothing but the limit."""
        self._rate = rate
        self.limit = self.burst = rate.limit
        self._passed = self.limit, self.burst
        self._paced, self._rising = False, 0
        self._news, self._step = None, 1
        self._full_at = self._stepped_at = self._patient_until = -math.inf

    def lower(self, limit: int, now: float) -> None:
        """Believe a lower limit that the service tells."""
        self.limit, self.burst = limit, min(self.burst, limit)
        self._passed = self.limit, self.burst
        self._paced, self._rising, self._step = True, 0, 1
        self._patient_until = max(self._patient_until, now + PATIENCE * self._rate.period)

    @property
    def spacing(self) -> float:
        """Seconds between two sends by the pace."""
        if not self._paced:
            return 0.0
        whole = PACE * self._rate.period / self._rate.limit
        return whole if self._rising else max(whole, self._rate.period / self.limit)

    def paced_at(self, now: float, ahead: int = 0) -> float:
        """When the pace allows one more, after so many others; -inf where all may go at once."""
        if self.burst >= max(self.limit, 2):
            return -math.inf
        return max(self._full_at, now) + (ahead + 1 - self.burst) * self.spacing

    def take(self, now: float, out: int) -> Ticket:
        """Count one that is sent, with which so many permits are out."""
        self._news = None
        spacing = self.spacing
        self._full_at = min(max(self._full_at, now) + spacing, now + self.burst * spacing)
        burst_is_out = self._full_at - now >= (self.burst - 0.5) * spacing
        return Ticket(now, out >= self.limit or burst_is_out, spacing)

    def never_sent(self, ticket: Ticket) -> None:
        """It was not sent after all."""
        self._full_at -= ticket.spacing

    def answered(self, ticket: Ticket, now: float) -> None:
        """The server took it."""
        if ticket.sent_at <= self._news_at:
            if self._news:
                self._news.accepted += 1
                self._judge(self._news)
        elif self._paced and ticket.last and ticket.sent_at >= self._stepped_at:
            self._ask(now)

    def throttled(self, ticket: Ticket, now: float, pause: float, returns: Sequence[tuple[float, bool]]) -> None:
        """The server refused it.

        Args:
            ticket: It.
            now: When that was heard.
            pause: Seconds for which nobody sends because of it.
            returns: Of each that was settled in the last period whether the server took it, behind a time.
        """
        if ticket.sent_at > self._news_at:
            before = self.limit, self.burst, self._passed
            accepted = sum(taken for _, taken in returns)
            self._news = News(*before, not self._paced, self._rising, accepted, pause / self._rate.period)
            self._news_at, self._step, self._full_at = now, 1, -math.inf
        elif self._news:
            self._news.refused += 1
        if self._news:
            self._judge(self._news)
        patience = PATIENCE * max(pause, self._rate.period) * (2 if self.burst == 1 else 1)
        self._patient_until = max(self._patient_until, now + patience)

    def _judge(self, news: News) -> None:
        taken = max(1, min(news.accepted, news.limit - 1))
        if news.first and not news.accepted and news.refused == 1:
            return
        again = not news.dear and (not news.asked or PATIENCE * news.pause <= 1)
        left = QUESTIONS if news.first else max(news.rising - 1, 0) * again
        self._rising = left if taken > 1 else 0
        if news.first:
            self.limit, self.burst = (taken, taken) if taken > 1 else (self._rate.limit, 1)
        elif news.asked and not (news.rising and news.accepted < NEARLY * news.passed[0]):
            self.limit = news.passed[0] if news.dear else max(taken, news.passed[0])
            self.burst = 1 if news.dear else min(news.passed[1], self.limit)
        elif news.burst == 1:
            believed = news.dear and 2 * taken >= news.limit
            self.limit = taken if believed else max(taken, 3 * news.limit // 4)
        elif news.accepted >= NEARLY * news.limit or news.accepted >= news.limit - 1 > 1:
            self.limit, self.burst = taken, 1 if news.dear else min(news.burst, taken)
        else:
            self.limit, self.burst, self._rising = self._rate.limit if news.rising else news.limit, 1, 0
        self._paced = True
        self._passed = self.limit, self.burst

    def _ask(self, now: float) -> None:
        """Try more after all that was allowed has passed."""
        # Earlier, what was taken may lie in two of the server's windows.
        is_certain = now >= self._stepped_at + 2 * self._rate.period
        if is_certain:
            self._passed = self.limit, self.burst
        if not (self._rising or (is_certain and now >= self._patient_until)):
            return
        if self.limit < self._rate.limit:
            self.limit = min(self.limit + self._step, self._rate.limit)
        elif self.burst < self._rate.limit:
            self.burst = min(self.burst + self._step, self._rate.limit)
        else:
            self.reset(self._rate)
            return
        self._step *= 2
        self._stepped_at = now
        if self._rising and self.limit == self._rate.limit:
            self._rising, self._step = 0, 1
