"""Sessions that share an account by a real Redis or Postgres: killed, stopped, emptied, read-only, refused."""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import accumulate
from typing import Any

import pytest
from emulated import error_of, session_for, until
from opening import SECRET
from postgres_server import PostgresServer
from preloaded import SET_CLOCK, preloaded
from redis_server import RedisServer

from flux2_async import (
    Callbacks,
    ConfigurationError,
    CoordinationError,
    Flux2Session,
    Polling,
    RateLimit,
    TextToImage,
)
from flux2_async.coordination import Coordination, PostgresCoordination, RedisCoordination
from flux2_async.coordination.contract import Message, PermitEvent, Settlement, Terms
from flux2_async.coordination.coordinator import Coordinator
from flux2_async.coordination.postgres import connection as postgres_connection
from flux2_async.coordination.redis import store as redis_store
from flux2_async.emulator import Emulator, Limit, Plan, Script
from flux2_async.webhooks import Callback

pytestmark = pytest.mark.real_time

LIMIT = 10
PERIOD = 0.5
CALLBACKS = Callbacks("https://app.example/flux2/", secret="the same in all")


Server = RedisServer | PostgresServer
SERVERS: dict[str, type[Server]] = {"redis": RedisServer, "postgres": PostgresServer}


@pytest.fixture(params=list(SERVERS))
def server(request: pytest.FixtureRequest) -> Server:
    """One that no test does any harm to."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    server.empty()
    return server


@pytest.fixture(params=list(SERVERS))
def make(request: pytest.FixtureRequest) -> type[Server]:
    """Makes one for a test alone."""
    return SERVERS[request.param]


@asynccontextmanager
async def sessions(
    server: Server, count: int, *, timeout: float = 10.0, **options: Any
) -> AsyncIterator[tuple[Emulator, list[Flux2Session]]]:
    script = Script(plans=Plan(duration=0.05), limit=Limit(LIMIT, PERIOD), credits=1e6, render=False)
    options = {"rate_limit": RateLimit(LIMIT, PERIOD), "polling": Polling(interval=0.2)} | options
    async with Emulator(script) as emulator, AsyncExitStack() as stack:
        opened = [
            session_for(emulator, coordination=server.coordination(timeout=timeout), **options) for _ in range(count)
        ]
        for flux in opened:
            await stack.enter_async_context(flux)
        yield emulator, opened


async def submit_all(opened: list[Flux2Session], each: int) -> None:
    request = TextToImage("a red kettle")
    await asyncio.gather(*(flux.submit(request) for flux in opened for _ in range(each)))


def assert_never_too_fast(emulator: Emulator, tasks: int) -> None:
    assert len(emulator.ledger.accepted) == tasks
    assert emulator.ledger.refused == 0
    assert emulator.ledger.max_in_window(PERIOD) <= LIMIT


async def test_limit_is_shared_and_nothing_is_left(server: Server) -> None:
    """Four sessions on one server are never refused and use the limit up; all they leave expires."""
    before = asyncio.all_tasks()
    async with sessions(server, 4) as (emulator, opened):
        await submit_all(opened, 15)
        for flux in opened:
            await flux.drain(5)

    assert_never_too_fast(emulator, 60)
    assert emulator.ledger.max_in_window(PERIOD) == LIMIT
    assert asyncio.all_tasks() == before
    kept = server.kept()
    assert kept
    assert [name for name, seconds in kept.items() if not 0 < seconds < 100_000] == []
    assert [name for name in kept if emulator.api_key in name] == []
    # A server notices by itself that a client has left.
    await until(lambda: server.clients() == 0)


async def test_key_is_one_task(server: Server) -> None:
    """One key is one createTask, whichever sessions submit it at once, and a key of another request is refused."""
    async with sessions(server, 3) as (emulator, opened):
        request = TextToImage("a red kettle")
        tasks = await asyncio.gather(*(flux.submit(request, key="k") for flux in opened))
        error = await error_of(opened[1].submit(TextToImage("a blue kettle"), key="k"))
        for flux in opened:
            await flux.drain(5)

    assert [task.id for task in tasks] == [tasks[0].id] * 3
    assert len(emulator.ledger.accepted) == 1
    assert "already stands for another request" in str(error)


async def test_callback_reaches_the_session_that_waits(server: Server) -> None:
    """A callback received elsewhere ends the wait within a moment."""
    options: dict[str, Any] = {"callbacks": CALLBACKS, "polling": Polling(interval=1000.0)}
    async with sessions(server, 2, **options) as (_, (one, other)):
        task = await one.submit(TextToImage("a red kettle"), ref="r1")
        await asyncio.sleep(0.2)
        assert not task.done()
        await other.deliver("r1", Callback(task.id, None))
        await task.result(30.0)


async def test_callback_that_came_while_nobody_waited(server: Server) -> None:
    """What a session was told that has been closed since is known to one that opens later."""
    async with sessions(server, 1, callbacks=CALLBACKS) as (emulator, (one,)):
        await one.deliver("of-an-earlier-session", Callback("t-9", None))
        await one.aclose()
        async with session_for(emulator, coordination=server.coordination(), callbacks=CALLBACKS) as late:
            assert (await late.recover("of-an-earlier-session", timeout=5)).id == "t-9"


class Wire:
    """Passes on what goes to a server and comes back, until its connections go dead without a word."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.dead: set[asyncio.StreamWriter] = set()
        self.near: list[asyncio.StreamWriter] = []
        self.far: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        self.dead.update(self.near + self.far)

    def lose_answers(self) -> None:
        self.dead.update(self.near)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.near.append(writer)
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.far.append(far_writer)
            await asyncio.gather(self.carry(reader, far_writer), self.carry(far_reader, writer))
        writer.close()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if writer not in self.dead:
                writer.write(data)
        writer.close()


