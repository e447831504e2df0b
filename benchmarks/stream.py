"""`as_completed` over very many requests: the peak of the memory must not grow with their number."""

import resource
import statistics
from typing import Final

from benchmarks import alone, service
from benchmarks.table import Table
from flux2_async import Flux2Session, Polling, TextToImage

SIZES: Final = (1_000, 100_000)
AT_ONCE: Final = 100


async def peak(url: str, count: int) -> int:
    """KiB that this process had in memory at most, after so many pictures."""
    requests = (TextToImage(f"number {number}") for number in range(count))
    finished = 0
    async with Flux2Session(
        "key", base_url=url, rate_limit=None, max_running=AT_ONCE, polling=Polling(interval=0.05)
    ) as flux:
        async for done in flux.as_completed(requests):
            finished += done.error is None
    assert finished == count, finished  # noqa: S101  a benchmark of failures is none
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(repeats: int, sizes: tuple[int, ...] = SIZES) -> Table:
    """Compare the sizes."""
    rows = []
    with service.running() as running:
        for count in sizes:
            kibibytes = [alone.call(peak, url=running.url, count=count) for _ in range(repeats)]
            rows.append([count, statistics.median(kibibytes) / 1024])
    smallest = rows[0][1]
    return Table(
        "as_completed: peak of the resident memory",
        ["requests", "MiB", f"x {sizes[0]} requests"],
        [[count, mebibytes, mebibytes / smallest] for count, mebibytes in rows],
        [f"median of {repeats} processes, {AT_ONCE} running at once; all but some MiB is Python and its modules"],
    )
