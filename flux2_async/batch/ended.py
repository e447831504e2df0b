"""Waiting for what has to come to its end, also when that is cancelled."""

import asyncio
from typing import Any


async def ended(task: "asyncio.Task[Any]") -> None:
    """Wait for a task that ends soon; who is cancelled meanwhile waits all the same, and is cancelled then."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
