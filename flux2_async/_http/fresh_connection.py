"""A connection that carries one request, and says what became of it.

Two things about createTask must be known and not guessed: that an answer is the answer to this request, and whether
anything of the request left. So it never goes over a connection that carried another one; what was given to its
connection is counted where it is given; and the last look at the connection happens there as well, immediately before
the first byte, with no step of the event loop in between.
"""

import asyncio
import select
from collections.abc import Callable, Iterable
from typing import Any, Final

from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection

MAX_IDLE: Final = 2.0
"""Seconds. Servers close connections that say nothing after 5 s and more, and a close may be on its way unseen."""


class FreshConnection:
    """A connection that has carried no request but the CONNECT of its tunnel.

    Once a request left over it, it stays open behind the reply until it is closed: what else comes may be the answer.

    Attributes:
        connection: aiohttp's own.
        key: Where it leads, and how.
        given: Bytes of a request that were given to it. While it is 0, nothing of the request left.
    """

    def __init__(self, connection: Connection, key: ConnectionKey) -> None:
        self.connection = connection
        self.key = key
        self.given: int = 0
        self._heard: list[bytes] = []
        self._released = False
        self._over = asyncio.Event()
        self._may_send: Callable[[], bool] | None = None
        self._loop = asyncio.get_running_loop()
        self._opened = self._loop.time()
        handler = connection.protocol
        assert handler is not None, "a connection that was released"  # noqa: S101  its connector just made it
        self._transport = transport = handler.transport
        # One that has a parser has carried a request; what came until now lies in the handler's buffers.
        self._spoiled = transport is None or handler.should_close or getattr(handler, "_parser", None) is not None
        self._dropped = False
        if transport is not None:
            handler.force_close()
            handler.transport = _CountingTransport(transport, self)  # type: ignore[assignment]  # it stands in for one
            transport.set_protocol(_Listener(handler, self))

    @property
    def spoiled(self) -> bool:
        """Whether the peer ended it, or spoke on it, or it grew old, before its first byte."""
        return self._spoiled

    def is_fresh(self) -> bool:
        """Whether it may carry a request now."""
        return self.seems_fresh() and self._transport is not None and not _peer_stirred(self._transport)

    def seems_fresh(self) -> bool:
        """Whether it may carry a request, as far as the event loop has seen."""
        if self._spoiled or self.given or self._transport is None or self._transport.is_closing():
            return False
        return self._loop.time() - self._opened <= MAX_IDLE

    def spoil(self) -> None:
        """The peer ended it or spoke on it."""
        self._spoiled = self._spoiled or not (self.given or self._dropped)

    def drop(self) -> None:
        """This side ends it."""
        self._dropped = True

    def release(self) -> bool:
        """The reply has come, or nobody waits for it any more; False while it may be cut, as nothing left over it."""
        self._released = self.given > 0
        return self._released

    def hear(self, data: bytes) -> bool:
        """Keep what the peer said; False when it is nothing to the handler, which has its reply."""
        self.spoil()
        self._heard.append(data)
        if self._released:
            self._over.set()
        return not self._released

    def end(self) -> None:
        """The peer has ended it."""
        self.spoil()
        self._over.set()

    async def is_over(self, seconds: float) -> bool:
        """Wait until the peer has ended it, or said more than its reply, but so many seconds at most."""
        if self._transport is not None and not self._transport.is_closing():
            # A long reply may have been slowed down.
            self._transport.resume_reading()
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            return False
        return True

    @property
    def heard(self) -> bytes:
        """All that the peer has said."""
        return b"".join(self._heard)

    def give(self, size: int) -> bool:
        """Count bytes that are about to be given to it; False, and it is cut, when its request must not leave."""
        if not self.given and not self._look():
            self.drop()
            if self._transport is not None:
                self._transport.abort()
            return False
        self.given += size
        return True

    def _look(self) -> bool:
        if not self.is_fresh():
            self.spoil()
            return False
        return self._may_send is not None and self._may_send()

    def use(self, may_send: Callable[[], bool]) -> None:
        """Let a request leave over it, if this is true as well immediately before the first byte."""
        self._may_send = may_send

    def close(self) -> None:
        """Drop it."""
        self.connection.close()
        self.drop()
        if self._transport is not None:
            self._transport.close()


class _CountingTransport:
    """Counts what is written to a transport; all else is the transport's."""

    def __init__(self, transport: asyncio.Transport, connection: FreshConnection) -> None:
        self._transport = transport
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        closing = self._transport.is_closing()
        if closing:
            self._connection.spoil()
        return closing

    def close(self) -> None:
        if not self._connection.release():
            self._connection.drop()
            self._transport.close()

    def abort(self) -> None:
        self._connection.drop()
        self._transport.abort()

    def write(self, data: bytes) -> None:
        if self._connection.give(len(data)):
            self._transport.write(data)

    def writelines(self, chunks: Iterable[bytes]) -> None:
        self.write(b"".join(chunks))


class _Listener(asyncio.Protocol):
    """Notes what the peer says; all else is the handler's."""

    def __init__(self, handler: ResponseHandler, connection: FreshConnection) -> None:
        self._handler = handler
        self._connection = connection

    def data_received(self, data: bytes) -> None:
        if self._connection.hear(data):
            self._handler.data_received(data)

    def eof_received(self) -> None:
        self._connection.end()
        self._handler.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.end()
        self._handler.connection_lost(exc)

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()


def _peer_stirred(transport: asyncio.Transport) -> bool:
    """Whether the system has the peer's end, or bytes of it, that the event loop has not read yet."""
    socket = transport.get_extra_info("socket")
    if socket is None:
        return False
    if socket.fileno() < 0:
        return True
    # Unread bytes of a TLS connection may be its tickets, which every server sends on its own.
    encrypted = transport.get_extra_info("ssl_object") is not None
    if not hasattr(select, "poll"):
        return not encrypted and bool(select.select([socket.fileno()], [], [], 0)[0])
    poll = select.poll()
    poll.register(socket.fileno(), getattr(select, "POLLRDHUP", 0) | (0 if encrypted else select.POLLIN))
    return bool(poll.poll(0))
