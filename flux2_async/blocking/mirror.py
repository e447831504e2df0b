"""What stands in other threads for what a session gives: tasks, handles, completions and iterators."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from datetime import datetime
from functools import partial, wraps
from typing import Any, Concatenate, Final, Generic, Never, NoReturn, ParamSpec, Self, TypeVar, cast, get_args, overload

from flux2_async._shown.frames import Secret
from flux2_async.blocking.loop_thread import LoopThread
from flux2_async.models import ImageResult, Request, TaskRecord, TaskState
from flux2_async.models.submission_state import SubmissionState
from flux2_async.session.enqueued import SubmissionHandle
from flux2_async.tasks.handle import Completion, ImageTask

P = ParamSpec("P")
T = TypeVar("T")
# What is mirrored.
M = TypeVar("M")


class Mirror(Generic[M]):
    """What stands in other threads for something of the session's; two are equal when they stand for the same."""

    __slots__ = ("_mirrored", "_thread")

    def __init__(self, thread: LoopThread, mirrored: M) -> None:
        self._thread = thread
        self._mirrored = mirrored

    def __eq__(self, other: object) -> bool:
        return self._mirrored == other._mirrored if isinstance(other, Mirror) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._mirrored)

    def __repr__(self) -> str:
        return repr(self._mirrored).replace(type(self._mirrored).__name__, type(self).__name__, 1)


class Attribute(Generic[T]):
    """An attribute of what is mirrored, read `in_loop` where it is worked out from what changes there.

    A task is mirrored as well.
    """

    def __init__(self, *, in_loop: bool = False) -> None:
        self._in_loop = in_loop

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        (mirrored,) = get_args(vars(owner)["__orig_bases__"][0])
        self.__doc__ = held.__doc__ if isinstance(held := vars(mirrored).get(name), property) else None

    @overload
    def __get__(self, mirror: None, owner: type) -> Self: ...
    @overload
    def __get__(self, mirror: Mirror[Any], owner: type) -> T: ...
    def __get__(self, mirror: Mirror[Any] | None, owner: type) -> Self | T:
        if mirror is None:
            return self
        thread, read = mirror._thread, partial(getattr, mirror._mirrored, self._name)  # noqa: SLF001  one thing in two classes
        value: Any = thread.call(read, also_closed=True) if self._in_loop else read()
        return cast("T", BlockingTask(thread, value)) if isinstance(value, ImageTask) else value

    def __set__(self, mirror: Mirror[Any], value: Never) -> NoReturn:
        raise AttributeError(f"{self._name} can only be read")


