"""What the tests of batches share."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from emulated import session_for

from flux2_async.batch import Batch, Outcome, run_batch
from flux2_async.emulator import Emulator
from flux2_async.models import Callbacks, Polling, TextToImage
from flux2_async.receivers import serve
from flux2_async.session.session import Flux2Session


def requests(number: int, word: str = "number") -> Iterator[TextToImage]:
    for n in range(number):
        yield TextToImage(f"{word} {n}")


def batch_in(folder: Path, flux: Flux2Session, items: Any, **options: Any) -> Batch:
    """A batch whose journal and results are in the folder."""
    return run_batch(flux, items, journal=folder / "run.db", directory=folder / "results", **options)


async def run(folder: Path, flux: Flux2Session, items: Any, **options: Any) -> list[Outcome]:
    """Run it to its end."""
    return await collect(batch_in(folder, flux, items, **options))


async def collect(batch: Batch) -> list[Outcome]:
    return [outcome async for outcome in batch]


def lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of `results.jsonl`."""
    return [json.loads(line) for line in (folder / "results" / "results.jsonl").read_text().splitlines()]


def prompts(calls: Any) -> list[str]:
    """The prompts of createTask calls."""
    return [call.body["input"]["prompt"] for call in calls]


@asynccontextmanager
async def receiving(
    emulator: Emulator,
    port: int,
    polling: Polling = Polling(interval=3600.0),  # noqa: B008  frozen
    **options: Any,
) -> AsyncIterator[Flux2Session]:
    """A session whose callbacks come to this port, as all sessions of a batch have them."""
    callbacks = Callbacks(f"http://127.0.0.1:{port}/", secret="a secret of all runs")
    flux = session_for(emulator, callbacks=callbacks, polling=polling, **options)
    async with flux, serve(flux, "127.0.0.1", port):
        yield flux
