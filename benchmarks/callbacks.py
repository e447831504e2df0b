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
from multiprocessing.connection import Connection

import attrs
import uvicorn
from aiohttp import web

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


async def measure() -> None:
    """Print a line for each server and for polling alone, with ends spread out and all in one moment."""
    for spread in SPREADS:
        ends = f"{TASKS} ends within {spread:g} s" if spread else f"{TASKS} ends at once"
        print(f"{ends}, from the end of a task to its result")
        for name, receiver in RECEIVERS.items():
            with emulator(spread) as pipe, socket.create_server(("127.0.0.1", 0)) as listener:
                callbacks = Callbacks(f"http://127.0.0.1:{listener.getsockname()[1]}/")
                flux = session(pipe, polling=NEVER, callbacks=callbacks)
                async with flux, receiver(flux, listener):
                    await report(name, flux, pipe)
        with emulator(spread) as pipe:
            flux = session(pipe)
            async with flux:
                await report("polling alone", flux, pipe)


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


async def report(name: str, flux: Flux2Session, pipe: Connection) -> None:
    """Submit all at once, await all, and print how it went."""
    finished = await asyncio.gather(*(one(flux, number) for number in range(TASKS)))
    pipe.send("report")
    seen: Report = await asyncio.to_thread(pipe.recv)
    delays = [(moment - seen.ends[task_id]) * 1000 for task_id, moment in finished]
    twice = TASKS - len({task_id for task_id, _ in finished}) + flux.statistics().repeated_settles
    median, p99 = statistics.median(delays), statistics.quantiles(delays, n=100)[98]
    calls = ", ".join(f"{count} callbacks answered {status}" for status, count in seen.answers.items())
    print(f"  {name}: median {median:.0f} ms, p99 {p99:.0f} ms; {len(finished)} settled, {twice} of them twice")
    print(f"    {seen.polls} polls; {calls or 'no callbacks'}")


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
