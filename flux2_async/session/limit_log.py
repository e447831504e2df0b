"""What becomes of the account's limit, as lines of the log: 429s, pauses, what they teach and when that is over."""

import asyncio
import logging

from flux2_async._limiter.permit import Permits
from flux2_async.models import RateLimit

__all__ = ["LimitLog"]

logger = logging.getLogger("flux2_async")


class LimitLog:
    """Tells of one session's limit.

    Args:
        rate: The limit the session was given, or None for none.
        limiter: What keeps it.
    """

    def __init__(self, rate: RateLimit | None, limiter: Permits) -> None:
        self._rate = rate
        self._limiter = limiter
        self._learned: int | None = None
        self._hinted = False

    def refused(self, ref: str) -> None:
        """A submission was refused by 429."""
        until = self._limiter.paused_until
        pause = 0.0 if until is None else until - asyncio.get_running_loop().time()
        logger.info("submission %s was refused by 429: all submissions pause for %.1f s", ref, pause)
        if self._rate is not None and not self._hinted:
            self._hinted = True
            logger.warning(
                "createTask was refused by 429 although this session keeps to %d in %g s: something else uses this "
                "account as well, or its limit is lower; share the limit by coordination=..., or give a lower one",
                self._rate.limit,
                self._rate.period,
            )
        self.look()

    def look(self) -> None:
        """An answer came, which may have changed what is known of the limit."""
        learned = self._limiter.learned_limit
        if learned == self._learned or self._rate is None:
            return
        self._learned = learned
        if learned is None:
            logger.info("the whole limit is used again: %d in %g s", self._rate.limit, self._rate.period)
        else:
            given = (learned, self._rate.limit, self._rate.period)
            logger.info("the limit is taken to be %d for now, instead of %d in %g s", *given)
