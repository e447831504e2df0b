"""A test that hangs fails under its name, with the stacks of all threads, whatever it hangs in.

pytest-timeout's signal interrupts Python code and most event loops, and puts the stacks into the report. It does not
help where Python never comes to handle it, where an asyncio task catches the exception, or where what comes after the
failure hangs: pytest-timeout has no eye on that. Some seconds later such a process is ended. With several processes, as
is the rule, pytest lives on and reports the test with the stacks; with one they stand on stderr.
"""

import faulthandler
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

# Seconds from the signal to the end of the process.
GRACE = 20.0

FOLDER = pytest.StashKey[Path]()
STACKS = pytest.StashKey[int]()
LIMIT = pytest.StashKey[float]()


def pytest_configure(config: pytest.Config) -> None:
    worker: dict[str, str] | None = getattr(config, "workerinput", None)
    if worker is None:
        # Later pytest captures what is written there.
        config.stash[STACKS] = os.dup(2)
    else:
        config.stash[STACKS] = os.open(worker["stacks"], os.O_CREAT | os.O_WRONLY)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[STACKS])
    if FOLDER in config.stash:
        shutil.rmtree(config.stash[FOLDER])


def stacks_of(worker: Any) -> Path:
    config: pytest.Config = worker.config
    if FOLDER not in config.stash:
        config.stash[FOLDER] = Path(tempfile.mkdtemp(prefix="flux2-stacks-"))
    return Path(config.stash[FOLDER], worker.gateway.id)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process where to write the stacks that it cannot report any more."""
    node.workerinput["stacks"] = str(stacks_of(node))


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(report: Any) -> None:
    """Put what a process wrote at its end into the report of the test that it ran."""
    report.sections.append(("stacks at the end", stacks_of(report.node).read_text()))


def end_later(item: pytest.Item) -> None:
    faulthandler.dump_traceback_later(item.stash[LIMIT], exit=True, file=item.config.stash[STACKS])


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    item.stash[LIMIT] = settings.timeout + GRACE
    end_later(item)


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Go on: pytest and pytest-timeout stop their clocks at a failure, also where no debugger follows."""
    if LIMIT in node.stash and isinstance(node, pytest.Item) and not node.config.getoption("usepdb"):
        end_later(node)


def pytest_runtest_logfinish() -> None:
    faulthandler.cancel_dump_traceback_later()
