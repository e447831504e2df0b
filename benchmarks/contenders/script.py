"""The script that users write next: the loop by hand, a semaphore against floods, aiolimiter against refusals."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import aiohttp
import attrs

from benchmarks.contenders import Setting
from benchmarks.contenders.floor import ByHand

CONCURRENT = 100


@attrs.frozen
class Script(ByHand):
    """Waits for the limiter, and after a refusal for Retry-After or a second."""

    limiter: Any
    semaphore: asyncio.Semaphore

    async def create(self, number: int) -> str:
        """See `Contender`."""
        async with self.semaphore:
            while True:
                async with self.limiter:
                    try:
                        return await super().create(number)
                    except aiohttp.ClientResponseError as error:
                        pause = (
                            float(error.headers["Retry-After"])
                            if error.headers and "Retry-After" in error.headers
                            else 1.0
                        )
                await asyncio.sleep(pause)


@asynccontextmanager
async def entered(setting: Setting) -> AsyncIterator[Script]:
    """See `contenders.entered`."""
    limiter = import_module("aiolimiter").AsyncLimiter(setting.limit or 1_000_000, setting.period)
    headers = {"Authorization": "Bearer key"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as http:
        yield Script(http, setting, http, limiter, asyncio.Semaphore(CONCURRENT))
