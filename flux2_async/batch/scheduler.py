"""Who works on what: takes requests from the journal, keeps a bounded number in hand, gives outcomes out."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from flux2_async.batch.ended import ended
from flux2_async.batch.journal import Journal
from flux2_async.batch.journal.rows import Row
from flux2_async.batch.journal.start import Start, Work
from flux2_async.batch.names import seconds_left
from flux2_async.batch.options import Options
from flux2_async.batch.outcomes import Outcome, State
from flux2_async.batch.run_state import RunState
from flux2_async.batch.worker import Worker
from flux2_async.session.session import MAX_RUNNING, Flux2Session

PAGE: Final = 200
# Requests in hand beyond the tasks that may run: some wait for a permit, some are being downloaded.
SPARE: Final = 32
# Seconds for createTask calls under way when everything is to end at once.
GRACE: Final = 5.0
# Callbacks are waited for in coroutines.
MAX_SEARCHED: Final = 2000

# What a worker does, and gives.
Working = asyncio.Task[Outcome | None]


class Scheduler:
    """Works through a journal, which is open and begun, into a folder, whose path is absolute."""

    def __init__(self, flux: Flux2Session, journal: Journal, directory: Path, start: Start, options: Options) -> None:
        self.state: RunState = RunState(start, options.max_credits, options.max_failed)
        self._flux = flux
        self._journal = journal
        self._directory = directory
        self._options = options
        self._over = False
        self._room = asyncio.Semaphore(options.max_running or (flux.max_running or MAX_RUNNING) + SPARE)
        self._outcomes: asyncio.Queue[tuple[Outcome, bool] | None] = asyncio.Queue()
        self._workers: dict[Working, Worker] = {}
        self._search_until = asyncio.get_running_loop().time() + options.recover_timeout
        self._intake: asyncio.Task[None] | None = None

    async def run(self) -> AsyncGenerator[Outcome, None]:
        """Give outcomes as requests are finished; leaving early stops everything but what is at the service."""
        leading = asyncio.create_task(self._lead())
        try:
            while (item := await self._outcomes.get()) is not None:
                outcome, holds_room = item
                yield outcome
                if holds_room:
                    self._room.release()
        finally:
            await self._end(leading)

    def stop(self, *, now: bool = False) -> None:
        """Send nothing more; with `now` wait for nothing either."""
        self._over |= now
        self.state.stop()
        self._let_go()

    async def _lead(self) -> None:
        self._intake = asyncio.create_task(self._take_in())
        # Also when a worker has met what every other request would meet, or all was stopped before.
        self.state.stopping.add_done_callback(lambda _: self._let_go())
        await asyncio.wait([self._intake])
        if not self._intake.cancelled() and (error := self._intake.exception()):
            self.state.fail(error)
        while working := [job for job, worker in self._workers.items() if worker not in self.state.searching]:
            await asyncio.wait(working)
        await self._end_search()
        self._outcomes.put_nowait(None)

    def _let_go(self) -> None:
        """End what has not been sent; when all is over, everything but an end that is being written down."""
        if self._intake is not None:
            self._intake.cancel()
        for job, worker in self._workers.items():
            if (self._over or worker.waiting) and not worker.ending:
                job.cancel()

    async def _take_in(self) -> None:
        # Rows move up this list while they are worked on, so that who is in hand is not met again.
        if self._options.download:
            async for row in self._rows(Work.NOT_DOWNLOADED):
                await self._take(row)
        async for row in self._rows(Work.SUBMITTED):
            await self._take(row)
        await self._take_unclear()
        taken, most = 0, self._options.max_tasks
        async for row in self._rows(Work.QUEUED):
            if taken == most:
                self.state.stopped = f"max_tasks={most}: so many were started"
                return
            await self._room.acquire()
            if self.state.stopped is not None or not await self._affordable(row):
                self._room.release()
                return
            taken += 1
            self.state.spending.start(row.kind)
            self._begin(row)

    async def _take(self, row: Row) -> None:
        await self._room.acquire()
        self._begin(row)

    async def _take_unclear(self) -> None:
        """Send again what the service still knows by its name, and wait for the callbacks of the rest."""
        resent: set[int] = set()
        async for row in self._rows(Work.UNCLEAR_ASKED_FOR):
            if seconds_left(row.ref, self._flux.service, time.time()):
                resent.add(row.number)
                await self._take(row)
        async for row in self._rows(Work.UNCLEAR):
            if row.number not in resent and not self._search(self._worker(row)):
                return

    def _worker(self, row: Row) -> Worker:
        waiting = row.state is State.QUEUED
        return Worker(self._flux, self._journal, self._directory, self._options, self.state, row, waiting=waiting)

    def _begin(self, row: Row) -> None:
        worker = self._worker(row)
        self._set_going(worker, worker.work(), holds_room=True)

    def _search(self, worker: Worker) -> bool:
        """Wait for the callback of an unclear submission; give False where there are no callbacks."""
        searching = self.state.searching
        if self._over or self._flux.callback_settings is None or len(searching) >= MAX_SEARCHED:
            return False
        self._search_until = asyncio.get_running_loop().time() + self._options.recover_timeout
        searching.add(worker)
        self._set_going(worker, worker.recover(), holds_room=False)
        return True

    def _set_going(self, worker: Worker, work: Coroutine[Any, Any, Outcome | None], *, holds_room: bool) -> None:
        job = asyncio.create_task(work)
        self._workers[job] = worker
        job.add_done_callback(partial(self._left, worker, holds_room=holds_room))

    def _left(self, worker: Worker, job: Working, *, holds_room: bool) -> None:
        # Here and not in the job, which never enters its first step where it is cancelled before.
        del self._workers[job]
        self.state.searching.discard(worker)
        worker.leave()
        # A refusal that meets every request, a full disk, a mistake of ours: all end the run.
        if error := None if job.cancelled() else job.exception():
            self.state.fail(error)
        outcome = None if job.cancelled() or error else job.result()
        if outcome is None and worker.unclear is not None and not (holds_room and self._search(worker)):
            # Told when its callback is not waited for any more.
            outcome = worker.unclear
        if outcome is not None:
            self.state.count.last_failure = outcome.error or self.state.count.last_failure
            self._outcomes.put_nowait((outcome, holds_room))
        elif holds_room:
            self._room.release()
        self.state.changed.wake()

    async def _affordable(self, row: Row) -> bool:
        spending, cap = self.state.spending, self._options.max_credits
        while not spending.allows(row.kind):
            if len(self._workers) == len(self.state.searching):
                self.state.stopped = f"max_credits={cap:g}: {spending.why_not(row.kind)}"
                return False
            self.state.pricing = " ".join(row.kind) if spending.waits_for_price(row.kind) else None
            await self.state.changed.wait()
        self.state.pricing = None
        return True

    async def _rows(self, work: str) -> AsyncIterator[Row]:
        last: Row | None = None
        while rows := await self._journal.take(work, last, PAGE):
            for row in rows:
                yield row
            last = rows[-1]

    async def _end_search(self) -> None:
        """Give the last callbacks their time."""
        loop, state = asyncio.get_running_loop(), self.state
        while state.searching and not state.stopping.done() and loop.time() < self._search_until:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._search_until):
                    await state.changed.wait()
        for job, worker in self._workers.items():
            if worker in state.searching:
                job.cancel()
        while self._workers:
            await asyncio.wait(self._workers)

    async def _end(self, leading: "asyncio.Task[None]") -> None:
        """Stop whatever is left; POSTs under way have some seconds, so that the journal learns what became of them."""
        self.stop(now=True)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    while self.state.posting:
                        await self.state.changed.wait()
        finally:
            await ended(leading)
