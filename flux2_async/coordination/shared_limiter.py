"""The limiter of a session that shares its account with other processes.

Submissions queue here as they do in `limiter`. What lets them through are leases, which one fetcher asks the shared
state for: as many as wait, one question at a time, and the answer says when to ask again, so nobody polls.

While the session is away (see `membership`) a part of the limit lets submissions through (see `fallback_quota`), and is
declared when the session joins again.
"""

import asyncio
import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Final

import attrs

from flux2_async._limiter.limiter import Gate
from flux2_async._limiter.permit import Permit, PermitEvent
from flux2_async._limiter.queue import Waiter
from flux2_async._limiter.slots import Slots, all_are_full, group_is_full
from flux2_async._limiter.window import MAX_PAUSE, MIN_PAUSE, Supply
from flux2_async._limiter.windows import Windows, tightest
from flux2_async.coordination.account_state import LEFT
from flux2_async.coordination.contract import Answer, Hint, Message, Settlement, Terms
from flux2_async.coordination.coordinator import Coordinator
from flux2_async.coordination.fallback_quota import Fallback, FallbackQuota
from flux2_async.coordination.membership import Membership
from flux2_async.coordination.settling import Settling
from flux2_async.coordination.store import finish
from flux2_async.errors import CoordinationError, RateLimitedError
from flux2_async.models.settings import Told

MAX_WANT: Final = 100
# The others are told of so many groups that wait here, by turns: what they are told they all keep.
MAX_GROUPS: Final = 16
# Who would not wait at all still waits for one answer.
ONE_QUESTION: Final = 1.0


@attrs.frozen
class _Lent:
    """A permit that the shared state has lent, for whom, and when at the earliest, by either clock."""

    name: str
    group: str
    asked_at: float
    asked_at_elapsed: float


@attrs.define(eq=False)
class _Known:
    """What this session and the others know of each other, by its last question and the last answer.

    Attributes:
        ask_at: When to ask again for those who wait, if the others know that they do; else -inf.
        told: Of which groups they know it.
        names: Groups by the names that the others were told.
        kept_back: Groups that have to wait because so many of them run.
        others: How many tasks run in other processes.
        supply: This session's part of the permits there will be; None: not told yet.
    """

    ask_at: float = -math.inf
    told: set[str | None] = attrs.field(factory=set)
    names: dict[str, str | None] = attrs.field(factory=dict)
    kept_back: set[str | None] = attrs.field(factory=set)
    others: int = 0
    supply: Supply | None = None


