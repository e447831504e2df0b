"""How the input enters the journal: recognised, checked, and all of it before anything is sent. Runs in its thread."""

import hashlib
import json
import sqlite3
import time
from collections.abc import Sequence
from typing import Any, Final

import attrs

from flux2_async._protocol.media import MAX_PICTURE
from flux2_async.batch.jobs import BadLine, Job, check_files, digest_of, job_of, located
from flux2_async.batch.journal.checksums import COLUMNS, checksum, in_order, update
from flux2_async.batch.options import Options
from flux2_async.batch.outcomes import State
from flux2_async.errors import InvalidRequestError
from flux2_async.models.requests import facts_of

# Of a million lines of nonsense nobody reads more.
MAX_BAD: Final = 100
MAX_IDS: Final = 10_000
DIGITS: Final = 20

_ENTERED: Final = (
    *("digest", "run", "place", "line", "prompt", "images", "aspect_ratio", "resolution", "tier", "model"),
    *("extra_input", "extra"),
)
UPDATE: Final = update({name: f":{name}" for name in _ENTERED}, "id = :id")
INSERT: Final = (
    f"INSERT INTO requests (id, state, {', '.join(_ENTERED)}, checksum) "  # noqa: S608  constants
    f"VALUES (:id, 'queued', :{', :'.join(_ENTERED)}, :checksum)"
)
# What a row has besides when it is new.
FRESH: Final[dict[str, Any]] = dict.fromkeys(COLUMNS) | {
    "state": "queued",
    "urls": "[]",
    "files": "[]",
    "earlier_credits": 0.0,
    "lost": 0,
}


def _twice(name: str, line: int) -> str:
    return f"id: {name!r} stands in line {line} as well; give each line its own"


@attrs.define
class Entry:
    """One run's input on its way into the journal, within one transaction, and what became of it.

    Files of requests that the run may send must be there. A shuffled order has nothing to do with that of the input,
    and is the same in every run.

    Attributes:
        taken: Requests that are in the journal now.
        bad: Lines that were left out, the first hundred of `bad_count`.
    """

    connection: sqlite3.Connection
    options: Options
    max_image_bytes: int = MAX_PICTURE
    run: int = 0
    taken: int = 0
    bad: list[BadLine] = attrs.field(factory=list)
    bad_count: int = 0
    _position: int = 0
    # Those of lines that cannot be used, with the first line of each.
    _bad_ids: dict[str, int] = attrs.field(init=False, factory=dict)
    _sendable: set[State] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._sendable = self.options.sendable()

    def begin(self) -> None:
        """Open the transaction, and give the run its number."""
        self.connection.execute("PRAGMA synchronous=NORMAL")
        self.connection.execute("BEGIN IMMEDIATE")
        begun = self.connection.execute("INSERT INTO runs (begun_at) VALUES (?)", (time.time(),))
        self.run = begun.lastrowid or 0
        # In the file beside the journal rather than in memory: a million requests are many.
        self.connection.execute("CREATE TEMP TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY, count) WITHOUT ROWID")
        self.connection.execute("DELETE FROM seen")

    @property
    def full(self) -> bool:
        """Whether no further request is wanted."""
        return not self.options.shuffle and self.options.limit is not None and self.taken >= self.options.limit

    def add(self, items: Sequence[object]) -> None:
        """Take some more of the input."""
        for item in items:
            if self.full:
                return
            self._position += 1
            if isinstance(item, BadLine):
                self._reject(item)
                continue
            line = (item.line if isinstance(item, Job) else 0) or self._position
            try:
                self._take(job_of(item), line)
                self.taken += 1
            except InvalidRequestError as error:
                self._reject(BadLine(line, str(error), item.id if isinstance(item, Job) else None))

    def end(self) -> None:
        """Close the transaction with what was taken."""
        self.cut()
        self.connection.execute("COMMIT")
        # Every request has its pages in the file now: what is written later needs next to no new room.
        self.connection.execute("PRAGMA wal_checkpoint(RESTART)")

    def cut(self) -> None:
        """Leave out what is beyond the limit where that is known only when all was read."""
        if self.options.shuffle and self.options.limit is not None:
            beyond = self.connection.execute(
                "SELECT place FROM requests WHERE run = ? ORDER BY place LIMIT 1 OFFSET ?",
                (self.run, self.options.limit),
            ).fetchone()
            if beyond:
                self.connection.execute(update({"run": "0"}, "run = ? AND place >= ?"), (self.run, beyond["place"]))
                self.taken = self.options.limit

    def undo(self) -> None:
        """Close the transaction as if there had been no input."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def _reject(self, line: BadLine) -> None:
        self.bad_count += 1
        again = line.id and self._again(line.id)
        if again and again not in line.reason:
            line = attrs.evolve(line, reason=f"{line.reason}; {again}")
        if line.id and len(self._bad_ids) < MAX_IDS:
            self._bad_ids.setdefault(line.id, line.line)
        if len(self.bad) < MAX_BAD:
            self.bad.append(line)

    def _take(self, job: Job, line: int) -> None:
        images = located(job)
        digest = digest_of(job.request)
        name = job.id or self._name(digest)
        known = self.connection.execute(
            "SELECT digest, run, line, state FROM requests WHERE id = ?", (name,)
        ).fetchone()
        if known is None or known["state"] in self._sendable:
            check_files(job.request, images, self.max_image_bytes)
        if known is not None:
            self._compare(known, digest, name)
        if name in self._bad_ids and not self.options.skip_invalid:
            raise InvalidRequestError(_twice(name, self._bad_ids[name]))
        row = self._row(job, name, digest, images, line)
        if known is None:
            row["checksum"] = checksum(*in_order(FRESH | row))
        self.connection.execute(INSERT if known is None else UPDATE, row)

    def _name(self, digest: bytes) -> str:
        """Name a request by its content and the number of its occurrence."""
        count = self.connection.execute(
            "INSERT INTO seen VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count", (digest,)
        ).fetchone()["count"]
        return digest.hex()[:DIGITS] + (f"-{count}" if count > 1 else "")

    def _again(self, name: str) -> str:
        """Say of a line that cannot be used anyway that an earlier one has its id; empty where none has."""
        query = "SELECT line FROM requests WHERE id = ? AND run = ?"
        row = self.connection.execute(query, (name, self.run)).fetchone()
        line = self._bad_ids.get(name) if row is None else row["line"]
        return "" if line is None else _twice(name, line)

    def _compare(self, known: sqlite3.Row, digest: bytes, name: str) -> None:
        if known["run"] == self.run:
            raise InvalidRequestError(_twice(name, known["line"]))
        if known["digest"] != digest and known["state"] not in self._sendable:
            raise InvalidRequestError(
                f"id: {name!r} stands for another request, which is {known['state']}; give the changed one another id"
            )

    def _row(self, job: Job, name: str, digest: bytes, images: list[str], line: int) -> dict[str, Any]:
        facts = facts_of(job.request, images)
        texts = {"images": images, "extra_input": facts["extra_input"], "extra": job.extra}
        return {
            **facts,
            **{column: json.dumps(value) for column, value in texts.items()},
            "id": name,
            "digest": digest,
            "run": self.run,
            "place": _shuffled(name) if self.options.shuffle else self._position,
            "line": line,
        }


def _shuffled(name: str) -> int:
    # Not by chance: with a limit, the same command again is to mean the same requests.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
