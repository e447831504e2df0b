"""CPU time of a task from its creation to its picture: one creation and one look, 50 tasks at once."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any, Final

import attrs

from benchmarks import alone, contenders, service
from benchmarks.contenders import FLOOR, OURS, Contender, Setting
from benchmarks.table import Table

AT_ONCE: Final = 50
WAVES: Final = 20
# The others take milliseconds of CPU for a task, and seconds before they look for the first time.
QUICK: Final = frozenset({FLOOR, OURS, "aiolimiter script"})
WAVES_OF_OTHERS: Final = 3


async def one(contender: Contender, number: int) -> None:
    """Take one task from its creation to its picture, and see that it is its own."""
    handle = await contender.create(number)
    address = await contender.finish(handle)
    assert address.startswith("https://files.example/"), address  # noqa: S101  a benchmark of failures is none


async def waves(contender: Contender, count: int, at_once: int) -> None:
    """Take tasks through, so many at once."""
    for wave in range(count):
        await asyncio.gather(*(one(contender, wave * at_once + number) for number in range(at_once)))


async def seconds_per_task(name: str, setting: dict[str, Any], count: int, at_once: int) -> float:
    """CPU seconds of this process, of which the first wave and all imports are not counted."""
    async with contenders.entered(name, Setting(**setting)) as contender:
        await waves(contender, 1, at_once)
        before = time.process_time()
        await waves(contender, count, at_once)
        return (time.process_time() - before) / (count * at_once)


def measure(
    names: Sequence[str], repeats: int, count: int = WAVES, others: int = WAVES_OF_OTHERS, at_once: int = AT_ONCE
) -> Table:
    """Compare the CPU time per task; in each round everybody has a turn, so that a busy machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    with service.running(secure=1) as running:
        for _ in range(repeats):
            for name, seconds in taken.items():
                setting = attrs.asdict(Setting(**attrs.asdict(running)))
                size = count if name in QUICK else others
                each = alone.call(seconds_per_task, name=name, setting=setting, count=size, at_once=at_once)
                seconds.append(each * 1e6)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    rows = [
        [name, medians[name], min(seconds), max(seconds), medians[name] / medians[FLOOR] if FLOOR in medians else None]
        for name, seconds in taken.items()
    ]
    return Table(
        f"CPU per task: one creation and one look, {at_once} at once",
        ["", "µs per task", "least", "most", f"x {FLOOR}"],
        rows,
        [
            f"median of {repeats} processes, after a first wave of {at_once}",
            f"{count * at_once} tasks in each process, {others * at_once} where one takes seconds",
        ],
    )
