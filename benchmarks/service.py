"""The service in a process of its own: started for one measurement, asked for its books, and ended."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs


@attrs.frozen
class Books:
    """What the service counted.

    Attributes:
        created: Tasks it accepted.
        refused: Creations it answered by 429.
        polls: Looks at a task that were answered.
        looks_refused: Looks at a task that were answered by 429.
        reused: Creations that came over a connection which had carried a request before.
        first: When it accepted the first task, in seconds of the machine's monotonic clock.
        last: When it accepted the last one.
    """

    created: int
    refused: int
    polls: int
    looks_refused: int
    reused: int
    first: float
    last: float


@attrs.frozen
class Service:
    """A running service.

    Attributes:
        url: Its address.
        secure_url: The same with TLS, for a client that speaks nothing else; empty unless asked for.
        certificate: The file with the authority that such a client has to trust.
    """

    url: str
    secure_url: str
    certificate: str

    def books(self) -> Books:
        """Give what it counted so far."""
        with urllib.request.urlopen(f"{self.url}/-/books") as answer:  # noqa: S310  a loopback address of our own
            return Books(**json.load(answer))


@contextmanager
def running(**options: Any) -> Iterator[Service]:
    """Run a service, with the options of `benchmarks.server`."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "benchmarks.server", *flags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S603  our own module
        assert process.stdout is not None, "a pipe was asked for"  # noqa: S101  for the type checkers
        try:
            yield Service(**json.loads(process.stdout.readline()))
        finally:
            process.terminate()
