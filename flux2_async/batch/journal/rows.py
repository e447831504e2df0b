"""Rows of the journal as requests, and as outcomes."""

import json
import sqlite3
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from operator import itemgetter
from typing import Any, Final

import attrs

from flux2_async.batch.outcomes import KEYS, LISTS, TIMES, Download, Failure, Outcome, State, group_of
from flux2_async.errors import ApiError, TaskFailedError, TaskNotFoundError
from flux2_async.models import ImageResult, Request, TaskRecord, TaskState
from flux2_async.models.requests import request_of


@attrs.frozen
class Row:
    """A request of the journal that is to be worked on, as it was when it was taken.

    The journal knows it by its `number`, and its caller by its `id`; `place` is where it stands among those of its
    state.
    """

    number: int
    place: int
    id: str
    state: State
    request: Request
    ref: str | None
    task_id: str | None
    urls: tuple[str, ...]
    extra: Mapping[str, Any] = attrs.field(repr=False)

    @property
    def group(self) -> str | None:
        """Whose it is, or None."""
        return group_of(self.extra)

    @property
    def kind(self) -> tuple[str, str]:
        """What its price depends on: model and resolution."""
        return self.request.model, self.request.resolution

    @property
    def result(self) -> ImageResult:
        """Its result, once it is done; of the record only what the journal keeps."""
        task_id = self.task_id or ""
        record = TaskRecord(
            task_id=task_id, state=TaskState.SUCCESS, state_text=TaskState.SUCCESS, result_urls=self.urls
        )
        return ImageResult(task_id=task_id, urls=self.urls, record=record)


def row_of(row: sqlite3.Row) -> Row:
    """Read a row to work on."""
    facts = {name: row[name] for name in ("model", "prompt", "aspect_ratio", "resolution", "tier")}
    return Row(
        **{name: row[name] for name in ("number", "place", "id", "ref", "task_id")},
        state=State(row["state"]),
        request=request_of(facts | {name: json.loads(row[name]) for name in ("images", "extra_input")}),
        urls=_strings(row["urls"]),
        extra=json.loads(row["extra"]),
    )


def outcome_of(row: sqlite3.Row) -> Outcome:
    """Read a row to show."""
    # Each request is shown several times, and of most the columns in JSON are empty.
    told: dict[str, Any] = dict(zip(KEYS, _COLUMNS(row), strict=True))
    for name, read in READERS.items():
        if (value := told[name]) is not None:
            told[name] = read(value)
    return Outcome(**told)


def failure_of(error: Exception) -> Failure:
    """Say in the journal what an error says."""
    code: int | str | None = None
    if isinstance(error, TaskFailedError):
        code = error.fail_code
    elif isinstance(error, ApiError):
        code = error.code
    text = str(error)
    if isinstance(error, TaskNotFoundError):
        text = f"{text}. It may have been paid: check the task log of your account, or use the key that submitted it"
    return Failure(type=type(error).__name__, message=text, code=code)


def stored(value: Any) -> Any:
    """Give a value as a column holds it."""
    if isinstance(value, Failure):
        return json.dumps(attrs.asdict(value))
    return json.dumps(value) if isinstance(value, list) else value


def _strings(text: str) -> tuple[str, ...]:
    return () if text == "[]" else tuple(json.loads(text))


def _extra(text: str) -> dict[str, Any]:
    extra: dict[str, Any] = {} if text == "{}" else json.loads(text)
    return extra


in_utc: Final[Callable[[float], datetime]] = partial(datetime.fromtimestamp, tz=UTC)
# Columns that hold something else than the field of `Outcome`.
READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(LISTS, _strings),
    **dict.fromkeys(TIMES, in_utc),
    "state": State,
    "download": Download,
    "error": lambda text: Failure(**json.loads(text)),
    "extra": _extra,
}
_COLUMNS: Final = itemgetter(*KEYS)
