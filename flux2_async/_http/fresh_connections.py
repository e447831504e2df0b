"""Connections that carry one request each, and say what became of it.

Two things about createTask must be known and not guessed: that an answer is the answer to this request, and whether
anything of the request left. So it never goes over a connection that carried another one; what was given to its
connection is counted where it is given; and the last look at the connection happens there as well, immediately before
the first byte, with no step of the event loop in between.
"""

import asyncio
import select
from collections.abc import Callable, Iterable
from typing import Any, Final

import aiohttp
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
        self.given = 0
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


class FreshConnector(aiohttp.BaseConnector):
    """Gives each request the connection that was opened for it, and no request another one.

    Some may be opened ahead, on the way of the last request, for requests that are known to come soon.

    Attributes:
        reached: Whether a connection was made at all.

    Args:
        inner: Makes the connections; closed with this one.
    """

    def __init__(self, inner: aiohttp.BaseConnector) -> None:
        super().__init__(force_close=True)
        self.allowed_protocol_schema_set = inner.allowed_protocol_schema_set
        self._inner = inner
        self._assigned: dict[aiohttp.ClientRequest, FreshConnection] = {}
        self.reached = False
        # Seconds that opening one took lately.
        self._took = 0.0
        self._way: tuple[aiohttp.ClientRequest, aiohttp.ClientTimeout, ConnectionKey] | None = None
        self._ahead: dict[FreshConnection, asyncio.TimerHandle] = {}
        self._opening: set[asyncio.Task[None]] = set()
        # Requests that wait for one of those.
        self._claimed = 0

    @property
    def lead(self) -> float:
        """Seconds before it is wanted that a connection is to be opened: it is there in time, and idle for a moment."""
        return min(1.5 * self._took + 0.05, 0.75 * MAX_IDLE)

    @property
    def ahead(self) -> int:
        """Connections that are open, or being opened, for requests to come."""
        for connection in [each for each in self._ahead if not each.is_fresh()]:
            self._drop(connection)
        return len(self._ahead) + len(self._opening)

    def open_ahead(self) -> bool:
        """Begin to open one; False where it is not known how, because no request went there, or the last one failed."""
        if self._way is None or self.closed:
            return False
        opening = asyncio.Task(self._open_ahead(*self._way), loop=self._loop, name="flux2_async open a connection")
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        return True

    async def _open_ahead(
        self, request: aiohttp.ClientRequest, timeout: aiohttp.ClientTimeout, key: ConnectionKey
    ) -> None:
        try:
            connection = await self._connect(request, timeout, key)
        except Exception:  # noqa: BLE001  a request that needs a connection meets it as well, and tells
            self._way = None
            return
        self._ahead[connection] = self._loop.call_at(self._loop.time() + MAX_IDLE, self._drop, connection)

    def _drop(self, connection: FreshConnection) -> None:
        self._ahead.pop(connection).cancel()
        connection.close()

    async def open(self, request: aiohttp.ClientRequest, timeout: aiohttp.ClientTimeout) -> FreshConnection:
        """Open a connection on the way that a request would take, or give one that was opened ahead on this way.

        Raises:
            Exception: Whatever keeps the inner connector from it; nothing of the request left.
        """
        # Connecting through a proxy changes the request, and so its key.
        key = request.connection_key
        while (connection := self._take(key)) is None and self._claimed < len(self._opening):
            # One that is being opened is there sooner than another one.
            self._claimed += 1
            try:
                await asyncio.wait(self._opening, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._claimed -= 1
        if connection is not None:
            return connection
        connection = await self._connect(request, timeout, key)
        # A proxy that is no tunnel has the key to it put on each request by the connecting.
        self._way = (request, timeout, key) if request.proxy is None or request.is_ssl() else None
        return connection

    def _take(self, key: ConnectionKey) -> FreshConnection | None:
        for connection in list(self._ahead):
            if connection.key == key and connection.is_fresh():
                self._ahead.pop(connection).cancel()
                return connection
            self._drop(connection)
        return None

    async def _connect(
        self, request: aiohttp.ClientRequest, timeout: aiohttp.ClientTimeout, key: ConnectionKey
    ) -> FreshConnection:
        begun = self._loop.time()
        # Nobody's traces run here: what they raise would be taken for what the network did.
        connection = FreshConnection(await self._inner.connect(request, [], timeout), key)
        self._took = max(self._loop.time() - begun, 0.75 * self._took)
        self.reached = True
        return connection

    def assign(self, request: aiohttp.ClientRequest, connection: FreshConnection) -> None:
        """Let a request have this connection, once, when it comes for it."""
        self._assigned[request] = connection

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: Any,  # noqa: ARG002  aiohttp passes it
        timeout: aiohttp.ClientTimeout,  # noqa: ARG002  the same
    ) -> Connection:
        """Give the connection that was assigned; called by aiohttp, and suspends nowhere."""
        connection = self._assigned.pop(req, None)
        if connection is None:
            raise aiohttp.ClientConnectionError("a request is sent once, over the connection that was opened for it")
        return connection.connection

    async def aclose(self) -> None:
        """Close it, what was opened ahead, and the inner one."""
        for opening in tuple(self._opening):
            opening.cancel()
        if self._opening:
            await asyncio.wait(self._opening)
        for connection in tuple(self._ahead):
            self._drop(connection)
        await self.close()
        await self._inner.close()


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