class SharedLimiter(Gate):
    """Window and gate of all processes of an account: see `Gate`.

    A `max_wait` of less than a second allows for one question all the same. While the shared state is away and going on
    without it is not wanted (`may_degrade`), `acquire` raises `CoordinationError`.

    Attributes:
        membership: Whether this session takes part; other questions to the coordinator go through it as well.
    """

    def __init__(self, coordinator: Coordinator, terms: Terms, *, may_degrade: bool) -> None:
        super().__init__()
        self._loop = self._home = asyncio.get_running_loop()
        self._coordinator = coordinator
        coordinator.running = self._running
        self._terms = terms
        # Of which nothing is ever taken.
        self._windows = Windows(terms.rates)
        self._may_degrade = may_degrade
        # All are to be back, and to have declared what they took, within the period that the first one waits.
        self.membership: Membership = Membership(coordinator, self, patience=self._windows.longest / 5)
        self._settling = Settling(self.membership, coordinator)
        self._settling.on_paused = self._close_gate
        self._fallback = Fallback(terms.rates)
        # Empty but while an answer is dealt out.
        self._lent: deque[_Lent] = deque()
        self._wanted, self._ask_now = asyncio.Event(), asyncio.Event()
        self._known = _Known()
        self._fetching: asyncio.Task[None] | None = None

    @property
    def learned_limit(self) -> int | None:
        """See `Gate`; what all processes have learned."""
        return self._fallback.learned

    def supply(self) -> Supply | None:
        """See `Gate`: an equal share of what there is, as those who wait get; None: nobody can be asked."""
        supply = self._known.supply
        if supply is None or self._fallback.quota is not None:
            return None
        return attrs.evolve(supply, begin=max(supply.begin, self._until, self._home.time()))

    async def open(self, on_message: Callable[[Message], None] | None = None) -> None:
        """Join the other processes.

        Args:
            on_message: Called in the event loop with what others publish; None: `hear`.

        Raises:
            ConfigurationError: It can never work.
            CoordinationError: The shared state cannot be reached, and going on without it is not wanted.
        """
        await self.membership.open(on_message or self.hear)
        if not self.membership.joined:
            if not self._may_degrade:
                raise CoordinationError(
                    "the shared state of this account cannot be reached; start it, or allow on_failure='degrade'"
                )
            self.on_lost()
        self._fetching = self._home.create_task(self._fetch(), name="flux2_async fetch permits")
        self._settling.begin()

    def pause(self, seconds: float) -> None:
        """See `Gate`; of all processes."""
        if seconds > 0:
            self._throttle("", min(seconds, MAX_PAUSE))

    def believe(self, told: Iterable[Told]) -> None:
        """See `Gate`; all processes do."""
        if self._fallback.quota is None:
            self._settling.report(Hint(tuple(told), 0.0))
        else:
            for each in told:
                self._fallback.believe(each, self._home.time())

    def hear(self, message: Message) -> None:
        """Use what another process published about permits, or about itself."""
        if message.kind == "pause":
            self._pause_for(message.seconds)
        elif message.kind == "wake":
            self._ask_now.set()
        elif message.kind == "peers":
            self._fallback.count(message.peers, message.rates, self._home.time())

    async def aclose(self) -> None:
        """Tell what became of the last permits, and leave."""
        self.close()
        await self._settling.aclose()
        await finish(self._fetching)
        await self.membership.aclose()

    # --- What the gate asks ---

    def _announce(self, group: str | None, *, first: bool) -> float:
        if self._fallback.quota is not None and not self._may_degrade:
            raise _away()
        known = self._known
        asks = self.membership.joined and known.ask_at <= self._home.time()
        self._wanted.set()
        if first or (known.ask_at > -math.inf and len(known.told) < MAX_GROUPS and group not in known.told):
            self._ask_now.set()
        return ONE_QUESTION if asks else 0.0

    def _ready_at(self, now: float, /) -> float:
        if not self._room():
            return math.inf
        if self._lent:
            return max(self._until, now)
        quota = self._fallback.quota
        if quota is None or not self._may_degrade or self._running_here >= self._fallback.part(self._places):
            return math.inf
        return max(self._until, quota.windows.ready_at(now))

    def _next(self, now: float, /) -> Waiter[Permit] | None:
        waiter = super()._next(now)
        while self._lent and waiter is not None:
            own = self._waiters.next_of(self._known.names[self._lent[0].group])
            # Nobody may be left of those for whom it was lent, and of another bounded group so many may run already.
            if own is not None or self._terms.per_group is None:
                return own or waiter
            self._return_lent()
            if not self._lent:
                return None
        return waiter

    def _permit(self, now: float, /) -> Permit:
        if (quota := self._fallback.quota) is not None:
            # Once the session is back, what it had not sent by then is declared for two periods and no longer.
            return Permit(partial(self._settle_own, quota, quota.take(now)), lambda: quota is not self._fallback.quota)
        lent = self._lent.popleft()
        return Permit(partial(self._settle, lent.name), partial(self._lease_ended, lent))

    def _lease_ended(self, lent: _Lent) -> bool:
        passed = max(self._home.time() - lent.asked_at, self._coordinator.elapsed() - lent.asked_at_elapsed)
        return passed >= self._terms.lease - self._terms.post

    def _next_at(self, now: float, /) -> float:
        return self._fallback.quota.windows.ready_at(now) if self._fallback.quota else self._known.ask_at

    def _too_late(self, waiter: Waiter[Permit], now: float, /) -> RateLimitedError:
        if waiter.group in self._known.kept_back and self._until <= now:
            running = self._known.others + self._running_here
            if running >= self._places:
                return all_are_full(waiter, running, self._terms.max_running)
            return group_is_full(waiter, self._terms.per_group)
        return super()._too_late(waiter, now)

    def _used_up(self) -> str:
        rate = tightest(self._terms.rates)
        told = f" of {self.learned_limit or rate.limit} per {rate.period:g} s" if rate else ""
        return f"the limit{told} that several processes share is used up"

    # --- Asking ---

    async def _fetch(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._ask_now.clear()
            # Who has left the queue here leaves that of all as well.
            if not self.membership.joined or not (self._want or self._known.ask_at > -math.inf):
                continue
            wait = await self._ask()
            if wait > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._ask_now.wait()
            if wait > 0 or (self._want and self.membership.joined):
                self._wanted.set()

    @property
    def _want(self) -> int:
        """How many permits can be used at once."""
        return int(min(self.waiting, self._room(), MAX_WANT))

    def _on_room(self) -> None:
        self._wanted.set()
        self._ask_now.set()
        super()._on_room()

    def follow(self, slots: Slots) -> None:
        """See `Gate`; the others hear how many tasks run here."""
        super().follow(slots)
        slots.on_release = self._on_release

    def _on_release(self) -> None:
        if self._fallback.quota is not None:
            self._wake()
        elif self._known.kept_back:
            self._wanted.set()
            self._ask_now.set()
        if self._fallback.has_peers:
            self._settling.go_on(anew=True)

    @property
    def _running_here(self) -> int:
        return 0 if self._slots is None else sum(self._slots.running().values())

    @property
    def _places(self) -> float:
        return math.inf if self._terms.max_running is None else self._terms.max_running

    @property
    def places(self) -> float:
        """See `Gate`: what the others leave now."""
        return max(self._places - self._known.others, 1)

    def _running(self) -> Mapping[str, int]:
        running = {} if self._slots is None else self._slots.running()
        if self._places == math.inf and self._terms.per_group is None:
            # There may be any number of them, of any number of groups, which others write down each time.
            return {LEFT: sum(running.values())}
        return {digest(group): count for group, count in running.items()}

    async def _ask(self) -> float:
        """Ask once and use the answer; give the seconds until it makes sense to ask again."""
        asked_at, elapsed = self._home.time(), self._coordinator.elapsed()
        want, waiting = self._want, sorted(self._waiters.wants(asked_at), key=lambda each: not each[1])[:MAX_GROUPS]
        self._known.names = {digest(name): name for name, _, _ in waiting}
        groups = {digest(name): min(count, MAX_WANT) for name, count, _ in waiting}
        first = [digest(name) for name, _, goes_first in waiting if goes_first]
        self._known.told = {name for name, count, _ in waiting if count}
        try:
            answer = await self.membership.ask(self._coordinator.acquire, want, groups, first)
        except CoordinationError:
            return 0.0
        now = self._home.time()
        self._known.ask_at = now + answer.wait if answer.wait > 0 else -math.inf
        self._known.told = {self._known.names[group] for group in Counter(groups) - Counter(answer.groups)}
        self._known.kept_back = {self._known.names[group] for group in answer.kept_back}
        self._use(answer, now)
        self._settling.out.update(answer.leases)
        lent = zip(answer.leases, answer.groups, strict=True)
        self._lent.extend(_Lent(name, group, asked_at, elapsed) for name, group in lent)
        if self._until <= now:
            self._wake()
        # Who wanted them has left, or a pause came in between.
        while self._lent:
            self._return_lent()
        for waiter in self._waiters.late(now, now + min(answer.wait, 1.001 * ONE_QUESTION)):
            self._fail(waiter, self._too_late(waiter, now))
        return max(answer.wait, self._until - now)

    def _return_lent(self) -> None:
        self._settling.report(Settlement(self._lent.popleft().name, PermitEvent.NEVER_SENT, 0.0))

    def _use(self, answer: Answer, now: float) -> None:
        self._known.supply = answer.supply and answer.supply.shared(max(answer.waiting, 1), now)
        self._fallback.learn(answer, now)
        self._known.others = max(answer.running - len(answer.leases) - self._running_here, 0)
        if answer.paused:
            self._close_gate(now + answer.paused)

    # --- Settling ---

    def _settle(self, lease: str, event: PermitEvent, retry_after: float | None) -> None:
        if event is PermitEvent.DROPPED:
            self._settle_soon(partial(self._settle, lease))
            return
        if event is PermitEvent.THROTTLED:
            self._throttle(lease, self._named_pause(retry_after))
            return
        if self._fallback.quota is not None:
            # What came back was sent before that began.
            self._fallback.quota.windows.hold(PermitEvent.ANSWERED, self._home.time())
        self._settling.report(Settlement(lease, event, 0.0))

    def _settle_own(self, quota: FallbackQuota, number: int, event: PermitEvent, retry_after: float | None) -> None:
        if event is PermitEvent.DROPPED:
            self._settle_soon(partial(self._settle_own, quota, number))
            return
        pause = quota.settle(number, event, self._home.time(), self._named_pause(retry_after))
        if pause:
            self._throttle(f"away:{number}", pause)
        elif quota is not self._fallback.quota:
            # What the others were told when it was still under way was a guess.
            self._settle(f"away:{number}", event, None)
        self._wake()

    def _named_pause(self, retry_after: float | None) -> float:
        """Give the seconds of a pause; 0 where none was named, and the shared state knows which limit is full."""
        return self._windows.pause_of(retry_after, 0.0) if retry_after is not None and retry_after > 0 else 0.0

    def _throttle(self, lease: str, pause: float) -> None:
        self._settling.report(Settlement(lease, PermitEvent.THROTTLED, 0.0, pause))
        self._pause_for(pause or max(self._windows.shortest, MIN_PAUSE))

    def _pause_for(self, seconds: float) -> None:
        self._close_gate(self._home.time() + min(seconds, MAX_PAUSE))

    # --- Membership ---

    def possessions(self) -> tuple[Sequence[Settlement], Sequence[str]]:
        """See `Member`."""
        return self._fallback.declare(self._home.time()), tuple(self._settling.out)

    def on_joined(self, answer: Answer, /) -> None:
        """See `Member`."""
        now = self._home.time()
        # Taken while the answer was on its way.
        for settlement in self._fallback.end(now):
            self._settling.report(settlement)
        self._use(answer, now)
        self._known.ask_at = -math.inf
        self._settling.go_on()
        self._wanted.set()

    def on_lost(self) -> None:
        """See `Member`."""
        self._fallback.begin(self._home.time())
        self._known.ask_at = -math.inf
        if not self._may_degrade:
            for waiter in self._waiters:
                self._fail(waiter, _away())
        self._ask_now.set()
        self._wake()


@lru_cache(1024)
def digest(group: str | None) -> str:
    """Give the name under which others know a group."""
    return "" if group is None else hashlib.sha256(group.encode()).hexdigest()[:16]


def _away() -> CoordinationError:
    return CoordinationError(
        "the shared state of this account cannot be asked, and on_failure='fail' does not allow going on without it; "
        "nothing was sent"
    )
