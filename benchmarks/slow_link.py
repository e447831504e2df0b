"""A link with a delay: a relay between a client and a server that is as far away as it is told."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import attrs

RESET = struct.pack("ii", 1, 0)


class _End(asyncio.Protocol):
    """One end of a relayed connection; what comes in here goes out at the other one, a delay later."""

    other: "_End"

    def __init__(self, link: "SlowLink", *, near: bool) -> None:
        self.link = link
        self.near = near
        self.transport: asyncio.Transport | None = None
        self.heard_all = self.said_all = False
        # What is to be done at this end, and when.
        self.queue: asyncio.Queue[tuple[float, Callable[[asyncio.Transport], object]]] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.link.ends.add(self)
        if self.near:
            self.link.start(self.other.reach())
        self.link.start(self.work())

    async def reach(self) -> None:
        """Connect to the server, as if the client's first packet had to get there."""
        await asyncio.sleep(self.link.delay)
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self.link.server_port)
        except OSError:
            self.other.after_delay(_reset)

    async def work(self) -> None:
        while self.transport is not None and not self.transport.is_closing():
            due, deed = await self.queue.get()
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            if not self.transport.is_closing():
                deed(self.transport)

    def after_delay(self, deed: Callable[[asyncio.Transport], object]) -> None:
        self.queue.put_nowait((asyncio.get_running_loop().time() + self.link.delay, deed))

    def data_received(self, data: bytes) -> None:
        self.other.after_delay(lambda transport: transport.write(data))

    def eof_received(self) -> bool:
        self.heard_all = True
        self.other.after_delay(self.other.end)
        return not self.said_all

    def end(self, transport: asyncio.Transport) -> None:
        self.said_all = True
        # It may have been reset meanwhile.
        with suppress(OSError):
            transport.write_eof()
        if self.heard_all:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.link.ends.discard(self)
        self.other.after_delay(_reset if exc else lambda transport: transport.close())


def _reset(transport: asyncio.Transport) -> None:
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    transport.abort()


@attrs.define
class SlowLink:
    """What a link is, and what went over it.

    Attributes:
        delay: Seconds that everything takes, in each direction.
        server_port: Where it leads.
        url: The server's address at this end.
        connections: How many were made.
    """

    delay: float
    server_port: int
    url: str = ""
    connections: int = 0
    ends: set[_End] = attrs.field(init=False, factory=set)
    _tasks: set[asyncio.Task[None]] = attrs.field(init=False, factory=set)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something for as long as the link is there."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def accept(self) -> asyncio.Protocol:
        """Give the near end of a new connection."""
        self.connections += 1
        near, far = _End(self, near=True), _End(self, near=False)
        near.other, far.other = far, near
        return near

    async def aclose(self) -> None:
        """Cut all connections."""
        for end in tuple(self.ends):
            if end.transport is not None:
                end.transport.abort()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def slow_link(url: str, delay: float) -> AsyncIterator[SlowLink]:
    """Lead to a server on this machine; bytes, half closes, closes and resets take `delay` seconds each way.

    Connecting itself takes no time, as the system does it: only what is sent over the connection does.
    """
    scheme, _, place = url.partition("://")
    link = SlowLink(delay, int(place.rpartition(":")[2]))
    listener = await asyncio.get_running_loop().create_server(link.accept, "127.0.0.1", 0)
    link.url = f"{scheme}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield link
    finally:
        listener.close()
        await link.aclose()
