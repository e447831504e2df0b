"""Each row of the journal carries a checksum, so that a damaged one is told and not sent. Runs in its thread.

SQLite notices damage to its own structure. A bit that has turned over inside a value it gives as if it had always been
so, and `done` that has become another word, or an id under which nobody asks any more, would be paid again.
"""

import sqlite3
import zlib
from itertools import islice
from typing import Any, Final

COLUMNS: Final = (
    *("id", "digest", "run", "place", "line", "state", "prompt", "images", "aspect_ratio", "resolution", "tier"),
    *("model", "extra_input", "extra", "ref", "task_id", "sent_at", "submitted_at", "finished_at", "saved_at"),
    *("create_time", "complete_time", "urls", "files", "download", "credits", "earlier_credits", "lost", "error"),
)
"""What the checksum is made of, in this order: all but the number, which SQLite's own checks hold to the indexes."""

MAX_DAMAGED: Final = 5
QUERY: Final = f"SELECT number, checksum, {', '.join(COLUMNS)} FROM requests ORDER BY number"  # noqa: S608  constants
DAMAGED: Final = (
    f"SELECT number FROM requests WHERE checksum IS NOT checksum_of({', '.join(COLUMNS)}) "  # noqa: S608  constants
    f"ORDER BY number LIMIT {MAX_DAMAGED}"
)
# Temporary: a trigger in the file would keep other programs from opening it.
TRIGGER: Final = (
    f"CREATE TEMP TRIGGER changed AFTER UPDATE OF {', '.join(COLUMNS)} ON main.requests "  # noqa: S608  constants
    f"BEGIN UPDATE requests SET checksum = checksum_of({', '.join(f'NEW.{name}' for name in COLUMNS)}) "
    "WHERE number = NEW.number; END"
)


def checksum(*values: Any) -> int:
    """Give the checksum of a row's `COLUMNS`, 32 bits, the same on every machine and version of Python."""
    # What a version of Python takes for printable does not matter to ascii().
    return zlib.crc32(ascii(values).encode())


def keep_checksums(connection: sqlite3.Connection) -> None:
    """Let this connection write the checksum of every row that it changes; it does not for one that it inserts."""
    _add_function(connection)
    connection.execute(TRIGGER)


def write_checksums(connection: sqlite3.Connection) -> None:
    """Give every row its checksum, as the row is now."""
    _add_function(connection)
    connection.execute(f"UPDATE requests SET checksum = checksum_of({', '.join(COLUMNS)})")  # noqa: S608  constants


def damaged_rows(connection: sqlite3.Connection) -> list[int]:
    """Give the numbers of rows that are not as they were written, the first five of them."""
    _add_function(connection)
    try:
        return [row[0] for row in connection.execute(DAMAGED)]
    except sqlite3.OperationalError:
        # Damaged text may be no UTF-8 any more, which a function in SQL is not given. Row by row takes twice as long.
        connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
        try:
            rows = connection.execute(QUERY)
            return list(islice((number for number, kept, *values in rows if kept != checksum(*values)), MAX_DAMAGED))
        finally:
            connection.text_factory = str


def _add_function(connection: sqlite3.Connection) -> None:
    connection.create_function("checksum_of", len(COLUMNS), checksum, deterministic=True)
