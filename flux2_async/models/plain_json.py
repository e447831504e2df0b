"""What is kept or sent as JSON: checked when it is given, so that it can be written whenever that has to be. Pure."""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from flux2_async.errors import InvalidRequestError

__all__ = ["check_text", "plain_object", "shown", "utf8_json"]

MAX_DEPTH: Final = 64
"""Levels of nesting: deeper ones break readers, pickle and repr later on."""

MAX_BITS: Final = 2126
"""Of whole numbers: 640 digits, which every Python reads, however its limit of digits is set."""

MAX_SIZE: Final = 10_000_000
"""Characters of all text together; a value counts as eight besides."""


class _NotPlainError(Exception):
    """JSON cannot hold something.

    Attributes:
        reason: Why not.
        path: Where it stands, added to on the way out; empty at the value itself.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""


def plain_object(field: str, value: object) -> dict[str, Any]:
    """Give a copy of a mapping of plain values: text, numbers, True, False, None, lists and dictionaries.

    Args:
        field: What the caller calls it.
        value: A mapping; tuples become lists, subclasses what they are made of, numbers as inner names text.

    Raises:
        InvalidRequestError: JSON cannot hold it; the text names the place.
    """
    if type(value) is dict and not value:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidRequestError(
            f"{field}: {type(value).__name__} given, it must be a mapping from field names to JSON values"
        )
    try:
        plain: dict[str, Any] = _Copy().mapping(value, MAX_DEPTH)
    except _NotPlainError as error:
        raise InvalidRequestError(
            f"{field}: cannot be written as JSON ({error.path.removeprefix('.')}: {error.reason})"
        ) from None
    return plain


def check_text(field: str, value: str) -> None:
    """Look whether text is Unicode.

    Raises:
        InvalidRequestError: It is none.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # Python makes them of bytes it cannot read; the service would draw something else than was meant, and charge.
        raise InvalidRequestError(
            f"{field}: half a surrogate pair given at character {error.start + 1}, all text must be valid Unicode"
        ) from None


def shown(value: object) -> str:
    """Give what was given as an error shows it: at most 99 characters, and no number that Python will not write."""
    try:
        return f"{value!r:.99}"
    except ValueError:
        return f"{type(value).__name__} of too many digits"


def utf8_json(value: object) -> bytes:
    """Write JSON for other programs, in one line; text that is no Unicode, of an old journal, with escapes."""
    try:
        return _UTF8.encode(value).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


_UTF8: Final = json.JSONEncoder(ensure_ascii=False)


class _Copy:
    """One copying, which ends when it becomes too much: a value may stand in many places, and in itself."""

    def __init__(self) -> None:
        self.left = MAX_SIZE

    def mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        """Copy a mapping whose values may have `depth` levels."""
        plain = {self.key(key): self.within(f".{key}", child, depth) for key, child in value.items()}
        if len(plain) < len(value):
            raise _NotPlainError("the name of a field is given twice, as a number and as text")
        return plain

    def key(self, value: object) -> str:
        """Give the name of a field."""
        if isinstance(value, int) and not isinstance(value, bool):
            # As all writers of JSON do.
            return str(_number(value))
        if not isinstance(value, str):
            raise _NotPlainError(f"{type(value).__name__} given as the name of a field, it must be text")
        return self.text(value)

    def within(self, place: str, value: object, depth: int) -> Any:
        """Copy a value that stands at a place of another one, which has `depth` levels left."""
        try:
            return self.value(value, depth - 1)
        except _NotPlainError as error:
            # Of many levels the outer ones tell where it is.
            error.path = f"{place}{error.path}" if len(error.path) < MAX_DEPTH else f"{place}…"
            raise

    def value(self, value: object, depth: int) -> Any:
        """Copy a value of whatever kind."""
        self.count(8)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int | float):
            return _number(value)
        if not isinstance(value, Mapping | list | tuple):
            raise _NotPlainError(f"{type(value).__name__} given")
        if depth == 0:
            raise _NotPlainError(f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, Mapping):
            return self.mapping(value, depth)
        return [self.within(f"[{number}]", child, depth) for number, child in enumerate(value)]

    def text(self, value: str) -> str:
        """Copy text, which must be Unicode."""
        self.count(len(value))
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _NotPlainError(f"half a surrogate pair at character {error.start + 1}") from None
        return str.__str__(value)

    def count(self, size: int) -> None:
        """Count characters; too many are refused."""
        self.left -= size
        if self.left < 0:
            raise _NotPlainError(f"all in all more than {MAX_SIZE:,} characters")


def _number(value: float) -> float:
    """Copy a number, which must be finite and of digits that every Python reads."""
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise _NotPlainError("a whole number of more than 640 digits")
        return int.__int__(value)
    if not math.isfinite(value):
        raise _NotPlainError(f"{value} given")
    return float.__float__(value)
