"""What a batch knows of one request: a row of its journal, a line of `results.jsonl`.

`results.jsonl` has one JSON object a line, in the order of the input. Its keys are the attributes of `Outcome`, which
says what they are; None is null, times are ISO 8601 with offset, and an error has the attributes of `Failure`.
"""

import enum
from collections.abc import Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any, Final

import attrs


class State(enum.StrEnum):
    """Where a request is, as its journal knows it."""

    QUEUED = "queued"
    """Not at the service: not sent yet, or refused in a way that costs nothing and meets every request."""
    SUBMITTING = "submitting"
    """createTask may be under way. Found so after a crash it becomes `UNKNOWN`."""
    SUBMITTED = "submitted"
    """The service accepted it; the task is waited for, now or in the next run."""
    DONE = "done"
    """The picture is made and paid; `Download` tells whether it is here."""
    FAILED = "failed"
    """Refused by the service, or failed there; not sent again unless asked for."""
    UNKNOWN = "unknown"
    """Sent, and nothing tells whether the service accepted it; not sent again unless asked for."""


class Download(enum.StrEnum):
    """What became of the pictures of a request that is done."""

    OFF = "off"
    """Not asked for."""
    PENDING = "pending"
    """Not here yet; the next run downloads them again."""
    SAVED = "saved"
    """In the folder."""
    EXPIRED = "expired"
    """The address is no longer valid and the service gives no new one."""
    FAILED = "failed"
    """What the address gives is no picture that can be saved; look at `urls`."""


@attrs.frozen(kw_only=True)
class Failure:
    """Why there is no picture, or no file.

    Attributes:
        type: The name of the error's class, such as `ContentModeratedError`.
        message: Its text, which says what to do.
        code: The API's code, or the `failCode` of a failed task as text; None when there is none.
    """

    type: str
    message: str
    code: int | str | None = None


@attrs.frozen(kw_only=True)
class Outcome:
    """One request of a batch as its journal knows it.

    Attributes:
        id: The caller's name for it, or one made of its content.
        state: Where it is.
        prompt: As sent.
        images: Its reference pictures: absolute paths or addresses; empty without.
        aspect_ratio: As sent.
        resolution: As sent.
        tier: As sent; empty for another model than those of Flux-2.
        model: The API's id of the model.
        line: The line of the input it stood in last, from 1.
        task_id: The service's id, or None until it accepted the request.
        ref: The name of the last submission, or None when it was never tried.
        files: Its pictures, relative to the folder of the batch, with forward slashes.
        urls: Their addresses at the service, which live about 24 hours (documented).
        download: Whether the pictures are here, or None until the task is done.
        credits: What the service says the task cost, or None when it did not say.
        sent_at: When its last createTask left, or was given up, by this machine's clock, aware, or None.
        submitted_at: When the service accepted it, likewise.
        finished_at: When its end was seen, likewise.
        saved_at: When its pictures were here, likewise.
        create_time: When the service took the task by the service's clock, aware, or None.
        complete_time: When it finished, likewise.
        error: Why there is no picture or no file, or None.
        extra: The unknown columns of the input.
        group: Whose it is, by the column `group` in `extra`, see `Flux2Session.submit`; None: nobody's.
    """

    id: str
    state: State
    prompt: str = attrs.field(repr=lambda value: f"<{len(value)} characters>")
    images: tuple[str, ...] = attrs.field(default=(), repr=lambda value: f"<{len(value)} pictures>")
    aspect_ratio: str = "1:1"
    resolution: str = "1K"
    tier: str = "flex"
    model: str = ""
    line: int = 0
    task_id: str | None = None
    ref: str | None = None
    files: tuple[str, ...] = ()
    urls: tuple[str, ...] = attrs.field(default=(), repr=lambda value: f"<{len(value)} addresses>")
    download: Download | None = None
    credits: float | None = None
    sent_at: datetime | None = attrs.field(default=None, repr=False)
    submitted_at: datetime | None = attrs.field(default=None, repr=False)
    finished_at: datetime | None = attrs.field(default=None, repr=False)
    saved_at: datetime | None = attrs.field(default=None, repr=False)
    create_time: datetime | None = attrs.field(default=None, repr=False)
    complete_time: datetime | None = attrs.field(default=None, repr=False)
    error: Failure | None = None
    extra: Mapping[str, Any] = attrs.field(factory=dict, repr=False)

    # From `extra` alone, so outcomes that were pickled before it was kept are equal to those made now.
    group: str | None = attrs.field(
        default=attrs.Factory(lambda self: group_of(self.extra), takes_self=True), init=False, repr=False, eq=False
    )


def group_of(extra: Mapping[str, Any]) -> str | None:
    """Give whose a request is by its column `group`: text or a whole number; None for all else."""
    group = extra.get("group")
    # A column of numbers is a column of names as well; true is none.
    return str(group) if (type(group) is int or isinstance(group, str)) and group != "" else None


def document(outcome: Outcome) -> dict[str, Any]:
    """Give a request as a line of `results.jsonl` holds it.

    Args:
        outcome: What a batch, its journal or `read_results` gave.

    Returns:
        Plain JSON: text, numbers, lists, dictionaries and None; times in ISO 8601.
    """
    # Not attrs.asdict, which would walk through `extra` as well, however deep that is.
    told: dict[str, Any] = dict(zip(KEYS, _VALUES(outcome), strict=True))
    for name in LISTS:
        told[name] = list(told[name])
    for name in TIMES:
        if told[name] is not None:
            told[name] = told[name].isoformat()
    told["error"] = outcome.error and attrs.asdict(outcome.error)
    return told | {"group": outcome.group}


KEYS: Final = tuple(field.name for field in attrs.fields(Outcome) if field.init)
LISTS: Final = ("images", "files", "urls")
TIMES: Final = ("sent_at", "submitted_at", "finished_at", "saved_at", "create_time", "complete_time")
_VALUES: Final = attrgetter(*KEYS)
