"""How the processes of a host tell each other something: each listens on a datagram socket in a folder beside the file.

That costs no wake-up while nobody speaks. A datagram is lost when its receiver does not read for a while; every message
may be lost. The sockets also tell who lives: the system closes those of a killed process, and refuses what is sent to
them from then on. Where there are no such sockets (Windows) nothing is told and nobody is known to be dead.
"""

import os
import socket
import struct
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from flux2_async.coordination.host.folder import private_folder
from flux2_async.coordination.store import Life
from flux2_async.errors import ConfigurationError

# 108 bytes on Linux, 104 elsewhere, one of them for the end.
LONGEST_ADDRESS: Final = 103
LONGEST_DATAGRAM: Final = 65536
# What a process that is alive may take to read the ten datagrams that Linux keeps for it, in seconds and microseconds.
SEND_TIMEOUT: Final = struct.pack("@ll", 0, 50_000)
# What the owner of a dead socket had borrowed has expired by then.
STALE_AFTER: Final = 3600.0
ONE_ACCOUNT: Final = 12
HAS_SOCKETS: Final = hasattr(socket, "AF_UNIX") and os.name == "posix"

_open_sockets: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()


class HostSockets:
    """The socket of one process of an account, named after its member, and its view of the others'."""

    def __init__(self, account: str, member: str) -> None:
        self._account = account[:ONE_ACCOUNT]
        self._member = member
        self._folder: Path | None = None
        self._folder_fd = -1
        self._sending: socket.socket | None = None
        # Who did not read lately is not waited for.
        self._silent: set[str] = set()

    @property
    def bound(self) -> bool:
        """Whether the others find this process; who removes the folder takes the socket along."""
        return self._folder is not None and os.path.lexists(self._folder / self._name(self._member))

    def bind(self, folder: Path) -> socket.socket:
        """Listen in a folder, made when it is missing; give the socket to be read, which the caller closes.

        Raises:
            ConfigurationError: The folder cannot be trusted, or its name is too long.
            OSError: It cannot be used.
        """
        self.close()
        self._folder = private_folder(folder)
        self._folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        oldest = time.time() - STALE_AFTER
        for path in folder.iterdir():
            with suppress(OSError):
                if path.lstat().st_ctime < oldest and self._life_of(path.name) is Life.DEAD:
                    path.unlink()
        self._sending = _new_socket()
        self._sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, SEND_TIMEOUT)
        listening = _new_socket()
        listening.settimeout(0)
        try:
            listening.bind(self._address(self._name(self._member)))
        except BaseException:
            listening.close()
            raise
        return listening

    def close(self) -> None:
        """Listen no more."""
        if self._folder is not None:
            with suppress(OSError):
                self._folder.joinpath(self._name(self._member)).unlink()
        if self._sending is not None:
            self._sending.close()
        if self._folder_fd >= 0:
            os.close(self._folder_fd)
        self._folder, self._folder_fd, self._sending = None, -1, None

    def tell(self, line: str) -> None:
        """Send a line to all others of the account who listen."""
        if self._folder is None or self._sending is None:
            return
        own, content = self._name(self._member), line.encode()
        # Who has removed the folder learns it at the next question.
        with suppress(OSError):
            for name in sorted(path.name for path in self._folder.iterdir()):
                if name.startswith(f"{self._account}.") and name != own:
                    self._send(self._sending, name, content)

    def life_of(self, member: str) -> Life:
        """Tell whether a process lives."""
        if self._folder is None:
            return Life.UNKNOWN
        return Life.ALIVE if member == self._member else self._life_of(self._name(member))

    def _name(self, member: str) -> str:
        return f"{self._account}.{member}"

    def _address(self, name: str) -> str:
        address = f"{self._folder}/{name}"
        if len(os.fsencode(address)) <= LONGEST_ADDRESS:
            return address
        if not Path(f"/proc/self/fd/{self._folder_fd}").is_dir():
            raise ConfigurationError(
                f"{address} has over {LONGEST_ADDRESS} bytes, which is too long for a socket; name a shorter path:"
                " HostCoordination(path=...)"
            )
        return f"/proc/self/fd/{self._folder_fd}/{name}"

    def _send(self, sending: socket.socket, name: str, content: bytes) -> None:
        try:
            sending.sendto(content, socket.MSG_DONTWAIT if name in self._silent else 0, self._address(name))
        except BlockingIOError:
            self._silent.add(name)
        except OSError:
            # Dead, or gone meanwhile; macOS says so as well when the other does not read.
            return
        else:
            self._silent.discard(name)

    def _life_of(self, name: str) -> Life:
        with _new_socket() as knock:
            try:
                knock.connect(self._address(name))
            except ConnectionRefusedError:
                return Life.DEAD
            except FileNotFoundError:
                return Life.GONE
            except OSError:
                return Life.UNKNOWN
        return Life.ALIVE


def receive(listening: socket.socket) -> Iterator[str]:
    """Give the lines that have arrived."""
    with suppress(OSError):
        while True:
            yield listening.recv(LONGEST_DATAGRAM).decode(errors="replace")


def _new_socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    _open_sockets.add(made)
    return made


def _close_inherited() -> None:
    # Else the child would seem to be its parent, and hold its messages back.
    for inherited in tuple(_open_sockets):
        inherited.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
