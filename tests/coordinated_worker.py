"""A process that shares an account with others: it says `ready`, begins at a word, and says `done`.

`submit` puts in so many tasks at once; `endless` keeps so many waiting until it is killed; `await` submits so many one
after the other and waits for their pictures; `receive` receives callbacks for the others.
"""

import asyncio
import warnings
from multiprocessing.connection import Connection
from typing import Any

from aiohttp import web

from flux2_async import Flux2Session, TextToImage
from flux2_async.coordination import Coordination
from flux2_async.models import Callbacks, Polling, RateLimit
from flux2_async.receivers import aiohttp_routes

REQUEST = TextToImage("a red kettle on a slate worktop")


def session_of(coordination: Coordination, options: dict[str, Any]) -> Flux2Session:
    callbacks = Callbacks(options["callbacks"], secret="a secret of all workers") if "callbacks" in options else None
    return Flux2Session(
        options["api_key"],
        base_url=options["base_url"],
        rate_limit=RateLimit(options["limit"], options["period"]),
        max_running=None,
        polling=Polling(interval=1000.0),
        callbacks=callbacks,
        coordination=coordination,
    )


async def submit(flux: Flux2Session, number: int) -> None:
    await asyncio.gather(*(flux.submit(REQUEST) for _ in range(number)))


async def endless(flux: Flux2Session, number: int) -> None:
    async def again() -> None:
        while True:
            await flux.submit(REQUEST)

    await asyncio.gather(*(again() for _ in range(number)))


async def one_by_one(flux: Flux2Session, number: int) -> None:
    for _ in range(number):
        task = await flux.submit(REQUEST)
        await task.result(timeout=30)


async def receive(flux: Flux2Session, port: int) -> None:
    app = web.Application()
    app.add_routes(aiohttp_routes(flux, "/callback"))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()


async def work(coordination: Coordination, options: dict[str, Any], line: Connection) -> None:
    async with session_of(coordination, options) as flux:
        line.send("ready")
        await asyncio.to_thread(line.recv)
        match options["mode"]:
            case "submit":
                await submit(flux, options["number"])
            case "endless":
                await endless(flux, options["number"])
            case "await":
                await one_by_one(flux, options["number"])
            case "receive":
                await receive(flux, options["port"])
        line.send("done")
        await asyncio.to_thread(line.recv)


def main(coordination: Coordination, options: dict[str, Any], line: Connection) -> None:
    """Run a worker, in a process of its own."""
    warnings.simplefilter("error")
    asyncio.run(work(coordination, options, line))
