"""Looks under a limit: 40 finished tasks behind five looks a second, taken evenly, as nginx's `limit_req` does."""

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import attrs

from benchmarks import alone, contenders, service
from benchmarks.contenders import FLOOR, FRESH, OBSERVED, OURS, SPED, Setting
from benchmarks.table import Table, rows_of

TASKS: Final = 40
LOOKS: Final = 5.0
# When the optimum looks first.
FIRST: Final = 1.0
INTERVAL: Final = 0.5
PRICES: Final = (0.3, 0.03, 1.0)
# Seconds after which what is not known yet is not waited for.
PATIENCE: Final = 60.0


@attrs.frozen
class Case:
    """One client in one situation.

    Attributes:
        name: The contender.
        price: Of a look, for this library; None: it looks twice a second, like the others.
        says_when: Whether a refusal has a Retry-After, of a second.
    """

    name: str
    price: float | None
    says_when: bool


def cases(names: Sequence[str]) -> list[Case]:
    """Everybody who survives a refusal, with and without Retry-After, and ourselves in several manners."""
    return [
        Case(name, price, says_when)
        for name in names
        for price in ((*PRICES, None) if name == OURS else (None,))
        for says_when in (True, False)
        if name not in (FLOOR, FRESH, SPED, OBSERVED)
    ]


async def until_known(name: str, setting: dict[str, Any], tasks: int, patience: float) -> tuple[int, float]:
    """Have tasks made and wait for them; give how many were known in time, and the seconds since all were made."""
    logging.disable()
    async with contenders.entered(name, Setting(**setting)) as contender:
        handles = await asyncio.gather(*(contender.create(number) for number in range(tasks)))
        begun = time.monotonic()

        async def one(handle: Any) -> float:
            await contender.finish(handle)
            return time.monotonic() - begun

        waiting = [asyncio.ensure_future(one(handle)) for handle in handles]
        await asyncio.wait(waiting, timeout=patience)
        known = [each.result() for each in waiting if each.done() and each.exception() is None]
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return len(known), max(known, default=0.0)


def run(case: Case, tasks: int, looks: float, patience: float = PATIENCE) -> list[Any]:
    """Give a row of the table."""
    with service.running(secure=1, looks=looks, says_when=int(case.says_when)) as running:
        setting = attrs.asdict(Setting(**attrs.asdict(running), interval=INTERVAL, price=case.price))
        known, seconds = alone.call(until_known, name=case.name, setting=setting, tasks=tasks, patience=patience)
        books = running.books()
    optimum = FIRST + (tasks - 1) / looks
    manner = f"every {INTERVAL:g} s" if case.price is None else f"price {case.price:g}"
    wall = seconds / optimum if known == tasks else None
    said = "1 s" if case.says_when else "no"
    return [case.name, manner, said, books.polls, books.looks_refused, tasks - known, seconds, optimum, wall]


def measure(names: Sequence[str], tasks: int = TASKS, looks: float = LOOKS) -> Table:
    """Compare when all are known."""
    rows = rows_of(partial(run, case, tasks, looks) for case in cases(names))
    columns = [
        "",
        "looks",
        "Retry-After",
        "answered",
        "refused",
        "not known",
        "s until known",
        "optimum s",
        "x optimum",
    ]
    return Table(
        f"looks under a limit: {tasks} finished tasks behind {looks:g} looks a second, evenly",
        columns,
        rows,
        [
            f"not known: the client raised an error, or needs more than {PATIENCE:g} s; then there is no optimum",
            f"the optimum is a client that knows the limit: from {FIRST:g} s on it looks evenly, once at each task",
        ],
    )
