"""Who waits to be let through, in order: by priority and group, with deadlines.

Within a priority groups take turns: whose turn was longest ago is next, and a group that had nobody waiting comes last.
Who has waited for a minute counts as top priority, and is the first of its group.

A waiter is gone as soon as its future is done; heaps drop what is gone when they meet it or when it outweighs the rest.
"""

import asyncio
import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypedDict, TypeVar

import attrs

T = TypeVar("T")

IMPATIENT_AFTER: Final = 60.0
"""Seconds of waiting after which a task counts as top priority."""


class Wish(TypedDict, total=False):
    """How a task wants to wait.

    Attributes:
        priority: Higher goes first; within one groups take turns. Who has waited 60 s counts as top priority.
        max_wait: Seconds, 0 for only if free at once. None: without limit.
        waited: Seconds of `max_wait` that were used up before.
        since: Loop time from which waiting counts for the 60 s; None: now.
        owner: Whom it is for, see `prioritise`.
        group: Whose turn it takes; None: that of all without a group.
    """

    priority: int
    max_wait: float | None
    waited: float
    since: float | None
    owner: object
    group: str | None


@attrs.define(eq=False, repr=False)
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
    group: str | None = None
    # None for who goes first: it had its turn.
    line: "_Group[T] | None" = None
    queued: bool = True

    @property
    def gone(self) -> bool:
        """Whether it waits no more."""
        return not self.queued or self.future is None or self.future.done()


class _Heap(Generic[T]):
    """Items by a key, the least first, without those of which it is None.

    That a key has grown, or is None, is noticed when the item comes to the head; whose key shrank is put again.
    """

    def __init__(self, key: Callable[[T], tuple[float, ...] | None]) -> None:
        self._key = key
        self._numbers = itertools.count()
        self._entries: list[tuple[tuple[float, ...], int, T]] = []

    def put(self, item: T) -> None:
        if (key := self._key(item)) is not None:
            heapq.heappush(self._entries, (key, next(self._numbers), item))

    def head(self) -> T | None:
        while self._entries:
            was, number, item = self._entries[0]
            key = self._key(item)
            if key == was:
                return item
            if key is None:
                heapq.heappop(self._entries)
            else:
                heapq.heapreplace(self._entries, (key, number, item))
        return None

    def pop(self) -> None:
        heapq.heappop(self._entries)

    def compact(self, live: int) -> None:
        """Drop what is not there any more, or twice, where it outweighs the rest."""
        if len(self._entries) > 2 * live + 64:
            self.renew()

    def renew(self) -> None:
        there = list(self)
        self._entries.clear()
        for item in there:
            self.put(item)

    def __iter__(self) -> Iterator[T]:
        """Give each once, in no order."""
        return (item for item in dict.fromkeys(item for *_, item in self._entries) if self._key(item) is not None)


def _by(rank: Callable[[Waiter[Any]], float]) -> Callable[[Waiter[Any]], tuple[float, ...] | None]:
    return lambda waiter: None if waiter.gone else (rank(waiter), waiter.number)


_PRIORITY: Final = _by(lambda waiter: -waiter.priority)
_AGE: Final = _by(lambda waiter: waiter.since)
_DEADLINE: Final = _by(lambda waiter: waiter.deadline)


class _Group(Generic[T]):
    """Who waits of one group, and the number of its last turn."""

    __slots__ = ("by_priority", "impatient", "live", "name", "turn")

    def __init__(self, name: str | None, turn: int) -> None:
        self.name = name
        self.turn = turn
        self.live = 0
        self.by_priority = _Heap[Waiter[T]](_PRIORITY)
        self.impatient = _Heap[Waiter[T]](_AGE)

    def head(self) -> Waiter[T] | None:
        return self.impatient.head() or self.by_priority.head()


