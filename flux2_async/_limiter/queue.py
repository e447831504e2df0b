"""A queue in which tasks wait to be let through, by priority, with deadlines, on one timer.

Cancellation: whoever was let through and is cancelled before running hands the grant back, whoever still waits leaves.
A waiter is gone as soon as its future is done; heaps drop what is gone when they meet it or when it outweighs the rest.
"""

import asyncio
import heapq
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

import attrs

from flux2_async.errors import RateLimitedError, SessionClosedError

T = TypeVar("T")

IMPATIENT_AFTER: Final = 60.0
"""Seconds of waiting after which a task counts as top priority."""


@attrs.define(eq=False)
class Waiter(Generic[T]):
    """One task in the queue; `number` counts arrivals, times are loop times."""

    # None once the task has its result: a heap may keep a waiter for long, and must not keep what was granted.
    future: asyncio.Future[T] | None
    number: int
    priority: int
    since: float
    max_wait: float
    deadline: float
    first: bool
    owner: object = None
    queued: bool = True

    @property
    def gone(self) -> bool:
        return not self.queued or self.future is None or self.future.done()


class _Heap(Generic[T]):
    def __init__(self, key: Callable[[Waiter[T]], tuple[Any, ...]]) -> None:
        self._key = key
        self._entries: list[tuple[tuple[Any, ...], int, Waiter[T]]] = []

    def push(self, waiter: Waiter[T]) -> None:
        heapq.heappush(self._entries, (self._key(waiter), waiter.number, waiter))

    def head(self) -> Waiter[T] | None:
        while self._entries and self._entries[0][2].gone:
            heapq.heappop(self._entries)
        return self._entries[0][2] if self._entries else None

    def compact(self, live: int) -> None:
        if len(self._entries) > 2 * live + 64:
            self.renew()

    def renew(self) -> None:
        self._entries = [(self._key(each), each.number, each) for _, _, each in self._entries if not each.gone]
        heapq.heapify(self._entries)

    def __iter__(self) -> Iterator[Waiter[T]]:
        return (waiter for _, _, waiter in self._entries)


class WaitQueue(Generic[T]):
    """Who waits, in order: refused ones, then the impatient, then by priority, FIFO within each."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._live = 0
        self._by_priority = _Heap[T](lambda waiter: (not waiter.first, -waiter.priority))
        self._by_age = _Heap[T](lambda waiter: (waiter.since,))
        self._by_deadline = _Heap[T](lambda waiter: (waiter.deadline,))

    def __len__(self) -> int:
        return self._live

    def push(
        self,
        future: asyncio.Future[T],
        *,
        now: float,
        priority: int,
        max_wait: float | None,
        waited: float,
        since: float,
        first: bool,
        patience: float,
        owner: object,
    ) -> Waiter[T]:
        limit = math.inf if max_wait is None else max_wait
        deadline = now + max(limit - waited, patience)
        waiter = Waiter(future, next(self._numbers), priority, since, limit, deadline, first, owner)
        self._live += 1
        self._by_priority.push(waiter)
        self._by_age.push(waiter)
        if limit < math.inf:
            self._by_deadline.push(waiter)
        return waiter

    def next(self, now: float) -> Waiter[T] | None:
        head, eldest = self._by_priority.head(), self._by_age.head()
        if head is None or eldest is None or head.first or eldest.since + IMPATIENT_AFTER > now:
            return head
        return eldest

    def prioritise(self, owner: object, priority: int) -> None:
        for waiter in self._by_age:
            if waiter.owner is owner and not waiter.gone:
                waiter.priority = priority
                self._by_priority.renew()
                return

    def remove(self, waiter: Waiter[T]) -> None:
        if waiter.queued:
            waiter.queued = False
            self._live -= 1
            for heap in (self._by_priority, self._by_age, self._by_deadline):
                heap.compact(self._live)

    def late(self, now: float, until: float) -> Iterator[Waiter[T]]:
        """Who has run out of time at `now`, or will have before `until`, when the next may pass."""
        while (head := self._by_deadline.head()) and (head.deadline <= now or head.deadline < until):
            yield head

    def next_deadline(self) -> float:
        head = self._by_deadline.head()
        return head.deadline if head else math.inf

    def __iter__(self) -> Iterator[Waiter[T]]:
        while head := self._by_priority.head():
            yield head


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
        return len(self._waiters)

    def close(self) -> None:
        """Cancel the timer and send everybody home with `SessionClosedError`; what is out can still be settled."""
        self._closed = True
        for waiter in self._waiters:
            self._fail(waiter, SessionClosedError("the session was closed while this waited; nothing was sent"))
        self._arm(math.inf)

    def prioritise(self, owner: object, priority: int) -> None:
        """Give who waits for an owner another priority, if anybody does; among equals arrival counts as before."""
        self._waiters.prioritise(owner, priority)

    @abstractmethod
    def _ready_at(self, now: float, /) -> float:
        """When to ask again: `now` if the next may pass; infinity if only an event can tell."""

    @abstractmethod
    def _grant(self, now: float, /) -> T: ...

    @abstractmethod
    def _take_back(self, grant: T, /) -> None: ...

    @abstractmethod
    def _too_late(self, waiter: Waiter[T], now: float, /) -> RateLimitedError: ...

    def _blocked_until(self) -> float:
        """Before this time nobody passes, whatever happens."""
        return -math.inf

    async def _pass(
        self,
        *,
        priority: int,
        max_wait: float | None,
        since: float | None,
        waited: float = 0.0,
        first: bool = False,
        patience: float = 0.0,
        owner: object = None,
    ) -> T:
        """Wait for a grant; `patience` is the least that even a shorter `max_wait` allows."""
        if self._closed:
            raise SessionClosedError("the session is closed; nothing was sent")
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        if not self._waiters and self._ready_at(now) <= now:
            return self._grant(now)
        future: asyncio.Future[T] = self._loop.create_future()
        since = now if since is None else since
        waiter = self._waiters.push(
            future,
            now=now,
            priority=priority,
            max_wait=max_wait,
            waited=waited,
            since=since,
            first=first,
            patience=patience,
            owner=owner,
        )
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
            self._take_back(future.result())
        self._wake()

    def _wake(self) -> None:
        if self._loop and not self._closed and (self._waiters or self._timer):
            self._advance(self._loop.time())

    def _advance(self, now: float) -> None:
        while (ready_at := self._ready_at(now)) <= now and (waiter := self._waiters.next(now)):
            self._waiters.remove(waiter)
            if waiter.future:
                waiter.future.set_result(self._grant(now))
        for waiter in self._waiters.late(now, self._blocked_until()):
            self._fail(waiter, self._too_late(waiter, now))
        self._arm(min(ready_at, self._waiters.next_deadline()) if self._waiters else math.inf)
        if self.on_wait is not None and self._waiters:
            self.on_wait()

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
