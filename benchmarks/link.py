"""What a link of 100 ms adds to a submission that has its permit: from the permit to the first byte of its request."""

import asyncio
import json
import ssl
import statistics
from importlib import import_module
from typing import Any, Final
from unittest import mock

import aiohttp

from benchmarks.slow_link import slow_link
from benchmarks.table import Table
from flux2_async import Flux2Session, Polling, RateLimit, TextToImage
from flux2_async.session.open_ahead import OpenAhead

ONE_WAY: Final = 0.05
WAVES: Final = 6
LIMIT: Final = RateLimit(5, 1.0)
# A permit comes back a thousandth later than the period says.
PERIOD: Final = 1.001 * LIMIT.period


class Service:
    """Accepts every createTask, and notes when it came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        else:
            if b"createTask" in head:
                self.times.append(asyncio.get_running_loop().time())
            body = json.dumps({"code": 200, "data": {"taskId": f"task_{len(self.times)}"}}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        finally:
            writer.close()


def measure() -> Table:
    """Compare connections that are opened ahead with those that are opened when the permit is there."""
    rows = [["opened ahead, as it is", *asyncio.run(waits())]]
    with mock.patch.object(OpenAhead, "_look", return_value=None):
        rows.append(["opened at the permit", *asyncio.run(waits())])
    missing = (
        "the round trip of TCP itself is missing in both, as a relay on one machine cannot delay it: without opening "
        f"ahead another {2000 * ONE_WAY:g} ms are to be added"
    )
    return Table(
        f"From the permit to the first byte of createTask: TLS, {2000 * ONE_WAY:g} ms of round trip",
        ["connections", "median, ms", "largest, ms"],
        rows,
        [f"{WAVES} waves of {LIMIT.limit} submissions that wait for their permits", missing],
    )


async def waits() -> tuple[float, float]:
    """Milliseconds from a permit to the first byte: the median, and the most.

    A permit is there a period after its answer, which takes one way, and the request takes the other one.
    """
    server_side, client_side = certificates()
    service = Service()
    async with await asyncio.start_server(service.serve, "127.0.0.1", 0, ssl=server_side) as listener:
        url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        looks = Polling(interval=3600.0)
        async with (
            slow_link(url, ONE_WAY) as link,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_side)) as http,
            Flux2Session("key", base_url=link.url, http=http, rate_limit=LIMIT, polling=looks) as flux,
        ):
            requests = [TextToImage(f"cup {number}") for number in range(WAVES * LIMIT.limit)]
            await asyncio.gather(*(flux.submit(request) for request in requests))
    before = zip(service.times, service.times[LIMIT.limit :], strict=False)
    found = [1000 * (later - earlier - PERIOD - 2 * ONE_WAY) for earlier, later in before]
    return statistics.median(found), max(found)


def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Give both sides of an encrypted connection to this machine."""
    authority: Any = import_module("trustme").CA()
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    authority.configure_trust(client_side)
    return server_side, client_side
