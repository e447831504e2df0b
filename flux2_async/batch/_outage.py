"""A service that is away: everybody waits, and one at a time tries whether it is back."""

import asyncio
import math
from contextlib import suppress
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
        self._trying: object = None

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return max(0.0, self._loop.time() - self._begun)

    async def passed(self, who: object) -> None:
        """Wait until one may submit: alone, to try for all others, while the service is away; see `done`."""
        while self.reason is not None:
            left = self._until - self._loop.time()
            if self._trying is None and left <= 0:
                self._trying = who
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(left if self._trying is None else None):
                    await self._news.wait()

    def check(self, who: object) -> None:
        """Look whether the service went away after one had passed.

        Raises:
            Held: It did.
        """
        if self.reason is not None and self._trying is not who:
            raise Held

    def met(self, who: object, reason: Exception) -> None:
        """A submission found the service away; those who had left before the one that tries change nothing."""
        now = self._loop.time()
        self.reason = reason
        self._begun = min(self._begun, now)
        if self._trying in (None, who) and now >= self._until:
            self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
            self._until = now + self._pause

    def done(self, who: object) -> None:
        """One that had passed has come to its end, whichever; the next may try."""
        if self._trying is who:
            self._trying = None
            self._news.wake()

    def over(self) -> None:
        """The service answered."""
        if self.reason is not None:
            self.reason = self._trying = None
            self._begun, self._pause, self._until = math.inf, 0.0, -math.inf
            self._news.wake()
