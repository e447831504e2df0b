"""One createTask: whose answer it gets, what proves that it never left, and in which order it leaves."""

import asyncio
import select
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import attrs
import pytest
import trustme
from emulated import REQUEST, emulated, error_of, session_for, until
from memory_coordination import Memory
from raw_server import HANG, answer, raw_server
from service_calls import BODY, KEY, accepted, create_task, sent, transport_to

from flux2_async._protocol.answers import Accepted, NeverSent, Obstacle, Unclear
from flux2_async.emulator import Emulator, Plan, Script
from flux2_async.errors import TransportError
from flux2_async.models import RateLimit

STRAY_ID = "task_stray_1"
STRAY = answer(200, {"code": 200, "msg": "success", "data": {"taskId": STRAY_ID}})


# --- Whose answer it is ---


@pytest.mark.parametrize(
    "more",
    [f"Content-Security-Policy: {'x' * 20_000}\r\n", "".join(f"Set-Cookie: c{n}=1\r\n" for n in range(500))],
    ids=["long", "many"],
)
async def test_an_id_behind_headers(more: str) -> None:
    """Headers of a gateway that are longer, or more, than aiohttp takes by itself hide no accepted task."""
    reply = answer(200, {"code": 200, "data": {"taskId": "task_1"}}, more)
    async with raw_server([reply]) as server, transport_to(server.url) as transport:
        told = await sent(transport)

    assert isinstance(told, Accepted)
    assert told.task_id == "task_1"


