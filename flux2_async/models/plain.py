"""Plain text, bytes and numbers out of subclasses of them. Pure.

A member of `class Tier(str, Enum)` equals `"pro"`, and is formatted as `Tier.PRO` and hashed as something else. So what
is taken because it equals an allowed value is kept as that value.
"""

from functools import cache
from typing import Any, Final, TypeGuard, TypeVar

import attrs

__all__ = ["is_number", "is_whole", "plain", "plain_fields", "taking"]

T = TypeVar("T")

_PLAIN: Final = frozenset({str, bytes, bool, int, float, type(None)})


def plain(value: T) -> T:
    """The value without its subclass, where it is text, bytes or a number; anything else as it is."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, str):
        return str.__str__(value)  # type: ignore[return-value]  # what a T is made of stands in for it
    if isinstance(value, bytes):
        return bytes(memoryview(value))  # type: ignore[return-value]  # likewise
    if isinstance(value, int):
        return int.__int__(value)  # type: ignore[return-value]  # likewise
    if isinstance(value, float):
        return float.__float__(value)  # type: ignore[return-value]  # likewise
    return value


def plain_fields(_: type, fields: list["attrs.Attribute[Any]"]) -> list["attrs.Attribute[Any]"]:
    """Let fields that have no converter take the plain value, as `field_transformer` of attrs."""
    return [field if field.converter else field.evolve(converter=taking(field.type)) for field in fields]  # type: ignore[arg-type]  # types have a hash


@cache
def taking(kind: Any) -> "attrs.Converter[Any, Any]":
    """Give what converts fields of a type; one for all of them, since attrs takes its signature apart."""

    def take(value: Any) -> Any:
        return value if type(value) in _PLAIN else plain(value)

    # What the signature of the class says of the argument.
    take.__annotations__["value"] = kind
    return attrs.Converter(take)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number, which True is not; infinity and NaN are."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
