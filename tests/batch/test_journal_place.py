"""A journal that somebody deletes, moves or replaces while a batch runs: nothing is sent that the next run forgets."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from batches import batch_in, collect, lines, requests
from emulated import emulated

from flux2_async.batch import Batch, Journal, JournalError, run_batch
from flux2_async.batch.journal.rows import Row


def delete(journal: Path) -> None:
    journal.unlink()


def delete_log(journal: Path) -> None:
    journal.with_name("run.db-wal").unlink()


def rename_folder(journal: Path) -> None:
    journal.parent.rename(journal.parent.with_name("moved"))


def replace(journal: Path) -> None:
    shutil.copy(journal, journal.with_name("copy"))
    journal.with_name("copy").replace(journal)


harms = pytest.mark.parametrize("harm", [delete, delete_log, rename_folder, replace], ids=lambda harm: harm.__name__)


async def harmed(batch: Batch, harm: Callable[[], object]) -> JournalError:
    """Iterate a batch that is harmed when the first of it has ended; give what it ends with."""
    with pytest.raises(JournalError) as caught:
        async for _ in batch:
            harm()
    return caught.value


@harms
async def test_nothing_is_sent_without_the_journal(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """Not one POST leaves once the next run would not find it, and the error says what to do."""
    (tmp_path / "batch").mkdir()
    async with emulated() as (flux, emulator):
        batch = batch_in(tmp_path / "batch", flux, requests(4), max_running=1)
        error = await harmed(batch, lambda: harm(tmp_path / "batch" / "run.db"))
        assert len(emulator.ledger.accepted) == 1
        assert "pays again for what was paid" in str(error)
        assert batch.progress is not None
        assert batch.progress.queued == 3


async def test_a_moved_journal_is_gone_on_with(tmp_path: Path) -> None:
    """What was not sent is in the queue of the moved journal, and nothing is paid twice."""
    (tmp_path / "batch").mkdir()

    def rename_once() -> None:
        if not (tmp_path / "moved").exists():
            rename_folder(tmp_path / "batch" / "run.db")

    async with emulated() as (flux, emulator):
        await harmed(batch_in(tmp_path / "batch", flux, requests(4), max_running=2), rename_once)
        await collect(batch_in(tmp_path / "moved", flux, requests(4)))
        assert len(emulator.ledger.accepted) == 4
        assert {line["state"] for line in lines(tmp_path / "moved")} == {"done"}


async def test_tasks_of_answers_under_way_are_named(tmp_path: Path) -> None:
    """A task whose answer comes when the journal is gone is named by the error, and its picture is saved."""

    class Gone(Journal):
        async def accepted(self, row: Row, task_id: str) -> None:
            self.path.unlink(missing_ok=True)
            await super().accepted(row, task_id)

    async with emulated() as (flux, emulator), Gone(tmp_path / "run.db") as journal:
        with pytest.raises(JournalError, match="was deleted or moved while the batch was running") as caught:
            await collect(run_batch(flux, requests(3), journal=journal, directory=tmp_path / "results"))
        tasks = emulator.ledger.accepted
        assert tasks
        assert all(any(task in note for note in caught.value.__notes__) for task in tasks)
        assert len([*(tmp_path / "results" / "images").iterdir()]) == len(tasks)


async def test_a_journal_that_goes_behind_the_last_post(tmp_path: Path) -> None:
    """The end of a run says so as well: the next one would pay for all of it again."""
    async with emulated() as (flux, _):
        error = await harmed(batch_in(tmp_path, flux, requests(1)), (tmp_path / "run.db").unlink)
        assert "was deleted or moved" in str(error)
        assert [line["state"] for line in lines(tmp_path)] == ["done"]


async def test_a_journal_by_a_link_in_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that was relative, and leads over a link, means the same file when the program goes elsewhere."""
    (tmp_path / "real.db").touch()
    (tmp_path / "run.db").symlink_to("real.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    async with emulated() as (flux, emulator), Journal("run.db") as journal:
        batch = run_batch(flux, requests(3), journal=journal, directory="results", max_running=1)
        async for _ in batch:
            monkeypatch.chdir(tmp_path / "elsewhere")
        assert len(emulator.ledger.accepted) == 3
