"""One request of a batch from the journal to the folder."""

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Final

import attrs

from flux2_async._shown.text import printable
from flux2_async.batch.journal import Journal
from flux2_async.batch.journal.rows import Row, failure_of
from flux2_async.batch.journal.start import IMAGES
from flux2_async.batch.names import new_name, seconds_left
from flux2_async.batch.options import Options
from flux2_async.batch.outcomes import Download, Outcome, State
from flux2_async.batch.run_state import RunState, Stopped
from flux2_async.errors import (
    AmbiguousSubmitError,
    ApiError,
    BudgetExceededError,
    EmptyResultError,
    Flux2Error,
    InvalidRequestError,
    NotFoundError,
    RequestRejectedError,
    ServerError,
    TaskError,
    TaskFailedError,
    TaskNotFoundError,
    TaskTimeoutError,
)
from flux2_async.models.submission_state import SubmissionEvent
from flux2_async.session.circuit_breaker import CircuitOpen
from flux2_async.session.session import Flux2Session
from flux2_async.tasks.handle import ImageTask

A_YEAR: Final = 365 * 86400.0


@attrs.define(eq=False)
class Worker:
    """Works on one request, `row`, and keeps its record.

    Attributes:
        waiting: Whether it may be let go without losing anything.
        ending: Whether its end is being written down, so that it is to be told.
        left: Whether nobody waits for it any more; a createTask under way is answered all the same.
        refusals: How often the service refused it.
        unclear: What to tell of it when nobody knows what became of its submission in this run, and it is not found.
    """

    flux: Flux2Session
    journal: Journal
    directory: Path
    options: Options
    state: RunState
    row: Row
    waiting: bool = False
    ending: bool = False
    left: bool = False
    refusals: int = 0
    unclear: Outcome | None = None

    async def work(self) -> Outcome | None:
        """Bring the request as far as it goes; None when it stays in the queue, or nobody knows what became of it."""
        state = self.row.state
        if state is State.DONE:
            return await self._save()
        if state is State.SUBMITTED:
            attached = self.flux.attach(self.row.task_id or "")
            if attached.group is None and attached.metadata is None:
                attached.group, attached.metadata = self._group, self.row.extra or None
            return await self._finish(attached)
        task = await (self._resend() if state is State.UNKNOWN else self._submit())
        return await self._finish(task) if isinstance(task, ImageTask) else task

    @property
    def _group(self) -> str | None:
        return self.row.group or self.options.group

    async def recover(self) -> Outcome:
        """Wait for the callback of a submission whose reply was lost."""
        # The scheduler says when it has waited long enough, and for how many of them.
        task = await self.flux.recover(self.row.ref or "", timeout=A_YEAR)
        self.unclear = None
        self.state.found(self)
        await self._written(self.journal.accepted(self.row, task.id), task.id)
        return await self._finish(task)

    async def _resend(self) -> ImageTask | None:
        """Send a submission of which nobody knows whether it was accepted again under its name, until it is clear."""
        self.state.resent(self)
        seconds = seconds_left(self.row.ref, self.flux.service, time.time())
        try:
            self.state.check_sending()
            return await self._send(self.row.ref or "", resend_within=seconds)
        except (Flux2Error, Stopped, asyncio.CancelledError) as error:
            # Whatever it is, it says nothing of what was sent before: the row stays as it is.
            self.state.unclear(self)
            if isinstance(error, asyncio.CancelledError):
                raise
            if isinstance(error, Stopped):
                return None
            if isinstance(error, AmbiguousSubmitError):
                self.state.away(self, error)
            self.unclear = await self._end(self.journal.unclear(self.row, failure_of(error)))
            return None

    # What the submission tells, see `SubmissionSteps`.

    async def intent(self, ref: str) -> None:
        """Write down that a POST is about to leave."""
        self.state.check_sending()
        self.state.breaker.check(self)
        self.waiting = False
        self.state.sending(self)
        try:
            await self.journal.sending(self.row, ref)
            self.state.check_sending()
        except BaseException:
            # A write that is cancelled is made all the same.
            self.state.withdrawn(self)
            self._wait()
            await self._written(self.journal.refused(self.row))
            raise
        self.state.sent()

    async def answer(self, _ref: str, event: SubmissionEvent, task_id: str | None) -> None:
        """Write down what became of it: which task, or that nothing was created."""
        if event is SubmissionEvent.ACCEPTED and task_id is not None:
            await self._accepted(task_id)
            return
        self.refusals += 1
        self.state.refused(self)
        self._wait()
        await self._written(self.journal.refused(self.row))

    def wanted(self) -> bool:
        """Whether it is to be sent again after a pause that the service asks for."""
        return not self.state.stopping.done()

    async def _accepted(self, task_id: str) -> None:
        self.state.accepted(self)
        await self._written(self.journal.accepted(self.row, task_id), task_id)

    def leave(self) -> None:
        """Wait for it no more."""
        self.left = True
        if self.waiting:
            self.state.spending.cancel(self.row.kind)

    def _wait(self) -> None:
        self.waiting = True
        if self.left:
            self.state.spending.cancel(self.row.kind)

    async def _written(self, writing: Awaitable[object], task_id: str | None = None) -> None:
        """Wait for a change of the journal that comes too late to be refused."""
        try:
            await writing
        except (Flux2Error, OSError) as error:
            self.state.fail(error)
            if task_id is not None and self.state.failure is not None:
                note = f"task {task_id} (request {self.row.id!r}) is not in the journal"
                self.state.failure.add_note(printable(note))

    async def _end(self, writing: Awaitable[Outcome]) -> Outcome:
        """Write down how it ended."""
        self.ending = True
        try:
            return await writing
        finally:
            self.ending = False

    async def _submit(self) -> ImageTask | Outcome | None:
        ref = new_name(self.flux.service, time.time())
        while True:
            self.waiting = True
            refusals = self.refusals
            try:
                # Who was not waiting when the batch was stopped was not let go then.
                self.state.check_sending()
                await self.state.breaker.passed(self)
                return await self._send(ref)
            except AmbiguousSubmitError as error:
                await self._unclear(error)
                return None
            except CircuitOpen:
                continue
            except InvalidRequestError as error:
                return await self._fail(error)
            except Flux2Error as error:
                # An upload says nothing about createTask, and when it meets a broken server nothing about the request.
                refused = self.refusals > refusals
                if error.transient and not (refused and isinstance(error, ServerError)):
                    self.state.away(self, error)
                    continue
                if not isinstance(error, RequestRejectedError | ServerError):
                    raise
                if refused:
                    self.state.breaker.answered()
                outcome = await self._fail(error)
                self.state.rejected(error)
                return outcome
            except Stopped:
                return None
            finally:
                self.state.breaker.done(self)

    async def _send(self, ref: str, resend_within: float | None = None) -> ImageTask:
        try:
            task = await self.flux.submit(
                self.row.request,
                ref=ref,
                steps=self,
                group=self._group,
                metadata=self.row.extra or None,
                resend_within=resend_within,
            )
        except BudgetExceededError as error:
            # It stays in the queue, and what was reserved before goes on.
            self.state.stopped = self.state.stopped or str(error)
            raise Stopped from None
        if self.row.task_id is None:
            # The reply was lost, and a callback had come before.
            await self._accepted(task.id)
        return task

    async def _unclear(self, error: AmbiguousSubmitError) -> None:
        self.state.unclear(self)
        # The next one is likely to be lost as well, and each costs a picture or a second payment.
        self.state.away(self, error)
        self.unclear = await self._end(self.journal.unclear(self.row, failure_of(error)))

    async def _fail(self, error: Flux2Error) -> Outcome:
        self.waiting = False
        self.state.failed(self)
        return await self._end(self.journal.failed(self.row, failure_of(error)))

    async def _finish(self, task: ImageTask) -> Outcome:
        if self.options.task_timeout is not None:
            self.flux.give_up_after(task, self.options.task_timeout)
        try:
            result = await task.result()
        except (TaskFailedError, EmptyResultError) as error:
            charged, failed = error.record.credits_consumed, isinstance(error, TaskFailedError)
            self.state.ended(self, State.FAILED, charged, failed=failed)
            return await self._end(self.journal.failed(self.row, failure_of(error), error.record))
        except TaskNotFoundError as error:
            self.state.unclear(self)
            return await self._end(self.journal.unclear(self.row, failure_of(error)))
        except TaskTimeoutError as error:
            failure = failure_of(error)
            if (seconds := self.options.task_timeout) is not None:
                text = f"task {task.id} is not finished after task_timeout={seconds:g} s; the next run waits for it"
                failure = attrs.evolve(failure, message=text)
            return await self._end(self.journal.waiting(self.row, failure))
        except Flux2Error as error:
            # Polling it failed, not the task: the next run goes on.
            if isinstance(error, ApiError):
                self.state.fail(error)
            return await self._end(self.journal.waiting(self.row, failure_of(error)))
        self.state.ended(self, State.DONE, result.record.credits_consumed)
        if not self.options.download:
            return await self._end(self.journal.finished(self.row, result.record))
        await self.journal.made(self.row, result.record)
        return await self._save()

    async def _save(self) -> Outcome:
        try:
            paths = await self.flux.download(self.row.result, self.directory / IMAGES)
        except (Flux2Error, OSError) as error:
            download = await self._judge(error)
            self.state.downloaded(download)
            return await self._end(self.journal.not_saved(self.row, download, failure_of(error)))
        self.state.downloaded(Download.SAVED)
        files = [path.relative_to(self.directory).as_posix() for path in paths]
        return await self._end(self.journal.saved(self.row, files))

    async def _judge(self, error: Flux2Error | OSError) -> Download:
        if isinstance(error, OSError | InvalidRequestError):
            # The disk is full, or the folder cannot be written: every other picture would meet the same.
            self.state.fail(error)
        if isinstance(error, ApiError) and error.link_expired:
            try:
                await self.flux.download_url(self.row.result.urls[0])
            except (NotFoundError, RequestRejectedError):
                # The service, asked by name, gives no new link either.
                return Download.EXPIRED
            except Flux2Error:
                pass
            return Download.PENDING
        # Too large; asking again gives the same.
        return Download.FAILED if isinstance(error, TaskError) else Download.PENDING
