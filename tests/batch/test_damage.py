"""Damaged journals: each is told by one clear error, and nothing that was paid is sent again."""

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from batches import collect, requests, run
from emulated import emulated

from flux2_async.batch import (
    Failure,
    Job,
    Journal,
    JournalError,
    read_results,
    run_batch,
    write_results,
)
from flux2_async.batch.journal.start import Work
from flux2_async.batch.options import Options
from flux2_async.models import TaskRecord, TaskState, TextToImage

REQUESTS = [
    Job(TextToImage(f"postcard {n}"), id=f"n{n}" if n % 2 else None, extra={"number": n, "name": "Zoë"})
    for n in range(24)
]
PAID = 18

# The first version's file, as it was.
FIRST_VERSION = """
CREATE TABLE requests (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    digest BLOB NOT NULL,
    run INTEGER NOT NULL,
    place INTEGER NOT NULL,
    line INTEGER NOT NULL,
    state TEXT NOT NULL,
    prompt TEXT NOT NULL,
    images TEXT NOT NULL,
    aspect_ratio TEXT NOT NULL,
    resolution TEXT NOT NULL,
    tier TEXT NOT NULL,
    model TEXT NOT NULL,
    extra_input TEXT NOT NULL,
    extra TEXT NOT NULL,
    ref TEXT,
    task_id TEXT,
    sent_at REAL,
    submitted_at REAL,
    finished_at REAL,
    saved_at REAL,
    create_time REAL,
    complete_time REAL,
    urls TEXT NOT NULL DEFAULT '[]',
    files TEXT NOT NULL DEFAULT '[]',
    download TEXT,
    credits REAL,
    earlier_credits REAL NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    error TEXT
);
CREATE INDEX requests_by_state ON requests (state, place);
CREATE INDEX requests_by_line ON requests (line);
CREATE TABLE runs (number INTEGER PRIMARY KEY, begun_at REAL NOT NULL);
PRAGMA application_id=1179408434;
PRAGMA user_version=1;
"""


async def make(folder: Path) -> dict[str, dict[str, bytes]]:
    """Files of a journal with three quarters of its requests paid: closed well, and as a killed process leaves them."""
    async with Journal(folder / "run.db") as journal:
        await journal.enter(REQUESTS, Options())
        await journal.begin(Options())
        for number, row in enumerate(await journal.take(Work.QUEUED, None, PAID)):
            await journal.sending(row, f"ref-{number}")
            if number % 6 == 0:
                await journal.unclear(row, Failure(type="AmbiguousSubmitError", message="the reply was lost"))
                continue
            await journal.accepted(row, f"task-{number}")
            if number % 6 == 1:
                continue
            url = f"https://files.example/{number}.png"
            record = TaskRecord(
                task_id=f"task-{number}",
                state=TaskState.SUCCESS,
                state_text="success",
                result_urls=(url,),
                credits_consumed=14,
            )
            await journal.made(row, record)
            if number % 6 != 2:
                await journal.saved(row, [f"images/{number}.png"])
        killed = {name: (folder / name).read_bytes() for name in ("run.db", "run.db-wal")}
    return {"closed": {"run.db": (folder / "run.db").read_bytes()}, "killed": killed}


async def sendable(folder: Path) -> set[str]:
    """Open the journal as a run does, read all of it, and give the prompts that would be sent."""
    async with Journal(folder / "run.db") as journal:
        await journal.enter(REQUESTS, Options())
        await journal.begin(Options())
        for work in (Work.NOT_DOWNLOADED, Work.SUBMITTED, Work.UNCLEAR):
            await journal.take(work, None, 1000)
        prompts = {row.request.prompt for row in await journal.take(Work.QUEUED, None, 1000)}
        await write_results(journal, folder)
    assert len(list(read_results(folder))) == len(REQUESTS)
    return prompts


def damaged(files: dict[str, bytes], chance: random.Random) -> dict[str, bytes]:
    """The files with a bit or a byte of one of them changed, or with zeros in the place of 64 bytes of the database."""
    name = chance.choice(sorted(files))
    content = bytearray(files[name])
    place = chance.randrange(len(content))
    match chance.randrange(5):
        case 0:
            content[place] = chance.randrange(256)
        case 1 if name == "run.db":
            content[place : place + 64] = bytes(len(content[place : place + 64]))
        case _:
            content[place] ^= 1 << chance.randrange(8)
    return files | {name: bytes(content)}


@pytest.mark.parametrize("seed", range(2))
async def test_damage_pays_for_nothing_again(tmp_path: Path, seed: int) -> None:
    """Of hundreds of damaged journals each is harmless or told as a JournalError, and no paid request is sent."""
    chance = random.Random(seed)
    whole = await make(tmp_path / "whole")
    unpaid = {job.request.prompt for job in REQUESTS[PAID:]}
    told: list[str] = []
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in damaged(whole[chance.choice(["closed", "killed"])], chance).items():
            (folder / name).write_bytes(content)
        try:
            assert await sendable(folder) == unpaid
        except JournalError as error:
            told.append(str(error))
        shutil.rmtree(folder)
    assert len(told) > 20
    assert "\n" not in "".join(told)


def values(path: Path) -> Iterator[tuple[str, str]]:
    """Each column of a journal, with a word of SQL for another value than the third row has."""
    with closing(sqlite3.connect(path)) as connection:
        for _, name, kind, *_ in connection.execute("PRAGMA table_info(requests)"):
            if name != "number":
                yield name, {"TEXT": "'other'", "BLOB": "x'00'"}.get(kind, "77")


