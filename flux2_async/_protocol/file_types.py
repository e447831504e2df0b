"""What a file is, and whether all of it is there, told by its own bytes. Pure.

A server's headers say neither: what was cut on its way to the server comes with the length of the cut. JPEG, PNG and
WebP say where they end, so they are followed from part to part up to there, without decoding anything. The end is not
searched for: what looks like one stands inside a thumbnail as well.
"""

import re
import sys
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import attrs

HEAD: Final = 1024
"""First bytes of a file that are enough for every function here."""

MIN_HEAD: Final = 12
"""First bytes that tell the formats that are followed to their end."""


@attrs.frozen
class FileType:
    """A format.

    Attributes:
        name: As people write it.
        extension: Of file names, without a dot.
        mime_type: As the API writes it; empty for what it does not take.
        ending: Its last bytes, where nothing stands behind them.
    """

    name: str
    extension: str
    mime_type: str = ""
    ending: bytes = b""


JPEG: Final = FileType("JPEG", "jpg", "image/jpeg", b"\xff\xd9")
PNG: Final = FileType("PNG", "png", "image/png", b"IEND\xaeB`\x82")
WEBP: Final = FileType("WebP", "webp", "image/webp")
TAKEN: Final = (JPEG, PNG, WEBP)

# How files of each begin; the first that fits counts.
BEGINNINGS: Final = tuple(
    (re.compile(pattern, re.DOTALL), file_type)
    for pattern, file_type in (
        (rb"\xff\xd8\xff", JPEG),
        (rb"\x89PNG\r\n\x1a\n", PNG),
        (rb"RIFF.{4}WEBP", WEBP),
        (rb"GIF8[79]a", FileType("GIF", "gif")),
        (rb".{4}ftyp(?:avi[fs]|mif1.{4}(?:.{4}){0,8}avif)", FileType("AVIF", "avif")),
        (rb".{4}ftyp(?:hei|hev|mif1|msf1)", FileType("HEIC", "heic")),
        (rb".{4}ftypM4[AB]", FileType("M4A", "m4a")),
        (rb".{4}ftypqt", FileType("QuickTime", "mov")),
        (rb".{4}ftyp", FileType("MP4", "mp4")),
        (rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a", FileType("JPEG XL", "jxl")),
        (rb"\0\0\0\x0cjP  \r\n\x87\n", FileType("JPEG 2000", "jp2")),
        (rb"II\*\0|MM\0\*", FileType("TIFF", "tif")),
        (rb"BM.{4}\0\0\0\0", FileType("BMP", "bmp")),
        (rb"\0\0\x01\0", FileType("ICO", "ico")),
        (rb"8BPS\0\x01", FileType("Photoshop", "psd")),
        (rb"%PDF-", FileType("PDF", "pdf")),
        (rb"\x1a\x45\xdf\xa3", FileType("WebM", "webm")),
        (rb"RIFF.{4}WAVE", FileType("WAV", "wav")),
        (rb"OggS\0", FileType("Ogg", "ogg")),
        (rb"fLaC", FileType("FLAC", "flac")),
        (rb"ID3[\2-\4]|\xff[\xf2\xf3\xfa\xfb]", FileType("MP3", "mp3")),
        (rb"\xff[\xf1\xf9]", FileType("AAC", "aac")),
    )
)

# Characters that stand in no text; every format above has some near its beginning.
CONTROLS: Final = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")

# Start of a segment, of a picture, its end, or the start of a scan; not what stands inside scans.
MARKER: Final = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
START_OF_IMAGE: Final = 0xD8
END_OF_IMAGE: Final = 0xD9
START_OF_SCAN: Final = 0xDA

MAX_PNG_CHUNK: Final = 2**31 - 1

NOWHERE: Final = sys.maxsize
"""Where the next part begins in a file whose parts do not fit: its end is never reached."""


def file_type(head: bytes) -> FileType | None:
    """Tell the format of a file by its first bytes, or None when it is not known here."""
    return next((kind for beginning, kind in BEGINNINGS if beginning.match(head)), None)


def picture_type(head: bytes) -> FileType | None:
    """Tell the format of a picture by its first bytes, or None when the API does not take it."""
    return known if (known := file_type(head)) in TAKEN else None


def picture_names(before_last: str) -> str:
    """Give the names of the formats that the API takes, with `and` or `or` before the last."""
    *names, last = (kind.name for kind in TAKEN)
    return f"{', '.join(names)} {before_last} {last}"


def extension_of(name: str) -> str | None:
    """Give the end of a name where it is that of a picture the API takes, in lower case and without its dot."""
    extension = name.rpartition(".")[2].lower()
    known = any(extension == kind.extension or f"image/{extension}" == kind.mime_type for kind in TAKEN)
    return extension if known else None


def seems_whole(head: bytes, tail: bytes, size: int) -> bool:
    """Whether a picture of so many bytes ends as it should; only a `Walk` says for certain."""
    kind = file_type(head)
    if kind is WEBP:
        return size >= 8 + int.from_bytes(head[4:8], "little")
    return kind is not None and bool(kind.ending) and tail.endswith(kind.ending)


def is_text(head: bytes) -> bool:
    """Whether the first bytes are markup, JSON or other text, which is how servers write errors."""
    if file_type(head) is not None:
        return False
    is_markup = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"<", b"{", b"[")
    return is_markup or head.startswith(UTF_16) or (bool(head) and not CONTROLS.search(head))


