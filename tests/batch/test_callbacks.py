"""Batches with callbacks: a lost reply is found again by the callback of its task, in the same run or in the next."""

import asyncio
import math
from pathlib import Path

import pytest
from batches import batch_in, collect, lines, receiving, requests, run
from emulated import free_port, until

from flux2_async.batch import Failure, Journal, Outcome, run_batch
from flux2_async.batch.journal.rows import Row
from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.models import Polling
from flux2_async.webhooks import Callback

LOST = Fault("createTask", "cut_after")


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


async def left_in_doubt(folder: Path, emulator: Emulator, port: int) -> list[Outcome]:
    """Run a batch of one request until its reply is lost, and stop it; gives what was told of it."""
    async with receiving(emulator, port) as flux:
        batch = batch_in(folder, flux, requests(1))
        running = asyncio.create_task(collect(batch))
        await until(lambda: flux.statistics().ambiguous)
        await asyncio.sleep(1)
        await batch.aclose()
        return await running


async def test_a_lost_reply_is_found_in_the_next_run(tmp_path: Path) -> None:
    """A callback that comes to the next process, with the same secret, brings the picture."""
    port = free_port()
    script = Script(plans=Plan(duration=200.0), faults=[LOST], render=False)
    async with Emulator(script) as emulator:
        assert [outcome.state for outcome in await left_in_doubt(tmp_path, emulator, port)] == ["unknown"]
        async with receiving(emulator, port) as flux:
            [outcome] = await run(tmp_path, flux, requests(1))
        assert (outcome.state, outcome.download, outcome.task_id) == ("done", "saved", emulator.ledger.accepted[0])
        assert len(emulator.ledger.requests) == 1


async def test_a_callback_that_came_before_the_run_is_told_once(tmp_path: Path) -> None:
    """A task that is found while the run still looks for others left at the service is not taken for one of them."""
    port = free_port()
    script = Script(plans=Plan(duration=200.0), faults=[LOST], render=False)
    async with Emulator(script) as emulator:
        await left_in_doubt(tmp_path, emulator, port)
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


async def test_a_callback_before_the_lost_reply_is_an_answer(tmp_path: Path) -> None:
    """The journal knows the task at once, and the batch does not wait for the POST at its end."""
    plan = Plan(callback="early", record_lag=30.0)
    script = Script(plans=plan, faults=[LOST], render=False)
    async with Emulator(script) as emulator, receiving(emulator, free_port()) as flux:
        async with Journal(tmp_path / "run.db") as journal:
            batch = run_batch(flux, requests(1), journal=journal, directory=tmp_path / "results")
            begun = asyncio.get_running_loop().time()
            running = asyncio.create_task(collect(batch))
            await until(flux.tasks)
            await asyncio.sleep(1)
            [outcome] = [outcome async for outcome in journal.outcomes()]
            assert (outcome.state, outcome.task_id) == ("submitted", emulator.ledger.accepted[0])
            assert batch.progress is not None
            assert (batch.progress.sending, batch.progress.running, batch.progress.submitted) == (0, 1, 1)
            flux.notify(emulator.ledger.accepted[0])
            await asyncio.sleep(30)
            flux.notify(emulator.ledger.accepted[0])
            assert [outcome.download for outcome in await running] == ["saved"]
            assert asyncio.get_running_loop().time() - begun < 35
            assert (batch.progress.sending, batch.progress.running, batch.progress.done) == (0, 0, 1)


async def test_what_is_found_and_not_visible_is_unknown_once(tmp_path: Path) -> None:
    """A task that a callback told of and that the service does not know then is counted as what it is."""
    script = Script(plans=Plan(duration=1.0, hidden_for=math.inf), faults=[LOST], render=False)
    async with Emulator(script) as emulator, receiving(emulator, free_port(), Polling(interval=5.0)) as flux:
        batch = batch_in(tmp_path, flux, requests(1))
        [outcome] = await collect(batch)
        assert (outcome.state, outcome.task_id) == ("unknown", emulator.ledger.accepted[0])
        assert batch.progress is not None
        assert (batch.progress.sending, batch.progress.running, batch.progress.unknown) == (0, 0, 1)


async def test_what_is_found_is_not_told_as_unknown(tmp_path: Path) -> None:
    """Stopped while a task that a callback told of is waited for, the batch says nothing of it that is wrong by now."""
    script = Script(plans=Plan(duration=1.0, record_lag=1000.0), faults=[LOST], render=False)
    async with Emulator(script) as emulator, receiving(emulator, free_port()) as flux:
        batch = batch_in(tmp_path, flux, requests(1))
        running = asyncio.create_task(collect(batch))
        await until(lambda: batch.progress is not None and batch.progress.running)
        batch.stop(now=True)
        assert await running == []
        assert [line["state"] for line in lines(tmp_path)] == ["submitted"]


async def test_what_is_found_after_the_stop_is_not_waited_for(tmp_path: Path) -> None:
    """A callback that comes while a batch is stopped at once does not keep it."""

    class Late(Journal):
        async def unclear(self, row: Row, failure: Failure) -> Outcome:
            batch.stop(now=True)
            outcome = await super().unclear(row, failure)
            await flux.deliver(row.ref or "", Callback(emulator.ledger.accepted[0], None))
            return outcome

    script = Script(plans=Plan(duration=1000.0), faults=[LOST], render=False)
    async with Emulator(script) as emulator, receiving(emulator, free_port()) as flux:
        async with Late(tmp_path / "run.db") as journal:
            batch = run_batch(flux, requests(1), journal=journal, directory=tmp_path / "results")
            begun = asyncio.get_running_loop().time()
            assert [outcome.state for outcome in await collect(batch)] == ["unknown"]
            assert asyncio.get_running_loop().time() - begun < 6
