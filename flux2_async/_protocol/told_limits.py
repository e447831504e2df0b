"""What a service tells of its limit: headers of its answers, and bodies of its refusals. Pure.

Read are `X-RateLimit-Limit`, `-Remaining` and `-Reset`; `RateLimit` and `RateLimit-Policy` of the IETF's drafts, whose
windows are told; and of a body in JSON `limit` and `windowSeconds`, at the top or in `data`. What cannot be read is
passed over: it is advice.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from flux2_async._protocol import lenient_json
from flux2_async._protocol.refusals import header, http_date
from flux2_async.models.plain import is_number, is_whole
from flux2_async.models.settings import Told

_ITEM: Final = re.compile(r'"?([\w.-]*)"?\s*((?:;\s*\w+\s*=\s*"?[\w.]+"?\s*)+)')
_PARAMETER: Final = re.compile(r';\s*(\w+)\s*=\s*"?([0-9]{1,12})(?:\.[0-9]+)?"?')
_PAIR: Final = re.compile(r"\b(limit|remaining|reset)\s*=\s*([0-9]{1,12})\b", re.IGNORECASE)
_NUMBER: Final = re.compile(r"\s*([0-9]{1,13})(?:\.[0-9]+)?\s*(?:[,;].*)?")
# Seconds; a larger one is a moment, in seconds or milliseconds since 1970.
_A_MOMENT: Final = 1e9
_IN_MILLISECONDS: Final = 1e12


def told_limits(headers: Mapping[str, str], now: Callable[[], datetime], body: bytes = b"") -> tuple[Told, ...]:
    """Read what an answer tells, nothing where it tells nothing.

    Args:
        headers: Of the answer.
        now: Gives the present, where the answer has no date of its own.
        body: Of a refusal by 429.
    """
    if "ratelimit" not in "\n".join(headers).lower() and not body:
        return ()
    present = http_date(header(headers, "date")) or now()
    return (*_standard(headers), *_common(headers, present), *_of_body(body))


def _standard(headers: Mapping[str, str]) -> tuple[Told, ...]:
    policies = {name: given for name, given in _items(header(headers, "ratelimit-policy")) if "q" in given}
    found = []
    text = header(headers, "ratelimit")
    for name, given in _items(text):
        policy = policies.pop(name, {})
        seconds = float(policy["w"]) if policy.get("w") else None
        reset = float(given["t"]) if "t" in given else None
        found.append(Told(policy.get("q"), seconds, given.get("r"), reset))
    found += [Told(given["q"], float(given["w"])) for given in policies.values() if given.get("w")]
    if pairs := {name.lower(): int(value) for name, value in _PAIR.findall(text)}:
        found.append(Told(pairs.get("limit"), None, pairs.get("remaining"), pairs.get("reset")))
    return tuple(found)


def _items(text: str) -> list[tuple[str, dict[str, int]]]:
    return [
        (match[1], {name.lower(): int(value) for name, value in _PARAMETER.findall(match[2])})
        for match in _ITEM.finditer(text)
    ]


def _common(headers: Mapping[str, str], present: datetime) -> tuple[Told, ...]:
    """Read the headers that most services give, with and without X."""
    for prefix in ("x-ratelimit-", "ratelimit-"):
        numbers = {each: _NUMBER.fullmatch(header(headers, prefix + each)) for each in ("limit", "remaining", "reset")}
        limit, remaining, reset = (None if match is None else int(match[1]) for match in numbers.values())
        if limit is not None or remaining is not None:
            return (Told(limit, None, remaining, None if reset is None else _seconds_until(reset, present)),)
    return ()


def _seconds_until(reset: float, present: datetime) -> float:
    if reset < _A_MOMENT:
        return float(reset)
    return max(0.0, reset / (1000 if reset >= _IN_MILLISECONDS else 1) - present.timestamp())


def _of_body(body: bytes) -> tuple[Told, ...]:
    try:
        value: Any = lenient_json.loads(body) if body else None
    except ValueError:
        return ()
    for place in (value, value.get("data")) if isinstance(value, dict) else ():
        limit, seconds = (place.get("limit"), place.get("windowSeconds")) if isinstance(place, dict) else (None, None)
        if is_whole(limit) and limit >= 1 and is_number(seconds) and 0 < seconds < _A_MOMENT:
            return (Told(limit, float(seconds)),)
    return ()
