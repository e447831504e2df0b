"""Objects that can be shown at every stage of their life: also while, and after, they could not be made."""

from typing import TypeVar

__all__ = ["showable"]

T = TypeVar("T")


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
