"""`--coordination`: commands that run at the same time and share an account's limit."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulated import free_port

from flux2_async.cli.app import run
from flux2_async.emulator import Limit, Plan, Script
from flux2_async.testing import running_emulator

SECRET = "redis://:hunter2@localhost"


def test_two_batches_share_one_limit(tmp_path: Path) -> None:
    """Neither is refused by 429, though each alone would use the whole limit."""
    with running_emulator(Script(plans=Plan(duration=0.1), limit=Limit(3, 8.0), render=False)) as emulator:
        environment = os.environ | {
            "APIKLEY_API_KEY": emulator.api_key,
            "APIKLEY_BASE_URL": emulator.base_url,
            "NO_PROXY": "127.0.0.1",
            "FLUX2_COORDINATION": f"host:{tmp_path / 'shared.sqlite'}",
        }

        def begin(name: str) -> "subprocess.Popen[bytes]":
            (tmp_path / f"{name}.jsonl").write_text(
                "".join(json.dumps({"prompt": f"{name} {n}"}) + "\n" for n in range(3))
            )
            words = ("batch", f"{name}.jsonl", "--out", name, "--rate-limit", "3/8", "--no-download", "--no-report")
            return subprocess.Popen([sys.executable, "-m", "flux2_async.cli", *words], cwd=tmp_path, env=environment)  # noqa: S603  our own

        with begin("one") as one, begin("two") as two:
            assert not any((one.wait(), two.wait()))
        assert len(emulator.ledger.accepted) == 6
        assert emulator.ledger.refused == 0


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("redis", "--coordination: allowed are host, host:FILE, redis://..., "),
        ("mysql://localhost", "--coordination: allowed are host, host:FILE, redis://..., "),
        ("redis://localhost/x", "--coordination: url: it must look like redis://host:6379/0"),
        ("mysql://:hunter2@localhost", "--coordination: "),
    ],
)
@pytest.mark.parametrize("variable", [False, True])
def test_a_place_that_is_none(
    given: str, reason: str, variable: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told before anything is sent, by the name of option or variable, and without a password of the address."""
    monkeypatch.setenv("APIKLEY_API_KEY", "key")
    monkeypatch.setenv("APIKLEY_BASE_URL", "http://127.0.0.1:9")
    if variable:
        monkeypatch.setenv("FLUX2_COORDINATION", given)
        reason = reason.replace("--coordination", "FLUX2_COORDINATION")
    assert run(["generate", "A lighthouse", *([] if variable else ["--coordination", given])]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert reason in error
    assert "hunter2" not in error


def test_a_password_on_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, since others of the machine can read it, with the variable to set instead."""
    monkeypatch.setenv("APIKLEY_API_KEY", "key")
    assert run(["generate", "A lighthouse", "--coordination", SECRET]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "--coordination: others of this machine could read the password; set FLUX2_COORDINATION instead" in error
    assert "hunter2" not in error


@pytest.mark.parametrize("options", [(), ("--verbose",)])
def test_shared_state_that_is_away_is_told(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The command goes on, slower, and says why, in one line; what else is logged only `--verbose` shows."""
    monkeypatch.setattr(logging.getLogger("flux2_async"), "level", logging.NOTSET)
    away = f"redis://127.0.0.1:{free_port()}"
    with running_emulator(Script(plans=Plan(duration=0.1), render=False)) as emulator:
        monkeypatch.setenv("APIKLEY_API_KEY", emulator.api_key)
        monkeypatch.setenv("APIKLEY_BASE_URL", emulator.base_url)
        words = ("A lighthouse", "--output", str(tmp_path), "--coordination", away, "--rate-limit", "20/0.1")
        assert run(["generate", *words, *options]) == 0
        [task_id] = emulator.ledger.accepted
    error = " ".join(capsys.readouterr().err.split())
    assert error.count("redis cannot be reached (ConnectionError); until it is back submissions keep to a") == 1
    assert (f"task {task_id} accepted (submission" in error) == bool(options)
