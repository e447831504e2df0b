"""The SQLite file that the processes of a host share: opened, checked, and changed one text at a time.

The journal is a write-ahead log: a commit takes some 50 microseconds, survives kill -9 at any instant because the
kernel keeps what was written, and survives a power cut except for the last moments. One connection is kept open; before
each use it is compared with what lies at the path, since a file that was removed or replaced would split the processes
into two groups that know nothing of each other.

Time. It is that of the machine's run, and goes on where it was when the machine is started anew. It does not count the
time asleep: a POST's time-out does not count it either, and its lease must not end before.

Forks. SQLite's memory of its locks must not be used on both sides of a fork, so a fork waits for the transaction under
way, and the child closes the connections it inherited.
"""

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from flux2_async.coordination.host.folder import check_file, runtime_folder
from flux2_async.coordination.store import Change
from flux2_async.errors import ConfigurationError, CoordinationError, Flux2Error

T = TypeVar("T")

FILE_NAME: Final = "coordination.sqlite"
BUSY_TIMEOUT: Final = 2.0
APPLICATION_ID: Final = 0x464C5832
VERSION: Final = 2
SMALLEST: Final = 512
RETRY_PAUSE: Final = 0.02

SCHEMA: Final = (
    "CREATE TABLE clock (boot TEXT NOT NULL, ahead REAL NOT NULL)",
    "INSERT INTO clock VALUES ('', 0.0)",
    """CREATE TABLE kept (
        name TEXT PRIMARY KEY, text TEXT NOT NULL, written_at REAL NOT NULL, forget_at REAL NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX kept_until ON kept (forget_at)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)

_using = threading.Lock()
_open_files: "weakref.WeakSet[HostFile]" = weakref.WeakSet()


def boot_id() -> str:
    """Name the time since the machine was started; empty where the system gives it no name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class HostFile:
    """The file, from one thread at a time.

    Args:
        path: Where it is, or None: in the user's runtime folder.
        clock: Seconds on a clock that all processes share and that only a new start of the machine sets back.
        boot: The name of the time since the machine was started.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic, boot: str | None = None) -> None:
        self._wanted = path
        self._clock = clock
        self._ahead = 0.0
        self._boot = boot_id() if boot is None else boot
        self._connection: sqlite3.Connection | None = None
        self._path = Path()
        self._identity: tuple[tuple[int, int] | None, ...] = ()

    @contextmanager
    def transaction(self) -> Iterator[tuple[sqlite3.Connection, float]]:
        """Have the file alone; give the connection and the time. All that was written is undone by an exception.

        Raises:
            ConfigurationError: The file can never be used.
            CoordinationError: It cannot be used now.
        """
        with _using:
            try:
                connection = self._connected()
                connection.execute("BEGIN IMMEDIATE")
                yield connection, self._clock() + self._ahead
                connection.execute("COMMIT")
            except BaseException as error:
                # That undoes what was written; whatever it was, the next use begins with what lies at the path then.
                self._close()
                if isinstance(error, sqlite3.Error | OSError):
                    raise explained(error, self._path) from error
                raise

    def update(self, name: str, change: Change[T]) -> T:
        """Change the text under a name, see `Store.update`; nobody else is faster, since all others wait."""
        with self.transaction() as (connection, now):
            found = connection.execute("SELECT text FROM kept WHERE name = ? AND forget_at > ?", (name, now)).fetchone()
            text = found[0] if found else None
            kept = change(text, now)
            if kept.text is None:
                connection.execute("DELETE FROM kept WHERE name = ?", (name,))
            elif kept.text != text:
                if text is None:
                    connection.execute("DELETE FROM kept WHERE forget_at <= ?", (now,))
                row = (name, kept.text, now, now + kept.seconds)
                connection.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", row)
        return kept.result

    def check(self) -> Path:
        """Give the path of the file, which is made when it is missing, checked and ready for use.

        Raises:
            ConfigurationError: The file can never be used.
            CoordinationError: It cannot be used now.
        """
        with self.transaction():
            return self._path

    def close(self) -> None:
        """Close the file; it may be used again."""
        with _using:
            self._close()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None or self._identity != _identity(self._path):
            self._close()
            # Made anew when somebody has removed it.
            self._path = runtime_folder() / FILE_NAME if self._wanted is None else self._wanted
            check_file(self._path)
            # The child of a fork closes it in another thread.
            self._connection = sqlite3.connect(
                self._path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            _open_files.add(self)
            self._prepare(self._connection)
            self._identity = _identity(self._path)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if not is_ours(connection, self._path):
            # Created a moment ago, readable by whom the mask allows.
            self._path.chmod(0o600)
            check_file(self._path)
        _retry_while_busy(lambda: connection.execute("PRAGMA journal_mode = WAL"))
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        if not is_ours(connection, self._path):
            for statement in SCHEMA:
                connection.execute(statement)
        self._set_clock(connection)
        connection.execute("COMMIT")

    def _set_clock(self, connection: sqlite3.Connection) -> None:
        """Go on after a new start of the machine where the time was when it ended, so that nothing ends too early."""
        boot, self._ahead = connection.execute("SELECT boot, ahead FROM clock").fetchone()
        (latest,) = connection.execute("SELECT coalesce(max(written_at), 0) FROM kept").fetchone()
        # Where a start has no name, a clock that was set back shows it.
        if boot != self._boot or latest > self._clock() + self._ahead:
            self._ahead = max(latest - self._clock(), 0.0)
            connection.execute("UPDATE clock SET boot = ?, ahead = ?", (self._boot, self._ahead))


def _identity(path: Path) -> tuple[tuple[int, int] | None, ...]:
    found: list[tuple[int, int] | None] = []
    for suffix in ("", "-wal", "-shm"):
        try:
            status = path.with_name(path.name + suffix).stat()
            found.append((status.st_dev, status.st_ino))
        except FileNotFoundError:
            found.append(None)
    return tuple(found)


def is_ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Tell our file from an empty one.

    Raises:
        ConfigurationError: It is neither.
    """
    # One statement sees one state; between two, another process may have made the file ours.
    application, version, tables = connection.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)"
        " FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if (application, version) == (APPLICATION_ID, VERSION):
        return True
    if application == APPLICATION_ID:
        raise ConfigurationError(
            f"{path} was written by another version of flux2_async (format {version}, this one knows {VERSION}); run"
            " one version in all processes and remove it when none uses it, or name another file:"
            " HostCoordination(path=...)"
        )
    # SQLite takes a file of a few bytes for an empty one.
    if application or version or tables or 0 < path.stat().st_size < SMALLEST:
        raise ConfigurationError(f"{path} is another program's file; name another one: HostCoordination(path=...)")
    return False


