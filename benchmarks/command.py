"""What the command takes to say its version and its help, beside Python and a bare application of the same parser."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Final

from benchmarks.table import Table

BARE: Final = """
import sys
from cyclopts import App

app = App(name="bare", version="1", help_format="plaintext")


@app.command
def greet(name: str = "you") -> int:
    "Greet somebody."
    print(name)
    return 0


command, bound, _ = app.parse_args(sys.argv[1:])
command(*bound.args, **bound.kwargs)
"""
NOTHING: Final = "python -c pass"
PARSER: Final = "a bare cyclopts application --help"
COMMANDS: Final = {
    NOTHING: ("-c", "pass"),
    "flux2 --version": ("-m", "flux2_async", "--version"),
    PARSER: ("-c", BARE, "--help"),
    "flux2 --help": ("-m", "flux2_async", "--help"),
}


def measure(repeats: int) -> Table:
    """Compare them; in each round everybody has a turn, the first of which writes the bytecode."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        for _ in range(1 + repeats):
            for name, words in COMMANDS.items():
                taken[name].append(_cpu_seconds(words, environment) * 1000)
    medians = {name: statistics.median(each[1:]) for name, each in taken.items()}
    rows = [[name, each, each - medians[NOTHING], each / medians[PARSER]] for name, each in medians.items()]
    return Table(
        "The command",
        ["", "ms of CPU", "ms more than Python", "x a bare application"],
        rows,
        [
            f"median of {repeats} processes; bytecode is there",
            "to hold: --version at most 100 ms more than Python, --help at most 1.3 x a bare application",
        ],
    )


def _cpu_seconds(words: Sequence[str], environment: Mapping[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, env=environment, check=True)  # noqa: S603  our own words
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
