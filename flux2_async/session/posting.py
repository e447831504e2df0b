"""One POST of a submission: connection, intent, head, answer; in this order.

Between connection and head its intent is awaited: its key is reserved, `on_send` and the journal are told. From the
first byte on it is finished whatever its callers do, because the service may be charging already.
"""

import asyncio
from enum import Enum
from functools import partial
from typing import Final

from flux2_async._http.post import Post
from flux2_async._limiter.permit import Permit
from flux2_async._protocol.answers import UNCLEAR, Accepted, Answer, NeverSent, Obstacle, Refused, Unclear, unclear
from flux2_async.errors import (
    AmbiguousSubmitError,
    Flux2Error,
    RateLimitedError,
    SessionClosedError,
    SubmissionWithdrawnError,
)
from flux2_async.models.service import resent_within
from flux2_async.models.submission_state import ACCEPTED, ANNOUNCED, POSTED, SubmissionEvent, SubmissionState
from flux2_async.session.circuit_breaker import CircuitBreaker, CircuitOpen
from flux2_async.session.shared import Shared
from flux2_async.session.submission import Lifetime, Submission
from flux2_async.session.transition import Transitions

# Seconds between two tries of one submission, and before the first while the service is away.
PAUSE_UNCONNECTED: Final = 0.5
# Seconds for which more may come behind a refusal; a peer that does as it is asked ends the connection at once.
WATCH_REFUSAL: Final = 1.0
QUEUE_BEFORE: Final = 0.02
ANSWERED: Final = (Accepted, Refused)


class Cut(Enum):
    """What cuts a submission off where it stands: its words, and the error where nothing was sent."""

    CANCELLED = "the submission was cancelled", SubmissionWithdrawnError
    LEFT = "whoever waited for this submission left or was cancelled", SubmissionWithdrawnError
    CLOSED = "the session was closed", SessionClosedError
    LOOP_CLOSED = "the event loop was closed", SessionClosedError

    def __init__(self, words: str, kind: type[Flux2Error]) -> None:
        self.words = words
        self._kind = kind

    def unsent(self) -> Flux2Error:
        """The error of a submission that ended before it was sent."""
        # Of those two it is chance which comes first then.
        why = ", as all are when `asyncio.run` ends before `aclose`" if self._kind is SubmissionWithdrawnError else ""
        return self._kind(f"{self.words}{why}; nothing was sent")


