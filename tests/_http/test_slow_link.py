"""A server that is 100 ms away and closes connections that say nothing for a second."""

import asyncio
import json
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import attrs
import pytest
import trustme
from emulated import error_of, until
from raw_server import answer, read_request
from slow_link import SlowLink, slow_link

from flux2_async import Flux2Session, Polling, RateLimit, TextToImage
from flux2_async.errors import AmbiguousSubmitError

IDLE = 1.0
ONE_WAY = 0.05
COUNT = 112


@attrs.define
class Far:
    """A service with a ledger: which prompt was accepted how often; `greeting` is what it says on each connection."""

    greeting: bytes = b""
    accepted: Counter[str] = attrs.field(factory=Counter)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.greeting)
        try:
            while True:
                async with asyncio.timeout(IDLE):
                    request = await read_request(reader)
                writer.write(self.reply(request))
                if b"connection: close" in request.lower():
                    return
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def reply(self, request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        if b"createTask" not in head:
            return answer(200, {"code": 200, "data": {"taskId": "task", "state": "generating"}})
        prompt = json.loads(body)["input"]["prompt"]
        self.accepted[prompt] += 1
        return answer(200, {"code": 200, "msg": "success", "data": {"taskId": "task_" + prompt.replace(" ", "_")}})


@asynccontextmanager
async def far(*, tls: bool, greeting: bytes = b"") -> AsyncIterator[tuple[Far, SlowLink, Flux2Session]]:
    """The service, the link to it, and an open session at the near end."""
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    authority.configure_trust(client_side)
    service = Far(greeting)
    listener = await asyncio.start_server(service.serve, "127.0.0.1", 0, ssl=server_side if tls else None)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener, slow_link(url, ONE_WAY) as link:
        http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_side))
        # Looks are no matter here.
        looks: Any = {"polling": Polling(interval=3600.0, give_up_after=None), "max_running": None}
        limit = RateLimit(20, 10.0)
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
