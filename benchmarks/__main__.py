"""Compare the library with what users would pick instead: everything, or the named parts, as tables or as JSON.

`readme` measures what the README's table and its page say.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import attrs

from benchmarks import (
    batch,
    callbacks,
    cold,
    command,
    contenders,
    coordination,
    cpu,
    decode,
    imports,
    instructions,
    limit,
    link,
    looks,
    memory,
    plot,
    polling,
    receiving,
    stream,
    telemetry,
)
from benchmarks.contenders import FLOOR, FRESH, OURS
from benchmarks.table import Table

PACKAGES: Final = (
    "flux2-async", "aiohttp", "attrs", "cattrs", "orjson", "aiolimiter", "fal-client", "replicate", "runwayml",
    "openai", "pydantic", "msgspec",
)  # fmt: skip


@attrs.frozen
class Wish:
    """What the caller wants.

    Attributes:
        names: The contenders.
        repeats: Processes of which the median counts.
        period: Seconds of the service's limit.
    """

    names: list[str]
    repeats: int
    period: float


PARTS: Final[dict[str, Callable[[Wish], Iterable[Table]]]] = {
    "cpu": lambda wish: [cpu.measure(wish.names, wish.repeats)],
    "instructions": lambda wish: [instructions.measure(wish.names)],
    "cold": lambda wish: [cold.measure(wish.names, wish.repeats)],
    "telemetry": lambda wish: [telemetry.measure(), telemetry.measure_seconds(2 * wish.repeats)],
    "memory": lambda wish: [memory.measure(wish.names, wish.repeats)],
    "limit": lambda wish: [
        limit.measure(wish.names, wish.period),
        limit.measure_refused(wish.names, wish.period),
        looks.measure(wish.names),
    ],
    "polling": lambda _: polling.measure(),
    "coordination": lambda wish: coordination.measure(wish.period),
    "receiving": lambda wish: [receiving.measure(wish.repeats), receiving.measure_instructions()],
    "callbacks": lambda _: [callbacks.measure()],
    "decode": lambda wish: [decode.measure(wish.repeats)],
    "imports": lambda wish: [imports.measure(3 * wish.repeats)],
    "link": lambda _: [link.measure()],
    "command": lambda wish: [command.measure(3 * wish.repeats)],
    "stream": lambda wish: [stream.measure(wish.repeats)],
    "batch": lambda wish: [batch.measure(), batch.measure_beside(wish.repeats)],
}


def readme(wish: Wish) -> Iterator[Table]:
    """Measure what the README's table and its page say, as briefly as the figures allow: some ten minutes."""
    yield cpu.measure(wish.names, min(wish.repeats, 3))
    yield instructions.measure([name for name in wish.names if name in (FLOOR, FRESH, OURS)])
    # Of what is resident one process tells as much as several.
    yield memory.measure(wish.names, 1)
    yield limit.measure(wish.names, wish.period)


CHOICES: Final[dict[str, Callable[[Wish], Iterable[Table]]]] = {**PARTS, "readme": readme}


def main() -> None:
    """Measure and print."""
    given = _arguments()
    wish = Wish(given.contender or contenders.available(), given.repeats, given.period)
    tables: list[Table] = []
    for part in given.parts or PARTS:
        for table in CHOICES[part](wish):
            tables.append(table)
            print(table.markdown(), file=sys.stderr if given.json else sys.stdout, flush=True)
    if given.plot:
        plot.draw(polling.compare(), given.plot)
    if given.json:
        print(json.dumps({**_circumstances(), "tables": [attrs.asdict(table) for table in tables]}, indent=1))
    else:
        print(", ".join(f"{name} {value}" for name, value in _circumstances().items()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*CHOICES, []], help="which ones; all without")
    parser.add_argument("--contender", action="append", choices=contenders.CONTENDERS, help="all without")
    parser.add_argument("--repeats", type=int, default=5, help="processes of which the median counts (default 5)")
    parser.add_argument("--period", type=float, default=10.0, help="seconds of the service's limit (default 10)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw polls against lag into this PNG")
    parser.add_argument("--json", action="store_true", help="print JSON; the tables go to stderr")
    return parser.parse_args()


def _circumstances() -> dict[str, str]:
    found = {"date": datetime.now(UTC).date().isoformat(), "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
