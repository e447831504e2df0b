"""The SQLite file: who may use it, what happens to it, and what it survives."""

import math
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from fresh_interpreter import forked, in_fresh_interpreter

from flux2_async.coordination.host import file as host_file
from flux2_async.coordination.host.file import HostFile, boot_id
from flux2_async.coordination.store import Kept
from flux2_async.errors import ConfigurationError, CoordinationError

INSERT = "INSERT INTO kept VALUES (?, ?, 0, 1e12)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite"


@pytest.fixture
def opened(path: Path) -> Iterator[HostFile]:
    file = HostFile(path)
    file.check()
    yield file
    file.close()


def states(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT name, text FROM kept"))


def write(file: HostFile, account: str, state: str = "{}") -> None:
    with file.transaction() as (connection, _):
        connection.execute(INSERT, (account, state))


def test_new_file_is_for_its_user_alone(opened: HostFile, path: Path) -> None:
    """Whatever the mask, nobody else can read the file or what SQLite puts beside it."""
    write(opened, "a")
    modes = {name.name: name.stat().st_mode & 0o777 for name in path.parent.iterdir()}

    assert modes == {"state.sqlite": 0o600, "state.sqlite-wal": 0o600, "state.sqlite-shm": 0o600}


def test_who_reads_has_the_file_alone_already(opened: HostFile, path: Path) -> None:
    """What a transaction read is still so when it writes: nobody else can begin one meanwhile."""
    with opened.transaction() as (connection, _), closing(sqlite3.connect(path, timeout=0)) as other:
        connection.execute("SELECT * FROM kept").fetchall()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")


def test_exception_undoes_what_was_written(opened: HostFile, path: Path) -> None:
    """A transaction is written whole or not at all."""
    with pytest.raises(ZeroDivisionError), opened.transaction() as (connection, _):
        connection.execute(INSERT, ("a", "{}"))
        raise ZeroDivisionError
    write(opened, "b")

    assert states(path) == {"b": "{}"}


@pytest.mark.parametrize("content", [b"a letter to grandmother, longer than the head of a database " * 4, b"x"])
def test_foreign_file_is_not_touched(path: Path, content: bytes) -> None:
    """What is no SQLite file is refused, and stays as it is."""
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"no SQLite file|another program"):
        HostFile(path).check()

    assert path.read_bytes() == content


def test_database_of_another_program_is_not_touched(path: Path) -> None:
    """Somebody else's tables are refused, and stay as they are."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    content = path.read_bytes()
    with pytest.raises(ConfigurationError, match="another program's"):
        HostFile(path).check()

    assert path.read_bytes() == content
    assert [name.name for name in path.parent.iterdir()] == ["state.sqlite"]


@pytest.mark.parametrize("version", [1, 7])
def test_file_of_another_version_is_not_touched(opened: HostFile, path: Path, version: int) -> None:
    """A format that this version does not know is told by its number: who wrote it may still use the whole limit."""
    with opened.transaction() as (connection, _):
        connection.execute(f"PRAGMA user_version = {version}")
    opened.close()
    content = path.read_bytes()
    with pytest.raises(ConfigurationError, match=rf"format {version}, this one knows 2\); run one version"):
        opened.check()

    assert path.read_bytes() == content


def test_damaged_file_is_told_and_kept(opened: HostFile, path: Path) -> None:
    """A file whose pages make no sense is an error that says what to do, and is not overwritten."""
    write(opened, "a")
    opened.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="damaged"):
        write(opened, "b")
    opened.close()

    assert path.read_bytes() == content


def test_missing_folder_is_told(tmp_path: Path) -> None:
    """The folder of a named file is the user's to make."""
    with pytest.raises(ConfigurationError, match="is no folder; make it"):
        HostFile(tmp_path / "none" / "state.sqlite").check()


