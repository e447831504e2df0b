"""The session manager: what a submission goes through, from a request to its task."""

from typing import TYPE_CHECKING, Final

from flux2_async._shown.names import lazily

if TYPE_CHECKING:
    from flux2_async.session.as_completed import Requests
    from flux2_async.session.callback_settings import CallbackSettings
    from flux2_async.session.enqueued import SubmissionHandle
    from flux2_async.session.lifecycle import Unsettled
    from flux2_async.session.session import Flux2Session
    from flux2_async.session.submission import OnSend, SubmissionSteps

__all__ = ["CallbackSettings", "Flux2Session", "OnSend", "Requests", "SubmissionHandle", "SubmissionSteps", "Unsettled"]

# Batches use parts of a session before there is one.
__getattr__: Final = lazily(
    __name__,
    callback_settings="CallbackSettings",
    session="Flux2Session",
    submission="OnSend SubmissionSteps",
    as_completed="Requests",
    enqueued="SubmissionHandle",
    lifecycle="Unsettled",
)
