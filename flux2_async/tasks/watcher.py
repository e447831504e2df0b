"""One scheduler for all outstanding tasks, and the only place that settles them.

Rules: an outcome is settled once, and from a record; failing to look is not a failure of the task. Exceptions
by design: a refusal to look that lasts (`REFUSED_FOR`), a task nobody knows (`NOT_VISIBLE_FOR`), the caller's
own `give_up_after`, and the end of the session.

A task costs an entry in a heap of due times and no coroutine. One timer stands at the earliest due time; at most
`max_concurrency` looks are in flight. An entry whose due time moved leaves its old place in the heap behind, to
be skipped when it comes up.
"""

import asyncio
import heapq
import itertools
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakValueDictionary

from flux2_async._protocol.codec import FailedUnderErrorError
from flux2_async._protocol.records import task_error, unread_addresses
from flux2_async.errors import (
    ApiError,
    ConfigurationError,
    Flux2Error,
    ProtocolError,
    RateLimitedError,
    ServerError,
    SessionClosedError,
    TaskNotFoundError,
    TaskTimeoutError,
    TransportError,
)
from flux2_async.models import ImageResult, Polling, TaskRecord, TaskState
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.observers import Observers
from flux2_async.tasks.outcome import Signal
from flux2_async.tasks.pace import SECOND, Pace
from flux2_async.tasks.schedule import Schedule, Schedules
from flux2_async.tasks.timing import LOOKS_AFTER_HINT, Timing, Watched

if TYPE_CHECKING:
    from flux2_async.models.expectation import Expectation

logger = logging.getLogger("flux2_async")

# A record can be invisible right after createTask; other clients of the API give it 90 s.
NOT_VISIBLE_FOR: Final = 90.0
# A key that is rotated, or credits that are refilled, within a minute cost no task.
REFUSED_FOR: Final = 60.0
# A success can be shown a little before its addresses.
EMPTY_FOR: Final = 30.0
EMPTY_AGAIN: Final = 0.5
# A hint is worth one look a second; the record can lag a little behind its callback.
HINTS_APART: Final = 1.0
# By this nginx refuses what is too fast unless told otherwise. It is taken for that when it meets several tasks within
# a second in which looks at others pass, and with a bound, since it may also mean what it says.
OVERLOADED: Final = 503
OVERLOADED_SLOWEST: Final = 1.0


class Records(Protocol):
    """What reads records; `Api` does."""

    async def record(self, task_id: str) -> TaskRecord | None:
        """Ask for one; None when it is not visible."""
        ...


class Slots(Protocol):
    """How many tasks may be alive; `slots.Slots` keeps them."""

    def borrow(self) -> None:
        """Take one at once: the task exists already."""
        ...

    def release(self) -> None:
        """Give one back."""
        ...


