"""asyncio client for Flux-2 pictures behind Apikley's jobs API.

async with Flux2Session() as flux:
    task = await flux.submit(ImageToImage("make it winter", images=["house.jpg"]))
    result = await task.result(timeout=300)
    await flux.download(result, "out/")

`flux2 docs` in a terminal lists the pages of the guide, and `flux2 docs Flux2Session.submit` shows what one name does.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flux2_async import coordination as coordination
    from flux2_async import emulator as emulator
    from flux2_async import session as session
    from flux2_async import webhooks as webhooks
    from flux2_async.errors import *
    from flux2_async.models import *
    from flux2_async.models.budget import Budget, Estimate
    from flux2_async.models.events import *
    from flux2_async.models.expectation import *
    from flux2_async.models.service import APIKLEY, KIE, Service
    from flux2_async.models.submission_state import SubmissionEvent, SubmissionState
    from flux2_async.session import Flux2Session, SubmissionHandle, SubmissionSteps, Unsettled
    from flux2_async.tasks import *

__all__ = [
    "APIKLEY",
    "KIE",
    "AmbiguousSubmitError",
    "ApiError",
    "AspectRatio",
    "Attached",
    "AuthenticationError",
    "Budget",
    "BudgetExceededError",
    "Callbacks",
    "Completion",
    "ConfigurationError",
    "ContentModeratedError",
    "CoordinationError",
    "Downloaded",
    "EmptyResultError",
    "Estimate",
    "Expectation",
    "FeatureDisabledError",
    "FixedAspectRatio",
    "Flux2Error",
    "Flux2Session",
    "ImageResult",
    "ImageSource",
    "ImageTask",
    "ImageToImage",
    "InsufficientCreditsError",
    "InvalidRequestError",
    "JobRequest",
    "LimitLearned",
    "MaintenanceError",
    "NotFoundError",
    "Observer",
    "OutageBegan",
    "OutageEnded",
    "Paused",
    "Polled",
    "Polling",
    "ProtocolError",
    "Queued",
    "QuotaExceededError",
    "RateLimit",
    "RateLimitedError",
    "Request",
    "RequestRejectedError",
    "Resolution",
    "ServerError",
    "Service",
    "SessionClosedError",
    "SessionEvent",
    "SessionStatistics",
    "Settled",
    "StateChanged",
    "SubmissionChanged",
    "SubmissionEvent",
    "SubmissionHandle",
    "SubmissionState",
    "SubmissionSteps",
    "SubmissionWithdrawnError",
    "TaskError",
    "TaskFailedError",
    "TaskNotFoundError",
    "TaskRecord",
    "TaskState",
    "TaskTimeoutError",
    "TextToImage",
    "Tier",
    "Timeouts",
    "TransportError",
    "Unsettled",
    "Uploaded",
    "UploadedFile",
]

# Lightest first: a name is looked for in their lists.
_HOMES = (
    *("errors", "models", "session", "tasks", "models.service", "models.submission_state", "models.events"),
    *("models.expectation", "models.budget"),
)


# Modules of version 0.1.0 by which its pickles name what this one gives.
for _module in ("_engine", "_settings"):
    sys.modules[f"{__name__}.{_module}"] = sys.modules[__name__]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, since pytest loads this package in every run for its plugin."""
    for home in _HOMES if name in __all__ else ():
        module = import_module(f"flux2_async.{home}")
        if name in module.__all__:
            value = globals()[name] = getattr(module, name)
            return value
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    text = f"module {__name__!r} has no attribute {name!r}"
    if (submodule := _home_of(name)) is None:
        raise AttributeError(text)
    text = f"{text}: {name} is in {__name__}.{submodule}"
    # `from flux2_async import name` says nothing of an AttributeError.
    importing = sys._getframe(1).f_code.co_name == "_handle_fromlist"  # noqa: SLF001  there is no other way to know
    raise ImportError(text, name=__name__) if importing else AttributeError(text)


def _home_of(name: str) -> str | None:
    """Give the submodule that has a public name; None: none has it."""
    if name.startswith("_"):
        return None
    # Only those who err need it.
    modules = import_module(f"{__name__}.cli.documents").public_modules()
    return next((home for home, module in modules if home and name in module.__all__), None)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
