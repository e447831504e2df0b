"""Submissions that nobody has to await: an asyncio task of the session waits for each, and a handle tells of it."""

import asyncio
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import flux2_async
from flux2_async._shown.frames import showable
from flux2_async.errors import AmbiguousSubmitError, SubmissionWithdrawnError
from flux2_async.models import Request
from flux2_async.models.submission_state import SubmissionState
from flux2_async.session.arguments import check_priority
from flux2_async.session.posting import Cut, cut_off
from flux2_async.session.submission import Asked, Submission
from flux2_async.session.submitter import CANCELLING_MAX, Submitter
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.outcome import Outcome, Signal


@showable
class SubmissionHandle:
    """A submission on its way; `await handle` gives its `ImageTask`, or raises what `submit` would.

    Made by `Flux2Session.enqueue`. Any number of coroutines may await it, also none; cancelling one ends its wait
    alone. Only `withdraw`, its `max_wait` and the session's closing end the submission.

    Attributes:
        request: What is to be submitted.
    """

    __slots__ = ("_asked", "_begun", "_ended", "_job", "_outcome", "_submission", "_submitter", "_withdrawn", "request")

    def __init__(self, asked: Asked, submitter: Submitter) -> None:
        self.request: Request = asked.request
        self._asked = asked
        # While it is on its way: a handle that is kept holds an outcome, not a session.
        self._submitter: Submitter | None = submitter
        self._outcome: Outcome[ImageTask] = Outcome()
        # None while its pictures are looked at; another caller's where it was joined by its key.
        self._submission: Submission | None = None
        self._job: asyncio.Task[None] | None = None
        self._withdrawn: bool | None = None
        self._begun = asyncio.get_running_loop().time()
        self._ended: float | None = None

    def __repr__(self) -> str:
        return f"<SubmissionHandle {self.ref} {self.state}>"

    def __await__(self) -> Generator[Any, None, ImageTask]:
        return self._accepted().__await__()

    @property
    def ref(self) -> str:
        """The name of the submission; where a key is joined, that of the one that had it."""
        return self._asked.ref if self._submission is None else self._submission.ref

    @property
    def state(self) -> SubmissionState:
        """Where it stands; `error` says why it ended without a task.

        `QUEUED` while it waits for whatever it is; `REFUSED` also by a budget; `WITHDRAWN` too when `max_wait` ran out,
        a picture cannot be read or nobody could be reached: nothing was sent.
        """
        if self._withdrawn is not None:
            return SubmissionState.WITHDRAWN
        if self._submission is not None and not self._is_left_alone():
            return self._submission.state
        if not self._outcome.done:
            return SubmissionState.QUEUED
        error = self._outcome.error
        if error is None:
            return SubmissionState.ACCEPTED
        return SubmissionState.UNKNOWN if isinstance(error, AmbiguousSubmitError) else SubmissionState.WITHDRAWN

    @property
    def position(self) -> int | None:
        """How many submissions of this session wait and are before it as things are now; None: it does not wait.

        Of its own group those that wait for a slot come after all that have one; of the others those count whose turn
        comes before. Asking looks at each submission that waits.
        """
        if self._submitter is None or self.state is not SubmissionState.QUEUED:
            return None
        submission = None if self._is_left_alone() else self._submission
        return self._submitter.outlook.position(submission, self._asked)

    @property
    def expected_start(self) -> datetime | None:
        """When it is expected to be sent, aware; None: it does not wait, or nobody knows.

        By the limit, what waits before it, and how long the tasks that run are expected to take where `max_running` of
        them do; of a limit that processes share, by an equal part. Not known while service or coordination are away.
        """
        position = self.position
        seconds = None if position is None or self._submitter is None else self._submitter.outlook.starts_in(position)
        return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)

    def expectation(self) -> "flux2_async.Expectation":
        """How long it takes from the call of `enqueue` to the picture; see `ImageTask.expectation`.

        Of the wait for its turn what is expected now counts. Call it in the session's event loop.

        Returns:
            Seconds; once it is a task `elapsed` counts on. Where its start is not known, and where it has ended without
            a task, all but `elapsed` is None.
        """
        from flux2_async.models.expectation import Expectation  # noqa: PLC0415  few ask

        if self._submitter is not None and not self._outcome.done:
            return self._submitter.outlook.expectation(self.request, self.position, self._waited())
        task = self.task
        return Expectation(elapsed=self._waited()) if task is None else task.expectation().after(self._waited())

    @property
    def task(self) -> ImageTask | None:
        """Its task, without waiting; None as long as there is none, or where it ended without one."""
        return self._task() if self.state is SubmissionState.ACCEPTED else None

    @property
    def error(self) -> Exception | None:
        """What it ended with instead of a task, or its task instead of a picture; None where there is no error."""
        task = self.task
        return self._outcome.error if task is None else task.error

    @property
    def priority(self) -> int:
        """Higher goes first, see `submit`; may be set while it waits, and then counts at once.

        Setting it later has no effect: what is on its way overtakes nobody any more. Where a key is joined it is that
        of the submission that all of them wait for. What is no whole number raises `InvalidRequestError`.
        """
        submission = None if self._is_left_alone() else self._submission
        return (self._asked if submission is None else submission.asked).priority

    @priority.setter
    def priority(self, value: int) -> None:
        check_priority(value)
        if self._submitter is None or self.state is not SubmissionState.QUEUED:
            return
        self._outcome.check_loop()
        self._asked.priority = value
        if self._submission is not None and not self._is_left_alone():
            self._submitter.prioritise(self._submission, value)

    def withdraw(self) -> bool:
        """Take the submission back, if it is not too late; awaiting it raises `SubmissionWithdrawnError` then.

        Returns:
            Whether nothing was or will be paid for it. True: it was not accepted and is not sent again. False: it is
            leaving, was sent, or ended otherwise, and goes on as if this had not been called; or others joined it by
            its key, which it goes on for, and this handle alone is taken back (`state` is `WITHDRAWN`). Asking again
            gives the same answer for what was taken back, and tries again otherwise.

        Raises:
            ConfigurationError: Called in another event loop than the one it was made in.
        """
        if self._withdrawn is not None or self._outcome.done or self._submitter is None:
            return self._withdrawn or False
        self._outcome.check_loop()
        submission = self._submission
        error = SubmissionWithdrawnError("the submission was withdrawn, and no task was created")
        if submission is None or self._is_left_alone():
            self._withdrawn = True
        elif not submission.may_leave:
            return False
        elif submission.callers.count - submission.callers.leaving > 1:
            self._withdrawn = False
            submission.callers.leaving += 1
            error = SubmissionWithdrawnError(
                "the submission was withdrawn here, and goes on for others who joined its key"
            )
        elif self._submitter.give_up(submission, error):
            self._withdrawn = True
        else:
            return False
        self._submitter.coming.pop(self._asked, None)
        self._outcome.settle(error=error)
        if self._job is not None:
            self._job.cancel()
        return self._withdrawn

    def _is_left_alone(self) -> bool:
        """Whether what it joined has ended for reasons of that caller alone: then it goes on by itself."""
        joined = self._submission
        if joined is None or joined.ref == self._asked.ref:
            return False
        if self._outcome.done:
            # By a reason of its own.
            return self._outcome.error is not None and self._outcome.error is not joined.outcome.error
        return joined.ended and joined.private

    def _waited(self) -> float:
        """Seconds until it ended, or until now."""
        return asyncio.get_running_loop().time() - self._begun if self._ended is None else self._ended - self._begun

    async def _accepted(self) -> ImageTask:
        await self._outcome.wait()
        return self._task()

    def _task(self) -> ImageTask:
        submission = self._submission
        open_ = not self._outcome.done or isinstance(self._outcome.error, AmbiguousSubmitError)
        if submission is not None and submission.state is SubmissionState.ACCEPTED and open_:
            # It is about to be told, or a callback has named its task since.
            return submission.outcome.get()
        return self._outcome.get()

    def _waits_for(self, submitter: Submitter, submission: Submission) -> None:
        submitter.coming.pop(self._asked, None)
        self._submission = submission

    def _break_off(self, by: Cut) -> None:
        if self._outcome.done:
            return
        submission = None if self._is_left_alone() else self._submission
        if submission is None:
            self._outcome.settle(error=by.unsent())
        elif not submission.outcome.done:
            self._outcome.settle(error=cut_off(submission, by))
        else:
            error = submission.outcome.error
            self._outcome.settle(submission.outcome.get() if error is None else None, error)

    async def _run(self, submitter: Submitter) -> None:
        try:
            self._outcome.settle(await submitter.submit(self._asked, started=partial(self._waits_for, submitter)))
        except Exception as error:  # noqa: BLE001  whoever awaits the handle is told
            self._outcome.settle(error=error)
        except BaseException:
            self._break_off(Cut.CANCELLED)
            raise
        finally:
            self._ended = asyncio.get_running_loop().time()
            if self._withdrawn is False and self._submission is not None:
                self._submission.callers.leaving -= 1


