"""What an event of a submission means, told once to all whom it concerns and in one order.

The permit first, since others wait for it; then the submission's callers and its claim to a key; then who keeps it, and
the observers; the inbox of callbacks last, since a callback that came early is what happens next.
"""

import asyncio
import logging
from typing import Final

from flux2_async.errors import RateLimitedError
from flux2_async.models.submission_state import ACCEPTED, SubmissionEvent
from flux2_async.session.shared import Shared
from flux2_async.session.submission import Submission
from flux2_async.tasks.handle import ImageTask

logger: logging.Logger = logging.getLogger("flux2_async")

KEEP_PERMIT: Final = frozenset(
    {SubmissionEvent.GRANTED, SubmissionEvent.ANNOUNCED, SubmissionEvent.POSTED, SubmissionEvent.REPEATED}
)


class Transitions:
    """Takes submissions from one state to the next."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._observers = shared.observers
        self._learned = shared.limiter.learned_limit

    def queued(self, submission: Submission) -> None:
        """It was taken in, perhaps as one that was sent before, and of which nobody knows whether it was accepted."""
        if self._observers:
            self._observers.tell("Queued", submission.asked, request=submission.request)
        if submission.doubt is not None and self._shared.inbox is not None:
            self._shared.inbox.ended(submission)

    def step(self, submission: Submission, event: SubmissionEvent, error: Exception | None = None) -> None:
        """An event after which it goes on."""
        submission.move(event)
        if event not in KEEP_PERMIT:
            self.settle_permit(submission, event, error)
        self._observers.stepped(submission.asked, submission.state, event, error)

    def accept(self, submission: Submission, task_id: str) -> bool:
        """It became a task; give False when that is watched already, so that it has a slot of its own."""
        watcher, inbox = self._shared.watcher, self._shared.inbox
        asked, task = submission.asked, watcher.get(task_id)
        new = task is None
        if task is None:
            request = asked.request
            task = ImageTask(task_id, request, ref=asked.ref, key=asked.key, group=asked.group, metadata=asked.metadata)
            schedule = self._shared.schedules.of(request.model, request.resolution)
            watcher.watch(task, schedule if inbox is None else inbox.arrivals.insured(schedule))
        else:
            # It was attached before its createTask reply came.
            task._came_from(asked)  # noqa: SLF001  the handle is written by its session alone
        logger.debug("task %s accepted (submission %s)", task_id, asked.ref)
        self.end(submission, ACCEPTED, task=task)
        if inbox is not None:
            inbox.accepted(asked.ref, task)
        return new

    def end(
        self,
        submission: Submission,
        event: SubmissionEvent,
        *,
        task: ImageTask | None = None,
        error: Exception | None = None,
    ) -> None:
        """An event that ends it."""
        self.settle_permit(submission, event, error)
        self._shared.end(submission, event, task=task, error=error)
        # At last: a callback that came early makes something else of it.
        if task is None and self._shared.inbox is not None:
            self._shared.inbox.ended(submission)

    def throttled(self, submission: Submission, error: Exception | None) -> None:
        """A 429 has come, whoever it is meant for: the service wants a pause, and the permit stays out."""
        if submission.permit is not None:
            submission.permit.pause(_retry_after(error))
            self._observers.tell("Paused", submission.asked, seconds=self._pause(), rate_limit=self._shared.rate_limit)
            self._see_limit()

    def settle_permit(self, submission: Submission, event: SubmissionEvent, error: Exception | None) -> None:
        """Say what an event means for the limit; at once where the journal is to be awaited before the rest is told."""
        # What is kept of a submission is kept without the limiter behind its permit.
        permit, submission.permit = submission.permit, None
        if permit is None or permit.settled:
            return
        match event:
            case SubmissionEvent.ACCEPTED | SubmissionEvent.REFUSED:
                permit.answered()
                self._see_limit()
            case SubmissionEvent.THROTTLED:
                permit.throttled(_retry_after(error))
            case SubmissionEvent.UNCLEAR:
                permit.unclear()
            case _:
                permit.never_sent()

    def _pause(self) -> float:
        until = self._shared.limiter.paused_until
        return 0.0 if until is None else max(until - asyncio.get_running_loop().time(), 0.0)

    def _see_limit(self) -> None:
        if (rate_limit := self._shared.rate_limit) is None:
            return
        learned = self._shared.limiter.learned_limit
        if learned != self._learned:
            self._learned = learned
            self._observers.tell("LimitLearned", limit=learned, rate_limit=rate_limit)


def _retry_after(error: Exception | None) -> float | None:
    return error.retry_after if isinstance(error, RateLimitedError) else None
