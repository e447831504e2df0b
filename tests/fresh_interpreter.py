"""An interpreter of its own for what forks.

A process of pytest has threads, and what one of them holds at the moment of a fork is held in the child for ever.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def in_fresh_interpreter(function: Callable[[str], object], word: str) -> str:
    """Call a module's function in a new process, and give what it gave, as text."""
    code = f"import sys, {function.__module__} as module; print(module.{function.__name__}(sys.argv[1]))"
    done = subprocess.run(  # noqa: S603  our own words
        # Newer Pythons warn of every fork beside a thread, such as the one of an open session.
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", code, word],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def forked(work: Callable[[], int | None]) -> int:
    """Do something in a forked child, and give the child's exit status: what it gave, 0 for None, 100 for an error."""
    child = os.fork()
    if child == 0:
        # It must not go on with what the parent does, whatever happens.
        code = 100
        try:
            code = work() or 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
