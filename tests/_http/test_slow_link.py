"""A server that is 100 ms away and closes connections that say nothing for a second."""

import asyncio
import json
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import attrs
import pytest
import trustme
from emulated import error_of, until
from raw_server import answer, raw_server, read_request

from benchmarks.slow_link import SlowLink, slow_link
from flux2_async import Flux2Session, Polling, RateLimit, TextToImage
from flux2_async.errors import AmbiguousSubmitError

IDLE = 1.0
ONE_WAY = 0.05
COUNT = 112
LIMIT = RateLimit(20, 10.0)


@attrs.define
class Far:
    """A service with a ledger.

    Attributes:
        greeting: What it says on each connection.
        refuses: So many of the first createTasks are answered by 429.
        accepted: Which prompt was accepted how often.
        times: When a createTask arrived.
        connections: How many there were, and how many of them are open.
        unused: How many came to their end without a request.
    """

    greeting: bytes = b""
    refuses: int = 0
    accepted: Counter[str] = attrs.field(factory=Counter)
    times: list[float] = attrs.field(factory=list)
    connections: int = 0
    open: int = 0
    unused: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.greeting)
        self.connections += 1
        self.open += 1
        requests = 0
        try:
            while True:
                async with asyncio.timeout(IDLE):
                    request = await read_request(reader)
                requests += 1
                writer.write(self.reply(request))
                if b"connection: close" in request.lower():
                    return
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.open -= 1
            self.unused += not requests

    def reply(self, request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        if b"createTask" not in head:
            return answer(200, {"code": 200, "data": {"taskId": "task", "state": "generating"}})
        self.times.append(asyncio.get_running_loop().time())
        if len(self.times) <= self.refuses:
            return answer(429, {"code": 429, "msg": "slow down"}, "Retry-After: 5\r\n")
        prompt = json.loads(body)["input"]["prompt"]
        self.accepted[prompt] += 1
        return answer(200, {"code": 200, "msg": "success", "data": {"taskId": "task_" + prompt.replace(" ", "_")}})


@asynccontextmanager
async def far(
    *, tls: bool, limit: RateLimit | None = LIMIT, proxy: str | None = None, **options: Any
) -> AsyncIterator[tuple[Far, SlowLink, Flux2Session]]:
    """The service, the link to it, and an open session at the near end."""
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    authority.configure_trust(client_side)
    service = Far(**options)
    listener = await asyncio.start_server(service.serve, "127.0.0.1", 0, ssl=server_side if tls else None)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener, slow_link(url, ONE_WAY) as link:
        http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_side), proxy=proxy)
        # Looks are no matter here.
        looks: Any = {"polling": Polling(interval=3600.0, give_up_after=None), "max_running": None}
        async with http, Flux2Session("key", base_url=link.url, rate_limit=limit, http=http, **looks) as flux:
            yield service, link, flux


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("at_once", [False, True], ids=["one after another", "all at once"])
async def test_every_submission_is_accepted_once(*, tls: bool, at_once: bool) -> None:
    """However the server's closing of idle connections meets them, none is unclear, none lost, none accepted twice."""
    chance = random.Random(7)
    async with far(tls=tls) as (service, _, flux):
        submits = []
        for number in range(COUNT):
            submits.append(asyncio.create_task(flux.submit(TextToImage(f"cup {number}"))))
            if not at_once:
                await asyncio.wait(submits[-1:])
                await asyncio.sleep(chance.uniform(IDLE - 4 * ONE_WAY, IDLE + 4 * ONE_WAY))
        tasks = await asyncio.gather(*submits)
        unclear = flux.statistics().ambiguous

    assert [task.id for task in tasks] == [f"task_cup_{number}" for number in range(COUNT)]
    assert service.accepted == Counter(f"cup {number}" for number in range(COUNT))
    assert unclear == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("status", [429, 422])
async def test_a_refusal_that_was_on_its_way(*, tls: bool, status: int) -> None:
    """A refusal said when the connection was made arrives behind the head: what was accepted is not sent again."""
    greeting = answer(status, {"code": status, "msg": "no"}, "Retry-After: 1\r\n")
    async with far(tls=tls, greeting=greeting) as (service, _, flux):
        errors = [await error_of(flux.submit(TextToImage("cup"), key="mine")) for _ in range(2)]

    assert [type(error) for error in errors] == [AmbiguousSubmitError] * 2
    assert service.accepted == Counter({"cup": 1})


def gaps(times: list[float], size: int) -> list[float]:
    """Seconds from the last createTask of each wave to the first of the next one."""
    return [times[at] - times[at - 1] for at in range(size, len(times), size)]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_connections_are_there_when_permits_are(*, tls: bool) -> None:
    """Who waits for a permit does not wait for a connection as well; each is used, and as many as needed are made."""
    async with far(tls=tls, limit=RateLimit(5, 2.0)) as (service, _, flux):
        await asyncio.gather(*(flux.submit(TextToImage(f"cup {number}")) for number in range(25)))

        # From an arrival: the answer comes back, the permit is held for a period, the next request goes there.
        assert max(gaps(service.times, 5)) < ONE_WAY + 2.002 + ONE_WAY + 0.01
        assert service.connections == 25
        assert service.unused == 0


