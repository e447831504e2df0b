"""What the folder of a batch tells while another process works in it. Blocks; reads, and changes nothing."""

import json
import os
from pathlib import Path
from typing import BinaryIO

import attrs

from flux2_async.batch.outcomes import Outcome
from flux2_async.batch.results import CHANGES, RESULTS, is_held, outcome_from


@attrs.define
class Following:
    """`results.jsonl` of the last run, and over it what `changes.jsonl` tells of the one under way: outcomes by id.

    `total` is how many the batch has, `running` whether a batch works in the folder, `changed_at` when something
    changed last and `ends_at` when all is expected to have ended, in seconds since 1970; None where nothing has told.
    """

    directory: Path
    outcomes: dict[str, Outcome] = attrs.field(factory=dict)
    total: int | None = None
    running: bool = False
    changed_at: float | None = None
    ends_at: float | None = None
    _results: tuple[int, int, int] | None = None
    _changes: int | None = None
    _read: int = 0

    def news(self) -> list[str]:
        """Read on, and give the ids of the requests that are new or have changed."""
        self.running = is_held(self.directory / CHANGES)
        changed: dict[str, None] = {}
        # First what goes when the other comes: whoever looks between the two sees one of them.
        self._read_changes(changed)
        if self._read_results(changed):
            # What stands in the changes is newer where a run died, and the same where it ended well.
            self._read = 0
            self._read_changes(changed)
        if not self.running:
            self.ends_at = None
        return list(changed)

    def _read_results(self, changed: dict[str, None]) -> bool:
        try:
            with (self.directory / RESULTS).open("rb") as file:
                status = os.fstat(file.fileno())
                seen = (status.st_ino, status.st_mtime_ns, status.st_size)
                if seen == self._results:
                    return False
                self._results = seen
                self._take(file, status.st_mtime, changed)
        except FileNotFoundError:
            return False
        return True

    def _read_changes(self, changed: dict[str, None]) -> None:
        try:
            with (self.directory / CHANGES).open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._changes or status.st_size < self._read:
                    self._changes, self._read = status.st_ino, 0
                if status.st_size > self._read:
                    file.seek(self._read)
                    self._read += self._take(file, status.st_mtime, changed)
        except FileNotFoundError:
            self._changes = None

    def _take(self, file: BinaryIO, at: float, changed: dict[str, None]) -> int:
        """Read whole lines, and give how many bytes they had."""
        read = 0
        for line in file:
            if not line.endswith(b"\n"):
                # Still being written.
                break
            read += len(line)
            try:
                given = json.loads(line)
                if "total" in given:
                    self.total, ends_at = int(given["total"]), given.get("ends_at")
                    self.ends_at = None if ends_at is None else float(ends_at)
                    continue
                outcome = outcome_from(given)
            except (ValueError, KeyError, TypeError, AttributeError):
                # Half of a line that a run wrote as it died.
                continue
            if self.outcomes.get(outcome.id) != outcome:
                self.outcomes[outcome.id] = outcome
                changed[outcome.id] = None
                self.changed_at = at
        return read
