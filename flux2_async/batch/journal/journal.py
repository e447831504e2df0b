"""The journal: what became of every request, on disk before it matters.

What a power failure takes from the end of SQLite's log is found to be missing and costs nothing, since nothing was sent
because of it. A log that a person cuts or deletes looks the same, and with it goes what was paid: copy and move the
files of a journal together, or close it before.
"""

import os
import sqlite3
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

from flux2_async._protocol.media import MAX_PICTURE
from flux2_async._shown.frames import showable
from flux2_async.batch.jobs import InvalidInputError
from flux2_async.batch.journal.changing import Changing
from flux2_async.batch.journal.database import Database
from flux2_async.batch.journal.decisions import UnknownRequest, decide, unknown_requests
from flux2_async.batch.journal.entry import Entry
from flux2_async.batch.journal.rows import SHOWN, TAKEN, Row, line_of, outcome_of, row_of
from flux2_async.batch.journal.schema import JournalError
from flux2_async.batch.journal.start import WANTED, Start, begin, forget_unfinished, seconds_taken
from flux2_async.batch.options import Options
from flux2_async.batch.outcomes import Outcome, State
from flux2_async.session.arguments import check_path
from flux2_async.session.as_completed import in_chunks

T = TypeVar("T")

CHUNK: Final = 500


