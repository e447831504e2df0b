"""A host of files over real sockets that can be told to answer otherwise, request by request."""

import asyncio
import hashlib
import re
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
from aiohttp import web
from multidict import CIMultiDictProxy

from flux2_async.models import ImageResult, TaskRecord, TaskState

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff\xe0"
WEBP = b"RIFF\x00\x00\x00\x00WEBP"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def result_of(*urls: str, task_id: str = "t1") -> ImageResult:
    record = TaskRecord(task_id=task_id, state=TaskState.SUCCESS, state_text="success", result_urls=urls)
    return ImageResult(task_id=task_id, urls=urls, record=record)


@attrs.define
class FileHost:
    """Serves `content` at every path, with Range and If-Range, unless `answers` holds something else to do first."""

    content: bytes
    validators: dict[str, str] = attrs.field(factory=dict)
    answers: deque[Answer] = attrs.field(factory=deque)
    seen: list[CIMultiDictProxy[str]] = attrs.field(factory=list)
    url: str = ""
    running: int = 0
    most_running: int = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request.headers)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await (self.answers.popleft() if self.answers else self.serve)(request)
        finally:
            self.running -= 1

    async def serve(self, request: web.Request) -> web.StreamResponse:
        headers = self.validators
        begin = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if begin is None or request.headers.get("If-Range") not in self.validators.values():
            return web.Response(body=self.content, headers=headers)
        start, size = int(begin[1]), len(self.content)
        if start >= size:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        part = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        return web.Response(status=206, body=self.content[start:], headers={**headers, **part})

    def cut_after(self, count: int, *, chunked: bool = False) -> Answer:
        """Send the first bytes of what would be served, then break the connection."""

        async def answer(request: web.Request) -> web.StreamResponse:
            whole = await self.serve(request)
            assert isinstance(whole, web.Response)
            assert isinstance(whole.body, bytes)
            headers = {name: value for name, value in whole.headers.items() if name != "Content-Length"}
            response = web.StreamResponse(status=whole.status, headers=headers)
            if chunked:
                response.enable_chunked_encoding()
            else:
                response.content_length = len(whole.body)
            await response.prepare(request)
            await response.write(whole.body[:count])
            # aiohttp's client drops what it has not given away yet when the connection breaks.
            await asyncio.sleep(1.0)
            assert request.transport is not None
            request.transport.close()
            return response

        return answer

    def stall_after(self, count: int, reached: asyncio.Event) -> Answer:
        """Send the first bytes, then nothing for ever."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers=self.validators)
            response.content_length = len(self.content)
            await response.prepare(request)
            await response.write(self.content[:count])
            reached.set()
            await asyncio.sleep(1e9)
            return response

        return answer


def reply(status: int, body: bytes = b"", **headers: str) -> Answer:
    """Answer once with this; `_` in the names of headers stands for `-`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers={key.replace("_", "-"): headers[key] for key in headers})

    return answer


@asynccontextmanager
async def serving(content: bytes, **validators: str) -> AsyncIterator[FileHost]:
    """Run a host; `ETag="..."`, `Last_Modified="..."` are what it can be resumed by."""
    host = FileHost(content, {key.replace("_", "-"): value for key, value in validators.items()})
    app = web.Application()
    app.router.add_get("/{name:.*}", host.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host.url = f"http://127.0.0.1:{runner.addresses[0][1]}/picture"
    try:
        yield host
    finally:
        await runner.cleanup()


def picture(size: int, seed: int = 0, magic: bytes = PNG) -> bytes:
    """Bytes that are a whole file of a format to who does not decode it, different for each seed and everywhere.

    Of fewer than 40 bytes there is only the beginning.
    """
    room = size - len(b"".join(_frame(magic, 0)))
    # Half a marker of a JPEG would be one with the next byte.
    noise = hashlib.shake_128(str(seed).encode()).digest(max(0, room)).replace(b"\xff", b"\0")
    begin, end = _frame(magic, max(0, room))
    return (begin + noise + end)[:size]


def _frame(magic: bytes, room: int) -> tuple[bytes, bytes]:
    """What stands before and behind content of this length."""
    if magic == JPEG:
        return magic + b"\0\2\xff\xda\0\2", b"\xff\xd9"
    if magic == WEBP:
        # An odd one lacks the byte that makes it even, as some encoders leave it.
        return struct.pack("<4sI8sI", b"RIFF", 12 + room + room % 2, b"WEBPVP8 ", room), b""
    return magic + struct.pack(">I4s", room, b"IDAT"), bytes(4) + struct.pack(">I4sI", 0, b"IEND", 0xAE426082)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
