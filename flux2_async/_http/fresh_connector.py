"""Which createTask has which connection: one that was opened for it, or ahead for whoever comes next."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection

from flux2_async._http.fresh_connection import MAX_IDLE, FreshConnection


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
        self.allowed_protocol_schema_set: frozenset[str] = inner.allowed_protocol_schema_set
        self._inner = inner
        self._assigned: dict[aiohttp.ClientRequest, FreshConnection] = {}
        self.reached: bool = False
        # Seconds that opening one took lately.
        self._took = 0.0
        # Connecting through a proxy changes the request, and so its key: that is made before.
        self._way: tuple[aiohttp.ClientRequest, aiohttp.ClientTimeout, ConnectionKey | None] | None = None
        # Where each leads, and how; and what ends it when it is too old.
        self._ahead: dict[FreshConnection, tuple[ConnectionKey, asyncio.TimerHandle]] = {}
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
        self, request: aiohttp.ClientRequest, timeout: aiohttp.ClientTimeout, key: ConnectionKey | None
    ) -> None:
        key = key or request.connection_key
        try:
            connection = await self._open(request, timeout, key)
        except Exception:  # noqa: BLE001  a request that needs a connection meets it as well, and tells
            self._way = None
            return
        self._ahead[connection] = key, self._loop.call_at(self._loop.time() + MAX_IDLE, self._drop, connection)

    def _drop(self, connection: FreshConnection) -> None:
        self._ahead.pop(connection)[1].cancel()
        connection.close()

    def open(
        self, request: aiohttp.ClientRequest, timeout: aiohttp.ClientTimeout
    ) -> Coroutine[Any, Any, FreshConnection]:
        """Open a connection on the way that a request would take, or give one that was opened ahead on this way.

        Raises:
            Exception: Whatever keeps the inner connector from it; nothing of the request left.
        """
        if self._ahead or self._opening or request.proxy is not None:
            return self._take_or_open(request, timeout, request.connection_key)
        return self._open(request, timeout)

    async def _take_or_open(
        self, request: aiohttp.ClientRequest, timeout: aiohttp.ClientTimeout, key: ConnectionKey
    ) -> FreshConnection:
        while (ahead := self._take(key)) is None and self._claimed < len(self._opening):
            # One that is being opened is there sooner than another one.
            self._claimed += 1
            try:
                await asyncio.wait(self._opening, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._claimed -= 1
        return ahead or await self._open(request, timeout, key)

    def _take(self, key: ConnectionKey) -> FreshConnection | None:
        for connection, (leads, timer) in list(self._ahead.items()):
            if leads == key and connection.is_fresh():
                del self._ahead[connection]
                timer.cancel()
                return connection
            self._drop(connection)
        return None

    async def _open(
        self, request: aiohttp.ClientRequest, timeout: aiohttp.ClientTimeout, key: ConnectionKey | None = None
    ) -> FreshConnection:
        begun = self._loop.time()
        # Nobody's traces run here: what they raise would be taken for what the network did.
        connection = FreshConnection(await self._inner.connect(request, [], timeout))
        self._took = max(self._loop.time() - begun, 0.75 * self._took)
        self.reached = True
        # A proxy that is no tunnel has the key to it put on each request by the connecting.
        self._way = (request, timeout, key) if request.proxy is None or request.is_ssl() else None
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