class WaitQueue(Generic[T]):
    """Who waits, in order: refused ones, then by priority and in turns, FIFO within a group.

    Args:
        kept_back: Whether nobody of a group may pass for now; `let_in` says that this has changed. None: never.

    Attributes:
        live: How many wait.
    """

    def __init__(self, kept_back: Callable[[str | None], bool] | None = None) -> None:
        self._numbers = itertools.count()
        self._turns = itertools.count()
        self.live: int = 0
        self._groups: dict[str | None, _Group[T]] = {}
        self._kept_back = kept_back
        self._first = _Heap[Waiter[T]](_PRIORITY)
        self._by_age = _Heap[Waiter[T]](_AGE)
        self._by_deadline = _Heap[Waiter[T]](_DEADLINE)
        self._by_priority = _Heap[_Group[T]](self._priority_of)
        # Those with impatient ones.
        self._by_turn = _Heap[_Group[T]](self._turn_of)

    def turns(self) -> dict[str | None, int]:
        """Give the number of the last turn of each group that waits; who waits not will come last."""
        return {name: group.turn for name, group in self._groups.items()}

    def push(
        self,
        future: asyncio.Future[T],
        *,
        now: float,
        priority: int = 0,
        max_wait: float | None = None,
        waited: float = 0.0,
        since: float | None = None,
        first: bool = False,
        patience: float = 0.0,
        owner: object = None,
        group: str | None = None,
    ) -> Waiter[T]:
        """Put somebody in; `patience` is the least that even a shorter `max_wait` allows, `now` loop time."""
        limit = math.inf if max_wait is None else max_wait
        deadline, since = now + max(limit - waited, patience), now if since is None else since
        waiter = Waiter(future, next(self._numbers), priority, since, limit, deadline, first, owner, group)
        self.live += 1
        if first:
            self._first.put(waiter)
        else:
            self._join(waiter)
        if limit < math.inf:
            self._by_deadline.put(waiter)
        return waiter

    def next(self, now: float) -> Waiter[T] | None:
        """Who is to pass next, and stays in; None: nobody waits whose group may pass."""
        if (first := self._first.head()) is not None:
            return first
        while (eldest := self._by_age.head()) is not None and eldest.since + IMPATIENT_AFTER <= now:
            self._by_age.pop()
            self._lose_patience(eldest)
        group, other = self._by_priority.head(), self._by_turn.head()
        if group is not None and other is not None and other.turn < group.turn:
            group = other
        return None if group is None else group.head()

    def next_of(self, name: str | None) -> Waiter[T] | None:
        """Who of a group is next, whoever's turn it is."""
        refused = (waiter for waiter in self._first if waiter.group == name)
        group = self._groups.get(name)
        return next(refused, None if group is None else group.head())

    def wants(self, now: float) -> Iterator[tuple[str | None, int, bool]]:
        """Give of each group, in turns: how many could pass now, 0 where others go before; whether it goes first."""
        refused = Counter(waiter.group for waiter in self._first)
        if len(names := self._groups.keys() | refused.keys()) <= 1:
            yield from ((name, self.live, bool(refused)) for name in names)
            return
        yield from ((name, count, True) for name, count in refused.items())
        groups = sorted(self._groups.values(), key=lambda group: group.turn)
        top = max((head.priority for group in groups if (head := group.by_priority.head())), default=0)
        for group in groups:
            if group.name not in refused:
                urgent = (each.priority == top or each.since + IMPATIENT_AFTER <= now for each in group.by_priority)
                yield group.name, 0 if refused else sum(urgent), False

    def prioritise(self, owner: object, priority: int) -> None:
        """Give who waits for an owner another priority, if anybody does."""
        for heap in (self._first, *(group.by_priority for group in self._groups.values())):
            for waiter in heap:
                if waiter.owner is owner:
                    waiter.priority = priority
                    heap.renew()
                    if waiter.line is not None:
                        self._put(waiter.line)
                    return

    def remove(self, waiter: Waiter[T]) -> None:
        """Take one out; one that is out already is ignored."""
        if not waiter.queued:
            return
        waiter.queued = False
        self.live -= 1
        group = waiter.line
        if group is None:
            self._first.compact(self.live)
        else:
            group.live -= 1
            group.by_priority.compact(group.live)
            group.impatient.compact(group.live)
            self._by_age.compact(self.live)
            if not group.live:
                del self._groups[group.name]
        self._by_deadline.compact(self.live)

    def had_turn(self, waiter: Waiter[T]) -> None:
        """The next turn of its group comes after those of all others."""
        if waiter.line is not None:
            waiter.line.turn = next(self._turns)

    def let_in(self, name: str | None) -> None:
        """A group is kept back no more."""
        if (group := self._groups.get(name)) is not None:
            self._put(group)

    def _join(self, waiter: Waiter[T]) -> None:
        name = waiter.group
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group(name, next(self._turns))
        before = group.by_priority.head()
        waiter.line = group
        group.live += 1
        group.by_priority.put(waiter)
        self._by_age.put(waiter)
        if before is None or before.priority < waiter.priority:
            self._put(group)

    def _lose_patience(self, waiter: Waiter[T]) -> None:
        group = waiter.line
        if group is not None:
            alone = group.impatient.head() is None
            group.impatient.put(waiter)
            if alone:
                self._put(group)

    def _put(self, group: _Group[T]) -> None:
        for groups in (self._by_priority, self._by_turn):
            groups.put(group)
            groups.compact(len(self._groups))

    def _priority_of(self, group: _Group[T]) -> tuple[int, ...] | None:
        head = group.by_priority.head()
        return None if head is None or self._is_kept_back(group) else (-head.priority, group.turn)

    def _turn_of(self, group: _Group[T]) -> tuple[int, ...] | None:
        return None if group.impatient.head() is None or self._is_kept_back(group) else (group.turn,)

    def _is_kept_back(self, group: _Group[T]) -> bool:
        return self._kept_back is not None and self._kept_back(group.name)

    def late(self, now: float, until: float) -> Iterator[Waiter[T]]:
        """Who has run out of time at `now`, or will have before `until`, when the next may pass."""
        while (head := self._by_deadline.head()) and (head.deadline <= now or head.deadline < until):
            yield head

    def next_deadline(self) -> float:
        """Loop time at which the next runs out of time; infinity: none does."""
        head = self._by_deadline.head()
        return head.deadline if head else math.inf

    def __iter__(self) -> Iterator[Waiter[T]]:
        """Give each until all are removed."""
        while head := self._first.head():
            yield head
        while self._groups and (head := next(iter(self._groups.values())).head()):
            yield head
