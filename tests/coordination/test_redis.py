"""Sessions that share an account by a real Redis: killed, stopped, emptied, read-only, refused."""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from emulated import error_of, free_port, session_for, until
from programs import program
from redis_server import RedisServer

import flux2_async.coordination
from flux2_async import (
    Callbacks,
    ConfigurationError,
    CoordinationError,
    Flux2Session,
    Polling,
    RateLimit,
    TextToImage,
)
from flux2_async._limiter.window import Fate
from flux2_async.coordination import RedisCoordination
from flux2_async.coordination.contract import Message, Settlement, Terms
from flux2_async.coordination.coordinator import Coordinator
from flux2_async.coordination.redis import refusals
from flux2_async.coordination.redis import store as redis_store
from flux2_async.coordination.redis.refusals import check_server
from flux2_async.emulator import Emulator, Limit, Plan, Script
from flux2_async.webhooks import Callback

pytestmark = pytest.mark.real_time

LIMIT = 10
PERIOD = 0.5
SECRET = "s3cr3t-password"
CALLBACKS = Callbacks("https://app.example/flux2/", secret="the same in all")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@asynccontextmanager
async def sessions(url: str, count: int, **options: Any) -> AsyncIterator[tuple[Emulator, list[Flux2Session]]]:
    script = Script(plans=Plan(duration=0.05), limit=Limit(LIMIT, PERIOD), credits=1e6, render=False)
    options = {"rate_limit": RateLimit(LIMIT, PERIOD), "polling": Polling(interval=0.2)} | options
    async with Emulator(script) as emulator, AsyncExitStack() as stack:
        opened = [session_for(emulator, coordination=RedisCoordination(url), **options) for _ in range(count)]
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


async def test_limit_is_shared_and_nothing_is_left(server: RedisServer) -> None:
    """Four sessions on one Redis are never refused and use the limit up; all they leave expires."""
    before = asyncio.all_tasks()
    async with sessions(server.url, 4) as (emulator, opened):
        await submit_all(opened, 15)
        for flux in opened:
            await flux.drain(5)

    assert_never_too_fast(emulator, 60)
    assert emulator.ledger.max_in_window(PERIOD) == LIMIT
    assert asyncio.all_tasks() == before
    with server.client() as client:
        names = list(client.scan_iter())
        assert names
        assert [name for name in names if not client.ttl(name) > 0] == []
        assert [name for name in names if emulator.api_key in name] == []
        assert [entry for entry in client.client_list() if entry["cmd"] != "client|list"] == []


async def test_key_is_one_task(server: RedisServer) -> None:
    """One key is one createTask, whichever sessions submit it at once, and a key of another request is refused."""
    async with sessions(server.url, 3) as (emulator, opened):
        request = TextToImage("a red kettle")
        tasks = await asyncio.gather(*(flux.submit(request, key="k") for flux in opened))
        error = await error_of(opened[1].submit(TextToImage("a blue kettle"), key="k"))
        for flux in opened:
            await flux.drain(5)

    assert [task.id for task in tasks] == [tasks[0].id] * 3
    assert len(emulator.ledger.accepted) == 1
    assert "already stands for another request" in str(error)


async def test_callback_reaches_the_session_that_waits(server: RedisServer) -> None:
    """A callback received elsewhere ends the wait within a moment."""
    options: dict[str, Any] = {"callbacks": CALLBACKS, "polling": Polling(interval=1000.0)}
    async with sessions(server.url, 2, **options) as (_, (one, other)):
        task = await one.submit(TextToImage("a red kettle"), ref="r1")
        await asyncio.sleep(0.2)
        assert not task.done()
        other.deliver("r1", Callback(task.id, None))
        await task.result(2.0)


class Wire:
    """Passes on what goes to a Redis and comes back, until its connections go dead without a word."""

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
async def wire_to(port: int) -> AsyncIterator[tuple[Wire, str]]:
    wire = Wire(port)
    async with await asyncio.start_server(wire.connected, "127.0.0.1", 0) as server:
        yield wire, f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for end in wire.near + wire.far:
            end.close()


