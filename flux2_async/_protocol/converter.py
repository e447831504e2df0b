"""The API's fields to values, never guessing a type. Pure.

A record whose every field can be read, as nearly all can, is read straight. The others are read by cattrs, which tells
each field that cannot be read and is loaded at first need.
"""

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, urlsplit

from flux2_async._protocol import lenient_json
from flux2_async._protocol.refusals import without_signature
from flux2_async.models import TaskRecord, TaskState
from flux2_async.models.image_sources import is_plain_address, is_url
from flux2_async.models.records import PARAM, Echo

if TYPE_CHECKING:
    import cattrs

REDACTED: Final = "<redacted>"

FIELDS: Final = {
    "task_id": "taskId",
    "state": "state",
    "state_text": "state",
    "model": "model",
    "result_urls": "resultJson",
    "fail_code": "failCode",
    "fail_message": "failMsg",
    "create_time": "createTime",
    "complete_time": "completeTime",
    "update_time": "updateTime",
    "progress": "progress",
    "credits_consumed": "creditsConsumed",
    "param": "param",
}
"""Fields of `TaskRecord` and what the API calls them."""

REQUIRED: Final = frozenset({"taskId", "state"})

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_STATES: Final = {state.value: state for state in TaskState}
_KINDS: Final[Mapping[type, str]] = {str: "text", int: "a whole number", bool: "true or false"}

_DIGITS: Final = re.compile(r"[0-9]{1,16}")
_PERCENT: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?) ?%?")
_NAMES_OF_ADDRESSES: Final = ("url", "downloadUrl", "fileUrl", "imageUrl")
# The echo as the service writes it, JSON text in JSON text, where neither has braces within. What the prompt quotes has
# more backslashes before it. Two steps, each of them linear: an echo may have megabytes.
# What stands before a name is looked at behind it, since a pattern that begins with plain text is sought much faster.
_INPUT: Final = re.compile(r'"input"(?<!\\"input")\s*+:\s*+"\{')
_RESOLUTION: Final = re.compile(
    r'\\"resolution\\"(?:(?<=^\\"resolution\\")|(?<=[,\s]\\"resolution\\"))\s*+:\s*+\\"(\w+)\\"'
)
_BLANKS: Final = re.compile(r"[\s\x00-\x1f\x7f]")
_PLAIN: Final = (str, int, float, type(None))
_T = TypeVar("_T")


def read_record(payload: Mapping[str, Any]) -> TaskRecord:
    """Read a record straight.

    Args:
        payload: What is told, under the API's own names, and in `extra` what is kept as it came.

    Raises:
        Exception: A field cannot be read, or one that every record has is missing; the converter tells which.
    """
    told: dict[str, Any] = {_NAMES[wire]: _READ[wire](value) for wire, value in payload.items()}
    return TaskRecord(task_id=told.pop("task_id"), state_text=payload["state"], **told)


@cache
def converter() -> "cattrs.Converter":
    """The one that reads what comes from the API."""
    return make_converter()


def make_converter() -> "cattrs.Converter":
    """A converter for the API's data; see `configure_converter`."""
    import cattrs  # noqa: PLC0415  loaded at first need

    converter = cattrs.Converter()
    configure_converter(converter)
    return converter


def configure_converter(converter: "cattrs.Converter") -> None:
    """Teach a converter to read the API's data.

    - `str`, `bool`, `int` and `float` are never made from another type; an `int` is a `float` as well.
    - `datetime` is aware, from Unix milliseconds as a number or digits.
    - `TaskState` is `UNKNOWN` for a word not known.
    - `TaskRecord` is read from the API's own field names.
    """
    from cattrs.gen import make_dict_structure_fn, override  # noqa: PLC0415  loaded at first need

    for kind in (str, bool, int):
        converter.register_structure_hook(kind, _typed)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(datetime, _moment)
    converter.register_structure_hook(TaskState, read_state)
    overrides: dict[str, Any] = {name: override(rename=wire, struct_hook=read) for name, wire, read in _FIELDS}
    overrides["extra"] = override(struct_hook=lambda value, _: value)
    hook = make_dict_structure_fn(TaskRecord, converter, **overrides)
    converter.register_structure_hook(TaskRecord, hook)


def http_address(value: object) -> str | None:
    """An http(s) address with blanks percent-encoded, or None for anything else."""
    if is_plain_address(value):
        return value
    if not isinstance(value, str) or not is_url(value.strip()):
        return None
    address = _BLANKS.sub(lambda match: quote(match[0]), value.strip())
    try:
        return address if urlsplit(address).hostname else None
    except ValueError:
        return None


def result_address(value: object) -> str | None:
    """The http(s) address of a result, given as text, without its scheme or in an object; None where there is none."""
    if isinstance(value, dict):
        return next((address for name in _NAMES_OF_ADDRESSES if (address := result_address(value.get(name)))), None)
    if isinstance(value, str) and value.lstrip().startswith("//"):
        return http_address(f"https:{value.lstrip()}")
    return http_address(value)


