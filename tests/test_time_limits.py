"""What a run says of a test that hangs."""

import subprocess
import sys
from pathlib import Path

import pytest

HANGING = """
import threading, time
import pytest

def wait_for_ever():
    threading.Event().wait()

def test_wait():
    threading.Thread(target=wait_for_ever, daemon=True).start()
    time.sleep(1000)

def test_deaf_loop():
    while True:
        try:
            time.sleep(1000)
        except BaseException:
            pass

@pytest.fixture
def stuck_in_the_end():
    yield
    wait_for_ever()

def test_stuck(stuck_in_the_end):
    assert not "the failure"

def test_fine():
    pass
"""
QUICK = """
import time_limits
time_limits.GRACE = 1.0
pytest_plugins = ["time_limits"]
"""
OPTIONS = "-n 2 -p no:cacheprovider -p xdist -p pytest_timeout -o timeout=1 -o timeout_method=signal"


def test_hanging_tests_are_named_with_their_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a test can be interrupted, cannot, or hangs after a failure: name and stacks are there, others run on."""
    (tmp_path / "conftest.py").write_text(QUICK)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "test_hanging.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    command = [sys.executable, "-m", "pytest", *OPTIONS.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)  # noqa: S603  our own
    _, failures = done.stdout.split("= FAILURES =")
    stacks, names = failures.split("= short test summary info =")

    assert "FAILED test_hanging.py::test_wait - Failed: Timeout (>1.0s)" in names
    assert "FAILED test_hanging.py::test_deaf_loop" in names
    assert names.count("FAILED test_hanging.py::test_stuck") == 2
    assert "4 failed, 1 passed" in names
    # The first two are one test's own thread, and its other one.
    assert all(f"in {name}\n" in stacks for name in ("wait", "wait_for_ever", "test_deaf_loop", "stuck_in_the_end"))
