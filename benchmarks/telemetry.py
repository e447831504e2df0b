"""What telemetry costs: instructions of the hot loop, and CPU of tasks at own defaults in real time, long enough.

The hot loop is the dearest way to look at it: its tasks are finished at the first poll, and nothing waits. Each span is
recorded and goes to an exporter that does nothing with it.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Any, Final

import attrs

from benchmarks import alone, cold, contenders, cpu, instructions, service
from benchmarks.contenders import OBSERVED, OURS, Setting
from benchmarks.table import Table

# What comes in the steady state, after a first wave that is not counted.
TASKS: Final = 100


async def seconds(name: str, setting: dict[str, Any], tasks: int, first: int) -> float:
    """CPU seconds of this process for one task; the session keeps to its limit, so their number sets the time."""
    async with contenders.entered(name, Setting(**setting)) as contender:
        await cpu.waves(contender, 1, first)
        before = time.process_time()
        await cpu.waves(contender, 1, tasks)
        return (time.process_time() - before) / tasks


def measure_cpu(
    repeats: int, tasks: int = TASKS, first: int = cold.TASKS, duration: float = cold.DURATION, **defaults: float
) -> Table:
    """Compare a session that is observed with one that is not, in turns, so that a busy machine hits both alike."""
    taken: dict[str, list[float]] = {OURS: [], OBSERVED: []}
    polls: list[float] = []
    for _ in range(repeats):
        for name, found in taken.items():
            with service.running(duration=duration) as running:
                setting = attrs.asdict(Setting(**{**attrs.asdict(running), **cold.DEFAULTS, **defaults}))
                found.append(1e3 * alone.call(seconds, name=name, setting=setting, tasks=tasks, first=first))
                polls.append(running.books().polls / (tasks + first))
    pairs = [100 * (on / off - 1) for off, on in zip(*taken.values(), strict=True)]
    rows = [
        *([name, statistics.median(found), min(found), max(found)] for name, found in taken.items()),
        ["more, in % of each pair", statistics.median(pairs), min(pairs), max(pairs)],
    ]
    return Table(
        f"CPU of a task of {duration:g} s that is observed by telemetry, in real time",
        ["", "ms per task", "least", "most"],
        rows,
        [f"median of {repeats} pairs of processes, {tasks} tasks each; {statistics.mean(polls):.1f} polls a task"],
    )


def measure(repeats: int) -> Iterator[Table]:
    """Compare both."""
    yield instructions.measure([OURS, OBSERVED])
    yield measure_cpu(repeats)
