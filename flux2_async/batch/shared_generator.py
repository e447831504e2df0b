"""An asynchronous generator that one may close while another reads it."""

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class SharedGenerator(AsyncGenerator[T, None]):
    """Gives what a generator gives; who asks while another is asking waits for its turn.

    Args:
        source: The generator, kept alive by this alone.
    """

    def __init__(self, source: AsyncGenerator[T, None]) -> None:
        self._source = source
        self._turn = asyncio.Lock()

    async def asend(self, value: None, /) -> T:
        """Give the next value."""
        async with self._turn:
            try:
                return await self._source.asend(value)
            except asyncio.CancelledError as error:
                # Ctrl-C prints it, and where inside it was waited tells nobody anything.
                raise error.with_traceback(None)  # noqa: B904  the same one

    async def athrow(self, kind: Any, value: Any = None, _: TracebackType | None = None, /) -> T:
        """Raise inside the generator."""
        async with self._turn:
            return await self._source.athrow(kind if value is None else value)

    async def aclose(self) -> None:
        """End the generator, after who reads it now."""
        # Not by `athrow`, which tells nothing about a generator that is at its end.
        async with self._turn:
            await self._source.aclose()
