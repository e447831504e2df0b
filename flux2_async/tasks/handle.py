"""The handle of a task: what a caller awaits. It holds an outcome, not a session."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Final, Protocol

import attrs

import flux2_async
from flux2_async.errors import InvalidRequestError, TaskTimeoutError
from flux2_async.models import ImageResult, Request, TaskRecord, TaskState
from flux2_async.models.plain import is_number
from flux2_async.tasks.observers import Origin
from flux2_async.tasks.outcome import Outcome, Signal


class _Watching(Protocol):
    """What looks after a task; `Watcher` does."""

    def expectation(self, task: "ImageTask") -> "flux2_async.Expectation": ...
    def poll_sooner(self, task: "ImageTask") -> None: ...
    def unseen(self, task: "ImageTask") -> bool: ...


@attrs.define(eq=False, repr=False)
class ImageTask:
    """A task at the service; `await task` gives its result.

    Made by `submit`, `attach` and `recover`. Any number of coroutines may wait for it; cancelling one cancels
    its wait alone, never the task. One that was given up (`TaskTimeoutError.given_up`) is watched again when it is
    awaited again.

    Attributes:
        id: The service's id.
        request: What was sent, pictures given as bytes replaced by the files they were uploaded to; None for an
            attached task.
        record: The last record seen, or None before the first poll.
        ref: The name of its submission, or None for an attached task.
        key: The caller's own name for it, see `submit`, or None.
        group: Whose it is, see `submit`, or None.
        metadata: What the caller gave with it, see `submit`, or None.
    """

    id: str
    request: Request | None = None
    record: TaskRecord | None = None
    ref: str | None = attrs.field(default=None, kw_only=True)
    key: str | None = attrs.field(default=None, kw_only=True)
    group: str | None = attrs.field(default=None, kw_only=True)
    metadata: Mapping[str, Any] | None = attrs.field(default=None, kw_only=True)
    _outcome: Outcome[ImageResult] = attrs.field(init=False, factory=Outcome)
    _changed: Signal | None = attrs.field(init=False, default=None)
    # While it is outstanding; and how often those who follow it want it polled.
    _watching: _Watching | None = attrs.field(init=False, default=None)
    _every: list[float] | None = attrs.field(init=False, default=None)
    # Watches a task again that was given up; and whether somebody was told of that.
    _resume: "Callable[[ImageTask], None] | None" = attrs.field(init=False, default=None)
    _told: bool = attrs.field(init=False, default=False)

    def __repr__(self) -> str:
        settled = "settled" if self.done() else "outstanding"
        return f"<ImageTask {self.id} {self.state} {settled}>"

    def __await__(self) -> Generator[Any, None, ImageResult]:
        return self.result().__await__()

    @property
    def state(self) -> TaskState:
        """Where the task was when it was last polled; `WAITING` before the first poll."""
        return TaskState.WAITING if self.record is None else self.record.state

    @property
    def error(self) -> Exception | None:
        """What it was settled with instead of a picture; None while it is outstanding, or has one."""
        return self._outcome.error

    def expectation(self) -> "flux2_async.Expectation":
        """How long it takes, by what the session learned of tasks of its model and resolution.

        Before any has ended, the usual range counts: 8 to 95 s, as seen in records of 2025 and 2026. Call it in the
        session's event loop.

        Returns:
            Seconds since the service took it, for a task that has ended those that it took; all of it None where
            nothing is known: of an attached task as long as its age is not known, of one that is not watched any more.
        """
        if self._watching is not None:
            return self._watching.expectation(self)
        from flux2_async.models.expectation import Expectation  # noqa: PLC0415  few ask

        if self.record is None or not self.record.state.final:
            return Expectation()
        took = self.record.duration
        return Expectation(elapsed=took, median=took, bound=took, fraction=1.0)

    def done(self) -> bool:
        """Whether `result` gives or raises at once."""
        return self._outcome.done

    async def result(self, timeout: float | None = None) -> ImageResult:
        """Wait for the picture.

        Args:
            timeout: Seconds to wait, 0 to ask only. None: as long as it takes. It bounds this wait alone.

        Returns:
            The addresses of the finished pictures and the final record.

        Raises:
            InvalidRequestError: `timeout` is no number of seconds.
            TaskTimeoutError: Not finished within `timeout`, or given up after `Polling.give_up_after`; wait again at
                no cost.
            ContentModeratedError: Refused for its content.
            TaskFailedError: Failed at the service.
            EmptyResultError: Finished without a picture.
            TaskNotFoundError: Unknown to the service for 90 s (our choice: a new task may not be seen at once).
            ApiError: Polling was refused for 60 s (our choice: 401, 402, 433 or 505 may pass); `attach` it again later.
            SessionClosedError: The session was closed meanwhile; `attach` it in a new one.
            ConfigurationError: Awaited in another event loop.
        """
        self._watch_again(timeout)
        outcome = self._outcome
        if timeout is None:
            # Without a further coroutine in between, which thousands who wait would pay for.
            await outcome.wait()
        elif not await self.wait(timeout):
            raise unfinished(self, timeout)
        self._told = self._told or outcome is self._outcome
        return outcome.get()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the task is settled, without raising its outcome.

        Args:
            timeout: Seconds to wait, 0 to ask only. None: as long as it takes.

        Returns:
            Whether it is settled.

        Raises:
            InvalidRequestError: `timeout` is no number of seconds.
            ConfigurationError: Awaited in another event loop.
        """
        self._watch_again(timeout)
        outcome = self._outcome
        if timeout is None:
            await outcome.wait()
        elif timeout > 0 and not outcome.done:
            try:
                async with asyncio.timeout(timeout):
                    await outcome.wait()
            except TimeoutError:
                pass
        return outcome.done

    async def updates(self, *, every: float | None = None) -> AsyncGenerator[TaskRecord, None]:
        """Follow the task.

        Example:
            async for record in task.updates(every=1.0):
                print(record.state, task.expectation().remaining)

        Args:
            every: Seconds. While this is iterated the task is polled this often, also where callbacks come, so
                that stages which last this long are seen; not below `Polling.wait_min`, and no faster than the service
                allows where it refuses polls. None: only as often as the session polls anyway, with callbacks hardly
                ever.

        Yields:
            The record known now, if any, then each one in which state or progress has changed; changes
            that come while the caller is busy are given as one. Ends with the final record.

        Raises:
            Flux2Error: The task was settled without a final record, see `result`.
            InvalidRequestError: `every` is no number of seconds above 0.
            ConfigurationError: Followed in another event loop.
        """
        if every is not None and not (is_number(every) and every > 0):
            raise InvalidRequestError(f"every: {every!r} given, it must be a number of seconds above 0, or None")
        self._watch_again()
        outcome = self._outcome
        shown: TaskRecord | None = None
        with nullcontext() if every is None else self._polled(every):
            while True:
                record = self.record
                if record is not None and not _same_stage(record, shown):
                    shown = record
                    yield record
                elif outcome.done:
                    break
                else:
                    outcome.check_loop()
                    self._changed = self._changed or Signal()
                    await self._changed.wait()
        if (shown is None or not shown.state.final) and outcome.error is not None:
            self._told = self._told or outcome is self._outcome
            raise outcome.error.with_traceback(None)

    @contextmanager
    def _polled(self, every: float) -> Iterator[None]:
        self._outcome.check_loop()
        self._every = [*(self._every or ()), every]
        if self._watching is not None:
            self._watching.poll_sooner(self)
        try:
            yield
        finally:
            self._every.remove(every)

    def _came_from(self, origin: Origin) -> None:
        """Know what it came from, unless it does: it was attached before that was known."""
        if self.request is None:
            self.request, self.ref, self.key = origin.request, origin.ref, origin.key
            self.group, self.metadata = origin.group, origin.metadata

    def _saw(self, record: TaskRecord) -> None:
        self.record = record
        self._wake()

    def _settle(self, result: ImageResult | None = None, error: Exception | None = None) -> bool:
        settled = self._outcome.settle(result, error)
        self._watching = None
        self._wake()
        return settled

    def _watch_again(self, timeout: float | None = None) -> None:
        """Have it watched again where it was given up and somebody was told, unless he only asks."""
        # As for asyncio, what is below 0 is what is left of a deadline that has passed.
        if timeout is not None and (not is_number(timeout) or math.isnan(timeout)):
            raise InvalidRequestError(f"timeout: {timeout!r} given, it must be a number of seconds, or None")
        if self._resume is not None and self._told and (timeout is None or timeout > 0):
            self._resume(self)

    def _reopen(self) -> None:
        self._outcome, self._resume, self._told = Outcome(), None, False

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.wake()


