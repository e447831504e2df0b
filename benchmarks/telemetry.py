"""What telemetry costs, in instructions and CPU time per task: of the hot loop, and of tasks as they are, over TLS.

In the hot loop a task is finished at the first poll, nothing waits, and nothing is encrypted, so that hardly anything
is left beside telemetry. The real case is a task of twelve seconds with the library's own settings over HTTPS, as the
service is: each createTask makes a connection of its own. Ended spans go in batches, as programs have it, to an
exporter that does nothing with them: what sending them costs is the exporter's matter.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import attrs

from benchmarks import alone, cold, contenders, cpu, instructions, service
from benchmarks.contenders import OBSERVED, OURS, Contender, Setting
from benchmarks.table import Table

# How it is observed: by whom, and which part of the traces is recorded, by a sampler that drops the others.
WAYS: Final = {
    "not observed": (OURS, 0.0),
    "every span recorded": (OBSERVED, 1.0),
    "a tenth of the traces recorded": (OBSERVED, 0.1),
    "metrics alone": (OBSERVED, 0.0),
}


# Seconds between two tasks; more often, and it would be chance how many connections their polls take.
APART: Final = 1.0
# Tasks whose CPU time is counted, and those before them.
TASKS: Final = 60
FIRST: Final = 8


async def spread(name: str, setting: dict[str, Any], count: int, at_once: int) -> None:
    """Take tasks through; `at_once` and `count` together are their number."""
    async with contenders.entered(name, Setting(**setting)) as contender:
        await apart(contender, count * at_once, APART)


async def apart(contender: Contender, tasks: int, between: float) -> None:
    """Take tasks through, so many seconds between the beginnings of two."""

    async def later(number: int) -> None:
        await asyncio.sleep(number * between)
        await cpu.one(contender, number)

    await asyncio.gather(*map(later, range(tasks)))


async def seconds(name: str, setting: dict[str, Any], tasks: int, between: float) -> float:
    """CPU seconds of a task, so many seconds between the beginnings of two, without imports and the first tasks."""
    async with contenders.entered(name, Setting(**setting)) as contender:
        await cpu.waves(contender, 1, FIRST)
        before = time.process_time()
        await apart(contender, tasks, between)
        return (time.process_time() - before) / tasks


@attrs.frozen
class Case:
    """What is done.

    Attributes:
        title: What it is called.
        secure: Whether over TLS.
        work: Takes tasks through, as `cpu.seconds_per_task` does.
        at_once: Tasks in a wave.
        waves: Of the shorter and of the longer run.
        duration: Seconds that a task takes.
        setting: What the library is told.
    """

    title: str
    secure: bool = False
    work: Callable[..., Awaitable[Any]] = cpu.seconds_per_task
    at_once: int = instructions.AT_ONCE
    waves: Sequence[int] = instructions.WAVES
    duration: float = 0.0
    setting: dict[str, Any] = attrs.field(factory=dict)


CASES: Final = (
    Case("hot loop"),
    Case("hot loop, TLS", secure=True),
    Case(
        f"{cold.DURATION:g} s, own settings, TLS",
        secure=True,
        work=spread,
        waves=(1, 4),
        duration=cold.DURATION,
        setting=cold.DEFAULTS,
    ),
)


def measure(cases: Sequence[Case] = CASES) -> Table:
    """Compare a session that is observed with one that is not; two processes at a time, as `instructions` has it."""
    columns = ["", "observed", "thousand instructions per task", "more, in %", "polls per task"]
    title = "Instructions per task of a session that is observed by telemetry"
    command = instructions.counter()
    if command is None:
        return Table(title, columns, [], [instructions.UNAVAILABLE])

    def count(case: Case, way: str) -> tuple[float, float]:
        name, recorded = WAYS[way]
        with service.running(secure=1, duration=case.duration) as running:
            setting = Setting(**attrs.asdict(running), secure=case.secure, recorded=recorded, **case.setting)
            found = instructions.instructions(command, setting, case.waves, case.at_once, name, work=case.work)
            books = running.books()
        return found, books.polls / books.created

    rows: list[list[Any]] = []
    with ThreadPoolExecutor(2) as pool:
        for case in cases:
            counts = list(pool.map(count, [case] * len(WAYS), WAYS))
            alone = counts[0][0]
            rows += [
                [case.title, way, found / 1000, 100 * (found / alone - 1), polls]
                for way, (found, polls) in zip(WAYS, counts, strict=True)
            ]
    return Table(title, columns, rows, ["two reference pictures by their addresses; downloads are not counted"])


def measure_seconds(repeats: int, case: Case = CASES[-1], tasks: int = TASKS, between: float = APART) -> Table:
    """Compare the CPU time of tasks as they are; the two of a pair run at the same time, on a machine that is idle."""

    def once(name: str) -> float:
        with service.running(secure=1, duration=case.duration) as running:
            setting = Setting(**attrs.asdict(running), secure=case.secure, **case.setting)
            options: dict[str, Any] = {
                "name": name,
                "setting": attrs.asdict(setting),
                "tasks": tasks,
                "between": between,
            }
            found: float = alone.call(seconds, **options)
        return 1000 * found

    with ThreadPoolExecutor(2) as pool:
        pairs = [tuple(pool.map(once, (OURS, OBSERVED))) for _ in range(repeats)]
    more = [100 * (seen / unseen - 1) for unseen, seen in pairs]
    unseen, seen = (statistics.mean(column) for column in zip(*pairs, strict=True))
    return Table(
        "CPU time per task of a session that is observed by telemetry",
        ["", "ms per task", "observed, every span recorded", "more, in %", "least of a pair", "most of a pair"],
        [[case.title, unseen, seen, 100 * (seen / unseen - 1), min(more), max(more)]],
        [f"mean of {repeats} pairs of processes, {tasks} tasks in each, after {FIRST} others"],
    )
