"""One account's processes on one host: they share a SQLite file, and need no server."""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import attrs

from flux2_async._shown import showable
from flux2_async.coordination.contract import (
    Answer,
    Claim,
    Coordination,
    Coordinator,
    KeyEntry,
    Message,
    Settlement,
    Terms,
    decode_message,
    encode_message,
)
from flux2_async.coordination.host.file import HostFile, explained
from flux2_async.coordination.host.folder import runtime_folder
from flux2_async.coordination.host.sockets import HAS_SOCKETS, HostSockets, receive
from flux2_async.coordination.host.state import HostState, Told
from flux2_async.errors import ConfigurationError, CoordinationError, Flux2Error

__all__ = ["HostCoordination", "HostCoordinator"]

FILE_NAME: Final = "coordination.sqlite"
FOLDER_SUFFIX: Final = "-peers"
SEAT_LENGTH: Final = 12

T = TypeVar("T")


def _check_path(path: str | os.PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    try:
        # A process may change its directory before the session is opened.
        return Path(path).absolute()
    except TypeError:
        raise ConfigurationError(f"path: {path!r} given, it must be the path of a file, or None") from None


def _check_on_failure(_: object, __: object, value: object) -> None:
    if value not in ("degrade", "fail"):
        raise ConfigurationError(f"on_failure: {value!r} given, it must be 'degrade' or 'fail'")


@showable
@attrs.frozen
class HostCoordination(Coordination):
    """The processes of one user on one host share an account's limit, pause, keys and callbacks, without a server.

    The state is in a SQLite file that holds digests, task ids and refs, never a key. It ends with the machine's run;
    only what `submit(key=)` stands for is known for another 24 hours where the file outlives that. Fork first and open
    sessions then, as uvicorn and gunicorn do. On Windows processes hear nothing from each other, so that a callback
    that another one received is as good as lost.

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
    on_failure: Literal["degrade", "fail"] = attrs.field(default="degrade", kw_only=True, validator=_check_on_failure)

    def coordinator(self, account: str, terms: Terms, on_message: Callable[[Message], None]) -> "HostCoordinator":
        """Make the coordinator of a session, see `Coordination.coordinator`."""
        return HostCoordinator(self._place, account, terms, on_message)

    def _place(self) -> Path:
        return runtime_folder() / FILE_NAME if self.path is None else self.path


class HostCoordinator(Coordinator):
    """One session's seat at the shared file; all work with it is done by one thread of its own.

    Args:
        place: Gives the path of the file.
        account: The digest of address and API key.
        terms: On what terms permits are lent.
        on_message: Called in the event loop with what other processes publish.
        clock: Seconds on a clock that all processes share. Not one that counts the time asleep: a POST's time-out does
            not count it either, and its lease must not end before.
    """

    def __init__(
        self,
        place: Callable[[], Path],
        account: str,
        terms: Terms,
        on_message: Callable[[Message], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        seat = uuid.uuid4().hex[:SEAT_LENGTH]
        self._seat = seat
        self._on_message = on_message
        self._sockets = HostSockets(account, seat)
        self._file = HostFile(place, clock)
        self._state = HostState(self._file, account, terms, seat, self._sockets)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"flux2_async host {seat}")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ear: socket.socket | None = None
        self._closed = False

    async def open(self) -> None:
        """Check the file, and listen; see `Coordinator.open`."""
        self._loop = asyncio.get_running_loop()
        await self._work(self._file.check)

    async def join(self, held: Sequence[float] = (), keeps: Sequence[str] = (), alone: float = 0.0) -> Answer:
        """Take part, at first or again, see `Coordinator.join`."""

        def join_and_tell() -> Answer:
            answer = self._state.join(held, keeps, alone)
            self._sockets.tell([encode_message(self._seat, Message("peers", peers=answer.peers))])
            return answer

        return await self._ask(join_and_tell)

    async def acquire(self, want: int, *, first: bool = False) -> Answer:
        """Ask for permits, see `Coordinator.acquire`."""
        answer = await self._ask(partial(self._state.acquire, first=first), want)
        self._state.undelivered = ()
        return answer

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Give permits back, see `Coordinator.settle`."""
        await self._change(self._state.settle, settlements)

    async def publish(self, message: Message) -> None:
        """Tell the other processes, see `Coordinator.publish`."""
        await self._change(lambda: (message,))

    async def look(self, key: str) -> KeyEntry | None:
        """Give what a key stands for, see `Coordinator.look`."""
        return await self._ask(self._state.look, key)

    async def reserve(self, claim: Claim) -> KeyEntry | None:
        """Reserve a key, see `Coordinator.reserve`."""
        return await self._ask(self._state.reserve, claim)

    async def bind(self, claim: Claim, task_id: str) -> None:
        """Let a reserved key stand for a task, see `Coordinator.bind`."""
        await self._change(self._state.bind, claim, task_id)

    async def doubt(self, claim: Claim) -> None:
        """Say that nobody knows whether a key's task exists, see `Coordinator.doubt`."""
        await self._change(self._state.doubt, claim)

    async def free(self, claim: Claim) -> None:
        """Free a reserved key, see `Coordinator.free`."""
        await self._change(self._state.free, claim)

    async def unknown_in(self, ref: str) -> float | None:
        """Tell when a submission's key is unknown, see `Coordinator.unknown_in`."""
        return await self._ask(self._state.unknown_in, ref)

    async def resolve(self, ref: str, task_id: str) -> None:
        """Use what a callback told, see `Coordinator.resolve`."""
        await self._change(self._state.resolve, ref, task_id)

    async def aclose(self) -> None:
        """Leave, see `Coordinator.aclose`."""
        if self._closed:
            return
        self._closed = True
        if self._loop is None:
            return
        self._listen(self._loop, None)
        try:
            await asyncio.shield(self._loop.run_in_executor(self._worker, self._leave))
        except asyncio.CancelledError:
            # What is under way ends by itself.
            self._worker.shutdown(wait=False)
            raise
        self._worker.shutdown()

    async def _ask(self, question: Callable[..., T], *values: Any) -> T:
        try:
            return await self._work(question, *values)
        except ConfigurationError as error:
            raise CoordinationError(str(error)) from error

    async def _change(self, change: Callable[..., Told], *values: Any) -> None:
        def change_and_tell() -> None:
            self._sockets.tell(encode_message(self._seat, message) for message in change(*values))

        await self._ask(change_and_tell)

    async def _work(self, work: Callable[..., T], *values: Any) -> T:
        if self._loop is None or self._closed:
            raise CoordinationError("the session's place among the processes of its account is not open")
        return await self._loop.run_in_executor(self._worker, partial(self._work_seated, work, *values))

    def _work_seated(self, work: Callable[..., T], *values: Any) -> T:
        if HAS_SOCKETS and not self._sockets.bound:
            self._sit_down()
        return work(*values)

    def _sit_down(self) -> None:
        # The file's own checks come first, since their words are clearer.
        path = self._file.check()
        try:
            ear = self._sockets.bind(path.with_name(path.name + FOLDER_SUFFIX))
        except OSError as error:
            raise explained(error, path) from error
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._listen, self._loop, ear)

    def _listen(self, loop: asyncio.AbstractEventLoop, ear: socket.socket | None) -> None:
        """Read another socket from now on, or none, and close that one."""
        if self._ear is not None:
            loop.remove_reader(self._ear)
            self._ear.close()
        self._ear = None
        if ear is not None and self._closed:
            ear.close()
        elif ear is not None:
            self._ear = ear
            loop.add_reader(ear, self._hear, ear)

    def _hear(self, ear: socket.socket) -> None:
        for line in receive(ear):
            told = decode_message(line)
            if told is not None:
                self._on_message(told[1])

    def _leave(self) -> None:
        # Others bury who cannot say that it leaves.
        with suppress(Flux2Error):
            self._state.leave()
        self._sockets.close()
        self._file.close()
