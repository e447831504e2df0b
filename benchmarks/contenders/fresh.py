"""The floor with a connection of its own for each createTask: what an answer that is nobody else's costs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from benchmarks.contenders import Setting
from benchmarks.contenders.floor import ByHand


@asynccontextmanager
async def entered(setting: Setting) -> AsyncIterator[ByHand]:
    """See `contenders.entered`."""
    headers = {"Authorization": "Bearer key"}
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        aiohttp.ClientSession(headers=headers, connector=connector) as submit_http,
    ):
        yield ByHand(http, setting, submit_http)
