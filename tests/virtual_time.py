"""An event loop whose clock jumps to the next timer when nothing else is left to do.

Sockets are real: the clock stands still while any of them has something to say, and while a worker thread is
busy (`busy_threads`). So an hour of polling an emulator in the same loop takes a blink, and no test sleeps.
"""

import asyncio
import selectors
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What a packet on loopback may take from one socket of this process to another, in real seconds.
SETTLE = 0.0005


class JumpingSelector(selectors.DefaultSelector):
    loop: "VirtualClockLoop"

    def select(self, timeout: float | None = None) -> Any:
        # The loop's own wake-up pipe is always registered; a second file is a socket.
        ready = super().select(SETTLE if len(self.get_map()) > 1 and timeout != 0 else 0)
        if ready or timeout == 0:
            return ready
        if timeout is None or self.loop.busy_threads:
            return super().select(timeout if timeout is None else min(timeout, 0.01))
        self.loop.jump(timeout)
        return []


class VirtualClockLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        selector = JumpingSelector()
        selector.loop = self
        self.busy_threads = 0
        self._now = 1000.0
        super().__init__(selector)

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        self._now += seconds

    @contextmanager
    def waiting_for_thread(self) -> Iterator[None]:
        self.busy_threads += 1
        try:
            yield
        finally:
            self.busy_threads -= 1

    def wait_for(self, future: asyncio.Future[Any]) -> None:
        """Let the clock stand still until the loop was told what a thread has done."""
        self.busy_threads += 1
        future.add_done_callback(self._one_less)

    def _one_less(self, _: object) -> None:
        self.busy_threads -= 1

    def run_in_executor(  # type: ignore[override]  # what is passed on need not be typed again
        self, executor: Any, func: Any, *args: Any
    ) -> Any:
        future = super().run_in_executor(executor, func, *args)
        self.wait_for(future)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        # From 3.12 on the end of the threads is waited for with a time-out, which the clock must not jump over.
        with self.waiting_for_thread():
            await super().shutdown_default_executor()


def timers() -> int:
    """How many timers the running loop has set that were not cancelled."""
    # asyncio has no public way to ask.
    loop: Any = asyncio.get_running_loop()
    return sum(not timer.cancelled() for timer in loop._scheduled)
