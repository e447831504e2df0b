"""The way of one submission: slot, upload, permit, connection, intent, head; in this order.

Between connection and head its intent is awaited: its key is reserved, `on_send` and the journal are told. From the
first byte on it is finished whatever its callers do, because the service may be charging already.
"""

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from flux2_async._http.api import Api
from flux2_async._http.files import Files
from flux2_async._http.post import Post
from flux2_async._limiter.limiter import Gate
from flux2_async._limiter.permit import Permit
from flux2_async._limiter.slots import Slots
from flux2_async._limiter.window import Supply
from flux2_async._protocol.answers import UNCLEAR, Accepted, Answer, NeverSent, Obstacle, Refused, Unclear, unclear
from flux2_async._protocol.codec import encode_request
from flux2_async.errors import AmbiguousSubmitError, Flux2Error, RateLimitedError, SessionClosedError, TransportError
from flux2_async.models import Request, UploadedFile
from flux2_async.models.requests import are_addresses, images_of, names_of_images, with_images
from flux2_async.models.service import resent_within
from flux2_async.models.submission_state import SubmissionEvent, SubmissionState
from flux2_async.session.circuit_breaker import LONGEST_FREE_PAUSE, CircuitBreaker, CircuitOpen
from flux2_async.session.submission import Lifetime, Submission
from flux2_async.session.task_ids import TaskIds
from flux2_async.session.transition import Transitions
from flux2_async.tasks.observers import Observers

if TYPE_CHECKING:
    from flux2_async.session.budgets import Budgets
    from flux2_async.session.callback_inbox import CallbackInbox

# Seconds between two tries of one submission, and before the first while the service is away.
PAUSE_UNCONNECTED: Final = 0.5
# Seconds for which more may come behind a refusal; a peer that does as it is asked ends the connection at once.
WATCH_REFUSAL: Final = 1.0
QUEUE_BEFORE: Final = 0.02
THROTTLED: Final = 429


