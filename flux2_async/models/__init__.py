"""Requests, records, results and settings: frozen, checked when made, without I/O.

Names follow the API where it has one (`aspect_ratio`, `resolution`, `fail_code` for `failCode`).
"""

from typing import TYPE_CHECKING, Final

from flux2_async._shown.names import lazily
from flux2_async.models.requests import *
from flux2_async.models.settings import Polling, RateLimit, Timeouts

if TYPE_CHECKING:
    from flux2_async.models.callbacks import Callbacks
    from flux2_async.models.records import ImageResult, TaskRecord, TaskState
    from flux2_async.models.statistics import SessionStatistics

__all__ = [
    "AspectRatio",
    "Callbacks",
    "FixedAspectRatio",
    "ImageResult",
    "ImageSource",
    "ImageToImage",
    "JobRequest",
    "Polling",
    "RateLimit",
    "Request",
    "Resolution",
    "SessionStatistics",
    "TaskRecord",
    "TaskState",
    "TextToImage",
    "Tier",
    "Timeouts",
    "UploadedFile",
]

# Before a session is open there is no need of these.
__getattr__: Final = lazily(
    __name__, callbacks="Callbacks", records="ImageResult TaskRecord TaskState", statistics="SessionStatistics"
)
