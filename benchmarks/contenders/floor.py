"""The floor: what is left when everything but the two calls is taken away. It knows no limit and no failure."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import attrs

from benchmarks.contenders import Setting
from benchmarks.dialects import PROMPT


@attrs.frozen
class ByHand:
    """The loop that everybody writes first."""

    http: aiohttp.ClientSession
    setting: Setting
    submit_http: aiohttp.ClientSession

    def body(self, number: int) -> dict[str, object]:
        """What is sent."""
        content: dict[str, object] = {"prompt": f"{PROMPT} {number}", "aspect_ratio": "1:1", "resolution": "1K"}
        if self.setting.images:
            content["input_urls"] = self.setting.addresses()
        kind = "image-to-image" if self.setting.images else "text-to-image"
        return {"model": f"flux-2/flex-{kind}", "input": content}

    async def create(self, number: int) -> str:
        """See `Contender`."""
        url = f"{self.setting.url}/api/v1/jobs/createTask"
        async with self.submit_http.post(url, json=self.body(number)) as response:
            reply = await response.json()
        task_id: str = reply["data"]["taskId"]
        return task_id

    async def finish(self, handle: str) -> str:
        """See `Contender`."""
        url = f"{self.setting.url}/api/v1/jobs/recordInfo"
        while True:
            await asyncio.sleep(self.setting.interval)
            async with self.http.get(url, params={"taskId": handle}) as response:
                record = (await response.json())["data"]
            if record["state"] == "success":
                address: str = json.loads(record["resultJson"])["resultUrls"][0]
                return address


@asynccontextmanager
async def entered(setting: Setting) -> AsyncIterator[ByHand]:
    """See `contenders.entered`."""
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer key"}) as http:
        yield ByHand(http, setting, http)
