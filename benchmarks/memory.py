"""Memory per outstanding task: with nobody awaiting it, and with one awaiting coroutine each."""

import asyncio
import gc
import logging
import resource
from pathlib import Path

from flux2_async import Flux2Session, Polling

TASKS = 20_000


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def measure() -> None:
    """Print a line for each case."""
    # Closing names every unfinished task in the log.
    logging.disable()
    print(f"memory per outstanding task, {TASKS} tasks")
    # Nothing is looked at while it is measured, so no service is needed.
    async with Flux2Session("key", base_url="http://127.0.0.1:9", polling=Polling(interval=3600.0)) as flux:
        before = resident()
        tasks = [flux.attach(f"{number:032x}") for number in range(TASKS)]
        attached = resident()
        waiting = [asyncio.create_task(task.wait()) for task in tasks]
        await asyncio.sleep(0.1)
        awaited = resident()
        print(f"  nobody awaits: {(attached - before) / TASKS / 1024:.2f} KiB")
        print(f"  one coroutine each: {(awaited - before) / TASKS / 1024:.2f} KiB")
    await asyncio.wait(waiting)
