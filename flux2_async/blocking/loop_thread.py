"""The thread in which a session's event loop runs."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from threading import Lock, Thread, get_ident
from typing import Final, ParamSpec, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from flux2_async._http.one_thread import OneThread
from flux2_async.errors import ConfigurationError, SessionClosedError

P = ParamSpec("P")
T = TypeVar("T")

NOT_OPEN: Final = "the session is not open; use `with BlockingSession(...)` or open()"
FORKED: Final = (
    "the session was opened before this process was forked, and its thread exists in the parent process only; open a "
    "new session in the child"
)
OWN_THREAD: Final = (
    "called in the session's own thread, as by an observer, which would wait for itself; call it in another thread"
)


class LoopThread:
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

    def call(self, call: Callable[[], T], *, also_closed: bool = False) -> T:
        """Call something there as long as it runs, and where that may be `also_closed` here afterwards."""

        async def called() -> T:
            return call()

        if not (also_closed and self.ended):
            return self.run(called)
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