def _same_stage(one: TaskRecord, other: TaskRecord | None) -> bool:
    return other is not None and (one.state_text, one.progress) == (other.state_text, other.progress)


def unfinished(task: ImageTask, seconds: float) -> TaskTimeoutError:
    """The error of a wait that was over before its task was settled; `seconds` as its caller gave them."""
    spent = f" after {round(seconds, 2) or seconds:g} s" if seconds > 0 else ""
    text = f"task {task.id} is not finished{spent}; it goes on, so wait again at no cost"
    watching = task._watching  # noqa: SLF001  of this module
    if watching is not None and watching.unseen(task):
        text = (
            f"the service does not know task {task.id}{spent}: check the id and the account; a new task may take a "
            "while to be seen, so wait again at no cost"
        )
    return TaskTimeoutError(text, task=task)


_COMPLETION: Final = ("index", "request", "task", "result", "error", "group", "metadata")


@attrs.frozen(kw_only=True)
class Completion:
    """One request of `as_completed` that has come to its end.

    Attributes:
        index: Its place among the requests, from 0.
        request: The request itself.
        task: Its handle, or None when it was not accepted.
        error: What went wrong, or None when there is a result.
        group: Whose it is, see `as_completed`, or None.
        metadata: What was given with it, or None.
    """

    index: int
    request: Request
    task: ImageTask | None = None
    _result: ImageResult | None = attrs.field(default=None, alias="result")
    error: Exception | None = None
    group: str | None = None
    metadata: Mapping[str, Any] | None = None

    def __getstate__(self) -> dict[str, object]:
        # By the public names, as in version 0.1.0; a mapping that cannot be written to cannot be pickled either.
        state: dict[str, object] = {
            name: self._result if name == "result" else getattr(self, name) for name in _COMPLETION
        }
        return state | {"metadata": None if self.metadata is None else dict(self.metadata)}

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in ({"group": None, "metadata": None} | state).items():
            object.__setattr__(self, "_result" if name == "result" else name, value)

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.__getstate__().items() if name != "metadata"}
        return f"Completion({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def result(self) -> ImageResult:
        """The picture; where `error` is not None, reading this raises it."""
        if self._result is None:
            raise self.error.with_traceback(None) if self.error else ValueError("neither a result nor an error given")
        return self._result