class Enqueued:
    """The handles whose submissions are on their way.

    Attributes:
        ended: Woken when one of them has ended.
    """

    def __init__(self, submitter: Submitter) -> None:
        self.ended: Signal = Signal()
        self._submitter = submitter
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[asyncio.Task[None], SubmissionHandle] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, asked: Asked) -> SubmissionHandle:
        """Set a submission going; see `Submitter.submit`."""
        handle = SubmissionHandle(asked, self._submitter)
        self._submitter.coming[asked] = None
        # Not through the loop's task factory: an eager one would run it before its handle knows of it.
        job = asyncio.Task(handle._run(self._submitter), loop=self._loop, name=f"flux2_async enqueued {asked.ref}")  # noqa: SLF001  one thing in two classes
        handle._job = job  # noqa: SLF001  likewise
        self._jobs[job] = handle
        job.add_done_callback(self._forget)
        return handle

    async def aclose(self) -> None:
        """End what is left after all submissions have ended: what has not become one."""
        self._break_off(Cut.CLOSED)
        for job in self._jobs:
            job.cancel()
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=CANCELLING_MAX)

    def leave(self) -> None:
        """Settle what an event loop that was closed has left behind."""
        self._break_off(Cut.LOOP_CLOSED)

    def _break_off(self, by: Cut) -> None:
        for handle in self._jobs.values():
            handle._break_off(by)  # noqa: SLF001  one thing in two classes

    def _forget(self, job: asyncio.Task[None]) -> None:
        handle = self._jobs.pop(job)
        self._submitter.coming.pop(handle._asked, None)  # noqa: SLF001  one thing in two classes
        # Here as well, because one that is cancelled before its first step never gets to its own end.
        handle._break_off(Cut.CANCELLED)  # noqa: SLF001  likewise
        handle._ended = handle._ended or self._loop.time()  # noqa: SLF001  likewise
        handle._submitter = handle._job = None  # noqa: SLF001  likewise
        self.ended.wake()
