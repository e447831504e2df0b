"""Who works on a batch: takes requests from the journal, keeps a bounded number in hand, gives outcomes out."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs

from flux2_async._shown import printable
from flux2_async.batch.ended import ended
from flux2_async.batch.journal import Journal
from flux2_async.batch.journal.rows import Row, failure_of
from flux2_async.batch.journal.start import Start, Work
from flux2_async.batch.outcomes import Outcome, State
from flux2_async.batch.run_state import Books
from flux2_async.batch.worker import Hand, Stopped
from flux2_async.errors import Flux2Error
from flux2_async.session.session import Flux2Session
from flux2_async.tasks.handle import ImageTask

__all__ = ["Crew", "Limits"]

PAGE: Final = 200
# Seconds for createTask calls under way when everything is to end at once.
GRACE: Final = 5.0
# A service that is away for longer than this is not waited for any more.
PATIENCE: Final = 3600.0
# So many refusals without a single acceptance in between are not about the requests.
REFUSALS_IN_A_ROW: Final = 20
# Callbacks are waited for in coroutines.
MAX_SEARCHED: Final = 2000


@attrs.frozen
class Limits:
    """How much a run may do.

    Attributes:
        in_hand: Requests worked on at once.
        max_tasks: Requests taken from the queue, or None.
        max_credits: Credits the whole batch may cost, or None.
        recover_timeout: Seconds for which the callback of a lost submission is waited for.
        task_timeout: Seconds for which a task is watched, or None.
    """

    in_hand: int
    max_tasks: int | None
    max_credits: float | None
    recover_timeout: float
    task_timeout: float | None


class Crew:
    """Works through a journal.

    Args:
        flux: The session.
        journal: Open, and begun.
        directory: The folder of the batch, absolute.
        start: What the journal said when it was begun.
        limits: How much.
        download: Whether pictures are saved.

    Attributes:
        flux: As given.
        journal: As given.
        directory: As given.
        images: Its folder for pictures.
        download: As given.
        books: What is where, and what it costs.
        failure: What stopped the run, or None.
        stopped: Why no more is sent although there is more, or None.
        stopping: Whether nothing more is sent.
    """

    def __init__(
        self, flux: Flux2Session, journal: Journal, directory: Path, start: Start, limits: Limits, *, download: bool
    ) -> None:
        self.flux = flux
        self.journal = journal
        self.directory = directory
        self.images = directory / "images"
        self.download = download
        self.books = Books(start, limits.max_credits)
        self.failure: Exception | None = None
        self.stopped: str | None = None
        self.stopping = False
        self._limits = limits
        self._over = False
        self._room = asyncio.Semaphore(limits.in_hand)
        self._outcomes: asyncio.Queue[tuple[Outcome, bool] | None] = asyncio.Queue()
        self._hands: dict[asyncio.Task[Outcome | None], Hand] = {}
        self._searching: dict[asyncio.Task[Outcome | None], Hand] = {}
        self._search_until = asyncio.get_running_loop().time() + limits.recover_timeout
        self._taken = 0
        self._intake: asyncio.Task[None] | None = None

    async def run(self) -> AsyncGenerator[Outcome, None]:
        """Give outcomes as requests are finished; leaving early stops everything but what is at the service."""
        foreman = asyncio.create_task(self._lead())
        try:
            while (item := await self._outcomes.get()) is not None:
                outcome, holds_room = item
                yield outcome
                if holds_room:
                    self._room.release()
        finally:
            await self._end(foreman)

    def bound(self, task: ImageTask) -> None:
        """Let a task be given up in time."""
        if self._limits.task_timeout is not None:
            self.flux._give_up_after(task, self._limits.task_timeout)  # noqa: SLF001  made for this

    def stop(self, *, now: bool = False) -> None:
        """Send nothing more; with `now` wait for nothing either."""
        self.stopping = True
        self._over |= now
        if self._intake is not None:
            self._intake.cancel()
        for job, hand in self._hands.items():
            if (now or hand.waiting) and not hand.ending:
                job.cancel()
        if now:
            for job in self._searching:
                job.cancel()
        self.books.news.wake()

    def fail(self, error: Exception) -> None:
        """Stop because of something that every other request would meet as well."""
        if self.failure is None:
            self.failure = error
        self.books.count.last_failure = failure_of(error)
        self.stop()

    # What the hands tell.

    def check_sending(self) -> None:
        """Look whether anything may be sent.

        Raises:
            Stopped: Nothing is.
        """
        if self.stopping:
            raise Stopped

    async def written(self, hand: Hand, writing: Awaitable[None]) -> None:
        """Wait for a change of the journal that comes too late to be refused."""
        try:
            await writing
        except (Flux2Error, OSError) as error:
            if hand.row.task_id is not None:
                error.add_note(printable(f"task {hand.row.task_id} (request {hand.row.id!r}) is not in the journal"))
            self.fail(error)

    def away(self, hand: Hand, error: Flux2Error) -> None:
        """The service cannot be reached, is under maintenance, or its answer was lost."""
        self.books.breaker.failed(hand, error)
        if self.books.breaker.seconds > PATIENCE:
            self.fail(error)

    def rejected(self, error: Flux2Error) -> None:
        """The service does not like a request."""
        self.books.refusals += 1
        if self.books.refusals >= REFUSALS_IN_A_ROW:
            error.add_note(f"{self.books.refusals} requests in a row were refused")
            self.fail(error)

    def found(self, job: "asyncio.Task[Any] | None") -> None:
        """A callback told which task a lost submission became: what looks for it is a hand like any other now."""
        if job is not None and job in self._searching:
            self._hands[job] = self._searching.pop(job)

    def search(self, hand: Hand) -> bool:
        """Wait for the callback of a lost submission, where there are callbacks; give False where there are none."""
        if self._over or self.flux._callback_settings() is None or len(self._searching) >= MAX_SEARCHED:  # noqa: SLF001  made for this
            return False
        self._search_until = asyncio.get_running_loop().time() + self._limits.recover_timeout
        self._set_going(hand, hand.recover, self._searching)
        return True

    async def _lead(self) -> None:
        self._intake = asyncio.create_task(self._take_in())
        if self.stopping:
            self._intake.cancel()
        await asyncio.wait([self._intake])
        if not self._intake.cancelled() and (error := self._intake.exception()):
            self.fail(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        while self._hands:
            await asyncio.wait(self._hands)
        await self._end_search()
        self._outcomes.put_nowait(None)

    async def _take_in(self) -> None:
        # Rows move up this list while they are worked on, so that who is in hand is not met again.
        if self.download:
            async for row in self._rows(Work.NOT_DOWNLOADED):
                await self._employ(row)
        async for row in self._rows(Work.SUBMITTED):
            await self._employ(row)
        async for row in self._rows(Work.LOST, MAX_SEARCHED):
            self.search(Hand(self, row))
        async for row in self._rows(Work.QUEUED):
            if self._limits.max_tasks is not None and self._taken >= self._limits.max_tasks:
                self.stopped = f"max_tasks={self._limits.max_tasks}: so many were started"
                return
            await self._room.acquire()
            if not await self._affordable(row):
                self._room.release()
                return
            self._taken += 1
            self.books.spend.start(row.kind)
            self._begin(row)

    async def _employ(self, row: Row) -> None:
        await self._room.acquire()
        self._begin(row)

    def _begin(self, row: Row) -> None:
        hand = Hand(self, row, waiting=row.state is State.QUEUED)
        self._set_going(hand, hand.work, self._hands)

    def _set_going(
        self,
        hand: Hand,
        work: Callable[[], Awaitable[Outcome | None]],
        among: "dict[asyncio.Task[Outcome | None], Hand]",
    ) -> None:
        job = asyncio.create_task(self._job(work))
        among[job] = hand
        job.add_done_callback(partial(self._left, hand, holds_room=among is self._hands))

    def _left(self, hand: Hand, job: "asyncio.Task[Outcome | None]", *, holds_room: bool) -> None:
        # Here and not in `_job`, which a job that is cancelled before its first step never enters.
        self._hands.pop(job, None)
        self._searching.pop(job, None)
        hand.leave()
        outcome = None if job.cancelled() else job.result()
        # A lost submission is told when its callback is not waited for any more.
        outcome = outcome or (None if holds_room else hand.unclear)
        if outcome is not None:
            self.books.count.last_failure = outcome.error or self.books.count.last_failure
            self._outcomes.put_nowait((outcome, holds_room))
        elif holds_room:
            self._room.release()
        self.books.news.wake()

    async def _affordable(self, row: Row) -> bool:
        while not self.books.spend.allows(row.kind):
            if not self._hands:
                spend, cap = self.books.spend, self._limits.max_credits
                self.stopped = (
                    f"max_credits={cap:g}: {spend.spent:g} are spent, {spend.reserved:g} may be for what is running or "
                    f"unknown, and one more picture counts with {spend.price(row.kind):g}"
                )
                return False
            await self.books.news.wait()
        return True

    async def _rows(self, work: str, most: int | None = None) -> AsyncIterator[Row]:
        last: Row | None = None
        given = 0
        while rows := await self.journal.take(work, last, PAGE):
            for row in rows:
                if given == most:
                    return
                yield row
                given += 1
            last = rows[-1]

    async def _job(self, work: Callable[[], Awaitable[Outcome | None]]) -> Outcome | None:
        try:
            return await work()
        except Exception as error:  # noqa: BLE001  a refusal that meets every request, a full disk, a mistake of ours: all end the run
            self.fail(error)
            return None

    async def _end_search(self) -> None:
        """Give the last callbacks their time."""
        loop = asyncio.get_running_loop()
        while self._searching and not self.stopping and loop.time() < self._search_until:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._search_until):
                    await self.books.news.wait()
        for job in self._searching:
            job.cancel()
        while ending := {*self._searching, *self._hands}:
            await asyncio.wait(ending)

    async def _end(self, foreman: "asyncio.Task[None]") -> None:
        """Stop whatever is left; POSTs under way have some seconds, so that the journal learns what became of them."""
        self.stop(now=True)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    while self.books.posting:
                        await self.books.news.wait()
        finally:
            await ended(foreman)
