"""From a request to a task id: slot, upload, permit, `on_send`, POST; in this order.

Each submission runs in an asyncio task of the session, so that a caller who is cancelled leaves at once. What
then happens depends on where the submission is: from `on_send` to the answer it is finished, because the service
may be charging already; anywhere else it is given up, unless another caller joined it.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import attrs

from flux2_async._http.api import Api
from flux2_async._http.files import Files
from flux2_async._http.post import Post
from flux2_async._limiter.permit import Permit, Permits
from flux2_async._limiter.slots import Slots
from flux2_async._protocol.answers import Accepted, Answer, NeverSent, Obstacle, Refused, Unclear, unclear
from flux2_async._protocol.codec import encode_request
from flux2_async.errors import (
    AmbiguousSubmitError,
    Flux2Error,
    RateLimitedError,
    SessionClosedError,
    TransportError,
)
from flux2_async.models import ImageToImage, RateLimit, Request, UploadedFile
from flux2_async.models.submission_state import SubmissionEvent, SubmissionState
from flux2_async.session.circuit_breaker import CircuitBreaker, CircuitOpen
from flux2_async.session.submission import Submission
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.observers import Observers

__all__ = ["Submitter"]

logger = logging.getLogger("flux2_async")

# Seconds between two tries of one submission, and before the first while the service is away.
PAUSE_UNCONNECTED: Final = 0.5
# The latest ones; a reply that has strayed is not much older than its request.
MAX_TASK_IDS: Final = 10_000
# Seconds for which more may come behind a refusal; a peer that does as it is asked ends the connection at once.
WATCH_REFUSAL: Final = 1.0
QUEUE_BEFORE: Final = 0.02
# Seconds that closing waits for what it has cancelled.
DEAF_FOR: Final = 1.0


class _TakenError(Exception):
    """Another process reserved the key just before."""


class _StepFailedError(Exception):
    """An awaited step before a POST raised."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _HeldError(Exception):
    """It is another submission's turn to try whether the service is there."""


