"""Waiting for what has to come to its end, also when that is cancelled or another waits as well."""

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


async def ended(task: "asyncio.Future[Any]") -> None:
    """Wait for what ends soon; who is cancelled meanwhile waits all the same, and is cancelled then."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


class SharedGenerator(AsyncGenerator[T, None]):
    """Gives what a generator gives, and alone keeps it alive; who asks while another is asking waits for its turn."""

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
