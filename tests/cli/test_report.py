"""`flux2 report`: the page of a batch written anew, and served."""

import asyncio
import json
import os
import re
import shutil
import socket
import threading
from pathlib import Path

import pytest
from batch_outcomes import Told, done, painted

from flux2_async import TextToImage
from flux2_async.batch import Journal
from flux2_async.batch.options import Options
from flux2_async.batch.outcomes import document
from flux2_async.cli.app import run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the results of a batch that died after its second picture."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results"
    painted(folder / "images/1.jpg")
    changes = Told(folder, 3)
    changes.tell(done(2, prompt="the second"))
    changes.tell(done(1, prompt="the first", files=("images/1.jpg",)))
    changes.end(remove=False)
    return tmp_path


def rows_of(page: Path) -> list[dict[str, object]]:
    found = re.search(r'<script type="application/json" id="rows">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    rows: list[dict[str, object]] = json.loads(found[1])
    return rows


def test_the_page_is_written_anew(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also for a batch that died, in the order of its input, under a headline of one's own; its path is printed."""
    assert run(["report", "results", "--title", "Winter"]) == 0
    out, err = capsys.readouterr()
    page = Path(out.strip())
    assert page == Path("results/report.html")
    assert [row["prompt"] for row in rows_of(page)] == ["the first", "the second"]
    assert "<title>Winter</title>" in page.read_text()
    # The third was not sent before the batch died, and its journal is elsewhere.
    assert "2 requests of 3, the rest was not sent yet; --serve shows them while a batch runs" in err
    assert run(["report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(page), "requests": 2}


def test_all_that_a_killed_run_knew_is_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was not sent stands in the journal alone, whose log is what a killed process leaves behind."""

    def counted() -> int:
        assert run(["report", "results", "--json"]) == 0
        return int(json.loads(capsys.readouterr().out)["requests"])

    ready, end = threading.Event(), threading.Event()
    running = threading.Thread(target=lambda: asyncio.run(held(here, ready, end)))
    running.start()
    try:
        assert ready.wait(30)
        # While it runs its journal is not touched.
        assert counted() == 2
    finally:
        end.set()
        running.join()
    for name in ("run.db", "run.db-wal"):
        shutil.move(here / name, here / "results" / name)
    assert [counted(), counted()] == [32, 32]


@pytest.mark.parametrize("gone", ["run.db", None], ids=["its journal was moved", "another run came later"])
def test_a_log_that_tells_nothing_new_is_left_alone(here: Path, gone: str | None) -> None:
    """Neither does a new journal take the place of one that was moved, nor are the last results those of an old run."""
    ready, end = threading.Event(), threading.Event()
    end.set()
    asyncio.run(held(here, ready, end))
    results, log = here / "results/results.jsonl", here / "results/run.db-wal"
    for name in ("run.db", "run.db-wal"):
        shutil.move(here / name, here / "results" / name)
    results.write_text(json.dumps(document(done(1))) + "\n")
    before, left = results.read_bytes(), log.read_bytes()
    at = log.stat().st_mtime + (-10 if gone else 10)
    os.utime(results, (at, at))
    if gone:
        (here / "results" / gone).unlink()
    assert run(["report", "results"]) == 0
    assert (results.read_bytes(), log.read_bytes()) == (before, left)
    assert (here / "results/run.db").exists() is (gone is None)


async def held(here: Path, ready: threading.Event, end: threading.Event) -> None:
    """Hold a journal of thirty requests, and put a copy beside it of what a kill would leave."""
    async with Journal(here / "results/run.db") as journal:
        await journal.enter([TextToImage(f"a lake, number {number}") for number in range(30)], Options())
        for name in ("run.db", "run.db-wal"):
            shutil.copy(here / "results" / name, here / name)
        ready.set()
        await asyncio.to_thread(end.wait, 60)


def test_a_written_page_asks_no_server(here: Path) -> None:
    """The file has no script that looks for events, and its policy no leave to ask anybody."""
    assert run(["report", "results"]) == 0
    text = (here / "results/report.html").read_text()
    assert "EventSource" not in text
    assert "connect-src" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["."], "'.' has no results.jsonl; name the folder that flux2 batch was given as --out"),
        (["nowhere", "--serve"], "there is no folder 'nowhere'; name the one that flux2 batch was given as --out"),
        (["list.csv"], "there is no folder 'list.csv'; name the one that flux2 batch was given as --out"),
        (["results", "--serve", "--port", "70000"], "--port: 70000 given, it must be 0 to 65535"),
    ],
)
def test_wrong_words_are_told(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    """Exit code 2 and what to give instead."""
    (here / "list.csv").write_text("prompt\na lake\n")
    assert run(["report", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and what to give instead."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["report", "results", "--serve", "--port", str(port)]) == 1
    assert re.search(
        rf"^flux2: 127.0.0.1:{port}: .*; give another --host or --port, where 0 takes a free one$",
        capsys.readouterr().err,
        re.MULTILINE,
    )