class Submitter:
    """Runs submissions and hands on the tasks that were accepted.

    Args:
        api: Sends.
        files: Uploads.
        slots: Tasks that may be alive.
        limiter: Tasks that may be started.
        rate_limit: What `limiter` keeps to, or None for no limit.
        observers: Told of every step.
        address: Gives the callback address of a submission, or None without callbacks.
        on_accepted: Called with the id of an accepted task; gives its handle, and whether that took over the slot.
        on_end: Called when a submission has come to its end, whichever.
    """

    def __init__(
        self,
        *,
        api: Api,
        files: Files,
        slots: Slots,
        limiter: Permits,
        rate_limit: RateLimit | None,
        observers: Observers,
        address: Callable[[str], str | None],
        on_accepted: Callable[[Submission, str], tuple[ImageTask, bool]],
        on_end: Callable[[Submission], None],
    ) -> None:
        self._api = api
        self._files = files
        self._slots = slots
        self._limiter = limiter
        self._rate_limit = rate_limit
        self._observers = observers
        self._learned = limiter.learned_limit
        self._address = address
        self._on_accepted = on_accepted
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._breaker = CircuitBreaker(threshold=2, first_pause=PAUSE_UNCONNECTED)
        self._task_ids: dict[str, None] = {}
        self._jobs: dict[Submission, asyncio.Task[None]] = {}
        self._closed = False
        self._abandoned = False

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def held(self) -> int:
        """Submissions that wait for the service to answer again."""
        return self._breaker.waiting

    def know(self, task_id: str) -> None:
        """Remember the task of a submission: no other one has it."""
        self._task_ids[task_id] = None
        while len(self._task_ids) > MAX_TASK_IDS:
            del self._task_ids[next(iter(self._task_ids))]

    def take_over(self, before: "Submitter") -> None:
        """Go on knowing whose tasks are whose."""
        self._task_ids = before._task_ids  # noqa: SLF001  of the same kind

    def start(self, submission: Submission) -> None:
        """Set a submission going.

        Raises:
            SessionClosedError: The session is closing.
        """
        if self._closed:
            raise SessionClosedError("the session was closed; nothing was sent")
        # Not through the loop's task factory: an eager one would run it before its key is bound to it.
        job = asyncio.Task(self._run(submission), loop=self._loop, name=f"flux2_async submit {submission.ref}")
        self._jobs[submission] = job
        job.add_done_callback(lambda _: self._forget(submission))

    async def wait(self, submission: Submission) -> ImageTask:
        """Wait for a submission as one of its callers.

        Raises:
            Flux2Error: What went wrong, see `Flux2Session.submit`.
        """
        submission.callers += 1
        try:
            await submission.outcome.wait()
        finally:
            submission.callers -= 1
            if not submission.callers and submission.may_leave:
                self.give_up(submission, _left())
        return submission.outcome.get()

    def give_up(self, submission: Submission, error: Flux2Error) -> bool:
        """Withdraw a submission; give False when it is too late for that, or it has ended."""
        job = self._jobs.get(submission)
        if job is None or not submission.may_leave:
            return False
        job.cancel()
        self._end(submission, SubmissionEvent.WITHDRAWN, error=error)
        return True

    async def aclose(self, grace: float) -> tuple[str, ...]:
        """End all submissions: POSTs under way have `grace` seconds; give the refs whose outcome is unknown."""
        self._closed = True
        for submission in tuple(self._jobs):
            self.give_up(submission, SessionClosedError("the session was closed; nothing was sent"))
        jobs = dict(self._jobs)
        if jobs:
            await asyncio.wait(jobs.values(), timeout=grace)
            self.abandon()
            await asyncio.wait(jobs.values(), timeout=DEAF_FOR)
            # An `on_send` that ignores being cancelled holds up neither the closing nor its callers.
            for submission in tuple(self._jobs):
                self._break_off(submission, _cut_off(submission, "the session was closed"))
        return tuple(submission.ref for submission in jobs if submission.state is SubmissionState.UNKNOWN)

    def leave(self) -> tuple[str, ...]:
        """Settle what an event loop that was closed has left behind; give the refs whose outcome is unknown."""
        self._closed = True
        jobs = tuple(self._jobs)
        for submission in jobs:
            # Of its key the others learn when its lease ends.
            submission.claim = None
            if submission.permit is not None:
                submission.permit.abandon()
            self._break_off(submission, _cut_off(submission, "the event loop was closed"))
        return tuple(submission.ref for submission in jobs if submission.state is SubmissionState.UNKNOWN)

    def abandon(self) -> None:
        """End what is being sent as well, at once; the service may have accepted it."""
        self._closed = self._abandoned = True
        for job in self._jobs.values():
            job.cancel()

    async def _run(self, submission: Submission) -> None:
        try:
            await self._submit(submission)
        except _StepFailedError as failed:
            self._break_off(submission, failed.error, own=True)
        except Exception as error:  # noqa: BLE001  whatever a file raises belongs to the callers
            self._break_off(submission, error)
        except BaseException:
            # Of `give_up`, which has written the outcome, of `abandon`, or of an `on_send` that was cancelled itself.
            what = "the session was closed" if self._closed else "the submission was cancelled"
            announced = submission.state is SubmissionState.ANNOUNCED
            self._break_off(submission, _cut_off(submission, what), own=announced and not self._closed)
            raise

    def _forget(self, submission: Submission) -> None:
        # Here and not in `_run`, because a job that is cancelled before its first step never gets there.
        del self._jobs[submission]
        if not submission.ended:
            self._break_off(submission, _cut_off(submission, "the submission was cancelled"))
        self._on_end(submission)

    def _break_off(self, submission: Submission, error: Exception, *, own: bool = False) -> None:
        """End a submission that has not ended by an error that is no answer; `own`: of its first caller alone."""
        if submission.ended:
            return
        if submission.state is SubmissionState.SENT:
            event = SubmissionEvent.UNCLEAR
        elif not own and isinstance(error, RateLimitedError) and error.http_status is None:
            event = SubmissionEvent.EXPIRED
        else:
            own = own or not isinstance(error, Flux2Error)
            event = SubmissionEvent.FAILED if own else SubmissionEvent.WITHDRAWN
        self._end(submission, event, error=error)

    def _end(
        self,
        submission: Submission,
        event: SubmissionEvent,
        *,
        task: ImageTask | None = None,
        error: Exception | None = None,
    ) -> None:
        """Bring a submission to one of its ends, and tell all whom it concerns: the permit, the key, the callers."""
        submission.move(event)
        self._settle_permit(submission, event, error)
        if submission.claim is not None:
            if task is not None:
                submission.claim.bound(task.id)
            elif submission.state is SubmissionState.UNKNOWN:
                submission.claim.unclear()
            else:
                submission.claim.freed()
        submission.outcome.settle(task, error)
        self._on_end(submission)
        self._observers.stepped(submission, event, error, None if task is None else task.id)

    def _step(self, submission: Submission, event: SubmissionEvent) -> None:
        submission.move(event)
        self._observers.stepped(submission, event)

    async def _submit(self, submission: Submission) -> None:
        while submission.claim is not None:
            task = await submission.claim.look()
            if task is not None:
                self._end(submission, SubmissionEvent.FOUND, task=task)
                return
            with suppress(_TakenError):
                await self._submit_new(submission)
                return
        await self._submit_new(submission)

    async def _submit_new(self, submission: Submission) -> None:
        begun = self._loop.time()
        patience = submission.patience
        await self._slots.acquire(priority=submission.priority, max_wait=patience.left(), since=patience.started)
        patience.waited += self._loop.time() - begun
        try:
            # From here on nobody needs the bytes any more, and a key or an error may keep the request for long.
            submission.request, input_urls = await self._upload(submission)
            body = encode_request(submission.request, input_urls, self._address(submission.ref))
            await self._send(submission, body)
        finally:
            # An accepted task keeps it.
            if submission.last is not SubmissionEvent.ACCEPTED:
                self._slots.release()

    async def _upload(self, submission: Submission) -> tuple[Request, tuple[str, ...]]:
        """Give the request without bytes, and the addresses of its pictures."""
        request = submission.request
        if not isinstance(request, ImageToImage):
            return request, ()
        uploaded = await self._files.urls(request.images)
        for here, there in zip(request.images, uploaded, strict=True) if self._observers else ():
            if isinstance(there, UploadedFile) and here is not there:
                self._observers.tell("Uploaded", ref=submission.ref, key=submission.key, file=there)
        urls = tuple(image.url if isinstance(image, UploadedFile) else image for image in uploaded)
        if any(isinstance(image, bytes) for image in request.images):
            kept = tuple(
                there if isinstance(here, bytes) else here for here, there in zip(request.images, uploaded, strict=True)
            )
            request = attrs.evolve(request, images=kept)
        return request, urls

    async def _send(self, submission: Submission, body: bytes) -> None:
        first = False
        unsent: TransportError | None = None
        while True:
            try:
                answer = await self._attempt(submission, body, first=first)
            except _HeldError:
                if not submission.patience.for_service():
                    raise self._out_of_patience(submission, unsent or _not_risked(self._breaker.reason)) from None
                continue
            if submission.ended:
                return
            assert isinstance(answer, Refused | NeverSent)  # noqa: S101  all else ends a submission
            if submission.claim is not None:
                await submission.claim.release()
            # Nobody is left to wait, or to send: the refusal stands.
            lasting = isinstance(answer, NeverSent) and answer.obstacle is Obstacle.LASTING
            if lasting or not self._goes_on(submission):
                raise answer.error
            first = isinstance(answer, Refused) or answer.obstacle is Obstacle.LEASE
            if not first:
                unsent = answer.error if isinstance(answer.error, TransportError) else None
                await self._pause(submission, answer.error)

    def _out_of_patience(self, submission: Submission, error: Exception) -> Exception:
        """End a submission that has waited for as long as it may for a service that is away."""
        own = submission.patience.max_wait is not None
        self._end(submission, SubmissionEvent.EXPIRED if own else SubmissionEvent.WITHDRAWN, error=error)
        return error

    async def _attempt(self, submission: Submission, body: bytes, *, first: bool) -> Answer:
        """Send when it is this submission's turn, and tell all others whether the service is there.

        Raises:
            _HeldError: It is not this submission's turn, and was not for as long as it waits at most.
        """
        begun = self._loop.time()
        patience = submission.patience
        try:
            try:
                await self._breaker.wait(until=begun + patience.for_service())
            except CircuitOpen:
                raise _HeldError from None
            finally:
                patience.was_unreached(self._loop.time() - begun)
            begun = self._loop.time()
            submission.permit = await self._limiter.acquire(
                priority=submission.priority, max_wait=patience.left(), since=patience.started, first=first
            )
            self._step(submission, SubmissionEvent.GRANTED)
            patience.waited += self._loop.time() - begun
            begun = self._loop.time()
            answer = await self._post(submission, body, submission.permit)
            match answer:
                case Accepted() | Refused():
                    self._breaker.answered()
                case NeverSent(error, Obstacle.PASSING):
                    patience.was_unreached(self._loop.time() - begun)
                    self._risk_less(submission, error, free=True)
                case Unclear(error):
                    self._risk_less(submission, error, free=False)
            return answer
        finally:
            self._breaker.done(submission)

    def _risk_less(self, submission: Submission, error: Flux2Error, *, free: bool) -> None:
        there = self._breaker.reason is None
        self._breaker.failed(submission, error, free=free)
        if there and self._breaker.reason is not None:
            logger.warning("createTask gets no answers; one at a time is tried until one is answered")

    async def _pause(self, submission: Submission, error: Flux2Error) -> None:
        """Wait before another try; while the service is away the breaker says how long."""
        left = submission.patience.for_service()
        if not left:
            raise self._out_of_patience(submission, error)
        if self._breaker.reason is None:
            pause = min(PAUSE_UNCONNECTED, left)
            await asyncio.sleep(pause)
            submission.patience.was_unreached(pause)

    async def _post(self, submission: Submission, body: bytes, permit: Permit) -> Answer:
        """Send once: connection, intent, last look, head; nothing is awaited before the head."""
        post = self._api.create_task(body, request=submission.request, ref=submission.ref)
        recorded = False

        async def announce() -> None:
            nonlocal recorded
            # Others may have met the outage meanwhile.
            self._take_turn(submission)
            self._step(submission, SubmissionEvent.ANNOUNCED)
            await self._announce(submission)
            recorded = submission.record is not None

        try:
            # Not before the permit: who waits for that would hold up all others.
            self._take_turn(submission)
            async with post:
                leave = partial(self._keeps_back, submission, permit)
                answer = self._own(submission, await post.send(leave, announce))
                if isinstance(answer, Refused):
                    answer = await self._confirmed(submission, post, answer)
        except _HeldError:
            self._return(submission, SubmissionEvent.HELD)
            raise
        except _TakenError:
            self._return(submission, SubmissionEvent.KEY_TAKEN)
            raise
        except BaseException:
            # At once, whatever the journal takes.
            sent = submission.state is SubmissionState.SENT
            permit.unclear() if sent else permit.never_sent()
            if recorded and not sent and submission.record is not None:
                await submission.record.refused(submission.ref)
            raise
        await self._answered(submission, answer, recorded=recorded)
        return answer

    async def _confirmed(self, submission: Submission, post: Post, refused: Refused) -> Answer:
        """The refusal where nothing else comes behind it, before anybody takes it for one; else unclear.

        A 429 is watched for as long as nobody sends because of it; another refusal for a second.
        """
        if throttled := refused.error.code == 429:  # noqa: PLR2004  a code of the API's
            # Whoever it is meant for, the service wants a pause.
            self._settle_permit(submission, SubmissionEvent.THROTTLED, refused.error)
        begun = self._loop.time()

        def watch_on() -> float:
            if throttled and self._goes_on(submission):
                # Back in the queue in time to be the first.
                until = (self._limiter.paused_until or begun) - QUEUE_BEFORE
                left = submission.patience.left()
                if left is None or until - begun <= left:
                    return until - self._loop.time()
            return begun + WATCH_REFUSAL - self._loop.time()

        answer = await post.confirm(refused, watch_on)
        if throttled:
            submission.patience.waited += self._loop.time() - begun
        return answer

    def _goes_on(self, submission: Submission) -> bool:
        """Whether anybody is left to wait for another try, or to send it."""
        wanted = submission.record is None or submission.record.wanted()
        return wanted and submission.callers > 0 and not self._closed

    def _take_turn(self, submission: Submission) -> None:
        try:
            self._breaker.take(submission)
        except CircuitOpen:
            raise _HeldError from None

    def _own(self, submission: Submission, answer: Answer) -> Answer:
        """The answer, unclear where it names the task of another submission: whose reply it is nobody knows."""
        if not isinstance(answer, Accepted):
            return answer
        if answer.task_id in self._task_ids:
            told = f"createTask was answered with task {answer.task_id}, which another submission has"
            return unclear(told, request=submission.request, ref=submission.ref)
        self.know(answer.task_id)
        return answer

    async def _announce(self, submission: Submission) -> None:
        """Take the awaited steps before a POST; what one of them raises keeps it from being sent."""
        if submission.claim is not None:
            reserved = await submission.claim.reserve()
            # Nobody was told of a POST yet, so who left meanwhile pays for nothing.
            if not submission.callers:
                raise _left()
            if not reserved:
                raise _TakenError
        try:
            if submission.on_send is not None and not submission.announced:
                await submission.on_send(submission.ref)
                # Holds until a POST leaves: one that outlasts each lease would else keep the request from ever leaving.
                submission.announced = True
            if submission.record is not None and not self._abandoned:
                await submission.record.send(submission.ref)
        except Exception as error:  # noqa: BLE001  whatever it is, it belongs to the first caller alone
            raise _StepFailedError(error) from None
        if self._abandoned:
            raise _cut_off(submission, "the session was closed")

    async def _answered(self, submission: Submission, answer: Answer, *, recorded: bool) -> None:
        """Take an answer: the limit first, then the journal, then all others."""
        event, error = _meaning_of(answer)
        self._settle_permit(submission, event, error)
        submission.announced = event is SubmissionEvent.LEASE_ENDED
        if recorded and submission.record is not None:
            if isinstance(answer, Accepted):
                await submission.record.accepted(submission.ref, answer.task_id)
            elif event is not SubmissionEvent.UNCLEAR:
                await submission.record.refused(submission.ref)
        if submission.ended:
            # The session did not wait for the journal.
            return
        if isinstance(answer, Accepted):
            self._accept(submission, answer.task_id)
        elif event in (SubmissionEvent.REFUSED, SubmissionEvent.UNCLEAR):
            self._end(submission, event, error=error)
        else:
            self._return(submission, event, error)

    def _accept(self, submission: Submission, task_id: str) -> None:
        logger.debug("task %s accepted (submission %s)", task_id, submission.ref)
        task, new = self._on_accepted(submission, task_id)
        if not new:
            # It has one already.
            self._slots.release()
        self._end(submission, SubmissionEvent.ACCEPTED, task=task)

    def _return(self, submission: Submission, event: SubmissionEvent, error: Exception | None = None) -> None:
        """Bring a submission back to the queue."""
        submission.move(event)
        self._settle_permit(submission, event, error)
        self._observers.stepped(submission, event, error)

    def _settle_permit(self, submission: Submission, event: SubmissionEvent, error: Exception | None) -> None:
        """Say what an event means for the limit, once for each permit."""
        # What is kept of a submission is kept without the limiter behind its permit.
        permit, submission.permit = submission.permit, None
        if permit is None or permit.settled:
            return
        match event:
            case SubmissionEvent.THROTTLED:
                permit.throttled(error.retry_after if isinstance(error, RateLimitedError) else None)
                pause = (self._limiter.paused_until or 0.0) - self._loop.time()
                facts = {"seconds": max(pause, 0.0), "rate_limit": self._rate_limit}
                self._observers.tell("Paused", ref=submission.ref, key=submission.key, **facts)
                self._see_limit()
            case SubmissionEvent.ACCEPTED | SubmissionEvent.REFUSED:
                permit.answered()
                self._see_limit()
            case SubmissionEvent.UNCLEAR:
                permit.unclear()
            case _:
                permit.never_sent()

    def _see_limit(self) -> None:
        learned = self._limiter.learned_limit
        if learned != self._learned and self._rate_limit is not None:
            self._learned = learned
            self._observers.tell("LimitLearned", limit=learned, rate_limit=self._rate_limit)

    def _keeps_back(self, submission: Submission, permit: Permit) -> bool:
        """Asked immediately before the first byte of a POST; False lets it leave, and from here on it is sent."""
        # One that has ended stays so, whoever would not be interrupted in announcing it.
        if submission.state is not SubmissionState.ANNOUNCED or permit.lease_ended():
            return True
        self._step(submission, SubmissionEvent.POSTED)
        return False


