"""Slots (tasks alive), window (starts per period) and gate (paused until). Knows no HTTP.

Why the window is never refused, and what it learns when it is nevertheless, stands in `window`; how tasks queue in
`queue`. All times are those of the running loop, nothing runs in the background but one timer each.
"""

import asyncio
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from flux2_async._limiter.queue import Turnstile, Waiter
from flux2_async._limiter.window import MAX_PAUSE, Fate, Starts, Ticket, Unlimited, Window, pause_after
from flux2_async.errors import RateLimitedError
from flux2_async.models import RateLimit

__all__ = ["Gate", "Limiter", "Permit", "Permits", "Slots"]


class Slots(Turnstile[None]):
    """How many tasks may be alive at once.

    Args:
        max_running: Slots, or None for no cap.

    Attributes:
        borrowed: Slots taken now; more than `max_running` after `borrow()`.
        waiting: Tasks that wait for a slot.
    """

    def __init__(self, max_running: int | None) -> None:
        super().__init__()
        self._max_running = max_running
        self.borrowed = 0

    async def acquire(self, *, priority: int = 0, max_wait: float | None = None, since: float | None = None) -> None:
        """Wait for a slot and take it. Does not yield to the loop when one is free and nobody waits.

        Args:
            priority: Higher goes first; FIFO within one. Who has waited 60 s counts as top priority.
            max_wait: Seconds from this call on, 0 for only if free at once. None: without limit.
            since: Loop time from which waiting counts for the 60 s; None: this call.

        Raises:
            RateLimitedError: `max_wait` ran out; no slot is taken, and `retry_after` is None.
            SessionClosedError: Closed before or meanwhile.
        """
        await self._pass(priority=priority, max_wait=max_wait, since=since)

    def borrow(self) -> None:
        """Take a slot at once, also above `max_running`: the task exists already."""
        self.borrowed += 1

    def release(self) -> None:
        """Give a slot back.

        Raises:
            ValueError: None is borrowed.
        """
        if not self.borrowed:
            raise ValueError("a slot was released that nobody had borrowed")
        self.borrowed -= 1
        self._wake()

    def _ready_at(self, now: float, /) -> float:
        return now if self._max_running is None or self.borrowed < self._max_running else math.inf

    def _grant(self, _now: float, /) -> None:
        self.borrowed += 1

    def _take_back(self, _grant: None, /) -> None:
        self.release()

    def _too_late(self, waiter: Waiter[None], _now: float, /) -> RateLimitedError:
        return RateLimitedError(
            429,
            f"no slot became free: {self.borrowed} tasks are running and max_running is {self._max_running}",
            advice=f"Nothing was sent within max_wait={waiter.max_wait:g} s; try again when tasks have finished, or "
            "raise max_wait or max_running",
        )


class Permit:
    """Leave to send one request. The first way of settling it counts, later ones do nothing.

    As a context manager it settles itself on leaving, as `ambiguous()`, and so it does, with a `ResourceWarning`, when
    it is dropped: a permit may come back late, but is never lost.
    """

    __slots__ = ("_lease_ended", "_settle", "_settled")

    def __init__(
        self, settle: Callable[[Fate, float | None], None], lease_ended: Callable[[], bool] | None = None
    ) -> None:
        self._settle = settle
        self._lease_ended = lease_ended
        self._settled = False

    @property
    def settled(self) -> bool:
        """Whether the request's fate was told already."""
        return self._settled

    def lease_ended(self) -> bool:
        """Whether it is too late to send by this permit, since others may have it by the time of the answer.

        To be asked immediately before the request's first byte, with nothing awaited in between: a process that was
        stopped, or a machine that slept, had no chance to hear of it. A permit that is too late is given back by
        `never_sent` and asked for anew. Always False for the limiter of one process, whose permits wait.
        """
        return self._lease_ended is not None and self._lease_ended()

    def never_sent(self) -> None:
        """The request certainly did not leave: back at once."""
        self._once(Fate.NEVER_SENT)

    def answered(self) -> None:
        """An answer came, success or not, other than 429: back `period` (and 0.1 %) from now."""
        self._once(Fate.ANSWERED)

    def ambiguous(self) -> None:
        """Given up or broken off, so it may be counted later: back two periods from now."""
        self._once(Fate.AMBIGUOUS)

    def refused(self, retry_after: float | None) -> None:
        """Answered with 429: close the gate for everybody, learn, and give the permit back.

        Args:
            retry_after: Seconds the service named. None, 0, negative or not a number: it named none, so the period
                (10 s where there is no limit). At least a second and `period / limit`, at most an hour is believed.
        """
        self._once(Fate.REFUSED, retry_after)

    def _once(self, fate: Fate, retry_after: float | None = None) -> None:
        if not self._settled:
            self._settled = True
            self._settle(fate, retry_after)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ambiguous()

    def __del__(self) -> None:
        if not self._settled:
            self._once(Fate.DROPPED)
            warnings.warn("a permit was dropped without being settled; held for two periods", ResourceWarning, 2)


