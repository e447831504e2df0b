"""The three ways to receive: routes of aiohttp, an ASGI application, a server of our own."""

import asyncio
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web
from callback_receivers import (
    SUCCESS,
    Response,
    Target,
    fastapi_app,
    on_uvicorn,
    post,
    query,
    request,
    send,
)

from flux2_async.errors import ConfigurationError
from flux2_async.receivers import CallbackServer, aiohttp_routes, asgi_app, serve
from flux2_async.receivers._serve import HEAD_TIMEOUT, KEEPALIVE
from flux2_async.session.session import Flux2Session

Message = MutableMapping[str, Any]


# --- a session that expects no callbacks


@pytest.mark.parametrize(
    "receive", [lambda flux: aiohttp_routes(flux, "/callback"), asgi_app], ids=["aiohttp_routes", "asgi_app"]
)
def test_a_session_without_callbacks_has_no_receiver(receive: Callable[[Flux2Session], object]) -> None:
    """The mistake is told where it is made, not by the first callback."""
    with pytest.raises(ConfigurationError, match=r"Flux2Session\(callbacks=Callbacks\(\.\.\.\)\)"):
        receive(Flux2Session("key"))


async def test_a_session_without_callbacks_has_no_server() -> None:
    """Nothing listens for callbacks that nobody asks for."""
    with pytest.raises(ConfigurationError, match="expects no callbacks"):
        async with serve(Flux2Session("key"), "127.0.0.1", 0):
            raise AssertionError


# --- aiohttp


async def statuses(app: web.Application, *paths: str) -> list[int]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return [(await post(runner.addresses[0][1], path=path)).status for path in paths]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/flux2/callback", [200, 200, 404]),
        ("/flux2/callback/", [200, 200, 404]),
        ("/", [404, 404, 200]),
    ],
)
async def test_routes_match_with_and_without_the_final_slash(path: str, expected: list[int]) -> None:
    """Both forms of the path are taken without a redirect, and nothing else is."""
    app = web.Application()
    app.add_routes(aiohttp_routes(Target(), path))
    assert await statuses(app, "/flux2/callback", "/flux2/callback/", "/") == expected


async def test_routes_work_in_a_sub_application() -> None:
    """The prefix of a sub-application comes before the path."""
    app, inner = web.Application(), web.Application()
    inner.add_routes(aiohttp_routes(Target(), "/callback"))
    app.add_subapp("/flux2", inner)
    assert await statuses(app, "/flux2/callback", "/flux2/callback/", "/callback") == [200, 200, 404]


@pytest.mark.parametrize("path", ["", "callback", "https://app.example/callback"])
def test_a_path_starts_with_a_slash(path: str) -> None:
    """Anything else would never match."""
    with pytest.raises(ConfigurationError, match=r"path: .* must start with '/'"):
        aiohttp_routes(Target(), path)


# --- ASGI


class Server:
    """An ASGI server that gives the messages it was made with, then waits for ever."""

    def __init__(self, *messages: Message, error: Exception | None = None) -> None:
        self.messages = list(messages)
        self.error = error
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    async def send(self, message: Message) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(message)


def scope(**changes: Any) -> Message:
    return {"type": "http", "method": "POST", "path": "/", "query_string": query().encode(), "headers": []} | changes


BODY: Message = {"type": "http.request", "body": SUCCESS}


