"""What a file is, told by its first bytes, and what it may be called. Pure.

Names from outside (a task id, a caller's file name) never become a path: they are matched or rewritten here.
"""

import hashlib
import re
from typing import Final

import attrs

__all__ = [
    "HEAD",
    "MAX_DOWNLOAD",
    "MAX_PICTURE",
    "MediaType",
    "describe",
    "is_error_page",
    "picture_type",
    "result_name",
    "result_stem",
    "upload_name",
]

HEAD: Final = 1024
"""First bytes of a file that are enough for every function here."""

MAX_PICTURE: Final = 10_000_000
"""Bytes of a reference picture. The API says "10 MB" and not which; the smaller reading is certain to be taken."""

MAX_DOWNLOAD: Final = 200_000_000
"""Bytes of one file that is downloaded; a 2K picture has about a hundredth of that."""


@attrs.frozen
class MediaType:
    """A kind of picture that the API takes.

    Attributes:
        name: As people write it.
        mime_type: As the API writes it.
        extension: Of file names, without a dot.
    """

    name: str
    mime_type: str
    extension: str


JPEG: Final = MediaType("JPEG", "image/jpeg", "jpg")
PNG: Final = MediaType("PNG", "image/png", "png")
WEBP: Final = MediaType("WebP", "image/webp", "webp")

# Only for telling people what they gave; offset, first bytes, name.
OTHERS: Final = (
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftyp", "MP4"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\x01\0", "ICO"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF-", "PDF"),
)

TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
UNSAFE: Final = re.compile(r"[^A-Za-z0-9_]+")
MAX_STEM: Final = 64
DIGITS: Final = 32


def picture_type(head: bytes) -> MediaType | None:
    """Tell the type of a picture by its first bytes, or None when the API does not take it."""
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WEBP
    return None


def describe(head: bytes) -> str:
    """Name what the first bytes belong to, for an error text; it never repeats them."""
    known = picture_type(head)
    if known is not None:
        return known.name
    if is_error_page(head):
        return "text"
    return next((name for at, magic, name in OTHERS if head.startswith(magic, at)), "something else")


def is_error_page(head: bytes) -> bool:
    """Whether a file begins as markup or JSON does, which is how servers write errors; no picture begins so."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"<", b"{", b"[")


def upload_name(digest: str, extension: str, file_name: str | None) -> str:
    """Name a file at the service.

    The same name overwrites there while caches may go on with the old bytes, so that a name belongs to one content.

    Args:
        digest: Hex digest of the content.
        extension: Without a dot.
        file_name: The caller's own name, of which a safe stem is kept; None: the digest alone.

    Returns:
        ASCII letters, digits, `_`, `-` and the one dot before the extension.
    """
    base = re.split(r"[/\\]", file_name or "")[-1]
    stem = base.rpartition(".")[0] or base
    safe = UNSAFE.sub("-", stem)[:MAX_STEM].strip("-")
    return f"{safe}{'-' if safe else ''}{digest[:DIGITS]}.{extension}"


def result_name(task_id: str, number: int, head: bytes) -> str:
    """Name a downloaded file.

    Args:
        task_id: The task; an id that is not made of letters, digits, `_` and `-` is replaced by its hash.
        number: Which picture of the task, from 1.
        head: Its first bytes; what is neither JPEG, PNG nor WebP is called `.bin`.
    """
    known = picture_type(head)
    return f"{result_stem(task_id, number)}.{known.extension if known else 'bin'}"


def result_stem(task_id: str, number: int) -> str:
    """Give the name of a downloaded file up to its extension."""
    safe = task_id
    if not TASK_ID.fullmatch(task_id):
        safe = hashlib.sha256(task_id.encode(errors="surrogatepass")).hexdigest()[:DIGITS]
    return f"{safe}-{number}"
