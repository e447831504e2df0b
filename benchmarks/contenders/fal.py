"""fal-client. It sends its first call over https only; the addresses it then gets from the service are plain ones."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import attrs

from benchmarks.contenders import Setting
from benchmarks.dialects import PROMPT


@attrs.frozen
class Fal:
    """The asynchronous client with its defaults."""

    client: Any

    async def create(self, number: int) -> Any:
        """See `Contender`."""
        return await self.client.submit("fal-ai/flux-2", arguments={"prompt": f"{PROMPT} {number}"})

    async def finish(self, handle: Any) -> str:
        """See `Contender`."""
        address: str = (await handle.get())["images"][0]["url"]
        return address


@asynccontextmanager
async def entered(setting: Setting) -> AsyncIterator[Fal]:
    """See `contenders.entered`."""
    # Read when the package is imported.
    os.environ |= {"FAL_QUEUE_RUN_HOST": setting.secure_url.removeprefix("https://"), "FAL_KEY": "key"}
    os.environ["SSL_CERT_FILE"] = setting.certificate
    yield Fal(import_module("fal_client").AsyncClient())
