"""The emulator's one source of time: the event loop's clock, and wall-clock stamps derived from it.

So a test on virtual time sees time stamps that agree with the waiting.
"""

import time
from asyncio import AbstractEventLoop
from datetime import UTC, datetime
from email.utils import formatdate


class Clock:
    """The loop's clock with a wall-clock beginning; `started` is the loop's time at the start."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self.started: float = loop.time()
        self._wall_started = time.time()

    def now(self) -> float:
        """Seconds of the loop's clock."""
        return self._loop.time()

    def wall(self, moment: float) -> float:
        """Unix seconds of a moment of the loop's clock."""
        return self._wall_started + moment - self.started

    def milliseconds(self, moment: float) -> int:
        """Unix milliseconds of a moment, as the API writes them."""
        return int(self.wall(moment) * 1000)

    def http_date(self, moment: float) -> str:
        """A moment as an HTTP header has it; whole seconds, rounded down."""
        return formatdate(self.wall(moment), usegmt=True)

    def iso(self, moment: float) -> str:
        """A moment as the upload endpoints write it."""
        stamp = datetime.fromtimestamp(self.wall(moment), UTC)
        return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
