"""The API's fields to values, never guessing a type. Pure."""

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any, Final
from urllib.parse import quote, urlsplit

from flux2_async._protocol import lenient_json
from flux2_async._protocol.refusals import without_signature
from flux2_async.models import TaskRecord, TaskState
from flux2_async.models.image_sources import is_plain_address, is_url
from flux2_async.models.plain import is_number, is_whole
from flux2_async.models.records import PARAM, Echo

REDACTED: Final = "<redacted>"
# No task costs as much: the dearest that is documented costs 24.
MAX_CREDITS: Final = 1e6

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_STATES: Final = {state.value: state for state in TaskState}

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


class UnreadableError(ValueError):
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


def read_number(value: object) -> float:
    """Read a finite number; these readers raise `UnreadableError` for anything else."""
    if is_number(value) and math.isfinite(value):
        return float(value)
    raise UnreadableError("a number", value)


def read_state(value: object) -> TaskState:
    """Read a state, `UNKNOWN` for a word not known."""
    text = read_text(value)
    return _STATES.get(text) or _STATES.get(text.strip().lower(), TaskState.UNKNOWN)


def read_moment(value: object) -> datetime:
    """Read Unix milliseconds, a number or its digits."""
    if type(value) is int:
        # Exactly, and in half the time that a float takes.
        milliseconds: float = value
    else:
        milliseconds = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else read_number(value)
    try:
        moment = _EPOCH + milliseconds * _MILLISECOND
    except OverflowError:
        moment = _EPOCH
    if moment <= _EPOCH:
        raise UnreadableError("Unix milliseconds", value)
    return moment


def read_text(value: object) -> str:
    """Read a text."""
    if isinstance(value, str):
        return value
    raise UnreadableError("text", value)


def _fail_message(value: object) -> str:
    return without_signature(read_text(value))


def _fail_code(value: object) -> str:
    return str(value) if is_whole(value) else read_text(value).strip()


def _up_to(most: float, value: object) -> float:
    if not 0 <= (number := read_number(value)) <= most:
        raise UnreadableError(f"0 to {most:g}", value)
    return number


def _progress(value: object) -> float:
    text = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    return _up_to(100, float(text[1]) if text else value)


def read_addresses(result: object) -> tuple[str, ...]:
    """Read the addresses of a decoded result."""
    if result is None:
        return ()
    if not isinstance(result, dict):
        raise UnreadableError("an object as JSON text", result)
    urls = result.get("resultUrls")
    if urls is None or urls == "":
        return ()
    if isinstance(urls, list):
        plain = all(map(is_plain_address, urls))
        return tuple(urls if plain else filter(None, map(result_address, urls)))
    address = result_address(urls)
    if address is None and not isinstance(urls, str):
        raise UnreadableError("a list of addresses", urls, below=".resultUrls")
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


def _param(value: object) -> Echo | None:
    return Echo(value, _request) if isinstance(value, (str, dict)) else None


def _request(value: str | Mapping[str, Any]) -> Mapping[str, Any] | None:
    request = decoded(value)
    if not isinstance(request, dict):
        return None
    opened = {key: decoded(each) if key == "input" else each for key, each in request.items()}
    known: dict[str, Any] = redacted(opened)
    return known


FIELDS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "consumeCredits": ("credits_consumed", partial(_up_to, MAX_CREDITS)),
    "paramJson": ("param", _param),
    "state": ("state", read_state),
    "model": ("model", read_text),
    "failCode": ("fail_code", _fail_code),
    "failMsg": ("fail_message", _fail_message),
    "createTime": ("create_time", read_moment),
    "completeTime": ("complete_time", read_moment),
    "updateTime": ("update_time", read_moment),
    "progress": ("progress", _progress),
    "creditsConsumed": ("credits_consumed", partial(_up_to, MAX_CREDITS)),
    "param": ("param", _param),
}
"""What each of the API's fields is called in `TaskRecord`, and how it is read."""

OUTRANKED: Final = {"consumeCredits": None, "paramJson": None}
"""Those for which another one of the same name counts, where it has a value; to be read before that."""
