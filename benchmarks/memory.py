"""Memory of a task that is not finished: while nobody awaits it, and with one awaiting coroutine each."""

import asyncio
import gc
import logging
import resource
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs

from benchmarks import alone, contenders, service
from benchmarks.contenders import FLOOR, FRESH, OBSERVED, OURS, SPED, Setting
from benchmarks.table import Table

TASKS: Final = 20_000
# Those that take milliseconds for each call would take minutes.
TASKS_OF_OTHERS: Final = 2_000
AT_ONCE: Final = 50
NEVER: Final = 3600.0
KEEPING: Final = f"{FLOOR}, which keeps its requests"


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def bytes_per_task(name: str, setting: dict[str, Any], tasks: int, *, keeps: bool = False) -> tuple[float, float]:
    """Bytes for a task as it is given out by the service, and with a coroutine that waits for it.

    Args:
        name: The contender.
        setting: Of it.
        tasks: How many.
        keeps: Whether the loop by hand keeps what it sent, as the library does.
    """
    # Our session names every unfinished task when it is closed.
    logging.disable()
    async with contenders.entered(name, Setting(**setting)) as entered:
        contender: Any = entered
        await asyncio.gather(*(contender.create(number) for number in range(AT_ONCE)))
        before = resident()
        handles: list[Any] = []
        kept: list[Any] = []
        for begin in range(0, tasks, AT_ONCE):
            handles += await asyncio.gather(*(contender.create(begin + number) for number in range(AT_ONCE)))
            if keeps:
                kept += [contender.body(begin + number) for number in range(AT_ONCE)]
        made = resident()
        waiting = [asyncio.create_task(contender.finish(handle)) for handle in handles]
        await asyncio.sleep(1.0)
        awaited = resident()
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)
        return (made - before) / tasks, (awaited - before) / tasks


def measure(names: Sequence[str], repeats: int, tasks: int = TASKS, others: int = TASKS_OF_OTHERS) -> Table:
    """Compare the memory; two processes at a time, since they do not disturb each other."""
    rows = []
    with service.running(secure=1, duration=NEVER) as running, ThreadPoolExecutor(2) as pool:
        setting = attrs.asdict(Setting(**attrs.asdict(running), interval=NEVER))
        known = [name for name in names if name not in (FRESH, SPED, OBSERVED)]
        cases = [(name, name, False) for name in known] + [(KEEPING, FLOOR, True)] * (FLOOR in known)
        for shown, name, keeps in cases:
            count = tasks if name in (FLOOR, OURS) else others
            one = partial(alone.call, bytes_per_task, name=name, setting=setting, tasks=count, keeps=keeps)
            found = [future.result() for future in [pool.submit(one) for _ in range(repeats)]]
            made, awaited = (statistics.median(each) / 1024 for each in zip(*found, strict=True))
            rows.append([shown, count, None if shown == FLOOR else made, awaited])
    return Table(
        "Memory per task that is not finished, KiB",
        ["", "tasks", "nobody awaits", "one coroutine each"],
        rows,
        [f"resident memory, median of {repeats} processes; tasks made through the service, ours hold their requests"],
    )
