"""What telemetry costs, in instructions per task: of the hot loop, and of tasks as they are, over TLS.

In the hot loop a task is finished at the first poll, nothing waits, and nothing is encrypted, so that hardly anything
is left beside telemetry. The real case is a task of twelve seconds with the library's own settings over HTTPS, as the
service is: each createTask makes a connection of its own. Ended spans go in batches, as programs have it, to an
exporter that does nothing with them: what sending them costs is the exporter's matter.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import attrs

from benchmarks import cold, contenders, cpu, instructions, service
from benchmarks.contenders import OBSERVED, OURS, Setting
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


async def spread(name: str, setting: dict[str, Any], count: int, at_once: int) -> None:
    """Take tasks through of which one begins each second; `at_once` and `count` together are their number."""
    async with contenders.entered(name, Setting(**setting)) as contender:

        async def later(number: int) -> None:
            await asyncio.sleep(number * APART)
            await cpu.one(contender, number)

        await asyncio.gather(*map(later, range(count * at_once)))


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
