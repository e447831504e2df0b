"""The programs and packages that tests run against: the real ones, or a skip that says what to install.

A test, a fixture or a helper that starts a server asks `program` for its path. Where it is not on the path,
the test that led there is skipped, so nothing else has to be said: no marker, no `skipif`. CI installs them all, and a
skip fails there; and it runs everything a second time without them, when such skips and no others are allowed. What is
new in `PACKAGES` belongs into the list of `.ci/run` as well.

A Python package is asked for by its import, in a test, a fixture or at the head of a module: conftest.py makes skips of
those that fail. Where only another process imports it, the test calls `package`.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

# Program: Debian's packages.
PACKAGES: Final = {
    "cc": "gcc libc6-dev",
    "chromium": "chromium",
    "nginx": "nginx-light",
    "pgbouncer": "pgbouncer",
    "postgres": "postgresql",
    "redis-server": "redis-server",
}
# Where Debian puts a program that is on no path.
FOLDERS: Final = {"postgres": "usr/lib/postgresql/*/bin", "pgbouncer": "usr/sbin"}

# Of this process of pytest, which ends without what `atexit` knows.
at_the_end: Final = ExitStack()


def program(name: str) -> str:
    """The path of a program of `PACKAGES`; whoever asks for one that is missing is skipped."""
    elsewhere = map(str, Path("/").glob(FOLDERS[name]) if name in FOLDERS else ())
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(elsewhere))
    if found is None:
        pytest.skip(f"{name} is not on the path: apt-get install {PACKAGES[name]}")
    return found


def package(module: str) -> None:
    """Whoever asks for a module that is not installed is skipped; our own are never missing."""
    top = module.partition(".")[0]
    if top != "flux2_async":
        for name in (top, module):
            if not is_there(name):
                pytest.skip(f"{name} is not on the path: `uv sync` installs it where it has a release for this Python")


def is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
    except ValueError:
        # A test pretends that it is missing.
        return True


@contextmanager
def missing_packages_skip() -> Iterator[None]:
    """Make a skip of the failure to import what is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package(error.name or "")
        raise


def for_want_of_a_program(reason: str) -> bool:
    """Whether a test was skipped for one of those that `FLUX2_TEST_WITHOUT` says are not there."""
    return any(f"{name} is not on the path" in reason for name in os.environ.get("FLUX2_TEST_WITHOUT", "").split())
