"""Callbacks: how many a process handles in a second, and how soon the awaiting coroutine goes on.

The receiver has a process of its own, the sender another. What is compared stands behind the same aiohttp server: a
handler that parses the body and sets a future, the least that a user would write by hand, and this library.
"""

import asyncio
import json
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import aiohttp
import attrs
from aiohttp import web

from benchmarks import alone, instructions, service
from benchmarks.dialects import jobs_record
from benchmarks.table import Table
from flux2_async import Callbacks, Flux2Session, Polling
from flux2_async.receivers import aiohttp_routes
from flux2_async.webhooks import signed_url

CALLBACKS: Final = 5_000
COUNTED: Final = (200, 1_000)
CONNECTIONS: Final = 20
# Callbacks per second at which the latency is measured: far from the most that anybody can take.
PACE: Final = 250.0
SECONDS: Final = 4.0
SECRET: Final = "benchmark"  # noqa: S105  nothing is behind it
PATH: Final = "/callback"


@attrs.frozen
class Receiver:
    """Something that waits for callbacks.

    Attributes:
        app: What the server runs.
        waits: One coroutine for each expected callback, by the number of its task.
    """

    app: web.Application
    waits: Callable[[int], Awaitable[object]]


def task_id(number: int) -> str:
    """The id of the task with this number."""
    return f"{number:032x}"


def ref(number: int) -> str:
    """The name of the submission of the task with this number."""
    return f"ref-{number}"


@asynccontextmanager
async def by_hand(url: str, *, reads: bool) -> AsyncIterator[Receiver]:
    """Futures by task id; `reads`: the record is read before a future is set."""
    futures: dict[str, asyncio.Future[Any]] = {}

    async def handle(request: web.Request) -> web.Response:
        body = await request.json()
        if reads:
            look = http.get(f"{url}/api/v1/jobs/recordInfo", params={"taskId": body["data"]["taskId"]})
            async with look as response:
                body = await response.json()
        futures.pop(body["data"]["taskId"]).set_result(json.loads(body["data"]["resultJson"]))
        return web.json_response({"code": 200, "msg": "success"})

    def expect(number: int) -> asyncio.Future[Any]:
        return futures.setdefault(task_id(number), asyncio.get_running_loop().create_future())

    async with aiohttp.ClientSession() as http:
        app = web.Application()
        app.add_routes([web.post(PATH, handle)])
        yield Receiver(app, expect)


@asynccontextmanager
async def ours(url: str, *, reads: bool) -> AsyncIterator[Receiver]:
    """A session whose tasks were recovered from a restart; `reads`: bodies are confirmed."""
    callbacks = Callbacks("http://127.0.0.1/", secret=SECRET, confirm=reads)
    polling = Polling(interval=3600.0)
    async with Flux2Session("key", base_url=url, polling=polling, callbacks=callbacks, max_running=None) as flux:
        app = web.Application()
        app.add_routes(aiohttp_routes(flux, PATH))

        def expect(number: int) -> Awaitable[object]:
            task = flux.attach(task_id(number))
            flux._life.usable().inbox.accepted(ref(number), task)  # type: ignore[union-attr]  # noqa: SLF001  as after createTask
            return task.result()

        yield Receiver(app, expect)


RECEIVERS: Final[dict[str, Callable[..., AbstractAsyncContextManager[Receiver]]]] = {"by hand": by_hand, "ours": ours}


