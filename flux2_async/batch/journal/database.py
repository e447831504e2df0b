"""SQLite beside an event loop: one thread, and one commit for all that was asked for while the last one ran."""

import asyncio
import errno
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs

from flux2_async._http.one_thread import OneThread
from flux2_async.batch.ended import ended
from flux2_async.batch.journal.lock import locked
from flux2_async.batch.journal.place import Place
from flux2_async.batch.journal.room import MissingRoomError, Room, begin_anew
from flux2_async.batch.journal.schema import JournalError, connect, transaction

T = TypeVar("T")

Change = Callable[[sqlite3.Connection], Any]


@attrs.define(eq=False)
class _Write:
    change: Change
    durable: bool
    answer: bool
    done: "asyncio.Future[Any]"


@attrs.frozen(eq=False)
class _File:
    """The journal's file, open, and the thread for all that is done with it."""

    thread: OneThread
    connection: sqlite3.Connection
    place: Place
    room: Room

    @classmethod
    def of(cls, thread: OneThread, path: Path) -> "_File":
        """Open the file, in its thread; JournalError: it is being used, or is no journal."""
        with ExitStack() as opening:
            try:
                # Before SQLite, which takes the log of a journal for its own where the first lock was given up.
                file = opening.enter_context(locked(path))
            except OSError:
                # There is none yet, or what is there is no file: said below.
                file = None
            connection = opening.enter_context(closing(connect(path)))
            opened = cls(thread, connection, Place.of(path, connection), Room(file or locked(path)))
            opening.pop_all()
            return opened

    def close(self) -> None:
        """Close and unlock it, in its thread; the lock of ours goes last, see `locked`."""
        self.connection.close()
        self.room.file.close()


class Database:
    """The journal's file; what was closed may be opened again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: _File | None = None
        # Called in the thread, behind each commit, with its results; must not raise.
        self.committed: Callable[[Sequence[Any]], object] | None = None
        self._waiting: list[_Write] = []
        self._committing: asyncio.Future[list[Any]] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._file is not None

    async def open(self) -> None:
        """Open the file; JournalError: it cannot be used."""
        if self._file is not None:
            raise JournalError(f"journal: {str(self._path)!r} is open already")
        thread = OneThread("flux2 journal")
        opening = thread.submit(_File.of, thread, self._path)
        try:
            self._file = await asyncio.shield(asyncio.wrap_future(opening))
        except BaseException:
            # The thread goes on when we are cancelled, and what it opens would keep the file locked.
            closing = asyncio.wrap_future(thread.submit(_close, opening))
            thread.shutdown(wait=False)
            await ended(closing)
            raise

    async def aclose(self) -> None:
        """Write what is waiting, and unlock the file, also when that is cancelled meanwhile."""
        file, self._file = self._file, None
        if file is not None:
            closing = asyncio.create_task(self._finish(file))
            await ended(closing)
            closing.result()

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Ask something, or change much in a transaction of its own, after all that `write` was asked for before.

        `query` is called with the connection in the thread, between two commits. OSError: the disk is full or broken;
        JournalError: the file is torn or closed.
        """
        file = self._opened()
        if self._waiting:
            # Whoever asked for what fails is told.
            with suppress(Exception):
                await self.write(lambda _: None)
        return await _run(file, partial(self._guarded, partial(query, file.connection)))

    def write(self, change: Change, *, durable: bool = False, answer: bool = False) -> "asyncio.Future[Any]":
        """Change something; it is on its way when this returns, and a cancelled waiter does not stop it.

        `change` is called with the connection in the thread, in a transaction with others; what it gives is the result
        of the future, which raises like `read`, and then nothing is changed. A `durable` change survives a power
        failure once it is awaited; it raises JournalError, and is made all the same, where the file is not in its place
        any more. The `answer` of a POST has its room on a full disk: all else that is durable raises when it has none.
        """
        file = self._opened()
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Write(change, durable, answer, done))
        if len(self._waiting) == 1:
            self._commit_soon(file)
        return done

    async def check_place(self) -> None:
        """Raise JournalError where the next run would not find the file."""
        file = self._opened()
        await _run(file, file.place.check)

    async def _finish(self, file: _File) -> None:
        self._commit_waiting(file)
        while self._committing is not None:
            await asyncio.wait([self._committing])
            self._commit_waiting(file)
        await _run(file, file.close)
        file.thread.shutdown(wait=False)

    def _opened(self) -> _File:
        if self._file is None:
            raise JournalError(f"journal: {str(self._path)!r} is not open; use `async with Journal(path) as journal`")
        return self._file

    def _commit_soon(self, file: _File) -> None:
        # All that is ready in the loop may ask for something first: a commit costs as much as twenty changes.
        asyncio.get_running_loop().call_soon(self._commit_waiting, file)

    def _commit_waiting(self, file: _File) -> None:
        if self._committing is not None or not self._waiting:
            return
        writes, self._waiting = self._waiting, []
        commit = partial(self._guarded, partial(self._commit, writes, file))
        self._committing = asyncio.get_running_loop().run_in_executor(file.thread, commit)
        self._committing.add_done_callback(partial(self._committed, writes, file))

    def _committed(self, writes: Sequence[_Write], file: _File, commit: "asyncio.Future[list[Any]]") -> None:
        self._committing = None
        error = commit.exception()
        results = [error] * len(writes) if error is not None else commit.result()
        for write, result in zip(writes, results, strict=True):
            if not write.done.done():
                failed = isinstance(result, Exception)
                write.done.set_exception(result) if failed else write.done.set_result(result)
        if self._waiting:
            self._commit_soon(file)

    def _commit(self, writes: Sequence[_Write], file: _File) -> list[Any]:
        try:
            results = _together(writes, file)
        except (sqlite3.OperationalError, OSError) as error:
            if not _is_full(error):
                raise
            # What waits may be the id of a paid task.
            order = sorted(range(len(writes)), key=lambda number: not writes[number].answer)
            alone = {number: self._alone(writes[number], file) for number in order}
            results = [alone[number] for number in range(len(writes))]
        if self.committed is not None:
            self.committed(results)
        # Behind the commit: what is found here now is found by the next run.
        try:
            if any(write.durable for write in writes):
                file.place.check()
        except JournalError as error:
            return [error if write.durable else result for write, result in zip(writes, results, strict=True)]
        return results

    def _alone(self, write: _Write, file: _File) -> Any:
        """Commit one that others shall not take along; give its result or its error."""
        try:
            begin_anew(file.connection)
            [result] = _together([write], file)
        except (sqlite3.OperationalError, OSError) as error:
            if not _is_full(error):
                raise
            return _explained(error, self._path)
        return result

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except sqlite3.Error as error:
            reason = error
        raise _explained(reason, self._path)


