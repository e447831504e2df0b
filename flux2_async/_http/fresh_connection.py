"""A connection that carries one request, and says what became of it.

Two things about createTask must be known and not guessed: that an answer is the answer to this request, and whether
anything of the request left. So it never goes over a connection that carried another one; what was given to its
connection is counted where it is given; and the last look at the connection happens there as well, immediately before
the first byte, with no step of the event loop in between.
"""

import asyncio
import contextlib
import select
from collections.abc import Callable, Iterable
from typing import Any, Final

from aiohttp.connector import Connection

MAX_IDLE: Final = 2.0
"""Seconds. Servers close connections that say nothing after 5 s and more, and a close may be on its way unseen."""

STOOD_STILL: Final = 1.0
"""Seconds. Who is called so late stood still, or was stopped, and has not read yet what came in time."""

_HAS_POLL: Final = hasattr(select, "poll")
_PEER_ENDED: Final[int] = getattr(select, "POLLRDHUP", 0)


class FreshConnection(asyncio.Protocol):
    """A connection that has carried no request but the CONNECT of its tunnel.

    It notes what the peer says; all else is the work of aiohttp's handler behind it. Once a request left over it, it
    stays open behind the reply until it is closed: what else comes may be the answer.

    Attributes:
        connection: aiohttp's own.
        given: Bytes of a request that were given to it. While it is 0, nothing of the request left.
        spoiled: Whether the peer ended it, or spoke on it, or it grew old, before its first byte.
        overdue: Whether it was cut, since the whole reply had not come in time.
    """

    given: int = 0
    overdue: bool = False
    _released = False
    _dropped = False
    _deadline: asyncio.TimerHandle | None = None
    # The request until it leaves: whether it may, its body, and the seconds from its first byte to the whole reply.
    _request: tuple[Callable[[], bool], bytes, float] | None = None

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._heard: list[bytes] = []
        self._over = asyncio.Event()
        self._opened = asyncio.get_running_loop().time()
        handler = connection.protocol
        assert handler is not None, "a connection that was released"  # noqa: S101  its connector just made it
        self._handler = handler
        self._transport = transport = handler.transport
        # One that has a parser has carried a request; what came until now lies in the handler's buffers.
        self.spoiled: bool = transport is None or handler.should_close or getattr(handler, "_parser", None) is not None
        if transport is not None:
            handler.force_close()
            handler.transport = _CountingTransport(transport, self)
            transport.set_protocol(self)

    def is_fresh(self) -> bool:
        """Whether it may carry a request now."""
        return self.seems_fresh() and self._transport is not None and not _peer_stirred(self._transport)

    def seems_fresh(self) -> bool:
        """Whether it may carry a request, as far as the event loop has seen."""
        if self.spoiled or self.given or self._transport is None or self._transport.is_closing():
            return False
        return asyncio.get_running_loop().time() - self._opened <= MAX_IDLE

    def spoil(self) -> None:
        """The peer ended it or spoke on it."""
        if not (self.given or self._dropped):
            self.spoiled = True

    def release(self) -> bool:
        """The reply has come, or nobody waits for it any more; False where it is to be cut, as nothing left over it."""
        self._stop_clock()
        # aiohttp ends so what is no HTTP from its middle on as well: `end_with_connection` tells who reads it.
        if (closed := self._handler.closed) is not None and not closed.done():
            closed.set_result(None)
        self._released = self.given > 0
        self._dropped = self._dropped or not self._released
        return self._released

    async def is_over(self, seconds: float) -> bool:
        """Wait until the peer has ended it, or said more than its reply, but so many seconds at most."""
        if self._transport is not None and not self._transport.is_closing():
            # A long reply may have been slowed down.
            self._transport.resume_reading()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()
        return self._over.is_set()

    @property
    def heard(self) -> bytes:
        """All that the peer has said."""
        return b"".join(self._heard)

    def give(self, head: bytes | bytearray | memoryview) -> None:
        """Let the head of its request leave, and the body in the same moment; or cut it, when that must not be."""
        body = b""
        if not self.given:
            request, self._request = self._request, None
            if not (fresh := self.is_fresh()):
                self.spoil()
            if not fresh or request is None or not request[0]():
                self.abort()
                return
            _, body, seconds = request
            # Not before: who stood still between the last look and here has sent nothing late.
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_at(loop.time() + seconds, self._cut)
        self.given += len(head) + len(body)
        assert self._transport is not None, "spoiled"  # noqa: S101  one without has been looked at
        self._transport.write(b"".join((head, body)))

    def use(self, may_send: Callable[[], bool], body: bytes, seconds: float) -> None:
        """Let a request leave over it.

        Args:
            may_send: Asked immediately before the first byte.
            body: Of the request; aiohttp, which would write it in an asyncio task of its own, knows the head alone.
            seconds: So many after the first byte it is cut, where the whole reply is not there.
        """
        self._request = may_send, body, seconds

    def close(self) -> None:
        """Drop it."""
        self.connection.close()
        self._stop_clock()
        # Who asks whether it may leave holds this one, and all that is to be sent.
        self._request = None
        self._dropped = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop it without what it still holds back."""
        # Else one that was dropped before its first byte would be taken for late as well.
        self._stop_clock()
        self._dropped = True
        if self._transport is not None:
            self._transport.abort()

    def _cut(self) -> None:
        loop = asyncio.get_running_loop()
        if self._deadline is not None and loop.time() - self._deadline.when() > STOOD_STILL:
            self._deadline = loop.call_later(STOOD_STILL, self._cut)
            return
        self.overdue, self._deadline = True, None
        self.abort()

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def data_received(self, data: bytes) -> None:
        """Keep what the peer said; it is nothing to the handler once that has its reply."""
        self.spoil()
        self._heard.append(data)
        if self._released:
            self._over.set()
        else:
            self._handler.data_received(data)

    def eof_received(self) -> None:
        """The peer has ended it."""
        self.spoil()
        self._over.set()
        self._handler.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self.spoil()
        self._over.set()
        self._handler.connection_lost(exc)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._handler.resume_writing()


class _CountingTransport(asyncio.Transport):
    """What aiohttp asks of a transport; the connection is told what passes."""

    def __init__(self, transport: asyncio.Transport, connection: FreshConnection) -> None:
        self._transport = transport
        self._connection = connection

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def is_closing(self) -> bool:
        closing = self._transport.is_closing()
        if closing:
            self._connection.spoil()
        return closing

    def close(self) -> None:
        if not self._connection.release():
            self._transport.close()

    def abort(self) -> None:
        self._connection.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._connection.give(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))


def _peer_stirred(transport: asyncio.Transport) -> bool:
    """Whether the system has the peer's end, or bytes of it, that the event loop has not read yet."""
    socket = transport.get_extra_info("socket")
    if socket is None:
        return False
    if (number := socket.fileno()) < 0:
        return True
    # Unread bytes of a TLS connection may be its tickets, which every server sends on its own.
    encrypted = transport.get_extra_info("ssl_object") is not None
    if not _HAS_POLL:
        return not encrypted and bool(select.select([number], [], [], 0)[0])
    poll = select.poll()
    poll.register(number, _PEER_ENDED if encrypted else _PEER_ENDED | select.POLLIN)
    return bool(poll.poll(0))
