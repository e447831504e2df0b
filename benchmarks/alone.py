"""Runs one function in a fresh interpreter, so that nobody pays for another's imports, garbage or connections."""

import asyncio
import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any


def call(
    function: Callable[..., Awaitable[Any]],
    /,
    *,
    under: Sequence[str] = (),
    **arguments: Any,
) -> Any:
    """Call a coroutine function of a module in an interpreter of its own, and wait for it.

    It finds bytecode, as it does wherever a program ran before, unless it is the first that loads a module: else it is
    the compiler that is measured where bytecode is not written, in containers for example.

    Args:
        function: What is called, in an event loop as users have it.
        under: A command in front of the interpreter, such as a profiler.
        arguments: Its arguments, as JSON can carry them.

    Returns:
        What it returned, as JSON carried it.
    """
    target = f"{function.__module__}:{function.__name__}"
    command = [*under, sys.executable, "-m", "benchmarks.alone", target, json.dumps(arguments)]
    variables = {"PYTHONPYCACHEPREFIX": _bytecode(), **os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=variables)  # noqa: S603  our own module
    return json.loads(done.stdout)


@cache
def _bytecode() -> str:
    folder = tempfile.TemporaryDirectory()  # it lasts as long as this process
    atexit.register(folder.cleanup)
    return folder.name


def main() -> None:
    """What the interpreter runs."""
    module, _, name = sys.argv[1].partition(":")
    function = getattr(import_module(module), name)
    print(json.dumps(asyncio.run(function(**json.loads(sys.argv[2])))))


if __name__ == "__main__":
    main()
