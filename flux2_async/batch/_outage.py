"""A service that is away: everybody waits, and one at a time tries whether it is back."""

import asyncio
import math
from typing import Final

from flux2_async._outcome import Waiters

__all__ = ["Held", "Outage"]

FIRST_PAUSE: Final = 2.0
LONGEST_PAUSE: Final = 60.0


class Held(Exception):  # noqa: N818  no error: the request is sent later
    """The service went away while a request waited for its turn."""


class Outage:
    """The gate before every submission of a batch.

    Attributes:
        reason: What the last one met; None while the service is there.
    """

    def __init__(self) -> None:
        self.reason: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._news = Waiters()
        self._begun = math.inf
        self._pause = 0.0
        self._until = -math.inf
        self._trying = False

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return max(0.0, self._loop.time() - self._begun)

    async def passed(self) -> bool:
        """Wait until one may try to submit; give whether that is a try for all others."""
        while self.reason is not None:
            left = self._until - self._loop.time()
            if not self._trying and left <= 0:
                self._trying = True
                return True
            try:
                async with asyncio.timeout(None if self._trying else left):
                    await self._news.wait()
            except TimeoutError:
                pass
        return False

    def check(self) -> None:
        """Look whether the service went away after one had passed.

        Raises:
            Held: It did.
        """
        if self.reason is not None:
            raise Held

    def met(self, reason: Exception) -> None:
        """A submission found the service away; those who had left together with it change nothing."""
        now = self._loop.time()
        self._begun = min(self._begun, now)
        if now >= self._until:
            self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
            self._until = now + self._pause
        self.reason = reason
        self._trying = False
        self._news.wake()

    def over(self) -> None:
        """The service answered."""
        if self.reason is not None:
            self.reason = None
            self._begun, self._pause, self._until, self._trying = math.inf, 0.0, -math.inf, False
            self._news.wake()
