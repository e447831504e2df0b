"""The journal's file: whose it is, what it recognises, what is on disk when."""

import asyncio
import errno
import fcntl
import gc
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from batches import batch_in, collect, lines, prompts, requests, run
from emulated import emulated, until
from file_host import picture

from flux2_async.batch import Failure, InvalidInputError, Job, Journal, JournalError, State, run_batch
from flux2_async.batch.journal import schema
from flux2_async.batch.journal.database import Database
from flux2_async.batch.journal.start import Work
from flux2_async.batch.options import Options
from flux2_async.errors import ConfigurationError
from flux2_async.models import ImageToImage, TextToImage, UploadedFile

PNG = picture(100)


async def entered(journal: Journal, items: Sequence[Any], **options: Any) -> list[str]:
    """Enter the items and give the ids of what may be sent."""
    await journal.enter(items, Options(**options))
    return [row.id for row in await journal.take(Work.QUEUED, None, 1000)]


OPEN = """
import asyncio, sys
from flux2_async.batch import Journal, JournalError
try:
    asyncio.run(Journal(sys.argv[1]).open())
except JournalError as error:
    print(error)
"""


async def check_used(path: Path) -> None:
    """Another process is told that the journal is in use."""
    command = [sys.executable, "-c", OPEN, str(path)]
    other = await asyncio.to_thread(subprocess.run, command, stdout=subprocess.PIPE, text=True, check=True)
    assert "is being used by another process; wait until it is finished" in other.stdout


async def test_a_second_journal_is_refused(tmp_path: Path) -> None:
    """Another process, and another batch of this one, is told that the journal is in use; the first goes on."""
    async with Journal(tmp_path / "run.db") as journal:
        for _ in range(2):
            await check_used(tmp_path / "run.db")
        with pytest.raises(JournalError, match="is being used"):
            await Journal(tmp_path / "run.db").open()
        with pytest.raises(JournalError, match="open already"):
            await journal.open()
        assert len(await entered(journal, list(requests(3)))) == 3
    async with Journal(tmp_path / "run.db") as journal:
        assert len([outcome async for outcome in journal.outcomes()]) == 3


@pytest.mark.skipif(not hasattr(fcntl, "F_OFD_SETLK"), reason="a lock that Linux alone has")
async def test_who_copies_a_journal_does_not_unlock_it(tmp_path: Path) -> None:
    """A process that closes another descriptor of its journal, as to copy it does, goes on keeping others out."""
    async with Journal(tmp_path / "run.db") as journal:
        await entered(journal, list(requests(1)))
        shutil.copy(tmp_path / "run.db", tmp_path / "copy.db")
        await check_used(tmp_path / "run.db")
        with pytest.raises(JournalError, match="is being used"):
            await Journal(tmp_path / "run.db").open()
        await check_used(tmp_path / "run.db")


@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancelled_opening_leaves_the_journal_free(tmp_path: Path, times: int) -> None:
    """Who is interrupted while the file is opened, once or again, does not keep it locked."""
    cancelled = 0
    while cancelled < 5:
        interrupted = Journal(tmp_path / "run.db")
        opening = asyncio.create_task(interrupted.open())
        for _ in range(times):
            await asyncio.sleep(0)
            opening.cancel()
        # A thread that was quick has opened it, and it is its caller's to close.
        await asyncio.wait([opening])
        cancelled += opening.cancelled()
        await interrupted.aclose()
        async with Journal(tmp_path / "run.db") as journal:
            assert [outcome async for outcome in journal.outcomes()] == []


def other_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()


def newer(path: Path) -> None:
    schema.connect(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=7")
    connection.close()


def torn(path: Path) -> None:
    schema.connect(path).close()
    path.write_bytes(path.read_bytes()[:9000])


def overwritten(path: Path) -> None:
    connection = schema.connect(path)
    for n in range(2000):
        connection.execute("INSERT INTO runs (begun_at) VALUES (?)", (n,))
    connection.close()
    content = bytearray(path.read_bytes())
    content[-3000:-2000] = bytes(1000)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("my diary\n" * 1000), "is not a journal; give another name"),
        (lambda path: path.write_bytes(b"SQ"), "is not a journal"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(5000)), "is damaged"),
        (other_database, "database of another program"),
        (newer, r"newer version of flux2_async \(its format is 7"),
        (torn, "is damaged"),
        (overwritten, "is damaged"),
        (lambda path: path.mkdir(), "cannot be opened"),
    ],
    ids=["text", "short", "no pages", "other", "newer", "torn", "overwritten", "folder"],
)
async def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, make: Any, reason: str) -> None:
    """What cannot be used is told, and not a byte of it is changed."""
    path = tmp_path / "run.db"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(JournalError, match=reason) as caught:
        await Journal(path).open()
    assert isinstance(caught.value, ConfigurationError)
    assert (path.read_bytes() if path.is_file() else b"") == before
    assert os.listdir(tmp_path) == ["run.db"]  # noqa: PTH208  an async function is to use no Path


