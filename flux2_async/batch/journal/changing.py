"""What may become of a row while it is worked on.

Two commits wait for the disk, because money hangs on them: that a POST is about to leave, and which task it became.
All others may be lost to a power failure at no cost: the task is polled again, the picture downloaded again.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from flux2_async.batch.journal.database import Database
from flux2_async.batch.journal.rows import Row, line_of, outcome_of, shown, stored, texts, write_row
from flux2_async.batch.outcomes import Download, Failure, Outcome, State
from flux2_async.models import TaskRecord


class Changing:
    """The part of a journal that those use who work on its rows; each change is in the journal when it is awaited."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def tell(self, changed: Callable[[bytes], object] | None) -> None:
        """Have something called in the journal's thread, behind each commit, and None nothing any more.

        It is given the lines, see `line_of`, of requests that were accepted or have come to an end; it must not raise.
        """
        self._database.committed = changed and partial(_tell, changed)

    async def sending(self, row: Row, ref: str) -> None:
        """A POST is about to leave; on disk when this returns, and found there by the next run."""
        await self.change(row, durable=True, told=False, state=State.SUBMITTING.value, ref=ref, sent_at=time.time())

    async def refused(self, row: Row) -> None:
        """The POST was certainly not accepted."""
        await self.change(row, answer=True, told=False, state=State.QUEUED.value)

    async def accepted(self, row: Row, task_id: str) -> None:
        """The POST, or the lost one, became this task; on disk when this returns."""
        values: dict[str, Any] = {"state": State.SUBMITTED.value, "task_id": task_id, "error": None}
        await self.change(row, durable=True, answer=True, submitted_at=time.time(), **values)

    async def unclear(self, row: Row, failure: Failure) -> Outcome:
        """It is not known whether there is a task."""
        # Given up now, it may have been accepted just before; see `Outcome.sent_at`.
        return await self._changed(row, state=State.UNKNOWN.value, error=stored(failure), sent_at=time.time())

    async def failed(self, row: Row, failure: Failure, record: TaskRecord | None = None) -> Outcome:
        """The service refused it, or its task failed."""
        return await self._changed(row, state=State.FAILED.value, error=stored(failure), **_facts(record))

    async def made(self, row: Row, record: TaskRecord) -> None:
        """The picture is made, and is to be saved."""
        await self.change(row, told=False, download=Download.PENDING.value, **_result(record))

    async def finished(self, row: Row, record: TaskRecord) -> Outcome:
        """The picture is made, and is not to be saved."""
        return await self._changed(row, download=Download.OFF.value, **_result(record))

    async def saved(self, row: Row, files: Sequence[str]) -> Outcome:
        """The pictures are in the folder."""
        values = {"files": texts(files), "download": Download.SAVED.value, "error": None}
        return await self._changed(row, saved_at=time.time(), **values)

    async def not_saved(self, row: Row, download: Download, failure: Failure) -> Outcome:
        """The pictures are not in the folder."""
        return await self._changed(row, download=download.value, error=stored(failure))

    async def waiting(self, row: Row, failure: Failure) -> Outcome:
        """The task is not finished, and is no longer waited for in this run."""
        return await self._changed(row, error=stored(failure))

    async def _changed(self, row: Row, **values: Any) -> Outcome:
        return outcome_of(await self.change(row, **values))

    def change(
        self, row: Row, *, durable: bool = False, answer: bool = False, told: bool = True, **values: Any
    ) -> "asyncio.Future[tuple[Any, ...]]":
        """Change columns of a row; the future gives those that are shown, empty for a change that is not told."""
        row.columns.update(values)
        columns = row.columns.copy()

        def write(connection: sqlite3.Connection) -> tuple[Any, ...]:
            write_row(connection, row.number, columns, values)
            return shown(columns) if told else ()

        return self._database.write(write, durable=durable, answer=answer)


def _tell(changed: Callable[[bytes], object], results: Sequence[object]) -> None:
    if lines := [line_of(result) for result in results if result and isinstance(result, tuple)]:
        changed(b"".join(lines))


def _facts(record: TaskRecord | None) -> dict[str, Any]:
    facts = (record.create_time, record.complete_time, record.credits_consumed) if record else (None, None, None)
    created, completed, paid = facts
    return {
        "finished_at": time.time(),
        "create_time": created and created.timestamp(),
        "complete_time": completed and completed.timestamp(),
        # Neither a whole number nor a negative zero, of which SQLite would make something else.
        "credits": None if paid is None else paid + 0.0,
    }


def _result(record: TaskRecord) -> dict[str, Any]:
    # The id as well: it may have come when the disk was full.
    values = {"state": State.DONE.value, "task_id": record.task_id, "error": None}
    return {**values, "urls": texts(record.result_urls), **_facts(record)}
