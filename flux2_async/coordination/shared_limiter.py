"""The limiter of a session that shares its account with other processes.

Submissions queue here as they do in `limiter`. What lets them through are leases, which one fetcher asks the shared
state for: as many as wait, one question at a time, and the answer says when to ask again, so nobody polls. Settling
costs a submission no waiting: one task tells it in the background, again until it was heard.

While the session is away (see `membership`) a share of the limit lets submissions through, and is declared when the
session joins again.
"""

import asyncio
import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs

from flux2_async._limiter.limiter import Gate
from flux2_async._limiter.permit import Permit
from flux2_async._limiter.window import CLOCK_MARGIN, MAX_PAUSE, PAUSE_WITHOUT_LIMIT, Fate, pause_after
from flux2_async.coordination.contract import Answer, Coordinator, Message, Settlement, Terms
from flux2_async.coordination.fallback_quota import Share, share_of
from flux2_async.coordination.membership import Membership, finish
from flux2_async.errors import CoordinationError
from flux2_async.models import RateLimit

__all__ = ["SharedLimiter"]

MAX_WANT: Final = 100
MAX_BATCH: Final = 100
# Who would not wait at all still waits for one answer.
PATIENCE: Final = 1.0
LAST_WORDS: Final = 1.0
# Who is back first after an outage sees nobody; the others need a few seconds, and the next outage may be as near.
FEWER_AFTER: Final = 60.0