@pytest.mark.parametrize("path", ["", "/", "/any/where"])
async def test_the_app_answers_at_every_sub_path(path: str) -> None:
    """Frameworks disagree on what is left of the path below a mount."""
    target, server = Target(), Server(BODY)
    await asgi_app(target)(scope(path=path), server.receive, server.send)
    assert [message["type"] for message in server.sent] == ["http.response.start", "http.response.body"]
    assert server.sent[0]["status"] == 200
    assert sorted(server.sent[0]["headers"]) == [(b"content-length", b"28"), (b"content-type", b"application/json")]
    await asyncio.sleep(0)
    assert target.ids == [("r1", "t-1")]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"content-length", b"9" * 30)], 413),
        ([(b"content-length", b"9" * 5000)], 413),
        ([(b"content-length", b"0" * 5000 + b"12")], 200),
        ([(b"content-length", b"12")], 200),
        ([(b"content-length", b"many")], 200),
        ([(b"content-length", b"\xb2")], 200),
        ([(b"x-\xff", b"\xff\xfe")], 200),
    ],
)
async def test_headers_may_hold_any_bytes(headers: list[tuple[bytes, bytes]], status: int) -> None:
    """A length that is none is none declared, and foreign bytes disturb nobody."""
    target, server = Target(), Server(BODY)
    await asgi_app(target)(scope(headers=headers), server.receive, server.send)
    assert server.sent[0]["status"] == status


async def test_a_body_in_pieces_is_put_together() -> None:
    """Pieces count until one is the last, empty ones included."""
    target = Target()
    pieces: list[Message] = [
        {"type": "http.request", "body": SUCCESS[n : n + 7], "more_body": True} for n in range(0, len(SUCCESS), 7)
    ]
    server = Server(*pieces, {"type": "http.request", "more_body": True}, {"type": "http.request"})
    await asgi_app(target)(scope(), server.receive, server.send)
    assert server.sent[0]["status"] == 200


async def test_a_sender_who_leaves_wakes_nothing() -> None:
    """A disconnect before the last piece is no callback, even when what came is JSON."""
    target, server = Target(), Server({**BODY, "more_body": True}, {"type": "http.disconnect"})
    await asgi_app(target)(scope(), server.receive, server.send)
    await asyncio.sleep(0)
    assert (server.sent[0]["status"], target.delivered) == (400, [])


async def test_a_sender_who_is_gone_at_the_answer_is_no_error() -> None:
    """Servers may raise OSError then; the callback counts."""
    target, server = Target(), Server(BODY, error=OSError("gone"))
    await asgi_app(target)(scope(), server.receive, server.send)
    await asyncio.sleep(0)
    assert (server.sent, target.ids) == ([], [("r1", "t-1")])


