"""A server that answers with bytes, or with the lack of them."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from ssl import SSLContext
from typing import Any, Final

import attrs

HANG: Final = b"<hang>"

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(status: int, body: object, headers: str = "", *, length: int | None = None) -> bytes:
    """An HTTP answer; a `length` beyond the body's makes one that breaks off."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Whatever"
    kind = "text/html" if isinstance(body, bytes) else "application/json"
    size = len(content) if length is None else length
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n{headers}\r\n"
    return head.encode() + content


@attrs.define
class RawServer:
    url: str = ""
    port: int = 0
    connections: int = 0
    requests: list[bytes] = attrs.field(factory=list)
    clients: list[tuple[str, int]] = attrs.field(factory=list)

    def header(self, name: str, request: int = -1) -> str | None:
        """A header of a request that came, or None."""
        for line in self.requests[request].partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]:
            if line.partition(":")[0].lower() == name.lower():
                return line.partition(":")[2].strip()
        return None


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.decode().lower().split("\r\n"):
        if line.startswith("content-length:"):
            length = int(line.partition(":")[2])
    return head + await reader.readexactly(length)


@asynccontextmanager
async def raw_server(answers: Sequence[Answer], *, tls: SSLContext | None = None) -> AsyncIterator[RawServer]:
    """Give the answers in order, the last one for ever; b"" closes without one, HANG never answers."""
    server = RawServer()
    release = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        server.clients.append(writer.get_extra_info("peername"))
        try:
            while True:
                server.requests.append(await read_request(reader))
                reply = answers[min(len(server.requests), len(answers)) - 1]
                if callable(reply):
                    await reply(writer)
                    return
                if reply == HANG:
                    await release.wait()
                    return
                writer.write(reply)
                await writer.drain()
                declared = int(reply.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or -1)
                if len(reply.partition(b"\r\n\r\n")[2]) != declared:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    handlers: set[asyncio.Task[Any]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.get_running_loop().create_task(serve(reader, writer))
        handlers.add(handler)
        handler.add_done_callback(handlers.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.port}"
    try:
        yield server
    finally:
        release.set()
        listener.close()
        for handler in tuple(handlers):
            handler.cancel()
        if handlers:
            await asyncio.wait(handlers)
