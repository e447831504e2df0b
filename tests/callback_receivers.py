"""Every receiver on a real server, a session's side of it, and a sender that can misbehave."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import uvicorn
from aiohttp import web
from starlette.applications import Starlette
from starlette.routing import Mount

from flux2_async.receivers import aiohttp_routes, asgi_app, serve
from flux2_async.receivers._handler import CallbackTarget
from flux2_async.session.callback_settings import CallbackSettings
from flux2_async.webhooks import Callback, signed_url

SECRET = b"a-secret-nobody-may-see"
HMAC_KEY = "a-key-nobody-may-see"
PATH = "/flux2/callback/"
SUCCESS = json.dumps(
    {
        "code": 200,
        "data": {"taskId": "t-1", "state": "success", "resultJson": '{"resultUrls":["https://f.example/a.png"]}'},
    }
).encode()


def settings(hmac_key: str | None = None, *, confirm: bool = False) -> CallbackSettings:
    return CallbackSettings(f"https://app.example{PATH}", SECRET, hmac_key, confirm=confirm)


@attrs.define
class Target:
    """What a receiver needs of a session; `error` is raised on delivery, `keeps` is what it gives."""

    settings: CallbackSettings | None = attrs.field(factory=settings)
    open: bool = True
    keeps: bool = True
    error: Exception | None = None
    delivered: list[tuple[str, Callback]] = attrs.field(factory=list)

    @property
    def callback_settings(self) -> CallbackSettings | None:
        return self.settings

    def accepts_callbacks(self) -> bool:
        return self.open

    async def deliver(self, ref: str, callback: Callback) -> bool:
        self.delivered.append((ref, callback))
        if self.error is not None:
            raise self.error
        return self.keeps

    @property
    def ids(self) -> list[tuple[str, str]]:
        return [(ref, callback.task_id) for ref, callback in self.delivered]


def query(ref: str = "r1") -> str:
    return signed_url("https://app.example/", ref, SECRET).partition("?")[2]


# --- servers


@asynccontextmanager
async def on_aiohttp(target: CallbackTarget, port: int = 0, **options: Any) -> AsyncIterator[int]:
    app = web.Application(**options)
    app.add_routes(aiohttp_routes(target, PATH))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def on_uvicorn(app: Any, port: int = 0) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", port)) as listener:
        # The access log would write the signature, as the documentation of the receivers says.
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", ws="none")
        server = uvicorn.Server(config)
        serving = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def on_own_server(target: Target) -> AsyncIterator[int]:
    async with serve(target, "127.0.0.1", 0) as server:
        yield server.port


def fastapi_app(target: Target) -> Any:
    from fastapi import FastAPI  # noqa: PLC0415  it takes a second, and few of the processes that collect need it

    app = FastAPI()
    app.mount("/flux2/callback", asgi_app(target))
    return app


def litestar_app(target: Target) -> Any:
    import litestar  # noqa: PLC0415  likewise

    # Left out, copy_scope is a deprecation warning.
    return litestar.Litestar([litestar.asgi("/flux2/callback", is_mount=True, copy_scope=True)(asgi_app(target))])


RECEIVERS: dict[str, Callable[[Target], AbstractAsyncContextManager[int]]] = {
    "aiohttp": on_aiohttp,
    "serve": on_own_server,
    "asgi": lambda target: on_uvicorn(asgi_app(target)),
    "starlette": lambda target: on_uvicorn(Starlette(routes=[Mount("/flux2/callback", app=asgi_app(target))])),
    "fastapi": lambda target: on_uvicorn(fastapi_app(target)),
    "litestar": lambda target: on_uvicorn(litestar_app(target)),
}


# --- a sender


@attrs.frozen
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    async def read(cls, reader: asyncio.StreamReader, *, empty: bool = False) -> "Response":
        head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        length = 0 if empty else int(headers.get("content-length", 0))
        return cls(int(head.split()[1]), headers, await reader.readexactly(length))


Writing = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def send(port: int, raw: bytes, then: Writing | None = None, *, answered: bool = True) -> Response | None:
    """Send bytes as they are, then go on writing while the answer may come; close without reading unless `answered`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        await writer.drain()
        if then is not None:
            await then(writer)
        return await Response.read(reader) if answered else None
    finally:
        writer.close()
        await writer.wait_closed()


def request(
    body: bytes = SUCCESS,
    *,
    method: str = "POST",
    query: str = query(),
    headers: Mapping[str, str] | None = None,
    path: str = PATH,
) -> bytes:
    """The bytes of a request; its length is declared unless the headers say something about it."""
    fields = {"Host": "app.example", "Content-Type": "application/json"} | dict(headers or {})
    if not {"Transfer-Encoding", "Content-Length"} & fields.keys():
        fields["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path}{'?' if query else ''}{query} HTTP/1.1\r\n{head}\r\n".encode() + body


async def post(port: int, body: bytes = SUCCESS, **options: Any) -> Response:
    """Send one request and read the answer, following no redirect."""
    response = await send(port, request(body, **options))
    assert response is not None
    return response


def chunk(content: bytes) -> bytes:
    """A piece of a body in chunked encoding."""
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"
