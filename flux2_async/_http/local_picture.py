"""Local pictures, looked at before anything is sent. Everything here blocks and belongs into a worker thread."""

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import attrs

from flux2_async._protocol.file_types import HEAD, FileType, Walk, describe, picture_names, picture_type, seems_whole
from flux2_async._protocol.media import MAX_PICTURE
from flux2_async.errors import InvalidRequestError

CHUNK: Final = 256 * 1024

# A text this long is no path but probably the picture itself in base64, and content is in no error.
MAX_SHOWN: Final = 255


@attrs.frozen
class Picture:
    """A local picture that was read through once.

    Attributes:
        field: What the caller calls it, such as `images[0]`.
        source: Where it is, or what it is.
        media: Its type, by content.
        size: Bytes.
        digest: Hex SHA-256 of its content.
        stamp: What changes when a file is written to; empty for bytes.
    """

    field: str
    source: Path | bytes = attrs.field(repr=False)
    media: FileType
    size: int
    digest: str
    stamp: tuple[int, ...]

    def open(self) -> BinaryIO:
        """Open it, at its start.

        Raises:
            InvalidRequestError: It cannot be read any more, or was written to since it was read through, so that it
                no longer matches its hash.
        """
        with _reasons(self.field, self.source):
            file = _open(self.field, self.source)
        if _stamp(file) != self.stamp:
            file.close()
            raise InvalidRequestError(
                f"{self.field}: it changed while it was uploaded; try again when it is complete{_where(self.source)}"
            )
        return file

    def check_unchanged(self) -> None:
        """Look once more whether it was written to.

        Raises:
            InvalidRequestError: See `open`.
        """
        self.open().close()


def check_picture(field: str, source: Path | bytes, most: int = MAX_PICTURE) -> None:
    """Look whether a local picture of at most so many bytes can be uploaded; one that ends as it should is not read.

    Raises:
        InvalidRequestError: It cannot; the text names `field`, what was given and what is allowed.
    """
    with _reasons(field, source), _open(field, source) as file:
        head = _judge(field, source, file, most)
        file.seek(-min(file.seek(0, os.SEEK_END), HEAD), os.SEEK_END)
        if not seems_whole(head, file.read(), file.tell()):
            _read_through(field, source, file)


def read_picture(field: str, source: Path | bytes, most: int = MAX_PICTURE) -> Picture:
    """Look at a local picture and read it through, for its hash.

    Raises:
        InvalidRequestError: See `check_picture`.
    """
    with _reasons(field, source), _open(field, source) as file:
        stamp = _stamp(file)
        _judge(field, source, file, most)
        return Picture(field, source, *_read_through(field, source, file), stamp)


@contextmanager
def _reasons(field: str, source: Path | bytes) -> Iterator[None]:
    """Turn what the system says about a file into what the caller can do about it."""
    try:
        yield
    except InvalidRequestError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        home = isinstance(source, Path) and str(source).startswith("~")
        advice = "; ~ is not expanded, give Path(...).expanduser()" if home else ""
        raise InvalidRequestError(
            f"{field}: neither an existing file nor an address with http:// or https://{_where(source)}{advice}"
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{field}: the file cannot be read: {reason_of(error)}{_where(source)}") from None


def _open(field: str, source: Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    mode = source.stat().st_mode
    # Opening a pipe would wait for its other end.
    if not stat.S_ISREG(mode):
        given = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise InvalidRequestError(f"{field}: {given} given, it must be a {picture_names('or')} file{_where(source)}")
    return source.open("rb")


def _judge(field: str, source: Path | bytes, file: BinaryIO, most: int) -> bytes:
    """Look at size and format of a file; give its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not 1 <= size <= most:
        allowed = f"allowed are 1 to {most} ({most / 1_000_000:.3g} MB)"
        raise InvalidRequestError(f"{field}: {size} bytes given, {allowed}{_where(source)}")
    head = file.read(HEAD)
    if picture_type(head) is None:
        allowed = f"allowed are {picture_names('and')}"
        raise InvalidRequestError(f"{field}: {describe(head)} given, {allowed}{_where(source)}")
    return head


def _read_through(field: str, source: Path | bytes, file: BinaryIO) -> tuple[FileType, int, str]:
    """Read a picture to its end; give its format, bytes and hash."""
    file.seek(0)
    walk, digest = Walk(), hashlib.sha256()
    while chunk := file.read(CHUNK):
        walk.feed(chunk)
        digest.update(chunk)
    if walk.type is None or not walk.is_ended:
        raise InvalidRequestError(
            f"{field}: the {walk.type.name if walk.type else 'file'} is not whole, its end is missing; nothing was "
            f"sent: copy or download it again, or save it anew in a picture program{_where(source)}"
        )
    return walk.type, walk.received, digest.hexdigest()


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    if isinstance(file, io.BytesIO):
        return ()
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def _where(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return ""
    shown = str(source)
    return f" ({shown!r})" if len(shown) <= MAX_SHOWN else f" (a name of {len(shown)} characters)"


def reason_of(error: Exception) -> str:
    """Say in words of the system what it raised."""
    # str(OSError) would repeat the name, however long it is.
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
