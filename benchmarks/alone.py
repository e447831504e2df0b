"""Runs one function in a fresh interpreter, so that nobody pays for another's imports, garbage or connections."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def call(
    function: Callable[..., Awaitable[Any]],
    /,
    *,
    under: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    **arguments: Any,
) -> Any:
    """Call a coroutine function of a module in an interpreter of its own, and wait for it.

    Args:
        function: What is called, in an event loop as users have it.
        under: A command in front of the interpreter, such as a profiler.
        environment: Variables that are set besides this process's own. None: no others.
        arguments: Its arguments, as JSON can carry them.

    Returns:
        What it returned, as JSON carried it.
    """
    target = f"{function.__module__}:{function.__name__}"
    command = [*under, sys.executable, "-m", "benchmarks.alone", target, json.dumps(arguments)]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=variables)  # noqa: S603  our own module
    return json.loads(done.stdout)


def main() -> None:
    """What the interpreter runs."""
    module, _, name = sys.argv[1].partition(":")
    function = getattr(import_module(module), name)
    print(json.dumps(asyncio.run(function(**json.loads(sys.argv[2])))))


if __name__ == "__main__":
    main()
