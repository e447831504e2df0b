"""Rows of the journal as requests, and as outcomes."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from json.encoder import encode_basestring, encode_basestring_ascii
from operator import itemgetter
from typing import Any, Final, cast

import attrs

from flux2_async.batch.journal.checksums import COLUMNS, checksum, in_order, update
from flux2_async.batch.outcomes import KEYS, LISTS, TIMES, Download, Failure, Outcome, State, group_of
from flux2_async.errors import ApiError, TaskFailedError, TaskNotFoundError
from flux2_async.models import ImageResult, Request, TaskRecord, TaskState
from flux2_async.models.plain_json import utf8_json
from flux2_async.models.requests import request_of


@attrs.frozen(eq=False)
class Row:
    """A request of the journal that is worked on.

    The journal knows it by its `number`. Its `columns` are what they will be when all is written that was asked for;
    `place` is where it stands among those of its state, `request` and `extra` are read from them.
    """

    number: int
    columns: dict[str, Any] = attrs.field(repr=False)
    request: Request
    extra: Mapping[str, Any] = attrs.field(repr=False)

    @property
    def id(self) -> str:
        """Its caller's name for it."""
        return str(self.columns["id"])

    @property
    def state(self) -> State:
        """Where it is."""
        return _STATES[self.columns["state"]]

    @property
    def ref(self) -> str | None:
        """The name of its last submission, or None."""
        return cast("str | None", self.columns["ref"])

    @property
    def task_id(self) -> str | None:
        """The task that it became, or None."""
        return cast("str | None", self.columns["task_id"])

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
        task_id, urls = self.task_id or "", _strings(self.columns["urls"])
        record = TaskRecord(task_id=task_id, state=TaskState.SUCCESS, state_text=TaskState.SUCCESS, result_urls=urls)
        return ImageResult(task_id=task_id, urls=urls, record=record)


def row_of(row: sqlite3.Row) -> Row:
    """Read a row to work on."""
    columns = dict(zip(COLUMNS, row[1:], strict=True))
    facts = {name: columns[name] for name in ("model", "prompt", "aspect_ratio", "resolution", "tier")}
    request = request_of(facts | {name: _read(columns[name]) for name in ("images", "extra_input")})
    return Row(row[0], columns, request, _extra(columns["extra"]))


def write_row(
    connection: sqlite3.Connection, number: int, columns: Mapping[str, Any], changed: Mapping[str, Any]
) -> None:
    """Write what may have changed of a row while it was worked on, and the checksum of all of it.

    Of one that a later run has entered anew, only what has `changed`: an answer may come when its own run is over.
    """
    values = (*_changing(columns), checksum(*in_order(columns)), number, columns["run"])
    if not connection.execute(_WRITE, values).rowcount:
        names = {name: f":{name}" for name in changed}
        connection.execute(update(names, "number = :number"), {**changed, "number": number})


shown: Final[Callable[[Mapping[str, Any]], tuple[Any, ...]]] = itemgetter(*KEYS)


def outcome_of(row: Iterable[Any]) -> Outcome:
    """Read what a row holds in its columns `SHOWN`."""
    told: dict[str, Any] = dict(zip(KEYS, row))  # noqa: B905  other columns may follow
    for name, read in READERS.items():
        if (value := told[name]) is not None:
            told[name] = read(value)
    return Outcome(**told)


def line_of(row: Sequence[Any]) -> bytes:
    """Write what a row holds in its columns `SHOWN` as a line of `results.jsonl`: as the `document` of its outcome."""
    # Every request is written three times, and most of what it holds is JSON already.
    values = ["null" if value is None else write(value) for write, value in zip(_WRITERS, row)]  # noqa: B905  likewise
    extra = row[_EXTRA]
    line = _LINE % (*values, "null" if extra == "{}" else _json(group_of(_read(extra))))
    try:
        return line.encode()
    except UnicodeEncodeError:
        return utf8_json(json.loads(line)) + b"\n"


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


def stored(failure: Failure) -> str:
    """Give a failure as its column holds it."""
    return json.dumps(attrs.asdict(failure))


def _read(text: str) -> Any:
    # As `json.loads` reads what begins with no blanks, in a fraction of its time.
    return _decoder.raw_decode(text)[0]


def texts(items: Iterable[str]) -> str:
    """Give a list of texts as its column holds it."""
    # As `json.dumps` writes it, likewise.
    return f"[{', '.join(map(encode_basestring_ascii, items))}]"


def _failure(text: str) -> Failure:
    return Failure(**_read(text))


def _strings(text: str) -> tuple[str, ...]:
    return () if text == "[]" else tuple(_read(text))


def _extra(text: str) -> dict[str, Any]:
    extra: dict[str, Any] = {} if text == "{}" else _read(text)
    return extra


# Calling an enumeration takes as long as all else about a column.
_STATES: Final = {state.value: state for state in State}
in_utc: Final[Callable[[float], datetime]] = partial(datetime.fromtimestamp, tz=UTC)
# Columns that hold something else than the field of `Outcome`.
READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(LISTS, _strings),
    **dict.fromkeys(TIMES, in_utc),
    "state": _STATES.__getitem__,
    "download": {download.value: download for download in Download}.__getitem__,
    "error": _failure,
    "extra": _extra,
}


def _unescaped(text: str) -> str:
    return _json(_read(text)) if "\\u" in text else text


_decoder: Final = json.JSONDecoder()
_json: Final = json.JSONEncoder(ensure_ascii=False).encode
# What is no text, as JSON.
_JSON: Final[Mapping[str, Callable[[Any], str]]] = {
    **dict.fromkeys((*LISTS, "extra"), _unescaped),
    **dict.fromkeys(TIMES, lambda seconds: f'"{in_utc(seconds).isoformat()}"'),
    "line": str,
    "credits": repr,
    "error": lambda text: _json(attrs.asdict(_failure(text))),
}
_WRITERS: Final = tuple(_JSON.get(name, encode_basestring) for name in KEYS)
_EXTRA: Final = KEYS.index("extra")
_LINE: Final = "{" + ", ".join(f'"{name}": %s' for name in (*KEYS, "group")) + "}\n"

SHOWN: Final = ", ".join(KEYS)
"""The columns of an outcome, in its order."""
TAKEN: Final = f"number, {', '.join(COLUMNS)}"
"""The columns of a row that is worked on."""
CHANGING: Final = (
    *("state", "ref", "task_id", "sent_at", "submitted_at", "finished_at", "saved_at", "create_time", "complete_time"),
    *("urls", "files", "download", "credits", "error"),
)
_changing: Final = itemgetter(*CHANGING)
# For all changes. What an index holds and no change touches is left out: it would be written to the index anew.
_WRITE: Final = f"UPDATE requests SET {' = ?, '.join(CHANGING)} = ?, checksum = ? WHERE number = ? AND run = ?"  # noqa: S608  constants
