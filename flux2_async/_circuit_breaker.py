"""A service that is away: everybody waits, and one at a time tries whether it is back."""

import asyncio
import math
import random
from typing import Final

from flux2_async._outcome import Waiters

__all__ = ["CircuitBreaker", "CircuitOpen"]

LONGEST_PAUSE: Final = 60.0
# Seconds. A try that costs nothing when it fails is repeated soon.
LONGEST_FREE_PAUSE: Final = 5.0
# Of a pause, so that many processes do not come back as one.
JITTER: Final = 0.2


class CircuitOpen(Exception):  # noqa: N818  no error: the request is sent later
    """The service went away while a request waited for its turn."""


class CircuitBreaker:
    """The gate before every submission.

    Args:
        threshold: Failures in a row, from any submissions, by which the service is away.
        first_pause: Seconds before the first try; each further pause is twice as long, up to a minute.

    Attributes:
        reason: What the last one met; None while the service is there.
    """

    def __init__(self, threshold: int, first_pause: float) -> None:
        self.reason: Exception | None = None
        self._threshold = threshold
        self._first_pause = first_pause
        self._loop = asyncio.get_running_loop()
        self._news = Waiters()
        self._waiting = 0
        self._failures = 0
        self._begun = math.inf
        self._pause = 0.0
        self._until = -math.inf
        self._trying: object = None

    @property
    def waiting(self) -> int:
        """Submissions that are held."""
        return self._waiting

    @property
    def seconds(self) -> float:
        """How long the service has been away."""
        return max(0.0, self._loop.time() - self._begun)

    async def passed(self, who: object, *, until: float = math.inf) -> None:
        """Wait until one may submit: alone, to try for all others, while the service is away; see `done`.

        Args:
            who: The submission.
            until: Loop time.

        Raises:
            CircuitOpen: It may not until then.
        """
        now = self._loop.time()
        while self.reason is not None:
            if self._trying is None and self._until <= now:
                self._trying = who
                return
            if until <= now:
                raise CircuitOpen
            now = await self._wait(min(until, self._until if self._trying is None else math.inf))

    async def _wait(self, until: float) -> float:
        """Wait for news, or until then; give the time."""
        self._waiting += 1
        try:
            async with asyncio.timeout_at(None if until == math.inf else until):
                await self._news.wait()
        except TimeoutError:
            # A loop may call a clock tick early; asking again for the same instant would spin.
            return max(until, self._loop.time())
        finally:
            self._waiting -= 1
        return self._loop.time()

    def check(self, who: object) -> None:
        """Look whether the service went away after one had passed.

        Raises:
            CircuitOpen: It did.
        """
        if self.reason is not None and self._trying is not who:
            raise CircuitOpen

    def failed(self, who: object, reason: Exception, *, free: bool = False) -> None:
        """A submission found the service away; those who had left before the one that tries change nothing.

        Args:
            who: The submission.
            reason: What it met.
            free: Whether trying again costs nothing for certain, so that the pauses stay short.
        """
        self._failures += 1
        if self._failures < self._threshold:
            return
        now = self._loop.time()
        self.reason = reason
        self._begun = min(self._begun, now)
        if self._trying in (None, who) and now >= self._until:
            longest = LONGEST_FREE_PAUSE if free else LONGEST_PAUSE
            self._pause = min(max(2 * self._pause, self._first_pause), longest)
            self._until = now + self._pause * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  no secret

    def done(self, who: object) -> None:
        """One that had passed has come to its end, whichever; the next may try."""
        if self._trying is who:
            self._trying = None
            self._news.wake()

    def answered(self) -> None:
        """The service answered."""
        self._failures = 0
        if self.reason is not None:
            self.reason = self._trying = None
            self._begun, self._pause, self._until = math.inf, 0.0, -math.inf
            self._news.wake()
