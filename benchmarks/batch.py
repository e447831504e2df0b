"""A batch of 100,000 requests: whether memory stays flat and the journal keeps its pace."""

import asyncio
import itertools
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks import alone
from benchmarks.service import running
from benchmarks.table import Table
from flux2_async import Flux2Session, ImageToImage, Polling, TextToImage
from flux2_async.batch import run_batch

NUMBER: Final = 100_000
PARTS: Final = 10
COLUMNS: Final = (
    "requests done",
    "seconds per 1,000",
    "CPU seconds per 1,000",
    "resident MiB",
    "journal MiB",
)


BESIDE: Final = 2_000
WARMING: Final = 200
WAYS: Final = ("as_completed", "run_batch")


def measure(number: int = NUMBER) -> Table:
    """Run a batch against a cheap service in another process, without pictures.

    Args:
        number: Requests.

    Returns:
        A row for each tenth of the batch.
    """
    with running(duration=0.1) as service, tempfile.TemporaryDirectory() as folder:
        rows, entering = asyncio.run(_run(service.url, Path(folder), number))
    return Table(
        f"batch: {number:,} requests, tasks of 0.1 s, no downloads",
        COLUMNS,
        rows,
        [f"entering the input took {entering:.1f} s", f"load of the machine at the end: {os.getloadavg()[0]:.1f}"],
    )


async def _run(url: str, folder: Path, number: int) -> tuple[list[list[float]], float]:
    rows: list[list[float]] = []
    session = Flux2Session("key", base_url=url, rate_limit=None, max_running=200, polling=Polling(interval=0.15))
    begun = time.monotonic()
    entering = 0.0
    async with session as flux:
        done = 0
        wall, cpu = begun, time.process_time()
        journal = folder / "run.db"
        async for _ in run_batch(flux, _requests(number), journal=journal, directory=folder, download=False):
            if not done:
                entering = time.monotonic() - begun
                wall, cpu = time.monotonic(), time.process_time()
            done += 1
            if done % (number // PARTS) == 0:
                thousands = number / PARTS / 1000
                now, used = time.monotonic(), time.process_time()
                rows.append([done, (now - wall) / thousands, (used - cpu) / thousands, _resident(), _size(journal)])
                wall, cpu = now, used
    return rows, entering


def measure_beside(repeats: int, number: int = BESIDE) -> Table:
    """Compare the CPU of a request in a batch, journal and all, with the same request in `as_completed`."""
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    with running(duration=0.1) as service:
        for _ in range(repeats):
            for way, seconds in taken.items():
                seconds.append(alone.call(seconds_per_request, way=way, url=service.url, number=number))
    medians = {way: statistics.median(seconds) for way, seconds in taken.items()}
    rows = [[way, median * 1e6, median / medians[WAYS[0]]] for way, median in medians.items()]
    return Table(
        f"CPU per request of a batch: {number:,} requests, 50 at once, tasks of 0.1 s, no downloads",
        ["", "µs per request", f"x {WAYS[0]}"],
        rows,
        [f"median of {repeats} processes, the first {WARMING} requests of each not counted; the journal is on disk"],
    )


async def seconds_per_request(way: str, url: str, number: int) -> float:
    """CPU seconds of this process, two reference pictures by their addresses; entering the input is not counted."""
    addresses = [f"https://files.example/reference-{each}.png" for each in range(2)]
    requests = (ImageToImage(f"picture {each} of a long night", images=addresses) for each in range(number))
    session = Flux2Session("key", base_url=url, rate_limit=None, max_running=50, polling=Polling(interval=0.15))
    with tempfile.TemporaryDirectory() as folder:
        async with session as flux:
            done = itertools.count(1)
            begun = 0.0
            ends = (
                flux.as_completed(requests)
                if way == WAYS[0]
                else run_batch(flux, requests, journal=Path(folder, "run.db"), directory=folder, download=False)
            )
            async for _ in ends:
                if next(done) == min(WARMING, number // 2):
                    begun = time.process_time()
            return (time.process_time() - begun) / (number - min(WARMING, number // 2))


def _requests(number: int) -> Iterator[TextToImage]:
    for n in range(number):
        yield TextToImage(f"picture {n} of a long night, with some words more, as prompts have them")


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _size(journal: Path) -> float:
    return sum(path.stat().st_size for path in journal.parent.glob(f"{journal.name}*")) / 2**20
