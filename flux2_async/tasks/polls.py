"""When polls leave, and what each is answered.

A task costs an entry in a heap of due times and no coroutine. One timer stands at the earliest due time. An entry whose
due time moved stays in the heap, to be skipped when it comes up or dropped together with others, see `forget`.
"""

import asyncio
import heapq
import itertools
import logging
import math
from collections.abc import Callable
from typing import Protocol

from flux2_async.errors import Flux2Error, ProtocolError, RateLimitedError, TransportError
from flux2_async.models import TaskRecord
from flux2_async.tasks.pace import Pace
from flux2_async.tasks.timing import Watched

logger: logging.Logger = logging.getLogger("flux2_async")

Answered = Callable[[Watched, TaskRecord | Flux2Error | None], None]
"""Told what was seen (None: nothing), or what kept it from being seen."""


class Records(Protocol):
    """What reads records; `Api` does."""

    async def record(self, task_id: str) -> TaskRecord | None:
        """Ask for one; None when it is not visible."""
        ...


class Polls:
    """Polls each task when it is due: at most so many at once, and no faster than the pace.

    Attributes:
        pace: What all of them keep to.
        count: How many have left.
        stopped: Whether none leaves any more.
    """

    def __init__(self, records: Records, answered: Answered, most: int) -> None:
        self.pace: Pace = Pace()
        self.count: int = 0
        self.stopped: bool = False
        self._records = records
        self._answered = answered
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int, Watched]] = []
        self._order = itertools.count()
        # Since the heap was last rid of entries that no poll comes of.
        self._forgotten = 0
        self._timer: asyncio.TimerHandle | None = None
        # Kept here because the handles of uvloop do not always know it.
        self._timer_at = 0.0
        self._in_flight: set[asyncio.Task[None]] = set()
        self._asking = asyncio.Lock()

    def plan(self, watched: Watched, wait: float) -> None:
        """Poll a task after so many seconds, instead of at the time that was planned before."""
        due = watched.due = self._loop.time() + max(wait, 0.0)
        heapq.heappush(self._heap, (due, next(self._order), watched))
        # Else there is one that comes first.
        if self._timer is None or due < self._timer_at:
            self._dispatch()

    async def ask(self, task_id: str) -> TaskRecord | None:
        """Read the record of a task that is not watched: one at a time, at the pace of all, so that polls go on.

        Raises:
            Flux2Error: It could not be read.
        """
        async with self._asking:
            while (left := self.pace.opens(now := self._loop.time())) > now:  # noqa: ASYNC110  a pace sets no event
                await asyncio.sleep(left - now)
            self.pace.left(now)
            self.count += 1
            try:
                record = await self._records.record(task_id)
            except RateLimitedError as error:
                self.pace.refused(now, self._loop.time(), error.retry_after)
                raise
            self.pace.passed(now, self._loop.time())
            return record

    def forget(self, watched: Watched) -> None:
        """Poll a task no more."""
        watched.due = math.nan
        self._forgotten += 1
        # The due time of its entry may be hours away. So rarely each task costs one or two entries that are read.
        if self._forgotten > len(self._heap) // 2:
            self._forgotten, self._heap = 0, [entry for entry in self._heap if entry[0] == entry[2].due]
            heapq.heapify(self._heap)

    def stop(self) -> set[asyncio.Task[None]]:
        """Let none leave any more, also without the event loop, which may be closed; give those in flight."""
        self.stopped = True
        if self._timer is not None and not self._loop.is_closed():
            self._timer.cancel()
        return set(self._in_flight)

    def _dispatch(self) -> None:
        """Start the polls that are due, as far as the bound allows, and set the timer for the next."""
        now = self._loop.time()
        while self._heap and len(self._in_flight) < self._most and not self.stopped:
            due, _, watched = self._heap[0]
            if watched.due != due or watched.polling:
                heapq.heappop(self._heap)
            elif (at := due if due > now else self.pace.opens(now)) > now:
                # One that comes too early sets the next one then.
                if self._timer is None or at < self._timer_at:
                    if self._timer is not None:
                        self._timer.cancel()
                    self._timer, self._timer_at = self._loop.call_at(at, self._on_timer), at
                return
            else:
                heapq.heappop(self._heap)
                self._start(watched, now)

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch()

    def _start(self, watched: Watched, now: float) -> None:
        watched.polling, watched.polled = True, now
        self.pace.left(now)
        self.count += 1
        # Not through the loop's task factory: an eager one would run it before it is counted.
        name = f"flux2_async poll {watched.task.id}"
        self._in_flight.add(asyncio.Task(self._poll(watched), loop=self._loop, name=name))

    async def _poll(self, watched: Watched) -> None:
        task_id = watched.task.id
        try:
            record = await self._records.record(task_id)
        except Flux2Error as error:
            self._answer(watched, error)
        except asyncio.CancelledError:
            if self.stopped:
                raise
            # Not ours: aiohttp cancels what shares a name look-up with a request that was cancelled.
            self._answer(watched, TransportError("the poll was cancelled", task_id=task_id))
        except Exception:  # a bug of ours in one poll must not leave its task unwatched
            logger.exception("polling task %s failed unexpectedly", task_id)
            self._answer(watched, ProtocolError("an unexpected failure", task_id=task_id))
        else:
            self.pace.passed(watched.polled, self._loop.time())
            self._answer(watched, record)
        finally:
            self._in_flight.discard(asyncio.current_task())
            if self.pace.rate is not None or len(self._in_flight) == self._most - 1:
                # Others may have waited for what it found of the pace, or for its end.
                self._dispatch()

    def _answer(self, watched: Watched, answer: TaskRecord | Flux2Error | None) -> None:
        watched.polling = False
        self._answered(watched, answer)
