"""The session for code without an event loop: `Flux2Session` on a loop of its own in a thread, nothing to be awaited.

    with BlockingSession() as flux:
        task = flux.submit(TextToImage("a red kettle on a slate worktop"))
        flux.download(task.result(timeout=300), "out/")

All that pays, waits and limits is `Flux2Session`; its docstrings hold here. Any number of threads may use one session.
"""

import asyncio
import atexit
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import datetime
from functools import partial, wraps
from inspect import signature
from threading import Lock, Thread, get_ident
from typing import (
    Any,
    Concatenate,
    Final,
    Generic,
    Never,
    NoReturn,
    ParamSpec,
    Self,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    get_args,
    overload,
)

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal

import flux2_async
from flux2_async._http.credentials import Secret
from flux2_async._http.one_thread import OneThread
from flux2_async._shown.frames import made_without_frames, showable
from flux2_async.errors import ConfigurationError, InvalidRequestError, SessionClosedError
from flux2_async.models import ImageResult, RateLimit, Request, TaskRecord, TaskState
from flux2_async.models.service import Service
from flux2_async.models.submission_state import SubmissionState
from flux2_async.session.as_completed import Labelled
from flux2_async.session.enqueued import SubmissionHandle
from flux2_async.session.lifecycle import Unsettled
from flux2_async.session.session import Flux2Session
from flux2_async.session.submission import SubmissionSteps
from flux2_async.tasks.handle import Completion, ImageTask

__all__ = [
    "BlockingCompletion",
    "BlockingHandle",
    "BlockingIterator",
    "BlockingSession",
    "BlockingTask",
    "EnqueueOptions",
    "SubmitOptions",
]

P = ParamSpec("P")
T = TypeVar("T")
# What is mirrored.
M = TypeVar("M")

# Called with the ref immediately before each createTask call.
BlockingOnSend: TypeAlias = Callable[[str], object]

NOT_OPEN: Final = "the session is not open; use `with BlockingSession(...)` or open()"
FORKED: Final = (
    "the session was opened before this process was forked, and its thread exists in the parent process only; open a "
    "new session in the child"
)
OWN_THREAD: Final = (
    "called in the session's own thread, as by an observer, which would wait for itself; call it in another thread"
)
HTTP: Final = (
    "http: an aiohttp.ClientSession works only in its own event loop, and this session runs another one; leave it "
    "out, and pass connector=... to say how connections are made"
)
END: Final = object()


class _LoopThread:
    """The thread in which an event loop runs, and in it all that one session does; any thread may ask it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._portal: BlockingPortal | None = None
        self._stack = ExitStack()
        self._process = self._id = 0

    @property
    def ended(self) -> bool:
        """Whether there is none; nothing changes any more then."""
        return self._portal is None

    @property
    def forked(self) -> bool:
        """Whether it is another process's."""
        return self._portal is not None and self._process != os.getpid()

    def start(self, first: Callable[[], Awaitable[object]]) -> None:
        """Start it with something to be awaited, whose failure ends it again."""
        self._check_process()
        with self._lock, ExitStack() as stack:
            if self._portal is not None:
                raise SessionClosedError("the session is open already; use it as it is")
            portal = _started(stack)
            _wait(portal.start_task_soon(first))
            self._id, self._process = portal.call(get_ident), os.getpid()
            self._portal, self._stack = portal, stack.pop_all()

    def end(self, last: Callable[[], Awaitable[T]]) -> T | None:
        """End it after something to be awaited; None where it has ended before."""
        with self._lock:
            portal, self._portal = self._portal, None
        if portal is None:
            return None
        # What was called before this is told that the session was closed; then whatever is left is ended.
        with self._stack:
            return _wait(portal.start_task_soon(last))

    def run(self, start: Callable[[], Awaitable[T]]) -> T:
        """Await something there; what ends this wait cancels it there."""
        self._check_process()
        if self._id == get_ident() and self._portal is not None:
            raise ConfigurationError(OWN_THREAD)
        with self._lock:
            if self._portal is None:
                raise SessionClosedError(NOT_OPEN)
            # Under the lock, so that closing finds it begun.
            future = self._portal.start_task_soon(start)
        try:
            return _wait(future)
        except CancelledError:
            raise SessionClosedError("the session was closed meanwhile") from None

    def call(self, call: Callable[[], T]) -> T:
        """Call something there."""

        async def called() -> T:
            return call()

        return self.run(called)

    def look(self, call: Callable[[], T]) -> T:
        """Call something there as long as it runs, and here afterwards."""
        if not self.ended:
            return self.call(call)
        try:
            return call()
        except SessionClosedError:
            # In words for those who write `with`.
            raise SessionClosedError(NOT_OPEN) from None

    def close(self, close: Callable[[], Awaitable[object]]) -> None:
        """Close what an iterator left open; with the session, or in a child process, there is nothing left to close."""
        with suppress(SessionClosedError, ConfigurationError, RuntimeError):
            self.run(close)

    def _check_process(self) -> None:
        if self.forked:
            raise RuntimeError(FORKED)


