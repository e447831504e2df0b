"""`flux2 batch` as people and programs use it."""

import asyncio
import csv
import errno
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from file_host import picture

from flux2_async.batch import run as run_module
from flux2_async.cli import batch, commands, service
from flux2_async.cli.app import run
from flux2_async.cli.batch import _Interrupts
from flux2_async.emulator import Fault, Plan, Script
from flux2_async.models import Polling
from flux2_async.session.session import Flux2Session
from flux2_async.testing import RunningEmulator, running_emulator


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    quick = partial(Flux2Session, polling=Polling(interval=0.05))
    monkeypatch.setattr(service, "Flux2Session", quick)
    return tmp_path


@pytest.fixture
def account(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningEmulator]:
    with running_emulator(Script(plans=Plan(duration=0.1), render=False, credits=1000.0)) as emulator:
        monkeypatch.setenv("APIKLEY_API_KEY", emulator.api_key)
        monkeypatch.setenv("APIKLEY_BASE_URL", emulator.base_url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield emulator


def write(folder: Path, number: int, **fields: Any) -> None:
    jobs = [{"prompt": f"picture {n}"} | fields for n in range(number)]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))


def flux2(*words: str) -> int:
    return run(["batch", "jobs.jsonl", "--out", "results", "--rate-limit", "none", *words])


def ledger_prompts(emulator: RunningEmulator) -> list[str]:
    return [call.body["input"]["prompt"] for call in emulator.ledger.requests if call.body]


