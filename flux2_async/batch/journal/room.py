"""Room in the journal's files for the answers of what is being sent, so that a full disk forgets no paid task. Blocks.

Free pages inside the file, and a log that is long enough to be begun anew, are taken by nobody else. (A file system
that writes each block to a new place may be full all the same.)
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final

import attrs

from flux2_async.batch.journal.schema import transaction

# What a page holds of a value that is longer than one.
PAGE: Final = 4092
# An answer may split a page, of the table or of an index; a long row is written anew before the old one
# is taken away.
NEEDED: Final = (
    "SELECT 6 + count(*) + coalesce(max(length(CAST(prompt AS BLOB)) + length(images) + length(extra_input) + "  # noqa: S608  a constant
    f"length(extra)), 0) / {PAGE} FROM requests WHERE state = 'submitting'"
)


@attrs.frozen
class MissingRoomError(Exception):
    """A change would leave too little; with so many free `pages` it does not."""

    pages: int


@attrs.define
class Room:
    """What one open journal has kept.

    Attributes:
        file: The journal, open until its connection is closed: to close any descriptor of it gives up the lock.
        log: For how many pages its log is long enough.
    """

    file: BinaryIO
    log: int = 0

    @contextmanager
    def kept(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Raise `MissingRoomError` where what is changed inside leaves too little for the answers that are awaited."""
        before = _pages_and_free(connection)
        yield
        pages, free = _pages_and_free(connection)
        [needed] = connection.execute(NEEDED).fetchone()
        if min(self.log, free) < needed:
            raise MissingRoomError(needed + pages - before[0] + before[1] - free)

    def make(self, connection: sqlite3.Connection, pages: int) -> None:
        """Make more of it, outside a transaction; sqlite3.OperationalError or OSError of a full disk: there is none."""
        pages += pages // 4
        begin_anew(connection)
        # What is in the log and finds no room in the file would keep the log from being begun anew.
        self._extend(connection, pages)
        # Written as a run that there never is, so that every page is on the disk before it is free.
        with transaction(connection, "NORMAL"):
            connection.execute("INSERT INTO runs VALUES (0, zeroblob(?))", (pages * PAGE,))
        begin_anew(connection)
        connection.execute("DELETE FROM runs WHERE number = 0")
        self.log = pages

    def _extend(self, connection: sqlite3.Connection, pages: int) -> None:
        """Write behind the last page, where SQLite looks at nothing."""
        used, free = _pages_and_free(connection)
        self.file.seek(end := used * connection.execute("PRAGMA page_size").fetchone()[0])
        content = bytes(max(0, pages + 2 - free) * (PAGE + 4))
        if self.file.write(content) != len(content):
            self.file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def begin_anew(connection: sqlite3.Connection) -> None:
    """Bring the log home, and write it from its beginning, in the room that it has."""
    connection.execute("PRAGMA wal_checkpoint(RESTART)")


def _pages_and_free(connection: sqlite3.Connection) -> tuple[int, int]:
    [pages], [free] = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count"))
    return pages, free