async def test_the_app_lives_as_long_as_its_server() -> None:
    """Startup and shutdown are confirmed, then the app returns."""
    server = Server({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    await asgi_app(Target())({"type": "lifespan"}, server.receive, server.send)
    assert server.sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


async def test_a_websocket_is_refused() -> None:
    """It is closed before it is accepted."""
    server = Server({"type": "websocket.connect"})
    await asgi_app(Target())({"type": "websocket"}, server.receive, server.send)
    assert [message["type"] for message in server.sent] == ["websocket.close"]


async def test_an_unknown_scope_is_not_supported() -> None:
    """The server is told by an exception, as the specification wants it."""
    server = Server()
    with pytest.raises(NotImplementedError, match="'carrier pigeon'"):
        await asgi_app(Target())({"type": "carrier pigeon"}, server.receive, server.send)


async def test_a_mount_redirects_the_address_without_slash() -> None:
    """Why the address has to end in a slash: without it the framework answers 307, and no callback arrives."""
    target = Target()
    async with on_uvicorn(fastapi_app(target)) as port:
        answers = [(await post(port, path=path)).status for path in ("/flux2/callback", "/flux2/callback/")]
        assert answers == [307, 200]
        assert target.ids == [("r1", "t-1")]


# --- a server of our own


async def test_the_server_answers_at_any_path() -> None:
    """Whatever the public address leads to, callbacks arrive."""
    target = Target()
    async with serve(target, "127.0.0.1", 0) as server:
        assert server.url == f"http://127.0.0.1:{server.port}/"
        for path in ("/", "/flux2/callback/", "/a%20b"):
            assert (await post(server.port, path=path)).status == 200
    assert target.ids == [("r1", "t-1")] * 3


def test_an_ipv6_address_stands_in_brackets() -> None:
    """The address of a server is one that clients take."""
    assert CallbackServer("::1", 8080).url == "http://[::1]:8080/"


async def test_a_port_in_use_is_an_error() -> None:
    """The second server on one port says so, and the first goes on."""
    target = Target()
    async with serve(target, "127.0.0.1", 0) as server:
        with pytest.raises(OSError, match="address already in use"):
            async with serve(target, "127.0.0.1", server.port):
                raise AssertionError
        assert (await post(server.port)).status == 200


async def test_the_server_leaves_nothing_behind() -> None:
    """After the block the port is free and no task is left, also with a sender in the middle of its body."""
    before = asyncio.all_tasks()
    begun = asyncio.get_running_loop().time()
    async with serve(Target(), "127.0.0.1", 0) as server:
        raw = request(headers={"Content-Length": "9999"})
        stuck = asyncio.get_running_loop().create_task(send(server.port, raw))
        await asyncio.sleep(1.0)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await stuck
    assert asyncio.get_running_loop().time() - begun < 10.0
    assert asyncio.all_tasks() == before
    with pytest.raises(ConnectionRefusedError):
        await post(server.port)


async def test_an_error_of_the_user_comes_out_as_itself() -> None:
    """The block's own exception is not wrapped, and the server is gone."""
    ports: list[int] = []
    with pytest.raises(KeyError, match="mine"):
        async with serve(Target(), "127.0.0.1", 0) as server:
            ports.append(server.port)
            raise KeyError("mine")
    with pytest.raises(ConnectionRefusedError):
        await post(ports[0])


async def test_connections_are_kept_for_the_next_callback() -> None:
    """A sender may send one callback after the other on one connection, also after a refusal."""
    target = Target()
    async with serve(target, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        answers = []
        for raw in (request(query=""), request(), request(method="PUT"), request(query=query("r2"))):
            writer.write(raw)
            answers.append(await Response.read(reader))
        writer.close()
        await writer.wait_closed()
    assert [answer.status for answer in answers] == [401, 200, 405, 200]
    assert target.ids == [("r1", "t-1"), ("r2", "t-1")]


async def end_of(port: int, *pieces: bytes, every: float) -> float:
    """Send pieces one by one, as long as the other side listens; give the seconds until it closed the connection."""
    begun = asyncio.get_running_loop().time()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    end = asyncio.create_task(reader.read())
    for piece in pieces:
        writer.write(piece)
        await asyncio.wait([end], timeout=every)
        if end.done():
            break
    with suppress(ConnectionError):
        async with asyncio.timeout(1000):
            await end
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return asyncio.get_running_loop().time() - begun


async def test_a_connection_that_brings_no_request_is_closed() -> None:
    """Whoever says nothing, or says its headers byte by byte, is cut off; callbacks come through meanwhile."""
    target = Target()
    async with serve(target, "127.0.0.1", 0) as server:
        ends = asyncio.gather(
            *(end_of(server.port, every=1.0) for _ in range(50)),
            *(end_of(server.port, *(b"X-%d: y\r\n" % n for n in range(500)), every=1.0) for _ in range(3)),
            end_of(server.port, b"POST / HTTP/1.1\r\n", *(b"X-%d: y\r\n" % n for n in range(100)), every=2.0),
        )
        await asyncio.sleep(5.0)
        assert (await post(server.port)).status == 200
        assert max(await ends) < HEAD_TIMEOUT + 1
        assert (await post(server.port)).status == 200
    assert target.ids == [("r1", "t-1")] * 2


async def test_an_idle_connection_is_closed_after_a_while() -> None:
    """What was used once may be used again within a minute, and is closed after that, also while it trickles."""
    target = Target()
    async with serve(target, "127.0.0.1", 0) as server:
        quiet, trickling = await asyncio.gather(
            end_of(server.port, request(), every=1.0),
            end_of(
                server.port, request(), b"POST / HTTP/1.1\r\n", *(b"X-%d: y\r\n" % n for n in range(100)), every=2.0
            ),
        )
    assert KEEPALIVE <= quiet < KEEPALIVE + 2
    assert trickling < KEEPALIVE + 4