class Permits(Protocol):
    """What lets submissions through: the `Limiter` of one process, or one that several processes share."""

    @property
    def waiting(self) -> int: ...
    @property
    def learned_limit(self) -> int | None: ...
    @property
    def paused_until(self) -> float | None: ...
    async def acquire(
        self, *, priority: int = 0, max_wait: float | None = None, since: float | None = None, first: bool = False
    ) -> Permit: ...
    def pause(self, seconds: float) -> None: ...
    def close(self) -> None: ...


class Gate(Turnstile[Permit]):
    """The queue for permits, whoever gives them, and the pause that a 429 asks of all who wait.

    Attributes:
        waiting: Tasks that wait for a permit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._until = -math.inf

    @property
    def paused_until(self) -> float | None:
        """Loop time at which the gate opens, or None when it is open."""
        return self._until if self._loop and self._until > self._loop.time() else None

    @abstractmethod
    def _next_at(self, now: float, /) -> float:
        """When the next permit may be free; infinity or a time in the past if that is not known."""

    @abstractmethod
    def _used_up(self) -> str:
        """Why there is no permit."""

    def _close_gate(self, until: float) -> None:
        self._until = max(self._until, until)
        self._wake()

    def _blocked_until(self) -> float:
        return self._until

    def _take_back(self, grant: Permit, /) -> None:
        grant.never_sent()

    def _too_late(self, waiter: Waiter[Permit], now: float, /) -> RateLimitedError:
        what, ready_at = self._used_up(), self._next_at(now)
        if self._until > now:
            what = f"the service is given a pause of another {self._until - now:.3g} s after a 429"
            ready_at = max(self._until, ready_at) if ready_at < math.inf else self._until
        return RateLimitedError(
            429,
            what,
            retry_after=ready_at - now if now < ready_at < math.inf else None,
            advice=f"max_wait={waiter.max_wait:g} s is shorter than the wait for a permit, so nothing was sent; "
            "try again after retry_after seconds, or allow a longer max_wait",
        )


class Limiter(Gate):
    """Window and gate: who may send now.

    Args:
        rate: The account's limit, or None for no window; a 429 pauses everybody all the same.

    Attributes:
        waiting: Tasks that wait for a permit.
    """

    def __init__(self, rate: RateLimit | None) -> None:
        super().__init__()
        self._rate = rate
        self._window: Starts = Window(rate) if rate else Unlimited()

    @property
    def learned_limit(self) -> int | None:
        """Starts per period that 429s have taught, or None while the configured limit holds."""
        return self._window.learned_limit

    async def acquire(
        self,
        *,
        priority: int = 0,
        max_wait: float | None = None,
        since: float | None = None,
        first: bool = False,
    ) -> Permit:
        """Wait for a permit. Does not yield to the loop when one is free and nobody waits.

        Args:
            priority: Higher goes first; FIFO within one. Who has waited 60 s counts as top priority.
            max_wait: Seconds from this call on, 0 for only if free at once. None: without limit.
            since: Loop time from which waiting counts for the 60 s; None: this call.
            first: Before everybody else: a submission that was refused by 429.

        Returns:
            The permit, to be settled when the request has been answered.

        Raises:
            RateLimitedError: `max_wait` ran out, or the gate stays closed for longer, which is told at once.
                `retry_after` is the seconds until a permit may be free, None where that is not known.
            SessionClosedError: Closed before or meanwhile.
        """
        return await self._pass(priority=priority, max_wait=max_wait, since=since, first=first)

    def pause(self, seconds: float) -> None:
        """Close the gate for at least so long from now (at most an hour); a longer pause stays. Call it in the loop."""
        self._loop = asyncio.get_running_loop()
        self._close_gate(self._loop.time() + min(seconds, MAX_PAUSE))

    def take_over(self, before: "Limiter") -> None:
        """Know what one of the same limit let through, and what it learned; that one must not be used any more."""
        self._window, self._until = before._window, before._until  # noqa: SLF001  of the same kind

    def _ready_at(self, now: float, /) -> float:
        return max(self._until, self._window.ready_at(now))

    def _grant(self, now: float, /) -> Permit:
        return Permit(partial(self._settle, self._window.take(now)))

    def _next_at(self, now: float, /) -> float:
        return self._window.ready_at(now)

    def _used_up(self) -> str:
        if self._rate is None:
            return f"{self.waiting} others wait"
        return f"the limit of {self.learned_limit or self._rate.limit} per {self._rate.period:g} s is used up"

    def _settle(self, ticket: Ticket, fate: Fate, retry_after: float | None) -> None:
        if fate is Fate.DROPPED:
            self._settle_soon(ticket)
            return
        now = asyncio.get_running_loop().time()
        match fate:
            case Fate.NEVER_SENT:
                self._window.never_sent(ticket)
            case Fate.ANSWERED:
                self._window.answered(ticket, now)
            case Fate.AMBIGUOUS:
                self._window.ambiguous(now)
            case Fate.REFUSED:
                pause = pause_after(self._rate, retry_after)
                self._window.refused(ticket, now, pause)
                self._close_gate(now + pause)
        self._wake()

    def _settle_soon(self, ticket: Ticket) -> None:
        # The garbage collector may run in any thread.
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle, ticket, Fate.AMBIGUOUS, None)
