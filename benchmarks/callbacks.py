"""1,000 tasks at once, finished by callbacks alone: the time from a task's end to its result, and the polls saved.

The emulator runs in a process of its own, on the same monotonic clock. The session's process has the receiver.
"""

import asyncio
import multiprocessing
import socket
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import attrs
from aiohttp import web

from benchmarks.table import Table
from flux2_async import Callbacks, Flux2Session, Polling, TextToImage
from flux2_async.emulator import Emulator, Plan, Script
from flux2_async.receivers import aiohttp_routes, asgi_app

TASKS = 1000
# Seconds that the first task takes, and from the end of the first to that of the last.
FIRST = 8.0
SPREADS = (20.0, 0.0)

NEVER = Polling(interval=3600.0)


@attrs.frozen
class Report:
    """What the emulator saw.

    Attributes:
        ends: When each task ended, by id.
        polls: recordInfo calls.
        answers: How the callbacks were answered, by status.
    """

    ends: dict[str, float]
    polls: int
    answers: Counter[int | None]


@asynccontextmanager
async def under_aiohttp(flux: Flux2Session, listener: socket.socket) -> AsyncIterator[None]:
    """Receive callbacks in an aiohttp application."""
    app = web.Application()
    app.add_routes(aiohttp_routes(flux, "/"))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener, backlog=TASKS).start()
    yield
    await runner.cleanup()


@asynccontextmanager
async def under_uvicorn(flux: Flux2Session, listener: socket.socket) -> AsyncIterator[None]:
    """Receive callbacks in an ASGI application."""
    uvicorn: Any = import_module("uvicorn")
    config = uvicorn.Config(asgi_app(flux), log_config=None, access_log=False, backlog=TASKS)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield
    server.should_exit = True
    await serving


RECEIVERS: dict[str, Callable[[Flux2Session, socket.socket], AbstractAsyncContextManager[None]]] = {
    "aiohttp.web": under_aiohttp,
    "uvicorn": under_uvicorn,
}


def measure() -> Table:
    """Compare both servers and polling alone, with ends spread out and all in one moment."""
    return Table(
        f"{TASKS} tasks of the emulator, from the end of a task to its result",
        ["ends", "how", "median, ms", "p99, ms", "settled", "twice", "polls", "callbacks by answer"],
        asyncio.run(_rows()),
        ["the emulator has a process of its own; the receiver runs in the session's"],
    )


async def _rows() -> list[list[Any]]:
    rows: list[list[Any]] = []
    for spread in SPREADS:
        ends = f"within {spread:g} s" if spread else "at once"
        for name, receiver in RECEIVERS.items():
            with emulator(spread) as pipe, socket.create_server(("127.0.0.1", 0)) as listener:
                callbacks = Callbacks(f"http://127.0.0.1:{listener.getsockname()[1]}/")
                flux = session(pipe, polling=NEVER, callbacks=callbacks)
                async with flux, receiver(flux, listener):
                    rows.append([ends, name, *await report(flux, pipe)])
        with emulator(spread) as pipe:
            async with session(pipe) as flux:
                rows.append([ends, "polling alone", *await report(flux, pipe)])
    return rows


def session(pipe: Connection, polling: Polling | None = None, callbacks: Callbacks | None = None) -> Flux2Session:
    """Make a session without limits of its own."""
    base_url, api_key = pipe.recv()
    return Flux2Session(
        api_key,
        base_url=base_url,
        rate_limit=None,
        max_running=None,
        polling=polling or Polling(),
        callbacks=callbacks,
    )


async def report(flux: Flux2Session, pipe: Connection) -> list[Any]:
    """Submit all at once, await all, and tell how it went."""
    finished = await asyncio.gather(*(one(flux, number) for number in range(TASKS)))
    pipe.send("report")
    seen: Report = await asyncio.to_thread(pipe.recv)
    delays = [(moment - seen.ends[task_id]) * 1000 for task_id, moment in finished]
    twice = TASKS - len({task_id for task_id, _ in finished}) + flux.statistics().repeated_settles
    median, p99 = statistics.median(delays), statistics.quantiles(delays, n=100)[98]
    answers = ", ".join(f"{count} x {status}" for status, count in seen.answers.items())
    return [median, p99, len(finished), twice, seen.polls, answers or "none"]


async def one(flux: Flux2Session, number: int) -> tuple[str, float]:
    """Await one picture; give its task and the moment."""
    result = await flux.generate(TextToImage(f"number {number}"), timeout=120)
    return result.task_id, asyncio.get_running_loop().time()


@contextmanager
def emulator(spread: float) -> Iterator[Connection]:
    """Run the emulator in a process; its pipe gives the address and key, and a `Report` when asked."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=emulate, args=(theirs, spread), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


def emulate(pipe: Connection, spread: float) -> None:
    """What the process does."""
    asyncio.run(serve(pipe, spread))


async def serve(pipe: Connection, spread: float) -> None:
    """Run the emulator until it was asked for its report."""
    loop = asyncio.get_running_loop()
    begun: list[float] = []

    def plan(index: int, _: object) -> Plan:
        # The ends are set from the first acceptance on, however long the last one takes.
        begun.append(loop.time())
        return Plan(duration=max(begun[0] + FIRST + spread * index / TASKS - begun[-1], 0.0))

    async with Emulator(Script(plans=plan, credits=1e9, render=False)) as running:
        pipe.send((running.base_url, running.api_key))
        await asyncio.to_thread(pipe.recv)
        ledger = running.ledger
        answers = Counter(call.status for call in ledger.callbacks)
        ends = {task_id: running.task(task_id).finishes_at for task_id in ledger.accepted}
        pipe.send(Report(ends, ledger.polls, answers))
        await asyncio.Event().wait()
