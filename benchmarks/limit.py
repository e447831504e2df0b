"""Tasks at once against a limit of 20 per period: refusals, losses, and the time until the last is accepted."""

import asyncio
import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import attrs

from benchmarks import alone, contenders, service
from benchmarks.contenders import FLOOR, FRESH, OBSERVED, OURS, SPED, Setting
from benchmarks.table import Table, rows_of

TASKS: Final = 100
LIMIT: Final = 20
# What a client that can be told a limit is told when the true one is not known.
BELIEVED: Final = 40
TOLD: Final = (OURS, "aiolimiter script")
# Of the account's limit, where something else than the limit refuses.
TASKS_REFUSED: Final = 60


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
        if name not in (FLOOR, FRESH, SPED, OBSERVED)
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
    rows = rows_of(partial(run, case, period, tasks) for case in cases(names))
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


@attrs.frozen
class Situation:
    """What refuses a client that is told the true limit.

    Attributes:
        what: In words.
        options: Of `benchmarks.server`.
        at_once: Tasks that can be accepted at once.
        apart: Parts of a period until the service can accept the next `then`.
        then: Tasks accepted at once after that, and so on.
    """

    what: str
    options: dict[str, int]
    at_once: int
    apart: float = 1.0
    then: int = LIMIT

    def optimum(self, tasks: int, period: float) -> float:
        """Give the seconds that a client needs who knows all this, and obeys the pause of each refusal."""
        return period * self.apart * math.ceil(max(tasks - self.at_once, 0) / self.then)


SITUATIONS: Final = (
    Situation("15 tasks of a stranger, once", {"strangers": 15}, LIMIT - 15),
    Situation("one 429 of no cause", {"strays": 1}, LIMIT - 1),
    Situation("no burst is taken", {"capacity": 1}, 1, 1 / LIMIT, 1),
)


def run_refused(name: str, situation: Situation, *, says_when: bool, period: float, tasks: int) -> list[Any]:
    """Give a row of the table of refusals."""
    options = {"limit": LIMIT, "period": period, "says_when": int(says_when), **situation.options}
    with service.running(**options) as running:
        setting = Setting(**attrs.asdict(running), limit=LIMIT, period=period, interval=0.5)
        finished = alone.call(burst, name=name, setting=attrs.asdict(setting), tasks=tasks)
        books = running.books()
    optimum = situation.optimum(tasks, period)
    seconds = books.last - books.first
    wall = seconds / optimum if finished == tasks and optimum else None
    said = "yes" if says_when else "no"
    return [name, situation.what, said, books.refused, tasks - finished, seconds, optimum, wall]


def measure_refused(names: Sequence[str], period: float, tasks: int = TASKS_REFUSED) -> Table:
    """Compare what it costs when the limit is known, and something else refuses."""
    known = [name for name in names if name in TOLD]
    rows = rows_of(
        partial(run_refused, name, situation, says_when=says_when, period=period, tasks=tasks)
        for name in known
        for situation in SITUATIONS
        for says_when in (True, False)
    )
    columns = [
        "",
        "refuses",
        "Retry-After",
        "refused",
        "lost",
        "s from first to last accepted",
        "optimum s",
        "x optimum",
    ]
    return Table(
        f"{tasks} tasks at once against {LIMIT} per {period:g} s, known to the client, when something else refuses",
        columns,
        rows,
        [
            "the optimum sends what is taken at once, and the next as soon as the service allows",
            "after the 429 of no cause the optimum waits the period that it asks for",
            "without Retry-After a refusal pauses the library for a period",
        ],
    )
