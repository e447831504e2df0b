"""JSON of the wire: lenient reading, writing, and repair of a reply broken by its own echo. Pure.

orjson does the work when it is there. What it refuses goes to the standard library, which is set up to give the same
values for all that both can read, and to read on where a paid picture is at stake: control characters inside a text,
half a surrogate pair, NaN, numbers of any length.
"""

import contextlib
import itertools
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

try:
    import orjson
except ImportError:  # the extra `speedups` is not installed
    orjson = None  # type: ignore[assignment]  # a module is not Optional to mypy

MAX_DEPTH: Final = 64
"""Levels of nesting: real replies have about five, and deeper ones break pickle and repr later on."""

MAX_REPAIR: Final = 256 * 1024
"""Characters up to which a broken reply is repaired: the longest prompt, escaped twice, is a tenth of that."""

MAX_ATTEMPTS: Final = 100
"""Guesses at the end of an echo; the defects seen and the likely one take one each."""

MAX_EFFORT: Final = MAX_ATTEMPTS * MAX_REPAIR // 10
"""Characters that wrong guesses may read together: all of them for the longest prompt, escaped twice, and of anything
longer as many as take some tenths of a second at worst, because the event loop stands meanwhile."""

_SURROGATES: Final = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a whole pair
    r"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"  # half of one
    r"|\\.",
    re.DOTALL,
)
_ECHO: Final = re.compile(r'(?<!\\)"(?:param|paramJson)"\s*:\s*(?=")')
_BARE_QUOTE: Final = re.compile(r'(?<!\\)"')
_PLAUSIBLE_END: Final = re.compile(r'"(?=\s*(?:,\s*"\w+"\s*:|\}))')


def loads(raw: bytes | str) -> Any:
    """Read JSON.

    Args:
        raw: UTF-8, UTF-16 or UTF-32, with or without a byte order mark; what cannot be read becomes replacement
            characters.

    Returns:
        The value; NaN and the infinities are None, whole numbers beyond 64 bits are floats.

    Raises:
        ValueError: Not JSON, or nested deeper than 64 levels.
    """
    try:
        value = _parse(raw)
        # Who opens few brackets cannot nest deeply, and most replies open few: walking through the values takes longer
        # than parsing them. Of bytes `count` looks at each, where `replace` seeks the next in a third of the time.
        if isinstance(raw, str):
            opened = raw.count("{") + raw.count("[")
        else:
            opened = len(raw) - len(raw.replace(b"{", b"").replace(b"[", b""))
        return value if opened <= MAX_DEPTH else _checked_depth(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def loads_reply(raw: bytes) -> Any:
    """Read the JSON of a reply, leaving out an echoed `param` or `paramJson` that breaks it.

    The service has been seen to echo the request with its quotes escaped and its backslashes not, so that the text
    ends early for a JSON parser, on every poll of a finished task.

    Returns:
        The value; a field that had to be left out is None.

    Raises:
        ValueError: Not JSON and not repairable, or nested deeper than 64 levels.
    """
    try:
        return loads(raw)
    except ValueError:
        text = as_text(raw)
        if len(text) > MAX_REPAIR:
            raise
        effort = 0
        for attempt in itertools.islice(_without_echo(text), MAX_ATTEMPTS):
            try:
                return _checked_depth(_WITHOUT_REPEATS.decode(attempt))
            except (ValueError, RecursionError) as error:
                effort += error.pos if isinstance(error, json.JSONDecodeError) else len(attempt)
            if effort > MAX_EFFORT:
                break
        raise


def dumps(value: Any) -> bytes:
    """Write what `json.dumps` can write as compact JSON: UTF-8, and without orjson all ASCII."""
    if orjson is not None:
        # It refuses whole numbers over 64 bits, keys that are not text and half a surrogate pair.
        with contextlib.suppress(TypeError):
            return orjson.dumps(value)
    return _COMPACT.encode(value).encode()


def as_text(raw: bytes | str) -> str:
    """The text of a body in whichever UTF, without a byte order mark."""
    if not isinstance(raw, str):
        if raw.startswith(b'{"'):
            # So begins nearly every reply, and no other UTF.
            return raw.decode("utf-8", "replace")
        raw = raw.decode(json.detect_encoding(raw), "replace")
    return raw.removeprefix("\ufeff")


def _parse(raw: bytes | str) -> Any:
    if orjson is not None:
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass  # the lenient parser has the last word
    text = as_text(raw)
    if "\\u" in text and ("\\ud" in text or "\\uD" in text):
        text = _SURROGATES.sub(lambda match: "\\ufffd" if match[1] else match[0], text)
    text = text.strip(_BLANKS)
    value, end = _LENIENT.raw_decode(text)
    if end != len(text):
        raise ValueError("more than JSON")
    return value


def _checked_depth(value: Any) -> Any:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for each in level for child in _children(each)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _children(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _integer(digits: str) -> int | float:
    if len(digits) < 19:  # noqa: PLR2004  so many fit into 64 bits, as nearly all do
        return int(digits)
    # 20 characters hold every 64-bit number; orjson makes floats of longer ones, and int() refuses 4,300 digits.
    value = int(digits) if len(digits) <= len("-9223372036854775808") else float(digits)
    return value if -(2**63) <= value < 2**64 else float(value)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # A wrong guess at the end of the echo may turn words of the prompt into fields. Those that matter are there
    # already, so they show up twice.
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field appears twice")
    return fields


_BLANKS: Final = " \t\n\r"
_COMPACT: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_LENIENT: Final = json.JSONDecoder(strict=False, parse_int=_integer, parse_constant=lambda _: None)
_WITHOUT_REPEATS: Final = json.JSONDecoder(
    strict=False, parse_int=_integer, parse_constant=lambda _: None, object_pairs_hook=_no_repeats
)


def _without_echo(text: str) -> Iterator[str]:
    """Texts in which `param` and `paramJson` are null, one for each way to tell where they end, the likeliest first."""
    echoes = [echo.span() for echo in _ECHO.finditer(text)]
    # Found once, because every guess about the first echo needs them for the second.
    plausible = [end.end() for end in _PLAUSIBLE_END.finditer(text)] if echoes else []

    def plausible_ends(start: int) -> Iterator[int]:
        return (plausible[index] for index in range(bisect_right(plausible, start), len(plausible)))

    # Both echoes have the same defect, so they are tried with the same rule.
    for ends in (partial(_bare_quote, text), partial(_end_of_json, text), plausible_ends):
        yield from _cut(text, echoes, ends)


def _cut(text: str, echoes: list[tuple[int, int]], ends: Callable[[int], Iterator[int]]) -> Iterator[str]:
    for _, begin in echoes[:1]:
        for end in ends(begin + 1):
            second = bisect_left(echoes, (end,))
            if second == len(echoes):
                yield f"{text[:begin]}null{text[end:]}"
                continue
            again = echoes[second][1]
            for last in ends(again + 1):
                yield f"{text[:begin]}null{text[end:again]}null{text[last:]}"


def _bare_quote(text: str, start: int) -> Iterator[int]:
    # Seen live: quotes escaped, backslashes not. Then only the closing quote has no backslash before it.
    if bare := _BARE_QUOTE.search(text, start):
        yield bare.end()


def _end_of_json(text: str, start: int) -> Iterator[int]:
    # Not escaped at all: the echo is JSON of its own, which tells its own end.
    with contextlib.suppress(ValueError, RecursionError):
        _, end = _LENIENT.raw_decode(text, start)
        if text.startswith('"', end):
            yield end + 1
