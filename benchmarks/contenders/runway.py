"""runwayml."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import attrs

from benchmarks.contenders import Setting
from benchmarks.dialects import PROMPT


@attrs.frozen
class Runway:
    """The asynchronous client with its defaults."""

    client: Any

    async def create(self, number: int) -> Any:
        """See `Contender`."""
        return await self.client.text_to_image.create(
            model="gen4_image", prompt_text=f"{PROMPT} {number}", ratio="1024:1024"
        )

    async def finish(self, handle: Any) -> str:
        """See `Contender`."""
        address: str = (await handle.wait_for_task_output()).output[0]
        return address


@asynccontextmanager
async def entered(setting: Setting) -> AsyncIterator[Runway]:
    """See `contenders.entered`."""
    package = import_module("runwayml")
    async with package.AsyncRunwayML(api_key="key", base_url=f"{setting.url}/runwayml") as client:
        yield Runway(client)
