"""Batches with callbacks: a lost reply is found again by the callback of its task, in the same run or in the next."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from batches import batch_in, collect, requests, run
from emulated import session_for, until

from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.models import Callbacks, Polling
from flux2_async.receivers import serve
from flux2_async.session import Flux2Session

LOST = Fault("createTask", "cut_after")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def receiving(emulator: Emulator, port: int) -> AsyncIterator[Flux2Session]:
    callbacks = Callbacks(f"http://127.0.0.1:{port}/", secret="a secret of all runs")
    flux = session_for(emulator, callbacks=callbacks, polling=Polling(interval=3600.0))
    async with flux, serve(flux, "127.0.0.1", port):
        yield flux


async def test_a_lost_reply_is_found_in_the_same_run(tmp_path: Path) -> None:
    """The callback tells which task it became; it is done like any other and was paid once."""
    script = Script(plans=Plan(duration=20.0), faults=[LOST], render=False)
    async with Emulator(script) as emulator, receiving(emulator, free_port()) as flux:
        batch = batch_in(tmp_path, flux, requests(3))
        outcomes = await collect(batch)

        assert [outcome.download for outcome in outcomes] == ["saved"] * 3
        assert len(emulator.ledger.accepted) == 3
        assert batch.progress is not None
        assert (batch.progress.unknown, batch.progress.spent, batch.progress.reserved) == (0, 42, 0)


async def test_a_lost_reply_is_found_in_the_next_run(tmp_path: Path) -> None:
    """A callback that comes to the next process, with the same secret, brings the picture."""
    port = free_port()
    script = Script(plans=Plan(duration=200.0), faults=[LOST], render=False)
    async with Emulator(script) as emulator:
        async with receiving(emulator, port) as flux:
            batch = batch_in(tmp_path, flux, requests(1))
            running = asyncio.create_task(collect(batch))
            await until(lambda: flux.statistics().ambiguous)
            await asyncio.sleep(1)
            await batch.aclose()
            assert [outcome.state for outcome in await running] == ["unknown"]
        async with receiving(emulator, port) as flux:
            [outcome] = await run(tmp_path, flux, requests(1))
        assert (outcome.state, outcome.download, outcome.task_id) == ("done", "saved", emulator.ledger.accepted[0])
        assert len(emulator.ledger.requests) == 1


async def test_a_callback_that_came_before_the_run_is_told_once(tmp_path: Path) -> None:
    """A task that is found while the run still looks for others left at the service is not taken for one of them."""
    port = free_port()
    script = Script(plans=Plan(duration=200.0), faults=[LOST], render=False)
    async with Emulator(script) as emulator:
        async with receiving(emulator, port) as flux:
            batch = batch_in(tmp_path, flux, requests(1))
            running = asyncio.create_task(collect(batch))
            await until(lambda: flux.statistics().ambiguous)
            await batch.aclose()
            await running
        async with receiving(emulator, port) as flux:
            await asyncio.sleep(300)
            outcomes = await run(tmp_path, flux, requests(1))
        assert [outcome.download for outcome in outcomes] == ["saved"]
        assert outcomes[0].task_id == emulator.ledger.accepted[0]


async def test_a_callback_that_never_comes_is_not_waited_for_longer(tmp_path: Path) -> None:
    """After `recover_timeout` a lost submission is unknown, and the next run waits as long once more."""
    script = Script(plans=Plan(callback="lost"), faults=[LOST], render=False)
    async with Emulator(script) as emulator, receiving(emulator, free_port()) as flux:
        loop = asyncio.get_running_loop()
        for expected in (["unknown"], []):
            begun = loop.time()
            outcomes = await run(tmp_path, flux, requests(1), recover_timeout=60.0)
            assert loop.time() - begun == pytest.approx(60.0, abs=1.0)
            assert [outcome.state for outcome in outcomes] == expected


async def test_stop_does_not_wait_for_callbacks(tmp_path: Path) -> None:
    """Once everything that runs has ended, a stopped batch ends, whatever callback is missing."""
    script = Script(plans=Plan(callback="lost"), faults=[LOST], render=False)
    async with Emulator(script) as emulator, receiving(emulator, free_port()) as flux:
        batch = batch_in(tmp_path, flux, requests(1))
        running = asyncio.create_task(collect(batch))
        await until(lambda: batch.progress is not None and batch.progress.unknown)
        begun = asyncio.get_running_loop().time()
        batch.stop()
        assert [outcome.state for outcome in await running] == ["unknown"]
        assert asyncio.get_running_loop().time() - begun < 1