def describe(head: bytes) -> str:
    """Name what the first bytes belong to, for an error text; it never repeats them."""
    if is_text(head):
        return "text"
    known = file_type(head)
    return known.name if known else "something else"


class Parts(Protocol):
    """How files of one format are made of parts.

    Attributes:
        end: Bytes from the beginning up to the end, once that is known.
    """

    end: int | None

    def follow(self, data: bytes, at: int, begin: int) -> int:
        """Read the beginning of a part.

        Args:
            data: Some bytes of the file.
            at: Where the part begins in them.
            begin: Where they begin in the file.

        Returns:
            Where the next part begins in `data`, or behind it; `at` when more of this one is needed.
        """
        ...


@attrs.define
class JpegParts:
    """Segments, and behind some of them scans, up to the end of the first picture."""

    end: int | None = None
    _has_scan: bool = False

    def follow(self, data: bytes, at: int, begin: int) -> int:
        """See `Parts`."""
        # A scan does not say how long it is, and decoders put up with a little rubbish between segments.
        marker = MARKER.search(data, at)
        if marker is None:
            return len(data) - data.endswith(b"\xff")
        at, kind = marker.start(), data[marker.start() + 1]
        if kind == END_OF_IMAGE and self._has_scan:
            self.end = begin + at + 2
        if kind in (START_OF_IMAGE, END_OF_IMAGE):
            return at + 2
        if len(data) < at + 4:
            return at
        self._has_scan |= kind == START_OF_SCAN
        length = int.from_bytes(data[at + 2 : at + 4])
        return at + 2 + length if length >= 2 else NOWHERE  # noqa: PLR2004  it counts its own two bytes


@attrs.define
class PngParts:
    """Chunks, up to the one called IEND."""

    end: int | None = None

    def follow(self, data: bytes, at: int, begin: int) -> int:
        """See `Parts`."""
        if begin + at == 0:
            return 8
        if len(data) < at + 8:
            return at
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if length > MAX_PNG_CHUNK or not kind.isalpha():
            return NOWHERE
        # Its check sum stands behind the content.
        following = at + 8 + length + 4
        if kind == b"IEND":
            self.end = begin + following
        return following


@attrs.define
class WebpParts:
    """Chunks, up to the length at the beginning of the file; the last may lack the byte that makes it even."""

    end: int | None = None
    _length: int = 0

    def follow(self, data: bytes, at: int, begin: int) -> int:
        """See `Parts`."""
        if begin + at == 0:
            self._length = 8 + int.from_bytes(data[4:8], "little")
            return 12 if self._length > MIN_HEAD else NOWHERE
        if begin + at + 8 > self._length:
            self.end = self._length
            return at + 8
        if len(data) < at + 8:
            return at
        content_end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        following = content_end + content_end % 2
        if begin + following >= self._length:
            self.end = min(begin + content_end, self._length)
        return following


PARTS: Final[Mapping[FileType, Callable[[], Parts]]] = {JPEG: JpegParts, PNG: PngParts, WEBP: WebpParts}


@attrs.define
class Walk:
    """Follows a file that arrives piece by piece; keeps no more of it than the beginning of one part.

    Attributes:
        received: Bytes so far.
        type: Its format; None for one that is not known here, and as long as fewer than 12 bytes are here.
        rest: What is here of the part that is not all here.
    """

    received: int = 0
    type: FileType | None = None
    rest: bytes = attrs.field(default=b"", repr=False)
    _parts: Parts | None = attrs.field(default=None, repr=False)
    # Where the next part begins in the file.
    _next: int = 0

    @property
    def has_end(self) -> bool:
        """Whether files of this format say where they end."""
        return self._parts is not None

    @property
    def is_ended(self) -> bool:
        """Whether everything up to the file's own end is here; more may lie behind it."""
        return self._parts is not None and self._parts.end is not None and self.received >= self._parts.end

    def feed(self, chunk: bytes) -> None:
        """Go on with the bytes that come next."""
        begin = self.received - len(self.rest)
        data = self.rest + chunk
        self.received += len(chunk)
        if begin == 0 and len(data) < MIN_HEAD:
            self.rest = data
            return
        if begin == 0 and self.type is None:
            self.type = file_type(data)
            made_of = PARTS.get(self.type) if self.type else None
            self._parts = made_of() if made_of else None
        self.rest = self._follow(data, begin) if self._parts is not None and self._parts.end is None else b""

    def _follow(self, data: bytes, begin: int) -> bytes:
        """Go from part to part; give the beginning of the one that is not all here."""
        assert self._parts is not None, "no parts"  # noqa: S101  only for formats that have some
        at = self._next - begin
        while at < len(data) and self._parts.end is None:
            following = self._parts.follow(data, at, begin)
            if following == at:
                break
            at = following
        self._next = begin + at
        return data[at:] if self._parts.end is None else b""