class Watcher:
    """Watches tasks until they are settled.

    Attributes:
        polls: Looks.
        notified: Looks that a user asked for.
        repeated_settles: Final records that came after the task was settled.
        ended: Woken when a task is settled.

    Args:
        records: Reads them.
        slots: Those of tasks.
        schedules: When to look.
        polling: Bounds.
        observers: Told of looks, states and ends.
    """

    def __init__(
        self,
        records: Records,
        slots: Slots,
        schedules: Schedules,
        polling: Polling,
        observers: Observers,
    ) -> None:
        self._records = records
        self._slots = slots
        self._timing = Timing(schedules)
        self._pace = Pace()
        # When a look was answered by 503 last, and at which task.
        self._overloaded: tuple[float, Watched] | None = None
        self._polling = polling
        self._observers = observers
        self._listener: Callable[[ImageTask, bool], None] | None = None
        self.ended = Signal()
        self._loop = asyncio.get_running_loop()
        self._watched: dict[str, Watched] = {}
        # By their ids, as long as somebody holds the handle: there is one handle for each task.
        self._given_up: WeakValueDictionary[str, ImageTask] = WeakValueDictionary()
        self._heap: list[tuple[float, int, Watched]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        # Kept here because the handles of uvloop do not always know it.
        self._timer_at = 0.0
        self._looks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.polls = 0
        self.notified = 0
        self.repeated_settles = 0

    def __len__(self) -> int:
        return len(self._watched)

    def tasks(self) -> tuple[ImageTask, ...]:
        """Give all outstanding tasks, oldest first."""
        return tuple(watched.task for watched in self._watched.values())

    def get(self, task_id: str) -> ImageTask | None:
        """Give the handle of an outstanding task, or None."""
        watched = self._watched.get(task_id)
        return None if watched is None else watched.task

    def watch(self, task: ImageTask, schedule: Schedule | None = None) -> None:
        """Look after a task from now on.

        Args:
            task: Its handle.
            schedule: The one of its kind, for a task that was created just now. None: nobody knows when it was.
        """
        now = self._loop.time()
        watched = self._timing.begin(task, schedule, now)
        self._begin(watched, self._timing.wait(watched, now))

    def attach(self, task_id: str, *, asked: bool = False) -> ImageTask:
        """Give the handle of an outstanding task, or look after another one from now on; `asked`: for a caller."""
        known = self.get(task_id) or self.resume(task_id)
        if known is not None:
            return known
        task = ImageTask(task_id)
        self._slots.borrow()
        self.watch(task)
        if asked:
            self._attached(task)
        return task

    def listen(self, listener: Callable[[ImageTask, bool], None]) -> None:
        """Tell one from now on of every task that is settled, at once, and whether somebody hinted at it before."""
        self._listener = listener

    def resume(self, task_id: str) -> ImageTask | None:
        """Watch a task again that was given up, and give its handle; None where nobody holds one."""
        task = self._given_up.get(task_id)
        if task is not None and task._resume is not None:  # noqa: SLF001  the handle is written by its watcher alone
            task._resume(task)  # noqa: SLF001  likewise
        return task

    def expectation(self, task: ImageTask) -> "Expectation":
        """Give how long a task still takes, as far as is known."""
        return self._timing.expectation(self._watched.get(task.id), self._loop.time())

    def look_sooner(self, task: ImageTask) -> None:
        """Look at a task as soon as those who follow it want it, unless looks at it fail."""
        watched = self._watched.get(task.id)
        if watched is not None and not watched.looking and not watched.failures and watched.refused_since is None:
            now = self._loop.time()
            due = watched.looked + self._followed(watched, math.inf)
            if due < watched.due:
                self._plan(watched, due - now)

    def _followed(self, watched: Watched, wait: float) -> float:
        """Shorten a wait from one look to the next to what those who follow the task want."""
        every = watched.task._every  # noqa: SLF001  the handle is written by its watcher alone
        return min(wait, max(min(every), self._polling.wait_min)) if every else wait

    def give_up_after(self, task: ImageTask, seconds: float) -> None:
        """Give up an outstanding task after so many seconds of being watched, instead of the usual time."""
        watched = self._watched.get(task.id)
        if watched is not None:
            watched.until = watched.since + seconds
            if watched.until < watched.due and not watched.looking:
                self._plan(watched, watched.until - self._loop.time())

    def _begin(self, watched: Watched, wait: float) -> None:
        if self._polling.give_up_after is not None:
            watched.until = watched.since + self._polling.give_up_after
        self._watched[watched.task.id] = watched
        watched.task._watching = self  # noqa: SLF001  the handle is written by its watcher alone
        self._plan(watched, min(wait, watched.until - watched.since))

    def _watch_again(self, before: Watched, task: ImageTask) -> None:
        if self._closed:
            raise SessionClosedError(
                f"task {task.id} was given up and the session was closed since; attach it in a new session",
                task_id=task.id,
            )
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                "awaited in another event loop than the session's; open one session per event loop"
            )
        self._given_up.pop(task.id, None)
        task._reopen()  # noqa: SLF001  the handle is written by its watcher alone
        self._slots.borrow()
        # It may have ended long ago.
        self._begin(self._timing.again(before, self._loop.time()), 0.0)
        self._attached(task)

    def _attached(self, task: ImageTask) -> None:
        if self._observers:
            self._observers.tell("Attached", task, task_id=task.id)

    def notify(self, task_id: str) -> None:
        """Look at a task now for a user; see `hint`."""
        self.notified += 1
        self.hint(task_id)

    def hint(self, task_id: str) -> None:
        """Look at a task now, because somebody says that it is finished; unknown ids are ignored."""
        watched = self._watched.get(task_id)
        if watched is None:
            return
        watched.called = True
        # It is said to be finished: from here on there is no callback to rely on.
        watched.schedule = watched.schedule.without_callback
        watched.looks_after_hint = 0
        if watched.looking:
            watched.hinted = True
        elif (due := watched.looked + HINTS_APART) < watched.due:
            self._plan(watched, due - self._loop.time())

    def come_back(self) -> None:
        """Look by the usual schedule again at tasks whose looks are far away because of callbacks that do not come."""
        now = self._loop.time()
        for watched in tuple(self._watched.values()):
            # After a failure the wait is not for a callback.
            if watched.schedule is not watched.schedule.without_callback and not watched.failures:
                wait = self._timing.wait_midway(watched, now)
                if wait is not None:
                    self._plan(watched, wait)

    def offer(self, task_id: str, record: TaskRecord) -> None:
        """Settle a task from a final record that came by itself; unknown ids are ignored."""
        watched = self._watched.get(task_id)
        if watched is not None:
            watched.called = True
            self._seen(watched, record)

    async def aclose(self) -> tuple[str, ...]:
        """Stop looking and settle what is left with `SessionClosedError`; give the ids of that."""
        looks = tuple(self._looks)
        for look in looks:
            look.cancel()
        left = self.leave()
        if looks:
            await asyncio.wait(looks)
        return left

    def leave(self) -> tuple[str, ...]:
        """Do the same without the event loop, which may be closed."""
        self._closed = True
        if self._timer is not None and not self._loop.is_closed():
            self._timer.cancel()
        left = tuple(self._watched.values())
        for watched in left:
            self._settle(
                watched,
                error=SessionClosedError(
                    f"the session was closed before task {watched.task.id} was finished; attach it in a new session",
                    task_id=watched.task.id,
                ),
            )
        return tuple(watched.task.id for watched in left)

    def _plan(self, watched: Watched, wait: float) -> None:
        now = self._loop.time()
        due = watched.due = now + max(wait, 0.0)
        heapq.heappush(self._heap, (due, next(self._order), watched))
        self._dispatch()

    def _dispatch(self) -> None:
        """Start the looks that are due, as far as the bound allows, and set the timer for the next."""
        now = self._loop.time()
        while self._heap and len(self._looks) < self._polling.max_concurrency and not self._closed:
            due, _, watched = self._heap[0]
            if watched.due != due or watched.looking or self._watched.get(watched.task.id) is not watched:
                heapq.heappop(self._heap)
            elif (at := due if due > now else self._pace.opens(now)) > now:
                self._set_timer(at)
                return
            else:
                heapq.heappop(self._heap)
                self._start(watched, now)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            if self._timer_at == due:
                return
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(due, self._on_timer), due

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch()

    def _start(self, watched: Watched, now: float) -> None:
        watched.looking, watched.looked = True, now
        self._pace.left(now)
        self.polls += 1
        look = self._loop.create_task(self._look_once(watched), name=f"flux2_async look {watched.task.id}")
        self._looks.add(look)
        look.add_done_callback(self._looked)

    def _looked(self, look: asyncio.Task[None]) -> None:
        self._looks.discard(look)
        self._dispatch()

    async def _look_once(self, watched: Watched) -> None:
        try:
            record = await self._records.record(watched.task.id)
        except Flux2Error as error:
            watched.looking = False
            self._failed(watched, error)
        except asyncio.CancelledError:
            if self._closed:
                raise
            # Not ours: aiohttp cancels what shares a name look-up with a request that was cancelled.
            watched.looking = False
            self._failed(watched, TransportError("the poll was cancelled", task_id=watched.task.id))
        except Exception:  # a bug of ours in one look must not leave its task unwatched
            logger.exception("polling task %s failed unexpectedly", watched.task.id)
            watched.looking = False
            self._failed(watched, ProtocolError("an unexpected failure", task_id=watched.task.id))
        else:
            watched.looking = False
            self._pace.passed(watched.looked, self._loop.time())
            if self._observers:
                self._tell(watched, record=record)
            self._seen(watched, record)

    def _tell(self, watched: Watched, **seen: object) -> None:
        """Tell of a look, after it was answered and before anything comes of it."""
        task = watched.task
        seconds = self._loop.time() - watched.looked
        self._observers.tell("Polled", task, task_id=task.id, seconds=seconds, **seen)

    def _seen(self, watched: Watched, record: TaskRecord | None) -> None:
        task = watched.task
        if task.done():
            self.repeated_settles += record is not None and record.state.final
            return
        watched.failures, watched.refused_since, watched.failed_since = 0, None, None
        if watched.unanswered_since is not None:
            watched.until += max(watched.looked - watched.unanswered_since, 0.0)
            watched.unanswered_since = None
        if record is None:
            self._not_visible(watched)
            return
        watched.hidden_since = None
        if watched.empty_since is None:
            # Else its end is known already.
            self._timing.learn(watched, record, self._loop.time())
        if record.state is TaskState.SUCCESS and not record.result_urls and self._is_filled_later(watched):
            return
        before = task.state
        task._saw(record)  # noqa: SLF001  the handle is written by its watcher alone
        if self._observers and record.state is not before:
            self._observers.tell("StateChanged", task, task_id=task.id, state=record.state, record=record)
        if record.state.final:
            self._finish(watched, record)
        else:
            watched.empty_since = None
            self._again(watched, self._wait_unfinished(watched))

    def _is_filled_later(self, watched: Watched) -> bool:
        """Whether a success without an address is to be looked at again, which is planned then."""
        if watched.empty_since is None:
            watched.empty_since = watched.looked
        now, until = self._loop.time(), watched.empty_since + EMPTY_FOR
        if now < until:
            # Each time twice as long, since most are filled soon.
            self._plan(watched, min(max(now - watched.empty_since, EMPTY_AGAIN), until - now))
        return now < until

    def _finish(self, watched: Watched, record: TaskRecord) -> None:
        task, error = watched.task, task_error(record)
        if error is None and (unread := unread_addresses(record)):
            text = "task %s names %d more results whose addresses cannot be read; see record.extra['resultJson']"
            logger.warning(text, task.id, unread)
        result = None if error else ImageResult(task_id=task.id, urls=record.result_urls, record=record)
        self._settle(watched, result, error)

    def _not_visible(self, watched: Watched) -> None:
        # Counted from the first such look: one answer after an outage, or between two rare looks, proves nothing.
        if watched.hidden_since is None:
            watched.hidden_since = watched.looked
        now, until = self._loop.time(), watched.hidden_since + NOT_VISIBLE_FOR
        if now < until:
            self._again(watched, min(self._wait_unfinished(watched), until - now))
            return
        hidden, task_id = now - watched.hidden_since, watched.task.id
        text = (
            f"the service does not know task {task_id} after {hidden:.0f} s: a wrong id, another account's, or purged"
        )
        self._settle(watched, error=TaskNotFoundError(text, task_id=task_id))

    def _wait_unfinished(self, watched: Watched) -> float:
        # Intervals count from look to look, so what a reply takes comes off.
        took = self._loop.time() - watched.looked
        if watched.hinted:
            watched.hinted, watched.looks_after_hint = False, 0
            return HINTS_APART - took
        wait = self._followed(watched, self._timing.wait(watched, watched.looked))
        return _soon_after_hint(watched, wait - took)

    def _failed(self, watched: Watched, error: Flux2Error) -> None:
        if watched.task.done():
            return
        now = self._loop.time()
        if self._observers:
            self._tell(watched, error=error)
        # Nobody knows what was to be seen meanwhile.
        watched.hidden_since = None
        if watched.unanswered_since is None:
            watched.unanswered_since = watched.looked
        logger.info("cannot poll task %s: %s", watched.task.id, type(error).__name__)
        if isinstance(error, FailedUnderErrorError) and self._is_failed(watched, error.record, now):
            return
        if isinstance(error, ApiError) and not error.transient:
            if watched.refused_since is None:
                watched.refused_since = now
            # Compared as it is planned below: rounded in another way, looks would follow each other without a pause.
            if now >= watched.refused_since + REFUSED_FOR:
                self._settle(watched, error=error)
                return
        wait = self._wait_after(watched, error, now)
        if watched.refused_since is not None and (left := watched.refused_since + REFUSED_FOR - now) > 0:
            # Nothing is known to have failed that trying again soon could mend.
            wait = min(max(wait, self._timing.wait(watched, now)), left)
        if watched.failed_since is not None and (left := watched.failed_since + REFUSED_FOR - now) > 0:
            wait = min(wait, left)
        self._plan(watched, wait)

    def _is_failed(self, watched: Watched, record: TaskRecord, now: float) -> bool:
        """Whether a record under a refusal is believed by now, and the task settled."""
        if watched.failed_since is None:
            watched.failed_since = now
        believed = now >= watched.failed_since + REFUSED_FOR
        if believed:
            watched.task._saw(record)  # noqa: SLF001  the handle is written by its watcher alone
            self._finish(watched, record)
        return believed

    def _wait_after(self, watched: Watched, error: Flux2Error, now: float) -> float:
        if isinstance(error, RateLimitedError):
            # It was refused for what all looks together did: it is due, and the pace says when its turn is.
            self._refused(watched, now, retry_after=error.retry_after)
            return 0.0
        if isinstance(error, ServerError) and error.http_status == OVERLOADED:
            before, self._overloaded = self._overloaded, (now, watched)
            several = before is not None and before[1] is not watched and now - before[0] < SECOND
            if self._pace.rate is not None or (several and self._pace.passing(now)):
                self._refused(watched, now, slowest=OVERLOADED_SLOWEST)
        watched.failures += 1
        return self._timing.wait_after_failure(watched, now)

    def _refused(self, watched: Watched, now: float, **how: Any) -> None:
        before = self._pace.rate
        self._pace.refused(watched.looked, now, **how)
        if (rate := self._pace.rate) != before:
            wait = self._pace.opens(now) - now
            logger.info("polls are refused; from now on %.3g a second leave, the next one in %.3g s", rate, wait)

    def _again(self, watched: Watched, wait: float) -> None:
        """Plan the next look at a task that was seen and is not finished, or give it up."""
        now = self._loop.time()
        if watched.looked >= watched.until:
            self._give_up(watched)
            return
        if self._timing.is_news(watched, now):
            logger.warning("task %s is not finished and older than anything seen in this session", watched.task.id)
        self._plan(watched, min(wait, watched.until - now))

    def _give_up(self, watched: Watched) -> None:
        task = watched.task
        error = TaskTimeoutError(
            f"task {task.id} is not finished after {watched.looked - watched.since:.3g} s, so the session polls it "
            "no more (give_up_after); it goes on at the service: await it again, or attach it",
            task=task,
            given_up=True,
        )
        self._given_up[task.id] = task
        task._resume = partial(self._watch_again, watched)  # noqa: SLF001  the handle is written by its watcher alone
        self._settle(watched, error=error)

    def _settle(self, watched: Watched, result: ImageResult | None = None, error: Exception | None = None) -> None:
        task = watched.task
        if not task._settle(result, error):  # noqa: SLF001  the handle is written by its watcher alone
            self.repeated_settles += 1
            return
        if self._watched.get(task.id) is watched:
            del self._watched[task.id]
        logger.debug("task %s settled as %s", task.id, type(error).__name__ if error else "success")
        if self._listener is not None:
            self._listener(task, watched.called)
        self._slots.release()
        self.ended.wake()
        if self._observers:
            self._observers.tell("Settled", task, task_id=task.id, result=result, error=error)


def _soon_after_hint(watched: Watched, wait: float) -> float:
    """Shorten a wait where a hint said that there is something to see and it was not seen yet."""
    if watched.looks_after_hint >= len(LOOKS_AFTER_HINT):
        return wait
    watched.looks_after_hint += 1
    return min(wait, LOOKS_AFTER_HINT[watched.looks_after_hint - 1])