async def test_an_empty_file_is_a_new_journal(tmp_path: Path) -> None:
    """What a crash in the first instant leaves is used; missing folders are made."""
    (tmp_path / "run.db").touch()
    for path in (tmp_path / "run.db", tmp_path / "a" / "b" / "run.db"):
        async with Journal(path) as journal:
            assert len(await entered(journal, list(requests(2)))) == 2


async def test_not_open(tmp_path: Path) -> None:
    """A journal that is not open says how to open it; closing twice is harmless."""
    journal = Journal(tmp_path / "run.db")
    with pytest.raises(JournalError, match="async with Journal"):
        await journal.take(Work.QUEUED, None, 1)
    await journal.open()
    assert repr(journal).endswith("open>")
    await journal.aclose()
    await journal.aclose()
    assert repr(journal).endswith("not open>")


async def test_equal_requests_are_counted(tmp_path: Path) -> None:
    """Equal lines are different requests by their number; in any order they are the same in the next run."""
    async with Journal(tmp_path / "run.db") as journal:
        first = await entered(journal, [TextToImage("a lake"), TextToImage("a hill"), TextToImage("a lake")])
        again = await entered(journal, [TextToImage("a hill"), TextToImage("a lake"), TextToImage("a lake")])
        assert first[2] == f"{first[0]}-2"
        assert again == [first[1], first[0], first[2]]
        assert await entered(journal, [TextToImage("a lake")]) == [first[0]]


async def test_what_makes_a_request_another(tmp_path: Path) -> None:
    """Everything that is sent counts; what is only kept does not."""
    shapes: list[dict[str, Any]] = [
        {},
        {"aspect_ratio": "16:9"},
        {"resolution": "2K"},
        {"tier": "pro"},
        {"extra_input": {"nsfw_checker": True}},
    ]
    async with Journal(tmp_path / "run.db") as journal:
        assert len(set(await entered(journal, [TextToImage("a lake", **shape) for shape in shapes]))) == 5
        plain = await entered(journal, [Job(TextToImage("a lake"), extra={"note": 1})])
        noted = await entered(journal, [Job(TextToImage("a lake"), extra={"note": 2}, line=7)])
        assert plain == noted
        [outcome] = [each async for each in journal.outcomes() if each.state == "queued"]
        assert (outcome.extra, outcome.line) == ({"note": 2}, 7)