@pytest.mark.parametrize(
    ("headers", "pieces"),
    [
        ("Transfer-Encoding: chunked", [b"5\r\n[1, 2\r\n", b"no number\r\n"]),
        ("Content-Encoding: deflate\r\nContent-Length: 2", [b"x", b"\x9c"]),
    ],
    ids=["chunks", "packed"],
)
async def test_an_answer_that_is_no_http_from_its_middle_on(headers: str, pieces: list[bytes]) -> None:
    """Who waits for an answer whose body cannot be read, of a server that keeps its end open, hears that at once."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n".encode())
        for piece in pieces:
            await asyncio.sleep(0.1)
            writer.write(piece)
        await over.wait()

    over = asyncio.Event()
    async with raw_server([reply]) as server, transport_to(server.url) as transport, asyncio.timeout(10):
        assert isinstance(await sent(transport), Unclear)
        over.set()


async def test_one_connection_carries_one_request() -> None:
    """Each createTask has a connection of its own, and says that it needs it no longer."""
    async with raw_server([accepted(1), accepted(2)]) as server, transport_to(server.url) as transport:
        answers = [await sent(transport), await sent(transport)]

    assert [each.task_id for each in answers if isinstance(each, Accepted)] == ["task_1", "task_2"]
    assert server.connections == 2
    assert server.header("Connection") == "close"


@pytest.mark.parametrize("stray", [STRAY, answer(429, b""), b"HTTP/1.1 200 O", b"x"])
async def test_an_answer_before_the_request_is_nobodys(stray: bytes) -> None:
    """A connection on which the server has spoken carries no createTask; the next one does, and nobody pays twice."""

    async def speak_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        if len(connections) == 1:
            writer.write(stray)
            spoken.set()
        requests.append(await reader.read(65536))
        if requests[-1]:
            writer.write(accepted(1))
        writer.close()

    connections: list[asyncio.StreamWriter] = []
    requests: list[bytes] = []
    spoken = asyncio.Event()
    async with await asyncio.start_server(speak_first, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        async with transport_to(f"http://127.0.0.1:{port}") as transport:

            async def announce() -> None:
                await spoken.wait()
                await asyncio.sleep(0.1)

            with create_task(transport) as post:
                outcome = await post.send(lambda: False, announce)

    assert isinstance(outcome, Accepted)
    assert outcome.task_id == "task_1"
    assert [bool(request) for request in requests] == [False, True]


@attrs.define
class ThreadServer:
    """A server outside the event loop, so that what it does may go unread by the loop."""

    listener: socket.socket
    clients: list[socket.socket] = attrs.field(factory=list)
    requests: list[bytes] = attrs.field(factory=list)
    came: threading.Event = attrs.field(factory=threading.Event)
    first: Callable[[socket.socket], object] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.clients.append(client)
            self.came.set()
            if len(self.clients) > 1:
                self.requests.append(client.recv(65536))
                client.sendall(accepted(1))
                client.close()

    def act(self, deed: Callable[[socket.socket], object]) -> None:
        """Do something on the first connection, and give the system time to bring it here."""
        assert self.came.wait(5)
        deed(self.clients[0])
        time.sleep(0.05)


@contextmanager
def thread_server() -> Iterator[ThreadServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = ThreadServer(listener)
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for client in server.clients:
                client.close()


@pytest.mark.real_time
@pytest.mark.parametrize(
    "deed",
    [
        lambda client: client.sendall(STRAY),
        lambda client: client.shutdown(socket.SHUT_WR),
        lambda client: client.close(),
        lambda client: (client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"), client.close()),
    ],
    ids=["spoke", "half closed", "closed", "reset"],
)
async def test_what_the_loop_has_not_read_yet_counts(deed: Callable[[socket.socket], object]) -> None:
    """Bytes and ends that lie in the system, unread by the loop, are seen before the first byte."""
    with thread_server() as server:
        async with transport_to(server.url) as transport:
            outcome = await sent(transport, lambda: server.act(deed))

        assert isinstance(outcome, Accepted)
        assert outcome.task_id == "task_1"
        assert len(server.requests) == 1


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="this system does not tell the end of an encrypted peer")
@pytest.mark.real_time
async def test_the_unread_end_of_an_encrypted_connection_counts() -> None:
    """A TLS connection that the server ended unread carries nothing; its tickets, unread as well, are no answer."""
    authority = trustme.CA()
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    authority.configure_trust(client_side)
    heard: list[bytes] = []
    came, end, ended = threading.Event(), threading.Event(), threading.Event()

    def serve(listener: socket.socket) -> None:
        first = server_side.wrap_socket(listener.accept()[0], server_side=True)
        came.set()
        end.wait(5)
        first.shutdown(socket.SHUT_RDWR)
        first.close()
        ended.set()
        second = server_side.wrap_socket(listener.accept()[0], server_side=True)
        heard.append(second.recv(65536))
        second.sendall(accepted(1))
        second.close()

    def act() -> None:
        assert came.wait(5)
        end.set()
        assert ended.wait(5)
        time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_side)) as http,
            transport_to(url, http) as transport,
        ):
            outcome = await sent(transport, act)
        thread.join(5)

    assert isinstance(outcome, Accepted)
    assert BODY in heard[0]


async def test_a_connection_that_waited_is_replaced() -> None:
    """A connection that is idle for more than two seconds carries no createTask."""
    async with raw_server([accepted(1)]) as server, transport_to(server.url) as transport:
        for idle in (1.9, 2.1):
            with create_task(transport) as post:
                assert isinstance(await post.send(lambda: False, partial(asyncio.sleep, idle)), Accepted)

    assert (server.connections, len(server.requests)) == (3, 2)


async def test_a_server_that_closes_every_connection_ends_the_tries() -> None:
    """Where each connection is closed before its first byte nothing was sent, and the tries come to an end."""
    clients = 0

    async def slam(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal clients
        clients += 1
        writer.close()

    async with await asyncio.start_server(slam, "127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with transport_to(url) as transport:
            with create_task(transport) as post:
                outcome = await post.send(lambda: False, partial(asyncio.sleep, 0.1))

    if isinstance(outcome, NeverSent):
        assert outcome.error.never_sent
        assert outcome.obstacle is Obstacle.PASSING
    # Twice the number of which the error speaks.
    assert clients <= 10


async def test_a_server_that_closes_idle_connections_loses_nothing() -> None:
    """Submissions to a server that closes idle connections at once are all accepted, none is unclear."""
    script = Script(plans=Plan(duration=2.0))
    async with emulated(script, rate_limit=None) as (flux, emulator):
        for _ in range(20):
            await flux.submit(REQUEST)
            await asyncio.sleep(1.0)

        assert len(emulator.ledger.accepted) == 20


# --- What proves that it never left ---


def failing_trace(moment: str, kind: type[Exception]) -> aiohttp.TraceConfig:
    async def fail(*_: object) -> None:
        raise kind.__new__(kind)

    trace = aiohttp.TraceConfig()
    getattr(trace, moment).append(fail)
    return trace


NETWORK = [aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ServerDisconnectedError]
BEFORE = ["on_request_start"]
AFTER = ["on_request_headers_sent", "on_request_end"]
# The body is no chunk of aiohttp's: it leaves with the head.
NEVER = ["on_request_chunk_sent"]
CALLERS = [*BEFORE, *AFTER, *NEVER, "on_connection_create_start", "on_response_chunk_received"]


@pytest.mark.parametrize("kind", NETWORK)
@pytest.mark.parametrize("moment", CALLERS)
async def test_a_hook_of_the_callers_session_is_not_asked(moment: str, kind: type[Exception]) -> None:
    """Whatever the caller's own traces raise, and whenever: one submit is one createTask, which is accepted."""
    async with (
        aiohttp.ClientSession(trace_configs=[failing_trace(moment, kind)]) as http,
        emulated(http=http) as (flux, emulator),
    ):
        await flux.submit(REQUEST)

        assert (len(emulator.ledger.requests), len(emulator.ledger.accepted)) == (1, 1)


