"""One request of a batch from the journal to the folder."""

import asyncio
import uuid
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from flux2_async.batch.journal.rows import Row, failure_of
from flux2_async.batch.outcomes import Download, Outcome, State
from flux2_async.errors import (
    AmbiguousSubmitError,
    ApiError,
    EmptyResultError,
    Flux2Error,
    InvalidRequestError,
    NotFoundError,
    RequestRejectedError,
    ServerError,
    TaskError,
    TaskFailedError,
    TaskNotFoundError,
)
from flux2_async.session.circuit_breaker import CircuitOpen
from flux2_async.tasks.handle import ImageTask

if TYPE_CHECKING:
    from flux2_async.batch.scheduler import Crew

__all__ = ["Hand", "Stopped"]


class Stopped(Exception):  # noqa: N818  no error: the batch is to send nothing more
    """Nothing is sent any more."""


@attrs.define(eq=False)
class Hand:
    """One request in hand; the keeper of its record.

    Attributes:
        crew: Those it works with.
        row: The request.
        waiting: Whether it may be let go without losing anything.
        ending: Whether its end is being written down, so that it is to be told.
        left: Whether nobody waits for it any more; a createTask under way is answered all the same.
        refusals: How often the service refused it.
        unclear: What to tell of it when its submission was lost in this run and is not found.
    """

    crew: "Crew"
    row: Row
    waiting: bool = False
    ending: bool = False
    left: bool = False
    refusals: int = 0
    unclear: Outcome | None = None

    async def work(self) -> Outcome | None:
        """Bring the request as far as it goes; None when it stays in the queue."""
        if self.row.state is State.DONE:
            return await self._save(self.row)
        if self.row.state is State.SUBMITTED:
            return await self._finish(self.crew.flux.attach(self.row.task_id or ""))
        task = await self._submit()
        return await self._finish(task) if isinstance(task, ImageTask) else task

    async def recover(self) -> Outcome:
        """Wait for the callback of a submission whose reply was lost."""
        task = await self.crew.flux.recover(self.row.ref or "")
        self.row = attrs.evolve(self.row, task_id=task.id)
        self.unclear = None
        self.crew.found(asyncio.current_task())
        self.crew.books.found(self)
        await self.crew.written(self, self.crew.journal.accepted(self.row, task.id))
        return await self._finish(task)

    # What the submission tells, see `Record`.

    async def send(self, ref: str) -> None:
        """Write down that a POST is about to leave."""
        self.crew.check_sending()
        self.crew.books.breaker.check(self)
        self.waiting = False
        self.crew.books.sending(self)
        try:
            await self.crew.journal.sending(self.row, ref)
            self.crew.check_sending()
        except BaseException:
            # A write that is cancelled is made all the same.
            self.crew.books.unsent(self)
            self._wait()
            await self.crew.written(self, self.crew.journal.refused(self.row))
            raise
        self.crew.books.sent()

    async def refused(self, _: str) -> None:
        """Write down that nothing was created."""
        self.refusals += 1
        self.crew.books.back(self)
        self._wait()
        await self.crew.written(self, self.crew.journal.refused(self.row))

    def wanted(self) -> bool:
        """Whether it is to be sent again after a pause that the service asks for."""
        return not self.crew.stopping

    async def accepted(self, _: str, task_id: str) -> None:
        """Write down which task it became."""
        self.row = attrs.evolve(self.row, task_id=task_id)
        self.crew.books.accepted(self)
        await self.crew.written(self, self.crew.journal.accepted(self.row, task_id))

    def leave(self) -> None:
        """Wait for it no more."""
        self.left = True
        if self.waiting:
            self.crew.books.spend.cancel(self.row.kind)

    def _wait(self) -> None:
        self.waiting = True
        if self.left:
            self.crew.books.spend.cancel(self.row.kind)

    async def _end(self, writing: Awaitable[Outcome]) -> Outcome:
        """Write down how it ended."""
        self.ending = True
        try:
            return await writing
        finally:
            self.ending = False

    async def _submit(self) -> ImageTask | Outcome | None:
        ref = uuid.uuid4().hex
        self.row = attrs.evolve(self.row, ref=ref)
        while True:
            self.waiting = True
            refusals = self.refusals
            try:
                # Who was not waiting when the batch was stopped was not let go then.
                self.crew.check_sending()
                await self.crew.books.breaker.passed(self)
                return await self._send(ref)
            except AmbiguousSubmitError as error:
                return await self._lose(error)
            except CircuitOpen:
                continue
            except InvalidRequestError as error:
                return await self._fail(error)
            except Flux2Error as error:
                # An upload says nothing about createTask, and when it meets a broken server nothing about the request.
                refused = self.refusals > refusals
                if error.transient and not (refused and isinstance(error, ServerError)):
                    self.crew.away(self, error)
                    continue
                if not isinstance(error, RequestRejectedError | ServerError):
                    raise
                if refused:
                    self.crew.books.breaker.answered()
                outcome = await self._fail(error)
                self.crew.rejected(error)
                return outcome
            except Stopped:
                return None
            finally:
                self.crew.books.breaker.done(self)

    async def _send(self, ref: str) -> ImageTask:
        task = await self.crew.flux._submit_recorded(self.row.request, ref, self)  # noqa: SLF001  made for this
        if self.row.task_id is None:
            # The reply was lost, and a callback had come before.
            await self.accepted(ref, task.id)
        return task

    async def _lose(self, error: AmbiguousSubmitError) -> Outcome | None:
        self.crew.books.lost(self)
        # The next one is likely to be lost as well, and each costs a picture or a second payment.
        self.crew.away(self, error)
        self.unclear = await self._end(self.crew.journal.lost(self.row, failure_of(error)))
        return None if self.crew.search(self) else self.unclear

    async def _fail(self, error: Flux2Error) -> Outcome:
        self.waiting = False
        self.crew.books.failed(self)
        return await self._end(self.crew.journal.failed(self.row, failure_of(error)))

    async def _finish(self, task: ImageTask) -> Outcome:
        self.crew.bound(task)
        try:
            result = await task.result()
        except (TaskFailedError, EmptyResultError) as error:
            charged, failed = error.record.credits_consumed, isinstance(error, TaskFailedError)
            self.crew.books.ended(self, State.FAILED, charged, failed=failed)
            return await self._end(self.crew.journal.failed(self.row, failure_of(error), error.record))
        except TaskNotFoundError as error:
            self.crew.books.lost(self)
            return await self._end(self.crew.journal.lost(self.row, failure_of(error)))
        except Flux2Error as error:
            # Looking at it failed, not the task: the next run goes on.
            if isinstance(error, ApiError):
                self.crew.fail(error)
            return await self._end(self.crew.journal.waiting(self.row, failure_of(error)))
        self.crew.books.ended(self, State.DONE, result.record.credits_consumed)
        if not self.crew.download:
            return await self._end(self.crew.journal.finished(self.row, result.record, Download.OFF))
        await self.crew.journal.finished(self.row, result.record, Download.PENDING)
        return await self._save(attrs.evolve(self.row, task_id=result.task_id, urls=result.urls))

    async def _save(self, row: Row) -> Outcome:
        try:
            paths = await self.crew.flux.download(row.result, self.crew.images)
        except (Flux2Error, OSError) as error:
            download = await self._judge(row, error)
            self.crew.books.downloaded(download)
            return await self._end(self.crew.journal.not_saved(row, download, failure_of(error)))
        self.crew.books.downloaded(Download.SAVED)
        files = [_relative(path, self.crew.directory) for path in paths]
        return await self._end(self.crew.journal.saved(row, files))

    async def _judge(self, row: Row, error: Flux2Error | OSError) -> Download:
        if isinstance(error, OSError | InvalidRequestError):
            # The disk is full, or the folder cannot be written: every other picture would meet the same.
            self.crew.fail(error)
        if isinstance(error, ApiError) and error.link_expired:
            return await self._expired(row)
        # Too large; asking again gives the same.
        return Download.FAILED if isinstance(error, TaskError) else Download.PENDING

    async def _expired(self, row: Row) -> Download:
        """Whether the service, asked by name, gives no new link either."""
        try:
            await self.crew.flux.download_url(row.urls[0])
        except (NotFoundError, RequestRejectedError):
            return Download.EXPIRED
        except Flux2Error:
            return Download.PENDING
        return Download.PENDING


def _relative(path: Path, directory: Path) -> str:
    return path.relative_to(directory).as_posix()
