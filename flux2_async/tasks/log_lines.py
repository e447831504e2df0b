"""What the session itself has to say of what happens, as lines of the log: an observer like any other."""

import logging

from flux2_async.errors import TransportError
from flux2_async.models.events import LimitLearned, OutageBegan, OutageEnded, Paused, SessionEvent, SubmissionChanged
from flux2_async.models.submission_state import SubmissionEvent

logger: logging.Logger = logging.getLogger("flux2_async")


class LogLines:
    """Writes at INFO 429s, pauses, what they teach, and when that is over; as warnings what a person should know."""

    def __init__(self, *, shared: bool = False) -> None:
        """Begin; `shared`: the limit is shared by a coordination, so that none need be advised."""
        self._hinted = False
        self._hint = (
            "createTask was refused by 429 although this session was given %d in %g s: a program outside the shared "
            "state uses this account as well, the account's limit is lower, or processes that share it were given "
            "different limits, of which that of the last one opened counts; give all the same, or a lower one"
            if shared
            else "createTask was refused by 429 although this session keeps to %d in %g s: something else uses this "
            "account as well, or its limit is lower; share the limit by coordination=..., or give a lower one"
        )

    def __call__(self, event: SessionEvent) -> None:
        """Write what is worth a line."""
        match event:
            case Paused():
                self._paused(event)
            case LimitLearned(limit=None, rate_limit=rate):
                logger.info("the whole limit is used again: %d in %g s", rate.limit, rate.period)
            case LimitLearned(limit=limit, rate_limit=rate):
                given = (limit, rate.limit, rate.period)
                logger.info("the limit is taken to be %d for now, instead of %d in %g s", *given)
            case OutageBegan(error=error):
                text = "createTask gets no answers (%s); one at a time is tried until one is answered"
                logger.warning(text, error if isinstance(error, TransportError) else type(error).__name__)
            case OutageEnded(seconds=seconds):
                logger.info("createTask is answered again after %.1f s; all submissions go on", seconds)
            case SubmissionChanged(event=SubmissionEvent.UNCLEAR):
                logger.warning("submission %s: it is not known whether the service accepted it", event.ref)
            case _:
                pass

    def _paused(self, event: Paused) -> None:
        logger.info("submission %s was refused by 429: all submissions pause for %.1f s", event.ref, event.seconds)
        if event.rate_limit is not None and not self._hinted:
            self._hinted = True
            logger.warning(self._hint, event.rate_limit.limit, event.rate_limit.period)
