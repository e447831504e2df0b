"""CPU time of a task from its creation to its picture: one creation and one look, 50 tasks at once."""

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from benchmarks import alone, contenders, service
from benchmarks.contenders import FLOOR, FRESH, OBSERVED, OURS, SPED, Contender, Setting
from benchmarks.table import Table

AT_ONCE: Final = 50
WAVES: Final = 20
# The others take milliseconds of CPU for a task, and seconds before they look for the first time.
QUICK: Final = frozenset({FLOOR, FRESH, OURS, SPED, OBSERVED, "aiolimiter script"})
WAVES_OF_OTHERS: Final = 3


# The requests of the service, with the number of their pictures; clients of other services have one of their own.
REQUESTS: Final = {"image-to-image, 2 addresses": 2, "text-to-image": 0}
BOTH: Final = frozenset({FLOOR, FRESH, OURS, SPED, OBSERVED, "aiolimiter script"})
OWN: Final = "its own"


def cases(names: Sequence[str]) -> list[tuple[str, str, int]]:
    """Who is measured with what.

    Returns:
        Request, contender and number of pictures; the request that the library exists for first.
    """
    ours = [(request, name, images) for request, images in REQUESTS.items() for name in names if name in BOTH]
    return ours + [(OWN, name, 0) for name in names if name not in BOTH]


def assert_fresh(names: Sequence[str], at_once: int = AT_ONCE) -> None:
    """See that who says so sends each createTask over a connection which has carried no request before."""
    for name in {FRESH, OURS}.intersection(names):
        with service.running() as running:
            setting = attrs.asdict(Setting(**attrs.asdict(running)))
            alone.call(seconds_per_task, name=name, setting=setting, count=1, at_once=at_once)
            books = running.books()
        assert books.created == 2 * at_once, books  # noqa: S101  a benchmark of failures is none
        assert not books.reused, f"{name}: {books}"  # noqa: S101


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
    assert_fresh(names, at_once)
    taken: dict[tuple[str, str, int], list[float]] = {case: [] for case in cases(names)}
    with service.running(secure=1) as running:
        for _ in range(repeats):
            for (_, name, images), seconds in taken.items():
                setting = attrs.asdict(Setting(**attrs.asdict(running), images=images))
                size = count if name in QUICK else others
                each = alone.call(seconds_per_task, name=name, setting=setting, count=size, at_once=at_once)
                seconds.append(each * 1e6)
    medians = {(request, name): statistics.median(seconds) for (request, name, _), seconds in taken.items()}
    rows = [
        [request, name, medians[request, name], min(seconds), max(seconds), *multiples(medians, request, name)]
        for (request, name, _), seconds in taken.items()
    ]
    return Table(
        f"CPU per task: one creation and one look, {at_once} at once",
        ["request", "", "µs per task", "least", "most", f"x {FLOOR}", f"x {FRESH}"],
        rows,
        [
            f"median of {repeats} processes, after a first wave of {at_once}",
            f"{count * at_once} tasks in each process, {others * at_once} where one takes seconds",
            NOTE,
        ],
    )


NOTE: Final = f"{OURS} and {FRESH} were seen to send each createTask over a connection that had carried no request"


def multiples(found: Mapping[tuple[str, str], float], request: str, name: str) -> list[float | None]:
    """A figure as a multiple of the two floors' with the same request; others are held against the first request."""
    same = next(iter(REQUESTS)) if request == OWN else request
    floors = (found.get((same, floor)) for floor in (FLOOR, FRESH))
    return [found[request, name] / floor if floor else None for floor in floors]
