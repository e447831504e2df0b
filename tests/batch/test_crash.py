"""`flux2 batch` killed at any moment, cut off, refused, out of disk: nothing lost, nothing paid twice."""

import json
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from batch_process import Processes, zygote

from flux2_async.emulator import Fault, Limit, Plan, Script, files
from flux2_async.testing import RunningEmulator, running_emulator

# Up to a dozen starts of the command, which take their time on a busy machine.
pytestmark = pytest.mark.timeout(300)

WORDS = ("batch", "jobs.jsonl", "--out", "results", "--no-report", "--rate-limit", "4/0.05")
# Large enough to be caught half written.
PADDING = bytes(range(256)) * 400


@attrs.define
class Case:
    """A list of requests, a service, and what is known of them."""

    folder: Path
    processes: Processes
    emulator: RunningEmulator
    unknown: set[str] = attrs.field(factory=set)

    def write(self, number: int) -> None:
        jobs = [{"prompt": f"picture {n}", "id": f"r{n}", "tier": "pro"} for n in range(number)]
        (self.folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))

    def calls(self) -> Counter[str]:
        """The service's count of calls, which goes on."""
        return self.emulator._emulator.ledger.calls

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "results" / "results.jsonl").read_text().splitlines()]

    def finish(self, number: int) -> None:
        """Run to the end, then once more for what is unknown."""
        assert self.processes.run(*WORDS) in (0, 1), self.processes.said()
        self.unknown |= {str(line["id"]) for line in self.lines() if line["state"] == "unknown"}
        # A lost reply may hit the retry as well.
        for _ in range(5):
            if self.processes.run(*WORDS, "--retry-unknown") == 0:
                break
            self.unknown |= {str(line["id"]) for line in self.lines() if line["state"] == "unknown"}
        self.check(number)

    def check(self, number: int) -> None:
        """Every request has its whole picture; what was accepted twice had been listed as unknown."""
        lines = self.lines()
        assert [line["id"] for line in lines] == [f"r{n}" for n in range(number)]
        assert {str(line["state"]) for line in lines} == {"done"}, self.processes.said()
        for line in lines:
            [file] = line["files"]
            assert (self.folder / "results" / file).read_bytes() == large(f"{line['task_id']}/0")
        assert [path.name for path in (self.folder / "results").iterdir() if path.name.endswith(".part")] == []
        accepted = Counter(
            call.body["input"]["prompt"]
            for call in self.emulator.ledger.requests
            if call.outcome == "accepted" and call.body
        )
        twice = {prompt.replace("picture ", "r") for prompt, count in accepted.items() if count > 1}
        assert twice <= self.unknown
        assert len(accepted) == number


original = files.tiny_png


def large(text: str) -> bytes:
    return original(text) + PADDING


@pytest.fixture(scope="module")
def parent() -> Iterator["subprocess.Popen[str]"]:
    """What all processes of these tests are forked from."""
    with zygote() as started:
        yield started


@pytest.fixture
def header() -> str | None:
    """By what the service knows a createTask again; the tests that ask for it run in both worlds."""
    return None


both_worlds = pytest.mark.parametrize("header", [None, "X-Request-ID"], ids=["nameless", "named"])


@pytest.fixture
def case(
    parent: "subprocess.Popen[str]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str | None
) -> Iterator[Case]:
    monkeypatch.setattr(files, "tiny_png", large)
    script = Script(
        plans=lambda index, _: Plan(duration=0.05 + index % 7 * 0.03),
        limit=Limit(4, 0.05),
        credits=1e6,
        render=False,
        latency=0.01,
        idempotency_header=header,
    )
    with running_emulator(script) as emulator:
        environ = {"APIKLEY_API_KEY": emulator.api_key, "APIKLEY_BASE_URL": emulator.base_url}
        environ["TEST_IDEMPOTENCY_HEADER"] = header or ""
        yield Case(tmp_path, Processes(parent, tmp_path, environ), emulator)


@both_worlds
def test_killed_ten_times(case: Case, header: str | None) -> None:
    """Killed at ten random instants of a run of 120 requests, others in either world, and started again until done."""
    moments = random.Random(f"{header}")
    case.write(120)
    calls = case.calls()
    for kill in range(10):
        # By what has happened rather than by the clock, so that a busy machine is as good a test; and now and then by
        # the clock, for what happens before the first call.
        enough = calls.total() + moments.randint(2, 40)
        child = case.processes.start(*WORDS)
        over = time.monotonic() + (moments.uniform(0.0, 0.5) if kill % 5 == 0 else 5.0)
        while calls.total() < enough and time.monotonic() < over:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.05))
        case.processes.kill(child)
        assert case.processes.code(child) == -9, case.processes.said()
    case.finish(120)
    # At most what was on the wire at each kill.
    assert len(case.unknown) <= (0 if header else 10 * 4)
    assert case.emulator.ledger.refused == 0


