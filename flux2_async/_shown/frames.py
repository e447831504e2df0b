"""What error reporters see, which show the local variables of every frame that an error passes. Pure."""

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import attrs

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


class Secret:
    """Something that shows itself only when it is asked to.

    Args:
        value: Whatever was given for it; white space at the ends of a text is dropped.
    """

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value.strip() if isinstance(value, str) else value

    def __repr__(self) -> str:
        return "<secret>"

    def reveal(self) -> Any:
        """Give it; not to be kept in a variable."""
        return self._value


def showable(kind: type[T]) -> type[T]:
    """Give a class a `repr` that works on what its constructor refused, which is in the frame that raised."""
    show = kind.__repr__

    def show_or_name(self: T) -> str:
        try:
            return show(self)
        except (AttributeError, TypeError):
            return f"<{kind.__name__} that was not made>"

    kind.__repr__ = show_or_name  # type: ignore[assignment,method-assign]  # it is a method of this kind
    return kind


def without_frames(call: Callable[P, R]) -> Callable[P, R]:
    """Give a call whose errors bring no frames along, so that their text has to say it all.

    For those that are given secrets, and refuse arguments.
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
