"""What an import costs, in fresh interpreters that find bytecode, as they do wherever a program ran before."""

import importlib
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

from benchmarks import alone
from benchmarks.table import Table

BASE: Final = "aiohttp"
# `from flux2_async import Flux2Session, ImageToImage` loads the second; the package itself loads its parts at first
# need.
SESSION: Final = "flux2_async.session.session"
OURS: Final = ("flux2_async", SESSION)
OTHERS: Final = ("fal_client", "replicate", "runwayml", "openai", "aiolimiter")


async def seconds(module: str) -> float:
    """CPU and disk time for one import in this process."""
    begun = time.perf_counter()
    importlib.import_module(module)
    return time.perf_counter() - begun


async def opening() -> float:
    """CPU and disk time to make, open and close the first session of this process, which polls."""
    sys.modules.setdefault("orjson", None)  # type: ignore[arg-type]  # what is None there is not found
    session = importlib.import_module("flux2_async").Flux2Session
    begun = time.perf_counter()
    async with session("key", base_url="http://127.0.0.1:1"):
        pass
    return time.perf_counter() - begun


def measure(repeats: int, modules: Sequence[str] = (BASE, *OURS, *OTHERS)) -> Table:
    """Compare all that are installed; in each round everybody has a turn, the first of which writes the bytecode."""
    taken: dict[str, list[float]] = {module: [] for module in modules if find_spec(module.partition(".")[0])}
    opened: list[float] = []
    for _ in range(1 + repeats):
        for module, each in taken.items():
            each.append(alone.call(seconds, module=module) * 1000)
        opened.append(alone.call(opening) * 1000)
    medians = {module: statistics.median(each[1:]) for module, each in taken.items()}
    rows = [[f"import {module}", median, median / medians[BASE]] for module, median in medians.items()]
    rows.append(["make, open and close the first session", statistics.median(opened[1:]), None])
    return Table(
        "Import time",
        ["", "ms", f"x {BASE}"],
        rows,
        [
            f"median of {repeats} interpreters, which have loaded asyncio, json and subprocess; bytecode is there",
            f"`from flux2_async import Flux2Session, ImageToImage` imports {SESSION}",
        ],
    )
