"""The way of one submission: slot, upload, permit, POST; in this order, and again as long as it was not accepted."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

from flux2_async._limiter.window import Supply
from flux2_async._protocol.answers import Accepted, Answer, NeverSent, Obstacle, Refused, Unclear
from flux2_async._protocol.codec import encode_request
from flux2_async.errors import Flux2Error, RateLimitedError, TransportError
from flux2_async.models import Request, UploadedFile
from flux2_async.models.requests import images_of, names_of_images, with_images
from flux2_async.models.submission_state import ACCEPTED, GRANTED, SubmissionEvent, SubmissionState
from flux2_async.session.circuit_breaker import LONGEST_FREE_PAUSE, CircuitBreaker, CircuitOpen
from flux2_async.session.posting import PAUSE_UNCONNECTED, Posting, TakenError, still_unclear
from flux2_async.session.shared import Shared
from flux2_async.session.submission import Submission
from flux2_async.session.transition import Transitions

THROTTLED: Final = 429


class Sender:
    """Brings submissions to the service, one call of `send` each."""

    def __init__(self, shared: Shared) -> None:
        self.transitions: Transitions = Transitions(shared)
        self.posting: Posting = Posting(shared, self.transitions)
        self.breaker: CircuitBreaker = self.posting.breaker
        self._shared = shared
        self._loop = asyncio.get_running_loop()

    def send(self, submission: Submission) -> Coroutine[Any, Any, None]:
        """Bring a submission to an end.

        Raises:
            StepFailedError: `on_send` or the journal raised; the submission has not ended.
            Exception: What else kept it from being sent; it has not ended either.
        """
        # Handed on instead of wrapped: each layer is passed at every step of a POST.
        return self._send_new(submission) if submission.claim is None else self._send_claimed(submission)

    async def _send_claimed(self, submission: Submission) -> None:
        """Send it unless its key stands for a task already."""
        while submission.claim is not None and submission.doubt is None:
            task = await submission.claim.look()
            if task is not None:
                task.key, task.group, task.metadata = submission.key, submission.group, submission.asked.metadata
                self._shared.task_ids.add(task.id, submission.ref)
                self.transitions.end(submission, SubmissionEvent.FOUND, task=task)
                return
            with suppress(TakenError):
                await self._send_new(submission)
                return
        await self._send_new(submission)

    def prioritise(self, submission: Submission, priority: int) -> None:
        """Give a submission another priority, also where it waits already."""
        submission.asked.priority = priority
        self._shared.slots.prioritise(submission, priority)
        self._shared.limiter.prioritise(submission, priority)

    def turns(self) -> dict[str | None, tuple[int, int]]:
        """Give what tells whose turn comes first of the groups that wait: for a permit, or for a slot."""
        slots = {group: (1, turn) for group, turn in self._shared.slots.turns().items()}
        return slots | {group: (0, turn) for group, turn in self._shared.limiter.turns().items()}

    def supply(self) -> tuple[Supply, float] | None:
        """When there will be permits, and how many tasks may run at once; None: not known, as in an outage."""
        supply = None if self.breaker.reason is not None else self._shared.limiter.supply()
        return None if supply is None else (supply, min(self._shared.slots.places, self._shared.limiter.places))

    async def _send_new(self, submission: Submission) -> None:
        shared, asked, patience = self._shared, submission.asked, submission.patience
        if shared.budgets is not None:
            begun = self._loop.time()
            to_send = await shared.budgets.reserve(submission)
            patience.waited += self._loop.time() - begun
            if not to_send:
                raise TakenError
        if not shared.slots.take(asked.group):
            begun = self._loop.time()
            await shared.slots.acquire(
                priority=asked.priority,
                max_wait=patience.max_wait,
                waited=patience.waited,
                since=patience.started,
                owner=submission,
                group=asked.group,
            )
            patience.waited += self._loop.time() - begun
        submission.has_slot = True
        try:
            input_urls: Sequence[str] = images_of(asked.request)  # type: ignore[assignment]  # unless it uploads
            if submission.uploads:
                # From here on nobody needs the bytes any more, and a key or an error may keep the request for long.
                asked.request, input_urls = await self._upload(submission)
            address = None if shared.inbox is None else shared.inbox.address(asked.ref)
            body = encode_request(asked.request, input_urls, address)
            if submission.doubt is None:
                await self._try(submission, body)
            if submission.doubt is not None and submission.state is SubmissionState.UNKNOWN:
                await self._clear_up(submission, body)
        finally:
            # An accepted task keeps it.
            if submission.last is not ACCEPTED:
                submission.has_slot = False
                shared.slots.release(asked.group, early=not submission.let_through)

    async def _upload(self, submission: Submission) -> tuple[Request, tuple[str, ...]]:
        """Give the request without bytes, and the addresses of its pictures."""
        request = submission.request
        images = images_of(request)
        uploaded = await self._shared.files.urls(images, names_of_images(request))
        for here, there in zip(images, uploaded, strict=True) if self._shared.observers else ():
            if isinstance(there, UploadedFile) and here is not there:
                self._shared.observers.tell("Uploaded", submission.asked, file=there)
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
                if self._shared.budgets is not None:
                    await self._shared.budgets.give_back(submission)
                await submission.claim.release()
            # Nobody is left to wait, or to send: the refusal stands.
            lasting = isinstance(answer, NeverSent) and answer.obstacle is Obstacle.LASTING
            if lasting or not self.posting.goes_on(submission):
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
                        submission.doubt = still_unclear(submission, answer.error)
                        return
        finally:
            if telling is not None:
                telling.cancel()
            submission.tell_doubt()

    def _left_of_name(self, submission: Submission) -> float:
        """For how many seconds it may be sent again; 0 when it is not to be, or is clear."""
        wanted = submission.asked.steps is None or submission.asked.steps.wanted()
        if self.posting.closed or not wanted or submission.state is not SubmissionState.UNKNOWN:
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
            if submission.let_through:
                submission.let_through = False
                self._shared.slots.wait_again(submission.group)
            with await self._shared.limiter.acquire(
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
                self.transitions.step(submission, SubmissionEvent.REPEATED)
                answer = await self.posting.send_again(submission, body, permit)
            if isinstance(answer, Accepted | Refused):
                self._reached(submission)
            elif isinstance(answer, Unclear) or answer.obstacle is Obstacle.PASSING:
                self._risk_less(submission, answer.error, free=False)
            return answer
        finally:
            submission.permit = None
            self.breaker.done(submission)

    async def _found_again(self, submission: Submission, task_id: str) -> None:
        """Take the task that the service gave under the name."""
        await submission.tell_steps(SubmissionEvent.ACCEPTED, task_id)
        if submission.state is SubmissionState.UNKNOWN and not self.transitions.accept(submission, task_id):
            self._shared.slots.release(submission.group)

    def _out_of_patience(self, submission: Submission, error: Exception) -> Exception:
        """End a submission that has waited for as long as it may for a service that is away."""
        own = submission.patience.max_wait is not None
        self.transitions.end(submission, SubmissionEvent.EXPIRED if own else SubmissionEvent.WITHDRAWN, error=error)
        return error

    async def _attempt(self, submission: Submission, body: bytes, *, first: bool) -> Answer:
        """Send when it is this submission's turn, and tell all others whether the service is there.

        Raises:
            CircuitOpen: It is not this submission's turn, and was not for as long as it waits at most.
        """
        asked, patience = submission.asked, submission.patience
        try:
            if self.breaker.reason is not None:
                begun = self._loop.time()
                try:
                    await self.breaker.wait(until=begun + patience.for_service())
                finally:
                    patience.was_unreached(self._loop.time() - begun)
            permit = self._shared.limiter.take(asked.group)
            if permit is None:
                begun = self._loop.time()
                permit = await self._shared.limiter.acquire(
                    priority=asked.priority,
                    max_wait=patience.max_wait,
                    waited=patience.waited,
                    since=patience.started,
                    first=first,
                    owner=submission,
                    group=asked.group,
                )
                patience.waited += self._loop.time() - begun
            submission.permit, submission.let_through = permit, True
            self.transitions.step(submission, GRANTED)
            granted = self._loop.time()
            answer = await self.posting.send(submission, body, permit)
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
                self._shared.slots.wait_again(submission.group)
            self.breaker.done(submission)

    def _reached(self, submission: Submission) -> None:
        """The service is there."""
        if self.breaker.reason is not None:
            self._shared.observers.tell("OutageEnded", submission.asked, seconds=self.breaker.seconds)
        self.breaker.answered()

    def _risk_less(self, submission: Submission, error: Flux2Error, *, free: bool) -> None:
        there = self.breaker.reason is None
        self.breaker.failed(submission, error, free=free)
        if there and self.breaker.reason is not None:
            self._shared.observers.tell("OutageBegan", submission.asked, error=error)

    async def _pause(self, submission: Submission, error: Flux2Error) -> None:
        """Wait before another try; while the service is away the breaker says how long."""
        left = submission.patience.for_service()
        if not left:
            raise self._out_of_patience(submission, error)
        if self.breaker.reason is None:
            pause = min(PAUSE_UNCONNECTED, left)
            await asyncio.sleep(pause)
            submission.patience.was_unreached(pause)


def _not_risked(reason: Exception | None) -> TransportError:
    what = str(reason) if isinstance(reason, TransportError) else "the last answers to createTask were unclear"
    return TransportError(f"nothing was sent, because the service seems to be away: {what}", never_sent=True)
