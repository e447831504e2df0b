"""SQLite's write-ahead log beside the journal, looked at before SQLite does. Blocks.

SQLite takes a log up to the first frame whose checksum is wrong and forgets the rest without a word. After a power
failure that is right: what comes behind was not on disk yet, and nothing was sent because of it. When a bit has turned
over in the middle, what is forgotten may be the only trace of paid tasks.

After a power failure a gap holds old content of the file, not frames of this log; so a frame of this log with a wrong
checksum, and a commit at or behind it, is damage. https://www.sqlite.org/fileformat.html#walformat has the format.
"""

import struct
import sys
from array import array
from pathlib import Path
from typing import BinaryIO, Final

HEADER: Final = 32
FRAME_HEADER: Final = 24
BIG_ENDIAN_WORDS: Final = 0x377F0683
LITTLE_ENDIAN_WORDS: Final = 0x377F0682
# A block of the file system: what a power failure leaves out, it leaves out whole.
BLOCK: Final = 4096
MASK: Final = 0xFFFFFFFF

Sums = tuple[int, int]


def damaged_frame(log: Path) -> int | None:
    """Give the number of the damaged frame of a log, from 1, or 0 for its header; None: all is well, or no log."""
    try:
        with log.open("rb") as file:
            return _damaged_frame(file)
    except FileNotFoundError:
        return None


def _damaged_frame(file: BinaryIO) -> int | None:
    """Look at the header of the log, then at each frame; see `damaged_frame`."""
    head = file.read(BLOCK)
    if len(head) < HEADER + FRAME_HEADER or not any(head):
        # Nothing was committed yet.
        return None
    magic, _, page_size, _ = struct.unpack(">IIII", head[:16])
    salts, sums = head[16:24], struct.unpack(">II", head[24:32])
    little = magic == LITTLE_ENDIAN_WORDS
    if magic not in (LITTLE_ENDIAN_WORDS, BIG_ENDIAN_WORDS) or _sums((0, 0), head[:24], little=little) != sums:
        return 0
    file.seek(HEADER)
    bad: int | None = None
    number = 0
    while len(raw := file.read(FRAME_HEADER + page_size)) == FRAME_HEADER + page_size:
        number += 1
        page, size, first, second = struct.unpack(">II8xII", raw[:FRAME_HEADER])
        # Its checksum is about all frames up to this one, without their salts.
        fits = bad is None and _sums(sums, raw[:8] + raw[FRAME_HEADER:], little=little) == (first, second)
        if raw[8:16] != salts:
            # Of an earlier log, and no part of this one; unless it is just its salt that is damaged.
            return number if fits else None
        if not fits:
            bad = bad or number
            if page and size:
                # It commits.
                return bad
        sums = first, second
    return None


def _sums(sums: Sums, content: bytes, *, little: bool) -> Sums:
    """Go on with a checksum, over words of the byte order that the log's header names."""
    words = array("I", content)
    if little != (sys.byteorder == "little"):
        words.byteswap()
    first, second = sums
    pairs = iter(words)
    for even, odd in zip(pairs, pairs, strict=True):
        first = (first + even + second) & MASK
        second = (second + odd + first) & MASK
    return first, second
