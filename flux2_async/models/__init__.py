"""Requests, records, results and settings: frozen, checked when made, without I/O.

Names follow the API where it has one (`aspect_ratio`, `resolution`, `fail_code` for `failCode`).
"""

from flux2_async.models.records import ImageResult, TaskRecord, TaskState
from flux2_async.models.requests import (
    AspectRatio,
    FixedAspectRatio,
    ImageSource,
    ImageToImage,
    JobRequest,
    Request,
    Resolution,
    TextToImage,
    Tier,
    UploadedFile,
)
from flux2_async.models.settings import Callbacks, Polling, RateLimit, SessionStatistics, Timeouts

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
