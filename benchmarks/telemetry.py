"""What telemetry costs, in instructions per task: of the hot loop, and of tasks as they are, over TLS.

In the hot loop a task is finished at the first poll, nothing waits, and nothing is encrypted, so that hardly anything
is left beside telemetry. The real case is a task of twelve seconds with the library's own settings over HTTPS, as the
service is: each createTask makes a connection of its own. Ended spans go in batches, as programs have it, to an
exporter that does nothing with them: what sending them costs is the exporter's matter.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import attrs

from benchmarks import cold, instructions, service
from benchmarks.contenders import OBSERVED, OURS, Setting
from benchmarks.table import Table

# How it is observed: by whom, and which part of the traces is recorded, by a sampler that drops the others.
WAYS: Final = {
    "not observed": (OURS, 0.0),
    "every span recorded": (OBSERVED, 1.0),
    "a tenth of the traces recorded": (OBSERVED, 0.1),
    "metrics alone": (OBSERVED, 0.0),
}


@attrs.frozen
class Case:
    """What is done.

    Attributes:
        title: What it is called.
        secure: Whether over TLS.
        at_once: Tasks in a wave.
        waves: Of the shorter and of the longer run.
        service: Options of `benchmarks.server`.
        setting: What the library is told.
    """

    title: str
    secure: bool = False
    at_once: int = instructions.AT_ONCE
    waves: Sequence[int] = instructions.WAVES
    service: dict[str, float] = attrs.field(factory=dict)
    setting: dict[str, Any] = attrs.field(factory=dict)


HOT: Final = (Case("hot loop"), Case("hot loop, TLS", secure=True))
REAL: Final = Case(
    f"{cold.DURATION:g} s, own settings, TLS",
    secure=True,
    at_once=5,
    waves=(1, 5),
    service={"duration": cold.DURATION},
    setting=cold.DEFAULTS,
)


def measure(cases: Sequence[Case] = (*HOT, REAL)) -> Table:
    """Compare a session that is observed with one that is not; two processes at a time, as `instructions` has it."""
    columns = ["", "observed", "thousand instructions per task", "more, in %", "polls per task"]
    title = "Instructions per task of a session that is observed by telemetry"
    command = instructions.counter()
    if command is None:
        return Table(title, columns, [], [instructions.UNAVAILABLE])

    def count(case: Case, way: str) -> tuple[float, float]:
        name, recorded = WAYS[way]
        with service.running(secure=1, **case.service) as running:
            setting = Setting(**attrs.asdict(running), secure=case.secure, recorded=recorded, **case.setting)
            found = instructions.instructions(command, setting, case.waves, case.at_once, name)
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
