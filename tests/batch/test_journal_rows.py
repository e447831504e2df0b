"""Rows of the journal: as lines of `results.jsonl`, and changed with their checksums."""

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import attrs
from batches import requests
from hypothesis import given
from hypothesis import strategies as st

from flux2_async.batch import Download, Failure, Journal, State, document
from flux2_async.batch.journal.rows import Row, line_of, outcome_of
from flux2_async.batch.journal.start import Work
from flux2_async.batch.options import Options
from flux2_async.batch.outcomes import KEYS
from flux2_async.models import TaskRecord, TaskState
from flux2_async.models.plain_json import utf8_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# Journals of old versions have text that is no Unicode.
ANY_TEXT = st.one_of(TEXT, st.text(st.sampled_from('a\\u"é\udce9\x7f\n')))
NUMBERS = st.floats(0, 4e9)
LISTS = st.lists(ANY_TEXT, max_size=3).map(json.dumps)
EXTRA = st.dictionaries(TEXT, st.one_of(ANY_TEXT, st.integers(), st.lists(ANY_TEXT, max_size=2)), max_size=3)
WITH_GROUP = st.builds(lambda extra, group: extra | {"group": group}, EXTRA, st.one_of(TEXT, st.integers(), st.none()))
TIME = st.one_of(st.none(), NUMBERS)
COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("id", "prompt", "aspect_ratio", "resolution", "tier", "model"), TEXT),
    **dict.fromkeys(("images", "files", "urls"), LISTS),
    **dict.fromkeys(("sent_at", "submitted_at", "finished_at", "saved_at", "create_time", "complete_time"), TIME),
    "state": st.sampled_from([state.value for state in State]),
    "download": st.sampled_from([None, *(download.value for download in Download)]),
    "line": st.integers(0, 2**63 - 1),
    "task_id": st.one_of(st.none(), TEXT),
    "ref": st.one_of(st.none(), TEXT),
    "credits": st.one_of(st.none(), NUMBERS),
    "error": st.one_of(
        st.none(),
        st.builds(
            lambda message, code: json.dumps(attrs.asdict(Failure(type="ApiError", message=message, code=code))),
            ANY_TEXT,
            st.one_of(st.none(), st.integers(), TEXT),
        ),
    ),
    "extra": st.one_of(EXTRA, WITH_GROUP).map(json.dumps),
}


@given(st.tuples(*(COLUMNS[name] for name in KEYS)))
def test_a_line_says_what_the_outcome_says(row: tuple[Any, ...]) -> None:
    """Byte for byte the JSON of its `document`, though neither is made for it."""
    assert line_of(row) == utf8_json(document(outcome_of(row))) + b"\n"


async def test_the_checksum_is_of_what_was_stored(tmp_path: Path) -> None:
    """A whole number and a negative zero become what SQLite makes of them; such a journal is not taken for damaged."""
    for paid in (14, -0.0):
        async with Journal(tmp_path / f"{paid}.db") as journal:
            options = Options()
            await journal.enter(requests(1), options)
            [row] = await journal.take(Work.QUEUED, None, 1)
            await journal.sending(row, "ref")
            await journal.accepted(row, "task_1")
            record = TaskRecord(task_id="task_1", state=TaskState.SUCCESS, state_text="success", credits_consumed=paid)
            await journal.finished(row, record)
        async with Journal(tmp_path / f"{paid}.db") as journal:
            [outcome] = [outcome async for outcome in journal.outcomes()]
        assert (outcome.state, outcome.credits) == (State.DONE, paid)


async def test_onlookers_are_told_behind_the_commit(tmp_path: Path) -> None:
    """Of what is in the journal: all that one commit has accepted or ended at once, and no intent."""
    told: list[tuple[bool, list[str]]] = []
    async with Journal(tmp_path / "run.db") as journal:
        await journal.enter(requests(2), Options())
        rows = await journal.take(Work.QUEUED, None, 2)
        connection: sqlite3.Connection = await journal.read(lambda connection: connection)

        def tell(lines: bytes) -> None:
            told.append((connection.in_transaction, [json.loads(line)["state"] for line in lines.splitlines()]))

        journal.tell(tell)
        await journal.sending(rows[0], "ref")
        await journal.accepted(rows[0], "task_1")
        assert told == [(False, ["submitted"])]
        await journal.unclear(rows[1], Failure(type="AmbiguousSubmitError", message="lost"))
        journal.tell(None)
        await journal.refused(rows[1])
    assert told == [(False, ["submitted"]), (False, ["unknown"])]


async def test_what_is_asked_for_together_is_one_commit(tmp_path: Path) -> None:
    """All changes that the loop comes by before it waits are written at once, and those that follow from them too."""
    commits: list[int] = []
    async with Journal(tmp_path / "run.db") as journal:
        await journal.enter(requests(3), Options())
        rows = await journal.take(Work.QUEUED, None, 3)
        journal.tell(lambda lines: commits.append(len(lines.splitlines())))

        async def fail(row: Row) -> None:
            await journal.accepted(row, f"task_{row.number}")
            await journal.failed(row, Failure(type="TaskFailedError", message="no"))

        await asyncio.gather(*map(fail, rows))
    assert commits == [3, 3]


async def test_a_change_is_made_though_the_journal_is_closed_in_the_same_moment(tmp_path: Path) -> None:
    """Who asks for a change has it on its way: closing waits for it."""
    async with Journal(tmp_path / "run.db") as journal:
        await journal.enter(requests(1), Options())
        [row] = await journal.take(Work.QUEUED, None, 1)
        changed = journal.change(row, state=State.SUBMITTED.value, task_id="task_1")
    assert changed.done()
    async with Journal(tmp_path / "run.db") as journal:
        assert [outcome.task_id async for outcome in journal.outcomes(state=State.SUBMITTED)] == ["task_1"]
