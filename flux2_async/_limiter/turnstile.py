"""Lets tasks that wait through, one by one, on one timer.

Cancellation: whoever was let through and is cancelled before running hands the grant back, whoever still waits leaves.
"""

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar, Unpack

from flux2_async._limiter.queue import Waiter, WaitQueue, Wish
from flux2_async.errors import RateLimitedError, SessionClosedError

T = TypeVar("T")


class Turnstile(ABC, Generic[T]):
    """Lets waiting tasks through one by one, whenever `_ready_at` says so.

    Attributes:
        on_wait: Called while tasks wait, when how many or until when may have changed; or None.
    """

    def __init__(self) -> None:
        self._waiters = WaitQueue[T]()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Kept here because the handles of uvloop do not always know it.
        self._timer_at = math.inf
        self._closed = False
        self.on_wait: Callable[[], None] | None = None

    @property
    def waiting(self) -> int:
        """Tasks in the queue."""
        return self._waiters.live

    def close(self) -> None:
        """Cancel the timer and send everybody home with `SessionClosedError`; what is out can still be settled."""
        self._closed = True
        for waiter in self._waiters:
            self._fail(waiter, SessionClosedError("the session was closed while this waited; nothing was sent"))
        self._arm(math.inf)

    def turns(self) -> dict[str | None, int]:
        """See `WaitQueue.turns`."""
        return self._waiters.turns()

    def prioritise(self, owner: object, priority: int) -> None:
        """Give who waits for an owner another priority, if anybody does; among equals arrival counts as before."""
        self._waiters.prioritise(owner, priority)

    @abstractmethod
    def _ready_at(self, now: float, /) -> float:
        """When to ask again: `now` if the next may pass; infinity if only an event can tell."""

    def _next(self, now: float, /) -> Waiter[T] | None:
        """Who is to pass next, or None."""
        return self._waiters.next(now)

    @abstractmethod
    def _grant(self, now: float, group: str | None, /) -> T:
        """Give what whoever passes for a group has from then on."""

    @abstractmethod
    def _take_back(self, grant: T, group: str | None, /) -> None:
        """Make room for another one: who was given this never ran."""

    @abstractmethod
    def _too_late(self, waiter: Waiter[T], now: float, /) -> RateLimitedError:
        """Give the error of one whose `max_wait` has run out."""

    def _blocked_until(self) -> float:
        """Before this time nobody passes, whatever happens."""
        return -math.inf

    def _is_kept_back(self, group: str | None, /) -> bool:  # noqa: ARG002  what keeps groups apart knows
        """Whether nobody of a group may pass for now."""
        return False

    def _is_free(self, now: float, group: str | None) -> bool:
        return not self._waiters.live and self._ready_at(now) <= now and not self._is_kept_back(group)

    async def _pass(self, *, first: bool = False, patience: float = 0.0, **wish: Unpack[Wish]) -> T:
        """Wait for a grant; `patience` is the least that even a shorter `max_wait` allows."""
        if self._closed:
            raise SessionClosedError("the session is closed; nothing was sent")
        self._loop = asyncio.get_running_loop()
        now, group = self._loop.time(), wish.get("group")
        if self._is_free(now, group):
            return self._grant(now, group)
        future: asyncio.Future[T] = self._loop.create_future()
        waiter = self._waiters.push(future, now=now, first=first, patience=patience, **wish)
        # There is no way around a queue, so a late caller passes nobody.
        self._advance(now)
        try:
            return await future
        except BaseException:
            self._leave(waiter, future)
            raise
        finally:
            waiter.future = None

    def _leave(self, waiter: Waiter[T], future: asyncio.Future[T]) -> None:
        self._waiters.remove(waiter)
        # Let through but cancelled before it could run: the grant is handed on.
        if future.done() and not future.cancelled() and future.exception() is None:
            self._take_back(future.result(), waiter.group)
        self._wake()

    def _wake(self) -> None:
        if self._loop and not self._closed and (self._waiters.live or self._timer):
            self._advance(self._loop.time())

    def _advance(self, now: float) -> None:
        while (ready_at := self._ready_at(now)) <= now:
            if (waiter := self._next(now)) is None:
                # All that wait are of groups that are kept back.
                ready_at = math.inf
                break
            self._let_through(waiter, now)
        for waiter in self._waiters.late(now, self._blocked_until()):
            self._fail(waiter, self._too_late(waiter, now))
        self._arm(min(ready_at, self._waiters.next_deadline()) if self._waiters.live else math.inf)
        if self.on_wait is not None and self._waiters.live:
            self.on_wait()

    def _let_through(self, waiter: Waiter[T], now: float) -> None:
        self._waiters.remove(waiter)
        self._waiters.had_turn(waiter)
        if waiter.future:
            waiter.future.set_result(self._grant(now, waiter.group))

    def _fail(self, waiter: Waiter[T], error: Exception) -> None:
        self._waiters.remove(waiter)
        if waiter.future:
            waiter.future.set_exception(error)

    def _arm(self, when: float) -> None:
        if self._timer:
            if self._timer_at == when:
                return
            self._timer.cancel()
            self._timer = None
        if self._loop and when < math.inf:
            self._timer, self._timer_at = self._loop.call_at(when, self._on_timer, when), when

    def _on_timer(self, when: float) -> None:
        self._timer = None
        if self._loop:
            # A loop may call a clock tick early; asking again for the same instant would spin.
            self._advance(max(when, self._loop.time()))