def test_a_folder_is_told_as_one(tmp_path: Path) -> None:
    """Nobody is advised to remove a folder because it is no file."""
    with pytest.raises(ConfigurationError, match="is a folder; name a file in one"):
        HostFile(tmp_path).check()


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_file_that_disappears_is_made_anew(opened: HostFile, path: Path, *, replaced: bool) -> None:
    """Who still had the removed file open goes on with what lies at the path, together with all others."""
    write(opened, "a")
    for name in list(path.parent.iterdir()):
        name.unlink()
    other = HostFile(path)
    if replaced:
        write(other, "b")
    write(opened, "c")

    assert set(states(path)) == ({"b", "c"} if replaced else {"c"})
    other.close()


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_removed_part_of_the_journal_does_not_split_the_processes(opened: HostFile, path: Path, suffix: str) -> None:
    """A cleaner of temporary files takes a part of the journal away; after an error each they are together again."""
    other = HostFile(path)
    write(other, "a")
    path.with_name(path.name + suffix).unlink()
    for file in (opened, other):
        with suppress(CoordinationError):
            file.check()
    write(opened, "b")
    write(other, "c")
    with opened.transaction() as (connection, _):
        seen = {name for (name,) in connection.execute("SELECT name FROM kept")}

    assert {"b", "c"} <= seen
    other.close()


def test_file_held_by_a_stopped_process_is_an_error(
    opened: HostFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cannot have the file within the time allowed is told to look for a stopped process, and may try again."""
    monkeypatch.setattr(host_file, "BUSY_TIMEOUT", 0.05)
    opened.close()
    with closing(sqlite3.connect(path)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(CoordinationError, match=r"held it for over 0\.05 s"):
            opened.check()
    write(opened, "a")

    assert set(states(path)) == {"a"}


@pytest.mark.parametrize("lock", ["BEGIN; SELECT * FROM sqlite_master", "BEGIN EXCLUSIVE"], ids=["read", "written"])
def test_new_file_that_another_looks_at_can_wait(path: Path, monkeypatch: pytest.MonkeyPatch, lock: str) -> None:
    """Who meets a new file while another process has it is told so in time, and makes the tables later."""
    monkeypatch.setattr(host_file, "BUSY_TIMEOUT", 0.05)
    file = HostFile(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        cursor = [holder.execute(statement) for statement in lock.split(";")]
        with pytest.raises(CoordinationError, match="held it for over"):
            file.check()
        del cursor
    write(file, "a")

    assert set(states(path)) == {"a"}
    file.close()


def test_full_file_system_is_an_error(opened: HostFile) -> None:
    """What cannot be written is told as what it is, and undone."""
    with opened.transaction() as (connection, _):
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(CoordinationError, match="the file system is full"):
        write(opened, "a", "x" * 100_000)
    write(opened, "b")

    assert set(states(opened.check())) == {"b"}


def test_file_that_may_not_grow_is_an_error(path: Path) -> None:
    """A limit on the size of files, met in the middle of a transaction, leaves what was written before."""
    file = HostFile(path)
    for number in range(3):
        write(file, f"{number}")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name(path.name + "-wal").stat().st_size, limits[1]))
        with pytest.raises(CoordinationError, match="look at the file system"):
            write(file, "big", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    write(file, "3")

    assert set(states(path)) == {"0", "1", "2", "3"}
    file.close()


def test_read_only_file_is_an_error(opened: HostFile) -> None:
    """What cannot be written because somebody forbids it is told as what it is."""
    with opened.transaction() as (connection, _):
        connection.execute("PRAGMA query_only = 1")
    with pytest.raises(CoordinationError, match="cannot be written"):
        write(opened, "a")


def boots(path: Path, boot: str, now: float) -> tuple[HostFile, list[float]]:
    clock = [now]
    return HostFile(path, lambda: clock[0], boot), clock


@pytest.mark.parametrize(
    ("boot", "clock", "now"),
    [("one", 5050.0, 5050.0), ("two", 5050.0, 5050.0), ("two", 3.0, 5000.0), ("one", 3.0, 5000.0)],
    ids=["same", "other", "other-earlier", "unnamed"],
)
def test_time_goes_on_after_a_start_of_the_machine(path: Path, boot: str, clock: float, now: float) -> None:
    """Where another start's clock, or one that was set back, shows less than is written, time goes on from there."""
    before, _ = boots(path, "one", 5000.0)
    before.update("a", lambda _, __: Kept("{}", 3600.0, None))
    before.close()
    for _ in range(2):
        after, shown = boots(path, boot, clock)
        assert after.update("a", lambda text, at: Kept(text, 0.0, (text, at))) == ("{}", now)
        shown[0] += 10.0
        assert after.update("a", lambda text, at: Kept(text, 0.0, at)) == now + 10.0
        after.close()


def test_what_is_over_is_removed(path: Path) -> None:
    """A new name takes what is over out of the file; what was kept for ever stays."""
    file, clock = boots(path, "one", 5000.0)
    for name, seconds in (("a", 10.0), ("b", 1000.0), ("c", math.inf)):
        file.update(name, lambda _, __, seconds=seconds: Kept("{}", seconds, None))  # type: ignore[misc]  # mypy knows no default there
    clock[0] = 5011.0
    file.update("d", lambda _, __: Kept("{}", 10.0, None))
    file.close()

    assert set(states(path)) == {"b", "c", "d"}


def test_start_of_the_machine_has_a_name() -> None:
    """All processes give the start the same name, where the system has one."""
    assert boot_id() == boot_id()
    assert bool(boot_id()) == sys.platform.startswith("linux")


def test_new_file_that_another_makes_ours_meanwhile_is_not_foreign(path: Path) -> None:
    """Whenever another process writes the tables of a new file, who looks sees it before or after, never between."""
    for moment in (1, 2, 3):
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path, isolation_level=None)) as looking:
            seen: list[str] = []

            def trace(statement: str, seen: list[str] = seen, moment: int = moment) -> None:
                seen.append(statement)
                if len(seen) == moment:
                    # Refused at once where the one who looks holds what it sees.
                    with (
                        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other,
                        suppress(sqlite3.OperationalError),
                    ):
                        for each in ("BEGIN", *host_file.SCHEMA, "COMMIT"):
                            other.execute(each)

            looking.set_trace_callback(trace)
            assert host_file.is_ours(looking, path) in (True, False)


