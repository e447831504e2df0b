"""The session for code without an event loop: `Flux2Session` on a loop of its own in a thread, nothing to be awaited.

    with BlockingSession() as flux:
        task = flux.submit(TextToImage("a red kettle on a slate worktop"))
        flux.download(task.result(timeout=300), "out/")

All that pays, waits and limits is `Flux2Session`; its docstrings hold here. Any number of threads may use one session.
"""

import asyncio
import atexit
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, suppress
from datetime import datetime
from functools import partial, wraps
from threading import Lock, Thread, get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

import anyio
import anyio.to_thread
import attrs
from anyio.from_thread import BlockingPortal

from flux2_async._http.credentials import Secret
from flux2_async._shown.frames import made_without_frames, showable
from flux2_async.errors import ConfigurationError, InvalidRequestError, SessionClosedError
from flux2_async.models import ImageResult, RateLimit, Request, TaskRecord, TaskState
from flux2_async.models.service import Service
from flux2_async.models.submission_state import SubmissionState
from flux2_async.session.as_completed import Labelled
from flux2_async.session.enqueued import SubmissionHandle
from flux2_async.session.lifecycle import Unsettled
from flux2_async.session.session import Flux2Session
from flux2_async.session.submission import OnSend, SubmissionSteps
from flux2_async.tasks.handle import Completion, ImageTask

if TYPE_CHECKING:
    from flux2_async.models.expectation import Expectation
    from flux2_async.session.callback_settings import CallbackSettings

__all__ = ["BlockingCompletion", "BlockingHandle", "BlockingIterator", "BlockingSession", "BlockingTask"]

P = ParamSpec("P")
T = TypeVar("T")

NOT_OPEN: Final = "the session is not open; use `with BlockingSession(...)` or open()"
FORKED: Final = (
    "the session was opened before this process was forked, and its thread is in the parent process alone; open a new "
    "session in the child"
)
OWN_THREAD: Final = (
    "called in the session's own thread, as by an observer, which would wait for itself; call it in another thread"
)
HTTP: Final = (
    "http: an aiohttp.ClientSession works in its own event loop alone, and this session has one of its own; leave it "
    "out, and pass connector=... where connections are to be made otherwise"
)
END: Final = object()


def _like(init: Callable[Concatenate[Flux2Session, P], None]) -> Callable[[Any], Callable[Concatenate[Any, P], None]]:
    """Give a constructor the arguments of the session's."""
    return wraps(init)


