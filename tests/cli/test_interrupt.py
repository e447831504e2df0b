"""Ctrl-C at every moment of a command, in this process; and a demo that does not go as planned."""

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from anyio.from_thread import start_blocking_portal
from emulated import look_often
from file_host import picture
from PIL import Image

from flux2_async.cli import demo, script
from flux2_async.cli.app import run
from flux2_async.cli.run import followed
from flux2_async.cli.screen import Screen
from flux2_async.cli.sheet import BLUSH, STAGE
from flux2_async.emulator import Emulator, Fault, Limit, Plan, Script
from flux2_async.session.session import Flux2Session


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a demo of few and quick requests."""
    monkeypatch.chdir(tmp_path)
    few = (script.WISHES[0], script.WISHES[8], script.WISHES[4])
    monkeypatch.setattr(script, "WISHES", few)
    monkeypatch.setattr(demo, "WISHES", few)
    monkeypatch.setattr(script, "PACE", 0.1)
    look_often(monkeypatch)
    return tmp_path


@contextmanager
def account(monkeypatch: pytest.MonkeyPatch, *faults: Fault) -> Iterator[Emulator]:
    """An account at a service whose tasks never end by themselves."""
    endless = Script(plans=Plan(duration=float("inf")))
    endless.faults.extend(faults)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Emulator(endless)) as emulator:
        monkeypatch.setenv("APIKLEY_API_KEY", emulator.api_key)
        monkeypatch.setenv("APIKLEY_BASE_URL", emulator.base_url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(Flux2Session.aclose, "__defaults__", (0.2,))
        yield emulator


@contextmanager
def ctrl_c_when(reached: Callable[[], bool], number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """Send this process a real signal as soon as something is the case."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            if reached():
                os.kill(os.getpid(), number)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def test_machines_are_told_of_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json an interruption is a document too, and names the task that is paid for."""
    with account(monkeypatch) as emulator:
        with ctrl_c_when(lambda: emulator.ledger.polls > 0):
            assert run(["generate", "A lighthouse", "--json"]) == 130
        [task_id] = emulator.ledger.accepted
    error = json.loads(capsys.readouterr().out)["error"]

    assert (error["type"], error["task_id"]) == ("Interrupted", task_id)


def test_who_stops_the_process_learns_the_task_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM, as service managers and containers send it, is taken as Ctrl-C, also where that is ignored."""
    before = [(each, signal.signal(each, signal.SIG_IGN)) for each in (signal.SIGTERM, signal.SIGINT)]
    try:
        with account(monkeypatch) as emulator:
            with ctrl_c_when(lambda: emulator.ledger.polls > 0, signal.SIGTERM):
                assert run(["generate", "A lighthouse"]) == 130
            [task_id] = emulator.ledger.accepted
    finally:
        for each, handler in before:
            signal.signal(each, handler)
    assert f"flux2 status {task_id} --wait" in capsys.readouterr().err


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_closed_ends_it(monkeypatch: pytest.MonkeyPatch, *, ignored: bool) -> None:
    """SIGHUP is taken as Ctrl-C, but stays ignored where it is, as by `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with account(monkeypatch) as emulator:
            ledger = emulator.ledger
            with ctrl_c_when(lambda: ledger.polls > 0, signal.SIGHUP):
                # Only where nobody minds a closed terminal is it ended otherwise, some looks later.
                with ctrl_c_when(lambda: ignored and ledger.polls > 10):
                    assert run(["generate", "A lighthouse"]) == 130
            assert ledger.polls > (10 if ignored else 0)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_always_wakes_the_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A Ctrl-C in the instant in which the loop goes to sleep is noticed: signals write to a descriptor it watches."""
    watched: list[int] = []

    def tell(*_: object) -> None:
        descriptor = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(descriptor)
        watched.append(descriptor)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Screen, "document", tell)
    assert run(["emulator", "--port", "0"]) == 0
    assert watched != [-1]


def test_an_accepted_task_is_named_with_the_way_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted while the task runs: exit code 130 and the command that goes on."""
    with account(monkeypatch) as emulator:
        with ctrl_c_when(lambda: emulator.ledger.polls > 0):
            assert run(["generate", "A lighthouse", "-o", "a b.png"]) == 130
        [task_id] = emulator.ledger.accepted
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"flux2: interrupted; the task goes on at the service, go on with: flux2 status {task_id} --wait -o 'a b.png'"
    )


def test_a_wait_for_an_older_task_names_it_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupting `status --wait` leaves the same command."""
    with account(monkeypatch) as emulator, ctrl_c_when(lambda: emulator.ledger.polls > 0):
        assert run(["status", "abc", "--wait"]) == 130
    assert capsys.readouterr().err.endswith("go on with: flux2 status abc --wait\n")


