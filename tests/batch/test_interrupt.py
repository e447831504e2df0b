"""Ctrl-C in a script of one's own around `run_batch`: in a real process, with the signal itself."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from documents import recipe
from emulated import until

from flux2_async.batch import Journal
from flux2_async.emulator import Emulator, Limit, Plan, Script

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals"),
]

PLAIN = "asyncio.get_running_loop().add_signal_handler(signal.SIGINT, batch.stop)"


async def interrupted(program: str, folder: Path, duration: float) -> tuple[int | None, str, list[str]]:
    """Run a program, press Ctrl-C when tasks run, and give its exit code, what it complained of, and the tasks."""
    script = Script(plans=Plan(duration=duration), limit=Limit(20, 10.0), render=False)
    async with Emulator(script) as emulator:
        settings = {"APIKLEY_API_KEY": emulator.api_key, "APIKLEY_BASE_URL": emulator.base_url}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            cwd=folder,
            env={name: value for name, value in os.environ.items() if not name.startswith("APIKLEY")} | settings,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        await until(lambda: len(emulator.ledger.accepted) >= 5)
        process.send_signal(signal.SIGINT)
        _, complaints = await process.communicate()
        return process.returncode, complaints.decode(), emulator.ledger.accepted


async def states(folder: Path) -> dict[str | None, str]:
    async with Journal(folder / "run.db") as journal:
        return {outcome.task_id: outcome.state async for outcome in journal.outcomes() if outcome.task_id}


async def test_a_script_that_stops(tmp_path: Path) -> None:
    """The recipe saves what runs and ends well, without a word."""
    program = recipe("interrupt").read_text()
    code, complaints, accepted = await interrupted(program, tmp_path, duration=1.0)
    assert (code, complaints) == (0, "")
    assert await states(tmp_path) == dict.fromkeys(accepted, "done")
    assert len((tmp_path / "results" / "results.jsonl").read_text().splitlines()) == 1000


async def test_a_script_that_does_not_care(tmp_path: Path) -> None:
    """Without a handler it stops at once, loses nothing, and the traceback shows nothing of our inside."""
    program = recipe("interrupt").read_text().replace(PLAIN, "")
    code, complaints, accepted = await interrupted(program, tmp_path, duration=3600.0)
    assert code == -signal.SIGINT
    assert complaints.endswith("\nKeyboardInterrupt\n")
    assert "scheduler.py" not in complaints
    # Most of them are asyncio's own, one or two more with each Python.
    assert len(complaints.splitlines()) < 32
    assert await states(tmp_path) == dict.fromkeys(accepted, "submitted")
    assert len((tmp_path / "results" / "results.jsonl").read_text().splitlines()) == 1000
