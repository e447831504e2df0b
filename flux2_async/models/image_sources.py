"""What may be given for a picture: its address, its path, its content in several shapes, or a file. Pure."""

import io
import os
import re
from collections.abc import Iterable
from datetime import datetime
from inspect import iscoroutinefunction
from typing import BinaryIO, Final, Protocol, TypeGuard
from urllib.parse import SplitResult, urlsplit

import attrs

from flux2_async.errors import InvalidRequestError
from flux2_async.models.plain import plain, plain_fields
from flux2_async.models.plain_json import check_text

__all__ = [
    "PLAIN_ADDRESS",
    "AsyncFile",
    "Buffer",
    "ContentSource",
    "ImageSource",
    "UploadSource",
    "UploadedFile",
    "check_picture",
    "content_of",
    "how_to_give",
    "http_parts",
    "is_plain_address",
    "is_single",
    "is_url",
    "plain_picture",
]

# What nearly every address looks like; the others are taken apart.
PLAIN_ADDRESS: Final = re.compile(r"https?://[A-Za-z0-9.-]*[A-Za-z0-9](?:/[!-~]*)?")

Buffer = bytearray | memoryview | io.BytesIO
"""Memory that the caller may change."""

ContentSource = bytes | Buffer
"""The encoded picture itself, held in memory; a BytesIO from where it stands."""


class AsyncFile(Protocol):
    """A binary file object whose `read` is a coroutine, such as an uploaded file of a web framework."""

    async def read(self, size: int, /) -> bytes:
        """Give at most so many bytes, none at the end."""
        ...


UploadSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | AsyncFile
"""What `upload` takes: a path, content in memory, or a binary file object."""


@attrs.frozen(field_transformer=plain_fields)
class UploadedFile:
    """A file the service keeps for us.

    Attributes:
        url: Its address, percent-encoded, as `images` takes it.
        file_name: Its name at the service.
        size: Bytes.
        mime_type: `image/jpeg`, `image/png` or `image/webp`.
        expires_at: When the service deletes it, or None when it did not say (documented: 3 days).
    """

    url: str
    file_name: str
    size: int
    mime_type: str
    expires_at: datetime | None = None


ImageSource = str | os.PathLike[str] | bytes | UploadedFile
"""A reference picture: an http(s) address, a path, the encoded picture itself, or an uploaded file."""


def is_url(source: object) -> bool:
    """Whether a picture is given by address rather than by path or content."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def is_plain_address(source: object) -> TypeGuard[str]:
    """Whether it is an http(s) address in which there is nothing to look at closely; there are other good ones."""
    return isinstance(source, str) and PLAIN_ADDRESS.fullmatch(source) is not None


def is_single(value: object) -> bool:
    """Whether it is, or holds, one picture rather than being a collection of pictures."""
    # Files, arrays and the like can be iterated over as well, and hold no pictures then.
    one = isinstance(value, str | os.PathLike | UploadedFile | ContentSource) or how_to_give(value)
    return bool(one) or not isinstance(value, Iterable)


def plain_picture(name: str, image: "ImageSource | ContentSource") -> ImageSource:
    """Give what a picture is kept as: what the caller may change is read now.

    Args:
        name: What an error speaks of it by.
        image: What was given, not yet checked.

    Raises:
        InvalidRequestError: It can be read no more.
    """
    if not isinstance(image, Buffer):
        return plain(image)
    try:
        content = content_of(image)
    except ValueError as error:
        raise InvalidRequestError(f"{name}: the {type(image).__name__} cannot be read ({error})") from None
    if not content and isinstance(image, io.BytesIO) and image.tell():
        raise InvalidRequestError(f"{name}: the BytesIO stands at its end, call seek(0) first")
    return content


def check_picture(name: str, image: object) -> None:
    """Look whether a picture can be one; a file is looked at when it is uploaded.

    Raises:
        InvalidRequestError: It cannot.
    """
    if not isinstance(image, str | bytes | os.PathLike | UploadedFile):
        advice = how_to_give(image) or "allowed are an http(s) address, a path, bytes or an UploadedFile"
        raise InvalidRequestError(f"{name}: {type(image).__name__} given, {advice}")
    if isinstance(image, UploadedFile):
        _check_address(f"{name}.url", image.url)
    elif isinstance(image, bytes) and not image:
        raise InvalidRequestError(f"{name}: 0 bytes given, it must be the content of a JPEG, PNG or WebP file")
    elif isinstance(image, str):
        _check_name(name, image)


def _check_name(name: str, image: str) -> None:
    if is_url(image):
        _check_address(name, image)
    elif not image.strip() or "\0" in image:
        raise InvalidRequestError(f"{name}: {image!r} given, it must be an http(s) address or the path of a file")
    elif image.lower().startswith("data:"):
        raise InvalidRequestError(f"{name}: a data: address given; pass the decoded bytes instead")
    elif "://" in image:
        scheme = image.partition("://")[0]
        raise InvalidRequestError(f"{name}: an address with {scheme}:// given, allowed are http:// and https://")


def _check_address(name: str, url: object) -> None:
    if isinstance(url, str):
        check_text(name, url)
    if not isinstance(url, str) or not is_url(url) or http_parts(url) is None or any(map(str.isspace, url)):
        raise InvalidRequestError(f"{name}: not a complete address, it must look like https://host/picture.jpg")


def http_parts(url: object) -> SplitResult | None:
    """Take an http(s) address apart; None when it is none."""
    try:
        # What is no Unicode cannot be requested; reading the port is what checks it.
        parts = urlsplit(url) if isinstance(url, str) and url.encode() else None
        usable = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


def content_of(source: ContentSource) -> bytes:
    """Give a picture's content, which what the caller does to the source later does not change.

    Raises:
        ValueError: The source was closed or released.
    """
    if isinstance(source, io.BytesIO):
        return source.getvalue()[source.tell() :]
    return source if type(source) is bytes else bytes(memoryview(source))


def how_to_give(source: object) -> str:
    """Say what to pass instead of an object that holds a picture in a way of its own; empty for any other."""
    if hasattr(source, "__array_interface__") and not hasattr(source, "save"):
        return "encode the array, as by Image.fromarray(array).save(buffer, 'PNG'), and pass buffer.getvalue()"
    if callable(getattr(source, "save", None)) and callable(getattr(source, "tobytes", None)):
        return "encode it, as by image.save(buffer, 'PNG') into an io.BytesIO, and pass buffer.getvalue()"
    if isinstance(source, io.TextIOBase):
        return "it gives text; open it with 'rb' and pass its content: file.read()"
    read = getattr(source, "read", None)
    if callable(read):
        return f"pass its content: {'await ' if iscoroutinefunction(read) else ''}file.read()"
    if callable(getattr(getattr(source, "file", None), "read", None)):
        return "pass its content: field.file.read()"
    return ""
