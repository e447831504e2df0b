"""Blocking work, one call after another, in a thread of its own."""

import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_Work = SimpleQueue[tuple["Future[Any]", Callable[[], Any]] | None]


class OneThread(Executor):
    """Takes work for as long as the interpreter runs.

    `ThreadPoolExecutor` takes none from when the main thread has ended on: then other threads may go on, and what was
    left open is closed.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._work: _Work = SimpleQueue()
        self._thread = Thread(target=_do, args=(self._work,), name=name, daemon=True)
        self._started = False
        # A thread that nobody gives any work ends.
        self._end = weakref.finalize(self, self._work.put, None)
        self._end.atexit = False

    def submit(self, call: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> "Future[T]":
        """See `Executor`."""
        if not self._end.alive:
            raise RuntimeError("this thread has ended")
        if not self._started:
            self._started = True
            self._thread.start()
        future: Future[T] = Future()
        self._work.put((future, partial(call, *args, **options)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002  as in `Executor`
        """Let it end when all work is done."""
        self._end()
        if wait and self._started:
            self._thread.join()


def _do(work: _Work) -> None:
    while (item := work.get()) is not None:
        future, call = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001  whoever asked for it is told
                future.set_exception(error)
        # What it was about is not kept until the next one comes.
        del item, future, call
