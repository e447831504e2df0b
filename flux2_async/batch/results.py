"""`results.jsonl`: the journal as a file for other programs, one request a line; see `outcomes` for its keys.

While a batch runs its journal is locked, and `results.jsonl` is that of the last run. What has changed since stands in
`changes.jsonl`, a line a change, for those who look on; it goes when `results.jsonl` is written anew.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs

from flux2_async._http.atomic_file import replacing
from flux2_async.batch.journal import Journal
from flux2_async.batch.outcomes import LISTS, TIMES, Download, Failure, Outcome, State
from flux2_async.models.plain_json import utf8_json

logger: logging.Logger = logging.getLogger("flux2_async")

RESULTS: Final = "results.jsonl"
CHANGES: Final = "changes.jsonl"


async def write_results(journal: Journal, directory: str | os.PathLike[str]) -> Path:
    """Write the requests of a journal to `results.jsonl`, whole or not at all; one from before stays until then.

    Args:
        journal: Open.
        directory: An existing folder.

    Returns:
        The file.

    Raises:
        OSError: It cannot be written.
    """
    target = Path(directory) / RESULTS
    await journal.use_lines(partial(_write, target))
    return target


def read_results(directory: str | os.PathLike[str]) -> Iterator[Outcome]:
    """Read `results.jsonl` line by line.

    Args:
        directory: The folder of the batch.

    Yields:
        Its requests, in the order of the input.

    Raises:
        OSError: It cannot be read.
    """
    with (Path(directory) / RESULTS).open(encoding="utf-8") as file:
        for line in file:
            yield outcome_from(json.loads(line))


def outcome_from(line: dict[str, Any]) -> Outcome:
    """Read a request as a line holds it, see `document`; raise what Python does for what is no such line."""
    # The group says again what stands in `extra`.
    fields = {name: value for name, value in line.items() if name != "group"}
    for name in LISTS:
        fields[name] = tuple(fields[name])
    for name in TIMES:
        # That of an earlier version has no `sent_at`.
        fields[name] = (told := fields.get(name)) and datetime.fromisoformat(told)
    fields["state"] = State(fields["state"])
    fields["download"] = fields["download"] and Download(fields["download"])
    fields["error"] = fields["error"] and Failure(**fields["error"])
    return Outcome(**fields)


@attrs.define
class Changes:
    """`changes.jsonl` of a run: written without a promise, since all that counts is in the journal. Blocks.

    Its first line tells `total`, the requests of the batch. `ends_at` is when all of them are expected to have ended,
    in seconds since 1970 or None; the next change tells it, and another thread may set it.
    """

    directory: Path
    total: int
    ends_at: float | None = None
    _told: float | None = None
    _file: BinaryIO | None = None
    _given_up: bool = False

    def add(self, lines: bytes) -> None:
        """Write what has changed, as lines of `results.jsonl`."""
        if self._given_up:
            return
        try:
            if self._file is None:
                # What a run has left that came to no end is not in `results.jsonl`.
                self._file = (self.directory / CHANGES).open("ab", buffering=0)
                _lock(self._file, exclusive=True)
                self._file.write(utf8_json({"total": self.total}) + b"\n")
            if (ends_at := self.ends_at) != self._told:
                self._told = ends_at
                self._file.write(utf8_json({"total": self.total, "ends_at": ends_at}) + b"\n")
            self._file.write(lines)
        except ValueError:
            # The run has ended and closed it meanwhile, in another thread.
            return
        except OSError as error:
            self._given_up = True
            logger.warning("%s is not written any more: %s", CHANGES, error)

    def end(self, *, remove: bool) -> None:
        """Close the file, and remove it where `results.jsonl` has all of it."""
        self._given_up = True
        if self._file is not None:
            self._file.close()
        if remove:
            # Left behind, it tells nothing that is not in `results.jsonl`.
            with suppress(OSError):
                (self.directory / CHANGES).unlink()


def is_held(path: Path) -> bool:
    """Whether a running batch has `changes.jsonl` open; where the system knows no such locks, whether it is there."""
    try:
        with path.open("rb") as file:
            return not _lock(file, exclusive=False)
    except OSError:
        return False


def _lock(file: BinaryIO, *, exclusive: bool) -> bool:
    """Take a lock that goes with the process, however that ends: a batch that died is not taken for one that runs."""
    if sys.platform == "win32":
        return False
    import fcntl  # noqa: PLC0415  not everywhere

    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _write(target: Path, lines: Iterator[bytes]) -> None:
    with replacing(target) as file:
        file.writelines(lines)
