"""Serving files: results, drawn at their first GET, and uploads; with Range, ETag and Last-Modified."""

import asyncio
import base64
import hashlib
import logging
import struct
import zlib
from collections import OrderedDict
from functools import partial

import anyio
import anyio.to_thread
import attrs
from aiohttp import web

from flux2_async.emulator.engine import Engine
from flux2_async.emulator.render import draw
from flux2_async.emulator.replies import Reply
from flux2_async.emulator.store import UPLOADS, Reference, ResultRef, StoredFile, kind_of, ref_of

logger: logging.Logger = logging.getLogger("flux2_async")

TINY = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==")
"""A PNG of one grey pixel, whose first chunk ends at byte 33."""

CACHE_BYTES = 128 * 1024 * 1024
"""Drawn pictures that are kept; older ones are drawn anew, byte for byte the same."""

DRAWING_THREADS = 4

SANDBOX = {"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff"}
"""What somebody uploaded stands at the same origin as the buttons of the emulator's page."""


@attrs.define(eq=False)
class Files:
    """The file hosts of one emulator."""

    engine: Engine
    _cache: OrderedDict[ResultRef, bytes] = attrs.field(factory=OrderedDict)
    _drawing: dict[ResultRef, asyncio.Future[bytes]] = attrs.field(factory=dict)
    _threads: anyio.CapacityLimiter = attrs.field(factory=lambda: anyio.CapacityLimiter(DRAWING_THREADS))

    async def get(self, request: web.Request) -> Reply:
        """Any file: 200 or 206 with it, 403 for an address that has expired, 404, 416."""
        ref = ref_of(request.path)
        if ref is None:
            file = self.engine.store.find(request.path.removeprefix(UPLOADS))
            if file is None:
                return error(404, "Not Found")
            return self._reply(request, file.content, file.mime_type, file.stored_at)
        task = self.engine.finished(ref)
        if task is None or self.engine.clock.now() >= task.finishes_at + self.engine.script.file_life:
            return error(404, "Not Found")
        now, until = self.engine.clock.now(), task.finishes_at + self.engine.script.result_life
        if "signature" in request.query:
            until = self.engine.store.expiry(request.path_qs) or now
        if now >= until:
            return error(403, "The link has expired")
        try:
            content = await self.picture(ref)
        except ImportError as missing:
            # A client tells its user no words of a file's host.
            logger.warning("%s", missing)
            return error(500, str(missing))
        mime_type = "image/jpeg" if content.startswith(b"\xff\xd8") else "image/png"
        return self._reply(request, content, mime_type, task.finishes_at)

    async def shown(self, path: str) -> bytes | None:
        """A picture for the emulator's own page, which is no client: nobody counts it, and no link expires for it.

        `path` is that of the address at which clients find it; None when there is no such picture.
        """
        ref = ref_of(path)
        if ref is None:
            file = self.engine.store.find(path.removeprefix(UPLOADS))
            return file.content if file is not None and kind_of(file.content) else None
        if self.engine.finished(ref) is None:
            return None
        try:
            return await self.picture(ref)
        except ImportError:
            return None

    def signed(self, ref: ResultRef) -> str:
        """A link to a picture for the script's `link_life`."""
        url = self.engine.tasks[ref.task_id].result_urls[ref.number]
        return self.engine.store.signed(url, self.engine.clock.now() + self.engine.script.link_life)

    async def picture(self, ref: ResultRef) -> bytes:
        """The bytes of a finished picture, which exists; many callers at a time share one drawing."""
        if not self.engine.script.render:
            return tiny_png(f"{ref.task_id}/{ref.number}")
        if ref in self._cache:
            self._cache.move_to_end(ref)
            return self._cache[ref]
        if ref not in self._drawing:
            self._drawing[ref] = asyncio.ensure_future(self._draw(ref))
        # Who goes away takes the drawing from nobody else.
        return await asyncio.shield(self._drawing[ref])

    async def _draw(self, ref: ResultRef) -> bytes:
        try:
            task = self.engine.tasks[ref.task_id]
            ratio, resolution = task.shape
            drawing = partial(
                draw,
                task.prompt,
                ratio,
                resolution,
                label=f"{task.body['model']} · {ratio} · {resolution}",
                references=[await self._reference(reference) for reference in task.references],
                number=ref.number,
                kind=self.engine.script.picture_format,
            )
            content = await anyio.to_thread.run_sync(drawing, limiter=self._threads)
            self._cache[ref] = content
            while sum(map(len, self._cache.values())) > CACHE_BYTES:
                self._cache.popitem(last=False)
            return content
        finally:
            del self._drawing[ref]

    async def _reference(self, reference: Reference) -> bytes | str:
        match reference:
            case StoredFile():
                return reference.content
            case ResultRef():
                return await self.picture(reference)
            case str():
                return reference

    def _reply(self, request: web.Request, content: bytes, mime_type: str, modified: float) -> Reply:
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        date = self.engine.clock.http_date(modified)
        headers = SANDBOX | {"Accept-Ranges": "bytes", "ETag": etag, "Last-Modified": date}
        wanted = wanted_range(request, headers)
        if wanted is None:
            return Reply(content, 200, mime_type, headers)
        size = len(content)
        start, stop, _ = wanted.indices(size)
        if start >= stop:
            return attrs.evolve(error(416, ""), headers={"Content-Range": f"bytes */{size}"})
        return Reply(
            content[start:stop], 206, mime_type, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        )


def wanted_range(request: web.BaseRequest, validators: dict[str, str]) -> slice | None:
    """The one range that is asked for; None for the whole file.

    A Range that is malformed or names several ranges is passed over, and so is one whose If-Range names another
    version than `validators`, the file's headers, do.
    """
    given, condition = request.headers.get("Range"), request.headers.get("If-Range")
    if given is None or condition not in {None, validators["ETag"], validators["Last-Modified"]}:
        return None
    try:
        wanted = request.http_range
    except ValueError:
        return None
    # The last no bytes, which aiohttp takes for all of them.
    return slice(0, 0) if given == "bytes=-0" else wanted


def error(status: int, text: str) -> Reply:
    """A refusal of the file host, which speaks no JSON."""
    return Reply(text.encode(), status, "text/plain")


def tiny_png(text: str) -> bytes:
    """A PNG of one grey pixel that carries a text, so that no two are the same; made without Pillow."""
    chunk = b"tEXtComment\0" + text.encode()
    return TINY[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + TINY[33:]