async def test_no_connection_is_kept_for_a_permit_that_does_not_come() -> None:
    """A 429 closes the gate; what was opened ahead is dropped within two seconds, and made anew for the permits."""
    async with far(tls=True, limit=RateLimit(5, 2.0)) as (service, _, flux):
        await asyncio.gather(*(flux.submit(TextToImage(f"cup {number}")) for number in range(5)))
        service.refuses = 6
        submits = [asyncio.create_task(flux.submit(TextToImage(f"pot {number}"))) for number in range(8)]
        await until(lambda: len(service.times) >= 6)
        await asyncio.sleep(3.0)
        assert service.open == 0
        await asyncio.gather(*submits)

    assert sum(service.accepted.values()) == 13
    assert max(service.accepted.values()) == 1
    assert service.unused <= 5


async def test_closing_drops_what_was_opened_ahead() -> None:
    """A session that is closed while connections wait for permits, or are being made, leaves none."""
    for seconds in (1.85, 1.9, 2.0):
        async with far(tls=True, limit=RateLimit(5, 2.0)) as (service, link, flux):
            submits = [asyncio.create_task(flux.submit(TextToImage(f"cup {number}"))) for number in range(10)]
            await until(lambda: len(service.times) == 5)
            await asyncio.sleep(seconds)
            assert service.connections + link.connections > 10
            await flux.aclose()
            await asyncio.gather(*submits, return_exceptions=True)
            await until(lambda: not link.ends)
        assert (service.open, len(service.times)) == (0, 5)


async def test_who_does_not_wait_opens_one() -> None:
    """Without a limit, and within it, each createTask has the one connection that it opens."""
    for limit in (None, RateLimit(20, 10.0)):
        async with far(tls=False, limit=limit) as (service, link, flux):
            await asyncio.gather(*(flux.submit(TextToImage(f"cup {number}")) for number in range(20)))
            await asyncio.sleep(1.0)
            assert (link.connections, service.unused) == (20, 0)


async def test_tunnels_are_opened_ahead() -> None:
    """Connections through a proxy's tunnel are opened ahead as well, each with the password, and each is used."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        there = await asyncio.open_connection("127.0.0.1", int(asked[-1].split()[1].rpartition(b":")[2]))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(piped(reader, there[1]), piped(there[0], writer))

    async def piped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        async with far(tls=True, limit=RateLimit(5, 2.0), proxy=f"http://me:password@127.0.0.1:{port}") as (
            service,
            _,
            flux,
        ):
            await asyncio.gather(*(flux.submit(TextToImage(f"cup {number}")) for number in range(15)))

    assert max(gaps(service.times, 5)) < ONE_WAY + 2.002 + ONE_WAY + 0.01
    assert (len(asked), service.unused) == (15, 0)
    assert all(b"Proxy-Authorization: Basic bWU6cGFzc3dvcmQ=" in head for head in asked)


async def test_nothing_is_opened_ahead_where_a_proxy_reads_each_request() -> None:
    """A proxy without a tunnel wants its password in each request, which only that one's own connecting puts there."""
    replies = [answer(200, {"code": 200, "data": {"taskId": f"task_{number}"}}) for number in range(6)]
    async with raw_server(replies) as proxy:
        http = aiohttp.ClientSession(proxy=proxy.url.replace("//", "//me:password@"))
        options: Any = {"polling": Polling(interval=3600.0), "rate_limit": RateLimit(2, 1.0), "http": http}
        async with http, Flux2Session("key", base_url="http://api.example", **options) as flux:
            await asyncio.gather(*(flux.submit(TextToImage(f"cup {number}")) for number in range(6)))

    assert [proxy.header("Proxy-Authorization", number) for number in range(6)] == ["Basic bWU6cGFzc3dvcmQ="] * 6
    assert proxy.connections == 6


async def test_the_link_delays() -> None:
    """What is sent arrives after the delay, in order; ends and resets do as well."""
    loop = asyncio.get_running_loop()
    told: list[tuple[object, float]] = []
    begun = loop.time()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            told.append((data, round(loop.time() - begun, 2)))
        told.append(("end", round(loop.time() - begun, 2)))
        writer.write(b"bye")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        async with slow_link(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", 0.5) as link:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(link.url.rpartition(":")[2]))
            begun = loop.time()
            writer.write(b"one")
            await asyncio.sleep(1.0)
            writer.write(b"two")
            writer.write_eof()
            assert await reader.read() == b"bye"
            assert round(loop.time() - begun, 2) == 2.0
            writer.close()
            await until(lambda: not link.ends)

    assert told == [(b"one", 0.5), (b"two", 1.5), ("end", 1.5)]
