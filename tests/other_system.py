"""Python as it is on Windows or macOS, for as much as can be told here: what those systems lack is taken away.

`FLUX2_TEST_SYSTEM=win32 python -m pytest -p other_system ...` runs tests so; without the variable nothing changes.
Other packages are loaded before, since they bring code of their own for each system.
"""

import asyncio
import os
import select
import signal
import ssl
import sys
import time
from types import ModuleType
from typing import Any, Final, Never

import pytest

LACKING: Final[dict[str, list[tuple[ModuleType, str]]]] = {
    "win32": [
        (os, "register_at_fork"),
        (os, "geteuid"),
        (os, "getuid"),
        (os, "O_DIRECTORY"),
        (os, "O_NOFOLLOW"),
        (select, "poll"),
        (select, "POLLRDHUP"),
        (signal, "SIGKILL"),
        (signal, "SIGHUP"),
        (time, "clock_gettime"),
        (time, "CLOCK_BOOTTIME"),
        (time, "CLOCK_MONOTONIC"),
    ],
    "darwin": [(select, "POLLRDHUP"), (time, "CLOCK_BOOTTIME")],
}
SYSTEM: Final = os.environ.get("FLUX2_TEST_SYSTEM")
MODULES: Final = {"win32": ("fcntl", "grp", "pwd", "termios", "tty"), "darwin": ()}


def no_handlers(*_: Any) -> Never:
    """Windows' loops have none."""
    raise NotImplementedError


def no_certificates(store: str) -> list[Any]:
    """Windows keeps certificates of authorities by itself."""
    del store
    return []


def become(system: str) -> None:
    """Take away what `system`, a name of `sys.platform`, lacks."""
    for module, name in LACKING[system]:
        vars(module).pop(name, None)
    for name in MODULES[system]:
        # An import of it fails from now on.
        sys.modules[name] = None  # type: ignore[assignment]  # how the import system is told
    if system == "win32":
        asyncio.SelectorEventLoop.add_signal_handler = no_handlers  # type: ignore[assignment,method-assign,unused-ignore]  # for this process
        ssl.enum_certificates = no_certificates  # type: ignore[attr-defined,unused-ignore]  # Windows has it
    sys.platform = system


if SYSTEM:
    import importlib.util

    for name in (
        "aiohttp.test_utils",
        "aiohttp.web",
        "anyio.from_thread",
        "anyio._backends._asyncio",
        "cattrs.preconf.json",
        "cyclopts",
        "hypothesis",
        "multiprocessing",
        "orjson",
        "PIL.Image",
        "pytest_timeout",
        "redis.asyncio",
        "rich.console",
        "rich.live",
        "rich.progress",
        "subprocess",
        "tempfile",
        "uvicorn",
        "xdist.remote",
    ):
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)


def pytest_collection(session: pytest.Session) -> None:
    """Only now, and not where processes of tests are started: pytest and they would look for what Windows has."""
    if SYSTEM and (hasattr(session.config, "workerinput") or not session.config.option.numprocesses):
        become(SYSTEM)