async def _run(file: _File, call: Callable[[], T]) -> T:
    # A cancelled waiter leaves at once and the thread goes on, so that calls keep their order.
    return await asyncio.shield(asyncio.get_running_loop().run_in_executor(file.thread, call))


def _close(opening: "Future[_File]") -> None:
    if opening.exception() is None:
        opening.result().close()


def _together(writes: Sequence[_Write], file: _File) -> list[Any]:
    if all(write.answer for write in writes):
        return _transaction(writes, file.connection, nullcontext())
    while True:
        try:
            return _transaction(writes, file.connection, file.room.kept(file.connection))
        except MissingRoomError as error:
            missing = error.pages
        file.room.make(file.connection, missing)


def _is_full(error: sqlite3.OperationalError | OSError) -> bool:
    # A quota, or a limit of file sizes, is not always told as a full disk.
    return isinstance(error, OSError) or error.sqlite_errorname in (
        "SQLITE_FULL",
        "SQLITE_IOERR_WRITE",
        "SQLITE_IOERR_FSYNC",
    )


def _transaction(
    writes: Sequence[_Write], connection: sqlite3.Connection, kept: AbstractContextManager[None]
) -> list[Any]:
    # EXTRA waits for the disk at each commit, NORMAL at checkpoints; neither loses anything to a kill. With a log FULL
    # would do as well, but where the file system knows none a rollback journal that was removed may come back.
    level = "EXTRA" if any(write.durable for write in writes) else "NORMAL"
    with transaction(connection, level), kept:
        return [write.change(connection) for write in writes]


def _explained(error: sqlite3.Error | OSError, path: Path) -> Exception:
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, str(path))
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL":
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")):
        return OSError(errno.EIO, f"the journal cannot be written ({name}: {error})", str(path))
    return JournalError(f"journal: {str(path)!r} cannot be used any more ({name or type(error).__name__}: {error})")