@showable
class Journal(Changing):
    """A journal in a file, for one process at a time; use it as `async with Journal("run.db") as journal`.

    Args:
        path: The file, made when it is missing. SQLite keeps another one beside it while it is open.

    Attributes:
        path: As given.
        working: Whether a batch is running with it.

    Raises:
        ConfigurationError: No file can have this path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = check_path("journal", path)
        self.working: bool = False
        super().__init__(Database(self.path))

    def __repr__(self) -> str:
        return f"<Journal {str(self.path)!r} {'open' if self._database.is_open else 'not open'}>"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Open the file and keep other processes out.

        Raises:
            JournalError: It is another process's, no journal, torn, of a newer version, or cannot be opened.
        """
        await self._database.open()

    async def aclose(self) -> None:
        """Close the file; calling it again does nothing."""
        await self._database.aclose()

    async def outcomes(self, *, state: State | None = None) -> AsyncIterator[Outcome]:
        """Read what there is.

        Args:
            state: Only requests in this state. None: all.

        Yields:
            The requests that the last run was asked for, and all that were ever sent, in the order of the input.

        Raises:
            JournalError: It is not open.
            OSError: The disk is broken.
        """
        after = (-1, -1)
        while rows := await self.read(partial(_page, after)):
            for row in rows:
                if state is None or row["state"] == state:
                    yield outcome_of(row)
            after = (rows[-1]["line"], rows[-1]["number"])

    async def unknown(self) -> list[UnknownRequest]:
        """Read the requests that may have been accepted, in the order of the input: what a person has to decide.

        Raises:
            JournalError: It is not open, or a batch is running with it.
            OSError: The disk is broken.
        """
        self._check_idle()
        return await self.read(unknown_requests)

    async def resolve_unknown(
        self, *, found: Mapping[str, str] | None = None, never_made: Iterable[str] = ()
    ) -> list[Outcome]:
        """Write down what became of requests that may have been accepted, all of it or nothing, for the next run.

        Example:
            async with Journal("run.db") as journal:
                for unknown in await journal.unknown():
                    await journal.resolve_unknown(found={unknown.outcome.id: task_id})

        Args:
            found: The task that a request became, by the request's id: it is waited for and downloaded, and never sent.
                None: none became one.
            never_made: Ids of requests, or one id, that were certainly not accepted: they are sent again, and paid a
                second time if that was wrong. What is in neither stays unknown.

        Returns:
            These requests as they are now, on disk.

        Raises:
            InvalidRequestError: An id that no unknown request has, what can be no task id, or a task that is another
                request's; the text names each request and its line. Nothing was changed.
            JournalError: It is not open, or a batch is running with it.
            OSError: The disk is full or broken.
        """
        self._check_idle()
        # Of one text each character would be an id, and what was made would be paid for again.
        ids = dict.fromkeys([never_made] if isinstance(never_made, str) else never_made)
        return await self.read(partial(decide, found=dict(found or {}), never_made=list(ids)))

    def _check_idle(self) -> None:
        if self.working:
            raise JournalError(f"journal: a batch is running with {str(self.path)!r}; stop it first")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run a batch with it, one at a time: two would take the same requests for their own."""
        self._check_idle()
        self.working = True
        try:
            yield
        finally:
            self.working = False

    # What follows is for those who run a batch.

    async def use_lines(self, use: Callable[[Iterator[bytes]], T]) -> T:
        """Call something in the journal's thread with what `outcomes` gives, as lines and as it is at one moment."""
        return await self.read(lambda connection: use(map(line_of, _select_wanted(connection))))

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Ask something in the journal's thread; see `Database.read`."""
        return await self._database.read(query)

    async def enter(
        self,
        requests: Iterable[object] | AsyncIterable[object],
        options: Options,
        max_image_bytes: int = MAX_PICTURE,
        ready: Callable[[], Awaitable[object]] | None = None,
    ) -> Entry:
        """Take the input, all of it or nothing, see `Entry`: `InvalidInputError` changes nothing.

        Nor does what `ready` raises, which is awaited when all of the input was checked.
        """
        async with self._entry(requests, options, max_image_bytes) as entry:
            if ready is not None:
                await ready()
            await self.read(lambda _: entry.end())
        return entry

    async def preview(
        self, requests: Iterable[object] | AsyncIterable[object], options: Options
    ) -> tuple[Entry, Start, float | None]:
        """Tell what `enter`, `begin` and `seconds_taken` would give, and leave the journal as it is."""
        self._check_idle()

        def preview(connection: sqlite3.Connection) -> tuple[Entry, Start, float | None]:
            entry.cut()
            return entry, begin(connection, options), seconds_taken(connection)

        async with self._entry(requests, options, MAX_PICTURE) as entry:
            return await self.read(preview)

    @asynccontextmanager
    async def _entry(
        self, requests: Iterable[object] | AsyncIterable[object], options: Options, max_image_bytes: int
    ) -> AsyncIterator[Entry]:
        """Take the input in a transaction, which is undone unless it is ended."""
        entry = await self.read(lambda connection: Entry(connection, options, max_image_bytes))

        async def step(call: Callable[..., None], *arguments: object) -> None:
            await self.read(lambda _: call(*arguments))

        try:
            await step(entry.begin)
            async for chunk in in_chunks(requests, CHUNK):
                await step(entry.add, chunk)
                if entry.full:
                    break
            if entry.bad_count and not options.skip_invalid:
                raise InvalidInputError(tuple(entry.bad), entry.bad_count)
            yield entry
        finally:
            await step(entry.undo)

    async def begin(
        self, options: Options, resendable: Callable[[str | None], bool] | None = None, directory: Path | None = None
    ) -> Start:
        """Settle what the last run left, and make requests sendable again where asked for.

        `resendable` says whether an unclear submission of such a name may be sent again under it, so that it need not
        be given up; None: none may. What was saved and is not in `directory` any more is to be downloaded again; None:
        nobody looks.
        """
        change = partial(begin, options=options, resendable=resendable, directory=directory)
        start: Start = await self._database.write(change, durable=True)
        return start

    async def forget_unfinished(self, directory: Path) -> None:
        """Send again what has no picture in the folder: the service, an emulated one, and all its tasks are gone."""
        await self._database.write(partial(forget_unfinished, directory=directory), durable=True)

    async def take(self, work: str, after: Row | None, most: int) -> list[Row]:
        """Give rows to work on, in the order of sending, behind the one given last."""
        position = (after.columns["place"], after.number) if after else (-(2**63), -1)

        def query(connection: sqlite3.Connection) -> list[Row]:
            found = connection.execute(
                f"SELECT {TAKEN} FROM requests WHERE {work} "  # noqa: S608  one of the constants of `Work`
                "AND (place, number) > (?, ?) ORDER BY place, number LIMIT ?",
                (*position, most),
            )
            return [row_of(row) for row in found]

        return await self.read(query)

    async def check_place(self) -> None:
        """Raise JournalError where the next run would not find the file."""
        await self._database.check_place()


def _select_wanted(
    connection: sqlite3.Connection, after: tuple[int, int] = (-1, -1), most: int = -1
) -> Iterator[sqlite3.Row]:
    """Read what `Journal.outcomes` gives, `most` rows behind a line and number; all without."""
    return connection.execute(
        f"SELECT {SHOWN}, number FROM requests "  # noqa: S608  constants
        f"WHERE {WANTED} AND (line, number) > (?, ?) ORDER BY line, number LIMIT ?",
        (*after, most),
    )


def _page(after: tuple[int, int], connection: sqlite3.Connection) -> list[sqlite3.Row]:
    return list(_select_wanted(connection, after, CHUNK))