async def receive(
    name: str, url: str, count: int, pace: float, *, reads: bool, expected: int | None = None
) -> dict[str, float]:
    """Receive so many callbacks, sent as fast as answers come (pace 0) or paced; give CPU, wall and latencies.

    `expected`: the process waits for as many, and ends as soon as the last of `count` has come, so that processes which
    differ in `count` alone differ by what callbacks cost.
    """
    loop = asyncio.get_running_loop()
    ends: list[float] = [0.0] * (expected or count)

    async def one(number: int, wait: Awaitable[object]) -> None:
        await wait
        ends[number] = time.monotonic()

    async with RECEIVERS[name](url, reads=reads) as receiver:
        waiting = [loop.create_task(one(number, receiver.waits(number))) for number in range(len(ends))]
        runner = web.AppRunner(receiver.app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        begun = time.process_time()
        sending = asyncio.to_thread(alone.call, send, port=runner.addresses[0][1], count=count, pace=pace)
        starts = await sending
        await asyncio.wait(waiting[:count])
        if expected is not None:
            # Without what closing the others costs.
            print("null", flush=True)
            os._exit(0)
        seconds = time.process_time() - begun
        await runner.cleanup()
    delays = sorted(end - start for start, end in zip(starts, ends, strict=True))
    return {
        "rate": count / (max(ends) - starts[0]),
        "cpu": seconds / count,
        "median": statistics.median(delays),
        "p99": delays[int(0.99 * (count - 1))],
    }


async def send(port: int, count: int, pace: float) -> list[float]:
    """Send callbacks on kept connections; give the moment of each."""
    starts = [0.0] * count
    requests = [_request(number) for number in range(count)]
    todo = iter(range(count))
    begun = time.monotonic()

    async def sender() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in todo:
            if pace:
                await asyncio.sleep(begun + number / pace - time.monotonic())
            starts[number] = time.monotonic()
            writer.write(requests[number])
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head  # noqa: S101  a benchmark of failures is none
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        writer.close()

    await asyncio.gather(*(sender() for _ in range(CONNECTIONS)))
    return starts


def _request(number: int) -> bytes:
    query = signed_url("http://127.0.0.1/", ref(number), SECRET).partition("?")[2]
    body = jobs_record(task_id(number), finished=True)
    head = f"POST {PATH}?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def measure(repeats: int, count: int = CALLBACKS, paced: int = int(PACE * SECONDS)) -> Table:
    """Compare receivers, once as fast as they can and once at a gentle pace."""
    rows: list[list[Any]] = []
    for reads in (False, True):
        rates = {}
        for name in RECEIVERS:
            fast, slow = _medians(name, repeats, count, paced, reads=reads)
            rates[name] = fast["rate"]
            share = fast["rate"] / rates["by hand"]
            how = "after reading the record" if reads else "from the body"
            rows.append(
                [f"{name}, {how}", fast["rate"], share, fast["cpu"] * 1e6, slow["median"] * 1e3, slow["p99"] * 1e3]
            )
    columns = ["", "per second", "x by hand", "CPU, µs each", "median delay, ms", "p99 delay, ms"]
    return Table(
        "Callbacks under aiohttp.web",
        columns,
        rows,
        [
            f"median of {repeats} processes; {count} callbacks on {CONNECTIONS} connections as fast as answers come",
            f"delays of {paced} callbacks at {PACE:g} per second, from sending to the awaiting coroutine",
        ],
    )


def measure_instructions(counts: Sequence[int] = COUNTED) -> Table:
    """Compare receivers by instructions, which a busy machine does not change."""
    command = instructions.counter()
    title, columns = "Instructions per callback under aiohttp.web", ["", "thousand instructions", "by hand / this"]
    if command is None:
        return Table(title, columns, [], [instructions.UNAVAILABLE])
    rows: list[list[Any]] = []
    for reads in (False, True):
        found = {}
        with service.running() as running:
            alone.call(make, url=running.url, count=max(counts))
            for name in RECEIVERS:
                case: dict[str, Any] = {"name": name, "url": running.url, "pace": 0.0, "reads": reads}
                less, more = (
                    instructions.counted(command, receive, count=count, expected=max(counts), **case)
                    for count in counts
                )
                found[name] = (more - less) / (counts[1] - counts[0]) / 1000
        how = "after reading the record" if reads else "from the body"
        rows += [[f"{name}, {how}", each, found["by hand"] / each] for name, each in found.items()]
    run = f"{counts[1]} callbacks less {counts[0]}, of tasks that are waited for already"
    return Table(title, columns, rows, [run])


def _medians(name: str, repeats: int, count: int, paced: int, *, reads: bool) -> list[dict[str, float]]:
    found = []
    with service.running() as running:
        # The service knows a task only once it was made.
        alone.call(make, url=running.url, count=max(count, paced))
        for size, pace in ((count, 0.0), (paced, PACE)):
            runs = [
                alone.call(receive, name=name, url=running.url, count=size, pace=pace, reads=reads)
                for _ in range(repeats)
            ]
            found.append({key: statistics.median(run[key] for run in runs) for key in runs[0]})
    return found


async def make(url: str, count: int) -> None:
    """Have tasks made, whose ids count up."""
    async with aiohttp.ClientSession() as http:
        for _ in range(count):
            async with http.post(f"{url}/api/v1/jobs/createTask", json={}) as response:
                await response.read()
