"""One account's processes on one host: they share a SQLite file, and need no server."""

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import attrs

from flux2_async._http.one_thread import OneThread
from flux2_async._shown.frames import showable
from flux2_async.coordination.host.file import HostFile, explained
from flux2_async.coordination.host.sockets import HAS_SOCKETS, HostSockets, receive
from flux2_async.coordination.store import Change, Coordination, Life, Store, check_settings
from flux2_async.errors import ConfigurationError, CoordinationError

FOLDER_SUFFIX: Final = "-peers"

T = TypeVar("T")


def _check_path(path: str | os.PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    try:
        # A process may change its directory before the session is opened.
        found = Path(path).absolute()
        os.fsencode(found)
    except (TypeError, UnicodeEncodeError):
        raise ConfigurationError(f"path: {path!r} given, it must be the path of a file, or None") from None
    return found


@showable
@attrs.frozen
class HostCoordination(Coordination):
    """The processes of one user on one host share an account's limit, pause, keys and callbacks, without a server.

    The state is in a SQLite file that holds digests, task ids and refs, never a key. It ends with the machine's run;
    only what `submit(key=)` stands for is known for `key_ttl` (24 hours by default) where the file outlives that. Fork
    first and open sessions then, as uvicorn and gunicorn do. On Windows processes cannot notify each other, so a
    callback that reaches another process is lost, and polls find the result. A file of a version that
    keeps another state is not used, and `open` says so: else each version would use the whole limit.

    Attributes:
        path: The file, made when it is missing, on a local file system; beside it a folder of its name and `-peers`.
            None: `flux2_async/coordination.sqlite` in XDG_RUNTIME_DIR, or `flux2_async-UID/coordination.sqlite` in the
            temporary directory. Name a path for processes that do not see the same of these: a service and a shell, a
            service with a private /tmp, containers that share a volume.
        on_failure: What submissions without a key do when the file cannot be used: `degrade` to a safe share of the
            limit, or `fail` with `CoordinationError`.

    Raises:
        ConfigurationError: An argument cannot be used.
    """

    path: Path | None = attrs.field(default=None, converter=_check_path)
    on_failure: Literal["degrade", "fail"] = attrs.field(
        default="degrade", kw_only=True, validator=lambda _, __, value: check_settings(value)
    )

    def store(self, account: str, member: str) -> "HostStore":
        """Make the store of a session, see `Coordination.store`."""
        return HostStore(HostFile(self.path), account, member)


class HostStore(Store):
    """The file, and the sockets of all who use it; all work with them is done by one thread of its own.

    A killed process is found out by its socket, on which nobody listens any more.
    """

    def __init__(self, file: HostFile, account: str, member: str) -> None:
        self._file = file
        self._account = account
        self._sockets = HostSockets(account, member)
        self._worker = OneThread(f"flux2_async host {member}")
        self._on_line: Callable[[str], None] = lambda _: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listening: socket.socket | None = None
        self._closed = False

    async def listen(self, on_line: Callable[[str], None]) -> None:
        """Check the file, and listen; see `Store.listen`."""
        self._on_line, self._loop = on_line, asyncio.get_running_loop()
        await self._work(self._file.check)

    async def update(self, name: str, change: Change[T]) -> T:
        """Change a text in one transaction, see `Store.update`."""
        return await self._later(self._file.update, f"{self._account}:{name}", change)

    async def publish(self, line: str) -> None:
        """Tell the other processes, see `Store.publish`."""
        await self._later(self._sockets.tell, line)

    def life_of(self, member: str) -> Life:
        """Tell whether a member lives, see `Store.life_of`."""
        return self._sockets.life_of(member)

    async def aclose(self) -> None:
        """Leave, see `Store.aclose`."""
        closed, self._closed = self._closed, True
        if closed or self._loop is None:
            return
        self._read(self._loop, None)
        try:
            await asyncio.shield(self._loop.run_in_executor(self._worker, self._leave))
        except asyncio.CancelledError:
            # What is under way ends by itself.
            self._worker.shutdown(wait=False)
            raise
        self._worker.shutdown()

    async def _later(self, work: Callable[..., T], *values: Any) -> T:
        """Do what `listen` has shown to be possible once."""
        try:
            return await self._work(work, *values)
        except ConfigurationError as error:
            raise CoordinationError(str(error)) from error

    async def _work(self, work: Callable[..., T], *values: Any) -> T:
        if self._loop is None or self._closed:
            raise CoordinationError("the session's place among the processes of its account is not open")
        return await self._loop.run_in_executor(self._worker, partial(self._work_bound, self._loop, work, *values))

    def _work_bound(self, loop: asyncio.AbstractEventLoop, work: Callable[..., T], *values: Any) -> T:
        if HAS_SOCKETS and not self._sockets.bound:
            # The file's own checks come first, since their words are clearer.
            path = self._file.check()
            try:
                listening = self._sockets.bind(path.with_name(path.name + FOLDER_SUFFIX))
            except OSError as error:
                raise explained(error, path) from error
            loop.call_soon_threadsafe(self._read, loop, listening)
        return work(*values)

    def _read(self, loop: asyncio.AbstractEventLoop, listening: socket.socket | None) -> None:
        """Read another socket from now on, or none, and close that one."""
        if self._listening is not None:
            loop.remove_reader(self._listening)
            self._listening.close()
        self._listening = None
        if listening is not None and self._closed:
            listening.close()
        elif listening is not None:
            self._listening = listening
            loop.add_reader(listening, self._hear, listening)

    def _hear(self, listening: socket.socket) -> None:
        for line in receive(listening):
            if line:
                self._on_line(line)

    def _leave(self) -> None:
        self._sockets.close()
        self._file.close()
