"""What observers of a session are told, as frozen objects; see `Flux2Session.observe`.

An observer is a plain function that takes one of these. It is called in the event loop, after what it is told of has
happened, and decides nothing: what it raises is logged once and changes nothing. One that has an attribute `wants`, a
set of classes below and of `SubmissionEvent`s, is told of these alone; what nobody wants is not even made. Tell kinds
apart by `match`:

    match event:
        case SubmissionChanged(event=SubmissionEvent.THROTTLED): ...
        case Settled(error=None, task_id=task_id): ...
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

import attrs

from flux2_async.models.records import ImageResult, TaskRecord, TaskState
from flux2_async.models.requests import Request, UploadedFile
from flux2_async.models.settings import RateLimit
from flux2_async.models.submission_state import SubmissionEvent, SubmissionState

__all__ = [
    "Attached",
    "Downloaded",
    "LimitLearned",
    "Observer",
    "OutageBegan",
    "OutageEnded",
    "Paused",
    "Polled",
    "Queued",
    "SessionEvent",
    "Settled",
    "StateChanged",
    "SubmissionChanged",
    "Uploaded",
]


@attrs.frozen(kw_only=True)
class SessionEvent:
    """Something happened in a session; its kinds are the subclasses.

    Attributes:
        time: When, aware.
        service: The host of the API that the session talks to, such as `api.apikley.ru`.
        ref: The submission, or None where it is about none, or not known.
        task_id: The task, or None likewise.
        key: The `key` of the submission, or None likewise.
        group: The `group` of the submission, or None likewise.
        metadata: What its caller gave with it, or None likewise.
    """

    time: datetime
    service: str = ""
    ref: str | None = None
    task_id: str | None = None
    key: str | None = None
    group: str | None = None
    metadata: Mapping[str, Any] | None = attrs.field(default=None, repr=False)

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        fields = {each.name: getattr(self, each.name) for each in attrs.fields(type(self))}
        # A mapping that cannot be written to cannot be pickled either.
        fields["metadata"] = None if self.metadata is None else dict(self.metadata)
        return partial(type(self), **fields), ()


Observer = Callable[[SessionEvent], object]


@attrs.frozen(kw_only=True)
class Queued(SessionEvent):
    """A submission was taken in, and waits; told during the call, so in the context of the caller.

    One that was given to `enqueue` is told soon after the call, in the context of the call.

    Attributes:
        request: What is to be submitted.
    """

    request: Request = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class SubmissionChanged(SessionEvent):
    """A submission made a step, see `flux2_async.models.submission_state`.

    Attributes:
        event: What happened to it.
        state: Where it stands now.
        request: What is submitted; pictures given as bytes are replaced by their addresses once they are uploaded.
        error: Of a refusal, an unclear answer, an attempt that was never sent, a withdrawal; else None.
    """

    event: SubmissionEvent
    state: SubmissionState
    request: Request = attrs.field(repr=False)
    error: Exception | None = None


@attrs.frozen(kw_only=True)
class Paused(SessionEvent):
    """A 429 lets all submissions wait.

    Attributes:
        seconds: From now on.
        rate_limit: What the session keeps to, or None for no limit.
    """

    seconds: float
    rate_limit: RateLimit | None


@attrs.frozen(kw_only=True)
class LimitLearned(SessionEvent):
    """The session has learned another limit of the account.

    Attributes:
        limit: New tasks per period; None: the whole limit is used again.
        rate_limit: What the session was given.
    """

    limit: int | None
    rate_limit: RateLimit


@attrs.frozen(kw_only=True)
class OutageBegan(SessionEvent):
    """createTask got no usable answers several times in a row; from now on one at a time is sent, and all others wait.

    `ref` is that of the submission that met it last.

    Attributes:
        error: What that one met.
    """

    error: Exception


@attrs.frozen(kw_only=True)
class OutageEnded(SessionEvent):
    """A createTask was answered again, and all go on; `ref` is that of its submission.

    Attributes:
        seconds: Since the outage began.
    """

    seconds: float


@attrs.frozen(kw_only=True)
class Attached(SessionEvent):
    """The session polls a task that was submitted earlier or elsewhere, or that had been given up.

    Told during the call, so in the context of the caller.
    """


@attrs.frozen(kw_only=True)
class Polled(SessionEvent):
    """A poll of a task was answered, or was not.

    Attributes:
        seconds: From leaving to now.
        record: What was seen; None when the task is not visible yet, or with an error.
        error: Why it was not answered, or None.
    """

    seconds: float
    record: TaskRecord | None = None
    error: Exception | None = None


@attrs.frozen(kw_only=True)
class StateChanged(SessionEvent):
    """A task was seen in another state than before.

    Attributes:
        state: The new one.
        record: The record that says so.
    """

    state: TaskState
    record: TaskRecord


@attrs.frozen(kw_only=True)
class Settled(SessionEvent):
    """A task is settled.

    Attributes:
        result: The picture, or None when there is an error.
        error: What went wrong, or None when there is a result.
    """

    result: ImageResult | None = None
    error: Exception | None = None


@attrs.frozen(kw_only=True)
class Uploaded(SessionEvent):
    """A picture of the caller's is at the service, now or since an earlier upload of the same content.

    Attributes:
        file: Where.
    """

    file: UploadedFile


@attrs.frozen(kw_only=True)
class Downloaded(SessionEvent):
    """The pictures of a task are saved.

    Attributes:
        paths: The files.
    """

    paths: tuple[Path, ...]