@asynccontextmanager
async def wire_to(server: Server) -> AsyncIterator[tuple[Wire, Coordination]]:
    wire = Wire(server.port)
    async with await asyncio.start_server(wire.connected, "127.0.0.1", 0) as listening:
        yield wire, server.coordination(port=listening.sockets[0].getsockname()[1], timeout=1.0)
        for end in wire.near + wire.far:
            end.close()


@pytest.mark.parametrize("trouble", ["killed", "dead without a word"])
async def test_listening_goes_on_after_an_outage(
    make: type[Server], trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the server was killed or its connections went dead unnoticed, callbacks are heard again soon."""
    for module in (redis_store, postgres_connection):
        monkeypatch.setattr(module, "PING_EVERY", 0.3)
    heard: list[Message] = []
    callback, terms = Message("callback", ref="r", task_id="t"), Terms(None, 70.0)
    with make() as server:
        async with wire_to(server) as (wire, wired):
            one, other = (Coordinator(way, "a", terms) for way in (server.coordination(), wired))
            await one.open(print)
            await other.open(heard.append)
            if trouble == "killed":
                server.kill()
                await asyncio.to_thread(server.start)
            else:
                wire.cut()
            # Unless told otherwise it looks after its connection each 20 seconds.
            async with asyncio.timeout(15.0):
                while callback not in heard:
                    with suppress(CoordinationError):
                        await one.publish(callback)
                    await asyncio.sleep(0.1)
            for coordinator in (one, other):
                await coordinator.aclose()


async def test_permits_of_a_lost_answer_come_back(server: Server) -> None:
    """What was lent to a question whose answer got lost is free again once its process has joined anew."""
    async with wire_to(server) as (wire, wired):
        seat = Coordinator(wired, "lost", Terms(RateLimit(9, 60.0), 70.0))
        await seat.open(print)
        await seat.join()
        wire.lose_answers()
        assert isinstance(await error_of(seat.acquire(3)), CoordinationError)
        await seat.join()
        assert len((await seat.acquire(9)).leases) == 9
        await seat.aclose()


async def test_namespaces_and_who_left_do_not_count(server: Server) -> None:
    """Two namespaces on one server share nothing, and a process that was closed is no peer any more."""
    terms = Terms(RateLimit(2, 60.0), 70.0)
    spaces = ("one", "one", "other")
    seats = [Coordinator(server.coordination(space=name), "a", terms) for name in spaces]
    for seat in seats:
        await seat.open(print)
        await seat.join()
    first, second, elsewhere = seats
    answer = await first.acquire(2)
    assert (len(answer.leases), answer.peers) == (2, 2)
    assert len((await elsewhere.acquire(2)).leases) == 2
    await second.aclose()
    assert (await first.acquire(0)).peers == 1
    await first.aclose()
    await elsewhere.aclose()


async def test_own_clock_does_not_matter(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is an hour ahead gets no permit earlier."""
    terms = Terms(RateLimit(1, 60.0), 70.0)
    seat = Coordinator(server.coordination(), "clock", terms)
    await seat.open(print)
    await seat.join()
    (lease,) = (await seat.acquire(1)).leases
    await seat.settle([Settlement(lease, PermitEvent.ANSWERED, 0.0)])
    ahead = time.time() + 3600.0
    monkeypatch.setattr(time, "time", lambda: ahead)

    assert (await seat.acquire(1)).leases == ()
    await seat.aclose()


async def test_server_whose_clock_is_set_admits_no_more(make: type[Server]) -> None:
    """The server's clock jumps forth and back, twice: the limit holds, and nobody waits until it is as late again."""
    with preloaded(SET_CLOCK) as clock, make(environment=clock.environment) as server:
        before = server.time()
        clock.set("9")
        assert server.time() - before >= 9
        clock.set("0")
        async with sessions(server, 2, rate_limit=RateLimit(LIMIT, 2.0)) as (emulator, opened):
            job = asyncio.create_task(submit_all(opened, 25))
            # Who took the clock as it is would wait for an hour after the last one.
            for step in (9, 0, 3600, 0):
                await asyncio.sleep(1.3)
                clock.set(str(step))
            await job

    assert len(emulator.ledger.accepted) == 50
    assert emulator.ledger.max_in_window(2.0) <= LIMIT


@pytest.mark.parametrize("trouble", ["killed", "stopped", "emptied", "read-only"])
async def test_outage_hurts_nobody(make: type[Server], trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    """A server killed and started anew, stopped, emptied or read-only: all tasks end, and the limit holds."""

    def told() -> list[int]:
        """How many sessions had told of an outage, and not yet of its end, after each line."""
        lines = (line for line in caplog.records if line.name == "flux2_async")
        steps = (1 if line.levelno >= logging.WARNING else -("is back" in line.message) for line in lines)
        return [0, *accumulate(steps)]

    async def noticed() -> None:
        await until(lambda: told()[-1] == 3)

    caplog.set_level(logging.INFO, "flux2_async")
    with make() as server:
        # In which a server that is not stopped answers on any machine.
        timeout = 1.0 if trouble == "stopped" else 30.0
        async with sessions(server, 3, timeout=timeout) as (emulator, opened):
            job = asyncio.create_task(submit_all(opened, 20))
            await until(lambda: len(emulator.ledger.accepted) >= LIMIT)
            if trouble == "killed":
                server.kill()
                await noticed()
                await asyncio.to_thread(server.start)
            elif trouble == "stopped":
                server.stop()
                await noticed()
                server.go_on()
            elif trouble == "emptied":
                server.empty()
            else:
                await server.set_read_only(value=True)
                await noticed()
                await server.set_read_only(value=False)
            await job
            for flux in opened:
                await flux.drain(30)

    assert_never_too_fast(emulator, 60)
    # Where one told of an outage twice, all three together would have told of it four times.
    assert max(told()) == (0 if trouble == "emptied" else 3)


async def test_address_that_leads_to_another_server(make: type[Server]) -> None:
    """Sessions follow it once their server takes no writes any more, though that keeps their connections open."""
    with make() as server, make() as successor:
        async with wire_to(server) as (wire, wired), Emulator(Script(render=False)) as emulator:
            async with session_for(emulator, coordination=wired) as flux:
                await flux.submit(TextToImage("a red kettle"), key="a")
                await server.set_read_only(value=True)
                wire.port = successor.port
                async with asyncio.timeout(30.0):
                    while True:
                        with suppress(CoordinationError):
                            await flux.submit(TextToImage("a blue kettle"), key="b")
                            break
                        await asyncio.sleep(0.1)

        assert len(emulator.ledger.accepted) == 2
        assert [name for name in successor.kept() if ":key:" in name] != []


async def test_stopped_server_does_not_hold_up_keys(make: type[Server]) -> None:
    """A key is refused within the time limit of a question when the server hangs, and at once when that is known."""
    with make() as server:
        async with sessions(server, 1, timeout=2.0) as (emulator, (flux,)):
            server.stop()
            async with asyncio.timeout(60.0):
                first = await error_of(flux.submit(TextToImage("a red kettle"), key="k"))
            job = asyncio.create_task(error_of(flux.submit(TextToImage("a red kettle"), key="k")))
            for _ in range(100):
                # A turn of the loop, in which nobody waits for an answer.
                await asyncio.sleep(0)
            assert job.done()
            second = await job
            server.go_on()

    assert (type(first), type(second)) == (CoordinationError, CoordinationError)
    assert "cannot be asked at the moment; nothing was sent" in str(second)
    assert emulator.ledger.requests == []


async def test_nothing_listens(make: type[Server]) -> None:
    """Without a server a session opens with one warning and a small share, or not at all, as it was told."""
    server = make()
    async with sessions(server, 1) as (_, (flux,)):
        await flux.submit(TextToImage("a red kettle"))
    async with Emulator(Script(render=False)) as emulator:
        strict = session_for(emulator, coordination=server.coordination(on_failure="fail"))
        with pytest.raises(CoordinationError, match="cannot be reached"):
            await strict.open()


BAD_ARGUMENTS: dict[type[Coordination], list[dict[str, Any]]] = {
    RedisCoordination: [
        {"url": f"http://user:{SECRET}@host"},
        {"url": f"redis://user:{SECRET}@host:port"},
        {"url": None},
        {"url": "redis://host", "namespace": "two words"},
        {"url": "redis://host", "namespace": None},
        {"url": "redis://host", "timeout": 0},
        {"url": "redis://host", "timeout": "1"},
        {"url": "redis://host", "on_failure": "hope"},
    ],
    PostgresCoordination: [
        {"dsn": f"http://user:{SECRET}@host"},
        {"dsn": f"postgresql://user:{SECRET}/x@host"},
        {"dsn": f"postgresql://user:x@{SECRET}@host"},
        {"dsn": f"host=h password={SECRET} no_such_option=1"},
        {"dsn": SECRET},
        {"dsn": " "},
        {"dsn": None},
        {"dsn": b"host=h"},
        {"dsn": "host=h", "schema": ""},
        {"dsn": "host=h", "schema": None},
        {"dsn": "host=h", "schema": "ü" * 32},
        {"dsn": "host=h", "timeout": 0},
        {"dsn": "host=h", "timeout": "1"},
        {"dsn": "host=h", "on_failure": "hope"},
    ],
}


@pytest.mark.parametrize(("kind", "given"), [(kind, each) for kind, bad in BAD_ARGUMENTS.items() for each in bad])
def test_bad_arguments_are_told(kind: type[Coordination], given: dict[str, Any]) -> None:
    """What cannot be used is told when it is made, without showing a password."""
    with pytest.raises(ConfigurationError) as caught:
        kind(**given)

    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


WITHOUT = """
import sys
sys.modules[{package!r}] = None
import flux2_async.coordination as coordination
from flux2_async.coordination import *
from flux2_async import ConfigurationError

assert hasattr(coordination, {name!r}) and {name!r} in dir(coordination)
assert not isinstance(HostCoordination(), {name})
try:
    {name}("{scheme}://localhost")
except ConfigurationError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("name", "extra", "package", "scheme"),
    [("RedisCoordination", "redis", "redis", "redis"), ("PostgresCoordination", "postgres", "psycopg", "postgresql")],
)
def test_missing_extra_is_told(name: str, extra: str, package: str, scheme: str) -> None:
    """Without its package a class can be imported and asked for, and who makes one is told what to install."""
    program = WITHOUT.format(name=name, package=package, scheme=scheme)
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603  our own words

    assert (told.stdout, told.stderr) == (f"{name} needs the extra: pip install 'flux2-async[{extra}]'\n", "")