@contextmanager
def struck_when(*moments: Callable[[], bool]) -> Iterator[None]:
    """Press Ctrl-C each time that something is the case, one after the other."""
    over = threading.Event()

    def watch() -> None:
        for reached in moments:
            while not reached():
                if over.wait(0.005):
                    return
            os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def test_a_list_becomes_pictures(account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures, results.jsonl and report.html are in the folder; the summary tells what it cost; the code is 0."""
    write(here, 3, tier="pro", customer="Ada")
    assert flux2() == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "3 requests · 3 done",
        "15 credits · balance 1000 before, 985 now",
        f"Results: {Path('results') / 'results.jsonl'}",
        f"Report: {Path('results') / 'report.html'}",
    ]
    assert "flux2:" not in err
    assert len(list((here / "results" / "images").iterdir())) == 3
    report = (here / "results" / "report.html").read_text()
    assert "picture 2" in report
    assert "Ada" in report
    assert flux2("--json") == 0
    assert len(account.ledger.accepted) == 3


def test_a_folder_without_its_journal_is_not_paid_again(
    account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is sent where the results of a batch are and its journal is not, until the results are removed."""
    write(here, 1)
    assert flux2() == 0
    (here / "results" / "run.db").rename(here / "moved.db")
    for looked_only in ((), ("--dry-run",)):
        assert flux2(*looked_only) == 2
        assert "its journal 'results/run.db' is gone; put it back" in capsys.readouterr().err
    assert not (here / "results" / "run.db").exists()
    assert flux2("--journal", "moved.db") == 0
    assert len(account.ledger.accepted) == 1
    (here / "results" / "results.jsonl").unlink()
    assert flux2() == 0
    assert len(account.ledger.accepted) == 2


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", "\n\n"), ("a.json", "[]"), ("a.csv", "prompt,id\n")])
def test_an_empty_list(here: Path, capsys: pytest.CaptureFixture[str], name: str, content: str) -> None:
    """A list without a request is a mistake, and told as one."""
    (here / name).write_text(content)
    assert run(["batch", name, "--emulate"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"flux2: there is no request in '{name}'; it must hold one a line, with a prompt at least\n"
    assert not (here / "results").exists()


def test_machines_get_one_document(account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json stdout is one document, also when something is missing in the end."""
    write(here, 3)
    account.inject(Fault("createTask", "refuse", code=422, after=2))
    assert flux2("--json", "--no-report") == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["total"], document["done"], document["failed"], document["complete"]) == (3, 2, 1, False)
    assert (document["credits"], document["report"], document["error"]) == (28, None, None)
    assert document["again"] == "flux2 batch jobs.jsonl --out results --rate-limit none --json --no-report"


def test_csv_and_patterns(account: RunningEmulator, here: Path) -> None:
    """A spreadsheet, and a pattern with a prompt, are lists as well; paths begin at the list's folder."""
    (here / "lists").mkdir()
    (here / "lists" / "a b.png").write_bytes(picture(100))
    with (here / "lists" / "jobs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "images"), ("make it red", "a b.png")])
    assert run(["batch", "lists/jobs.csv", "--no-report", "--rate-limit", "none"]) == 0
    words = ["lists/*.png", "--prompt", "make it winter", "--tier", "pro", "--no-report", "--rate-limit", "none"]
    assert run(["batch", *words]) == 0
    assert ledger_prompts(account) == ["make it red", "make it winter"]
    bodies = [call.body for call in account.ledger.requests if call.body]
    assert [body["model"] for body in bodies] == ["flux-2/flex-image-to-image", "flux-2/pro-image-to-image"]
    assert [body["input"]["aspect_ratio"] for body in bodies] == ["auto", "auto"]
    assert len(account.ledger.uploads) == 2


def test_bad_lines_are_told_before_anything_is_sent(
    account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each bad line is told with its number and the code is 2; with --skip-invalid the others are made."""
    write(here, 3)
    with (here / "jobs.jsonl").open("a") as file:
        file.write('{"prompt": "ab"}\nnonsense\n')
    assert flux2() == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "line 4: prompt: 2 characters given, allowed are 3 to 5000"
    assert err[1].startswith("line 5: not JSON")
    assert err[2].startswith(
        "flux2: 2 requests cannot be used; nothing was sent. Correct the list, or go on without them with --skip-inv"
    )
    assert account.ledger.requests == []
    assert flux2("--skip-invalid") == 1
    assert "skipped: line 5: not JSON" in (captured := capsys.readouterr()).err
    assert captured.out.startswith("3 requests · 3 done · 2 skipped\n")


def test_an_id_that_stands_twice_is_told_beside_any_other_fault(
    account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of lines with a missing picture, and of those whose cell is no JSON, as of all others."""
    jobs = [
        {"prompt": "a lake", "id": "x", "images": ["none.png"]},
        {"prompt": "a hill", "id": "x", "images": ["no.png"]},
    ]
    (here / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    assert flux2() == 2
    err = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"line 1: images\[0\]: neither an existing file .*none\.png'\)", err[0])
    twice = "; id: 'x' stands in line {} as well; give each line its own"
    assert re.fullmatch(rf"line 2: images\[0\]: neither an existing file .*no\.png'\){twice.format(1)}", err[1])

    (here / "jobs.csv").write_text("prompt,id,extra_input\na lake,x,{\na hill,x,{")
    assert run(["batch", "jobs.csv"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[1].startswith("line 3: extra_input: not JSON (")
    assert err[1].endswith(twice.format(2))
    assert account.ledger.requests == []


def test_each_fault_is_told_once_with_its_lines(
    account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A column that is wrong in every line is one line; ids that stand twice are told beside what else is wrong."""
    rows = ["a kettle,x,pro", ",y,pro", "a lake,x,pro", "a hill,y,pro", *(f"picture {n},{n},max" for n in range(40))]
    (here / "jobs.csv").write_text("\n".join(["prompt,id,tier", *rows, "a dog,0,max"]))
    tier, advice = "tier: 'max' given, allowed are 'flex', 'pro'", "Correct the list, or go on"
    assert run(["batch", "jobs.csv"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "line 3: prompt: missing",
        "line 4: id: 'x' stands in line 2 as well; give each line its own",
        "line 5: id: 'y' stands in line 3 as well; give each line its own",
        f"lines 6, 7, 8, 9, 10 and 35 more: {tier}",
        f"line 46: {tier}; id: '0' stands in line 6 as well; give each line its own",
        f"flux2: 44 requests cannot be used; nothing was sent. {advice} without them with --skip-invalid",
    ]
    assert run(["batch", "jobs.csv", "--skip-invalid", "--no-report"]) == 1
    assert sorted(account.ledger.requests[n].body["input"]["prompt"] for n in range(2)) == ["a hill", "a kettle"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "one list of requests must be named"),
        (["a.jpg"], "or pictures, such as 'photos/*.jpg', with --prompt 'what to do with each'"),
        (["a.xlsx"], "a spreadsheet is saved as CSV UTF-8"),
        (["a.jsonl", "b.jsonl"], "one list of requests must be named"),
        (["missing.jsonl"], "there is no file 'missing.jsonl'"),
        (["--prompt", "make it red"], "it says what to do with pictures; name them"),
        (["jobs.jsonl", "--tier", "pro"], "in a list they stand in each line, as aspect_ratio"),
        (["jobs.jsonl", "--limit", "0"], "flux2: --limit: 0 given, it must be a whole number of 1 or more"),
        (["jobs.jsonl", "--max-credits", "-1"], "--max-credits: -1.0 given"),
        (["jobs.jsonl", "--max-running", "0"], "--max-running: 0 given"),
        (["jobs.jsonl", "--max-failed", "20"], "--max-failed: 20.0 given"),
        (["jobs.jsonl", "--task-timeout", "0"], "--task-timeout: 0.0 given"),
        (["jobs.jsonl", "--coordination", "redis"], "--coordination: allowed are host"),
        (["jobs.jsonl", "--out", "jobs.jsonl"], "--out: 'jobs.jsonl' is a file, it must be a folder"),
        (["jobs.jsonl", "--callback-url", "https://a.example/"], "it needs --callback-listen HOST:PORT"),
        (["jobs.jsonl", "--callback-listen", "0.0.0.0:80"], "it needs --callback-listen HOST:PORT"),
        (
            ["jobs.jsonl", "--callback-url", "https://a.example/", "--callback-listen", "0.0.0.0:80"],
            "export APIKLEY_CALLBACK_SECRET=",
        ),
        (["jobs.jsonl", "--out", "/proc/x"], "--out: the folder '/proc/x' cannot be written"),
        (["jobs.jsonl", "--journal", "jobs.jsonl"], "'jobs.jsonl' is not a journal"),
    ],
)
def test_wrong_usage(
    account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    """What cannot be followed is told with what to do, by a dry run as well; the code is 2, and nothing is sent."""
    write(here, 1)
    # Whether a folder can be written is only known to who writes.
    for looked_only in ((), ("--dry-run",))[: 1 if "/proc/x" in words else 2]:
        assert run(["batch", *words, *looked_only]) == 2
        assert reason in capsys.readouterr().err
    assert account.ledger.requests == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["jobs.jsonl", "--max-running", "0"], "--max-running: 0 given"),
        (["jobs.jsonl", "--max-failed", "2"], "--max-failed: 2.0 given"),
        (["jobs.jsonl", "--limit", "0"], "limit: 0 given"),
        (["jobs.jsonl", "--prompt", "make it red"], "'jobs.jsonl' is a list, whose requests have prompts of their own"),
        (["bad.jsonl"], "line 2: prompt: missing"),
        (["pipe.jsonl"], "'pipe.jsonl' is no regular file"),
    ],
)
def test_wrong_usage_before_the_network(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    """What can be known without the service is told although it cannot be reached, and nothing is left behind."""
    monkeypatch.setenv("APIKLEY_API_KEY", "key-0123456789abcdef")
    monkeypatch.setenv("APIKLEY_BASE_URL", "http://127.0.0.1:9")
    write(here, 1)
    (here / "bad.jsonl").write_text('{"prompt": "a lake"}\n{"id": "b"}\n')
    os.mkfifo(here / "pipe.jsonl")
    before = sorted(here.iterdir())
    assert run(["batch", *words]) == 2
    assert reason in capsys.readouterr().err
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("listen", ["8080", ":80", "host:", "host:99999", "host:x"])
def test_where_to_listen(
    account: RunningEmulator,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    listen: str,
) -> None:
    """What is no host and port is told."""
    monkeypatch.setenv("APIKLEY_CALLBACK_SECRET", "a secret")
    write(here, 1)
    assert flux2("--callback-url", "https://a.example/", "--callback-listen", listen) == 2
    assert "it must look like 0.0.0.0:8080" in capsys.readouterr().err


def test_callbacks(account: RunningEmulator, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an address and a place to listen, callbacks find what a lost reply hid."""
    monkeypatch.setenv("APIKLEY_CALLBACK_SECRET", "a secret of all runs")
    account.inject(Fault("createTask", "cut_after"))
    write(here, 2)
    with socket_port() as port:
        address = f"127.0.0.1:{port}"
    assert flux2("--callback-url", f"http://{address}/", "--callback-listen", address) == 0
    assert len(account.ledger.accepted) == 2


def test_a_port_that_is_taken(
    account: RunningEmulator, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where callbacks cannot be listened for, the option is named, and nothing is sent."""
    monkeypatch.setenv("APIKLEY_CALLBACK_SECRET", "a secret of all runs")
    write(here, 2)
    taken = account.base_url.removeprefix("http://")
    assert flux2("--callback-url", "https://a.example/", "--callback-listen", taken) == 2
    assert "--callback-listen: Address already in use; give another HOST:PORT" in capsys.readouterr().err
    assert not account.ledger.requests


@contextmanager
def socket_port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


def test_a_file_where_the_folder_is_to_be(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results do not go into a file."""
    write(here, 1)
    (here / "results").write_text("")
    assert flux2("--emulate") == 2
    assert capsys.readouterr().err == "flux2: --out: 'results' is a file, it must be a folder\n"


def test_no_credits(account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A refusal that meets all says how to go on; the same command then does."""
    write(here, 5)
    account.inject(Fault("createTask", "refuse", code=402, after=2, times=None))
    assert flux2("--max-running", "1") == 1
    out, err = capsys.readouterr()
    assert out.startswith("5 requests · 2 done · 3 queued\n")
    last = err.splitlines()[-1]
    assert last.startswith("flux2: 402: ")
    assert last.endswith("go on with: flux2 batch jobs.jsonl --out results --rate-limit none --max-running 1")


def test_a_cap(account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--max-credits and --max-tasks end with what is left and how to go on; the code is 1."""
    write(here, 5)
    assert flux2("--max-credits", "30", "--no-report") == 1
    err = capsys.readouterr().err
    assert "Stopped by --max-credits 30: 28 are spent, 0 reserved for what is running or unknown" in err
    again = "flux2 batch jobs.jsonl --out results --rate-limit none --max-credits MORE --no-report"
    assert f"Raise --max-credits and go on with: {again}" in err
    assert flux2("--max-credits=MORE", "--no-report") == 2
    capsys.readouterr()
    assert flux2("--max-tasks", "1", "--no-report") == 1
    out, err = capsys.readouterr()
    assert out.startswith("5 requests · 3 done · 2 queued\n")
    assert "\n42 credits in all runs, 14 of them in this one · balance 972 before, 958 now\n" in out
    assert "Stopped by --max-tasks 1: so many were started.\nGo on with: flux2 batch jobs.jsonl" in err
    assert account.ledger.charged == 42


def test_the_way_to_decide_names_the_journal(
    account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it was given, where it is not the usual one; the command finds the request there."""
    write(here, 1, id="a")
    account.inject(Fault("createTask", "cut_after"))
    assert flux2("--no-report", "--journal", "my runs.db") == 1
    assert "with: flux2 unknown results --journal 'my runs.db'. --retry-unknown" in capsys.readouterr().err
    assert run(["unknown", "results", "--journal", "my runs.db", "--never-made", "a"]) == 0


def test_many_unknown_requests(account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first ones are named, and it is told that there are more."""
    account.inject(Fault("createTask", "cut_after", times=12))
    write(here, 12)
    assert flux2("--no-report", "--max-tasks", "12") == 1
    listed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unknown: ")]
    assert len(listed) == 11
    assert listed[-1] == "unknown: 2 more"


def test_unknown_requests_are_listed(account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who may have paid unseen is told which, where to look, and what a retry may cost; the hint repeats no retry."""
    write(here, 2, id="a")
    (here / "jobs.jsonl").write_text('{"prompt": "picture", "id": "a", "tier": "pro"}\n')
    account.inject(Fault("createTask", "cut_after", times=2))
    assert flux2("--no-report") == 1
    out, err = capsys.readouterr()
    assert "1 request · 0 done · 1 unknown" in out
    assert "0 credits, and perhaps 5 more that no record has told (1 unknown) · balance" in out
    assert re.search(r"unknown: line 1 \(a\), submission [0-9a-f]{32}", err)
    assert "which may pay twice" in err
    assert flux2("--retry-unknown", "--json", "--no-report") == 1
    out, err = capsys.readouterr()
    assert "what was accepted unseen is paid a second time" in err
    assert "--retry-unknown" not in json.loads(out)["again"]
    assert flux2("--retry-unknown", "--no-report") == 0
    assert len(account.ledger.accepted) == 3


def test_a_wrong_key(
    account: RunningEmulator, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong key, and a service that is not there, are told before anything is entered."""
    write(here, 1)
    monkeypatch.setenv("APIKLEY_API_KEY", "wrong")
    assert flux2() == 1
    monkeypatch.setenv("APIKLEY_BASE_URL", "http://127.0.0.1:9")
    assert flux2() == 1
    monkeypatch.delenv("APIKLEY_API_KEY")
    assert flux2() == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("flux2: 401: ")
    assert "the connection was refused" in err[1]
    assert "no API key" in err[2]
    assert not (here / "results" / "results.jsonl").exists()


def test_a_balance_that_is_not_told(account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A service that will not tell the balance is no reason to make no pictures."""
    write(here, 1)
    account.inject(Fault("credit", "refuse", code=455, times=None))
    assert flux2("--no-report") == 0
    assert capsys.readouterr().out.splitlines()[1] == "14 credits"


def test_pictures_that_are_gone(account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture that cannot be had any more keeps the code at 1 in every run, and offers no going on."""
    account.script.result_life = account.script.file_life = 0.0
    write(here, 1)
    for _ in range(2):
        assert flux2("--no-report") == 1
        out, err = capsys.readouterr()
        assert out.startswith("1 request · 1 done · 1 no longer available\n")
        assert "Go on with" not in err
    assert len(account.ledger.accepted) == 1


def test_interrupted_while_the_list_is_read(
    account: RunningEmulator, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then nothing was sent, and that is said."""
    reading = threading.Event()

    class Endless:
        def __aiter__(self) -> "Endless":
            return self

        async def __anext__(self) -> object:
            reading.set()
            await asyncio.sleep(30)
            raise StopAsyncIteration

    monkeypatch.setattr(commands, "jobs", lambda *_: Endless())
    with struck_when(reading.is_set):
        assert flux2() == 130
    assert capsys.readouterr().err.splitlines()[-1] == "flux2: interrupted; nothing was sent"
    assert account.ledger.requests == []


def test_emulated(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--emulate needs no account, has a journal of its own, and sends anew what ended with the last emulator."""
    monkeypatch.delenv("APIKLEY_API_KEY", raising=False)
    write(here, 2)
    with struck_when((here / "results" / "emulated.db-wal").exists, lambda: True):
        assert flux2("--emulate", "--no-report") == 130
    assert flux2("--emulate", "--no-report") == 0
    assert "2 requests · 2 done" in capsys.readouterr().out
    assert sorted(path.name for path in (here / "results").iterdir()) == ["emulated.db", "images", "results.jsonl"]


def test_ctrl_c_once_waits_for_what_runs(
    account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing more is sent, what runs is saved, the code is 130, and the last line tells how to go on."""
    account.script.plans = Plan(duration=1.0)
    write(here, 12)
    with struck_when(lambda: len(account.ledger.accepted) >= 4):
        assert flux2("--max-running", "4") == 130
    out, err = capsys.readouterr()
    assert "nothing more is sent; 4 tasks are waited for, at most 120 s more; Ctrl-C again stops at once" in err
    assert out.startswith("12 requests · 4 done · 8 queued\n")
    assert err.splitlines()[-1].endswith(
        "interrupted; go on with: flux2 batch jobs.jsonl --out results --rate-limit none --max-running 4"
    )
    account.script.plans = Plan(duration=0.1)
    assert flux2() == 0
    assert len(account.ledger.accepted) == 12


def test_ctrl_c_twice_stops_now(account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What runs is left to the next run, which pays for none of it again."""
    account.script.plans = Plan(duration=3600.0)
    write(here, 4)
    with struck_when(lambda: len(account.ledger.accepted) == 4, (here / "struck").exists):
        original = _Interrupts.strike

        def strike(interrupts: _Interrupts) -> None:
            original(interrupts)
            (here / "struck").touch()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Interrupts, "strike", strike)
            assert flux2("--json") == 130
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["interrupted"], document["running"], document["done"]) == (True, 4, 0)
    assert "stopping now; what runs at the service is found by the next run" in err
    for task_id in account.ledger.accepted:
        account.finish(task_id)
    assert flux2() == 0
    assert len(account.ledger.accepted) == 4


def test_the_countdown_ends(account: RunningEmulator, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes longer than the countdown is left to the next run."""
    monkeypatch.setattr(batch, "STOPPING_MAX", 1)
    account.script.plans = Plan(duration=3600.0)
    write(here, 1)
    with struck_when(lambda: len(account.ledger.accepted) == 1):
        assert flux2() == 130


def test_ctrl_c_leaves_the_report_out(
    account: RunningEmulator, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupting the report alone leaves the summary and the code as they are."""
    begun, over = threading.Event(), threading.Event()

    async def slow(_: Path) -> Path:
        begun.set()
        await asyncio.sleep(30)
        over.set()
        return Path()

    monkeypatch.setattr(batch, "report", slow)
    write(here, 1)
    with struck_when(begun.is_set):
        assert flux2() == 0
    assert "Report:" not in capsys.readouterr().out
    assert not over.is_set()


def test_a_report_that_cannot_be_written(
    account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told, and the pictures are there all the same."""
    (here / "results" / "report.html").mkdir(parents=True)
    write(here, 1)
    assert flux2() == 0
    assert "the report was not written" in capsys.readouterr().err


@pytest.mark.parametrize("before", [False, True], ids=["first", "again"])
def test_the_end_names_no_file_that_is_not_of_this_run(
    account: RunningEmulator,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    before: bool,
) -> None:
    """On a disk that is full at the end it says so, and names no results and no report, also not those from before."""
    if before:
        write(here, 1)
        assert flux2() == 0
        capsys.readouterr()

    async def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_module, "write_results", full)
    write(here, 2)
    assert flux2("--json") == 1
    out, err = capsys.readouterr()
    end = json.loads(out)
    assert (end["done"], end["results"], end["report"]) == (2, None, None)
    assert "the report was not written, since results.jsonl was not" in err
    assert "No space left on device; go on with: flux2 batch" in err
    assert flux2() == 1
    out, _ = capsys.readouterr()
    assert len(out.splitlines()) == 2


def test_a_dry_run_tells_requests_credits_and_hours(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an account; nothing is made, and what is said of prices names where they come from."""
    write(here, 300)
    assert flux2("--dry-run") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "300 requests to send",
        "about 4200 credits",
        "  300 of flux-2/flex-text-to-image 1K at 14: as documented upstream, seen 2026-11-22",
        "about 1 min to 5 min, without a limit on this side",
    ]
    assert "Apikley publishes no prices, so yours may differ from these: the first picture that is done tells" in err
    assert "flex, the default tier, is the expensive one: as pro these 4200 credits would be 1500." in err
    assert [path.name for path in here.iterdir()] == ["jobs.jsonl"]
    assert run(["batch", "jobs.jsonl", "--dry-run", "--json", "--max-credits", "100"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["requests"], document["credits"]) == (300, 4200)
    assert document["hours"] == pytest.approx([148 / 3600, 285 / 3600])
    assert "--max-credits 100 will stop it before its end." in err


def test_a_cap_below_the_first_picture(
    account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--dry-run warns of it, and the run says why it has sent nothing and what is enough."""
    write(here, 3, tier="pro")
    assert flux2("--dry-run", "--max-credits", "15") == 0
    assert (
        "--max-credits 15 is too little to begin with: a first picture, whose price was not seen yet in this batch, "
        "counts with the dearest documented price, 24. Give --max-credits 24 or more.\n" in capsys.readouterr().err
    )
    assert flux2("--max-credits", "15", "--no-report") == 1
    err = capsys.readouterr().err
    assert "so its first picture counts with the dearest documented price; it is sent with --max-credits 24" in err
    assert account.ledger.accepted == []
    assert flux2("--max-credits", "24", "--no-report") == 0


def test_a_dry_run_goes_by_what_the_batch_has_seen(
    account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a first part its prices are those that were charged; nothing is sent, and the journal stays."""
    write(here, 5)
    assert flux2("--max-tasks", "2", "--no-report") == 1
    capsys.readouterr()
    sent = len(account.ledger.requests)
    assert flux2("--dry-run") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:3] == [
        "3 requests to send · 2 done",
        "about 42 credits, besides 28 spent before",
        "  3 of flux-2/flex-text-to-image 1K at 14: as this batch was charged",
    ]
    assert "publishes no prices" not in err
    assert len(account.ledger.requests) == sent
    (here / "jobs.jsonl").write_text('{"prompt": ""}\n')
    assert flux2("--dry-run") == 2
    assert "1 request cannot be used; nothing was sent" in capsys.readouterr().err


def test_a_broken_template_stops_the_night(
    account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--max-failed says what failed and how to go on; the code is 1, and the rest was not sent."""
    account.script.plans = Plan(duration=0.0, outcome="moderated")
    write(here, 200)
    assert flux2("--max-failed", "0.2", "--max-running", "5", "--no-report") == 1
    err = capsys.readouterr().err
    assert re.search(r"Stopped by --max-failed 0\.2: 2\d of the 2\d requests that have ended failed\.", err)
    assert "Look at what failed, correct the prompts, and go on with: flux2 batch jobs.jsonl --out results" in err
    assert 20 <= len(account.ledger.requests) <= 30


def test_the_price_that_is_found_out_is_told(
    account: RunningEmulator, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under --max-credits one picture goes ahead, and whoever looks on is told why nothing else does."""
    account.script.plans = Plan(duration=2.5)
    write(here, 3)
    assert flux2("--max-credits", "100", "--no-report") == 0
    err = capsys.readouterr().err
    words = "finding out the price of flux-2/flex-text-to-image 1K: one picture goes ahead, the others wait for what it"
    assert err.count(words) == 1


@pytest.mark.parametrize("fields", [{"tier": "cheap"}, {"images": ["nosuch.jpg"]}], ids=["list", "picture"])
@pytest.mark.parametrize("there", [False, True])
def test_a_list_that_is_refused_leaves_nothing_behind(
    account: RunningEmulator, here: Path, fields: dict[str, Any], *, there: bool
) -> None:
    """Neither a journal nor a folder made for it; a folder of before stays, and a good list then begins anew."""
    write(here, 2, **fields)
    before = {"jobs.jsonl"}
    if there:
        (here / "results").mkdir()
        before.add("results")
    assert flux2() == 2
    assert {str(path.relative_to(here)) for path in here.rglob("*")} == before
    assert account.ledger.requests == []

    write(here, 2)
    assert flux2() == 0
    write(here, 2, **fields)
    assert flux2() == 2
    assert (here / "results" / "run.db").exists()
