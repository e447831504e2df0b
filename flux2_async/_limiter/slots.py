"""How many tasks may be alive at once."""

import math

from flux2_async._limiter.queue import Turnstile, Waiter
from flux2_async.errors import RateLimitedError


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

    async def acquire(
        self,
        *,
        priority: int = 0,
        max_wait: float | None = None,
        waited: float = 0.0,
        since: float | None = None,
        owner: object = None,
    ) -> None:
        """Wait for a slot and take it. Does not yield to the loop when one is free and nobody waits.

        Args:
            priority: Higher goes first; FIFO within one. Who has waited 60 s counts as top priority.
            max_wait: Seconds, 0 for only if free at once. None: without limit.
            waited: Seconds of `max_wait` that were used up before this call.
            since: Loop time from which waiting counts for the 60 s; None: this call.
            owner: Whom it is for, see `prioritise`.

        Raises:
            RateLimitedError: `max_wait` ran out; no slot is taken, and `retry_after` is None.
            SessionClosedError: Closed before or meanwhile.
        """
        await self._pass(priority=priority, max_wait=max_wait, waited=waited, since=since, owner=owner)

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
            advice=f"Nothing was sent within max_wait={waiter.max_wait:g} s; try again when tasks have "
            "finished, or raise max_wait or max_running",
        )