class StepFailedError(Exception):
    """An awaited step before a POST raised."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _TakenError(Exception):
    """Another process reserved the key just before."""


class Sender:
    """Brings submissions to the service, one call of `send` each.

    Args:
        api: Sends.
        files: Uploads.
        slots: Tasks that may be alive.
        limiter: Tasks that may be started.
        inbox: Gives the addresses of callbacks; None without callbacks.
        transitions: Told what happens.
        task_ids: Those of submissions.
        observers: Told of uploads.
        budgets: What submissions may cost, or None.
        names_kept: Seconds for which the service knows a createTask again by the name of its submission; None: it does
            not.

    Attributes:
        breaker: Held while the service is away.
        closed: Whether nothing is sent again.
        abandoned: Whether nothing is to leave any more.
    """

    def __init__(
        self,
        *,
        api: Api,
        files: Files,
        slots: Slots,
        limiter: Gate,
        inbox: "CallbackInbox | None",
        transitions: Transitions,
        task_ids: TaskIds,
        observers: Observers,
        budgets: "Budgets | None" = None,
        names_kept: float | None = None,
    ) -> None:
        self._names_kept = names_kept
        self.breaker = CircuitBreaker(threshold=2, first_pause=PAUSE_UNCONNECTED)
        self.closed = False
        self.abandoned = False
        self._api = api
        self._files = files
        self._slots = slots
        self._limiter = limiter
        self._inbox = inbox
        self._budgets = budgets
        self._transitions = transitions
        self._observers = observers
        self._loop = asyncio.get_running_loop()
        self._task_ids = task_ids

    async def send(self, submission: Submission) -> None:
        """Bring a submission to an end.

        Raises:
            StepFailedError: `on_send` or the journal raised; the submission has not ended.
            Exception: What else kept it from being sent; it has not ended either.
        """
        while submission.claim is not None and submission.doubt is None:
            task = await submission.claim.look()
            if task is not None:
                task.key, task.group, task.metadata = submission.key, submission.group, submission.asked.metadata
                self._task_ids.add(task.id, submission.ref)
                self._transitions.end(submission, SubmissionEvent.FOUND, task=task)
                return
            with suppress(_TakenError):
                await self._send_new(submission)
                return
        await self._send_new(submission)

    def prioritise(self, submission: Submission, priority: int) -> None:
        """Give a submission another priority, also where it waits already."""
        submission.asked.priority = priority
        self._slots.prioritise(submission, priority)
        self._limiter.prioritise(submission, priority)

    def turns(self) -> dict[str | None, tuple[int, int]]:
        """Give what tells whose turn comes first of the groups that wait: for a permit, or for a slot."""
        slots = {group: (1, turn) for group, turn in self._slots.turns().items()}
        return slots | {group: (0, turn) for group, turn in self._limiter.turns().items()}

    def supply(self) -> tuple[Supply, float] | None:
        """When there will be permits, and how many tasks may run at once; None: not known, as in an outage."""
        supply = None if self.breaker.reason is not None else self._limiter.supply()
        return None if supply is None else (supply, self._slots.places)

    async def _send_new(self, submission: Submission) -> None:
        begun = self._loop.time()
        patience = submission.patience
        if self._budgets is not None:
            await self._budgets.reserve(submission)
        await self._slots.acquire(
            priority=submission.asked.priority,
            max_wait=patience.max_wait,
            waited=patience.waited,
            since=patience.started,
            owner=submission,
            group=submission.group,
        )
        patience.waited += self._loop.time() - begun
        submission.has_slot = True
        try:
            # From here on nobody needs the bytes any more, and a key or an error may keep the request for long.
            submission.asked.request, input_urls = await self._upload(submission)
            address = None if self._inbox is None else self._inbox.address(submission.ref)
            body = encode_request(submission.request, input_urls, address)
            if submission.doubt is None:
                await self._try(submission, body)
            if submission.state is SubmissionState.UNKNOWN and submission.doubt is not None:
                await self._clear_up(submission, body)
        finally:
            # An accepted task keeps it.
            if submission.last is not SubmissionEvent.ACCEPTED:
                submission.has_slot = False
                self._slots.release(submission.group, early=not submission.let_through)

    async def _upload(self, submission: Submission) -> tuple[Request, tuple[str, ...]]:
        """Give the request without bytes, and the addresses of its pictures."""
        request = submission.request
        images = images_of(request)
        if are_addresses(images):
            return request, tuple(images)
        uploaded = await self._files.urls(images, names_of_images(request))
        for here, there in zip(images, uploaded, strict=True) if self._observers else ():
            if isinstance(there, UploadedFile) and here is not there:
                self._observers.tell("Uploaded", submission.asked, file=there)
        if any(isinstance(image, bytes) for image in images):
            kept = [there if isinstance(here, bytes) else here for here, there in zip(images, uploaded, strict=True)]
            request = with_images(request, kept)
        return request, tuple(image.url if isinstance(image, UploadedFile) else image for image in uploaded)

    async def _try(self, submission: Submission, body: bytes) -> None:
        first = False
        unsent: TransportError | None = None
        while True:
            try:
                answer = await self._attempt(submission, body, first=first)
            except CircuitOpen:
                if not submission.patience.for_service():
                    raise self._out_of_patience(submission, unsent or _not_risked(self.breaker.reason)) from None
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

    async def _clear_up(self, submission: Submission, body: bytes) -> None:
        """Send an unclear submission again under its name until it is clear, which a callback may make it as well.

        It stays `unknown` meanwhile: whatever an answer says of the POST that it answers, the first may have been
        accepted, and only the task that the service gives under the name proves anything. Its callers wait for that
        for as long as they wait for anything; it goes on without them.
        """
        left = submission.patience.left()
        telling = None if left is None else self._loop.call_later(left, submission.lose_patience)
        pause, first = PAUSE_UNCONNECTED, False
        try:
            while self._left_of_name(submission) > pause:
                if not first:
                    await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_FREE_PAUSE)
                with suppress(CircuitOpen, RateLimitedError):
                    answer = await self._repeat(submission, body, first=first)
                    if submission.state is not SubmissionState.UNKNOWN:
                        return
                    first = isinstance(answer, Refused) and answer.error.code == THROTTLED
                    if isinstance(answer, Accepted):
                        await self._found_again(submission, answer.task_id)
                        return
                    if isinstance(answer, NeverSent | Refused) and not first and not answer.error.transient:
                        submission.doubt = _still_unclear(submission, answer.error)
                        return
        finally:
            if telling is not None:
                telling.cancel()
            submission.tell_doubt()

    def _left_of_name(self, submission: Submission) -> float:
        """For how many seconds it may be sent again; 0 when it is not to be, or is clear."""
        wanted = submission.asked.steps is None or submission.asked.steps.wanted()
        if self.closed or not wanted or submission.state is not SubmissionState.UNKNOWN:
            return 0.0
        return 0.0 if submission.name is None else max(submission.name.left(), 0.0)

    async def _repeat(self, submission: Submission, body: bytes, *, first: bool) -> Answer:
        """Send once more under the same name, when it is this submission's turn.

        Raises:
            CircuitOpen: It is not this submission's turn.
            RateLimitedError: There is no permit.
        """
        try:
            await self.breaker.wait(until=self._loop.time() + self._left_of_name(submission))
            with await self._limiter.acquire(
                priority=submission.asked.priority,
                max_wait=self._left_of_name(submission),
                since=submission.patience.started,
                first=first,
                owner=submission,
                group=submission.group,
            ) as permit:
                submission.let_through = True
                try:
                    self.breaker.take(submission)
                except CircuitOpen:
                    permit.never_sent()
                    raise
                if not self._left_of_name(submission):
                    permit.never_sent()
                    raise CircuitOpen
                self._transitions.step(submission, SubmissionEvent.REPEATED)
                submission.permit = permit
                async with self._api.create_task(
                    body, request=submission.request, ref=submission.ref, headers=submission.asked.headers
                ) as post:
                    answer = self._own(submission, await post.send(permit.lease_ended))
                event, error = _meaning_of(answer)
                if event is SubmissionEvent.THROTTLED:
                    self._transitions.throttled(submission, error)
                self._transitions.settle_permit(submission, event, error)
                self._believe(answer)
            if isinstance(answer, Accepted | Refused):
                self._reached(submission)
            else:
                self._risk_less(submission, answer.error, free=False)
            return answer
        finally:
            submission.permit = None
            self.breaker.done(submission)

    async def _found_again(self, submission: Submission, task_id: str) -> None:
        """Take the task that the service gave under the name."""
        if submission.asked.steps is not None:
            await submission.asked.steps.answer(submission.ref, SubmissionEvent.ACCEPTED, task_id)
        if submission.state is SubmissionState.UNKNOWN and not self._transitions.accept(submission, task_id):
            self._slots.release(submission.group)

    def _out_of_patience(self, submission: Submission, error: Exception) -> Exception:
        """End a submission that has waited for as long as it may for a service that is away."""
        own = submission.patience.max_wait is not None
        self._transitions.end(submission, SubmissionEvent.EXPIRED if own else SubmissionEvent.WITHDRAWN, error=error)
        return error

    async def _attempt(self, submission: Submission, body: bytes, *, first: bool) -> Answer:
        """Send when it is this submission's turn, and tell all others whether the service is there.

        Raises:
            CircuitOpen: It is not this submission's turn, and was not for as long as it waits at most.
        """
        patience = submission.patience
        try:
            begun = self._loop.time()
            if self.breaker.reason is not None:
                try:
                    await self.breaker.wait(until=begun + patience.for_service())
                finally:
                    now = self._loop.time()
                    patience.was_unreached(now - begun)
                    begun = now
            submission.permit = await self._limiter.acquire(
                priority=submission.asked.priority,
                max_wait=patience.max_wait,
                waited=patience.waited,
                since=patience.started,
                first=first,
                owner=submission,
                group=submission.group,
            )
            submission.let_through = True
            self._transitions.step(submission, SubmissionEvent.GRANTED)
            granted = self._loop.time()
            patience.waited += granted - begun
            answer = await self._post(submission, body, submission.permit)
            match answer:
                case Accepted() | Refused():
                    self._reached(submission)
                case NeverSent(error, Obstacle.PASSING):
                    patience.was_unreached(self._loop.time() - granted)
                    self._risk_less(submission, error, free=True)
                case Unclear(error):
                    self._risk_less(submission, error, free=False)
            return answer
        finally:
            if submission.let_through and submission.state is SubmissionState.QUEUED:
                submission.let_through = False
                self._slots.wait_again(submission.group)
            self.breaker.done(submission)

    def _reached(self, submission: Submission) -> None:
        """The service is there."""
        if self.breaker.reason is not None:
            self._observers.tell("OutageEnded", submission.asked, seconds=self.breaker.seconds)
        self.breaker.answered()

    def _risk_less(self, submission: Submission, error: Flux2Error, *, free: bool) -> None:
        there = self.breaker.reason is None
        self.breaker.failed(submission, error, free=free)
        if there and self.breaker.reason is not None:
            self._observers.tell("OutageBegan", submission.asked, error=error)

    async def _pause(self, submission: Submission, error: Flux2Error) -> None:
        """Wait before another try; while the service is away the breaker says how long."""
        left = submission.patience.for_service()
        if not left:
            raise self._out_of_patience(submission, error)
        if self.breaker.reason is None:
            pause = min(PAUSE_UNCONNECTED, left)
            await asyncio.sleep(pause)
            submission.patience.was_unreached(pause)

    async def _post(self, submission: Submission, body: bytes, permit: Permit) -> Answer:
        """Send once: connection, intent, last look, head; nothing is awaited before the head."""
        asked = submission.asked
        post = self._api.create_task(body, request=submission.request, ref=asked.ref, headers=asked.headers)
        told = False

        async def announce() -> None:
            nonlocal told
            # Others may have met the outage meanwhile.
            self.breaker.take(submission)
            self._transitions.step(submission, SubmissionEvent.ANNOUNCED)
            await self._announce(submission)
            told = submission.asked.steps is not None

        try:
            # Not before the permit: who waits for that would hold up all others.
            self.breaker.take(submission)
            async with post:
                leave = partial(self._keeps_back, submission, permit)
                answer = self._own(submission, await post.send(leave, announce))
                if isinstance(answer, Refused):
                    answer = await self._confirmed(submission, post, answer)
        except CircuitOpen:
            self._transitions.step(submission, SubmissionEvent.HELD)
            raise
        except _TakenError:
            self._transitions.step(submission, SubmissionEvent.KEY_TAKEN)
            raise
        except BaseException:
            # At once, whatever the journal takes.
            sent = submission.state is SubmissionState.SENT
            permit.unclear() if sent else permit.never_sent()
            if told and not sent and submission.asked.steps is not None:
                await submission.asked.steps.answer(submission.ref, SubmissionEvent.WITHDRAWN, None)
            raise
        await self._answered(submission, answer, told=told)
        return answer

    async def _confirmed(self, submission: Submission, post: Post, refused: Refused) -> Answer:
        """The refusal where nothing else comes behind it, before anybody takes it for one; else unclear.

        A 429 is watched for as long as nobody sends because of it; another refusal for a second, and so a 429 that
        somebody waits for: all others, while one tries whether the service is there, or who is out of patience.
        """
        event, error = _meaning_of(refused)
        if throttled := event is SubmissionEvent.THROTTLED:
            self._transitions.throttled(submission, error)
        begun = self._loop.time()

        def watch_on() -> float:
            awaited = self.breaker.reason is not None or submission.callers.hurry is not None
            if throttled and not awaited and self._goes_on(submission):
                # Back in the queue in time to be the first.
                until = (self._limiter.paused_until or begun) - QUEUE_BEFORE
                left = submission.patience.left()
                if left is None or until - begun <= left:
                    return until - self._loop.time()
            return begun + WATCH_REFUSAL - self._loop.time()

        while (seconds := watch_on()) > 0 and not await post.is_over(min(seconds, 1.0)):
            pass
        if throttled:
            submission.patience.waited += self._loop.time() - begun
        return post.confirm(refused)

    def _believe(self, answer: Answer) -> None:
        if isinstance(answer, Accepted | Refused) and answer.told:
            self._limiter.believe(answer.told)

    def _goes_on(self, submission: Submission) -> bool:
        """Whether anybody is left to wait for another try, or to send it."""
        wanted = submission.asked.steps is None or submission.asked.steps.wanted()
        return wanted and submission.callers.count > 0 and not self.closed

    def _own(self, submission: Submission, answer: Answer) -> Answer:
        """The answer, unclear where it names the task of another submission: whose reply it is nobody knows."""
        if not isinstance(answer, Accepted):
            return answer
        if self._task_ids.of_another(answer.task_id, submission.ref):
            told = f"createTask was answered with task {answer.task_id}, which another submission has"
            return unclear(told, request=submission.request, ref=submission.ref)
        self._task_ids.add(answer.task_id, submission.ref)
        return answer

    async def _announce(self, submission: Submission) -> None:
        """Take the awaited steps before a POST; what one of them raises keeps it from being sent."""
        if self._budgets is not None:
            await self._budgets.confirm(submission)
        if submission.claim is not None:
            reserved = await submission.claim.reserve()
            # Nobody was told of a POST yet, so who left meanwhile pays for nothing.
            if not submission.callers.count:
                raise left()
            if not reserved:
                raise _TakenError
        try:
            if submission.asked.on_send is not None and not submission.announced:
                await submission.asked.on_send(submission.ref)
                # Holds until a POST leaves: one that outlasts each lease would else keep the request from ever leaving.
                submission.announced = True
            if submission.asked.steps is not None and not self.abandoned:
                await submission.asked.steps.intent(submission.ref)
        except Exception as error:  # noqa: BLE001  whatever it is, it belongs to the first caller alone
            raise StepFailedError(error) from None
        if self.abandoned:
            raise cut_off(submission, "the session was closed")

    async def _answered(self, submission: Submission, answer: Answer, *, told: bool) -> None:
        """Take an answer: the limit first, then the journal, then all others."""
        event, error = _meaning_of(answer)
        self._transitions.settle_permit(submission, event, error)
        self._believe(answer)
        submission.announced = event is SubmissionEvent.LEASE_ENDED
        if told and submission.asked.steps is not None and event is not SubmissionEvent.UNCLEAR:
            task_id = answer.task_id if isinstance(answer, Accepted) else None
            await submission.asked.steps.answer(submission.ref, event, task_id)
        if submission.ended:
            # The session did not wait for the journal.
            return
        if isinstance(answer, Accepted):
            if not self._transitions.accept(submission, answer.task_id):
                self._slots.release(submission.group)
        elif event in (SubmissionEvent.REFUSED, SubmissionEvent.UNCLEAR):
            if event is SubmissionEvent.UNCLEAR and submission.name is not None:
                submission.doubt = _still_unclear(submission, error)
            self._transitions.end(submission, event, error=error)
        else:
            self._transitions.step(submission, event, error)

    def _keeps_back(self, submission: Submission, permit: Permit) -> bool:
        """Asked immediately before the first byte of a POST; False lets it leave, and from here on it is sent."""
        # One that has ended stays so, whoever would not be interrupted in announcing it.
        if submission.state is not SubmissionState.ANNOUNCED or permit.lease_ended():
            return True
        self._transitions.step(submission, SubmissionEvent.POSTED)
        if self._names_kept is not None and submission.name is None:
            submission.name = Lifetime(resent_within(self._names_kept))
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


def _still_unclear(submission: Submission, error: Flux2Error | None) -> AmbiguousSubmitError:
    what = str(error).partition(f"; {UNCLEAR}")[0]
    return AmbiguousSubmitError(
        f"{what}; it is not clear yet which task it became, if any: submit it again with the same ref, under which it "
        "is paid once, or look into the task log of your account",
        request=submission.request,
        ref=submission.ref,
        http_status=getattr(error, "http_status", None),
    )


def _not_risked(reason: Exception | None) -> TransportError:
    what = str(reason) if isinstance(reason, TransportError) else "the last answers to createTask were unclear"
    return TransportError(f"nothing was sent, because the service seems to be away: {what}", never_sent=True)


def left() -> Flux2Error:
    """The error of a submission that nobody waits for."""
    return SessionClosedError("the caller of this submission left; nothing was sent")


def cut_off(submission: Submission, what: str) -> Flux2Error:
    """The error of a submission that was cut off where it stands."""
    if submission.state is SubmissionState.SENT:
        return AmbiguousSubmitError(
            f"{what} while createTask was under way; the task may exist and cost money",
            request=submission.request,
            ref=submission.ref,
        )
    return SessionClosedError(f"{what}; nothing was sent")
