"""Each row of the journal carries a checksum, so that a damaged one is told and not sent. Runs in its thread.

SQLite notices damage to its own structure. A bit that has turned over inside a value it gives as if it had always been
so, and `done` that has become another word, or an id under which nobody asks any more, would be paid again.
"""

import sqlite3
import zlib
from collections.abc import Callable, Mapping
from itertools import islice
from operator import itemgetter
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


in_order: Final[Callable[[Mapping[str, Any]], tuple[Any, ...]]] = itemgetter(*COLUMNS)


def checksum(*values: Any) -> int:
    """Give the checksum of a row's `COLUMNS`, 32 bits, the same on every machine and version of Python.

    They have to be what SQLite gives back: no subclass of a type, and a float where a number may have a fraction.
    """
    # What a version of Python takes for printable does not matter to ascii().
    return zlib.crc32(ascii(values).encode())


def update(changes: Mapping[str, str], where: str = "true") -> str:
    """Give the SQL that changes rows, and their checksums with them.

    Args:
        changes: The columns that change, and their new values in SQL, where columns are what they were.
        where: Which rows.
    """
    columns = "".join(f"{name} = {value}, " for name, value in changes.items())
    values = ", ".join(changes.get(name, name) for name in COLUMNS)
    return f"UPDATE requests SET {columns}checksum = checksum_of({values}) WHERE {where}"  # noqa: S608  what this package writes


def add_checksums(connection: sqlite3.Connection) -> None:
    """Let SQL ask for checksums, as `update` does."""
    connection.create_function("checksum_of", len(COLUMNS), checksum, deterministic=True)


def damaged_rows(connection: sqlite3.Connection) -> list[int]:
    """Give the numbers of rows that are not as they were written, the first five of them."""
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