def boot_time() -> float:
    """Give seconds by a clock that goes on while the process is stopped and while the machine sleeps."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        # `time.monotonic` stands still there while the machine sleeps.
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.monotonic()


@attrs.frozen
class _Lent:
    """A permit that the shared state has lent, and when at the earliest, by either clock."""

    name: str
    asked_at: float
    asked_at_boot_time: float


@attrs.frozen
class _News:
    """A settlement on its way to the shared state, with the time at which it happened."""

    lease: str
    fate: Fate
    at: float
    pause: float


class SharedLimiter(Gate):
    """Window and gate of all processes of an account: see `Limiter`.

    Args:
        coordinator: The way to the shared state.
        terms: The limit, and how long a permit may be out.
        may_degrade: Whether submissions go on by a share of the limit while the shared state cannot be asked.
        clock: Seconds that go on while the machine sleeps, which those of the loop do not.

    Attributes:
        membership: Whether this session takes part; other questions to the coordinator go through it as well.
        waiting: Tasks that wait for a permit.
    """

    def __init__(
        self, coordinator: Coordinator, terms: Terms, *, may_degrade: bool, clock: Callable[[], float] = boot_time
    ) -> None:
        super().__init__()
        self._clock = clock
        self._loop = self._home = asyncio.get_running_loop()
        self._coordinator = coordinator
        self._terms = terms
        self._may_degrade = may_degrade
        self.membership = Membership(
            coordinator,
            possessions=self._possessions,
            on_joined=self._on_joined,
            on_lost=self._on_lost,
            # All are to be back, and to have declared what they took, within the period that the first one waits.
            patience=(terms.rate.period if terms.rate else PAUSE_WITHOUT_LIMIT) / 5,
        )
        # Empty but while an answer is dealt out.
        self._hand: deque[_Lent] = deque()
        # Lent to us, and the shared state has not heard their end.
        self._out: set[str] = set()
        self._news: deque[_News] = deque()
        self._has_news, self._wanted, self._nudge = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._share: Share | None = None
        self._declared: set[int] = set()
        self._ask_at = -math.inf
        self._queued = False
        self._learned: int | None = None
        self._peers: int | None = None
        self._fewer_at = -math.inf
        self._jobs: tuple[asyncio.Task[None], ...] = ()
        self._closing = False

    @property
    def learned_limit(self) -> int | None:
        """Starts per period that 429s have taught all processes, or None while the configured limit holds."""
        return self._learned

    async def open(self) -> None:
        """Join the other processes.

        Raises:
            ConfigurationError: It can never work.
            CoordinationError: The shared state cannot be reached, and going on without it is not wanted.
        """
        await self.membership.open()
        if not self.membership.joined:
            if not self._may_degrade:
                raise CoordinationError(
                    "the shared state of this account cannot be reached; start it, or allow on_failure='degrade'"
                )
            self._on_lost()
        self._jobs = (
            self._home.create_task(self._fetch(), name="flux2_async fetch permits"),
            self._home.create_task(self._tell(), name="flux2_async settle permits"),
        )

    async def acquire(
        self,
        *,
        priority: int = 0,
        max_wait: float | None = None,
        since: float | None = None,
        first: bool = False,
    ) -> Permit:
        """Wait for a permit; see `Limiter.acquire`.

        Raises:
            RateLimitedError: As there; a `max_wait` of less than a second allows for one question all the same.
            CoordinationError: The shared state is away, and going on without it is not wanted.
            SessionClosedError: Closed before or meanwhile.
        """
        if self._share is not None and not self._may_degrade:
            raise _away()
        asks = self.membership.joined and self._ask_at <= self._home.time()
        self._wanted.set()
        if first:
            self._nudge.set()
        patience = PATIENCE if asks else 0.0
        return await self._pass(priority=priority, max_wait=max_wait, since=since, first=first, patience=patience)

    def pause(self, seconds: float) -> None:
        """Close the gate of all processes for at least so long from now (at most an hour); a longer pause stays."""
        self._report("", Fate.REFUSED, min(seconds, MAX_PAUSE))

    def hear(self, message: Message) -> None:
        """Use what another process published about permits, or about itself."""
        if message.kind == "pause":
            self._close_gate(self._home.time() + min(message.seconds, MAX_PAUSE))
        elif message.kind == "wake":
            self._nudge.set()
        elif message.kind == "peers":
            self._count(message.peers, self._home.time())

    async def aclose(self) -> None:
        """Tell what became of the last permits, and leave."""
        self.close()
        self._closing = True
        self._has_news.set()
        if self._jobs:
            # What is not told by then expires by itself.
            await asyncio.wait(self._jobs[1:], timeout=LAST_WORDS)
        for job in self._jobs:
            await finish(job)
        await self.membership.aclose()

    # --- What the turnstile asks ---

    def _ready_at(self, now: float, /) -> float:
        if self._hand:
            return max(self._until, now)
        return max(self._until, self._share.ready_at(now)) if self._share and self._may_degrade else math.inf

    def _grant(self, now: float, /) -> Permit:
        if (share := self._share) is not None:
            # Once the session is back, what it had not sent by then is declared for two periods and no longer.
            return Permit(partial(self._settle_own, share, share.take(now)), lambda: share is not self._share)
        lent = self._hand.popleft()
        return Permit(partial(self._settle, lent.name), partial(self._lease_ended, lent))

    def _lease_ended(self, lent: _Lent) -> bool:
        passed = max(self._home.time() - lent.asked_at, self._clock() - lent.asked_at_boot_time)
        return passed >= self._terms.lease - self._terms.post

    def _next_at(self, now: float, /) -> float:
        return self._share.ready_at(now) if self._share else self._ask_at

    def _used_up(self) -> str:
        return "the limit that several processes share is used up"

    # --- Asking ---

    async def _fetch(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._nudge.clear()
            if not self.membership.joined or not (self.waiting or self._queued):
                continue
            wait = await self._ask()
            if wait > 0:
                await self._nap(wait)
            if wait > 0 or (self.waiting and self.membership.joined):
                self._wanted.set()

    async def _nap(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._nudge.wait()
        except TimeoutError:
            pass

    async def _ask(self) -> float:
        """Ask once and use the answer; give the seconds until it makes sense to ask again."""
        head = self._waiters.next(self._home.time())
        want, first = min(self.waiting, MAX_WANT), head is not None and head.first
        asked_at, asked_at_boot_time = self._home.time(), self._clock()
        try:
            answer = await self.membership.ask(lambda: self._coordinator.acquire(want, first=first))
        except CoordinationError:
            return 0.0
        now = self._home.time()
        self._queued = answer.wait > 0
        self._ask_at = now + answer.wait if self._queued else -math.inf
        self._use(answer, now)
        self._out.update(answer.leases)
        self._hand.extend(_Lent(name, asked_at, asked_at_boot_time) for name in answer.leases)
        if self._until <= now:
            self._wake()
        # Who wanted them has left, or a pause came in between.
        while self._hand:
            self._report(self._hand.popleft().name, Fate.NEVER_SENT, 0.0)
        for waiter in self._waiters.late(now, now + min(answer.wait, 1.001 * PATIENCE)):
            self._fail(waiter, self._too_late(waiter, now))
        return max(answer.wait, self._until - now)

    def _use(self, answer: Answer, now: float) -> None:
        self._learned = answer.learned_limit
        self._count(answer.peers, now)
        if answer.paused:
            self._until = max(self._until, now + answer.paused)

    def _count(self, peers: int, now: float) -> None:
        """Believe in more processes at once, in fewer only after a while."""
        if peers >= (self._peers or 0) or now >= self._fewer_at:
            self._peers, self._fewer_at = peers, now + FEWER_AFTER

    # --- Settling ---

    def _settle(self, lease: str, fate: Fate, retry_after: float | None) -> None:
        if fate is Fate.DROPPED:
            self._later(partial(self._settle, lease))
            return
        if self._share is not None:
            # What came back was sent before the share began.
            self._share.hold(self._home.time() + self._pause * CLOCK_MARGIN)
        self._report(lease, fate, pause_after(self._terms.rate, retry_after) if fate is Fate.REFUSED else 0.0)

    def _settle_own(self, share: Share, number: int, fate: Fate, retry_after: float | None) -> None:
        if fate is Fate.DROPPED:
            self._later(partial(self._settle_own, share, number))
            return
        pause = pause_after(self._terms.rate, retry_after) if fate is Fate.REFUSED else 0.0
        share.settle(number, fate, self._home.time(), pause)
        if share is not self._share:
            # What the others were told when it was still under way was a guess.
            self._settle(f"away:{number}", fate, retry_after)
        elif fate is Fate.REFUSED:
            self._report(f"away:{number}", fate, pause)
        self._wake()

    def _later(self, settle: Callable[[Fate, None], None]) -> None:
        # The garbage collector may run in any thread.
        if not self._home.is_closed():
            self._home.call_soon_threadsafe(settle, Fate.AMBIGUOUS, None)

    @property
    def _pause(self) -> float:
        return self._terms.rate.period if self._terms.rate else PAUSE_WITHOUT_LIMIT

    def _report(self, lease: str, fate: Fate, pause: float) -> None:
        now = self._home.time()
        self._news.append(_News(lease, fate, now, pause))
        self._has_news.set()
        if pause:
            self._close_gate(now + pause)

    async def _tell(self) -> None:
        while not self._closing:
            await self._has_news.wait()
            self._has_news.clear()
            while self._news and self.membership.joined:
                batch = tuple(itertools.islice(self._news, MAX_BATCH))
                now = self._home.time()
                told = [Settlement(news.lease, news.fate, max(now - news.at, 0.0), news.pause) for news in batch]
                try:
                    await self.membership.ask(partial(self._coordinator.settle, told))
                except CoordinationError:
                    break
                for news in batch:
                    self._news.popleft()
                    self._out.discard(news.lease)

    # --- Membership ---

    def _possessions(self) -> tuple[Sequence[float], Sequence[str]]:
        held = self._share.held(self._home.time()) if self._share else {}
        self._declared = set(held)
        return tuple(held.values()), tuple(self._out)

    def _on_joined(self, answer: Answer) -> None:
        now = self._home.time()
        share, self._share = self._share, None
        self._fewer_at = now + FEWER_AFTER
        self._use(answer, now)
        if share is not None:
            # Taken while the answer was on its way.
            for number, seconds in share.held(now).items():
                if number not in self._declared:
                    taken_at = now + seconds - 2 * self._pause * CLOCK_MARGIN
                    self._news.append(_News(f"away:{number}", Fate.AMBIGUOUS, taken_at, 0.0))
        self._queued, self._ask_at = False, -math.inf
        self._has_news.set()
        self._wanted.set()

    def _on_lost(self) -> None:
        now = self._home.time()
        rate = self._terms.rate
        if rate:
            rate = RateLimit(share_of(min(self._learned or rate.limit, rate.limit), self._peers), rate.period)
        self._share = Share(rate, now)
        self._ask_at = -math.inf
        if not self._may_degrade:
            for waiter in self._waiters:
                self._fail(waiter, _away())
        self._nudge.set()
        self._wake()


def _away() -> CoordinationError:
    return CoordinationError(
        "the shared state of this account cannot be asked, and on_failure='fail' forbids to go on without it; nothing "
        "was sent"
    )
