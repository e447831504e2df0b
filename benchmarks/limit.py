"""100 tasks at once against a limit of 20 per period: refusals, losses, and the time until the last is accepted."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import attrs

from benchmarks import alone, contenders, service
from benchmarks.contenders import FLOOR, FRESH, OURS, Setting
from benchmarks.table import Table

TASKS: Final = 100
LIMIT: Final = 20
# What a client that can be told a limit is told when the true one is not known.
BELIEVED: Final = 40
TOLD: Final = (OURS, "aiolimiter script")
# They mostly wait, so several may do it at the same time.
SIDE_BY_SIDE: Final = 4


@attrs.frozen
class Case:
    """One client in one situation.

    Attributes:
        name: The contender.
        believed: The limit it is told.
        says_when: Whether a refusal has a Retry-After.
    """

    name: str
    believed: int
    says_when: bool


def cases(names: Sequence[str]) -> list[Case]:
    """Everybody with and without Retry-After; who can be told a limit is told the right and a wrong one."""
    return [
        Case(name, believed, says_when)
        for name in names
        for believed in ((LIMIT, BELIEVED) if name in TOLD else (0,))
        for says_when in (True, False)
        if name not in (FLOOR, FRESH)
    ]


async def burst(name: str, setting: dict[str, Any], tasks: int) -> int:
    """Have all tasks made at once and wait for them; give how many came to a picture."""
    logging.disable()
    async with contenders.entered(name, Setting(**setting)) as contender:

        async def one(number: int) -> str:
            return await contender.finish(await contender.create(number))

        # Before the first one there is no connection, and loading lazily is not what is measured.
        ends = await asyncio.gather(*(one(number) for number in range(tasks)), return_exceptions=True)
    return sum(isinstance(end, str) for end in ends)


def run(case: Case, period: float, tasks: int) -> list[Any]:
    """Give a row of the table."""
    with service.running(secure=1, limit=LIMIT, period=period, says_when=int(case.says_when)) as running:
        setting = Setting(**attrs.asdict(running), limit=case.believed, period=period, interval=0.5)
        finished = alone.call(burst, name=case.name, setting=attrs.asdict(setting), tasks=tasks)
        books = running.books()
    optimum = period * ((tasks - 1) // LIMIT)
    told = {LIMIT: "known", 0: "cannot be told"}.get(case.believed, f"believed {case.believed}")
    seconds = books.last - books.first
    wall = seconds / optimum if finished == tasks and optimum else None
    return [case.name, told, "yes" if case.says_when else "no", books.refused, tasks - finished, seconds, wall]


def measure(names: Sequence[str], period: float, tasks: int = TASKS) -> Table:
    """Compare what becomes of a burst."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        rows = list(pool.map(lambda case: run(case, period, tasks), cases(names)))
    columns = ["", "limit", "Retry-After", "refused", "lost", "s from first to last accepted", "x optimum"]
    return Table(
        f"{tasks} tasks at once against {LIMIT} per {period:g} s (sliding window)",
        columns,
        rows,
        [
            "lost: the client raised an error instead of giving a picture; where there are any, there is no optimum",
            "the optimum is one full window at once and the next as soon as the service allows",
        ],
    )