def test_a_request_under_way_is_said_to_be_possibly_accepted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted while createTask has no answer: the user is told to look before paying again."""
    with account(monkeypatch, Fault("createTask", "hang", accepted=True)) as emulator:
        with ctrl_c_when(lambda: bool(emulator.ledger.accepted)):
            assert run(["generate", "A lighthouse"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert "may have been accepted: check the task log of your account (http://127.0.0.1:" in last
    assert "nothing was sent" not in last


def test_before_anything_was_sent_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    """Interrupted during the upload: nothing was accepted, and the words say that."""
    (here / "a.png").write_bytes(picture(100))
    with account(monkeypatch, Fault("upload", "hang", times=None)) as emulator:
        with ctrl_c_when(lambda: emulator.ledger.in_flight["upload"] > 0):
            assert run(["edit", "Make it blue", "a.png"]) == 130
        assert emulator.ledger.requests == []
    assert capsys.readouterr().err.endswith("flux2: interrupted; nothing was sent\n")


def test_an_emulated_task_is_not_said_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was emulated ended with the command, so that no way on is offered."""
    seen = threading.Event()
    _set_when_called(monkeypatch, "flux2_async.cli.run.followed", seen, followed)
    with ctrl_c_when(seen.is_set):
        assert run(["generate", "A lighthouse", "--emulate"]) == 130
    assert capsys.readouterr().err.endswith("flux2: interrupted; the emulated service ended with this command\n")


def test_the_emulator_takes_it_as_its_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`emulator` prints its settings, with NO_PROXY where a proxy would be in the way, and ends with 0."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    told = threading.Event()
    _set_when_called(monkeypatch, "flux2_async.cli.screen.Screen.document", told, Screen.document)
    with ctrl_c_when(told.is_set):
        assert run(["emulator", "--port", "0"]) == 0
    out, err = capsys.readouterr()
    names = [line.removeprefix("export ").partition("=")[0] for line in out.splitlines()]
    assert names == ["APIKLEY_API_KEY", "APIKLEY_BASE_URL", "APIKLEY_UPLOAD_URL", "NO_PROXY"]
    assert err.endswith("stopped; 0 tasks were accepted\n")


def test_an_interrupted_demo_says_that_nothing_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    """The demo's tasks end with it; the contact sheet shows what ran, and not as failed."""
    seen = threading.Event()
    _set_when_called(monkeypatch, "flux2_async.cli.demo.followed", seen, followed)
    with ctrl_c_when(seen.is_set):
        assert run(["demo"]) == 130
    out, err = capsys.readouterr()
    assert err.endswith("flux2: interrupted; the emulated service ended with its tasks\n")
    assert out == "Contact sheet: flux2-demo/contact-sheet.png\n"
    with Image.open(here / "flux2-demo/contact-sheet.png") as drawn:
        colours = {colour for _, colour in drawn.getcolors(1 << 24) or []}
    assert STAGE in colours
    assert BLUSH not in colours


def test_a_demo_that_fails_where_it_should_not_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    """Only the moderated request may fail: another one makes exit code 1, and still a contact sheet."""
    planned = script.demo_script

    def broken(limit: Limit) -> Script:
        made = planned(limit)
        plans = made.plans
        assert callable(plans)
        made.plans = lambda index, body: attrs.evolve(plans(index, body), outcome="fail")
        return made

    monkeypatch.setattr(demo, "demo_script", broken)
    assert run(["demo", "--rate-limit", "none"]) == 1
    assert "flux2: 3 of 3 requests ended otherwise than planned: " in capsys.readouterr().err
    assert (here / "flux2-demo" / "contact-sheet.png").exists()


def test_the_table_of_a_demo_tells_each_outcome(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    """For people: a row per request, what was on purpose, and the path of the contact sheet last."""
    assert run(["demo", "--rate-limit", "none"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line.split()[-4] for line in lines[1:4]] == ["picture", "moderated", "picture"]
    assert lines[4:6] == ["", lines[5]]
    assert lines[5].startswith("3 requests · 2 pictures · 1 moderated · ")
    assert any(line.startswith("Request 2 was refused by moderation") for line in lines)
    waited = re.search(r"was refused by 429 at first, waited (\d+\.\d) s and was paid once", "\n".join(lines))
    assert waited is not None
    assert float(waited[1]) >= 1.0
    assert lines[-1] == f"Contact sheet: {Path('flux2-demo') / 'contact-sheet.png'}"
    assert len(list((here / "flux2-demo").iterdir())) == 3


def _set_when_called(monkeypatch: pytest.MonkeyPatch, name: str, event: threading.Event, original: Any) -> None:
    def called(*arguments: Any) -> Any:
        event.set()
        return original(*arguments)

    monkeypatch.setattr(name, called)
