"""File objects of the caller's own, read where they stand, awaited or in a worker thread."""

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from inspect import isawaitable, iscoroutinefunction
from typing import Any

import anyio.to_thread

from flux2_async._http.local_picture import CHUNK, reason_of
from flux2_async.errors import InvalidRequestError


async def read_file_object(field: str, stream: Any, most: int) -> bytes:
    """Read a binary file object from where it stands to its end, or as far as tells that it has more than `most` bytes.

    Raises:
        InvalidRequestError: It is no binary file object, gives nothing, or cannot be read.
    """
    content = bytearray()
    while len(content) <= most and (chunk := await _chunk(field, stream)):
        content += chunk
    if not content:
        raise InvalidRequestError(f"{field}: 0 bytes given; if the file object stands at its end, call seek(0) first")
    return bytes(content)


@contextmanager
def reading(field: str) -> Iterator[None]:
    """Turn whatever a caller's own object raises into what it means.

    Raises:
        InvalidRequestError: It raised something.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001  it is foreign code, and none of it is an error of ours
        raise InvalidRequestError(
            f"{field}: the file object cannot be read ({reason_of(error)}); pass its content as bytes"
        ) from None


async def _chunk(field: str, stream: Any) -> bytes:
    with reading(field):
        if iscoroutinefunction(stream.read):
            # Such as that of an uploaded file of a web framework.
            chunk = await stream.read(CHUNK)
        else:
            # It may be a pipe that never ends.
            chunk = await anyio.to_thread.run_sync(stream.read, CHUNK, abandon_on_cancel=True)
    if not chunk or isinstance(chunk, bytes | bytearray | memoryview):
        return bytes(chunk or b"")
    if isawaitable(chunk):
        if isinstance(chunk, Coroutine):
            chunk.close()
        raise InvalidRequestError(f"{field}: an asynchronous file object given; pass its content: await file.read()")
    raise InvalidRequestError(f"{field}: a file object that gives {type(chunk).__name__}; open it with 'rb'")
