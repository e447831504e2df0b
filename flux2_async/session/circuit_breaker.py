"""A service that is away: everybody waits, and one at a time tries whether it is back."""

import asyncio
import math
import random
from contextlib import suppress
from typing import Final

from flux2_async.tasks.outcome import Signal

LONGEST_PAUSE: Final = 60.0
# Seconds. A try that costs nothing when it fails is repeated soon.
LONGEST_FREE_PAUSE: Final = 5.0
CLOCK_TICK: Final = 0.001
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
        self._news = Signal()
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

    async def passed(self, who: object) -> None:
        """Wait until one may submit, and take the turn: alone, to try for all others, while the service is away."""
        while True:
            await self.wait()
            with suppress(CircuitOpen):
                return self.take(who)

    async def wait(self, until: float = math.inf) -> None:
        """Wait until somebody may submit; who that is shows `take`.

        Raises:
            CircuitOpen: Nobody may until that loop time.
        """
        while not self._is_free():
            if until <= self._loop.time() + CLOCK_TICK:
                raise CircuitOpen
            wake_at = min(until, self._until if self._trying is None else math.inf)
            self._waiting += 1
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(None if wake_at == math.inf else wake_at):
                        await self._news.wait()
            finally:
                self._waiting -= 1

    def take(self, who: object) -> None:
        """Take the turn, until `done`, where submissions take turns.

        Raises:
            CircuitOpen: Another one has it, or nobody yet.
        """
        if self.reason is not None and self._trying is not who:
            if not self._is_free():
                raise CircuitOpen
            self._trying = who

    def check(self, who: object) -> None:
        """Look whether the service went away after one had passed.

        Raises:
            CircuitOpen: It did.
        """
        if self.reason is not None and self._trying is not who:
            raise CircuitOpen

    def _is_free(self) -> bool:
        # A loop may call a clock tick early; asking again for the same instant would spin.
        due = self._until <= self._loop.time() + CLOCK_TICK
        return self.reason is None or (self._trying is None and due)

    def failed(self, who: object, reason: Exception, *, free: bool = False) -> None:
        """A submission found the service away; those who had left before the one that tries change nothing.

        `free`: trying again costs nothing for certain, so that the pauses stay short.
        """
        self._failures += 1
        if self._failures < self._threshold:
            return
        now = self._loop.time()
        self.reason = reason
        self._begun = min(self._begun, now)
        if self._trying in (None, who) and self._until <= now + CLOCK_TICK:
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
