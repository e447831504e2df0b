"""Thumbnails, made by a process of their own: no picture can take the report down with it."""

import base64
import hashlib
import json
import logging
import os
import re
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import attrs

from flux2_async._http.atomic_file import UNFINISHED, replacing

try:
    from flux2_async.batch.report import thumbnailer
except ModuleNotFoundError as _missing:
    # Told here, since the worker would only say that it has ended.
    raise ImportError(
        'flux2_async.batch.report needs the extra "cli"; install it with: pip install "flux2-async[cli]"',
        name=_missing.name,
    ) from None

logger: logging.Logger = logging.getLogger("flux2_async")

FOLDER: Final = "thumbnails"
# Part of every name, so that thumbnails of another making are made anew.
MAKING: Final = f"1 {thumbnailer.SIDE}"
# For the end of a worker that has nothing to do any more, in seconds.
WAIT: Final = 2
OURS: Final = re.compile(rf"[0-9a-f]{{32}}\.jpg|{UNFINISHED.pattern}")


@attrs.define
class Thumbnails:
    """The thumbnails of the report in a folder, whose path is absolute; a context manager. Everything blocks."""

    directory: Path
    _worker: "subprocess.Popen[str] | None" = attrs.field(default=None, init=False)
    _used: set[str] = attrs.field(factory=set, init=False)
    _broken: bool = attrs.field(default=False, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_worker()

    def make(self, source: Path) -> str | None:
        """Give the address of a thumbnail relative to the report, of the one from last time for a file as it was then.

        None where the file is missing or no picture, has more than 64 million pixels, or ended the worker.
        """
        name = self._name(source)
        if name is None:
            return None
        target = self.directory / FOLDER / name
        if not target.is_file() and not self._made(source, target):
            return None
        self._used.add(name)
        return f"./{FOLDER}/{name}"

    def forget_others(self) -> None:
        """Remove the thumbnails that were not asked for: their pictures have changed or are gone."""
        with suppress(OSError):
            for path in (self.directory / FOLDER).iterdir():
                if OURS.fullmatch(path.name) and path.name not in self._used:
                    path.unlink(missing_ok=True)

    def _name(self, source: Path) -> str | None:
        try:
            status = source.stat()
            # From the report, so that a folder that moved keeps its thumbnails.
            place = os.path.relpath(source, self.directory)
        except (OSError, ValueError):
            return None
        # A pipe would be waited for.
        if not stat.S_ISREG(status.st_mode):
            return None
        told = json.dumps([MAKING, place, status.st_size, status.st_mtime_ns])
        return f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.jpg"

    def _made(self, source: Path, target: Path) -> bool:
        if self._broken:
            return False
        try:
            worker = self._worker or self._start_worker()
        except OSError as error:
            # Nothing of it is lost but the thumbnails.
            logger.warning("the report has no new thumbnails: %s", error)
            self._broken = True
            return False
        try:
            answer = _ask(worker, source)
        except OSError:
            answer = ""
        if not answer:
            # It was ended, by this picture or by somebody; the next one gets a new one.
            self._end_worker()
        return answer not in ("", "no") and _write(target, base64.b64decode(answer))

    def _start_worker(self) -> "subprocess.Popen[str]":
        # An application frozen into one file would start itself.
        if not sys.executable or getattr(sys, "frozen", False):
            raise OSError("there is no Python to start")
        (self.directory / FOLDER).mkdir(exist_ok=True)
        # -P: neither the working directory nor this one may stand in for a module of the worker.
        command = [sys.executable, "-P", thumbnailer.__file__]
        self._worker = subprocess.Popen(  # noqa: S603  our own script
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="ascii"
        )
        return self._worker

    def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            try:
                # It ends with its standard input.
                worker.communicate(timeout=WAIT)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.communicate()


def _ask(worker: "subprocess.Popen[str]", source: Path) -> str:
    """Give the worker's line: the thumbnail in base64, `no`, or nothing when it has ended."""
    if worker.stdin is None or worker.stdout is None:
        return ""
    worker.stdin.write(json.dumps(str(source)) + "\n")
    worker.stdin.flush()
    return worker.stdout.readline().strip()


def _write(target: Path, content: bytes) -> bool:
    try:
        target.parent.mkdir(exist_ok=True)
        with replacing(target, durable=False) as file:
            file.write(content)
    except OSError as error:
        logger.warning("a thumbnail cannot be kept: %s", error)
        return False
    return True
