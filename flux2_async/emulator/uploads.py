"""The three ways to upload a file."""

import base64
import binascii
import hashlib
import mimetypes
import re
import secrets
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import aiohttp
import attrs
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from flux2_async.emulator.engine import Engine, parsed
from flux2_async.emulator.ledger import UploadCall
from flux2_async.emulator.replies import Refusal, Reply, json_reply
from flux2_async.emulator.store import kind_of
from flux2_async.emulator.validation import is_address

MOST_BYTES = 100 * 1024 * 1024
# What aiohttp raises for a body that is no multipart, has bad headers, or an encoding that it does not know.
MALFORMED = (ValueError, RuntimeError, AssertionError, aiohttp.ClientError, HttpProcessingError)
FETCH_TIMEOUT = aiohttp.ClientTimeout(total=30)


@attrs.frozen
class Uploads:
    """The upload endpoints; `http` fetches files of other hosts."""

    engine: Engine
    http: aiohttp.ClientSession

    async def stream(self, request: web.Request) -> Reply:
        """`file-stream-upload`: multipart/form-data; 400 for what is missing or malformed, 413 for over 100 MB."""
        if request.content_type != "multipart/form-data":
            raise Refusal(400, "Missing required parameter: file")
        try:
            fields = await _fields(request)
        except MALFORMED:
            raise Refusal(400, "Malformed multipart body") from None
        if not isinstance(fields.get("file"), bytes):
            raise Refusal(400, "Missing required parameter: file")
        original, stated_type = str(fields.get("original name", "")), fields.get("type")
        return self._keep("stream", fields["file"], fields, original=original, stated_type=stated_type)

    async def base64(self, request: web.Request) -> Reply:
        """`file-base64-upload`: JSON; 400 for what is missing or no base64, 413 for a file over 100 MB."""
        body = await _json(request, "base64Data")
        content, stated_type = decoded(body["base64Data"])
        return self._keep("base64", content, body, stated_type=stated_type)

    async def url(self, request: web.Request) -> Reply:
        """`file-url-upload`: JSON; the emulator's own files are taken from its store, others are fetched.

        It answers 400 to what is missing, no http(s) address or cannot be fetched, 413 to a file over 100 MB.
        """
        body = await _json(request, "fileUrl")
        address = body["fileUrl"]
        if not is_address(address):
            raise Refusal(400, "Invalid fileUrl: use an http or https address")
        _folder(body.get("uploadPath"))
        content = await self._fetched(address)
        return self._keep("url", content, body, original=unquote(PurePosixPath(urlsplit(address).path).name))

    async def _fetched(self, address: str) -> bytes:
        path = self.engine.store.upload_path(address)
        if path is not None:
            file = self.engine.store.find(path)
            if file is None:
                raise Refusal(400, "Failed to download the file: HTTP 404")
            return file.content
        try:
            async with self.http.get(address, timeout=FETCH_TIMEOUT) as response:
                content = await response.content.read(MOST_BYTES + 1) if response.ok else b""
                while response.ok and (more := await response.content.read(MOST_BYTES + 1 - len(content))):
                    content += more
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            raise Refusal(400, "Failed to download the file") from None
        if not response.ok:
            raise Refusal(400, f"Failed to download the file: HTTP {response.status}")
        return content

    def _keep(
        self,
        way: Literal["stream", "base64", "url"],
        content: bytes,
        given: Mapping[str, Any],
        *,
        original: str = "",
        stated_type: str | None = None,
    ) -> Reply:
        if len(content) > MOST_BYTES:
            raise Refusal(413)
        kind = kind_of(content)
        usual = f".{kind}" if kind else mimetypes.guess_extension(stated_type or "") or ".bin"
        folder = _folder(given.get("uploadPath"))
        name = _name(given.get("fileName", ""), PurePosixPath(original).suffix or usual)
        path = f"{folder}/{name}"
        mime_type = f"image/{kind}" if kind else mimetypes.guess_type(path)[0] or "application/octet-stream"
        # Upstream's addresses were seen with raw spaces, whatever the caller's own names were.
        spaces = self.engine.script.download_url_spaces
        file = self.engine.store.keep(f"user uploads/{path}" if spaces else path, content, mime_type)
        digest = hashlib.sha256(content).hexdigest()
        self.engine.ledger.uploads.append(UploadCall(file.stored_at, way, name, len(content), digest))
        data = {
            "fileName": name,
            "filePath": path,
            "downloadUrl": self.engine.store.upload(file.path, raw_spaces=spaces),
            "fileSize": len(content),
            "mimeType": mime_type,
            "uploadedAt": self.engine.clock.iso(file.stored_at),
        }
        return json_reply({"success": True, "code": 200, "msg": "File uploaded successfully", "data": data})


async def _fields(request: web.Request) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    async for part in await request.multipart():
        if not isinstance(part, aiohttp.BodyPartReader):
            raise Refusal(400, "Malformed multipart body")
        content = bytes(await part.read(decode=True))
        if part.name == "file":
            fields |= {"file": content, "original name": part.filename, "type": part.headers.get("Content-Type")}
        elif part.name in {"uploadPath", "fileName"}:
            fields[part.name] = content.decode()
    return fields


async def _json(request: web.Request, required: str) -> dict[str, Any]:
    body = parsed(await request.read(), 400)
    if not isinstance(body.get(required), str) or not body[required]:
        raise Refusal(400, f"Missing required parameter: {required}")
    return body


def decoded(text: str) -> tuple[bytes, str | None]:
    """The content of bare base64 or of a data URL, and the media type where that names one; 400 for all else."""
    mime_type = None
    data_url = re.match(r"data:([^;,]*)([^,]*),", text)
    if data_url:
        mime_type, text = data_url[1] or None, text[data_url.end() :]
        if "base64" not in data_url[2]:
            return unquote_to_bytes(text), mime_type
    try:
        return base64.b64decode(text, validate=True), mime_type
    except (binascii.Error, ValueError):
        raise Refusal(400, "Base64 decoding failed: Invalid Base64 format") from None


def _folder(folder: object) -> str:
    if not isinstance(folder, str) or not folder:
        raise Refusal(400, "Missing required parameter: uploadPath")
    if folder.startswith("/") or folder.endswith("/") or not _plain(folder):
        raise Refusal(400, "Invalid uploadPath: a folder without leading or trailing slash")
    return folder


def _plain(text: str) -> bool:
    """Whether it can stand in the path of an address as it is."""
    return text.isprintable() and "\\" not in text and not {"", ".", ".."} & set(text.split("/"))


def _name(name: object, suffix: str) -> str:
    """The name that was given, or without one a new one with this suffix."""
    if name == "":
        return secrets.token_hex(8) + (suffix if _plain(suffix) else "")
    if not isinstance(name, str) or "/" in name or not _plain(name):
        raise Refusal(400, "Invalid fileName: a plain file name")
    return name
