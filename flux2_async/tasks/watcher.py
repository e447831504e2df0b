"""The outstanding tasks of a session, and the only place that settles them.

An outcome is settled once: by what a poll of its task means (`verdict`), by a final record that came by itself, or by
the end of the session.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

from flux2_async.errors import ConfigurationError, Flux2Error, SessionClosedError, TaskTimeoutError
from flux2_async.models import ImageResult, Polling, Request, TaskRecord
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.observers import Observers
from flux2_async.tasks.outcome import Signal
from flux2_async.tasks.polls import Polls, Records
from flux2_async.tasks.schedule import Schedule, Schedules
from flux2_async.tasks.timing import Timing, Watched
from flux2_async.tasks.verdict import HINTS_APART, Judge, Verdict

if TYPE_CHECKING:
    from flux2_async.models.expectation import Expectation
    from flux2_async.tasks.durations import Durations

logger: logging.Logger = logging.getLogger("flux2_async")


class Slots(Protocol):
    """How many tasks may be alive; `slots.Slots` keeps them."""

    def borrow(self, group: str | None = None, /) -> None:
        """Take one of a group's at once: the task exists already."""
        ...

    def release(self, group: str | None = None, /) -> None:
        """Give one back."""
        ...


class Watcher:
    """Watches tasks until they are settled.

    Attributes:
        notified: Polls that a user asked for.
        repeated_settles: Final records that came after the task was settled.
        ended: Woken when a task is settled.
    """

    def __init__(
        self,
        records: Records,
        slots: Slots,
        schedules: Schedules,
        polling: Polling,
        observers: Observers,
    ) -> None:
        self.ended: Signal = Signal()
        self.notified: int = 0
        self.repeated_settles: int = 0
        self._slots = slots
        self._timing = Timing(schedules)
        self._polls = Polls(records, self._answered, polling.max_concurrency)
        self._judge = Judge(self._timing, self._polls.pace)
        self._give_up_after = polling.give_up_after
        self._observers = observers
        self._listener: Callable[[ImageTask, bool], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._watched: dict[str, Watched] = {}
        # By their ids, as long as somebody holds the handle: there is one handle for each task.
        self._given_up: WeakValueDictionary[str, ImageTask] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._watched)

    @property
    def polls(self) -> int:
        """Polls that have left."""
        return self._polls.count

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

    def durations(self, request: Request) -> "Durations":
        """Give how long tasks of a request's kind take, as far as is known."""
        return self._timing.durations(request)

    @property
    def lag(self) -> float:
        """Seconds from the end of a task until it is known, on average of the last ones."""
        return self._timing.lag

    def all_durations(self) -> "list[Durations]":
        """Give that of all kinds of which something is known, else what is documented."""
        return self._timing.all_durations()

    def running(self) -> "list[tuple[Durations, float]]":
        """Give of each outstanding task how long its kind takes, and its age in seconds."""
        now = self._loop.time()
        return [self._timing.running(watched, now) for watched in self._watched.values()]

    def unseen(self, task: ImageTask) -> bool:
        """Tell whether the service did not know a task when it was polled last."""
        watched = self._watched.get(task.id)
        return watched is not None and watched.hidden_since is not None

    def poll_sooner(self, task: ImageTask) -> None:
        """Poll a task as soon as those who follow it want it, unless polls of it fail."""
        watched = self._watched.get(task.id)
        if watched is not None and not watched.polling and not watched.failures and watched.refused_since is None:
            due = watched.polled + self._timing.followed(watched, math.inf)
            if due < watched.due:
                self._polls.plan(watched, due - self._loop.time())

    def give_up_after(self, task: ImageTask, seconds: float) -> None:
        """Give up an outstanding task after so many seconds of being watched, instead of the usual time."""
        watched = self._watched.get(task.id)
        if watched is not None:
            watched.until = watched.since + seconds
            if watched.until < watched.due and not watched.polling:
                self._polls.plan(watched, watched.until - self._loop.time())

    def _begin(self, watched: Watched, wait: float) -> None:
        if self._give_up_after is not None:
            watched.until = watched.since + self._give_up_after
        self._watched[watched.task.id] = watched
        watched.task._watching = self  # noqa: SLF001  the handle is written by its watcher alone
        watched.group = watched.task.group
        self._polls.plan(watched, min(wait, watched.until - watched.since))

    def _watch_again(self, before: Watched, task: ImageTask) -> None:
        if self._polls.stopped:
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
        self._slots.borrow(task.group)
        # It may have ended long ago.
        self._begin(self._timing.again(before, self._loop.time()), 0.0)
        self._attached(task)

    def _attached(self, task: ImageTask) -> None:
        if self._observers:
            self._observers.tell("Attached", task, task_id=task.id)

    def ask(self, task_id: str) -> Coroutine[Any, Any, TaskRecord | None]:
        """Read the record of a task that is not watched; see `Polls`."""
        return self._polls.ask(task_id)

    def notify(self, task_id: str) -> None:
        """Poll a task now for a user; see `hint`."""
        self.notified += 1
        self.hint(task_id)

    def hint(self, task_id: str) -> None:
        """Poll a task now, because somebody says that it is finished; unknown ids are ignored."""
        watched = self._watched.get(task_id)
        if watched is None:
            return
        watched.called = True
        # It is said to be finished: from here on there is no callback to rely on.
        watched.schedule = watched.schedule.without_callback
        watched.polls_after_hint = 0
        if watched.polling:
            watched.hinted = True
        elif (due := watched.polled + HINTS_APART) < watched.due:
            self._polls.plan(watched, due - self._loop.time())

    def come_back(self) -> None:
        """Poll by the usual schedule again what is not polled for long because of callbacks that do not come."""
        now = self._loop.time()
        for watched in tuple(self._watched.values()):
            # After a failure the wait is not for a callback.
            if watched.schedule is not watched.schedule.without_callback and not watched.failures:
                wait = self._timing.wait_midway(watched, now)
                if wait is not None:
                    self._polls.plan(watched, wait)

    def offer(self, task_id: str, record: TaskRecord) -> None:
        """Settle a task from a final record that came by itself; unknown ids are ignored."""
        watched = self._watched.get(task_id)
        if watched is not None:
            watched.called = True
            self._seen(watched, record)

    async def aclose(self) -> tuple[str, ...]:
        """Stop polling and settle what is left with `SessionClosedError`; give the ids of that."""
        polls = self._polls.stop()
        for poll in polls:
            poll.cancel()
        left = self.leave()
        if polls:
            await asyncio.wait(polls)
        return left

    def leave(self) -> tuple[str, ...]:
        """Do the same without the event loop, which may be closed."""
        self._polls.stop()
        left = tuple(self._watched.values())
        for watched in left:
            # It runs on at the service, and other processes are told so at the end.
            self._slots.borrow(watched.group)
            self._settle(
                watched,
                error=SessionClosedError(
                    f"the session was closed before task {watched.task.id} was finished; attach it in a new session",
                    task_id=watched.task.id,
                ),
            )
        return tuple(watched.task.id for watched in left)

    def _answered(self, watched: Watched, answer: TaskRecord | Flux2Error | None) -> None:
        if not isinstance(answer, Flux2Error):
            if self._observers:
                self._tell(watched, record=answer)
            self._seen(watched, answer)
        elif not watched.task.done():
            if self._observers:
                self._tell(watched, error=answer)
            self._follow(watched, self._judge.of_failure(watched, answer, self._loop.time()))

    def _tell(self, watched: Watched, **seen: object) -> None:
        """Tell of a poll, after it was answered and before anything comes of it."""
        task = watched.task
        seconds = self._loop.time() - watched.polled
        self._observers.tell("Polled", task, task_id=task.id, seconds=seconds, **seen)

    def _seen(self, watched: Watched, record: TaskRecord | None) -> None:
        task = watched.task
        if task.done():
            self.repeated_settles += record is not None and record.state.final
            return
        before = task.state
        verdict = self._judge.of_record(watched, record, self._loop.time())
        if self._observers and task.state is not before:
            self._observers.tell("StateChanged", task, task_id=task.id, state=task.state, record=record)
        self._follow(watched, verdict)

    def _follow(self, watched: Watched, verdict: Verdict) -> None:
        if isinstance(verdict, ImageResult):
            self._settle(watched, verdict)
        elif not isinstance(verdict, Exception):
            self._polls.plan(watched, verdict)
        else:
            if isinstance(verdict, TaskTimeoutError):
                task = watched.task
                self._given_up[task.id] = task
                task._resume = partial(self._watch_again, watched)  # noqa: SLF001  the handle is written by its watcher alone
            self._settle(watched, error=verdict)

    def _settle(self, watched: Watched, result: ImageResult | None = None, error: Exception | None = None) -> None:
        task = watched.task
        if not task._settle(result, error):  # noqa: SLF001  the handle is written by its watcher alone
            self.repeated_settles += 1
            return
        if self._watched.get(task.id) is watched:
            del self._watched[task.id]
        self._polls.forget(watched)
        logger.debug("task %s settled as %s", task.id, type(error).__name__ if error else "success")
        if self._listener is not None:
            self._listener(task, watched.called)
        self._slots.release(watched.group)
        self.ended.wake()
        if result is not None and task.request is not None:
            self._observers.priced(task.request, result.record)
        if self._observers:
            self._observers.tell("Settled", task, task_id=task.id, result=result, error=error)
