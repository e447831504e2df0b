"""`flux2 unknown` as people and scripts use it."""

import contextlib
import io
import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from flux2_async.batch import run_state
from flux2_async.cli.app import run
from flux2_async.emulator import Fault, Plan, Script
from flux2_async.testing import RunningEmulator, running_emulator

LOST = Fault("createTask", "cut_after", 3)
BATCH = ["batch", "jobs.jsonl", "--out", "results", "--max-running", "1", "--no-report"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningEmulator, Path, str]]:
    """A batch of four in `results/`, three of which lost their replies; run once."""
    folder = tmp_path_factory.mktemp("batch")
    jobs = [{"id": f"shot={number}", "prompt": f"A lighthouse, number {number}\x1b[2J"} for number in range(4)]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    with running_emulator(Script(plans=Plan(duration=0.1), faults=[LOST], render=False)) as emulator:
        told = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(told):
            patch.chdir(folder)
            patch.setattr(run_state, "FIRST_PAUSE", 0.01)
            for name, value in account(emulator).items():
                patch.setenv(name, value)
            assert again() == 1, told.getvalue()
        yield emulator, folder, told.getvalue()


@pytest.fixture
def batch(ended: tuple[RunningEmulator, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunningEmulator:
    """A copy of it, in which a test may decide."""
    emulator, folder, _ = ended
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    for name, value in account(emulator).items():
        monkeypatch.setenv(name, value)
    return emulator


def account(emulator: RunningEmulator) -> dict[str, str]:
    return {"APIKLEY_API_KEY": emulator.api_key, "APIKLEY_BASE_URL": emulator.base_url, "NO_PROXY": "127.0.0.1"}


def again() -> int:
    return run(BATCH)


def ids() -> dict[str, str]:
    """The states by id."""
    with contextlib.closing(sqlite3.connect("results/run.db")) as connection:
        return dict(connection.execute("SELECT id, state FROM requests ORDER BY line"))


def test_a_script_lists_and_decides(batch: RunningEmulator, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON with all that a script needs; a task is named, one was never made, one stays; the next run acts on it."""
    assert run(["unknown", "results", "--json"]) == 1
    listed = json.loads(capsys.readouterr().out)["unknown"]
    assert [request["id"] for request in listed] == ["shot=0", "shot=1", "shot=2"]
    assert listed[0]["prompt"] == "A lighthouse, number 0\x1b[2J"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d.*\+00:00", listed[0]["sent_at"])

    first, before = batch.ledger.accepted[0], len(batch.ledger.accepted)
    assert run(["unknown", "results", "--task", f"shot=0={first}", "--never-made", "shot=1"]) == 1
    out, err = capsys.readouterr()
    assert "1 of 1: shot=2 (line 3), sent " in out
    assert "2 requests decided; the next run of flux2 batch acts on it" in err
    assert again() == 1
    assert ids() == {"shot=0": "done", "shot=1": "done", "shot=2": "unknown", "shot=3": "done"}
    # Four were accepted, and the one that was said to be never made once more.
    assert len(batch.ledger.accepted) == before + 1


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_list_decides_many(batch: RunningEmulator, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """A task, one that was never made, and one that is left for later; such a list begins as what --json gives."""
    assert run(["unknown", "results", "--json"]) == 1
    listed = json.loads(capsys.readouterr().out)["unknown"]
    given = zip(listed, [batch.ledger.accepted[0], "never made", ""], strict=True)
    rows = [request | {"task_id": said} for request, said in given]
    if kind == "csv":
        text = "id;task_id\n" + "".join(f"{row['id']};{row['task_id']}\n" for row in rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    Path(f"decisions.{kind}").write_text(text)

    assert run(["unknown", "results", "--decisions", f"decisions.{kind}"]) == 1
    assert "2 requests decided" in capsys.readouterr().err
    assert list(ids().values()) == ["submitted", "queued", "unknown", "done"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,prompt\n", "the header of a CSV file must name its columns, task_id among them"),
        (
            "id,task_id\nshot=0,f00\nshot=0,f01\n",
            "--decisions: line 3: 'shot=0' is given two tasks, the other one by --decisions: line 2;",
        ),
        (
            "id,task_id\nshot=0,f00\nshot=1,f01\nshot=2,f00\n",
            "--decisions: line 4: task f00 is given to 'shot=2', and by --decisions: line 2 to 'shot=0';",
        ),
        ("id,task_id\n,f00\n", '--decisions: line 2: it must have an id, and as task_id a task, "never made" or'),
        ("id,task_id\nshot=0\n", "--decisions: line 2: 1 cells given, the header names 2"),
    ],
)
def test_a_wrong_list_changes_nothing(
    batch: RunningEmulator, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    """It is told which line says what."""
    before = ids()
    Path("decisions.csv").write_text(text)
    assert run(["unknown", "results", "--decisions", "decisions.csv", "--no-check"]) == 2
    assert message in capsys.readouterr().err
    assert ids() == before


def test_a_list_that_is_not_there(batch: RunningEmulator, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a mistake of the command line, as it is for `flux2 batch`."""
    assert run(["unknown", "results", "--decisions", "nofile.csv"]) == 2
    assert "--decisions: there is no file 'nofile.csv'" in capsys.readouterr().err


def test_results_say_when_an_unknown_request_was_sent(
    batch: RunningEmulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """The moment to look for in the task log; it was not accepted as far as anybody knows."""
    assert run(["unknown", "results", "--json"]) == 1
    listed = {request["id"]: request["sent_at"] for request in json.loads(capsys.readouterr().out)["unknown"]}
    results = {
        result["id"]: result for result in map(json.loads, Path("results/results.jsonl").read_text().splitlines())
    }
    assert {name: results[name]["sent_at"] for name in listed} == listed
    assert [results[name]["submitted_at"] for name in listed] == [None] * 3
    assert results["shot=3"]["sent_at"] <= results["shot=3"]["submitted_at"]


def test_the_end_of_a_batch_names_the_command(ended: tuple[RunningEmulator, Path, str]) -> None:
    """Before the way that may pay twice."""
    assert "say what became of each with: flux2 unknown results. --retry-unknown sends all of them again" in ended[2]


def test_a_list_for_people(batch: RunningEmulator, capsys: pytest.CaptureFixture[str]) -> None:
    """Time with its zone, prompt, where to look and what to type; nothing of a prompt steers the terminal."""
    assert run(["unknown", "results"]) == 1
    out, err = capsys.readouterr()
    assert "A lighthouse, number 2" in out
    assert out.count("may exist and cost money") == 1
    assert "\x1b" not in out + err
    assert "3 requests may have been accepted and paid for, which nobody knows: check the task log" in err
    assert f"({batch.base_url}/ledger)" in err
    [sent, *_] = re.findall(r"1 of 3: .*, sent (.*), flux", out)
    assert re.fullmatch(r"\d\d \w{3} \d{4} \d\d:\d\d:\d\d \S+", sent)
    assert "--task ID=TASK_ID or --never-made ID" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["results", "--task", "shot=0"], "request 'shot' is given|no request of the journal has the id 'shot'"),
        (["results", "--task", "nonsense"], "--task: 'nonsense' given, it must look like ID=TASK_ID"),
        (["results", "--task", "a=b", "--task", "a=c"], "--task: 'a' is given two tasks"),
        (["results", "--task", "a=b", "--task", "c=b"], "--task: task b is given to 'c', and by --task to 'a'"),
        (["results", "--never-made", "shot=3"], "request 'shot=3' .line 4. is done, and only unknown ones are decided"),
        (["nowhere"], "there is no journal 'nowhere/run.db'; name the folder"),
    ],
)
def test_wrong_words_change_nothing(
    batch: RunningEmulator, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    """Exit code 2 and a sentence that says what to give; no journal is made where there is none."""
    before = ids()
    assert run(["unknown", *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert ids() == before
    assert not Path("nowhere").exists()


def test_a_task_is_looked_at_before_it_is_written_down(
    batch: RunningEmulator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that the service does not know, or made of another prompt, changes nothing, unless told to.

    A service that does not answer is no hindrance, nor is having no key.
    """
    other = batch.ledger.accepted[1]
    assert run(["unknown", "results", "--task", f"shot=0={'0' * 32}"]) == 2
    assert f"does not know task {'0' * 32}" in capsys.readouterr().err
    assert run(["unknown", "results", "--task", f"shot=0={other}", "--never-made", "shot=1"]) == 2
    told = capsys.readouterr().err
    assert f"--task: task {other} is not that of 'shot=0'; it was made of 'A lighthouse, number 1" in told
    Path("wrong.csv").write_text(f"id,task_id\nshot=2,{batch.ledger.accepted[2]}\nshot=0,{other}\n")
    assert run(["unknown", "results", "--decisions", "wrong.csv"]) == 2
    told = capsys.readouterr().err
    assert f"--decisions: line 3: task {other} is not that of 'shot=0'; it was made of 'A lighthouse, number 1" in told
    assert told.rstrip().endswith(
        ", the prompt of 'shot=1': give it to that one; nothing was changed; --no-check takes it nevertheless"
    )
    assert list(ids().values()) == ["unknown", "unknown", "unknown", "done"]
    assert run(["unknown", "results", "--task", f"shot=0={other}", "--no-check"]) == 1
    batch.inject(Fault("recordInfo", "html", times=1))
    assert run(["unknown", "results", "--task", "shot=1=f00"]) == 1
    assert "task f00 could not be checked" in capsys.readouterr().err
    monkeypatch.delenv("APIKLEY_API_KEY")
    assert run(["unknown", "results", "--task", "shot=2=f01"]) == 0
    assert list(ids().values()) == ["submitted", "submitted", "submitted", "done"]


def test_a_journal_in_use_is_left_alone(batch: RunningEmulator, capsys: pytest.CaptureFixture[str]) -> None:
    """While another process has it nothing is read and nothing decided."""
    with contextlib.closing(sqlite3.connect("results/run.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        assert run(["unknown", "results", "--never-made", "shot=0"]) == 2
        assert "is being used by another process" in capsys.readouterr().err
        other.execute("ROLLBACK")
    assert ids()["shot=0"] == "unknown"


def test_nothing_unknown_is_told(batch: RunningEmulator, capsys: pytest.CaptureFixture[str]) -> None:
    """0, once all is decided."""
    words = [word for number in range(3) for word in ("--never-made", f"shot={number}")]
    assert run(["unknown", "results", *words]) == 0
    assert run(["unknown", "results"]) == 0
    assert "no request is unknown" in capsys.readouterr().err


@attrs.define
class Terminal:
    """A command in a terminal, with somebody who types."""

    process: "subprocess.Popen[bytes]"
    master: int
    seen: str = ""

    def until(self, text: str) -> str:
        """Read until this is there; gives what came before it."""
        while text not in self.seen:
            self.seen += os.read(self.master, 4096).decode()
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.master, f"{text}\n".encode())

    def rest(self) -> str:
        """Read to the end."""
        # Linux ends a terminal whose other side is gone with an error.
        with contextlib.suppress(OSError):
            while chunk := os.read(self.master, 4096):
                self.seen += chunk.decode()
        return self.seen


@contextlib.contextmanager
def asking() -> Iterator[Terminal]:
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "flux2_async.cli", "unknown", "results"]
    with subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:  # noqa: S603  ours
        os.close(slave)
        try:
            yield Terminal(process, master)
        finally:
            process.kill()
            os.close(master)


def test_each_is_asked_for(batch: RunningEmulator) -> None:
    """Prompt and time are shown; nonsense and a task of another request are asked again; what is decided is kept."""
    second = batch.ledger.accepted[1]
    taken = batch.ledger.accepted[3]
    with asking() as terminal:
        assert "A lighthouse, number 0" in terminal.until("> ")
        for wrong in ("what?", "t", "n maybe", "t two words"):
            terminal.type(wrong)
            terminal.until("> ")
        terminal.type(f"t {taken}")
        told = " ".join(terminal.until("> ").split())
        assert "is not that of 'shot=0'; it was made of 'A lighthouse, number 3" in told
        assert "give it to that one" not in told
        terminal.type("l")
        assert "A lighthouse, number 1" in terminal.until("> ")
        terminal.type(f"t {second}")
        terminal.until("> ")
        terminal.type("n")
        terminal.rest()
        assert terminal.process.wait(20) == 1
    assert ids() == {"shot=0": "unknown", "shot=1": "submitted", "shot=2": "queued", "shot=3": "done"}


def test_ctrl_c_keeps_what_was_decided(batch: RunningEmulator) -> None:
    """130, at once, and the others are as they were."""
    with asking() as terminal:
        begin = terminal.until("> ")
        assert "3 requests may have been accepted and paid for" in begin
        assert "is there a task of that time and prompt?" in begin.replace("\r\n", " ")
        terminal.type("n")
        terminal.until("> ")
        terminal.process.send_signal(signal.SIGINT)
        assert "interrupted; what was decided is kept" in terminal.rest()
        assert terminal.process.wait(20) == 130
    assert ids() == {"shot=0": "queued", "shot=1": "unknown", "shot=2": "unknown", "shot=3": "done"}


@pytest.mark.parametrize("end", ["q\n", "\x04"], ids=["q", "end of file"])
def test_who_stops_answering_is_not_asked_further(batch: RunningEmulator, end: str) -> None:
    """`q` and Ctrl-D leave the rest unknown."""
    with asking() as terminal:
        terminal.until("> ")
        os.write(terminal.master, end.encode())
        terminal.rest()
        assert terminal.process.wait(20) == 1
    assert list(ids().values()) == ["unknown", "unknown", "unknown", "done"]
