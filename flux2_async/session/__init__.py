"""The session manager: what a submission goes through, from a request to its task."""

from typing import TYPE_CHECKING, Final

from flux2_async._shown.names import lazily

if TYPE_CHECKING:
    from flux2_async.session.enqueued import SubmissionHandle
    from flux2_async.session.lifecycle import Unsettled
    from flux2_async.session.session import Flux2Session
    from flux2_async.session.submission import SubmissionSteps

__all__ = ["Flux2Session", "SubmissionHandle", "SubmissionSteps", "Unsettled"]

# Batches use parts of a session before there is one.
__getattr__: Final = lazily(
    __name__,
    {
        "Flux2Session": "session",
        "SubmissionHandle": "enqueued",
        "SubmissionSteps": "submission",
        "Unsettled": "lifecycle",
    },
)
