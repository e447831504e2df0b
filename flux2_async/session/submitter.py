"""Submissions from the call to their end: joined by their key, run in asyncio tasks of the session, ended on closing.

A caller who is cancelled leaves at once. What then happens depends on where the submission is: once its intent is
being told it is finished, anywhere before it is withdrawn, unless another caller joined it.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from flux2_async.errors import (
    AmbiguousSubmitError,
    ApiError,
    BudgetExceededError,
    Flux2Error,
    RateLimitedError,
    SessionClosedError,
    TaskTimeoutError,
)
from flux2_async.models.requests import are_addresses, images_of, names_of_images
from flux2_async.models.submission_state import SubmissionEvent, SubmissionState
from flux2_async.session.keys import Bound, fingerprint
from flux2_async.session.posting import Cut, StepFailedError, cut_off
from flux2_async.session.sender import Sender
from flux2_async.session.shared import Shared
from flux2_async.session.submission import Asked, Patience, Submission
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.outcome import Signal

if TYPE_CHECKING:
    from flux2_async.session.outlook import Outlook

logger: logging.Logger = logging.getLogger("flux2_async")

# Seconds that closing waits for what it has cancelled.
CANCELLING_MAX: Final = 1.0


class Submitter:
    """Runs submissions.

    Attributes:
        ended: Woken when a submission has ended.
        coming: What was enqueued and is no submission yet, in order.
    """

    def __init__(self, shared: Shared) -> None:
        self.ended: Signal = Signal()
        self.coming: dict[Asked, None] = {}
        self._shared = shared
        self._sender = Sender(shared)
        self._transitions = self._sender.transitions
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[Submission, asyncio.Task[None]] = {}
        # Those that `abandon` has met, which end before `aclose` begins where that is cancelled at once.
        self._abandoned: dict[Submission, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def held(self) -> int:
        """Submissions that wait for a service that is away."""
        return self._sender.breaker.waiting

    async def submit(self, asked: Asked, *, started: Callable[[Submission], object] = id) -> ImageTask:
        """Submit, or join the submission that its key stands for; see `Flux2Session.submit`.

        `started` is told which submission is waited for, its own or the one it joins, as soon as there is one.
        """
        request, key = asked.request, asked.key
        if uploads := not are_addresses(images := images_of(request)):
            await self._shared.files.check(images, names_of_images(request))
        content = "" if key is None else await fingerprint(request)
        patience = Patience(asked.max_wait, self._loop.time())
        while key is not None and (bound := self._shared.keys.get(key, content, self._loop.time())):
            other = bound.submission
            if other is None:
                return self._kept(bound, asked)
            started(other)
            try:
                return self._outstanding(await self._join(other, patience))
            except Exception as error:
                # Not its error: our own `max_wait` ran out.
                if error is not other.outcome.error or not other.private:
                    raise
            patience.waited = self._loop.time() - patience.started
        submission = Submission(asked, patience)
        submission.uploads = uploads
        if asked.resend_within is not None:
            submission.doubted(asked.resend_within)
        if key is not None and self._shared.sharing is not None:
            submission.claim = self._shared.sharing.key(key, content, submission.ref, request)
        self.start(submission)
        if key is not None:
            self._shared.keys.bind(key, content, submission, self._loop.time())
        started(submission)
        return await self.wait(submission)

    def start(self, submission: Submission) -> None:
        """Set a submission going.

        Raises:
            SessionClosedError: The session is closing.
        """
        if self._sender.posting.closed:
            raise Cut.CLOSED.unsent()
        self._transitions.queued(submission)
        # Not through the loop's task factory: an eager one would run it before its key is bound to it.
        name = f"flux2_async submit {submission.ref}"
        job = self._jobs[submission] = asyncio.Task(self._run(submission), loop=self._loop, name=name)
        # One that is cancelled before its first step, by whomever, never gets to what it does at its end.
        job.add_done_callback(self._never_begun)

    async def wait(self, submission: Submission) -> ImageTask:
        """Wait for a submission as one of its callers.

        Raises:
            Flux2Error: What went wrong, see `Flux2Session.submit`.
        """
        submission.callers.count += 1
        outcome = submission.outcome
        try:
            await outcome.wait()
        finally:
            self._leave(submission)
        task = submission.latest(outcome).get()
        if submission.claim is not None:
            await submission.claim.heard()
        return task

    def under_way(self, ref: str) -> Submission | None:
        """Give the submission of this name that has not ended, or is sent again until it is clear; or None."""
        return next((each for each in self._jobs if each.ref == ref and not each.known), None)

    @property
    def outlook(self) -> "Outlook":
        """What is expected of the submissions as things are now."""
        from flux2_async.session.outlook import Outlook  # noqa: PLC0415  few ask

        return Outlook(self._jobs, self.coming, self._sender, self._shared, self._loop.time())

    def prioritise(self, submission: Submission, priority: int) -> None:
        """Give a submission another priority while it waits; later there is nothing left to change."""
        if submission.state is SubmissionState.QUEUED:
            self._sender.prioritise(submission, priority)

    def give_up(self, submission: Submission, error: Flux2Error) -> bool:
        """Withdraw a submission; give False when it is too late for that, or it has ended."""
        if submission not in self._jobs or not submission.may_leave:
            return False
        self._jobs[submission].cancel()
        self._transitions.end(submission, SubmissionEvent.WITHDRAWN, error=error)
        return True

    async def aclose(self, grace: float) -> tuple[str, ...]:
        """End all submissions: POSTs under way have `grace` seconds; give the refs whose outcome is unknown."""
        self._sender.posting.closed = True
        for submission in tuple(self._jobs):
            self.give_up(submission, Cut.CLOSED.unsent())
            unclear = submission.state is SubmissionState.UNKNOWN
            if unclear and submission.permit is None and submission.announced.answer is None:
                # It is waited with sending it again.
                self._jobs[submission].cancel()
        jobs = self._abandoned | self._jobs
        if jobs:
            with suppress(asyncio.CancelledError):
                # Whoever ends all tasks wants this over, not undone: what is left is still told.
                await asyncio.wait(jobs.values(), timeout=grace)
            self.abandon()
            await asyncio.wait(jobs.values(), timeout=CANCELLING_MAX)
            # Neither an answer that takes long to be written nor an `on_send` that ignores being cancelled holds it up.
            late = {
                submission: job for submission, job in self._jobs.items() if submission.announced.answer is not None
            }
            for submission in tuple(self._jobs):
                self._break_off(submission, cut_off(submission, Cut.CLOSED))
            for submission in late:
                self._jobs[submission].cancel()
            if late:
                await asyncio.wait(late.values(), timeout=CANCELLING_MAX)
        return tuple(submission.ref for submission in jobs if submission.state is SubmissionState.UNKNOWN)

    def leave(self) -> tuple[str, ...]:
        """Settle what an event loop that was closed has left behind; give the refs whose outcome is unknown."""
        self._sender.posting.closed = True
        jobs = tuple(self._jobs)
        for submission in jobs:
            # Of its key the others learn when its lease ends.
            submission.claim = None
            if submission.permit is not None:
                submission.permit.abandon()
            self._break_off(submission, cut_off(submission, Cut.LOOP_CLOSED))
        return tuple(submission.ref for submission in jobs if submission.state is SubmissionState.UNKNOWN)

    def abandon(self) -> None:
        """End what is being sent as well, at once; the service may have accepted it.

        An answer that has come is still written down, within `CANCELLING_MAX`.
        """
        self._sender.posting.closed = self._sender.posting.abandoned = True
        self._abandoned |= self._jobs
        for submission in tuple(self._jobs):
            if submission.announced.answer is None:
                self._jobs[submission].cancel()

    async def _run(self, submission: Submission) -> None:
        try:
            await self._sender.send(submission)
        except StepFailedError as failed:
            self._break_off(submission, failed.error, own=True)
        except Exception as error:  # noqa: BLE001  whatever a file raises belongs to the callers
            self._break_off(submission, error)
        except BaseException:
            # Of `give_up`, which has written the outcome, of `abandon`, or of an `on_send` that was cancelled itself.
            by = Cut.CLOSED if self._sender.posting.closed else Cut.CANCELLED
            announced = submission.state is SubmissionState.ANNOUNCED
            self._break_off(submission, cut_off(submission, by), own=announced and not self._sender.posting.closed)
            if submission.state is SubmissionState.UNKNOWN and not self._sender.posting.closed:
                # By whoever ends all tasks of the event loop, its callers included, such as `asyncio.run`.
                logger.warning("%s; submission that may have been accepted: %s", by.words, submission.ref)
            raise
        finally:
            self._forget(submission)

    def _forget(self, submission: Submission) -> None:
        # No step of the loop for what has begun, as nearly all do.
        self._jobs.pop(submission).remove_done_callback(self._never_begun)
        if submission.ended:
            submission.tell_doubt()
        else:
            self._break_off(submission, cut_off(submission, Cut.CANCELLED))
        self.ended.wake()

    def _never_begun(self, job: asyncio.Task[None]) -> None:
        self._forget(next(each for each, its in self._jobs.items() if its is job))

    def _break_off(self, submission: Submission, error: Exception, *, own: bool = False) -> None:
        """End a submission that has not ended by an error that is no answer; `own`: of its first caller alone."""
        if submission.ended:
            submission.tell_doubt()
            return
        if submission.state is SubmissionState.SENT:
            event = SubmissionEvent.UNCLEAR
        elif not own and isinstance(error, RateLimitedError) and error.http_status is None:
            event = SubmissionEvent.EXPIRED
        elif isinstance(error, BudgetExceededError) or (isinstance(error, ApiError) and submission.last is None):
            event = SubmissionEvent.REFUSED
        else:
            own = own or not isinstance(error, Flux2Error)
            event = SubmissionEvent.FAILED if own else SubmissionEvent.WITHDRAWN
        self._transitions.end(submission, event, error=error)

    def _kept(self, bound: Bound, asked: Asked) -> ImageTask:
        """Give the task of a key of which little more than its id is kept."""
        if bound.task_id is None:
            raise AmbiguousSubmitError(
                f"createTask was sent under key {asked.key!r}, and nobody knows whether the service accepted it; "
                "call recover(ref), or check the task log of your account before you use another key",
                request=asked.request,
                ref=bound.ref,
            )
        task = self._outstanding(bound.handle or self._shared.watcher.attach(bound.task_id))
        if task.request is None:
            task.request, task.ref, task.key = asked.request, bound.ref, asked.key
            task.group, task.metadata = asked.group, asked.metadata
        return task

    def _outstanding(self, task: ImageTask) -> ImageTask:
        """Give the handle of a key's task, another one where the session was closed, or gave up, before it ended."""
        if not isinstance(task.error, SessionClosedError | TaskTimeoutError):
            return task
        again = self._shared.watcher.attach(task.id)
        again._came_from(task)  # noqa: SLF001  the handle is written by its session alone
        return again

    async def _join(self, submission: Submission, patience: Patience) -> ImageTask:
        submission.callers.count += 1
        outcome = submission.outcome
        try:
            async with asyncio.timeout(None if outcome.done else patience.left()):
                await outcome.wait()
        except TimeoutError:
            await submission.answered()
            outcome = submission.latest(outcome)
            if not outcome.done and submission.doubt is not None:
                raise submission.doubt.with_traceback(None) from None
            if not outcome.done:
                what = f"the submission under this key is not sent after max_wait={patience.max_wait:g} s"
                raise RateLimitedError(429, f"{what}; try again later") from None
        finally:
            self._leave(submission)
        return submission.latest(outcome).get()

    def _leave(self, submission: Submission) -> None:
        submission.callers.count -= 1
        if not submission.callers.count and submission.may_leave:
            self.give_up(submission, Cut.LEFT.unsent())
