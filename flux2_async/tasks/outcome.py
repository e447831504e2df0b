"""A cell that is written once and read by many who wait.

Not an `asyncio.Future`: cancelling one of several who await a future cancels it for all.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar, cast

from flux2_async.errors import ConfigurationError

T = TypeVar("T")


def check_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Refuse any other event loop, and a thread that runs none.

    Raises:
        ConfigurationError: Called elsewhere; the text says how to call instead.
    """
    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:
        raise ConfigurationError(
            "called outside of the session's event loop; from another thread use "
            "`asyncio.run_coroutine_threadsafe(..., loop)`, or for plain methods `loop.call_soon_threadsafe`; code "
            "without an event loop has flux2_async.blocking.BlockingSession"
        ) from None
    if not here:
        raise ConfigurationError(
            "the session belongs to another event loop; open one session per event loop, in that loop, or come here by "
            "`asyncio.run_coroutine_threadsafe(..., loop)`; any thread may use flux2_async.blocking.BlockingSession"
        )


class Signal:
    """What many wait for, until the next `wake`; each may be cancelled without the others noticing."""

    __slots__ = ("_first", "_loop", "_others")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # Nearly every task is awaited once, and a dict takes as much memory as the rest of the wait.
        self._first: asyncio.Future[None] | None = None
        self._others: dict[asyncio.Future[None], None] | None = None

    def wake(self) -> None:
        """Let everybody go on who waits now, in the order in which they came."""
        first, others = self._first, self._others
        if first is None and not others:
            return
        self._first = self._others = None
        # Nobody goes on in a loop that was closed, and a future of it can no longer be written.
        if self._loop.is_closed():
            return
        if first is not None and not first.done():
            first.set_result(None)
        for future in others or ():
            if not future.done():
                future.set_result(None)

    def check_loop(self) -> None:
        """Refuse another event loop than the one this was made in.

        Raises:
            ConfigurationError: This is another one.
        """
        check_loop(self._loop)

    def wait(self) -> Coroutine[Any, Any, None]:
        """Wait for the next `wake`.

        Raises:
            ConfigurationError: Called in another event loop than the one it was made in.
        """
        return self._wait()

    async def _wait(self) -> None:
        check_loop(self._loop)
        future: asyncio.Future[None] = self._loop.create_future()
        if self._first is None and not self._others:
            self._first = future
        else:
            self._others = self._others or {}
            self._others[future] = None
        try:
            await future
        finally:
            if self._first is future:
                self._first = None
            elif self._others is not None:
                self._others.pop(future, None)


class Outcome(Signal, Generic[T]):
    """A value or an error, settled once.

    Attributes:
        done: Whether it is settled.
        error: The error it was settled with, or None.
    """

    __slots__ = ("_value", "done", "error")

    def __init__(self) -> None:
        super().__init__()
        self.done: bool = False
        self.error: Exception | None = None
        self._value: T | None = None

    def settle(self, value: T | None = None, error: Exception | None = None) -> bool:
        """Write the outcome; give False, and change nothing, when there is one already."""
        if self.done:
            return False
        self.done, self._value, self.error = True, value, error
        self.wake()
        return True

    def get(self) -> T:
        """Give the value or raise the error; only once it is done."""
        if self.error is not None:
            # Without this every reader would find the frames of all earlier readers in the traceback.
            raise self.error.with_traceback(None)
        # T may itself allow None, so an assertion would be wrong.
        return cast("T", self._value)

    def check_loop(self) -> None:
        """Refuse another event loop, unless it is settled.

        Raises:
            ConfigurationError: This is another one.
        """
        if not self.done:
            super().check_loop()

    def wait(self) -> Coroutine[Any, Any, None]:
        """Wait until it is settled, without raising the error."""
        # Handed on instead of wrapped: of what waits there may be thousands.
        return _nothing() if self.done else self._wait()


async def _nothing() -> None:
    pass
