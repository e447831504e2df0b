"""What a link of 100 ms adds to a submission that has its permit: from the permit to the first byte of its request."""

import asyncio
import json
import ssl
import statistics
import time
from collections import defaultdict
from importlib import import_module
from typing import Any, Final
from unittest import mock
from uuid import uuid4

import aiohttp

from benchmarks.slow_link import slow_link
from benchmarks.table import Table
from flux2_async import Flux2Session, Polling, RateLimit, SubmissionChanged, SubmissionEvent, TextToImage
from flux2_async.session.open_ahead import OpenAhead

ONE_WAY: Final = 0.05
WAVES: Final = 6
LIMIT: Final = RateLimit(5, 1.0)
# A permit comes back a thousandth later than the period says.
PERIOD: Final = 1.001 * LIMIT.period


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept every createTask."""
    try:
        await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    else:
        body = json.dumps({"code": 200, "data": {"taskId": f"task_{uuid4()}"}}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
    finally:
        writer.close()


class Times:
    """An observer that notes when answers came, and when first bytes were about to leave."""

    wants = frozenset({SubmissionEvent.POSTED, SubmissionEvent.ACCEPTED})

    def __init__(self) -> None:
        self.at: dict[SubmissionEvent, list[float]] = defaultdict(list)

    def __call__(self, event: object) -> None:
        """Note one."""
        if isinstance(event, SubmissionChanged):
            self.at[event.event].append(time.perf_counter())


def measure() -> Table:
    """Compare connections that are opened ahead with those that are opened when the permit is there."""
    rows = [["opened ahead, as it is", *asyncio.run(waits())]]
    with mock.patch.object(OpenAhead, "_open_next", return_value=None):
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
    """Milliseconds from a permit, which is there a period after its answer, to the first byte: median and most."""
    server_side, client_side = certificates()
    times = Times()
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side) as listener:
        url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        looks = Polling(interval=3600.0)
        async with (
            slow_link(url, ONE_WAY) as link,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_side)) as http,
            Flux2Session(
                "key", base_url=link.url, http=http, rate_limit=LIMIT, polling=looks, observers=[times]
            ) as flux,
        ):
            requests = [TextToImage(f"cup {number}") for number in range(WAVES * LIMIT.limit)]
            await asyncio.gather(*(flux.submit(request) for request in requests))
    pairs = zip(times.at[SubmissionEvent.ACCEPTED], times.at[SubmissionEvent.POSTED][LIMIT.limit :], strict=False)
    found = [1000 * (posted - accepted - PERIOD) for accepted, posted in pairs]
    return statistics.median(found), max(found)


def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Give both sides of an encrypted connection to this machine."""
    authority: Any = import_module("trustme").CA()
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    authority.configure_trust(client_side)
    return server_side, client_side
