"""From a request to a task id: slot, upload, permit, `on_send`, POST; in this order.

Each submission runs in an asyncio task of the session, so that a caller who is cancelled leaves at once. What
then happens depends on where the submission is: from `on_send` to the answer it is finished, because the service
may be charging already; anywhere else it is given up, unless another caller joined it.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import attrs

from flux2_async._http.files import Files
from flux2_async._http.post import Post
from flux2_async._http.transport import Transport
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
from flux2_async.models import ImageToImage, Request, UploadedFile
from flux2_async.session.circuit_breaker import CircuitBreaker, CircuitOpen
from flux2_async.session.limit_log import LimitLog
from flux2_async.session.submission import Record, Submission
from flux2_async.tasks.handle import ImageTask

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


class _HeldError(Exception):
    """It is another submission's turn to try whether the service is there."""


class Submitter:
    """Runs submissions and hands on the tasks that were accepted.

    Args:
        transport: Sends.
        files: Uploads.
        slots: Tasks that may be alive.
        limiter: Tasks that may be started.
        limit_log: Told of what the answers say about that.
        address: Gives the callback address of a submission, or None without callbacks.
        on_accepted: Called with the id of an accepted task; gives its handle, and whether that took over the slot.
        on_end: Called when a submission has come to its end, whichever.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        files: Files,
        slots: Slots,
        limiter: Permits,
        limit_log: LimitLog,
        address: Callable[[str], str | None],
        on_accepted: Callable[[Submission, str], tuple[ImageTask, bool]],
        on_end: Callable[[Submission], None],
    ) -> None:
        self._transport = transport
        self._files = files
        self._slots = slots
        self._limiter = limiter
        self._limit_log = limit_log
        self._address = address
        self._on_accepted = on_accepted
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._breaker = CircuitBreaker(threshold=2, first_pause=PAUSE_UNCONNECTED)
        self._task_ids: dict[str, None] = {}
        self._jobs: dict[Submission, asyncio.Task[None]] = {}
        self._closed = False
        self._abandoned = False
        self.submitted = 0
        self.refused = 0
        self.ambiguous = 0

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
            if not submission.callers and not submission.outcome.done and not submission.sending:
                self.give_up(submission, _left())
        return submission.outcome.get()

    def give_up(self, submission: Submission, error: Flux2Error) -> bool:
        """End a submission that is not being sent; give False when it is, or has ended."""
        job = self._jobs.get(submission)
        if job is None or submission.sending:
            return False
        job.cancel()
        self._end(submission, error=error)
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
                self._end(submission, error=_cut_off(submission, "the session was closed"))
        return tuple(submission.ref for submission in jobs if submission.posted)

    def leave(self) -> tuple[str, ...]:
        """Settle what an event loop that was closed has left behind; give the refs whose outcome is unknown."""
        self._closed = True
        jobs = tuple(self._jobs)
        for submission in jobs:
            # Of its key the others learn when its lease ends.
            submission.claim = None
            self._end(submission, error=_cut_off(submission, "the event loop was closed"))
        return tuple(submission.ref for submission in jobs if submission.posted)

    def abandon(self) -> None:
        """End what is being sent as well, at once; the service may have accepted it."""
        self._closed = self._abandoned = True
        for job in self._jobs.values():
            job.cancel()

    async def _run(self, submission: Submission) -> None:
        error: Exception | None = None
        task: ImageTask | None = None
        try:
            task = await self._submit(submission)
        except Exception as caught:  # noqa: BLE001  whatever `on_send` or a file raises belongs to the callers
            error = caught
            submission.private |= _is_private(caught)
        except BaseException:
            # Of `give_up`, which has written the outcome, of `abandon`, or of an `on_send` that was cancelled itself.
            error = _cut_off(submission, "the session was closed" if self._closed else "the submission was cancelled")
            raise
        finally:
            if submission.posted:
                self.ambiguous += 1
                logger.warning("submission %s: it is not known whether the service accepted it", submission.ref)
            self._end(submission, task, error)

    def _end(self, submission: Submission, task: ImageTask | None = None, error: Exception | None = None) -> None:
        if submission.outcome.settle(task, error) and submission.claim is not None:
            if task is not None:
                submission.claim.bound(task.id)
            elif submission.posted:
                submission.claim.doubted()
            else:
                submission.claim.freed()
        self._on_end(submission)

    def _forget(self, submission: Submission) -> None:
        # Here and not in `_run`, because a job that is cancelled before its first step never gets there.
        del self._jobs[submission]
        self._on_end(submission)

    async def _submit(self, submission: Submission) -> ImageTask:
        while submission.claim is not None:
            task = await submission.claim.look()
            if task is not None:
                return task
            try:
                return await self._submit_new(submission)
            except _TakenError:
                continue
        return await self._submit_new(submission)

    async def _submit_new(self, submission: Submission) -> ImageTask:
        begun = self._loop.time()
        await self._slots.acquire(
            priority=submission.priority, max_wait=submission.wait_left(), since=submission.started
        )
        submission.waited += self._loop.time() - begun
        slot_kept = False
        try:
            # From here on nobody needs the bytes any more, and a key or an error may keep the request for long.
            submission.request, input_urls = await self._upload(submission.request)
            body = encode_request(submission.request, input_urls, self._address(submission.ref))
            task_id = await self._send(submission, body)
            self.submitted += 1
            logger.debug("task %s accepted (submission %s)", task_id, submission.ref)
            task, slot_kept = self._on_accepted(submission, task_id)
            return task
        finally:
            if not slot_kept:
                self._slots.release()

    async def _upload(self, request: Request) -> tuple[Request, tuple[str, ...]]:
        """Give the request without bytes, and the addresses of its pictures."""
        if not isinstance(request, ImageToImage):
            return request, ()
        uploaded = await self._files.urls(request.images)
        urls = tuple(image.url if isinstance(image, UploadedFile) else image for image in uploaded)
        if any(isinstance(image, bytes) for image in request.images):
            kept = tuple(
                there if isinstance(here, bytes) else here for here, there in zip(request.images, uploaded, strict=True)
            )
            request = attrs.evolve(request, images=kept)
        return request, urls

    async def _send(self, submission: Submission, body: bytes) -> str:
        first = False
        unsent: TransportError | None = None
        while True:
            try:
                answer = await self._attempt(submission, body, first=first)
            except _HeldError:
                if not submission.patience():
                    submission.private = submission.max_wait is not None
                    raise unsent or _not_risked(self._breaker.reason) from None
                continue
            match answer:
                case Accepted():
                    return answer.task_id
                case NeverSent(error, Obstacle.PASSING | Obstacle.LEASE) | Refused(RateLimitedError(code=429) as error):
                    # It may be sent again.
                    pass
                case NeverSent(error) | Refused(error) | Unclear(error):
                    raise error
            if submission.claim is not None:
                await submission.claim.release()
            # Nobody is left to wait, or to send: the refusal stands.
            if not self._goes_on(submission):
                raise error
            first = isinstance(answer, Refused) or answer.obstacle is Obstacle.LEASE
            if not first:
                unsent = error if isinstance(error, TransportError) else None
                await self._pause(submission, error)

    async def _attempt(self, submission: Submission, body: bytes, *, first: bool) -> Answer:
        """Send when it is this submission's turn, and tell all others whether the service is there.

        Raises:
            _HeldError: It is not this submission's turn, and was not for as long as it waits at most.
        """
        begun = self._loop.time()
        try:
            try:
                await self._breaker.wait(until=begun + submission.patience())
            except CircuitOpen:
                raise _HeldError from None
            finally:
                submission.was_unreached(self._loop.time() - begun)
            begun = self._loop.time()
            permit = await self._limiter.acquire(
                priority=submission.priority, max_wait=submission.wait_left(), since=submission.started, first=first
            )
            submission.waited += self._loop.time() - begun
            begun = self._loop.time()
            answer = await self._post(submission, body, permit)
            match answer:
                case Accepted() | Refused():
                    self._breaker.answered()
                case NeverSent(error, Obstacle.PASSING):
                    submission.was_unreached(self._loop.time() - begun)
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
        if not submission.patience():
            submission.private = submission.max_wait is not None
            raise error
        if self._breaker.reason is None:
            pause = min(PAUSE_UNCONNECTED, submission.patience())
            await asyncio.sleep(pause)
            submission.was_unreached(pause)

    async def _post(self, submission: Submission, body: bytes, permit: Permit) -> Answer:
        """Send once and settle the permit: connection, intent, last look, head; nothing is awaited before the head."""
        post = self._transport.post(body, request=submission.request, ref=submission.ref)
        try:
            # Not before the permit: who waits for that would hold up all others.
            self._take_turn(submission)
            async with post:
                if post.connected:
                    # Others may have met the outage meanwhile.
                    self._take_turn(submission)
                    submission.sending = True
                    await self._prepare(submission)
                    submission.posted = True
                answer = self._own(submission, await post.send(permit.lease_ended))
                if isinstance(answer, Refused):
                    answer = await self._confirmed(submission, permit, post, answer)
        except BaseException:
            await self._settle(submission, permit, None, sent=post.sent)
            raise
        await self._settle(submission, permit, answer, sent=post.sent)
        return answer

    async def _confirmed(self, submission: Submission, permit: Permit, post: Post, refused: Refused) -> Answer:
        """The refusal where nothing else comes behind it, before anybody takes it for one; else unclear.

        A 429 is watched for as long as nobody sends because of it; another refusal for a second.
        """
        if throttled := refused.error.code == 429:  # noqa: PLR2004  a code of the API's
            # Whoever it is meant for, the service wants a pause.
            self._give_back(submission.ref, permit, refused, sent=True)
        begun = self._loop.time()

        def watch_on() -> float:
            if throttled and self._goes_on(submission):
                # Back in the queue in time to be the first.
                until = (self._limiter.paused_until or begun) - QUEUE_BEFORE
                if submission.max_wait is None or until - begun <= (submission.wait_left() or 0.0):
                    return until - self._loop.time()
            return begun + WATCH_REFUSAL - self._loop.time()

        answer = await post.confirm(refused, watch_on)
        if throttled:
            submission.waited += self._loop.time() - begun
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

    async def _settle(self, submission: Submission, permit: Permit, answer: Answer | None, *, sent: bool) -> None:
        """Say what became of a POST; without an answer it was cut off, and a byte that was sent makes it unclear."""
        told, submission.posted = submission.posted, sent
        submission.announced = isinstance(answer, NeverSent) and answer.obstacle is Obstacle.LEASE
        try:
            self._give_back(submission.ref, permit, answer, sent=sent)
            if told and submission.record is not None:
                await self._tell(submission.record, submission.ref, answer, sent=sent)
            submission.posted = sent and (answer is None or isinstance(answer, Unclear))
        finally:
            submission.sending = False

    async def _tell(self, record: Record, ref: str, answer: Answer | None, *, sent: bool) -> None:
        """Tell what became of a POST that was announced."""
        if isinstance(answer, Accepted):
            await record.accepted(ref, answer.task_id)
        elif isinstance(answer, Refused) or not sent:
            await record.refused(ref)

    async def _prepare(self, submission: Submission) -> None:
        if submission.claim is not None:
            reserved = await submission.claim.reserve()
            # Nobody was told of a POST yet, so who left meanwhile pays for nothing.
            if not submission.callers:
                raise _left()
            if not reserved:
                raise _TakenError
        # Whatever these raise is not the business of those who joined by key.
        submission.private = True
        if submission.on_send is not None and not submission.announced:
            await submission.on_send(submission.ref)
            # Holds until a POST leaves: one that outlasts each lease would else keep the request from ever leaving.
            submission.announced = True
            if self._abandoned:
                raise _cut_off(submission, "the session was closed")
        if submission.record is not None:
            await submission.record.send(submission.ref)
        submission.private = False

    def _give_back(self, ref: str, permit: Permit, answer: Answer | None, *, sent: bool) -> None:
        if permit.settled:
            return
        match answer:
            case Refused(RateLimitedError(code=429) as error):
                self.refused += 1
                permit.refused(error.retry_after)
                self._limit_log.refused(ref)
            case Accepted() | Refused():
                permit.answered()
                self._limit_log.look()
            case _:
                permit.ambiguous() if sent else permit.never_sent()


def _not_risked(reason: Exception | None) -> TransportError:
    what = str(reason) if isinstance(reason, TransportError) else "the last answers to createTask were unclear"
    return TransportError(f"nothing was sent, because the service seems to be away: {what}", never_sent=True)


def _is_private(error: Exception) -> bool:
    """Whether a submission failed for its first caller's own reasons: its `max_wait`, or its files."""
    return (isinstance(error, RateLimitedError) and error.http_status is None) or not isinstance(error, Flux2Error)


def _left() -> Flux2Error:
    return SessionClosedError("the caller of this submission left; nothing was sent")


def _cut_off(submission: Submission, what: str) -> Flux2Error:
    if submission.posted:
        return AmbiguousSubmitError(
            f"{what} while createTask was under way; the task may exist and cost money",
            request=submission.request,
            ref=submission.ref,
        )
    return SessionClosedError(f"{what}; nothing was sent")
