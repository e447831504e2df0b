"""How many tasks may be alive at once."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from flux2_async._limiter.queue import Waiter, WaitQueue, Wish
from flux2_async._limiter.turnstile import Turnstile
from flux2_async.errors import RateLimitedError

__all__ = ["Slots"]


class Slots(Turnstile[None]):
    """How many tasks may be alive at once, of all and of each group.

    Who has a slot first waits for a permit. When all slots are out, those who wait so would pass everybody who waits
    here; so groups of which fewer wait there than of others are let ahead, and permits are given out by `room`, so that
    no more are ever alive for that.

    Args:
        max_running: Slots, or None for no cap.
        per_group: Of which one group has so many at most, or None for no cap.

    Attributes:
        borrowed: Slots taken now; more than `max_running` after `borrow()`, and where groups were let ahead.
        waiting: Tasks that wait for a slot.
        on_room: Called when `room` may have become more.
        on_release: Called when a slot was given back.
    """

    def __init__(self, max_running: int | None, per_group: int | None = None) -> None:
        super().__init__()
        self._max_running = max_running
        self._per_group = per_group
        if per_group is not None:
            self._waiters = WaitQueue(self._is_kept_back)
        self.borrowed: int = 0
        self.on_room: Callable[[], None] = _nobody
        self.on_release: Callable[[], None] = _nobody
        self._of_group: Counter[str | None] = Counter()
        # Whose holders wait for a permit, and how many of all are there beyond `max_running` because of that.
        self._early: dict[str | None, int] = {}
        self._all_early = 0
        self._ahead = 0

    def take(self, group: str | None) -> bool:
        """Take a slot where one is free and nobody waits; what `acquire` does then, for less."""
        if self._closed or not self._is_free(0.0, group):
            return False
        self._grant(0.0, group)
        return True

    async def acquire(self, **wish: Unpack[Wish]) -> None:
        """Wait for a slot and take it. Does not yield to the loop when one is free and nobody waits.

        Args:
            **wish: See `Wish`.

        Raises:
            RateLimitedError: `max_wait` ran out; no slot is taken, and `retry_after` is None.
            SessionClosedError: Closed before or meanwhile.
        """
        group = wish.get("group")
        if self._is_passed(group) and not self._closed:
            self._ahead += 1
            self._grant(0.0, group)
        else:
            await self._pass(**wish)

    @property
    def places(self) -> float:
        """How many there are; infinity without a cap."""
        return math.inf if self._max_running is None else self._max_running

    @property
    def room(self) -> float:
        """How many of those who have a slot may have a permit now; infinity where there is one for each."""
        return max(self._all_early - self._ahead, 0) if self._ahead else math.inf

    def running(self) -> Mapping[str | None, int]:
        """Give how many have a permit or are tasks; of each group where `per_group` bounds them, else of all as one."""
        if self._per_group is None:
            return {None: self.borrowed - self._all_early}
        return self._of_group - Counter(self._early)

    def begin(self, group: str | None) -> None:
        """Who has a slot has got a permit."""
        self._count_early(group, -1)
        while self._is_passed(group) and (waiter := self._waiters.next_of(group)) is not None:
            self._ahead += 1
            self._let_through(waiter, 0.0)

    def wait_again(self, group: str | None) -> None:
        """Who had a permit needs another one."""
        self._count_early(group, 1)
        self.on_room()

    def borrow(self, group: str | None = None) -> None:
        """Take a slot at once, also above `max_running`: the task exists already."""
        self.borrowed += 1
        if self._per_group is not None:
            self._of_group[group] += 1

    def release(self, group: str | None = None, *, early: bool = False) -> None:
        """Give a slot back; `early`: by one who waits for a permit.

        Raises:
            ValueError: None is borrowed.
        """
        if not self.borrowed:
            raise ValueError("a slot was released that nobody had borrowed")
        self.borrowed -= 1
        if early:
            self._count_early(group, -1)
        if self._per_group is not None:
            self._of_group[group] -= 1
            if not self._of_group[group]:
                del self._of_group[group]
            self._waiters.let_in(group)
        if self._ahead:
            self._ahead -= 1
            self.on_room()
        self.on_release()
        if early:
            self._replace(group)
        self._wake()

    def _replace(self, group: str | None) -> None:
        """Let the next of a group in for one who waits for a permit no more, so that the group keeps its turn there."""
        if self._loop is None or self._closed or (waiter := self._waiters.next_of(group)) is None:
            return
        now = self._loop.time()
        if self._is_passed(group):
            self._ahead += 1
            self._let_through(waiter, now)
        elif self._ready_at(now) <= now and not self._is_kept_back(group):
            head = self._waiters.next(now)
            if head is not None and head.priority == waiter.priority:
                self._let_through(waiter, now)

    def _is_passed(self, group: str | None) -> bool:
        """Whether no slot is free, and fewer of a group wait for permits than of others on average."""
        most = self._max_running
        if most is None or self.borrowed < most:
            return False
        early = self._early.get(group, 0)
        # Who has nobody there is let ahead also where those who have somebody have used up what is for them.
        if self._ahead >= (most if early else 2 * most):
            return False
        return early * len(self._early) < self._all_early and not self._is_kept_back(group)

    def _count_early(self, group: str | None, one: int) -> None:
        self._all_early += one
        if count := self._early.get(group, 0) + one:
            self._early[group] = count
        else:
            del self._early[group]

    def _ready_at(self, now: float, /) -> float:
        return now if self._max_running is None or self.borrowed < self._max_running else math.inf

    def _is_kept_back(self, group: str | None, /) -> bool:
        return self._per_group is not None and self._of_group[group] >= self._per_group

    def _grant(self, _now: float, group: str | None, /) -> None:
        self.borrow(group)
        self._count_early(group, 1)

    def _take_back(self, _grant: None, group: str | None, /) -> None:
        self.release(group, early=True)

    def _too_late(self, waiter: Waiter[None], _now: float, /) -> RateLimitedError:
        if self._is_kept_back(waiter.group):
            return group_is_full(waiter, self._per_group)
        return all_are_full(waiter, self.borrowed, self._max_running)


def group_is_full(waiter: Waiter[Any], per_group: int | None) -> RateLimitedError:
    """Give the error of one whose group has as many tasks as it may."""
    bound = "max_running_per_group"
    return _no_slot(waiter, f"{bound} is {per_group}, and group {waiter.group!r} has so many tasks", bound)


def all_are_full(waiter: Waiter[Any], running: int, most: int | None) -> RateLimitedError:
    """Give the error of one before whom so many tasks run."""
    return _no_slot(waiter, f"{running} tasks are running and max_running is {most}", "max_running")


def _no_slot(waiter: Waiter[Any], what: str, bound: str) -> RateLimitedError:
    return RateLimitedError(
        429,
        f"no slot became free: {what}",
        advice=f"Nothing was sent within max_wait={waiter.max_wait:g} s; try again when tasks have finished, or raise "
        f"max_wait or {bound}",
    )


def _nobody() -> None:
    """Nobody gives out permits."""