def _retry_while_busy(step: Callable[[], object]) -> None:
    """Try for a while what SQLite refuses at once, instead of waiting, when another process is doing the same."""
    give_up_at = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            step()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(RETRY_PAUSE)
        else:
            return


def _close_inherited() -> None:
    for file in tuple(_open_files):
        file._close()  # noqa: SLF001  the lock is held already
    _using.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_using.acquire, after_in_parent=_using.release, after_in_child=_close_inherited)


def explained(error: sqlite3.Error | OSError, path: Path) -> Flux2Error:
    """Give the error to be raised: `ConfigurationError` for what the next try cannot change."""
    if isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return ConfigurationError(f"the shared file cannot be used: {error}; name another: HostCoordination(path=...)")
    # Errors of the Python module itself, and those of the system, have no code of SQLite's.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return ConfigurationError(
            f"{path} is damaged or no SQLite file ({error}); remove it when no process uses it, or name another:"
            " HostCoordination(path=...)"
        )
    advice = {
        sqlite3.SQLITE_BUSY: f"a process has held it for over {BUSY_TIMEOUT:g} s; look for a stopped one",
        sqlite3.SQLITE_FULL: "the file system is full",
        sqlite3.SQLITE_READONLY: "the file, its folder or the file system cannot be written",
        sqlite3.SQLITE_CANTOPEN: "look at the folder and its permissions",
    }.get(code, "look at the file system")
    return CoordinationError(f"the shared file {path} cannot be used: {error}; {advice}")