class _UnreadableError(ValueError):
    """What a field should hold and what type it has; its text is appended to the name of the field."""

    def __init__(self, expected: str, value: object, *, below: str = "") -> None:
        super().__init__(f"{below}: {expected} expected, {type(value).__name__} given")


@lru_cache(maxsize=256)
def _is_callback(key: str) -> bool:
    return key.replace("_", "").replace("-", "").lower() == "callbackurl"


def redacted(value: Any) -> Any:
    """The value without callback addresses, at any depth."""
    if isinstance(value, dict):
        return {
            key: REDACTED if _is_callback(key) else each if isinstance(each, _PLAIN) else redacted(each)
            for key, each in value.items()
        }
    return [redacted(each) for each in value] if isinstance(value, list) else value


def decoded(value: Any) -> Any:
    """JSON text decoded once; anything else, also what is not JSON, as it is."""
    if not isinstance(value, str):
        return value
    try:
        return lenient_json.loads(value)
    except ValueError:
        return value


def _typed(value: object, kind: type[_T]) -> _T:
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise _UnreadableError(_KINDS[kind], value)


def _number(value: object, _kind: object = None) -> float:
    if type(value) is int:
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise _UnreadableError("a number", value)


def read_state(value: object, _kind: object = None) -> TaskState:
    if type(value) is str and (state := _STATES.get(value)):
        return state
    return _STATES.get(_typed(value, str).strip().lower(), TaskState.UNKNOWN)


def _moment(value: object, _kind: object = None) -> datetime:
    if type(value) is int:
        # Exactly, and in half the time that a float takes.
        milliseconds: float = value
    else:
        milliseconds = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else _number(value)
    try:
        moment = _EPOCH + milliseconds * _MILLISECOND
    except OverflowError:
        moment = _EPOCH
    if moment <= _EPOCH:
        raise _UnreadableError("Unix milliseconds", value)
    return moment


def _text(value: object, _kind: object = None) -> str:
    # Nearly every one is, and there are several in each record.
    return value if type(value) is str else _typed(value, str)


def _fail_message(value: object, _kind: object = None) -> str:
    return without_signature(_typed(value, str))


def _fail_code(value: object, _kind: object = None) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _typed(value, str).strip()


def _progress(value: object, _kind: object = None) -> float:
    text = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    number = float(text[1]) if text else _number(value)
    if not 0 <= number <= 100:  # noqa: PLR2004  per cent
        raise _UnreadableError("0 to 100", value)
    return number


def _result_urls(value: object, _kind: object = None) -> tuple[str, ...]:
    if isinstance(value, tuple):
        return value
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise _UnreadableError("an object as JSON text", value)
    urls = value.get("resultUrls")
    if urls is None or urls == "":
        return ()
    if isinstance(urls, list):
        plain = all(map(is_plain_address, urls))
        return tuple(urls if plain else filter(None, map(result_address, urls)))
    address = result_address(urls)
    if address is None and not isinstance(urls, str):
        raise _UnreadableError("a list of addresses", urls, below=".resultUrls")
    return () if address is None else (address,)


def resolution_of(record: TaskRecord) -> str | None:
    """The resolution that a record's echo of the request names, or None; the rest of the echo is not read for it."""
    held = PARAM.held(record)
    if isinstance(held, Echo) and isinstance(held.raw, str) and (begun := _INPUT.search(held.raw)):
        written, ended, _ = held.raw[begun.end() :].partition('}"')
        if ended and "{" not in written and "}" not in written and (named := _RESOLUTION.findall(written)):
            # Of several of one name the last one counts.
            return str(named[-1])
    request = (record.param or {}).get("input")
    resolution = request.get("resolution") if isinstance(request, Mapping) else None
    return resolution if isinstance(resolution, str) else None


def _param(value: object, _kind: object = None) -> Echo | None:
    return Echo(value, _request) if isinstance(value, (str, dict)) else None


def _request(value: str | Mapping[str, Any]) -> Mapping[str, Any] | None:
    request = decoded(value)
    if not isinstance(request, dict):
        return None
    opened = {key: decoded(each) if key == "input" else each for key, each in request.items()}
    known: dict[str, Any] = redacted(opened)
    return known


_READERS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "task_id": _text,
    "state": read_state,
    "state_text": _text,
    "model": _text,
    "result_urls": _result_urls,
    "fail_code": _fail_code,
    "fail_message": _fail_message,
    "create_time": _moment,
    "complete_time": _moment,
    "update_time": _moment,
    "progress": _progress,
    "credits_consumed": _number,
    "param": _param,
}
_FIELDS: Final[tuple[tuple[str, str, Callable[[Any, Any], Any]], ...]] = tuple(
    (name, wire, _READERS[name]) for name, wire in FIELDS.items()
)
_NAMES: Final = {wire: name for name, wire in FIELDS.items() if name != "state_text"} | {"extra": "extra"}
_READ: Final[Mapping[str, Callable[..., Any]]] = {
    wire: _READERS.get(name, lambda value: value) for wire, name in _NAMES.items()
}