async def test_folders_may_move(tmp_path: Path) -> None:
    """Relative paths are recognised wherever their folder is now, and found there."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(PNG)
    request = ImageToImage("make it red", images=["a.png"])
    async with Journal(tmp_path / "run.db") as journal:
        first = await entered(journal, [Job(request, folder=tmp_path / "old")])
        assert await entered(journal, [Job(request, folder=tmp_path / "new")]) == first
        [row] = await journal.take(Work.QUEUED, None, 10)
        assert row.request == ImageToImage("make it red", images=[str(tmp_path / "new" / "a.png")])


async def test_uploaded_files_are_addresses(tmp_path: Path) -> None:
    """What was uploaded before is kept by its address."""
    uploaded = UploadedFile("https://files.example/a.png", "a.png", 100, "image/png")
    async with Journal(tmp_path / "run.db") as journal:
        await entered(journal, [ImageToImage("make it red", images=[uploaded])])
        [row] = await journal.take(Work.QUEUED, None, 10)
        assert row.request == ImageToImage("make it red", images=[uploaded.url])


async def test_an_id_stands_for_one_request(tmp_path: Path) -> None:
    """A changed request under its id is sent as it is now, unless the old one was sent already."""
    async with emulated() as (flux, emulator), Journal(tmp_path / "run.db") as journal:
        await entered(journal, [Job(TextToImage("a lake"), id="n1")])
        assert await entered(journal, [Job(TextToImage("a hill"), id="n1")]) == ["n1"]
        await journal.aclose()
        await run(tmp_path, flux, [Job(TextToImage("a house"), id="n1")])
        assert prompts(emulator.ledger.requests) == ["a house"]
        with pytest.raises(InvalidInputError, match="'n1' stands for another request, which is done") as caught:
            await run(tmp_path, flux, [Job(TextToImage("a lake"), id="n2"), Job(TextToImage("a lake"), id="n1")])
        assert [line.line for line in caught.value.lines] == [2]
        assert len(emulator.ledger.requests) == 1


async def test_what_is_wrong_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    """Three bad ones among a thousand: all three are told with their lines, and nothing is sent or entered."""
    items: list[Any] = list(requests(1000))
    items[16] = Job(TextToImage("once"), id="a")
    items[499] = "no request"
    items[700] = Job(ImageToImage("make it red", images=["missing.png"]), folder=tmp_path)
    items[900] = Job(TextToImage("twice"), id="a")
    async with emulated() as (flux, emulator):
        with pytest.raises(InvalidInputError, match="3 of the requests cannot be used, so nothing was sent") as caught:
            await run(tmp_path, flux, items)
        assert [line.line for line in caught.value.lines] == [500, 701, 901]
        assert "str given, allowed are ImageToImage" in str(caught.value.lines[0])
        assert "images[0]: neither an existing file nor an address" in str(caught.value.lines[1])
        assert str(caught.value.lines[2]) == "line 901: id: 'a' stands in line 17 as well; give each line its own"
        assert emulator.ledger.requests == []
        async with Journal(tmp_path / "run.db") as journal:
            assert [outcome async for outcome in journal.outcomes()] == []


async def test_bad_ones_may_be_skipped(tmp_path: Path) -> None:
    """With skip_invalid the rest are made, and what was skipped can be looked at."""
    async with emulated() as (flux, emulator):
        batch = batch_in(tmp_path, flux, [*requests(2), 7, *requests(1, "other")], skip_invalid=True)
        await collect(batch)
        assert len(emulator.ledger.accepted) == 3
        assert [line.line for line in batch.invalid] == [3]
        assert batch.invalid_count == 1
        assert len(lines(tmp_path)) == 3


async def test_sources_of_done_requests_may_be_gone(tmp_path: Path) -> None:
    """Only what may be sent needs its files."""
    (tmp_path / "a.png").write_bytes(PNG)
    request = ImageToImage("make it red", images=[tmp_path / "a.png"])
    async with emulated() as (flux, emulator):
        await run(tmp_path, flux, [request])
        (tmp_path / "a.png").unlink()
        assert await run(tmp_path, flux, [request]) == []
        assert len(emulator.ledger.accepted) == 1


async def test_removed_lines_are_not_sent(tmp_path: Path) -> None:
    """What is no longer in the input is not sent; what was made for it stays in the results."""
    async with emulated() as (flux, emulator):
        await run(tmp_path, flux, requests(4), max_tasks=2)
        await run(tmp_path, flux, [*requests(1), TextToImage("number 3")])
        assert prompts(emulator.ledger.requests) == ["number 0", "number 1", "number 3"]
        assert sorted(line["prompt"] for line in lines(tmp_path)) == ["number 0", "number 1", "number 3"]


async def test_two_commits_wait_for_the_disk(tmp_path: Path) -> None:
    """The intent before the POST and the id of the task are on disk when their commit returns, the rest without."""
    said: list[str] = []
    async with emulated() as (flux, emulator), Journal(tmp_path / "run.db") as journal:
        await journal.read(lambda connection: connection.set_trace_callback(said.append))
        running = asyncio.create_task(collect(run_batch(flux, requests(1), journal=journal, directory=tmp_path)))
        await until(lambda: emulator.ledger.requests)
        at_post = list(said)
        await running
    assert _level(at_post, "'submitting'") == "EXTRA"
    assert at_post[-1] == "COMMIT"
    assert _level(said, "'submitted'") == "EXTRA"
    assert _level(said, "'done'") == "NORMAL"


def _level(statements: list[str], word: str) -> str:
    """The synchronous level under which the last UPDATE with this word ran."""
    level = ""
    found = ""
    for statement in statements:
        if statement.startswith("PRAGMA synchronous="):
            level = statement.partition("=")[2]
        if statement.startswith("UPDATE requests SET") and word in statement and "WHERE number = " in statement:
            found = level
    return found


async def test_results_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When writing results breaks off, the file of before stays and no other is left."""
    async with emulated() as (flux, _):
        await run(tmp_path, flux, requests(1))
        before = (tmp_path / "results" / "results.jsonl").read_text()

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("flux2_async.batch.results.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            await run(tmp_path, flux, requests(1), download=False)
    assert (tmp_path / "results" / "results.jsonl").read_text() == before
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["images", "results.jsonl"]


async def test_a_full_disk_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the intent cannot be written the POST does not leave."""
    async with emulated() as (flux, emulator), Journal(tmp_path / "run.db") as journal:

        async def sending(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(journal, "sending", sending)
        with pytest.raises(OSError, match="No space left"):
            await collect(run_batch(flux, requests(3), journal=journal, directory=tmp_path))
        assert emulator.ledger.requests == []


async def test_an_id_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the id of an accepted task cannot be written, the error names it, and the picture comes all the same."""
    async with emulated() as (flux, emulator), Journal(tmp_path / "run.db") as journal:

        async def accepted(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(journal, "accepted", accepted)
        with pytest.raises(OSError, match="No space left") as caught:
            await collect(run_batch(flux, requests(1), journal=journal, directory=tmp_path))
        assert emulator.ledger.accepted[0] in caught.value.__notes__[0]
        [outcome] = [each async for each in journal.outcomes()]
        assert (outcome.download, [outcome.task_id]) == ("saved", emulator.ledger.accepted)


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """No file of this process can become longer than the journal is."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


async def test_a_full_disk_is_told_as_such_and_changes_nothing_else(tmp_path: Path) -> None:
    """What finds no room raises OSError; what was to be committed with it, and what comes later, is written."""
    async with Journal(tmp_path / "run.db") as journal:
        await entered(journal, list(requests(3)))
        rows = await journal.take(Work.QUEUED, None, 3)
        huge = Failure(type="X", message="y" * 1_000_000)
        await journal.begin(Options())
        with full_disk(journal.path):
            first = asyncio.ensure_future(journal.failed(rows[0], Failure(type="X", message="y")))
            error, sent = await asyncio.gather(
                journal.failed(rows[1], huge), journal.sending(rows[2], "ref"), return_exceptions=True
            )
            assert isinstance(error, OSError)
            assert error.errno in (errno.ENOSPC, errno.EIO, errno.EFBIG)
            assert sent is None
            assert (await first).state == "failed"
            assert (await journal.failed(rows[2], Failure(type="X", message="y"))).state == "failed"
        assert [outcome.state async for outcome in journal.outcomes()] == ["failed", "queued", "failed"]


@pytest.mark.parametrize("prompt", ["a lake", "a lake " * 700], ids=["short", "long"])
@pytest.mark.parametrize("again", [False, True], ids=["first run", "next run"])
async def test_every_answer_has_its_room(tmp_path: Path, prompt: str, *, again: bool) -> None:
    """When the disk is full while POSTs are under way, each answer is kept, and nothing more is sent for ever."""
    path, items = tmp_path / "run.db", [TextToImage(f"{prompt} {number}") for number in range(100)]
    if again:
        async with Journal(path) as journal:
            await entered(journal, items)
            await journal.begin(Options())
    async with Journal(path) as journal:
        await entered(journal, items)
        await journal.begin(Options())
        rows = await journal.take(Work.QUEUED, None, 100)
        await asyncio.gather(*(journal.sending(row, f"{row.number:032}") for row in rows[:60]))
        with full_disk(path):
            late, *answers = await asyncio.gather(
                asyncio.gather(*(journal.unclear(row, Failure(type="X", message="y" * 30_000)) for row in rows[60:])),
                *(journal.accepted(row, f"{row.number:064}") for row in rows[:60]),
                return_exceptions=True,
            )
            assert isinstance(late, OSError)
            assert answers == [None] * 60
    async with Journal(path) as journal:
        tasks = [outcome.task_id async for outcome in journal.outcomes(state=State.SUBMITTED)]
        assert tasks == [f"{row.number:064}" for row in rows[:60]]
        await entered(journal, items)


async def test_no_room_for_an_answer(tmp_path: Path) -> None:
    """A POST whose answer would find no room is not sent."""
    path = tmp_path / "run.db"
    async with Journal(path) as journal:
        await entered(journal, list(requests(100)))
        await journal.begin(Options())
        rows = await journal.take(Work.QUEUED, None, 100)
        with full_disk(path):
            found = await asyncio.gather(
                *(journal.sending(row, f"{row.number:032}") for row in rows), return_exceptions=True
            )
            sent = [row for row, error in zip(rows, found, strict=True) if error is None]
            assert {type(error) for error in found if error is not None} == {OSError}
            await asyncio.gather(*(journal.accepted(row, f"{row.number:064}") for row in sent))
            refused = [row for row in rows if row not in sent]
            await asyncio.gather(*(journal.refused(row) for row in refused))
        assert len([None async for _ in journal.outcomes(state=State.SUBMITTED)]) == len(sent)
        assert len(await journal.take(Work.QUEUED, None, 100)) == len(refused) > 50


async def test_room_that_a_killed_process_had_no_time_to_free(tmp_path: Path) -> None:
    """It is free when the journal is opened again, and no damage."""
    path = tmp_path / "run.db"
    async with Journal(path) as journal:
        await entered(journal, list(requests(1)))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO runs VALUES (0, zeroblob(100000))")
        connection.commit()
    with path.open("ab") as file:
        file.write(bytes(100_000))
    async with Journal(path) as journal:
        assert len(await entered(journal, list(requests(1)))) == 1


async def test_a_cancelled_waiter_does_not_stop_a_write(tmp_path: Path) -> None:
    """What was asked for is written although nobody waits for it any more."""
    async with Journal(tmp_path / "run.db") as journal:
        await entered(journal, list(requests(1)))
        [row] = await journal.take(Work.QUEUED, None, 1)
        waiting = asyncio.create_task(journal.accepted(row, "t-1"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert [outcome.task_id async for outcome in journal.outcomes()] == ["t-1"]


async def test_a_read_finds_what_was_written_before(tmp_path: Path) -> None:
    """Also what waits for another commit to end."""

    def make(name: str) -> Any:
        return lambda connection: connection.execute(f"CREATE TEMP TABLE {name} (x)")

    async with aclosing(Database(tmp_path / "run.db")) as database:
        await database.open()
        writes = [database.write(make(name)) for name in ("one", "two")]
        found = await database.read(
            lambda connection: list(connection.execute("SELECT name FROM temp.sqlite_schema WHERE type = 'table'"))
        )
        assert [name for (name,) in found] == ["one", "two"]
        await asyncio.gather(*writes)


async def test_a_cancelled_read_behind_a_failure(tmp_path: Path) -> None:
    """Nobody complains of a failure that whoever asked for was told of."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with aclosing(Database(tmp_path / "run.db")) as database:
        await database.open()
        begun = [database.write(lambda connection: connection.execute("no SQL")) for _ in range(2)]
        reading = asyncio.create_task(database.read(lambda _: None))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading, *begun])
        assert [type(write.exception()) for write in begun] == [JournalError] * 2
    # Errors know their frames, which know what was to be written.
    del reading, begun
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


async def test_a_cancelled_closing_leaves_the_journal_free(tmp_path: Path) -> None:
    """What was to be written is written, and the file unlocked."""
    before, journal = {*threading.enumerate()}, Journal(tmp_path / "run.db")
    await journal.open()
    await entered(journal, list(requests(2)))
    rows = await journal.take(Work.QUEUED, None, 2)
    [thread] = [each for each in {*threading.enumerate()} - before if each.name.startswith("flux2 journal")]
    begun = [asyncio.create_task(journal.accepted(row, f"task {row.id}")) for row in rows]
    closing = asyncio.create_task(journal.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert all(write.done() for write in begun)
    thread.join(10.0)
    assert not thread.is_alive()
    async with Journal(tmp_path / "run.db") as journal:
        assert [outcome.task_id async for outcome in journal.outcomes()] == [f"task {row.id}" for row in rows]
