"""Where a reply ends in the bytes of a connection, by HTTP/1's own framing. Pure."""

import re
from typing import Final

_HEAD: Final = re.compile(rb"HTTP/1\.[01] +(\d{3})[^\n]*\n((?:[^\r\n][^\n]*\n)*)\r?\n")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] {1,9}\d{3}")
# Of fields in small letters, each behind a line break: what begins with fixed letters is found sooner.
_LENGTH: Final = re.compile(rb"\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r?$", re.MULTILINE)
_CHUNKED: Final = re.compile(rb"\ntransfer-encoding:.*\bchunked[ \t]*\r?$", re.MULTILINE)
_CHUNK: Final = re.compile(rb"([0-9a-f]{1,8})(?:[ \t;][^\n]*|\r?)\n", re.IGNORECASE)
_LINE_END: Final = re.compile(rb"\r?\n")
_TRAILERS: Final = re.compile(rb"(?:[^\r\n][^\n]*\n)*\r?\n")

_WITHOUT_BODY: Final = frozenset({b"204", b"304"})


def behind_reply(heard: bytes) -> bytes:
    """Give what came behind the first final reply.

    Args:
        heard: All that came over a connection, from its first byte on.

    Returns:
        Nothing where the reply is all that came. Everything where it cannot be told where the reply ends; in a body
        that ends with its connection, what looks like another reply.
    """
    head = _HEAD.match(heard)
    # What is said ahead of the answer, such as 100 Continue.
    while head is not None and head[1].startswith(b"1"):
        head = _HEAD.match(heard, head.end())
    if head is None:
        return heard
    body = heard[head.end() :]
    if head[1] in _WITHOUT_BODY:
        return body
    fields = b"\n" + head[2].lower()
    if _CHUNKED.search(fields):
        return _behind_chunks(body)
    if length := _LENGTH.search(fields):
        return body[int(length[1]) :]
    another = _STATUS_LINE.search(body)
    return b"" if another is None else body[another.start() :]


def _behind_chunks(body: bytes) -> bytes:
    at = 0
    while chunk := _CHUNK.match(body, at):
        size = int(chunk[1], 16)
        end = (_LINE_END if size else _TRAILERS).match(body, chunk.end() + size)
        if end is None:
            break
        at = end.end()
        if not size:
            return body[at:]
    return body
