"""The programs that tests run against: the real ones, or a skip that says what to install.

A test, a fixture or a helper that starts a server asks `program` for its path. Where it is not on the path,
the test that led there is skipped, so nothing else has to be said: no marker, no `skipif`. CI installs them all, and a
skip fails there; and it runs everything a second time without them, when such skips and no others are allowed. What is
new in `PACKAGES` belongs into the list of `.ci/run` as well. A Python package
that has no release for one of the Pythons is skipped in the same words.
"""

import os
import shutil
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


def program(name: str) -> str:
    """The path of a program of `PACKAGES`; whoever asks for one that is missing is skipped."""
    elsewhere = map(str, Path("/").glob(FOLDERS[name]) if name in FOLDERS else ())
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(elsewhere))
    if found is None:
        pytest.skip(f"{name} is not on the path: apt-get install {PACKAGES[name]}")
    return found


def for_want_of_a_program(reason: str) -> bool:
    """Whether a test was skipped for one of those that `FLUX2_TEST_WITHOUT` says are not there."""
    return any(f"{name} is not on the path" in reason for name in os.environ.get("FLUX2_TEST_WITHOUT", "").split())
