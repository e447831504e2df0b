"""The sockets by which the processes of a host speak to each other, and by which they know who lives."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fresh_interpreter import in_fresh_interpreter

from flux2_async.coordination.host import sockets
from flux2_async.coordination.host.sockets import LONGEST_ADDRESS, HostSockets, receive
from flux2_async.coordination.store import Life
from flux2_async.errors import ConfigurationError

ACCOUNT = "ab" * 32


@contextmanager
def seated(folder: Path, seat: str, account: str = ACCOUNT) -> Iterator[tuple[HostSockets, socket.socket]]:
    sockets = HostSockets(account, seat)
    with sockets.bind(folder) as listening:
        yield sockets, listening
        sockets.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "peers"


def leave_dead(folder: Path, seat: str) -> Path:
    """What a killed process leaves behind."""
    path = folder / f"{ACCOUNT[:12]}.{seat}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dying:
        dying.bind(str(path))
    return path


def test_all_others_hear(folder: Path) -> None:
    """What one tells, each other of the account hears, and nobody else."""
    with ExitStack() as stack:
        (first, own), (_, second), (_, third) = [stack.enter_context(seated(folder, seat)) for seat in "abc"]
        _, stranger = stack.enter_context(seated(folder, "d", "cd" * 32))
        first.tell("a wake")
        first.tell("a key k")
        heard = [list(receive(listening)) for listening in (own, second, third, stranger)]

    assert heard == [[], ["a wake", "a key k"], ["a wake", "a key k"], []]
    assert list(folder.iterdir()) == []


def test_life_is_known(folder: Path) -> None:
    """Who listens lives; whose socket nobody holds any more is dead; who left no trace may have left."""
    with seated(folder, "a") as (sockets, _), seated(folder, "b"):
        leave_dead(folder, "dead")
        lives = [sockets.life_of(seat) for seat in ("a", "b", "dead", "never")]

    assert lives == [Life.ALIVE, Life.ALIVE, Life.DEAD, Life.GONE]
    assert sockets.life_of("b") == Life.UNKNOWN


LISTENER = """
import sys, time
from pathlib import Path
from flux2_async.coordination.host.sockets import HostSockets
sockets = HostSockets(sys.argv[2], "child")
listening = sockets.bind(Path(sys.argv[1]))
print(flush=True)
time.sleep(60)
"""


def test_killed_process_is_known_to_be_dead_at_once(folder: Path) -> None:
    """The system tells of a process that had no time to leave; a stopped one lives."""
    with seated(folder, "a") as (sockets, _):
        child = subprocess.Popen([sys.executable, "-c", LISTENER, folder, ACCOUNT], stdout=subprocess.PIPE)  # noqa: S603
        assert child.stdout is not None
        with child, child.stdout:
            child.stdout.readline()
            child.send_signal(signal.SIGSTOP)
            stopped = sockets.life_of("child")
            child.kill()
        killed = sockets.life_of("child")

    assert (stopped, killed) == (Life.ALIVE, Life.DEAD)


def outlive_a_parent(folder: str) -> Life:
    here, there = socket.socketpair()
    sockets = HostSockets(ACCOUNT, "parent")
    listening = sockets.bind(Path(folder))
    if os.fork() == 0:
        there.send(b"here I am")
        there.recv(1)
        os._exit(0)
    here.recv(9)
    listening.close()
    with seated(Path(folder), "other") as (other, _):
        life = other.life_of("parent")
    here.send(b"x")
    os.wait()
    return life


def test_forked_child_does_not_pass_for_its_parent(folder: Path) -> None:
    """A child that outlives its parent holds none of its sockets."""
    assert in_fresh_interpreter(outlive_a_parent, str(folder)) == str(Life.DEAD)


def test_who_does_not_read_is_not_waited_for_again(folder: Path) -> None:
    """A full queue holds the sender up once, and once more after the other has read again."""
    with seated(folder, "a") as (sockets, _), seated(folder, "deaf") as (_, deaf), seated(folder, "good") as (_, good):
        for _ in range(2):
            began, heard = time.monotonic(), 0
            for _ in range(700):
                sockets.tell("a wake")
                heard += len(list(receive(good)))
            took = time.monotonic() - began
            kept = list(receive(deaf))

            assert heard == 700
            assert 0 < len(kept) < 700
            # To wait each time would take 35 s.
            assert 0.04 < took < 10.0


@pytest.mark.parametrize("length", [LONGEST_ADDRESS - 30, LONGEST_ADDRESS, 200])
def test_long_path_is_no_obstacle(tmp_path: Path, length: int) -> None:
    """A folder whose name is longer than a socket's may be works where the system can name it by number."""
    folder = tmp_path / "x"
    while len(str(folder)) < length:
        folder.mkdir(exist_ok=True)
        folder /= "y" * min(50, max(1, length - len(str(folder)) - 1))
    with seated(folder, "a") as (sockets, _), seated(folder, "b") as (_, listening):
        sockets.tell("a wake")
        assert list(receive(listening)) == ["a wake"]
        assert sockets.life_of("b") == Life.ALIVE


def test_too_long_path_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the error says what to do."""
    monkeypatch.setattr(Path, "is_dir", lambda _: False)
    sockets = HostSockets(ACCOUNT, "a")
    with pytest.raises(ConfigurationError, match="too long for a socket; name a shorter path"):
        sockets.bind(tmp_path / ("y" * 120))
    sockets.close()


@pytest.mark.parametrize("removed", ["socket", "folder"])
def test_removed_socket_is_noticed(folder: Path, removed: str) -> None:
    """Who cannot be found any more knows it, tells nobody anything, and can take its seat again."""
    with seated(folder, "a") as (sockets, _):
        assert sockets.bound
        for path in folder.iterdir():
            path.unlink()
        if removed == "folder":
            folder.rmdir()
        assert not sockets.bound
        sockets.tell("a wake")
        with sockets.bind(folder), seated(folder, "b") as (other, _):
            assert sockets.bound
            assert other.life_of("a") == Life.ALIVE


def test_old_dead_sockets_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What killed processes leave does not pile up; whoever lives keeps his seat, however old."""
    with seated(folder, "old"):
        dead = leave_dead(folder, "dead")
        with seated(folder, "a"):
            assert dead.exists()
        monkeypatch.setattr(sockets, "STALE_AFTER", -10.0)
        with seated(folder, "b"):
            assert not dead.exists()
            assert len(list(folder.iterdir())) == 2


def test_nonsense_is_read_over(folder: Path) -> None:
    """What is not text, or too long, does not end the reading."""
    with seated(folder, "a") as (_, listening), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
        address = str(next(folder.iterdir()))
        for datagram in (b"\xff\xfe", b"x" * 9000, b"", b"a wake"):
            mouth.sendto(datagram, address)
        lines = list(receive(listening))

    assert [line[:10] for line in lines] == ["\ufffd\ufffd", "x" * 10, "", "a wake"]