class StepFailedError(Exception):
    """An awaited step before a POST raised."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class TakenError(Exception):
    """Another process reserved the key just before."""


class Posting:
    """Sends submissions, once each time.

    Attributes:
        breaker: Held while the service is away.
        closed: Whether nothing is sent again.
        abandoned: Whether nothing is to leave any more.
    """

    def __init__(self, shared: Shared, transitions: Transitions) -> None:
        self.breaker: CircuitBreaker = CircuitBreaker(threshold=2, first_pause=PAUSE_UNCONNECTED)
        self.closed = False
        self.abandoned = False
        self._shared = shared
        self._transitions = transitions
        self._loop = asyncio.get_running_loop()

    async def send(self, submission: Submission, body: bytes, permit: Permit) -> Answer:
        """Send once: connection, intent, last look, head; nothing is awaited before the head."""
        asked = submission.asked
        submission.announced.intent = False
        try:
            # Not before the permit: who waits for that would hold up all others.
            self.breaker.take(submission)
            post = self._shared.api.create_task(body, request=asked.request, ref=asked.ref, headers=asked.headers)
            with post:
                keeps_back = partial(self._keeps_back, submission, permit)
                answer = self._own(submission, await post.send(keeps_back, partial(self._announce, submission)))
                if isinstance(answer, Refused):
                    answer = await self._confirmed(submission, post, answer)
        except CircuitOpen:
            self._transitions.step(submission, SubmissionEvent.HELD)
            raise
        except TakenError:
            self._transitions.step(submission, SubmissionEvent.KEY_TAKEN)
            raise
        except BaseException:
            # At once, whatever the journal takes.
            sent = submission.state is SubmissionState.SENT
            permit.unclear() if sent else permit.never_sent()
            if submission.announced.intent and not sent:
                await submission.tell_steps(SubmissionEvent.WITHDRAWN)
            raise
        await self._answered(submission, answer)
        return answer

    async def send_again(self, submission: Submission, body: bytes, permit: Permit) -> Answer:
        """Send what is unclear once more, under the same name; its intent was told before the first POST."""
        asked, name = submission.asked, submission.name
        submission.permit = permit

        def late() -> bool:
            # A service that has forgotten the name would take it for another request.
            return permit.lease_ended() or name is None or name.left() <= 0.0

        with self._shared.api.create_task(body, request=asked.request, ref=asked.ref, headers=asked.headers) as post:
            answer = self._own(submission, await post.send(late))
        event, error = _meaning_of(answer)
        if event is SubmissionEvent.THROTTLED:
            self._transitions.throttled(submission, error)
        self._transitions.settle_permit(submission, event, error)
        self._believe(answer)
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
            if throttled and not awaited and self.goes_on(submission):
                # Back in the queue in time to be the first.
                until = (self._shared.limiter.paused_until or begun) - QUEUE_BEFORE
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
        if isinstance(answer, ANSWERED) and answer.told:
            self._shared.limiter.believe(answer.told)

    def goes_on(self, submission: Submission) -> bool:
        """Whether anybody is left to wait for another try, or to send it."""
        wanted = submission.asked.steps is None or submission.asked.steps.wanted()
        return wanted and submission.callers.count > 0 and not self.closed

    def _own(self, submission: Submission, answer: Answer) -> Answer:
        """The answer, unclear where it names the task of another submission: whose reply it is nobody knows."""
        if not isinstance(answer, Accepted) or self._shared.task_ids.claim(answer.task_id, submission.ref):
            return answer
        told = f"createTask was answered with task {answer.task_id}, which another submission has"
        return unclear(told, request=submission.request, ref=submission.ref)

    async def _announce(self, submission: Submission) -> None:
        """Take the awaited steps before a POST; what one of them raises keeps it from being sent."""
        # Others may have met the outage meanwhile.
        self.breaker.take(submission)
        self._transitions.step(submission, ANNOUNCED)
        asked = submission.asked
        # The key first: what another process sends under it is not to count twice.
        taken = submission.claim is not None and not await submission.claim.reserve()
        if self._shared.budgets is not None and not taken:
            await self._shared.budgets.confirm(submission)
        if submission.claim is not None:
            # Nobody was told of a POST yet, so who left meanwhile pays for nothing.
            if not submission.callers.count:
                raise Cut.LEFT.unsent()
            if taken:
                raise TakenError
        try:
            if asked.on_send is not None and not submission.announced.on_send:
                await asked.on_send(asked.ref)
                # Holds until a POST leaves: one that outlasts each lease would else keep the request from ever leaving.
                submission.announced.on_send = True
            if asked.steps is not None and not self.abandoned:
                await asked.steps.intent(asked.ref)
        except Exception as error:  # noqa: BLE001  whatever it is, it belongs to the first caller alone
            raise StepFailedError(error) from None
        if self.abandoned:
            raise cut_off(submission, Cut.CLOSED)
        submission.announced.intent = asked.steps is not None

    async def _answered(self, submission: Submission, answer: Answer) -> None:
        """Take an answer: the limit first, then the journal, then all others."""
        event, error = _meaning_of(answer)
        self._transitions.settle_permit(submission, event, error)
        self._believe(answer)
        announced = submission.announced
        announced.on_send = announced.on_send and event is SubmissionEvent.LEASE_ENDED
        if announced.intent and event is not SubmissionEvent.UNCLEAR:
            await submission.tell_steps(event, answer.task_id if isinstance(answer, Accepted) else None)
        if submission.ended:
            # The session did not wait for the journal.
            return
        if isinstance(answer, Accepted):
            if not self._transitions.accept(submission, answer.task_id):
                self._shared.slots.release(submission.group)
        elif event in (SubmissionEvent.REFUSED, SubmissionEvent.UNCLEAR):
            if event is SubmissionEvent.UNCLEAR and submission.name is not None:
                submission.doubt = still_unclear(submission, error)
            self._transitions.end(submission, event, error=error)
        else:
            self._transitions.step(submission, event, error)

    def _keeps_back(self, submission: Submission, permit: Permit) -> bool:
        """Asked immediately before the first byte of a POST; False lets it leave, and from here on it is sent."""
        # One that has ended stays so, whoever would not be interrupted in announcing it.
        if submission.state is not SubmissionState.ANNOUNCED or permit.lease_ended():
            return True
        self._transitions.step(submission, POSTED)
        if self._shared.names_kept is not None and submission.name is None:
            submission.name = Lifetime(resent_within(self._shared.names_kept))
        return False


def _meaning_of(answer: Answer) -> tuple[SubmissionEvent, Flux2Error | None]:
    match answer:
        case Accepted():
            return ACCEPTED, None
        case Refused(RateLimitedError(code=429) as error):
            return SubmissionEvent.THROTTLED, error
        case Refused(error):
            return SubmissionEvent.REFUSED, error
        case NeverSent(error, obstacle):
            return SubmissionEvent.LEASE_ENDED if obstacle is Obstacle.LEASE else SubmissionEvent.NEVER_SENT, error
        case Unclear(error):
            return SubmissionEvent.UNCLEAR, error


def still_unclear(submission: Submission, error: Flux2Error | None) -> AmbiguousSubmitError:
    """The error of a submission that is sent again under its name, or may be."""
    what = str(error).partition(f"; {UNCLEAR}")[0]
    return AmbiguousSubmitError(
        f"{what}; it is not clear yet which task it became, if any: submit it again with the same ref, under which it "
        "is paid once, or check the task log of your account",
        request=submission.request,
        ref=submission.ref,
        http_status=getattr(error, "http_status", None),
    )


def cut_off(submission: Submission, by: Cut) -> Flux2Error:
    """The error of a submission that was cut off where it stands."""
    if submission.state is SubmissionState.SENT:
        while_ = "createTask was under way; the task may exist and cost money"
        if submission.announced.answer:
            while_ = f"task {submission.announced.answer} was being written down"
        return AmbiguousSubmitError(f"{by.words} while {while_}", request=submission.request, ref=submission.ref)
    return by.unsent()
