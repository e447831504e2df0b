"""The session for code without an event loop, and how its calls become those of `Flux2Session`."""

import asyncio
import atexit
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping
from functools import partial, wraps
from inspect import signature
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeAlias, TypedDict, TypeVar, Unpack

import anyio.to_thread

import flux2_async
from flux2_async._shown.frames import Secret, made_without_frames, showable
from flux2_async.blocking.loop_thread import LoopThread
from flux2_async.blocking.mirror import (
    Attribute,
    BlockingCompletion,
    BlockingHandle,
    BlockingIterator,
    BlockingTask,
    Mirror,
    awaited,
    called,
)
from flux2_async.errors import ConfigurationError, InvalidRequestError
from flux2_async.models import RateLimit, Request
from flux2_async.models.service import Service
from flux2_async.session.as_completed import Labelled
from flux2_async.session.lifecycle import Unsettled
from flux2_async.session.session import Flux2Session
from flux2_async.session.submission import SubmissionSteps
from flux2_async.tasks.handle import Completion

P = ParamSpec("P")
T = TypeVar("T")

# Called with the ref immediately before each createTask call.
BlockingOnSend: TypeAlias = Callable[[str], object]

HTTP: Final = (
    "http: an aiohttp.ClientSession works only in its own event loop, and this session runs another one; leave it "
    "out, and pass connector=... to say how connections are made"
)
END: Final = object()


def _like(init: Callable[Concatenate[Flux2Session, P], None]) -> Callable[[Any], Callable[Concatenate[Any, P], None]]:
    """Give a constructor the arguments of the session's."""
    return wraps(init)


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


class _Settings(Mirror[Flux2Session]):
    """What a session keeps to."""

    service: Attribute[Service] = Attribute()
    rate_limit: Attribute[RateLimit | None] = Attribute()
    rate_limits: Attribute[tuple[RateLimit, ...]] = Attribute()
    max_running: Attribute[int | None] = Attribute()
    callback_settings: "Attribute[flux2_async.session.CallbackSettings | None]" = Attribute()


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
        super().__init__(LoopThread(), Flux2Session(*args, **options))

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

    generate: Final = awaited(Flux2Session.generate)
    credits: Final = awaited(Flux2Session.credits)
    fetch_record: Final = awaited(Flux2Session.fetch_record)
    upload: Final = awaited(Flux2Session.upload)
    download: Final = awaited(Flux2Session.download)
    download_url: Final = awaited(Flux2Session.download_url)
    drain: Final = awaited(Flux2Session.drain)
    deliver: Final = awaited(Flux2Session.deliver)
    remaining: Final = called(Flux2Session.remaining)
    notify: Final = called(Flux2Session.notify)
    pause: Final = called(Flux2Session.pause)
    statistics: Final = called(Flux2Session.statistics, also_closed=True)
    observe: Final = called(Flux2Session.observe, also_closed=True)
    estimate: Final = called(Flux2Session.estimate, also_closed=True)

    def accepts_callbacks(self) -> bool:
        """Whether `deliver` takes callbacks now: the session is open."""
        return self._thread.call(self._mirrored.accepts_callbacks)


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
