"""What callers give for a picture: its content in several shapes, and how to give what cannot be taken. Pure."""

import io
import os
from inspect import iscoroutinefunction
from typing import BinaryIO, Protocol

__all__ = ["AsyncFile", "Buffer", "ContentSource", "UploadSource", "content_of", "how_to_give", "is_content"]

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


def is_content(source: object) -> bool:
    """Whether a picture is given by its content, in memory."""
    return isinstance(source, ContentSource)


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