@pytest.mark.parametrize("trouble", ["killed", "dead without a word"])
async def test_listening_goes_on_after_an_outage(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the server was killed or its connections went dead unnoticed, callbacks are heard again soon."""
    monkeypatch.setattr(redis_store, "PING_EVERY", 0.3)
    heard: list[Message] = []
    callback, terms = Message("callback", ref="r", task_id="t"), Terms(None, 70.0)
    with RedisServer() as server:
        async with wire_to(server.port) as (wire, url):
            one, other = (Coordinator(RedisCoordination(way), "a", terms) for way in (server.url, url))
            await one.open(print)
            await other.open(heard.append)
            if trouble == "killed":
                server.kill()
                await asyncio.to_thread(server.start)
            else:
                wire.cut()
            async with asyncio.timeout(10.0):
                while callback not in heard:
                    with suppress(CoordinationError):
                        await one.publish(callback)
                    await asyncio.sleep(0.1)
            for coordinator in (one, other):
                await coordinator.aclose()


async def test_permits_of_a_lost_answer_come_back(server: RedisServer) -> None:
    """What was lent to a question whose answer got lost is free again once its process has joined anew."""
    async with wire_to(server.port) as (wire, url):
        seat = Coordinator(RedisCoordination(url), "lost", Terms(RateLimit(9, 60.0), 70.0))
        await seat.open(print)
        await seat.join()
        wire.lose_answers()
        assert isinstance(await error_of(seat.acquire(3)), CoordinationError)
        await seat.join()
        assert len((await seat.acquire(9)).leases) == 9
        await seat.aclose()


async def test_namespaces_and_who_left_do_not_count(server: RedisServer) -> None:
    """Two namespaces on one server share nothing, and a process that was closed is no peer any more."""
    terms = Terms(RateLimit(2, 60.0), 70.0)
    spaces = ("one", "one", "other")
    seats = [Coordinator(RedisCoordination(server.url, namespace=name), "a", terms) for name in spaces]
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


async def test_old_server_is_told_at_once(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is too old ends `open`."""
    monkeypatch.setattr(refusals, "OLDEST_VERSION", (99, 0))
    async with Emulator(Script(render=False)) as emulator:
        error = await error_of(session_for(emulator, coordination=RedisCoordination(server.url)).open())

    assert isinstance(error, ConfigurationError)
    assert "is too old; 99.0 or newer" in str(error)


@pytest.mark.parametrize("ago", [10.0, 600.0], ids=["in use", "long ago"])
async def test_processes_of_another_version_are_not_joined_in_silence(server: RedisServer, ago: float) -> None:
    """While others keep their state in another form `open` says what to do; theirs is neither read nor changed."""
    coordinator = Coordinator(RedisCoordination(server.url), f"ago {ago}", Terms(RateLimit(LIMIT, PERIOD), 70.0))
    name = f"flux2:{{ago {ago}}}:book:2"
    told = None
    with server.client() as client:
        # For how long the version before kept it after the last question, with the limit that it had.
        client.set(name, "of another version", px=round(1000 * (3600 + 70 + 4 * PERIOD - ago)))
        try:
            await coordinator.open(print)
        except ConfigurationError as error:
            told = str(error)
        assert client.get(name) == "of another version"
    await coordinator.aclose()

    assert (told is not None) == (ago < 60.0)
    assert told is None or "run one version in all processes" in told


async def test_process_of_another_version_that_comes_later_is_warned_of(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot know of those that keep their state in a newer form; one of these says it in the log, once."""
    monkeypatch.setattr(redis_store, "PING_EVERY", 0.05)
    coordinator = Coordinator(RedisCoordination(server.url), "later", Terms(RateLimit(LIMIT, PERIOD), 70.0))
    await coordinator.open(print)
    with server.client() as client:
        client.set("flux2:{later}:book:2", "of another version", ex=3700)
        await until(lambda: caplog.messages, 10.0)
        await asyncio.sleep(0.3)
    await coordinator.aclose()

    assert len(caplog.messages) == 1
    assert "run one version in all processes" in caplog.text


async def test_own_clock_does_not_matter(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is an hour ahead gets no permit earlier."""
    terms = Terms(RateLimit(1, 60.0), 70.0)
    seat = Coordinator(RedisCoordination(server.url), "clock", terms)
    await seat.open(print)
    await seat.join()
    (lease,) = (await seat.acquire(1)).leases
    await seat.settle([Settlement(lease, Fate.ANSWERED, 0.0)])
    ahead = time.time() + 3600.0
    monkeypatch.setattr(time, "time", lambda: ahead)

    assert (await seat.acquire(1)).leases == ()
    await seat.aclose()


# Adds to the wall clock, and to nothing else, what a file says.
SET_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
int gettimeofday(struct timeval *now, void *zone)
{
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(now, zone);
    long step = 0;
    FILE *file = fopen(getenv("STEP_FILE"), "r");
    if (file) { if (fscanf(file, "%ld", &step) != 1) step = 0; fclose(file); }
    now->tv_sec += step;
    return result;
}
"""


@contextmanager
def redis_with_clock(folder: Path) -> Iterator[tuple[RedisServer, Callable[[int], None]]]:
    """A server of which the clock can be set by so many seconds."""
    if sys.platform != "linux":
        pytest.skip("a server's clock is set by a library that Linux loads before all others")
    source, library, step = folder / "clock.c", folder / "clock.so", folder / "step"
    source.write_text(SET_CLOCK)
    step.write_text("0")
    subprocess.run([program("cc"), "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)  # noqa: S603  our own words

    def set_clock(seconds: int) -> None:
        # Whole at any moment.
        new = folder / "new"
        new.write_text(str(seconds))
        new.replace(step)

    with RedisServer(environment={"LD_PRELOAD": str(library), "STEP_FILE": str(step)}) as server:
        yield server, set_clock


async def test_server_whose_clock_is_set_admits_no_more(tmp_path: Path) -> None:
    """The server's clock jumps forth, back and forth again: the limit holds, and is used up, all the time."""
    with redis_with_clock(tmp_path) as (server, set_clock):
        with server.client() as client:
            before = client.time()[0]
            set_clock(9)
            assert client.time()[0] - before >= 9
            set_clock(0)
        async with sessions(server.url, 2, rate_limit=RateLimit(LIMIT, 2.0)) as (emulator, opened):
            begun = time.monotonic()
            job = asyncio.create_task(submit_all(opened, 25))
            for step in (9, 0, 9, 3600):
                await asyncio.sleep(1.3)
                set_clock(step)
            await job
            took = time.monotonic() - begun

    assert len(emulator.ledger.accepted) == 50
    assert emulator.ledger.max_in_window(2.0) <= LIMIT
    assert took < 10.0


@pytest.mark.parametrize("trouble", ["killed", "stopped", "emptied", "read-only"])
async def test_outage_hurts_nobody(trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    """Redis killed and started anew, stopped, emptied or read-only: all tasks end, and the limit holds throughout."""
    with RedisServer() as server:
        async with sessions(server.url, 3) as (emulator, opened):
            job = asyncio.create_task(submit_all(opened, 20))
            await asyncio.sleep(0.7)
            if trouble == "killed":
                server.kill()
                await asyncio.sleep(1.5)
                await asyncio.to_thread(server.start)
            elif trouble == "stopped":
                server.stop()
                await asyncio.sleep(4.0)
                server.go_on()
            else:
                with server.client() as client:
                    if trouble == "emptied":
                        client.flushall()
                    else:
                        client.replicaof("127.0.0.1", str(free_port()))
                        await asyncio.sleep(1.5)
                        client.replicaof("no", "one")
            await job
            for flux in opened:
                await flux.drain(10)

    assert_never_too_fast(emulator, 60)
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == (0 if trouble == "emptied" else 3)


async def test_stopped_redis_does_not_hold_up_keys() -> None:
    """A key is refused within the time limit of a question when Redis hangs, and at once when that is known."""
    with RedisServer() as server:
        async with sessions(server.url, 1) as (emulator, (flux,)):
            server.stop()
            begun = time.monotonic()
            first = await error_of(flux.submit(TextToImage("a red kettle"), key="k"))
            told = time.monotonic()
            second = await error_of(flux.submit(TextToImage("a red kettle"), key="k"))
            known = time.monotonic()
            server.go_on()

    assert (type(first), type(second)) == (CoordinationError, CoordinationError)
    assert told - begun < 3.0
    assert known - told < 0.2
    assert emulator.ledger.requests == []


async def test_wrong_password_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """A password that is wrong or missing ends `open` with an error that says so, and shows no password."""
    caplog.set_level(logging.DEBUG)
    with RedisServer("--requirepass", SECRET) as server:
        async with Emulator(Script(render=False)) as emulator:
            for url in (server.url, f"redis://:{SECRET}x@127.0.0.1:{server.port}"):
                coordination = RedisCoordination(url)
                error = await error_of(session_for(emulator, coordination=coordination).open())
                assert isinstance(error, ConfigurationError)
                assert "password" in str(error)
                assert SECRET not in f"{coordination!r} {error!r} {error.__cause__!r} {caplog.text}"
            async with session_for(emulator, coordination=RedisCoordination(url.replace("x@", "@"))):
                pass


@pytest.mark.parametrize(
    "rights", ["~flux2:* resetchannels +@all", "~flux2:* &* +@all -subscribe", "~other:* &* +@all", "~flux2:* &* +info"]
)
async def test_missing_right_is_told_at_once(rights: str) -> None:
    """A user who may not use the keys, the channels or the commands learns it from `open`, not by lost callbacks."""
    with RedisServer() as server, server.client() as client:
        client.acl_setuser("little", enabled=True, passwords=[f"+{SECRET}"])
        client.execute_command("ACL", "SETUSER", "little", *rights.split())
        async with Emulator(Script(render=False)) as emulator:
            coordination = RedisCoordination(f"redis://little:{SECRET}@127.0.0.1:{server.port}")
            error = await error_of(session_for(emulator, coordination=coordination).open())
            assert isinstance(error, ConfigurationError)
            assert "right" in str(error)
            client.execute_command("ACL", "SETUSER", "little", "resetchannels", "~flux2:*", "&flux2:*", "+@all")
            async with session_for(emulator, coordination=coordination):
                pass


async def test_nothing_listens() -> None:
    """Without a Redis a session opens with one warning and a small share, or not at all, as it was told."""
    url = f"redis://127.0.0.1:{free_port()}"
    async with sessions(url, 1) as (_, (flux,)):
        await flux.submit(TextToImage("a red kettle"))
    async with Emulator(Script(render=False)) as emulator:
        strict = session_for(emulator, coordination=RedisCoordination(url, on_failure="fail"))
        with pytest.raises(CoordinationError, match="cannot be reached"):
            await strict.open()


@pytest.mark.parametrize(("version", "fits"), [("5.0.14", False), ("6.0.0", True), ("7.2.4", True), ("10.0", True)])
def test_old_versions_are_refused(version: str, *, fits: bool) -> None:
    """A server before 6.0 is told apart; Valkey names itself as a Redis of 7.2."""
    if fits:
        check_server({"redis_version": version})
    else:
        with pytest.raises(ConfigurationError, match=r"5\.0\.14 is too old"):
            check_server({"redis_version": version})


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": f"http://user:{SECRET}@host"},
        {"url": f"redis://user:{SECRET}@host:port"},
        {"url": None},
        {"url": "redis://host", "namespace": "two words"},
        {"url": "redis://host", "namespace": None},
        {"url": "redis://host", "timeout": 0},
        {"url": "redis://host", "timeout": "1"},
        {"url": "redis://host", "on_failure": "hope"},
    ],
)
def test_bad_arguments_are_told(arguments: dict[str, Any]) -> None:
    """What cannot be used is told when it is made, without showing a password."""
    with pytest.raises(ConfigurationError) as caught:
        RedisCoordination(**arguments)

    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the redis package the error names the extra."""
    for name in [name for name in sys.modules if name == "redis" or name.startswith("redis.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "flux2_async.coordination.redis.settings")
    monkeypatch.delitem(vars(flux2_async.coordination), "RedisCoordination", raising=False)

    with pytest.raises(ConfigurationError, match=r"flux2-async\[redis\]"):
        _ = flux2_async.coordination.RedisCoordination
