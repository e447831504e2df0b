"""Real processes of `flux2 batch`, forked from one that has imported everything, which saves a second each.

As a script it reads a JSON line for each order: to start a process (words, folder, environment, limit of file sizes),
which it answers with the process id, or to wait for one, which it answers with how that ended. It has one thread: what
another one holds at the moment of a fork, such as the lock of `sys.stdout`, is held in the child for ever.
"""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import anyio
import attrs

POLL = 0.05


def main() -> None:
    from flux2_async.cli import service  # noqa: PLC0415  the tests' half has no need of it
    from flux2_async.cli.app import run  # noqa: PLC0415  likewise
    from flux2_async.models import Polling  # noqa: PLC0415  likewise
    from flux2_async.models.service import Service  # noqa: PLC0415  likewise
    from flux2_async.session.session import Flux2Session  # noqa: PLC0415  likewise

    def quick(*, polling: Polling | None = None, **options: Any) -> Flux2Session:
        if header := os.environ.get("TEST_IDEMPOTENCY_HEADER"):
            url = os.environ["APIKLEY_BASE_URL"]
            options["service"] = Service(base_url=url, idempotency_header=header, key_variable="APIKLEY_API_KEY")
        return Flux2Session(polling=attrs.evolve(polling or Polling(), interval=POLL), **options)

    # A service that is quicker than the real one is worth looking at more often.
    service.Flux2Session = quick  # type: ignore[assignment,attr-defined]  # in this process alone
    # What the command imports and makes when it needs it, each child would.
    import_module("flux2_async.cli.batch")
    anyio.run(anyio.sleep, 0)
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        answer = _ended(order["wait"]) if "wait" in order else _started(order, run)
        print(answer, flush=True)  # noqa: T201  the answer


def _started(order: dict[str, Any], run: Any) -> int:
    threads = threading.enumerate()
    assert len(threads) == 1, threads
    child = os.fork()
    if not child:
        os._exit(_be(order, run))
    return child


def _be(order: dict[str, Any], run: Any) -> int:
    os.chdir(order["folder"])
    os.environ.update(order["environ"])
    if order["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"], order["file_size"]))
    for number, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | (os.O_APPEND if number else 0)), number)
    code: int = run(order["words"])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Processes:
    """Starts `flux2 batch` in a folder, with the account of an emulator.

    Args:
        zygote: From `zygote`; one may serve many.
        folder: Where they run; their output is written there.
        environ: What they find in their environment besides.
    """

    def __init__(self, zygote: "subprocess.Popen[str]", folder: Path, environ: dict[str, str]) -> None:
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        self._orders: IO[str] = zygote.stdin
        self._answers: IO[str] = zygote.stdout
        self.folder = folder
        self._environ = environ

    def start(self, *words: str, file_size: int = 0) -> int:
        """Give the process id."""
        order = {"words": words, "folder": str(self.folder), "environ": self._environ, "file_size": file_size}
        return self._ask(order)

    def _ask(self, order: dict[str, Any]) -> int:
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        return int(self._answers.readline())

    def kill(self, child: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; one that has ended meanwhile is none to complain about."""
        with suppress(ProcessLookupError):
            os.kill(child, number)

    def code(self, child: int) -> int:
        """Wait for its end; negative for a signal."""
        return self._ask({"wait": child})

    def run(self, *words: str, file_size: int = 0) -> int:
        """Run it to its end."""
        return self.code(self.start(*words, file_size=file_size))

    def said(self) -> str:
        """All that was written to stderr so far."""
        return (self.folder / "stderr").read_text()


@contextmanager
def zygote() -> Iterator["subprocess.Popen[str]"]:
    """The process that the others are forked from."""
    bare = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("APIKLEY_") and not name.lower().endswith("_proxy")
    }
    with subprocess.Popen(  # noqa: S603  our own module
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=bare
    ) as started:
        yield started
        assert started.stdin is not None
        started.stdin.close()


if __name__ == "__main__":
    main()
