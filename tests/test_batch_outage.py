"""Batches while the service is away: one request at a time is risked, and who tries holds nobody up for ever."""

import asyncio
from pathlib import Path

from batches import batch_in, collect, requests
from emulated import emulated, until

from flux2_async.emulator import Fault, Script


async def test_stopped_while_answers_are_on_their_way(tmp_path: Path) -> None:
    """A batch ends also when the answers to what had left before the stop say that the service is away."""
    away = Fault("createTask", "refuse", code=455, times=None)
    async with emulated(Script(latency=3.0, faults=[away])) as (flux, emulator):
        batch = batch_in(tmp_path, flux, requests(3))
        running = asyncio.create_task(collect(batch))
        await until(lambda: len(emulator.ledger.requests) == 3)
        batch.stop()
        async with asyncio.timeout(4):
            assert await running == []
        assert batch.progress is not None
        assert (batch.progress.queued, batch.progress.reserved) == (3, 0)