def _awaited(
    method: Callable[Concatenate[Flux2Session, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["BlockingSession", P], T]:
    """Give a method of the session that is awaited as one that blocks."""

    @wraps(method)
    def call(self: "BlockingSession", /, *args: P.args, **options: P.kwargs) -> T:
        given = Secret((args, options))
        del args, options
        start: Callable[..., Coroutine[Any, Any, T]] = method
        return self._run(lambda: start(self._flux, *given.reveal()[0], **given.reveal()[1]))

    return call


def _plain(
    method: Callable[Concatenate[Flux2Session, P], T], *, also_closed: bool = False
) -> Callable[Concatenate["BlockingSession", P], T]:
    """Give a method of the session that is not awaited as one that runs in the session's thread.

    Args:
        method: The method.
        also_closed: Whether it works on a session that is not open.
    """

    @wraps(method)
    def call(self: "BlockingSession", /, *args: P.args, **options: P.kwargs) -> T:
        ask = self._look if also_closed else self._in_loop
        return ask(lambda: method(self._flux, *args, **options))

    return call


@showable
@made_without_frames
class BlockingSession:
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
        self._flux = Flux2Session(*args, **options)
        self._lock = Lock()
        self._portal: BlockingPortal | None = None
        self._thread = ExitStack()
        self._process = self._thread_id = 0

    def __repr__(self) -> str:
        return repr(self._flux).replace("Flux2Session", "BlockingSession", 1)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Start the thread and make the session usable; see `Flux2Session.open`.

        Raises:
            RuntimeError: It was opened before this process was forked.
        """
        self._check_process()
        with self._lock, ExitStack() as thread:
            if self._portal is not None:
                raise SessionClosedError("the session is open already; use it as it is")
            portal = _started(thread)
            _result(portal, self._flux.open)
            self._thread_id, self._process = portal.call(get_ident), os.getpid()
            self._portal, self._thread = portal, thread.pop_all()
        atexit.register(self.close)

    def close(self, grace: float = 5.0) -> Unsettled:
        """Close the session and end its thread; see `Flux2Session.aclose`. Calling it again does nothing more.

        In a process that was forked it does nothing: the session is the parent's.

        Args:
            grace: Seconds for createTask calls under way.

        Returns:
            The tasks and submissions that were not settled, which are logged as well.
        """
        if self._portal is not None and self._process != os.getpid():
            return Unsettled()
        with self._lock:
            portal, self._portal = self._portal, None
        if portal is None:
            return Unsettled()
        atexit.unregister(self.close)
        # What was called before this is told that the session was closed; then whatever is left is ended.
        with self._thread:
            return _result(portal, lambda: self._flux.aclose(grace))

    def submit(
        self,
        request: Request,
        *,
        key: str | None = None,
        max_wait: float | None = None,
        priority: int = 0,
        ref: str | None = None,
        on_send: Callable[[str], object] | None = None,
        steps: SubmissionSteps | None = None,
        group: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        resend_within: float | None = None,
    ) -> "BlockingTask":
        """Create a task; see `Flux2Session.submit`.

        Args:
            request: As there, like all others.
            key: As there.
            max_wait: As there.
            priority: As there.
            ref: As there.
            on_send: A plain function; it runs in a worker thread immediately before each createTask call.
            steps: As there: its methods are asynchronous, and run in the session's thread.
            group: As there.
            metadata: As there.
            headers: As there.
            resend_within: As there.

        Returns:
            The handle; the service has accepted the task.
        """
        given = Secret(headers)
        del headers
        return self._task(
            self._run(
                lambda: self._flux.submit(
                    request,
                    key=key,
                    max_wait=max_wait,
                    priority=priority,
                    ref=ref,
                    on_send=_in_worker(on_send),
                    steps=steps,
                    resend_within=resend_within,
                    group=group,
                    metadata=metadata,
                    headers=given.reveal(),
                )
            )
        )

    def enqueue(
        self,
        request: Request,
        *,
        key: str | None = None,
        max_wait: float | None = None,
        priority: int = 0,
        ref: str | None = None,
        on_send: Callable[[str], object] | None = None,
        group: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "BlockingHandle":
        """Begin what `submit` does and give a handle at once; see `Flux2Session.enqueue`.

        Args:
            request: As for `submit`, like all others.
            key: As for `submit`.
            max_wait: As for `submit`.
            priority: As for `submit`.
            ref: As for `submit`.
            on_send: As for `submit`.
            group: As for `submit`.
            metadata: As for `submit`.
            headers: As for `submit`.

        Returns:
            The handle; its `result` gives the task.
        """
        given = Secret(headers)
        del headers
        handle = self._in_loop(
            lambda: self._flux.enqueue(
                request,
                key=key,
                max_wait=max_wait,
                priority=priority,
                ref=ref,
                on_send=_in_worker(on_send),
                group=group,
                metadata=metadata,
                headers=given.reveal(),
            )
        )
        return BlockingHandle(self, handle)

    def as_completed(
        self, requests: Iterable[Request | Labelled], *, max_running: int | None = None, group: str | None = None
    ) -> "BlockingIterator[BlockingCompletion]":
        """Submit many requests and give each when it is finished; see `Flux2Session.as_completed`.

        Args:
            requests: Any iterable, also endless; taken in as the consumer keeps up, in the consumer's thread.
            max_running: As there.
            group: As there.

        Returns:
            An iterator, also a context manager; leaving it, as by `break`, stops the sending.
        """
        if not isinstance(requests, Iterable):
            raise InvalidRequestError(f"requests: {type(requests).__name__} given, it must be an iterable of requests")
        intake = _Intake()
        completions = self._in_loop(lambda: self._flux.as_completed(intake.run(), max_running=max_running, group=group))
        return BlockingIterator(self._completed(iter(requests), intake, completions))

    def _completed(
        self, requests: Iterator[Request | Labelled], intake: "_Intake", completions: AsyncGenerator[Completion, None]
    ) -> Generator["BlockingCompletion", None, None]:
        item: object = None
        try:
            while (found := self._run(partial(intake.next, completions, item))) is not END:
                item = None
                if isinstance(found, Completion):
                    yield BlockingCompletion(found, None if found.task is None else self._task(found.task))
                    continue
                # Here, because a cursor of a database belongs to the thread that made it.
                try:
                    item = next(requests, END)
                except Exception as error:  # noqa: BLE001  it comes out after the rest is given out
                    item = error
        finally:
            self._end(lambda: intake.aclose(completions))

    def attach(self, task_id: str) -> "BlockingTask":
        """Give a handle for a task that was submitted earlier or elsewhere; see `Flux2Session.attach`."""
        return self._task(self._in_loop(lambda: self._flux.attach(task_id)))

    def tasks(self) -> "tuple[BlockingTask, ...]":
        """Give the handles of everything outstanding, also of what nobody waits for any more."""
        return tuple(map(self._task, self._in_loop(self._flux.tasks)))

    def recover(self, ref: str, *, timeout: float | None = None) -> "BlockingTask":
        """Wait for the callback that tells which task an unclear submission became; see `Flux2Session.recover`."""
        return self._task(self._run(lambda: self._flux.recover(ref, timeout=timeout)))

    def give_up_after(self, task: "BlockingTask", seconds: float) -> None:
        """Settle a task that is not finished in time; see `Flux2Session.give_up_after`."""
        self._in_loop(lambda: self._flux.give_up_after(task._task, seconds))  # noqa: SLF001  one thing in two classes

    generate: Final = _awaited(Flux2Session.generate)
    fetch_record: Final = _awaited(Flux2Session.fetch_record)
    upload: Final = _awaited(Flux2Session.upload)
    download: Final = _awaited(Flux2Session.download)
    download_url: Final = _awaited(Flux2Session.download_url)
    credits: Final = _awaited(Flux2Session.credits)
    drain: Final = _awaited(Flux2Session.drain)
    remaining: Final = _plain(Flux2Session.remaining)
    notify: Final = _plain(Flux2Session.notify)
    pause: Final = _plain(Flux2Session.pause)
    observe: Final = _plain(Flux2Session.observe, also_closed=True)
    estimate: Final = _plain(Flux2Session.estimate, also_closed=True)
    statistics: Final = _plain(Flux2Session.statistics, also_closed=True)
    accepts_callbacks: Final = _plain(Flux2Session.accepts_callbacks)
    deliver: Final = _plain(Flux2Session.deliver)

    @property
    def service(self) -> Service:
        """What the session was given; Apikley without, whatever address the environment says."""
        return self._flux.service

    @property
    def rate_limit(self) -> RateLimit | None:
        """What the session keeps to; of several the one that allows the fewest in the long run."""
        return self._flux.rate_limit

    @property
    def rate_limits(self) -> tuple[RateLimit, ...]:
        """All that the session keeps to."""
        return self._flux.rate_limits

    @property
    def max_running(self) -> int | None:
        """What the session keeps to."""
        return self._flux.max_running

    @property
    def callback_settings(self) -> "CallbackSettings | None":
        """What addresses and bodies of callbacks are checked by; None for a session that expects none."""
        return self._flux.callback_settings

    def _task(self, task: ImageTask) -> "BlockingTask":
        return BlockingTask(self, task)

    def _check_process(self) -> None:
        if self._portal is not None and self._process != os.getpid():
            raise RuntimeError(FORKED)

    def _run(self, start: Callable[[], Awaitable[T]]) -> T:
        """Await something in the session's thread; what ends this wait cancels it there."""
        self._check_process()
        if self._thread_id == get_ident() and self._portal is not None:
            raise ConfigurationError(OWN_THREAD)
        with self._lock:
            if self._portal is None:
                raise SessionClosedError(NOT_OPEN)
            # Under the lock, so that closing finds it begun.
            future = self._portal.start_task_soon(start)
        try:
            return future.result()
        except CancelledError:
            raise SessionClosedError("the session was closed meanwhile") from None
        except BaseException:
            future.cancel()
            raise

    def _in_loop(self, call: Callable[[], T]) -> T:
        async def called() -> T:
            return call()

        return self._run(called)

    def _look(self, call: Callable[[], T]) -> T:
        """Ask in the session's thread while there is one; afterwards nothing changes any more."""
        return call() if self._portal is None else self._in_loop(call)

    def _end(self, close: Callable[[], Awaitable[object]]) -> None:
        """Close what an iterator left open; with the session, or in a child process, there is nothing left to close."""
        with suppress(SessionClosedError, ConfigurationError, RuntimeError):
            self._run(close)


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


async def _serve(started: Future[BlockingPortal]) -> None:
    async with BlockingPortal() as portal:
        started.set_result(portal)
        await portal.sleep_until_stopped()


def _result(portal: BlockingPortal, start: Callable[[], Awaitable[T]]) -> T:
    future = portal.start_task_soon(start)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _in_worker(on_send: Callable[[str], object] | None) -> OnSend | None:
    if on_send is None:
        return None

    async def told(ref: str) -> None:
        # Whoever closes the session does not wait for it.
        await anyio.to_thread.run_sync(on_send, ref, abandon_on_cancel=True)

    return told


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
        """Give the next completion, END after the last, or None where a request is wanted before.

        Args:
            completions: What `Flux2Session.as_completed` made of `run`.
            item: What was wanted; None: nothing was.
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


class BlockingIterator(Generic[T]):
    """An iterator that holds something in the session; leaving it as a context manager, or `close`, lets go of it."""

    def __init__(self, items: Generator[T, None, None]) -> None:
        self._items = items

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return next(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration."""
        self._items.close()


@attrs.frozen(repr=False)
class BlockingTask:
    """A task at the service; see `ImageTask`, whose attributes it has.

    Two of them are equal when they stand for the same handle.
    """

    _session: BlockingSession
    _task: ImageTask

    def __repr__(self) -> str:
        return repr(self._task).replace("ImageTask", "BlockingTask", 1)

    @property
    def id(self) -> str:
        """The service's id."""
        return self._task.id

    @property
    def request(self) -> Request | None:
        """What was sent; None for an attached task."""
        return self._task.request

    @property
    def record(self) -> TaskRecord | None:
        """The last record seen, or None before the first poll."""
        return self._task.record

    @property
    def ref(self) -> str | None:
        """The name of its submission, or None for an attached task."""
        return self._task.ref

    @property
    def key(self) -> str | None:
        """The caller's own name for it, or None."""
        return self._task.key

    @property
    def group(self) -> str | None:
        """Whose it is, or None."""
        return self._task.group

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """What the caller gave with it, or None."""
        return self._task.metadata

    @property
    def state(self) -> TaskState:
        """Where the task was when it was last polled; `WAITING` before the first poll."""
        return self._task.state

    @property
    def error(self) -> Exception | None:
        """What it was settled with instead of a picture; None while it is outstanding, or has one."""
        return self._task.error

    def done(self) -> bool:
        """Whether `result` gives or raises at once."""
        return self._task.done()

    def expectation(self) -> "Expectation":
        """How long it takes; see `ImageTask.expectation`."""
        return self._session._in_loop(self._task.expectation)  # noqa: SLF001  one thing in two classes

    def result(self, timeout: float | None = None) -> ImageResult:
        """Wait for the picture; see `ImageTask.result`."""
        if self._session._portal is None and self._task.done():  # noqa: SLF001  one thing in two classes
            return self._task._outcome.get()  # noqa: SLF001  what has ended outlives the session
        return self._session._run(lambda: self._task.result(timeout))  # noqa: SLF001  likewise

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the task is settled, without raising its outcome; see `ImageTask.wait`."""
        return self._session._run(lambda: self._task.wait(timeout))  # noqa: SLF001  likewise

    def updates(self, *, every: float | None = None) -> BlockingIterator[TaskRecord]:
        """Follow the task; see `ImageTask.updates`."""
        return BlockingIterator(self._updates(self._task.updates(every=every)))

    def _updates(self, records: AsyncGenerator[TaskRecord, None]) -> Generator[TaskRecord, None, None]:
        run = self._session._run  # noqa: SLF001  likewise
        try:
            while isinstance(record := run(lambda: anext(records, None)), TaskRecord):
                yield record
        finally:
            self._session._end(records.aclose)  # noqa: SLF001  likewise


@attrs.frozen
class BlockingCompletion:
    """One request of `as_completed` that has come to its end; see `Completion`.

    Attributes:
        task: Its handle, or None when it was not accepted.
    """

    _completion: Completion
    task: BlockingTask | None

    @property
    def index(self) -> int:
        """Its place among the requests, from 0."""
        return self._completion.index

    @property
    def request(self) -> Request:
        """The request itself."""
        return self._completion.request

    @property
    def group(self) -> str | None:
        """Whose it is, or None."""
        return self._completion.group

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """What was given with it, or None."""
        return self._completion.metadata

    @property
    def error(self) -> Exception | None:
        """What went wrong, or None when there is a result."""
        return self._completion.error

    @property
    def result(self) -> ImageResult:
        """The picture; where `error` is not None, reading this raises it."""
        return self._completion.result


@attrs.define(eq=False, repr=False)
class BlockingHandle:
    """A submission on its way; see `SubmissionHandle`, whose attributes it has. Its `result` gives the task."""

    _session: BlockingSession
    _handle: SubmissionHandle

    def __repr__(self) -> str:
        return repr(self._handle).replace("SubmissionHandle", "BlockingHandle", 1)

    @property
    def request(self) -> Request:
        """What is to be submitted."""
        return self._handle.request

    @property
    def ref(self) -> str:
        """The name of the submission; where a key is joined, that of the one that had it."""
        return self._handle.ref

    @property
    def state(self) -> SubmissionState:
        """Where it stands; see `SubmissionHandle.state`."""
        return self._look(lambda: self._handle.state)

    @property
    def position(self) -> int | None:
        """How many submissions are before it; None: it does not wait."""
        return self._look(lambda: self._handle.position)

    @property
    def expected_start(self) -> datetime | None:
        """When it is expected to be sent, aware; None: it does not wait, or nobody knows."""
        return self._look(lambda: self._handle.expected_start)

    @property
    def task(self) -> BlockingTask | None:
        """Its task, without waiting; None as long as there is none, or where it ended without one."""
        task = self._look(lambda: self._handle.task)
        return None if task is None else BlockingTask(self._session, task)

    @property
    def error(self) -> Exception | None:
        """What it ended with instead of a task, or its task instead of a picture; None where there is no error."""
        return self._look(lambda: self._handle.error)

    @property
    def priority(self) -> int:
        """Higher goes first; may be set while it waits, see `SubmissionHandle.priority`."""
        return self._look(lambda: self._handle.priority)

    @priority.setter
    def priority(self, value: int) -> None:
        self._look(lambda: setattr(self._handle, "priority", value))

    def expectation(self) -> "Expectation":
        """How long it takes from the call of `enqueue` to the picture; see `SubmissionHandle.expectation`."""
        return self._look(self._handle.expectation)

    def withdraw(self) -> bool:
        """Take the submission back, if it is not too late; see `SubmissionHandle.withdraw`."""
        return self._look(self._handle.withdraw)

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
                return await self._handle

        return BlockingTask(self._session, self._session._run(accepted))  # noqa: SLF001  one thing in two classes

    def _look(self, call: Callable[[], T]) -> T:
        return self._session._look(call)  # noqa: SLF001  one thing in two classes
