"""Ways to end a batch early: what is sent is finished or found again, and nothing else is sent."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
from batches import batch_in, collect, lines, prompts, requests, run
from emulated import emulated, until

from flux2_async.batch import Journal, Outcome, run_batch
from flux2_async.batch.journal.rows import Row
from flux2_async.emulator import Fault, Plan, Script
from flux2_async.errors import ConfigurationError, SessionClosedError
from flux2_async.models import RateLimit, TextToImage

SLOWLY = RateLimit(5, 10.0)


async def test_stop_waits_for_what_runs(tmp_path: Path) -> None:
    """After `stop` nothing more is sent, running tasks are waited for and saved, the rest stay queued."""
    async with emulated(Script(plans=Plan(duration=15.0)), rate_limit=SLOWLY) as (flux, emulator):
        batch = batch_in(tmp_path, flux, requests(50))
        running = asyncio.create_task(collect(batch))
        await until(lambda: len(flux.tasks()) == 5)
        batch.stop()
        outcomes = await running

        assert [outcome.download for outcome in outcomes] == ["saved"] * 5
        assert len(emulator.ledger.requests) == 5
        assert [line["state"] for line in lines(tmp_path)].count("queued") == 45
        assert len(await run(tmp_path, flux, requests(50))) == 45
        assert sorted(prompts(emulator.ledger.requests)) == sorted(f"number {n}" for n in range(50))


async def test_stop_ends_the_waiting_for_an_outage(tmp_path: Path) -> None:
    """Who waits for a service that is away does not keep a stopped batch."""
    async with emulated(rate_limit=SLOWLY) as (flux, emulator):
        await emulator.stop()
        batch = batch_in(tmp_path, flux, requests(3))
        running = asyncio.create_task(collect(batch))
        await until(lambda: batch.progress is not None and batch.progress.away)
        begun = asyncio.get_running_loop().time()
        batch.stop()
        assert await running == []
        assert asyncio.get_running_loop().time() == pytest.approx(begun, abs=0.1)
        await emulator.start()


@pytest.mark.parametrize("latency", [0.0, 3.0])
async def test_stop_now_loses_nothing(tmp_path: Path, latency: float) -> None:
    """After `stop(now=True)` the run ends in seconds; the next one finds every task, also of POSTs then under way."""
    script = Script(plans=Plan(duration=30.0), latency=latency)
    async with emulated(script, rate_limit=SLOWLY) as (flux, emulator):
        batch = batch_in(tmp_path, flux, requests(20))
        running = asyncio.create_task(collect(batch))
        await until(lambda: len(emulator.ledger.accepted) == 5)
        begun = asyncio.get_running_loop().time()
        batch.stop(now=True)
        assert await running == []
        assert asyncio.get_running_loop().time() - begun <= latency + 0.1
        assert sorted(line["state"] for line in lines(tmp_path)) == ["queued"] * 15 + ["submitted"] * 5

        assert len(await run(tmp_path, flux, requests(20))) == 20
        assert len(emulator.ledger.accepted) == 20


async def test_stop_now_does_not_wait_for_ever(tmp_path: Path) -> None:
    """A POST that nobody answers is given 5 seconds, and is unknown to the next run."""
    async with emulated(Script(faults=[Fault("createTask", "hang")])) as (flux, emulator):
        batch = batch_in(tmp_path, flux, requests(1))
        running = asyncio.create_task(collect(batch))
        await until(lambda: emulator.ledger.in_flight["createTask"])
        begun = asyncio.get_running_loop().time()
        batch.stop(now=True)
        await running
        assert asyncio.get_running_loop().time() - begun == pytest.approx(5.0, abs=0.1)
        assert [line["state"] for line in lines(tmp_path)] == ["submitting"]

        again = batch_in(tmp_path, flux, requests(1))
        assert await collect(again) == []
        assert [line["state"] for line in lines(tmp_path)] == ["unknown"]


async def test_an_answer_behind_the_end_of_its_run_is_kept(tmp_path: Path) -> None:
    """A POST that is answered while the next run has the journal is in it, and the journal whole: it is paid once."""
    async with emulated(Script(plans=Plan(duration=1.0), latency=8.0)) as (flux, emulator):
        async with Journal(tmp_path / "run.db") as journal:
            batch = run_batch(flux, requests(1), journal=journal, directory=tmp_path)
            running = asyncio.create_task(collect(batch))
            await until(lambda: emulator.ledger.in_flight["createTask"])
            batch.stop(now=True)
            assert await running == []
            assert await collect(run_batch(flux, requests(1), journal=journal, directory=tmp_path)) == []
            assert [outcome.state async for outcome in journal.outcomes()] == ["unknown"]
            await asyncio.sleep(8.0)
            assert [outcome.state async for outcome in journal.outcomes()] == ["submitted"]

        assert [outcome.download for outcome in await run(tmp_path, flux, requests(1))] == ["saved"]
        assert len(emulator.ledger.accepted) == 1


async def test_break_stops_it(tmp_path: Path) -> None:
    """Leaving the loop sends nothing more and closes the journal; the tasks go on."""
    async with emulated(Script(plans=[Plan(duration=1.0), Plan(duration=100.0)]), rate_limit=SLOWLY) as (
        flux,
        emulator,
    ):
        async with aclosing(aiter(batch_in(tmp_path, flux, requests(50)))) as outcomes:
            async for outcome in outcomes:
                assert outcome.state == "done"
                break
        sent = len(emulator.ledger.requests)
        async with Journal(tmp_path / "run.db"):
            pass
        await asyncio.sleep(200)
        assert len(emulator.ledger.requests) == sent <= 10


async def test_break_without_more_ado_frees_the_journal(tmp_path: Path) -> None:
    """A plain `break` ends the batch as soon as the loop runs on."""
    async with emulated(rate_limit=SLOWLY) as (flux, _):
        async for _outcome in batch_in(tmp_path, flux, requests(20)):
            break
        await asyncio.sleep(10)
        assert len(await run(tmp_path, flux, requests(20))) >= 10


async def test_a_cancelled_reader_stops_it(tmp_path: Path) -> None:
    """Cancelling who reads the outcomes leaves a consistent journal."""
    async with emulated(Script(plans=Plan(duration=100.0), latency=1.0), rate_limit=SLOWLY) as (flux, emulator):
        running = asyncio.create_task(run(tmp_path, flux, requests(20)))
        await until(lambda: len(emulator.ledger.accepted) == 5)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert sorted(line["state"] for line in lines(tmp_path)) == ["queued"] * 15 + ["submitted"] * 5


async def test_a_closed_session_ends_it(tmp_path: Path) -> None:
    """Closing the session ends the batch with that error; what was accepted is submitted."""
    async with emulated(Script(plans=Plan(duration=100.0)), rate_limit=SLOWLY) as (flux, _):
        running = asyncio.create_task(run(tmp_path, flux, requests(20)))
        await until(lambda: len(flux.tasks()) == 5)
        await flux.aclose()
        with pytest.raises(SessionClosedError):
            await running
        assert sorted(line["state"] for line in lines(tmp_path)) == ["queued"] * 15 + ["submitted"] * 5


async def test_closed_while_the_reader_is_busy(tmp_path: Path) -> None:
    """Who asks for the next outcome of a batch that is being closed sees the end of it."""
    faults = [Fault("createTask", "hang", after=1)]
    async with emulated(Script(plans=Plan(duration=1.0), faults=faults)) as (flux, _):
        batch = batch_in(tmp_path, flux, requests(3))
        given = []

        async def read() -> None:
            async with aclosing(aiter(batch)) as outcomes:
                async for outcome in outcomes:
                    given.append(outcome)
                    await asyncio.sleep(3)

        reader = asyncio.create_task(read())
        await until(lambda: given)
        begun = asyncio.get_running_loop().time()
        await batch.aclose()
        assert asyncio.get_running_loop().time() - begun == pytest.approx(5.0, abs=0.1)
        await reader


async def test_closed_while_the_reader_waits_for_its_last_outcome(tmp_path: Path) -> None:
    """Who asks for no other outcome does not keep the closing."""

    class Watched(Journal):
        async def saved(self, row: Row, files: Sequence[str]) -> Outcome:
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: closing.set_result(loop.create_task(batch.aclose())))
            return await super().saved(row, files)

    closing: asyncio.Future[asyncio.Task[None]] = asyncio.get_running_loop().create_future()
    async with emulated() as (flux, _), Watched(tmp_path / "run.db") as journal:
        batch = run_batch(flux, requests(1), journal=journal, directory=tmp_path / "results")
        outcomes = aiter(batch)
        assert (await anext(outcomes)).download == "saved"
        async with asyncio.timeout(10):
            await (await closing)
        assert [line["download"] for line in lines(tmp_path)] == ["saved"]
        assert await anext(outcomes, None) is None


async def test_stopped_before_it_began(tmp_path: Path) -> None:
    """A batch that is stopped first sends nothing."""
    async with emulated() as (flux, emulator):
        batch = batch_in(tmp_path, flux, requests(3))
        batch.stop()
        assert await collect(batch) == []
        assert emulator.ledger.requests == []


async def test_stopped_while_the_input_is_read(tmp_path: Path) -> None:
    """A long input need not be read to its end; the journal is as before."""

    async def source() -> AsyncIterator[TextToImage]:
        for request in requests(2000):
            yield request
        await asyncio.sleep(3600)

    async with emulated() as (flux, emulator):
        batch = batch_in(tmp_path, flux, source())
        running = asyncio.create_task(collect(batch))
        await asyncio.sleep(10)
        batch.stop()
        assert await running == []
        assert batch.progress is None
        assert emulator.ledger.requests == []
        async with Journal(tmp_path / "run.db") as journal:
            assert [outcome async for outcome in journal.outcomes()] == []


async def test_a_batch_is_iterated_once(tmp_path: Path) -> None:
    """Iterating again is an error that says what to do."""
    async with emulated() as (flux, _):
        batch = batch_in(tmp_path, flux, requests(1))
        await collect(batch)
        with pytest.raises(ConfigurationError, match="call run_batch again"):
            await collect(batch)
        await batch.aclose()


async def test_a_slow_reader_stops_the_intake(tmp_path: Path) -> None:
    """No more requests are in hand than allowed, so that whoever reads slowly is not overrun."""
    async with emulated(Script(plans=Plan(duration=0.5)), rate_limit=None) as (flux, emulator):
        given = 0
        async for _ in batch_in(tmp_path, flux, requests(20), max_running=3):
            given += 1
            await asyncio.sleep(30)
            assert len(emulator.ledger.requests) <= given + 3
        assert given == 20


async def test_a_mistake_of_the_source_comes_out(tmp_path: Path) -> None:
    """An error of the iterable is raised before anything is sent, and the journal is as before."""

    def source() -> object:
        yield from requests(600)
        raise RuntimeError("the list is broken")

    async with emulated() as (flux, emulator):
        with pytest.raises(RuntimeError, match="the list is broken"):
            await run(tmp_path, flux, source())
        assert emulator.ledger.requests == []
        async with Journal(tmp_path / "run.db") as journal:
            assert [outcome async for outcome in journal.outcomes()] == []


async def test_a_journal_may_be_shared_with_the_caller(tmp_path: Path) -> None:
    """An open journal is used and left open; two batches one after the other share it."""
    async with emulated() as (flux, emulator), Journal(tmp_path / "run.db") as journal:
        for number in (2, 4):
            await collect(run_batch(flux, requests(number), journal=journal, directory=tmp_path))
        assert len(emulator.ledger.accepted) == 4
        assert len([outcome async for outcome in journal.outcomes()]) == 4


async def test_results_that_cannot_be_written_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When `results.jsonl` cannot be written the run ends with that error, after everything is in the journal."""
    (tmp_path / "results" / "results.jsonl").mkdir(parents=True)
    async with emulated() as (flux, _):
        with caplog.at_level(logging.WARNING), pytest.raises(OSError, match=r"results\.jsonl"):
            await run(tmp_path, flux, requests(1))
        async with Journal(tmp_path / "run.db") as journal:
            assert [outcome.state async for outcome in journal.outcomes()] == ["done"]
    assert "results.jsonl was not written" in caplog.text
