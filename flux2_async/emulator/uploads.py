"""The three ways to upload a file."""

import base64
import binascii
import hashlib
import mimetypes
import re
import secrets
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import aiohttp
import attrs
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from flux2_async.emulator.clock import Clock
from flux2_async.emulator.engine import parsed
from flux2_async.emulator.ledger import Ledger, UploadCall
from flux2_async.emulator.replies import Refusal, Reply, json_reply
from flux2_async.emulator.script import Script
from flux2_async.emulator.store import MIME_TYPES, Links, Store, StoredFile, kind_of
from flux2_async.emulator.validation import is_address

MOST_BYTES = 100 * 1024 * 1024
# What aiohttp raises for a body that is no multipart, has bad headers, or an encoding that it does not know.
MALFORMED = (ValueError, RuntimeError, AssertionError, aiohttp.ClientError, HttpProcessingError)
FETCH_TIMEOUT = aiohttp.ClientTimeout(total=30)


@attrs.frozen
class Upload:
    """A file on its way in."""

    way: Literal["stream", "base64", "url"]
    content: bytes
    folder: object
    name: object
    original_name: str = ""
    stated_type: str | None = None


class Uploads:
    """The upload endpoints."""

    def __init__(self, script: Script, ledger: Ledger, clock: Clock, links: Links, store: Store) -> None:
        self._script = script
        self._ledger = ledger
        self._clock = clock
        self._links = links
        self._store = store

    async def stream(self, request: web.Request) -> Reply:
        """`file-stream-upload`: multipart/form-data.

        Raises:
            Refusal: 400 for what is missing or malformed, 413 for a file over 100 MB.
        """
        if request.content_type != "multipart/form-data":
            raise Refusal(400, "Missing required parameter: file")
        try:
            fields = await _fields(request)
        except MALFORMED:
            raise Refusal(400, "Malformed multipart body") from None
        if not isinstance(fields.get("file"), bytes):
            raise Refusal(400, "Missing required parameter: file")
        return self._keep(
            Upload(
                "stream",
                fields["file"],
                fields.get("uploadPath"),
                fields.get("fileName", ""),
                str(fields.get("original name", "")),
                fields.get("type"),
            )
        )

    async def base64(self, request: web.Request) -> Reply:
        """`file-base64-upload`: JSON.

        Raises:
            Refusal: 400 for what is missing or no base64, 413 for a file over 100 MB.
        """
        body = await _json(request, "base64Data")
        content, stated_type = decoded(body["base64Data"])
        return self._keep(
            Upload("base64", content, body.get("uploadPath"), body.get("fileName", ""), stated_type=stated_type)
        )

    async def url(self, request: web.Request, http: aiohttp.ClientSession) -> Reply:
        """`file-url-upload`: JSON; the emulator's own files are taken from its store, others are fetched.

        Raises:
            Refusal: 400 for what is missing, no http(s) address or cannot be fetched, 413 for a file over 100 MB.
        """
        body = await _json(request, "fileUrl")
        address = body["fileUrl"]
        if not is_address(address):
            raise Refusal(400, "Invalid fileUrl: use an http or https address")
        _folder(body.get("uploadPath"))
        content = await self._fetched(address, http)
        original = unquote(PurePosixPath(urlsplit(address).path).name)
        return self._keep(Upload("url", content, body.get("uploadPath"), body.get("fileName", ""), original))

    async def _fetched(self, address: str, http: aiohttp.ClientSession) -> bytes:
        path = self._links.upload_path(address)
        if path is not None:
            file = self._store.find(path)
            if file is None:
                raise Refusal(400, "Failed to download the file: HTTP 404")
            return file.content
        try:
            async with http.get(address, timeout=FETCH_TIMEOUT) as response:
                content = await response.content.read(MOST_BYTES + 1) if response.ok else b""
                while response.ok and (more := await response.content.read(MOST_BYTES + 1 - len(content))):
                    content += more
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            raise Refusal(400, "Failed to download the file") from None
        if not response.ok:
            raise Refusal(400, f"Failed to download the file: HTTP {response.status}")
        return content

    def _keep(self, upload: Upload) -> Reply:
        if len(upload.content) > MOST_BYTES:
            raise Refusal(413)
        folder = _folder(upload.folder)
        path = f"{folder}/{_name(upload)}"
        # Upstream's addresses were seen with raw spaces, whatever the caller's own names were.
        stored_path = f"user uploads/{path}" if self._script.download_url_spaces else path
        file = self._store.keep(stored_path, upload.content, _mime_type(upload, path))
        self._note(upload, file)
        return json_reply(
            {"success": True, "code": 200, "msg": "File uploaded successfully", "data": self._data(file, path)}
        )

    def _data(self, file: StoredFile, path: str) -> dict[str, Any]:
        return {
            "fileName": PurePosixPath(path).name,
            "filePath": path,
            "downloadUrl": self._links.upload(file.path, raw_spaces=self._script.download_url_spaces),
            "fileSize": len(file.content),
            "mimeType": file.mime_type,
            "uploadedAt": self._clock.iso(file.stored_at),
        }

    def _note(self, upload: Upload, file: StoredFile) -> None:
        digest = hashlib.sha256(file.content).hexdigest()
        name = PurePosixPath(file.path).name
        self._ledger.uploads.append(UploadCall(file.stored_at, upload.way, name, len(file.content), digest))


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
    try:
        body = parsed(await request.read())
    except Refusal as refusal:
        raise Refusal(400, refusal.message) from None
    if not isinstance(body.get(required), str) or not body[required]:
        raise Refusal(400, f"Missing required parameter: {required}")
    return body


def decoded(text: str) -> tuple[bytes, str | None]:
    """Base64 text or a data URL.

    Args:
        text: Bare base64, or a data URL that is base64 or percent-encoded.

    Returns:
        The content, and the media type where the text names one.

    Raises:
        Refusal: 400 when it is neither.
    """
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


def _name(upload: Upload) -> str:
    name = upload.name
    if name == "":
        suffix = PurePosixPath(upload.original_name).suffix or _suffix(upload)
        return secrets.token_hex(8) + (suffix if _plain(suffix) else "")
    if not isinstance(name, str) or "/" in name or not _plain(name):
        raise Refusal(400, "Invalid fileName: a plain file name")
    return name


def _suffix(upload: Upload) -> str:
    kind = kind_of(upload.content)
    return f".{kind}" if kind else mimetypes.guess_extension(upload.stated_type or "") or ".bin"


def _mime_type(upload: Upload, path: str) -> str:
    kind = kind_of(upload.content)
    if kind:
        return MIME_TYPES[kind]
    return mimetypes.guess_type(path)[0] or "application/octet-stream"