class _Mirror(Generic[M]):
    """What stands in other threads for something of the session's; two are equal when they stand for the same."""

    __slots__ = ("_mirrored", "_thread")

    def __init__(self, thread: _LoopThread, mirrored: M) -> None:
        self._thread = thread
        self._mirrored = mirrored

    def __eq__(self, other: object) -> bool:
        return self._mirrored == other._mirrored if isinstance(other, _Mirror) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._mirrored)

    def __repr__(self) -> str:
        return repr(self._mirrored).replace(type(self._mirrored).__name__, type(self).__name__, 1)


class _Attribute(Generic[T]):
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
    def __get__(self, mirror: _Mirror[Any], owner: type) -> T: ...
    def __get__(self, mirror: _Mirror[Any] | None, owner: type) -> Self | T:
        if mirror is None:
            return self
        thread, read = mirror._thread, partial(getattr, mirror._mirrored, self._name)  # noqa: SLF001  one thing in two classes
        value: Any = thread.look(read) if self._in_loop else read()
        return cast("T", BlockingTask(thread, value)) if isinstance(value, ImageTask) else value

    def __set__(self, mirror: _Mirror[Any], value: Never) -> NoReturn:
        raise AttributeError(f"{self._name} can only be read")


def _like(init: Callable[Concatenate[Flux2Session, P], None]) -> Callable[[Any], Callable[Concatenate[Any, P], None]]:
    """Give a constructor the arguments of the session's."""
    return wraps(init)


