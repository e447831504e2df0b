"""Instructions per task, as `perf` counts them or, where the machine has no such counter, callgrind.

They are the same on a busy machine and on a quiet one. Two runs of different length are compared, so that what happens
once (the interpreter, imports, the first connections) falls out.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import attrs

from benchmarks import alone, cpu, service
from benchmarks.contenders import FLOOR, FRESH, Setting
from benchmarks.table import Table

WAVES: Final = (4, 14)
# A counting process is fifty times slower; with more at once connections would be idle for longer than they are kept.
AT_ONCE: Final = 10
PERF: Final = ("perf", "stat", "-x,", "-e", "instructions:u")

UNAVAILABLE: Final = "not available: there is neither a hardware counter nor valgrind here"

Command = Callable[[Path], Sequence[str]]


def _perf(output: Path) -> Sequence[str]:
    return (*PERF, "-o", str(output))


def _callgrind(output: Path) -> Sequence[str]:
    return ("valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={output}")


# How a count is found in what each of them writes.
COUNTS: Final[dict[Command, re.Pattern[str]]] = {
    _perf: re.compile(r"^([0-9]+),", re.MULTILINE),
    _callgrind: re.compile(r"^(?:summary|totals): ([0-9]+)", re.MULTILINE),
}


def counter() -> Command | None:
    """What can count on this machine, or None."""
    if shutil.which("perf"):
        tried = subprocess.run([*PERF, "true"], capture_output=True, text=True, check=False)  # noqa: S603  a fixed command
        if tried.stderr[:1].isdigit():
            return _perf
    return _callgrind if shutil.which("valgrind") else None


def counted(command: Command, function: Callable[..., Awaitable[Any]], **arguments: Any) -> int:
    """Instructions of a process that calls a function, see `alone.call`."""
    # Else the first of those that are compared would compile what it loads, and the others would not.
    alone.call(function, **arguments)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "counts")
        alone.call(function, under=command(output), **arguments)
        found = COUNTS[command].search(output.read_text())
    assert found, "no count in the output"  # noqa: S101  a benchmark of failures is none
    return int(found[1])


def instructions(
    command: Command,
    setting: Setting,
    waves: Sequence[int],
    at_once: int,
    name: str,
    *,
    work: Callable[..., Awaitable[Any]] = cpu.seconds_per_task,
) -> float:
    """Instructions of one task of a contender."""
    arguments: dict[str, Any] = {"name": name, "setting": attrs.asdict(setting), "at_once": at_once}
    counts = [counted(command, work, count=count, **arguments) for count in waves]
    return (counts[1] - counts[0]) / ((waves[1] - waves[0]) * at_once)


def measure(names: Sequence[str], waves: Sequence[int] = WAVES, at_once: int = AT_ONCE) -> Table:
    """Compare the instructions per task; two processes at a time, since they do not disturb each other."""
    columns = ["request", "", "thousand instructions per task", f"x {FLOOR}", f"x {FRESH}"]
    title = f"Instructions per task: one creation and one look, {at_once} at once"
    command = counter()
    if command is None:
        return Table(title, columns, [], [UNAVAILABLE])
    cpu.assert_fresh(names, at_once)
    with service.running(secure=1) as running, ThreadPoolExecutor(2) as pool:

        def count(case: tuple[str, str, int]) -> float:
            setting = Setting(**attrs.asdict(running), images=case[2])
            return instructions(command, setting, waves, at_once, case[1])

        cases = cpu.cases(names)
        counts = zip(cases, pool.map(count, cases), strict=True)
        counted = {(request, name): found for (request, name, _), found in counts}
    rows = [[*case, found / 1000, *cpu.multiples(counted, *case)] for case, found in counted.items()]
    tool = "perf" if command is _perf else "callgrind"
    run = f"{tool} on {sys.implementation.name}; {waves[1]} waves less {waves[0]} waves"
    return Table(title, columns, rows, [run, cpu.NOTE])