def test_the_service_is_killed_and_comes_back(case: Case) -> None:
    """All connections are cut and refused for a while, several times; the same process goes on by itself."""
    moments = random.Random(4)
    case.write(60)
    calls = case.calls()
    child = case.processes.start(*WORDS)
    for _ in range(2):
        enough = calls.total() + moments.randint(10, 40)
        while calls.total() < enough:
            time.sleep(0.001)
        case.emulator.stop()
        time.sleep(0.2)
        case.emulator.start()
    assert case.processes.code(child) in (0, 1), case.processes.said()
    case.finish(60)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_being_told_to_end(case: Case, name: str) -> None:
    """As a machine that shuts down, or a terminal that is closed, tells it: what runs is saved, nothing is unknown."""
    if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as below nohup, and so it is by a command that is started here")
    case.write(100)
    calls = case.calls()
    child = case.processes.start(*WORDS)
    while calls.total() < 60:
        time.sleep(0.001)
    case.processes.kill(child, getattr(signal, name))
    assert case.processes.code(child) == 130
    assert "interrupted; go on with: flux2 batch jobs.jsonl" in case.processes.said()
    assert {line["state"] for line in case.lines()} == {"done", "queued"}
    case.finish(100)
    assert case.unknown == set()


@both_worlds
def test_everything_at_once(case: Case, header: str | None) -> None:
    """5 % 429, 5 % 502 and 2 % lost replies on createTask, 5 % 502 on the other calls, and two kills on top."""
    luck = random.Random(8)
    for task in range(100):
        kind = luck.random()
        if kind < 0.05:
            case.emulator.inject(Fault("createTask", "refuse", task=task, retry_after="0.1"))
        elif kind < 0.10:
            case.emulator.inject(Fault("createTask", "html", task=task, status=502, accepted=luck.random() < 0.5))
        elif kind < 0.12:
            case.emulator.inject(Fault("createTask", "cut_after", task=task))
        if luck.random() < 0.05:
            case.emulator.inject(Fault("recordInfo", "html", task=task, status=502))
        if luck.random() < 0.05:
            case.emulator.inject(Fault("file", "cut_body", task=task))
    case.write(60)
    calls = case.calls()
    for count in (40, 80):
        enough = calls.total() + count
        child = case.processes.start(*WORDS)
        while calls.total() < enough:
            time.sleep(0.001)
        case.processes.kill(child)
        assert case.processes.code(child) == -9, case.processes.said()
    case.finish(60)
    assert 0 < case.emulator.ledger.refused <= 20
    assert not (header and case.unknown)


def test_pictures_that_find_no_room(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk too full for a picture stops the sending; with room again, the paid pictures come without a new task."""
    monkeypatch.setattr(files, "tiny_png", lambda text: large(text) * 80)
    case.write(60)
    assert case.processes.run(*WORDS[:-1], "1/0.05", file_size=6_000_000) == 1
    monkeypatch.setattr(files, "tiny_png", large)
    assert 0 < len(case.emulator.ledger.accepted) < 60
    assert "File too large" in case.processes.said()
    assert "go on with: flux2 batch jobs.jsonl --out results" in case.processes.said()
    assert {line["state"] for line in case.lines()} == {"done", "queued"}
    case.finish(60)
    assert len(case.emulator.ledger.accepted) == 60


def test_a_journal_that_finds_no_room_for_the_input(case: Case) -> None:
    """A disk too full for the input sends nothing."""
    case.write(150)
    assert case.processes.run(*WORDS, file_size=30_000) == 1
    assert case.emulator.ledger.requests == []
    case.finish(150)


def test_a_journal_that_finds_no_room_later(case: Case) -> None:
    """Once the input is in, the journal needs next to no new room: no paid task is forgotten on a full disk."""
    case.write(50)
    assert case.processes.run(*WORDS, "--limit", "1", "--no-download") == 0
    assert case.processes.run(*WORDS, "--no-download", file_size=150_000) == 0
    assert "not in the journal" not in case.processes.said()
    case.finish(50)
    assert case.unknown == set()
