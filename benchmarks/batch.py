"""A batch of 100,000 requests: whether memory stays flat and the journal keeps its pace."""

import asyncio
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.service import running
from benchmarks.table import Table
from flux2_async import Flux2Session, Polling, TextToImage
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


def _requests(number: int) -> Iterator[TextToImage]:
    for n in range(number):
        yield TextToImage(f"picture {n} of a long night, with some words more, as prompts have them")


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _size(journal: Path) -> float:
    return sum(path.stat().st_size for path in journal.parent.glob(f"{journal.name}*")) / 2**20
