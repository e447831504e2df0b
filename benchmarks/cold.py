"""CPU of tasks as a program begins: the first twenty, twelve seconds each, at own defaults and in real time.

What is loaded at first need, and caches that are cold after every wait, cost here and nowhere else. The loop looks at
all tasks at once, for they began together; a second one, whose looks are as far apart as ours, shows what that saves.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any, Final

import attrs

from benchmarks import alone, contenders, cpu, service
from benchmarks.contenders import FRESH, OURS, Contender, Setting
from benchmarks.table import Table

TASKS: Final = 20
DURATION: Final = 12.0
# What the library believes in when it is told nothing; the loop looks every three seconds.
DEFAULTS: Final = {"limit": 20, "period": 10.0, "price": 0.3, "interval": 3.0}


SPREAD: Final = f"{FRESH}, looks spread"
# What is measured, and which contender does it.
WAYS: Final = {FRESH: FRESH, SPREAD: FRESH, OURS: OURS}


@attrs.frozen
class Spread:
    """The loop, whose looks are spread evenly over its interval."""

    loop: Contender
    interval: float
    tasks: int

    async def create(self, number: int) -> tuple[int, Any]:
        """See `Contender`."""
        return number, await self.loop.create(number)

    async def finish(self, handle: tuple[int, Any]) -> str:
        """See `Contender`."""
        number, made = handle
        await asyncio.sleep(self.interval * number / self.tasks)
        return await self.loop.finish(made)


async def seconds(name: str, setting: dict[str, Any], tasks: int) -> list[float]:
    """CPU seconds of this process: to open, for all tasks, and to close."""
    told = Setting(**setting)
    entered = contenders.entered(WAYS[name], told)
    begun = time.process_time()
    async with entered as contender:
        opened = time.process_time()
        await cpu.waves(Spread(contender, told.interval, tasks) if name == SPREAD else contender, 1, tasks)
        done = time.process_time()
    return [opened - begun, done - opened, time.process_time() - done]


def measure(
    names: Sequence[str], repeats: int, duration: float = DURATION, tasks: int = TASKS, **defaults: float
) -> Table:
    """Compare the loop, with its looks together and spread, with us."""
    rows: list[list[Any]] = []
    for name in (way for way, contender in WAYS.items() if contender in names):
        taken, looks = [], []
        # The first writes the bytecode of what is loaded at first need.
        for _ in range(1 + repeats):
            with service.running(duration=duration) as running:
                setting = attrs.asdict(Setting(**{**attrs.asdict(running), **DEFAULTS, **defaults}))
                taken.append(alone.call(seconds, name=name, setting=setting, tasks=tasks))
                looks.append(running.books().polls / tasks)
        opening, each, closing = (statistics.median(column) * 1e3 for column in zip(*taken[1:], strict=True))
        rows.append([name, each / tasks, statistics.median(looks[1:]), opening, closing])
    return Table(
        f"CPU of the first {tasks} tasks of {duration:g} s, in real time",
        ["", "ms per task", "looks per task", "ms to open", "ms to close"],
        rows,
        [f"median of {repeats} processes, two reference pictures by their addresses; imports are not counted"],
    )
