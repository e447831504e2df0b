"""Pictures on their way to the service, each content once per session."""

import os
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import aiohttp
import anyio
import anyio.to_thread

from flux2_async._http.api import Api
from flux2_async._http.file_objects import read_file_object, reading
from flux2_async._http.local_picture import Picture, check_picture, read_picture
from flux2_async._http.retry import persist
from flux2_async._protocol.converter import http_address
from flux2_async._protocol.file_types import extension_of
from flux2_async._protocol.media import MAX_PICTURE, upload_name
from flux2_async.errors import InvalidRequestError
from flux2_async.models import UploadedFile
from flux2_async.models.image_sources import how_to_give, is_url

UPLOAD_PATH: Final = "images/flux2-async"
UPLOADS_AT_ONCE: Final = 4

LIFE: Final = 86400.0
"""Seconds for which the service keeps a file when it does not say; documented are 3 days, users quote 24 hours."""

MARGIN: Final = 3600.0
"""Seconds before its end when a file is no longer handed out: a task fetches its pictures after it was sent."""

MAX_REMEMBERED: Final = 4096


class Uploads:
    """Sends pictures, and remembers what is there already.

    Args:
        api: The service.
        most: Bytes that one picture may have.
    """

    def __init__(self, api: Api, most: int = MAX_PICTURE) -> None:
        self._api = api
        self._most = most
        self._places = anyio.Semaphore(UPLOADS_AT_ONCE)
        # Each with the time of the loop's clock at which to forget it, the oldest first.
        self._kept: OrderedDict[str, tuple[float, UploadedFile]] = OrderedDict()
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    async def check(self, places: Mapping[str, Path | bytes]) -> None:
        """Look at pictures before they are sent, each under the name by which an error speaks of it.

        Raises:
            InvalidRequestError: One is no readable JPEG, PNG or WebP file of 1 byte to what the service takes.
        """

        def check_all() -> None:
            for field, place in places.items():
                check_picture(field, place, self._most)

        await anyio.to_thread.run_sync(check_all)

    async def bring_local(self, field: str, source: Path | bytes, file_name: str | None) -> UploadedFile:
        """Read a picture and `bring` it; see `check` for `field`."""
        picture = await anyio.to_thread.run_sync(read_picture, field, source, self._most)
        return await self.bring(picture, file_name)

    async def bring_source(self, source: Any, file_name: str | None) -> UploadedFile:
        """Read whatever a caller gives for one picture, and `bring` it; an error names it as `source`."""
        if is_url(source):
            return await self._fetched(source, file_name)
        return await self.bring_local("source", await _read_source(source, self._most), file_name)

    async def bring(self, picture: Picture, file_name: str | None) -> UploadedFile:
        """Give the file at the service, sending it when it is not there.

        Who asks for a content that is being sent waits; when the first fails or is cancelled, the next one tries. A
        content that is there keeps the name it has.

        Raises:
            InvalidRequestError: The file was changed meanwhile.
            ApiError: The service refused it.
            TransportError: No answer came in five tries.
            ProtocolError: No answer that makes sense came in five tries.
        """
        lock = self._locks.setdefault(picture.digest, anyio.Lock())
        async with lock:
            known = self._recall(picture.digest)
            if known is not None:
                return known
            name = upload_name(picture.digest, picture.media.extension, file_name)
            file = await persist(lambda: self._send(picture, name))
            self._remember(picture.digest, file)
            return file

    async def _fetched(self, source: str, file_name: str | None) -> UploadedFile:
        """Let the service fetch an address; what is there may be another picture the next time."""
        address = http_address(source)
        if address is None:
            raise InvalidRequestError("source: not a complete address, it must look like https://host/picture.jpg")
        fields = {"fileUrl": address, "uploadPath": UPLOAD_PATH}
        # Without a name the service makes one up, and with one of before it would replace that file.
        extension = next(filter(None, map(extension_of, (file_name or "", urlsplit(address).path))), None)
        if extension is not None:
            fields["fileName"] = upload_name(uuid.uuid4().hex, extension, file_name)

        async def send() -> UploadedFile:
            async with self._places:
                return await self._api.upload_address(fields)

        return await persist(send)

    def _recall(self, digest: str) -> UploadedFile | None:
        until, file = self._kept.get(digest, (0.0, None))
        return file if anyio.current_time() < until else None

    def _remember(self, digest: str, file: UploadedFile) -> None:
        life = LIFE if file.expires_at is None else (file.expires_at - datetime.now(UTC)).total_seconds()
        self._kept[digest] = (anyio.current_time() + life - MARGIN, file)
        self._kept.move_to_end(digest)
        if len(self._kept) > MAX_REMEMBERED:
            self._kept.popitem(last=False)

    async def _send(self, picture: Picture, name: str) -> UploadedFile:
        async with self._places:
            file = await anyio.to_thread.run_sync(picture.open)
            # Closing what was only read does not block, and in a thread it could be cancelled.
            with file:
                form = aiohttp.FormData()
                form.add_field("uploadPath", UPLOAD_PATH)
                form.add_field("fileName", name)
                # aiohttp reads a file object piece by piece in a thread.
                form.add_field("file", file, filename=name, content_type=picture.media.mime_type)
                uploaded = await self._api.upload(form, size=picture.size, mime_type=picture.media.mime_type)
            await anyio.to_thread.run_sync(picture.check_unchanged)
        return uploaded


async def _read_source(source: Any, most: int) -> Path | bytes:
    """Give a path or bytes, reading a file object."""
    if isinstance(source, bytes | bytearray | memoryview):
        with reading("source"):
            return bytes(source)
    if isinstance(source, str | os.PathLike):
        return Path(source)
    # A form's field of aiohttp holds its file.
    stream: Any = source if hasattr(source, "read") else getattr(source, "file", None)
    if not callable(getattr(stream, "read", None)):
        advice = how_to_give(source) or "allowed are a path, an address, bytes and a binary file object"
        raise InvalidRequestError(f"source: {type(source).__name__} given, {advice}")
    return await read_file_object("source", stream, most)
