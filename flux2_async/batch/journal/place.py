"""Whether the next run will find the journal, which others may delete, move or replace while it is open. Blocks.

SQLite goes on writing to a file without a name, and what is written there is paid for again.
"""

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import attrs

from flux2_async.batch.journal.schema import JournalError

Identity = tuple[int, int]


@attrs.frozen
class Place:
    """The files of an open journal: `given` is its path as given, `files` are absolute paths and who is there."""

    given: Path
    files: Mapping[Path, Identity]

    @classmethod
    def of(cls, path: Path, connection: sqlite3.Connection) -> "Place":
        """Look at a journal that was just opened, in the folder that relative paths begin at now."""
        # A new one has its log from the first reading on.
        connection.execute("SELECT max(number) FROM runs").fetchone()
        # SQLite's own word for it cannot be read where a folder's name is not UTF-8.
        real = path.resolve()
        # Where the file system knows no log there is none.
        paths = (path.absolute(), real.with_name(f"{real.name}-wal"))
        return cls(path, {each: identity for each in paths if (identity := _identity(each)) is not None})

    def check(self) -> None:
        """Raise JournalError unless all of it is still there."""
        for path, identity in self.files.items():
            now = _identity(path)
            if now != identity:
                what = "deleted or moved" if now is None else "replaced"
                raise JournalError(
                    f"journal: {str(path)!r} was {what} while the batch was running, so nothing more is sent; put it "
                    f"back, or go on where it is now, before you run the batch again: without this journal "
                    f"{str(self.given)!r} is begun anew, which pays again for what was paid"
                )


def _identity(path: Path) -> Identity | None:
    try:
        about = os.stat(path)  # noqa: PTH116  of an aware kind
    except OSError:
        return None
    return about.st_dev, about.st_ino
