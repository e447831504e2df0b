"""replicate."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import attrs

from benchmarks.contenders import Setting
from benchmarks.dialects import PROMPT


@attrs.frozen
class Replicate:
    """The asynchronous methods of the client with its defaults."""

    client: Any

    async def create(self, number: int) -> Any:
        """See `Contender`."""
        return await self.client.predictions.async_create(
            model="black-forest-labs/flux-2-flex", input={"prompt": f"{PROMPT} {number}"}
        )

    async def finish(self, handle: Any) -> str:
        """See `Contender`."""
        await handle.async_wait()
        address: str = handle.output[0]
        return address


@asynccontextmanager
async def entered(setting: Setting) -> AsyncIterator[Replicate]:
    """See `contenders.entered`."""
    yield Replicate(import_module("replicate").Client("key", base_url=f"{setting.url}/replicate"))
