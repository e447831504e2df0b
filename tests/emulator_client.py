"""The barest client for tests of the emulator: it hides nothing, so a test sees what went over the wire."""

import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import attrs

from flux2_async.emulator import Emulator, Script

CREATE = "/api/v1/jobs/createTask"
RECORD = "/api/v1/jobs/recordInfo"
CREDIT = "/api/v1/chat/credit"
DOWNLOAD_URL = "/api/v1/common/download-url"


def text_to_image(**changes: Any) -> dict[str, Any]:
    given = {"prompt": "a red kettle", "aspect_ratio": "1:1", "resolution": "1K"}
    return {"model": "flux-2/pro-text-to-image", "input": given | changes}


def image_to_image(*urls: str, **changes: Any) -> dict[str, Any]:
    body = text_to_image(**{"input_urls": list(urls)} | changes)
    return body | {"model": "flux-2/flex-image-to-image"}


@attrs.frozen
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> Any:
        return self.json["code"]

    @property
    def data(self) -> Any:
        return self.json["data"]


@attrs.frozen
class RawClient:
    emulator: Emulator
    http: aiohttp.ClientSession

    async def call(self, method: str, url: str, **options: Any) -> Answer:
        headers = {"Authorization": f"Bearer {self.emulator.api_key}"} | options.pop("headers", {})
        # Results and uploads are fetched the way a client must: without the key.
        if url.startswith("/"):
            url = self.emulator.base_url + url
        elif "Authorization" in headers:
            del headers["Authorization"]
        async with self.http.request(method, url, headers=headers, allow_redirects=False, **options) as response:
            return Answer(response.status, await response.read(), response.headers.copy())

    async def create(self, body: Any = None, **changes: Any) -> Answer:
        return await self.call("POST", CREATE, json=text_to_image(**changes) if body is None else body)

    async def submit(self, body: Any = None, **changes: Any) -> str:
        answer = await self.create(body, **changes)
        assert answer.code == 200, answer.body
        return str(answer.data["taskId"])

    async def record(self, task_id: str) -> Answer:
        return await self.call("GET", RECORD, params={"taskId": task_id})

    async def urls(self, task_id: str) -> list[str]:
        return list(json.loads((await self.record(task_id)).data["resultJson"])["resultUrls"])

    async def credits(self) -> float:
        return float((await self.call("GET", CREDIT)).data)

    async def upload(self, content: bytes, name: str | None = "a.png", folder: str | None = "pictures") -> Answer:
        form = aiohttp.FormData()
        form.add_field("file", io.BytesIO(content), filename="original.png", content_type="image/png")
        if folder is not None:
            form.add_field("uploadPath", folder)
        if name is not None:
            form.add_field("fileName", name)
        return await self.call("POST", "/file-upload/api/file-stream-upload", data=form)

    async def upload_json(self, way: str, **body: Any) -> Answer:
        return await self.call("POST", f"/file-upload/api/file-{way}-upload", json=body)

    async def get(self, url: str, **headers: str) -> Answer:
        return await self.call("GET", url, headers={name.replace("_", "-"): text for name, text in headers.items()})


@asynccontextmanager
async def emulated(script: Script | None = None, **options: Any) -> AsyncIterator[RawClient]:
    async with Emulator(script, **options) as emulator, aiohttp.ClientSession() as http:
        yield RawClient(emulator, http)