def _awaited(method: Callable[Concatenate[M, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[_Mirror[M], P], T]:
    """Give a method that is awaited as one that blocks."""

    @wraps(method)
    def call(self: _Mirror[M], /, *args: P.args, **options: P.kwargs) -> T:
        given = Secret((args, options))
        del args, options
        start: Callable[..., Coroutine[Any, Any, T]] = method
        return self._thread.run(lambda: start(self._mirrored, *given.reveal()[0], **given.reveal()[1]))

    return call


def _plain(
    method: Callable[Concatenate[M, P], T], *, also_closed: bool = False
) -> Callable[Concatenate[_Mirror[M], P], T]:
    """Give a method that is not awaited as one that runs in the session's thread, or `also_closed` without one."""

    @wraps(method)
    def call(self: _Mirror[M], /, *args: P.args, **options: P.kwargs) -> T:
        ask = self._thread.look if also_closed else self._thread.call
        return ask(lambda: method(self._mirrored, *args, **options))

    return call


def _shown_as(method: Callable[..., object]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let `help` show the arguments of the session's method where a method of ours takes them as options."""

    def decorate(call: Callable[P, T]) -> Callable[P, T]:
        shown = signature(method)
        plain = shown.parameters["on_send"].replace(annotation=EnqueueOptions.__annotations__["on_send"])
        arguments = list((dict(shown.parameters) | {"on_send": plain}).values())
        back = signature(call).return_annotation
        vars(call)["__signature__"] = shown.replace(parameters=arguments, return_annotation=back)
        return call

    return decorate


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


class BlockingTask(_Mirror[ImageTask]):
    """A task at the service; see `ImageTask`, whose attributes it has.

    Made by `BlockingSession.submit` and `attach`. Two of them are equal when they stand for the same handle.
    """

    __slots__ = ()

    id: _Attribute[str] = _Attribute()
    request: _Attribute[Request | None] = _Attribute()
    record: _Attribute[TaskRecord | None] = _Attribute()
    ref: _Attribute[str | None] = _Attribute()
    key: _Attribute[str | None] = _Attribute()
    group: _Attribute[str | None] = _Attribute()
    metadata: _Attribute[Mapping[str, Any] | None] = _Attribute()
    state: _Attribute[TaskState] = _Attribute()
    error: _Attribute[Exception | None] = _Attribute()
    wait: Final = _awaited(ImageTask.wait)
    expectation: Final = _plain(ImageTask.expectation)

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


class BlockingCompletion(_Mirror[Completion]):
    """One request of `as_completed` that has come to its end; see `Completion`, whose attributes it has.

    Made by `BlockingSession.as_completed`.
    """

    __slots__ = ()

    index: _Attribute[int] = _Attribute()
    request: _Attribute[Request] = _Attribute()
    group: _Attribute[str | None] = _Attribute()
    metadata: _Attribute[Mapping[str, Any] | None] = _Attribute()
    error: _Attribute[Exception | None] = _Attribute()
    result: _Attribute[ImageResult] = _Attribute()
    task: _Attribute[BlockingTask | None] = _Attribute()


class BlockingHandle(_Mirror[SubmissionHandle]):
    """A submission on its way; see `SubmissionHandle`, whose attributes it has. Its `result` gives the task.

    Made by `BlockingSession.enqueue`.
    """

    __slots__ = ()

    request: _Attribute[Request] = _Attribute()
    ref: _Attribute[str] = _Attribute()
    state: _Attribute[SubmissionState] = _Attribute(in_loop=True)
    position: _Attribute[int | None] = _Attribute(in_loop=True)
    expected_start: _Attribute[datetime | None] = _Attribute(in_loop=True)
    error: _Attribute[Exception | None] = _Attribute(in_loop=True)
    task: _Attribute[BlockingTask | None] = _Attribute(in_loop=True)
    expectation: Final = _plain(SubmissionHandle.expectation, also_closed=True)
    withdraw: Final = _plain(SubmissionHandle.withdraw, also_closed=True)

    @property
    def priority(self) -> int:
        """Higher goes first; may be set while it waits, see `SubmissionHandle.priority`."""
        return self._thread.look(lambda: self._mirrored.priority)

    @priority.setter
    def priority(self, value: int) -> None:
        self._thread.look(lambda: setattr(self._mirrored, "priority", value))

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


class EnqueueOptions(TypedDict, total=False):
    """The options of `enqueue`; see `Flux2Session.submit`."""

    key: str | None
    max_wait: float | None
    priority: int
    ref: str | None
    on_send: BlockingOnSend | None
    group: str | None
    metadata: Mapping[str, Any] | None
    headers: Mapping[str, str] | None


class SubmitOptions(EnqueueOptions, total=False):
    """The options of `submit`; see `Flux2Session.submit`."""

    steps: SubmissionSteps | None
    resend_within: float | None


class _Settings(_Mirror[Flux2Session]):
    """What a session keeps to."""

    service: _Attribute[Service] = _Attribute()
    rate_limit: _Attribute[RateLimit | None] = _Attribute()
    rate_limits: _Attribute[tuple[RateLimit, ...]] = _Attribute()
    max_running: _Attribute[int | None] = _Attribute()
    callback_settings: "_Attribute[flux2_async.session.CallbackSettings | None]" = _Attribute()


@showable
@made_without_frames
class BlockingSession(_Settings):
    """Creates tasks within the account's limit and waits for their pictures, in code without an event loop.

    Use it as `with BlockingSession() as flux:`, or call `open` and `close`; one that is left open is closed when the
    program ends. The methods are those of `Flux2Session`, and block; handles and iterators likewise. Ctrl-C in a thread
    that waits ends that wait, as cancelling does: a createTask under way is finished, and its task stays in `tasks()`.

    After a fork the child process needs a session of its own: what is open in the parent raises RuntimeError there.
    Functions that are given, such as observers and `connector`, run in the session's thread and must not call it;
    `on_send` is a plain function here, and runs in a thread where it may. `TaskTimeoutError.task` is of no use here:
    `attach(error.task_id)` gives the handle.

    Args: As for `Flux2Session`, but for `http`, which works in an event loop of the caller's alone.

    Raises:
        ConfigurationError: Something is missing or malformed; the text says what to change.
    """

    @_like(Flux2Session.__init__)
    def __init__(self, *args: Any, **options: Any) -> None:
        if options.get("http") is not None:
            raise ConfigurationError(HTTP)
        super().__init__(_LoopThread(), Flux2Session(*args, **options))

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> Self:
        """Start the thread and make the session usable; see `Flux2Session.open`.

        Returns:
            The session itself.

        Raises:
            RuntimeError: It was opened before this process was forked.
        """
        self._thread.start(self._mirrored.open)
        atexit.register(self.close)
        return self

    def close(self, grace: float = 5.0) -> Unsettled:
        """Close the session and end its thread; see `Flux2Session.aclose`. Calling it again does nothing more.

        In a process that was forked it does nothing: the session is the parent's.

        Args:
            grace: Seconds for createTask calls under way.

        Returns:
            The tasks and submissions that were not settled, which are logged as well.
        """
        if self._thread.forked:
            return Unsettled()
        atexit.unregister(self.close)
        return self._thread.end(lambda: self._mirrored.aclose(grace)) or Unsettled()

    @_shown_as(Flux2Session.submit)
    def submit(self, request: Request, **options: Unpack[SubmitOptions]) -> BlockingTask:
        """Create a task; see `Flux2Session.submit`.

        `on_send` is a plain function here, which runs in a worker thread; the methods of `steps` are asynchronous, and
        run in the session's thread.
        """
        given = _hidden(options)
        del options
        task = self._thread.run(lambda: self._mirrored.submit(request, **given.reveal()))
        return BlockingTask(self._thread, task)

    @_shown_as(Flux2Session.enqueue)
    def enqueue(self, request: Request, **options: Unpack[EnqueueOptions]) -> BlockingHandle:
        """Begin what `submit` does and give a handle at once; see `Flux2Session.enqueue`.

        The handle's `result` gives the task; `on_send` is a plain function, as for `submit`.
        """
        given = _hidden(options)
        del options
        handle = self._thread.call(lambda: self._mirrored.enqueue(request, **given.reveal()))
        return BlockingHandle(self._thread, handle)

    def as_completed(
        self, requests: Iterable[Request | Labelled], *, max_running: int | None = None, group: str | None = None
    ) -> BlockingIterator[BlockingCompletion]:
        """Submit many requests and give each when it is finished; see `Flux2Session.as_completed`.

        Args:
            requests: Any iterable, also endless; taken in as the consumer keeps up, in the consumer's thread.
            max_running: As there.
            group: As there.

        Returns:
            An iterator, also a context manager; leaving it, as by `break`, stops the sending.
        """
        if not isinstance(requests, Iterable):
            given = type(requests).__name__
            raise InvalidRequestError(f"requests: {given} given, it must be an iterable; put a single one into a list")
        intake = _Intake()
        completions = self._thread.call(
            lambda: self._mirrored.as_completed(intake.run(), max_running=max_running, group=group)
        )
        return BlockingIterator(self._completed(iter(requests), intake, completions))

    def _completed(
        self, requests: Iterator[Request | Labelled], intake: "_Intake", completions: AsyncGenerator[Completion, None]
    ) -> Generator[BlockingCompletion, None, None]:
        item: object = None
        try:
            while (found := self._thread.run(partial(intake.next, completions, item))) is not END:
                item = None
                if isinstance(found, Completion):
                    yield BlockingCompletion(self._thread, found)
                    continue
                # Here, because a cursor of a database belongs to the thread that made it.
                try:
                    item = next(requests, END)
                except Exception as error:  # noqa: BLE001  it comes out after the rest is given out
                    item = error
        finally:
            self._thread.close(lambda: intake.aclose(completions))

    def attach(self, task_id: str) -> BlockingTask:
        """Give a handle for a task that was submitted earlier or elsewhere; see `Flux2Session.attach`."""
        return BlockingTask(self._thread, self._thread.call(lambda: self._mirrored.attach(task_id)))

    def tasks(self) -> tuple[BlockingTask, ...]:
        """Give the handles of everything outstanding, also of what nobody waits for any more."""
        return tuple(BlockingTask(self._thread, task) for task in self._thread.call(self._mirrored.tasks))

    def recover(self, ref: str, *, timeout: float | None = None) -> BlockingTask:
        """Wait for the callback that tells which task an unclear submission became; see `Flux2Session.recover`."""
        return BlockingTask(self._thread, self._thread.run(lambda: self._mirrored.recover(ref, timeout=timeout)))

    def give_up_after(self, task: BlockingTask, seconds: float) -> None:
        """Settle a task that is not finished in time; see `Flux2Session.give_up_after`."""
        self._thread.call(lambda: self._mirrored.give_up_after(task._mirrored, seconds))  # noqa: SLF001  one thing in two classes

    generate: Final = _awaited(Flux2Session.generate)
    credits: Final = _awaited(Flux2Session.credits)
    fetch_record: Final = _awaited(Flux2Session.fetch_record)
    upload: Final = _awaited(Flux2Session.upload)
    download: Final = _awaited(Flux2Session.download)
    download_url: Final = _awaited(Flux2Session.download_url)
    drain: Final = _awaited(Flux2Session.drain)
    deliver: Final = _awaited(Flux2Session.deliver)
    remaining: Final = _plain(Flux2Session.remaining)
    notify: Final = _plain(Flux2Session.notify)
    pause: Final = _plain(Flux2Session.pause)
    statistics: Final = _plain(Flux2Session.statistics, also_closed=True)
    observe: Final = _plain(Flux2Session.observe, also_closed=True)
    estimate: Final = _plain(Flux2Session.estimate, also_closed=True)

    def accepts_callbacks(self) -> bool:
        """Whether `deliver` takes callbacks now: the session is open."""
        return self._thread.call(self._mirrored.accepts_callbacks)


def _started(stack: ExitStack) -> BlockingPortal:
    """Start an event loop in a thread, which the stack ends.

    Not by `start_blocking_portal`, a generator: it would be closed at the end of a process that was forked meanwhile,
    and wait there for a thread that the parent has alone.
    """
    started: Future[BlockingPortal] = Future()
    thread = Thread(target=anyio.run, args=(_serve, started), name="flux2_async", daemon=True)
    thread.start()
    stack.callback(thread.join)
    portal = started.result()
    stack.callback(portal.call, portal.stop, True)  # noqa: FBT003  its one argument
    return portal


class _Threads(ThreadPoolExecutor):
    """Finds hosts by their names also when the main thread has ended: the usual one takes no call any more then."""

    def submit(self, call: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> Future[T]:
        """See `Executor`."""
        thread = OneThread("flux2_async call")
        try:
            return thread.submit(call, *args, **options)
        finally:
            thread.shutdown(wait=False)


async def _serve(started: Future[BlockingPortal]) -> None:
    # Python 3.12 starts no thread once the main one has ended, also not the one that would wait for these at the end.
    if sys.version_info[:2] != (3, 12):
        asyncio.get_running_loop().set_default_executor(_Threads())
    async with BlockingPortal() as portal:
        started.set_result(portal)
        await portal.sleep_until_stopped()


def _wait(future: Future[T]) -> T:
    """Wait for what goes on there; what ends this wait cancels it there."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _hidden(options: SubmitOptions | EnqueueOptions) -> Secret:
    """Hide options from those who look at frames; a plain `on_send` becomes one to be awaited."""
    on_send = options.get("on_send")
    return Secret(options if on_send is None else {**options, "on_send": partial(_in_worker, on_send)})


async def _in_worker(on_send: BlockingOnSend, ref: str) -> None:
    # Whoever closes the session does not wait for it.
    await anyio.to_thread.run_sync(on_send, ref, abandon_on_cancel=True)


class _Intake:
    """Requests of `as_completed`, which the consumer's thread hands over one at a time when one is wanted."""

    def __init__(self) -> None:
        self._wanted = asyncio.Event()
        self._given: asyncio.Queue[Any] = asyncio.Queue()
        self._pending: asyncio.Task[object] | None = None

    async def run(self) -> AsyncGenerator[Request | Labelled, None]:
        """Give what is handed over, until that is END or an error."""
        while True:
            self._wanted.set()
            item = await self._given.get()
            if item is END:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    async def next(self, completions: AsyncGenerator[Completion, None], item: object) -> object:
        """Take the item that was wanted, if one was; give the next of the completions that `run` has become.

        END after the last; None where a request is wanted before.
        """
        if item is not None:
            self._wanted.clear()
            self._given.put_nowait(item)
        pending = self._pending = self._pending or asyncio.create_task(_following(completions))
        wanted = asyncio.create_task(self._wanted.wait())
        try:
            await asyncio.wait([pending, wanted], return_when=asyncio.FIRST_COMPLETED)
        finally:
            wanted.cancel()
        if not pending.done():
            return None
        self._pending = None
        return pending.result()

    async def aclose(self, completions: AsyncGenerator[Completion, None]) -> None:
        """Stop the sending."""
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.gather(self._pending, return_exceptions=True)
        await completions.aclose()


async def _following(completions: AsyncGenerator[Completion, None]) -> object:
    return await anext(completions, END)
