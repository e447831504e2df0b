"""openai: background responses with the tool that makes pictures, asked for every 2 s as its guide shows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import attrs

from benchmarks.contenders import Setting
from benchmarks.dialects import PROMPT

INTERVAL = 2.0


@attrs.frozen
class OpenAI:
    """The asynchronous client with its defaults."""

    client: Any

    async def create(self, number: int) -> Any:
        """See `Contender`."""
        return await self.client.responses.create(
            model="gpt-5", input=f"{PROMPT} {number}", tools=[{"type": "image_generation"}], background=True
        )

    async def finish(self, handle: Any) -> str:
        """See `Contender`."""
        response = handle
        while response.status in {"queued", "in_progress"}:
            await asyncio.sleep(INTERVAL)
            response = await self.client.responses.retrieve(handle.id)
        address: str = response.output[0].result
        return address


@asynccontextmanager
async def entered(setting: Setting, **options: Any) -> AsyncIterator[OpenAI]:
    """See `contenders.entered`."""
    package = import_module("openai")
    async with package.AsyncOpenAI(api_key="key", base_url=f"{setting.url}/openai/v1", **options) as client:
        yield OpenAI(client)
