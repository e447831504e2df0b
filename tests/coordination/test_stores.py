"""What every store does, whatever it is made of: the contract that the rules are built on."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from emulated import error_of, until
from memory_coordination import Memory
from postgres_server import PostgresServer
from redis_server import RedisServer

from flux2_async.coordination import Coordination, HostCoordination, Kept, Store
from flux2_async.coordination.store import Change
from flux2_async.errors import CoordinationError

pytestmark = pytest.mark.real_time

MEMBERS = itertools.count()


@pytest.fixture(params=["memory", "host", "redis", "postgres"])
def coordination(request: pytest.FixtureRequest, tmp_path: Path) -> Coordination:
    match request.param:
        case "memory":
            return Memory()
        case "host":
            return HostCoordination(tmp_path / "state.sqlite")
    server: RedisServer | PostgresServer = request.getfixturevalue(f"{request.param}_server")
    server.empty()
    return server.coordination()


@asynccontextmanager
async def stores(coordination: Coordination, number: int, account: str = "ab" * 32) -> AsyncIterator[list[Store]]:
    """Open so many, each of which keeps what it hears."""
    async with AsyncExitStack() as stack:
        made = [coordination.store(account, f"member{next(MEMBERS)}") for _ in range(number)]
        for store in made:
            stack.push_async_callback(store.aclose)
            await store.listen(lambda _: None)
        yield made


def write(text: str | None, seconds: float = 60.0) -> Change[str | None]:
    """A change into this text that gives the one before."""
    return lambda before, _: Kept(text, seconds, before)


async def read(store: Store, name: str = "a") -> str | None:
    return await store.update(name, lambda text, _: Kept(text, 0.0, text))


async def test_text_is_what_was_written_last(coordination: Coordination) -> None:
    """A name stands for nothing, then for each text in turn, in all stores of the account, then for nothing again."""
    async with stores(coordination, 2) as (one, other):
        texts = ["first", "ünïcode and {json}", "first", None, "second"]
        before = [await store.update("a", write(text)) for store, text in zip((one, other) * 3, texts, strict=False)]
        assert before == [None, *texts[:-1]]
        assert [await read(one), await read(other), await read(one, "b:c")] == ["second", "second", None]


async def test_no_change_is_lost(coordination: Coordination) -> None:
    """Many who change one text at once, and each what it read, leave nothing of anybody out."""

    def one_more(text: str | None, _: float) -> Kept[int]:
        number = int(text or "0") + 1
        return Kept(str(number), 60.0, number)

    async with stores(coordination, 8) as opened:
        numbers = await asyncio.gather(*(store.update("a", one_more) for _ in range(5) for store in opened))
        assert sorted(numbers) == list(range(1, 41))
        assert await read(opened[0]) == "40"


async def test_change_that_fails_changes_nothing(coordination: Coordination) -> None:
    """Its own error comes out, and what was there stays."""

    def fail(_: str | None, __: float) -> Kept[object]:
        raise CoordinationError("it makes no sense")

    async with stores(coordination, 1) as (store,):
        await store.update("a", write("as it was"))
        assert str(await error_of(store.update("a", fail))) == "it makes no sense"
        assert await read(store) == "as it was"


async def test_text_is_forgotten_in_time(coordination: Coordination) -> None:
    """It is kept for as long as was said the last time it was written, and no longer."""
    async with stores(coordination, 1) as (store,):
        await store.update("short", write("x", 0.05))
        await store.update("long", write("x", 0.05))
        await store.update("long", write("y", 60.0))
        await asyncio.sleep(0.1)
        assert [await read(store, "short"), await read(store, "long")] == [None, "y"]


async def test_time_goes_on(coordination: Coordination) -> None:
    """All who change something are told the time by one clock, in seconds."""
    async with stores(coordination, 2) as (one, other):
        first = await one.update("a", lambda text, now: Kept(text, 0.0, now))
        await asyncio.sleep(0.2)
        second = await other.update("b", lambda text, now: Kept(text, 0.0, now))
        assert 0.15 <= second - first <= 10.0
        assert one.elapsed() <= one.elapsed()


async def test_line_reaches_all_others_of_the_account(coordination: Coordination) -> None:
    """What one publishes each other one hears once, in order; another account hears and reads nothing."""
    heard: dict[int, list[str]] = {number: [] for number in range(4)}
    async with AsyncExitStack() as stack:
        opened = []
        for number, lines_of in heard.items():
            account = "cd" * 32 if number == 3 and not isinstance(coordination, Memory) else "ab" * 32
            store = coordination.store(account, f"member{next(MEMBERS)}")
            stack.push_async_callback(store.aclose)
            await store.listen(lines_of.append)
            opened.append(store)
        # Whoever begins to listen hears after a moment.
        while not all("begun" in heard[number] for number in (1, 2)):
            await opened[0].publish("begun")
            await asyncio.sleep(0.05)
        # The last one is longer than a notification of Postgres may be, and its parts are all the same.
        lines = ["a wake", "a callback ref-1 ünï", "a callback " + 3 * 7_900 * "a"]
        for line in lines:
            await opened[0].publish(line)
        await opened[0].update("a", write("x"))

        def told(number: int) -> list[str]:
            return [line for line in heard[number] if line in lines]

        await until(lambda: told(1) == told(2) == lines)
        if not isinstance(coordination, Memory):
            assert told(3) == []
            assert await read(opened[3]) is None


async def test_closing_twice_does_nothing(coordination: Coordination) -> None:
    """A store that was never opened, or is closed already, can be closed."""
    others = asyncio.all_tasks()
    await coordination.store("ab" * 32, "never").aclose()
    async with stores(coordination, 1) as (store,):
        await store.update("a", write("x"))
        await store.aclose()
    assert asyncio.all_tasks() == others
