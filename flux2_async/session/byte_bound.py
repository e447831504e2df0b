"""How much memory is kept for what may be asked for once more: the oldest gives way. Pure."""

import math
import sys
from collections import OrderedDict
from typing import Any

import attrs


class ByteBound:
    """Names in the order in which they came, and the bytes that are kept for each.

    Args:
        most: Bytes for all together.
        names: Names. None: as many as have room.
    """

    def __init__(self, most: int, *, names: int | None = None) -> None:
        self._most = most
        self._names = math.inf if names is None else names
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._total = 0

    def keep(self, name: str, size: int = 0) -> list[str]:
        """Count a name as the newest; give the oldest ones, perhaps itself, that must give way."""
        self._total += size - self._sizes.pop(name, 0)
        self._sizes[name] = size
        gone: list[str] = []
        while self._total > self._most or len(self._sizes) > self._names:
            oldest, freed = self._sizes.popitem(last=False)
            self._total -= freed
            gone.append(oldest)
        return gone

    def discard(self, name: str) -> None:
        """Count a name no more; one that is not there is ignored."""
        self._total -= self._sizes.pop(name, 0)


def memory_of_request(value: Any) -> int:
    """Give the bytes that a request, or a part of it, keeps in memory."""
    total = sys.getsizeof(value)
    if isinstance(value, dict):
        total += sum(memory_of_request(each) for pair in value.items() for each in pair)
    elif isinstance(value, list | tuple):
        total += sum(map(memory_of_request, value))
    elif attrs.has(type(value)):
        total += sum(memory_of_request(getattr(value, field.name)) for field in attrs.fields(type(value)))
    return total
