"""Batches ended at one certain moment: books, journal and `results.jsonl` agree, and what has ended is told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from batches import batch_in, collect, lines, requests
from emulated import emulated, until

from flux2_async.batch import Batch, Download, Journal, State, run_batch
from flux2_async.batch.journal.rows import Row
from flux2_async.batch.journal.start import Start, Work
from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.errors import SessionClosedError
from flux2_async.models import TaskRecord
from flux2_async.session.session import Flux2Session


class Watched(Journal):
    """A journal in which something happens while it writes certain values."""

    moment: Callable[[], object] | None = None
    wanted: tuple[str, Any] = ("", None)

    def change(self, row: Row, **values: Any) -> "asyncio.Future[Any]":
        self.look(values)
        return super().change(row, **values)

    def look(self, values: dict[str, Any]) -> None:
        if self.moment is not None and self.wanted in values.items():
            asyncio.get_running_loop().call_soon(self.moment)
            self.moment = None


@asynccontextmanager
async def watched(
    folder: Path, script: Script, number: int = 1
) -> AsyncIterator[tuple[Watched, Batch, Flux2Session, Emulator]]:
    async with emulated(script) as (flux, emulator), Watched(folder / "run.db") as journal:
        yield journal, run_batch(flux, requests(number), journal=journal, directory=folder / "results"), flux, emulator


async def kept(journal: Journal) -> list[tuple[str, str | None]]:
    return [(outcome.state.value, outcome.download) async for outcome in journal.outcomes()]


def told(folder: Path) -> list[tuple[str, str | None]]:
    return [(line["state"], line["download"]) for line in lines(folder)]


async def test_stopped_when_it_is_just_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that comes too late for the preparing, and before anything else, is a stop all the same."""
    async with emulated() as (flux, emulator):
        batch = batch_in(tmp_path, flux, requests(3))
        begin = Journal.begin

        async def begun(*args: Any, **options: Any) -> Start:
            start = await begin(*args, **options)
            # What prepares has nothing more to wait for, and has ended by then.
            asyncio.get_running_loop().call_soon(batch.stop)
            return start

        monkeypatch.setattr(Journal, "begin", begun)
        assert await collect(batch) == []
        assert emulator.ledger.requests == []


async def test_a_picture_that_is_being_entered_is_told(tmp_path: Path) -> None:
    """What is saved when the batch is stopped at once is among its outcomes, for no later run would tell of it."""
    async with watched(tmp_path, Script(plans=Plan(duration=1.0))) as (journal, batch, _, _):
        journal.wanted, journal.moment = ("download", Download.SAVED), lambda: batch.stop(now=True)
        assert [outcome.download for outcome in await collect(batch)] == ["saved"]
        assert batch.progress is not None
        assert (batch.progress.downloaded, batch.progress.not_downloaded) == (1, 0)


@pytest.mark.parametrize(("plan", "state"), [(Plan(), "done"), (Plan(outcome="fail"), "failed")])
async def test_a_task_that_has_just_ended_is_counted(tmp_path: Path, plan: Plan, state: str) -> None:
    """Stopped while the end of a task is written down, progress and `results.jsonl` say what the journal says."""
    async with watched(tmp_path, Script(plans=plan)) as (journal, batch, _, emulator):
        journal.wanted, journal.moment = ("state", State(state)), lambda: batch.stop(now=True)
        await collect(batch)
        assert [state for state, _ in await kept(journal)] == [state]
        assert told(tmp_path) == await kept(journal)
        assert batch.progress is not None
        assert getattr(batch.progress, state) == 1
        assert (batch.progress.running, batch.progress.reserved) == (0, 0)
        assert batch.progress.spent == emulator.ledger.charged


async def test_stopped_while_an_intent_is_written(tmp_path: Path) -> None:
    """A POST that is not sent after all leaves its request queued, at no cost, in `results.jsonl` as well."""
    async with watched(tmp_path, Script(), 3) as (journal, batch, _, emulator):
        journal.wanted, journal.moment = ("state", State.SUBMITTING), lambda: batch.stop(now=True)
        assert await collect(batch) == []
        assert emulator.ledger.requests == []
        assert told(tmp_path) == await kept(journal) == [("queued", None)] * 3
        assert batch.progress is not None
        assert (batch.progress.queued, batch.progress.reserved) == (3, 0)


async def test_the_session_is_closed_while_an_intent_is_written(tmp_path: Path) -> None:
    """A POST that is cut off before it leaves leaves its request queued rather than unknown."""
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        async with watched(folder, Script()) as (journal, batch, flux, emulator):
            journal.wanted = "state", State.SUBMITTING
            journal.moment = lambda flux=flux: asyncio.create_task(flux.aclose(0))
            ended = None
            try:
                await collect(batch)
            except SessionClosedError as error:
                ended = error
            if emulator.ledger.requests:
                # The intent was written before the closing had begun.
                continue
            assert ended is not None
            assert await kept(journal) == [("queued", None)]
            assert batch.progress is not None
            assert batch.progress.reserved == 0
            return
    pytest.fail("each intent was written before the session was closed")


async def test_a_refusal_after_the_stop_costs_nothing(tmp_path: Path) -> None:
    """What is refused when nobody waits for it any more is not counted as running."""
    script = Script(latency=3.0, faults=[Fault("createTask", "refuse")])
    async with watched(tmp_path, script) as (journal, batch, _, emulator):
        running = asyncio.create_task(collect(batch))
        await until(lambda: emulator.ledger.requests)
        batch.stop(now=True)
        assert await running == []
        assert await kept(journal) == [("queued", None)]
        assert batch.progress is not None
        assert (batch.progress.queued, batch.progress.reserved) == (1, 0)


async def test_stopped_before_the_first_step(tmp_path: Path) -> None:
    """Requests that are in hand and not begun yet go back to the queue, at no cost."""

    class Stopping(Journal):
        async def take(self, work: str, after: Row | None, most: int) -> list[Row]:
            if work == Work.QUEUED and after is not None:
                batch.stop(now=True)
            return await super().take(work, after, most)

    async with emulated() as (flux, emulator), Stopping(tmp_path / "run.db") as journal:
        batch = run_batch(flux, requests(3), journal=journal, directory=tmp_path / "results")
        assert await collect(batch) == []
        assert emulator.ledger.requests == []
        assert batch.progress is not None
        assert (batch.progress.queued, batch.progress.reserved) == (3, 0)


async def test_cancelled_twice(tmp_path: Path) -> None:
    """Who cancels again leaves nothing running that would write to a journal that is closed."""

    class Slow(Journal):
        async def made(self, row: Row, record: TaskRecord) -> None:
            begun.set()
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(1)
            raise AssertionError("it is cancelled before")

    begun = asyncio.Event()
    async with emulated() as (flux, _), Slow(tmp_path / "run.db") as journal:
        running = asyncio.create_task(collect(run_batch(flux, requests(1), journal=journal, directory=tmp_path)))
        await begun.wait()
        for _ in range(2):
            running.cancel()
            await asyncio.sleep(0.1)
        await asyncio.wait([running])
        assert running.cancelled()
        assert [task for task in asyncio.all_tasks() if "Scheduler" in repr(task.get_coro())] == []
