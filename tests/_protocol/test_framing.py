"""Where a reply ends: bytes behind it are seen, however it says where it ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_async._protocol.framing import behind_reply

HEAD = b"HTTP/1.1 429 Too Many Requests\r\n"
AHEAD = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
SECOND = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

REPLIES = {
    "length": HEAD + b"Content-Type: text/plain\r\ncontent-length:5\r\n\r\nhello",
    "no body": HEAD + b"Content-Length: 0\r\n\r\n",
    "no headers of a body": b"HTTP/1.1 204 No Content\r\n\r\n",
    "chunked": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA;a=b\r\n0123456789\r\n0\r\n\r\n",
    "chunked with trailers": HEAD + b"transfer-encoding: gzip, Chunked\r\n\r\n0\r\nA: b\r\nC: d\r\n\r\n",
    "ahead of it": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    + HEAD
    + b"Content-Length: 0\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 429\nContent-Length: 1\n\nx",
    "folded header": HEAD + b"Via: one\r\n two\r\nContent-Length: 1\r\n\r\nx",
    "a body that looks like one": HEAD + b"Content-Length: %d\r\n\r\n" % len(SECOND) + SECOND,
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
@given(behind=st.binary(max_size=40))
def test_what_stands_behind(reply: bytes, behind: bytes) -> None:
    """Exactly what was put behind a reply is found there."""
    assert behind_reply(reply + behind) == behind


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_a_second_reply(reply: bytes) -> None:
    """A second reply is found whole."""
    assert behind_reply(reply + SECOND) == SECOND


def test_a_body_that_ends_with_its_connection() -> None:
    """Where only the end of the connection ends the body, another reply in it is taken for one."""
    reply = HEAD + b"Content-Type: text/plain\r\n\r\nslow down"
    assert behind_reply(reply) == b""
    assert behind_reply(reply + SECOND) == SECOND


@pytest.mark.parametrize(
    "heard",
    [
        b"x",
        b"ICY 200 OK\r\n\r\n",
        HEAD,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nnot a size",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_an_end_that_cannot_be_told(heard: bytes) -> None:
    """Where it cannot be told where the reply ends, what came counts as behind it."""
    assert behind_reply(heard)


@pytest.mark.parametrize(
    "piece",
    [b"HTTP/1.1 429\na: b\n", b"HTTP/1.1 ", b"HTTP/1.1 100\n\n", b"1\r\nx\r\n", b"a:\n", b"\n", b" ", b"chunked "],
)
@pytest.mark.parametrize(
    "head", [b"", HEAD + b"\r\n", HEAD, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", HEAD + b"a: b"]
)
def test_the_time_grows_with_the_length(head: bytes, piece: bytes) -> None:
    """Megabytes of whatever a server may repeat are read once, and do not stop the event loop for minutes."""
    heard = head + piece * (2**20 // len(piece))
    assert heard.endswith(behind_reply(heard))


@given(heard=st.binary(max_size=200), cut=st.integers(0, 200))
def test_any_bytes(heard: bytes, cut: int) -> None:
    """Whatever comes, what is given is an end of it."""
    reply = REPLIES["chunked"]
    for each in (heard, reply[:cut] + heard):
        assert each.endswith(behind_reply(each))
