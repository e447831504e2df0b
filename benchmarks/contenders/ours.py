"""This library."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import attrs

from benchmarks.contenders import Setting
from benchmarks.dialects import PROMPT
from flux2_async import Flux2Session, ImageTask, ImageToImage, Polling, RateLimit, TextToImage


@attrs.frozen
class Ours:
    """A session without a cap on running tasks, since the others have none."""

    flux: Flux2Session
    addresses: list[str]

    async def create(self, number: int) -> ImageTask:
        """See `Contender`."""
        prompt = f"{PROMPT} {number}"
        request = ImageToImage(prompt, images=self.addresses) if self.addresses else TextToImage(prompt)
        return await self.flux.submit(request)

    async def finish(self, handle: ImageTask) -> str:
        """See `Contender`."""
        return (await handle.result()).urls[0]


@asynccontextmanager
async def entered(setting: Setting) -> AsyncIterator[Ours]:
    """See `contenders.entered`."""
    rate_limit = RateLimit(setting.limit, setting.period) if setting.limit else None
    polling = Polling(interval=setting.interval) if setting.price is None else Polling(price=setting.price)
    async with AsyncExitStack() as stack:
        http, url = None, setting.url
        if setting.secure:
            trusting = ssl.create_default_context(cafile=setting.certificate)
            connector = aiohttp.TCPConnector(ssl=trusting, limit=0)
            http, url = await stack.enter_async_context(aiohttp.ClientSession(connector=connector)), setting.secure_url
        flux = Flux2Session("key", base_url=url, rate_limit=rate_limit, max_running=None, polling=polling, http=http)
        yield Ours(await stack.enter_async_context(flux), setting.addresses())
