"""What people see: texts of others as a terminal may have them, objects that could not be made, addresses. Pure."""

import functools
import logging
import re
import sys
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar
from urllib.parse import urlsplit

import attrs

__all__ = ["json_escaped", "made_without_frames", "printable", "showable", "shown_address", "without_frames"]

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

# Joins letters of some scripts, and people to families; steers nothing.
JOINERS: Final = "\u200c\u200d"
KEPT: Final = f"\n\t{JOINERS}"
NOT_ASCII_TEXT: Final = re.compile(r"[^ -~\n\t]")


def printable(text: str) -> str:
    r"""Give text in which nothing steers a terminal or turns the direction of reading.

    Control characters but line feeds and tabs, bidirectional marks, and what no font shows become escapes such as
    `\x1b`, so that they are seen.
    """
    return NOT_ASCII_TEXT.sub(_escaped, text)


def json_escaped(document: str) -> str:
    r"""Give JSON that means the same, with such characters as `\u202e`."""
    return NOT_ASCII_TEXT.sub(lambda match: match[0] if _is_harmless(match[0]) else _json_escape(match[0]), document)


def showable(kind: type[T]) -> type[T]:
    """Give a class a `repr` that works on what its constructor refused.

    Error reporters show the local variables of the frames that raised, and `self` is among them.
    """
    show = kind.__repr__

    def show_or_name(self: T) -> str:
        try:
            return show(self)
        except (AttributeError, TypeError):
            return f"<{kind.__name__} that was not made>"

    kind.__repr__ = show_or_name  # type: ignore[assignment,method-assign]  # it is a method of this kind
    return kind


def without_frames(call: Callable[P, R]) -> Callable[P, R]:
    """Give a call whose errors bring no frames along: for those that are given secrets, and refuse arguments.

    Error reporters show the local variables of every frame that an error passes. The text has to say it all.
    """

    @functools.wraps(call)
    def called(*args: P.args, **options: P.kwargs) -> R:
        try:
            return call(*args, **options)
        except Exception as caught:  # noqa: BLE001  one that a wrong type meets shows as much as our own
            error = caught.with_traceback(None)
        del args, options
        error.__cause__ = error.__context__ = None
        caller = sys._getframe(1)  # noqa: SLF001  there is no other way to it
        if caller.f_code is attrs.evolve.__code__:
            # It has put all attributes into the dictionary of its keyword arguments.
            caller.f_locals["changes"].clear()
        del caller
        raise error

    return called


def made_without_frames(kind: type[T]) -> type[T]:
    """Let a class refuse the arguments of its constructor so."""
    make: Any = kind
    make.__init__ = without_frames(make.__init__)
    return kind


def shown_address(url: str) -> str:
    """Give an http(s) address without what may be private in it: user name, password, query, fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return character if _is_harmless(character) else character.encode("unicode_escape", "surrogatepass").decode()


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in KEPT


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[begin : begin + 4]}" for begin in range(0, len(units), 4))


def _with_printable_arguments(record: logging.LogRecord) -> bool:
    """Let a record pass with ids and reasons, which others chose, as a terminal may have them."""
    if isinstance(record.args, tuple):
        record.args = tuple(value if isinstance(value, int | float) else printable(str(value)) for value in record.args)
    return True


logging.getLogger("flux2_async").addFilter(_with_printable_arguments)