def awaited(method: Callable[Concatenate[M, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Mirror[M], P], T]:
    """Give a method that is awaited as one that blocks."""

    @wraps(method)
    def call(self: Mirror[M], /, *args: P.args, **options: P.kwargs) -> T:
        given = Secret((args, options))
        del args, options
        start: Callable[..., Coroutine[Any, Any, T]] = method
        return self._thread.run(lambda: start(self._mirrored, *given.reveal()[0], **given.reveal()[1]))

    return call


def called(
    method: Callable[Concatenate[M, P], T], *, also_closed: bool = False
) -> Callable[Concatenate[Mirror[M], P], T]:
    """Give a method that is not awaited as one that runs in the session's thread, or `also_closed` without one."""

    @wraps(method)
    def call(self: Mirror[M], /, *args: P.args, **options: P.kwargs) -> T:
        return self._thread.call(lambda: method(self._mirrored, *args, **options), also_closed=also_closed)

    return call


class BlockingIterator(Generic[T]):
    """An iterator that holds something in the session; leaving it as a context manager, or `close`, lets go of it.

    Made by `BlockingSession` and what it gives.
    """

    def __init__(self, items: Generator[T, None, None]) -> None:
        self._items = items

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return next(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration."""
        self._items.close()


class BlockingTask(Mirror[ImageTask]):
    """A task at the service; see `ImageTask`, whose attributes it has.

    Made by `BlockingSession.submit` and `attach`. Two of them are equal when they stand for the same handle.
    """

    __slots__ = ()

    id: Attribute[str] = Attribute()
    request: Attribute[Request | None] = Attribute()
    record: Attribute[TaskRecord | None] = Attribute()
    ref: Attribute[str | None] = Attribute()
    key: Attribute[str | None] = Attribute()
    group: Attribute[str | None] = Attribute()
    metadata: Attribute[Mapping[str, Any] | None] = Attribute()
    state: Attribute[TaskState] = Attribute()
    error: Attribute[Exception | None] = Attribute()
    wait: Final = awaited(ImageTask.wait)
    expectation: Final = called(ImageTask.expectation)

    def done(self) -> bool:
        """Whether `result` gives or raises at once."""
        return self._mirrored.done()

    def result(self, timeout: float | None = None) -> ImageResult:
        """Wait for the picture; see `ImageTask.result`."""
        task = self._mirrored
        if self._thread.ended and task.done():
            return task._outcome.get()  # noqa: SLF001  what has ended outlives the session
        return self._thread.run(lambda: task.result(timeout))

    def updates(self, *, every: float | None = None) -> BlockingIterator[TaskRecord]:
        """Follow the task; see `ImageTask.updates`."""
        return BlockingIterator(self._updates(self._mirrored.updates(every=every)))

    def _updates(self, records: AsyncGenerator[TaskRecord, None]) -> Generator[TaskRecord, None, None]:
        try:
            while isinstance(record := self._thread.run(lambda: anext(records, None)), TaskRecord):
                yield record
        finally:
            self._thread.close(records.aclose)


class BlockingCompletion(Mirror[Completion]):
    """One request of `as_completed` that has come to its end; see `Completion`, whose attributes it has.

    Made by `BlockingSession.as_completed`.
    """

    __slots__ = ()

    index: Attribute[int] = Attribute()
    request: Attribute[Request] = Attribute()
    group: Attribute[str | None] = Attribute()
    metadata: Attribute[Mapping[str, Any] | None] = Attribute()
    error: Attribute[Exception | None] = Attribute()
    result: Attribute[ImageResult] = Attribute()
    task: Attribute[BlockingTask | None] = Attribute()


class BlockingHandle(Mirror[SubmissionHandle]):
    """A submission on its way; see `SubmissionHandle`, whose attributes it has. Its `result` gives the task.

    Made by `BlockingSession.enqueue`.
    """

    __slots__ = ()

    request: Attribute[Request] = Attribute()
    ref: Attribute[str] = Attribute()
    state: Attribute[SubmissionState] = Attribute(in_loop=True)
    position: Attribute[int | None] = Attribute(in_loop=True)
    expected_start: Attribute[datetime | None] = Attribute(in_loop=True)
    error: Attribute[Exception | None] = Attribute(in_loop=True)
    task: Attribute[BlockingTask | None] = Attribute(in_loop=True)
    expectation: Final = called(SubmissionHandle.expectation, also_closed=True)
    withdraw: Final = called(SubmissionHandle.withdraw, also_closed=True)

    @property
    def priority(self) -> int:
        """Higher goes first; may be set while it waits, see `SubmissionHandle.priority`."""
        return self._thread.call(lambda: self._mirrored.priority, also_closed=True)

    @priority.setter
    def priority(self, value: int) -> None:
        self._thread.call(lambda: setattr(self._mirrored, "priority", value), also_closed=True)

    def result(self, timeout: float | None = None) -> BlockingTask:
        """Wait until the service has accepted it.

        Args:
            timeout: Seconds. None: as long as it takes. It bounds this wait alone.

        Returns:
            The task.

        Raises:
            TimeoutError: It still waits.
            Flux2Error: As `submit`.
        """

        async def accepted() -> ImageTask:
            async with asyncio.timeout(timeout):
                return await self._mirrored

        return BlockingTask(self._thread, self._thread.run(accepted))
