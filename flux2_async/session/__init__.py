"""The session manager: what a submission goes through, from a request to its task."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flux2_async.session.enqueued import SubmissionHandle
    from flux2_async.session.lifecycle import Unsettled
    from flux2_async.session.session import Flux2Session
    from flux2_async.session.submission import SubmissionSteps

__all__ = ["Flux2Session", "SubmissionHandle", "SubmissionSteps", "Unsettled"]

_HOMES = {
    "Flux2Session": "session",
    "SubmissionHandle": "enqueued",
    "SubmissionSteps": "submission",
    "Unsettled": "lifecycle",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: batches use parts of a session before there is one."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