def test_many_open_a_new_file_at_once(path: Path) -> None:
    """Threads that meet at a file that does not exist yet make it once, and all can write."""
    barrier = threading.Barrier(8)

    def enter(name: str) -> None:
        file = HostFile(path)
        barrier.wait()
        write(file, name)
        file.close()

    threads = [threading.Thread(target=enter, args=(f"{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(states(path)) == 8


WRITER = """
import sys
from pathlib import Path
from flux2_async.coordination.host.file import HostFile
file = HostFile(Path(sys.argv[1]))
number = 0
while True:
    with file.transaction() as (connection, _):
        connection.execute("INSERT OR REPLACE INTO kept VALUES ('one', ?, 0, 1e12)", ("x" * (number % 50) * 1000,))
        connection.execute("INSERT OR REPLACE INTO kept VALUES ('two', ?, 0, 1e12)", ("x" * (number % 50) * 1000,))
    number += 1
    if number == 3:
        print(flush=True)
"""


def test_kill_at_any_instant_leaves_the_file_whole(path: Path) -> None:
    """A writer is killed in the middle of its work, again and again: what it wrote is there whole or not at all."""
    for number in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)  # noqa: S603  ours
        assert writer.stdout is not None
        with writer, writer.stdout:
            writer.stdout.readline()
            time.sleep(0.0007 * number)
            writer.kill()
        found = states(path)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert found["one"] == found["two"]


def open_files() -> list[str]:
    links = Path("/proc/self/fd").iterdir()
    return [str(link.readlink()) for link in links if link.is_symlink()]


def write_on_both_sides(path: str) -> tuple[int, int]:
    opened = HostFile(Path(path))
    write(opened, "before")

    def child() -> None:
        assert [name for name in open_files() if "state.sqlite" in name] == []
        write(opened, "child")

    code = forked(child)
    write(opened, "parent")
    return code, threading.active_count()


def test_both_sides_of_a_fork_can_go_on(path: Path) -> None:
    """A child does not share its parent's connection, and neither hurts the other."""
    assert in_fresh_interpreter(write_on_both_sides, str(path)) == "(0, 1)"
    assert set(states(path)) == {"before", "child", "parent"}


def fork_during_a_transaction(path: str) -> int:
    opened = HostFile(Path(path))
    opened.check()
    inside = threading.Event()

    def slow() -> None:
        with opened.transaction() as (connection, _):
            inside.set()
            time.sleep(0.1)
            connection.execute(INSERT, ("thread", "{}"))

    thread = threading.Thread(target=slow)
    thread.start()
    inside.wait()
    code = forked(lambda: write(opened, "child"))
    thread.join()
    return code


def test_fork_waits_for_the_transaction_under_way(path: Path) -> None:
    """A child that was made while a thread wrote is not left with that thread's lock."""
    assert in_fresh_interpreter(fork_during_a_transaction, str(path)) == "0"
    assert set(states(path)) == {"thread", "child"}
    assert set(states(path)) == {"thread", "child"}