async def test_a_damaged_row_is_told_with_its_number(tmp_path: Path) -> None:
    """Whatever of a row is not as it was written, its number is told, and nothing of the file is changed."""
    whole = (await make(tmp_path / "whole"))["closed"]["run.db"]
    path = tmp_path / "run.db"
    path.write_bytes(whole)
    columns = list(values(path))
    assert len(columns) == 30
    for name, value in columns:
        path.write_bytes(whole)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"UPDATE requests SET {name} = {value} WHERE number = 3")  # noqa: S608  made here
            connection.commit()
        before = path.read_bytes()
        with pytest.raises(JournalError, match="not as it was written: row 3 of its requests"):
            await Journal(path).open()
        assert path.read_bytes() == before


async def test_a_damaged_journal_sends_nothing(tmp_path: Path) -> None:
    """A word that has become another one is told before the service hears of anything."""
    async with emulated() as (flux, emulator):
        await run(tmp_path, flux, requests(3))
        content = (tmp_path / "run.db").read_bytes()
        (tmp_path / "run.db").write_bytes(content.replace(b"number 1[]1:1", b"number 7[]1:1"))
        with pytest.raises(JournalError, match="row 2 of its requests"):
            await run(tmp_path, flux, requests(4))
        assert len(emulator.ledger.requests) == 3


async def test_every_change_keeps_the_checksums(tmp_path: Path) -> None:
    """After whatever a run does to its rows, the next one finds them as they were written."""
    ways: list[dict[str, Any]] = [
        {"limit": 3, "shuffle": True},
        {"retry_failed": True, "retry_unknown": True},
        {"skip_invalid": True},
    ]
    async with emulated() as (flux, _):
        await make(tmp_path / "whole")
        for options in ways:
            batch = run_batch(
                flux,
                REQUESTS[:20],
                journal=tmp_path / "whole" / "run.db",
                directory=tmp_path,
                max_tasks=1,
                download=False,
                recover_timeout=0,
                **options,
            )
            batch.stop(now=True)
            await collect(batch)
        async with Journal(tmp_path / "whole" / "run.db") as journal:
            await journal.forget_unfinished(tmp_path)
        async with Journal(tmp_path / "whole" / "run.db") as journal:
            assert len([outcome async for outcome in journal.outcomes()]) >= PAID


async def test_a_journal_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    """Its rows are found again with all that was known of them, and are watched over from then on."""
    await make(tmp_path / "whole")
    old = tmp_path / "run.db"
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript(FIRST_VERSION)
        connection.execute("ATTACH ? AS new", (str(tmp_path / "whole" / "run.db"),))
        columns = ", ".join(["number", *(name for name, _ in values(tmp_path / "whole" / "run.db"))][:-1])
        connection.execute(f"INSERT INTO requests SELECT {columns} FROM new.requests")  # noqa: S608  made here
        connection.execute("INSERT INTO runs SELECT * FROM new.runs")
        connection.commit()
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    async with Journal(old) as journal, Journal(tmp_path / "whole" / "run.db") as new:
        assert [each async for each in journal.outcomes()] == [each async for each in new.outcomes()]
    assert await sendable(tmp_path) == {job.request.prompt for job in REQUESTS[PAID:]}
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        connection.execute("UPDATE requests SET state = 'queued' WHERE number = 5")
        connection.commit()
    with pytest.raises(JournalError, match="row 5 of its requests"):
        await Journal(old).open()


FRAME = 24 + 4096


@pytest.mark.parametrize("left", ["nothing", "zeros", "an earlier log"])
async def test_a_power_failure_is_no_damage(tmp_path: Path, left: str) -> None:
    """What never came to the disk at the end of the log is left out without a word."""
    files = (await make(tmp_path / "whole"))["killed"]
    log = files["run.db-wal"]
    frames = (len(log) - 32) // FRAME
    assert frames > 20
    cut = 32 + (frames - 6) * FRAME
    # Blocks come to the disk in any order: the last frames may be there and one before them may be not.
    gap = {"nothing": b"", "zeros": bytes(FRAME), "an earlier log": log[cut : cut + 8] + b"\x01" * (FRAME - 8)}[left]
    rest = log[cut + FRAME :] if gap else b""
    (tmp_path / "run.db").write_bytes(files["run.db"])
    (tmp_path / "run.db-wal").write_bytes(log[:cut] + gap + rest)
    async with Journal(tmp_path / "run.db") as journal:
        assert len([outcome async for outcome in journal.outcomes()]) == len(REQUESTS)


async def test_a_damaged_log_is_told(tmp_path: Path) -> None:
    """A bit in the log is told with its frame, and both files are left as they were; a log in use is no damage."""
    files = (await make(tmp_path / "whole"))["killed"]
    log = bytearray(files["run.db-wal"])
    log[32 + 3 * FRAME + 500] ^= 4
    (tmp_path / "run.db").write_bytes(files["run.db"])
    (tmp_path / "run.db-wal").write_bytes(log)
    with pytest.raises(JournalError, match=r"the log 'run.db-wal' beside .* is damaged at frame 4; restore a copy"):
        await Journal(tmp_path / "run.db").open()
    assert (tmp_path / "run.db").read_bytes() == files["run.db"]
    assert (tmp_path / "run.db-wal").read_bytes() == log
    (tmp_path / "run.db-wal").write_bytes(files["run.db-wal"])
    async with Journal(tmp_path / "run.db") as journal:
        await journal.forget_unfinished(tmp_path)
        used = bytearray((tmp_path / "run.db-wal").read_bytes())
        used[500] ^= 4
        (tmp_path / "run.db-wal").write_bytes(used)
        with pytest.raises(JournalError, match="is being used by another process"):
            await Journal(tmp_path / "run.db").open()
