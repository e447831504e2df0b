"""A process that shares an account with others: it says `ready`, begins at a word, and says `done`.

`submit` puts in so many tasks at once, `spend` likewise as far as a budget allows; `endless` keeps so many waiting
until it is killed; `groups` puts in so many for each group, says `asked`, and waits for all to end; `await` submits so
many one after the other and waits for their pictures; `receive` receives callbacks for the others; `stop` puts in so
many at once, says `stops` when all of them may leave, and stops itself there.
"""

import asyncio
import os
import signal
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from aiohttp import web

from flux2_async import AmbiguousSubmitError, BudgetExceededError, Flux2Session, TextToImage
from flux2_async.coordination import Coordination
from flux2_async.models import Callbacks, Polling, RateLimit, Timeouts
from flux2_async.receivers import aiohttp_routes
from flux2_async.session import parts

REQUEST = TextToImage("a red kettle on a slate worktop")


def session_of(coordination: Coordination, options: dict[str, Any]) -> Flux2Session:
    callbacks = Callbacks(options["callbacks"], secret="a secret of all workers") if "callbacks" in options else None
    return Flux2Session(
        options["api_key"],
        base_url=options["base_url"],
        rate_limit=options.get("rates", RateLimit(options["limit"], options["period"])),
        max_running=options.get("max_running"),
        polling=Polling(interval=options.get("interval", 1000.0)),
        callbacks=callbacks,
        coordination=coordination,
        timeouts=options.get("timeouts", Timeouts()),
        budget=options.get("budget"),
        max_running_per_group=options.get("per_group"),
    )


async def submit(flux: Flux2Session, number: int) -> None:
    await asyncio.gather(*(flux.submit(REQUEST) for _ in range(number)))


async def spend(flux: Flux2Session, number: int) -> None:
    for answer in await asyncio.gather(*(flux.submit(REQUEST) for _ in range(number)), return_exceptions=True):
        if isinstance(answer, BaseException) and not isinstance(answer, BudgetExceededError):
            raise answer


async def endless(flux: Flux2Session, number: int) -> None:
    async def again() -> None:
        while True:
            # On a busy machine an answer may take longer than a short time-out.
            with suppress(AmbiguousSubmitError):
                await flux.submit(REQUEST)

    await asyncio.gather(*(again() for _ in range(number)))


async def groups(flux: Flux2Session, asked: dict[str, int], line: Connection) -> None:
    for group, number in asked.items():
        for _ in range(number):
            flux.enqueue(TextToImage(group), group=group)
    line.send("asked")
    await flux.drain()


async def one_by_one(flux: Flux2Session, number: int) -> None:
    for _ in range(number):
        task = await flux.submit(REQUEST)
        await task.result(timeout=120)


async def receive(flux: Flux2Session, port: int) -> None:
    app = web.Application()
    app.add_routes(aiohttp_routes(flux, "/callback"))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()


async def stop(flux: Flux2Session, options: dict[str, Any], line: Connection) -> None:
    number, loop = options["number"], asyncio.get_running_loop()
    waiting, all_here = 0, asyncio.Event()

    async def on_send(_: str) -> None:
        nonlocal waiting
        waiting += 1
        if waiting < number:
            await all_here.wait()
            return
        all_here.set()
        line.send("stops")
        if options["inside"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            # Once this has returned, and before the request has left.
            loop.call_soon(os.kill, os.getpid(), signal.SIGSTOP)

    sent = (flux.submit(REQUEST, on_send=on_send) for _ in range(number))
    for answer in await asyncio.gather(*sent, return_exceptions=True):
        # As above.
        if isinstance(answer, BaseException) and not isinstance(answer, AmbiguousSubmitError):
            raise answer


async def work(coordination: Coordination, options: dict[str, Any], line: Connection) -> None:
    async with session_of(coordination, options) as flux:
        line.send("ready")
        await asyncio.to_thread(line.recv)
        match options["mode"]:
            case "submit":
                await submit(flux, options["number"])
            case "spend":
                await spend(flux, options["number"])
            case "endless":
                await endless(flux, options["number"])
            case "groups":
                await groups(flux, options["groups"], line)
            case "await":
                await one_by_one(flux, options["number"])
            case "stop":
                await stop(flux, options, line)
            case "receive":
                await receive(flux, options["port"])
        line.send("done")
        await asyncio.to_thread(line.recv)


def main(coordination: Coordination, options: dict[str, Any], line: Connection) -> None:
    """Run a worker, in a process of its own."""
    warnings.simplefilter("error")
    parts.LEASE_SLACK = options.get("slack", parts.LEASE_SLACK)  # type: ignore[misc]  # a test cannot wait as long
    asyncio.run(work(coordination, options, line))
