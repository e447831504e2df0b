"""The journal's file: made, recognised, checked and locked before anything is done with it. Blocks."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from flux2_async.batch.journal.checksums import add_checksums, damaged_rows, update
from flux2_async.batch.journal.log import damaged_frame
from flux2_async.errors import ConfigurationError

MAGIC: Final = b"SQLite format 3\0"
# "FLX2"; what `file` and SQLite itself tell this file by.
APPLICATION: Final = 0x464C5832
VERSION: Final = 2

# `place` is the order of sending within the run; a row whose `run` is not the last one is not in the input any more.
# `lost` counts sends that may have been paid and were given up by sending again, `earlier_credits` what failed tasks
# cost that were sent again. The checksum came with the second version.
TABLES: Final = """
CREATE TABLE requests (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    digest BLOB NOT NULL,
    run INTEGER NOT NULL,
    place INTEGER NOT NULL,
    line INTEGER NOT NULL,
    state TEXT NOT NULL,
    prompt TEXT NOT NULL,
    images TEXT NOT NULL,
    aspect_ratio TEXT NOT NULL,
    resolution TEXT NOT NULL,
    tier TEXT NOT NULL,
    model TEXT NOT NULL,
    extra_input TEXT NOT NULL,
    extra TEXT NOT NULL,
    ref TEXT,
    task_id TEXT,
    sent_at REAL,
    submitted_at REAL,
    finished_at REAL,
    saved_at REAL,
    create_time REAL,
    complete_time REAL,
    urls TEXT NOT NULL DEFAULT '[]',
    files TEXT NOT NULL DEFAULT '[]',
    download TEXT,
    credits REAL,
    earlier_credits REAL NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    checksum INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX requests_by_state ON requests (state, place);
CREATE INDEX requests_by_line ON requests (line);
CREATE TABLE runs (number INTEGER PRIMARY KEY, begun_at REAL NOT NULL);
"""

OTHER_NAME: Final = "give another name for the journal, or move the file away"


class JournalError(ConfigurationError):
    """The journal cannot be used; the text says why and what to do. The file was left as it is."""


@contextmanager
def transaction(connection: sqlite3.Connection, synchronous: str) -> Iterator[None]:
    """Change all of it or nothing, and wait for the disk as this level of SQLite's says."""
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def connect(path: Path) -> sqlite3.Connection:
    """Open the journal for this process alone, making it, and its folder, when there is none.

    Only one thread at a time may use the connection; closing it unlocks the file. JournalError: it is another
    process's, no journal, damaged, of a newer version, or cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_head(path)
        # Beside the file itself, wherever a link to it is.
        real = path.resolve()
        frame = damaged_frame(real.with_name(f"{real.name}-wal"))
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise JournalError(f"journal: {str(path)!r} cannot be opened ({reason})") from None
    if frame is not None:
        raise _torn_log(path, frame)
    try:
        # The lock is SQLite's own on the file itself: it goes with the process, however that ends.
        connection = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise _explained(error, path) from None
    except UnicodeDecodeError as error:
        # Of a name in the file's own description.
        raise _torn(path, str(error)) from None
    return connection


def _check_head(path: Path) -> None:
    """Find a foreign file without SQLite, which may write to what it opens."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        head = file.read(len(MAGIC))
        if head and head != MAGIC:
            raise JournalError(f"journal: {str(path)!r} is not a journal; {OTHER_NAME}")


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.row_factory = sqlite3.Row
    add_checksums(connection)
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    # 32 MiB: the ids of a long input come in no order, and each has its place in an index.
    connection.execute("PRAGMA cache_size=-32768")
    connection.execute("BEGIN EXCLUSIVE")
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] and not _application(connection):
        _make(connection)
    connection.execute("COMMIT")
    _check_kind(connection, path)
    _check_content(connection, path)
    # Where the file system knows no WAL the usual rollback journal is as safe, and slower.
    connection.execute("PRAGMA journal_mode=WAL")


def _make(connection: sqlite3.Connection) -> None:
    # Not executescript, which would commit half of it.
    for statement in TABLES.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION}")
    connection.execute(f"PRAGMA user_version={VERSION}")


def _application(connection: sqlite3.Connection) -> int:
    value: int = connection.execute("PRAGMA application_id").fetchone()[0]
    return value


def _check_kind(connection: sqlite3.Connection, path: Path) -> None:
    if _application(connection) != APPLICATION:
        raise JournalError(f"journal: {str(path)!r} is the database of another program; {OTHER_NAME}")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise JournalError(
            f"journal: {str(path)!r} was written by a newer version of flux2_async (its format is {version}, this one "
            f"knows {VERSION}); use that version"
        )
    if version < 1:
        raise _torn(path, f"its format is {version}")


def _check_content(connection: sqlite3.Connection, path: Path) -> None:
    # Not quick_check, which does not look whether the indexes agree with the rows: who is not found is sent again.
    for (finding,) in connection.execute("PRAGMA integrity_check(1)"):
        if finding != "ok":
            raise _torn(path, finding.splitlines()[-1])
    if connection.execute("PRAGMA user_version").fetchone()[0] < VERSION:
        _migrate(connection)
    with closing(sqlite3.connect(":memory:")) as usual:
        _make(usual)
        if _shape(connection) != _shape(usual):
            raise _torn(path, "its tables are not those of a journal")
    # Pages that a killed process had no time to free, see `Room`.
    connection.execute("DELETE FROM runs WHERE number = 0")
    if connection.execute("SELECT count(*) <> coalesce(max(number), 0) FROM runs").fetchone()[0]:
        raise _torn(path, "its runs are not numbered one by one")
    if numbers := damaged_rows(connection):
        raise _torn(path, f"not as it was written: row {', '.join(map(str, numbers))} of its requests")


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring a journal of the first version, whose rows had no checksum, to this one."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ALTER TABLE requests ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0")
    connection.execute(update({}))
    connection.execute(f"PRAGMA user_version={VERSION}")
    connection.execute("COMMIT")


def _shape(connection: sqlite3.Connection) -> list[Any]:
    """Give the tables, columns and indexes."""
    names = [tuple(row) for row in connection.execute("SELECT type, name, tbl_name FROM sqlite_master ORDER BY 1, 2")]
    ways = {"table": "table_xinfo", "index": "index_xinfo"}
    return [names, *([*map(tuple, connection.execute(f"PRAGMA {ways[kind]}({name})"))] for kind, name, _ in names)]


def _explained(error: sqlite3.Error, path: Path) -> JournalError:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return in_use(path)
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or "Could not decode" in str(error):
        return _torn(path, str(error))
    return JournalError(f"journal: {str(path)!r} cannot be used ({error})")


def in_use(path: Path) -> JournalError:
    """The error of who comes second."""
    return JournalError(
        f"journal: {str(path)!r} is being used by another process; wait until it is finished, or end it"
    )


def _torn(path: Path, finding: str) -> JournalError:
    found = " ".join(finding.split())
    return JournalError(
        f"journal: {str(path)!r} is damaged ({found}); restore a copy of it, or give another name to start over, which "
        "pays again for what was paid before"
    )


def _torn_log(path: Path, frame: int) -> JournalError:
    """Say that the log is damaged; or that another process writes to it just now, so that it cannot be read."""
    try:
        # What may only read leaves the log where it is.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.0)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return _explained(error, path)
    where = f"frame {frame}" if frame else "the beginning"
    return JournalError(
        f"journal: the log {path.name + '-wal'!r} beside {str(path)!r} is damaged at {where}; restore a copy of both, "
        "or move the log away to go on without what was written last, which may pay again for it"
    )