def _meaning_of(answer: Answer) -> tuple[SubmissionEvent, Flux2Error | None]:
    match answer:
        case Accepted():
            return SubmissionEvent.ACCEPTED, None
        case Refused(RateLimitedError(code=429) as error):
            return SubmissionEvent.THROTTLED, error
        case Refused(error):
            return SubmissionEvent.REFUSED, error
        case NeverSent(error, obstacle):
            return SubmissionEvent.LEASE_ENDED if obstacle is Obstacle.LEASE else SubmissionEvent.NEVER_SENT, error
        case Unclear(error):
            return SubmissionEvent.UNCLEAR, error


def _not_risked(reason: Exception | None) -> TransportError:
    what = str(reason) if isinstance(reason, TransportError) else "the last answers to createTask were unclear"
    return TransportError(f"nothing was sent, because the service seems to be away: {what}", never_sent=True)


def _left() -> Flux2Error:
    return SessionClosedError("the caller of this submission left; nothing was sent")


def _cut_off(submission: Submission, what: str) -> Flux2Error:
    if submission.state is SubmissionState.SENT:
        return AmbiguousSubmitError(
            f"{what} while createTask was under way; the task may exist and cost money",
            request=submission.request,
            ref=submission.ref,
        )
    return SessionClosedError(f"{what}; nothing was sent")