def install(monkeypatch: pytest.MonkeyPatch, trace: aiohttp.TraceConfig) -> None:
    """Let every session of this process have a trace, as tools do that instrument aiohttp."""
    make = aiohttp.ClientSession.__init__

    def instrumented(self: aiohttp.ClientSession, *args: Any, **options: Any) -> None:
        make(self, *args, trace_configs=[*options.pop("trace_configs", ()), trace], **options)

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", instrumented)


@pytest.mark.parametrize("kind", NETWORK)
@pytest.mark.parametrize("moment", AFTER)
async def test_a_hook_installed_everywhere_proves_nothing(
    moment: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a hook raises after a byte was given makes it unclear, whatever its class; before that it is told."""
    install(monkeypatch, failing_trace(moment, kind))
    async with raw_server([accepted(1)]) as server, transport_to(server.url) as transport:
        outcome = await sent(transport)

    if server.requests:
        assert isinstance(outcome, Unclear)
    else:
        assert isinstance(outcome, NeverSent)
        assert outcome.obstacle is Obstacle.LASTING


@pytest.mark.parametrize("moment", NEVER)
async def test_head_and_body_leave_at_once(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes between the head of a createTask and its body, which is whole."""
    install(monkeypatch, failing_trace(moment, RuntimeError))
    async with raw_server([accepted(1)]) as server, transport_to(server.url) as transport:
        outcome = await sent(transport)

    assert isinstance(outcome, Accepted)
    assert server.header("Content-Length") == str(len(BODY))
    assert server.requests[0].endswith(BODY)


@pytest.mark.parametrize("kind", [*NETWORK, RuntimeError])
async def test_a_hook_that_raises_before_a_connection_is_told_at_once(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What foreign code raises before a connection was asked for is no outage: nothing left, and it is told."""
    install(monkeypatch, failing_trace("on_request_start", kind))
    async with raw_server([accepted(1)]) as server, transport_to(server.url) as transport:
        outcome = await sent(transport)

    assert isinstance(outcome, NeverSent)
    assert outcome.obstacle is Obstacle.LASTING
    assert server.connections == 0


@asynccontextmanager
async def proxy_that(deed: Callable[[asyncio.StreamWriter], object]) -> AsyncIterator[tuple[str, list[bytes]]]:
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        deed(writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", requests


@pytest.mark.parametrize(
    ("deed", "obstacle"),
    [
        (lambda writer: None, Obstacle.PASSING),
        (lambda writer: writer.transport.abort(), Obstacle.PASSING),
        (lambda writer: writer.write(b"HTTP/1.1 20"), Obstacle.PASSING),
        (lambda writer: writer.write(b"what is this\r\n\r\n"), Obstacle.PASSING),
        (lambda writer: writer.write(b"HTTP/1.1 200 OK\r\n\r\n"), Obstacle.PASSING),
        (lambda writer: writer.write(b"HTTP/1.1 200 OK\r\n\r\nno TLS at all"), Obstacle.PASSING),
        (lambda writer: writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"), Obstacle.PASSING),
        (lambda writer: writer.write(b"HTTP/1.1 407 Who are you\r\n\r\n"), Obstacle.LASTING),
        (lambda writer: writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n"), Obstacle.LASTING),
    ],
    ids=["closes", "aborts", "half an answer", "nonsense", "dies after", "speaks no TLS", "502", "407", "403"],
)
async def test_a_proxy_that_grants_no_tunnel(
    deed: Callable[[asyncio.StreamWriter], object], obstacle: Obstacle
) -> None:
    """Whatever a proxy does before TLS is made behind it: the request with the key never left."""
    async with (
        proxy_that(deed) as (url, requests),
        aiohttp.ClientSession(proxy=url) as http,
        transport_to("https://api.example", http) as transport,
    ):
        outcome = await sent(transport)

    assert isinstance(outcome, NeverSent)
    assert outcome.error.never_sent
    assert outcome.obstacle is obstacle
    assert [request.partition(b" ")[0] for request in requests] == [b"CONNECT"]
    assert KEY.encode() not in b"".join(requests)


@pytest.mark.parametrize("entry", ["default", "machine 127.0.0.1"])
async def test_our_key_wins_over_netrc(entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `trust_env` an entry of the netrc file changes no call of ours, and goes to no host of pictures."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f"{entry} login me password pass\n", encoding="utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with (
        raw_server([accepted(1)]) as server,
        aiohttp.ClientSession(trust_env=True) as http,
        transport_to(server.url, http) as transport,
    ):
        assert isinstance(await sent(transport), Accepted)
        await transport.call("GET", "/api/v1/chat/credit")
        form = aiohttp.FormData()
        form.add_field("fileName", "a.png")
        await transport.upload("/api/file-stream-upload", form)

        async with transport.files.get(f"{server.url}/a.png", {}):
            pass

    assert [server.header("Authorization", number) for number in range(4)] == [*[f"Bearer {KEY}"] * 3, None]


@pytest.mark.parametrize(
    ("url", "told", "obstacle"),
    [
        ("http://no-such-host.invalid", socket.EAI_NONAME, Obstacle.LASTING),
        ("http://no-such-host.invalid", socket.EAI_AGAIN, Obstacle.PASSING),
        ("http://127.0.0.1:1", 0, Obstacle.PASSING),
    ],
)
async def test_what_may_pass_and_what_cannot(
    url: str, told: int, obstacle: Obstacle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that nobody knows is told at once; names and hosts that do not answer may do so at the next try."""

    # A machine without a network says of any name that nobody could be asked.
    def resolve(*_: object, **__: object) -> NoReturn:
        raise socket.gaierror(told, "as a server of names says")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with transport_to(url) as transport:
        outcome = await sent(transport)

    assert isinstance(outcome, NeverSent)
    assert outcome.obstacle is obstacle


async def test_a_byte_that_was_given_makes_it_unclear() -> None:
    """A peer that closes while it gets the request may have acted on it."""
    async with raw_server([b"", HANG]) as server, transport_to(server.url) as transport:
        assert isinstance(await sent(transport), Unclear)
        assert len(server.requests) == 1


# --- In which order it leaves ---


async def test_connection_intent_lease_head() -> None:
    """The connection is there before the intent, the lease is asked for after it, and then the head leaves."""
    async with raw_server([accepted(1)]) as server, transport_to(server.url) as transport:
        order: list[str] = []

        async def announce() -> None:
            await until(lambda: server.connections)
            order.append(f"intent after {server.connections} connections, {len(server.requests)} requests")

        def lease_ended() -> bool:
            order.append(f"lease after {len(server.requests)} requests")
            return False

        with create_task(transport) as post:
            await post.send(lease_ended, announce)

    assert order == ["intent after 1 connections, 0 requests", "lease after 0 requests"]


async def test_a_dead_lease_keeps_the_request_here() -> None:
    """With a lease that has ended not one byte leaves."""
    async with raw_server([accepted(1)]) as server, transport_to(server.url) as transport:
        outcome = await sent(transport, lease_ended=lambda: True)
        await asyncio.sleep(1.0)

    assert isinstance(outcome, NeverSent)
    assert outcome.obstacle is Obstacle.LEASE
    assert server.requests == []


async def test_an_intent_that_outlasts_its_lease() -> None:
    """A submission whose `on_send` takes longer than the lease is sent in the end, once, by a permit that is alive."""
    told: list[str] = []

    async def on_send(ref: str) -> None:
        told.append(ref)
        # As long as it takes until the others have given up the permits of the first four, and use them.
        await asyncio.sleep(96.0 if len(told) <= 4 else 0.0)

    script = Script(plans=Plan(duration=2.0))
    script.render = False
    memory = Memory()
    async with (
        Emulator(script) as emulator,
        session_for(emulator, coordination=memory, rate_limit=RateLimit(4, 10.0), max_running=None) as flux,
    ):
        await asyncio.gather(*(flux.submit(REQUEST, on_send=on_send) for _ in range(12)))
        when = emulator.ledger.accepted_at

    assert len(emulator.ledger.accepted) == 12
    assert len(told) == len(set(told)) == 12
    assert not [at for at, later in zip(when, when[4:], strict=False) if later - at < 10.0]


async def test_what_an_intent_raises_comes_out_as_it_is() -> None:
    """Whatever the intent raises, of aiohttp's own kinds as well, is raised as it is, and nothing leaves."""
    for error in (KeyError("journal"), OSError(5, "disk"), TimeoutError(), aiohttp.ClientError("metrics")):

        async def announce(error: Exception = error) -> None:
            raise error

        async with raw_server([accepted(1)]) as server, transport_to(server.url) as transport:
            with create_task(transport) as post:
                raised = await error_of(post.send(lambda: False, announce))

        assert raised is error
        assert (raised.__cause__, raised.__context__) == (None, None)
        assert (server.connections, server.requests) == (1, [])


async def test_no_intent_without_a_connection() -> None:
    """Where no connection can be made nothing is announced, and the caller may leave at once."""
    told: list[str] = []

    async def on_send(ref: str) -> None:
        told.append(ref)

    async with emulated() as (_, emulator):
        pass
    async with session_for(emulator) as flux:
        error = await error_of(flux.submit(REQUEST, on_send=on_send))

    assert isinstance(error, TransportError)
    assert error.never_sent
    assert told == []


@pytest.mark.parametrize("moment", range(1, 12))
async def test_a_cancelled_post_leaves_nothing_behind(moment: int) -> None:
    """Cancelled at any step: no asyncio task, no connection and no warning stay, and `sent` says what left."""
    async with raw_server([HANG]) as server, transport_to(server.url) as transport:
        post = create_task(transport)

        async def send() -> None:
            with post:
                await post.send(lambda: False)

        before = asyncio.all_tasks()
        sending = asyncio.create_task(send())
        for _ in range(moment):
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait([sending])
        await asyncio.sleep(0.1)

        assert {task for task in asyncio.all_tasks() - before if "flux2_async" in task.get_name()} == set()
        assert post.sent or not server.requests


def test_with_uvloop() -> None:
    """Uvloop's connections are looked at and counted as asyncio's are."""
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed: uv sync --extra speedups")

    async def run() -> None:
        with thread_server() as server:
            async with transport_to(server.url) as transport:
                outcome = await sent(transport, lambda: server.act(lambda client: client.sendall(STRAY)))
                assert isinstance(outcome, Accepted)
                assert outcome.task_id == "task_1"
                assert len(server.requests) == 1
        async with raw_server([b""]) as one, transport_to(one.url) as transport:
            assert isinstance(await sent(transport), Unclear)
        async with raw_server([accepted(1)]) as one, transport_to(one.url) as transport:
            outcome = await sent(transport, lease_ended=lambda: True)
            assert isinstance(outcome, NeverSent)
            assert one.requests == []

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
