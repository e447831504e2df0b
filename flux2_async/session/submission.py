"""What a submission is: one request on its way to the service, who is told of it, and whose key it claims."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from flux2_async._limiter.permit import Permit
from flux2_async._shown.frames import Secret
from flux2_async.errors import AmbiguousSubmitError, InvalidRequestError
from flux2_async.models import Request
from flux2_async.models.requests import REQUESTS
from flux2_async.models.submission_state import UNCLEAR, SubmissionEvent, SubmissionState, after
from flux2_async.session.arguments import check_metadata, check_name, check_priority, check_seconds, new_ref
from flux2_async.session.circuit_breaker import CLOCK_TICK
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.outcome import Outcome, Signal

if TYPE_CHECKING:
    from flux2_async.coordination.client import SharedKey

# Seconds; what is never sent costs nothing, and who waits wants to know.
TRY_FOR: Final = 60.0
WITHDRAWABLE: Final = frozenset({SubmissionState.QUEUED, SubmissionState.ARMED})
KNOWN: Final = frozenset({SubmissionState.ACCEPTED, SubmissionState.REFUSED, SubmissionState.WITHDRAWN})
ENDED: Final = KNOWN | {SubmissionState.UNKNOWN}
PRIVATE: Final = frozenset({SubmissionEvent.FAILED, SubmissionEvent.EXPIRED})

OnSend = Callable[[str], Awaitable[object]]


class SubmissionSteps(Protocol):
    """The awaited steps of a submission, for a journal of your own; called in the asyncio task that sends.

    A cancelled caller does not cancel them. Unlike observers they are awaited: nothing is sent before `intent`
    has returned, and nobody hears of an answer before `answer` has.

    Example:
        class Notes:
            async def intent(self, ref: str, /) -> None:
                Path("notes").write_text(f"sending {ref}")

            async def answer(self, ref: str, event: SubmissionEvent, task_id: str | None, /) -> None:
                Path("notes").write_text(f"{ref} {event}: {task_id}")

            def wanted(self) -> bool:
                return True

        task = await flux.submit(request, steps=Notes())
    """

    async def intent(self, ref: str, /) -> None:
        """A POST is about to leave. What this raises keeps it from being sent and is the outcome.

        Args:
            ref: The submission.
        """
        ...

    async def answer(self, ref: str, event: SubmissionEvent, task_id: str | None, /) -> None:
        """What became of the POST that was about to leave; does not raise. Closing leaves it a second at least.

        Args:
            ref: The submission.
            event: `ACCEPTED`; or what is proof that nothing was created, told before any further try: `REFUSED`,
                `THROTTLED`, `NEVER_SENT`, `LEASE_ENDED`, `WITHDRAWN`. Nothing is told of an unclear one, whose outcome
                is an `AmbiguousSubmitError`.
            task_id: Of the task when it was accepted, else None.
        """
        ...

    def wanted(self) -> bool:
        """Whether an answer that allows another try is to be followed by one."""
        ...


@attrs.define(eq=False, repr=False)
class Asked:
    """What `submit` was asked for, see there; checked. A handle of `enqueue` may still change the priority."""

    request: Request
    key: str | None = None
    max_wait: float | None = None
    priority: int = 0
    ref: str = attrs.field(factory=new_ref)
    on_send: OnSend | None = None
    steps: SubmissionSteps | None = None
    group: str | None = None
    metadata: Mapping[str, Any] | None = None
    headers: Secret | None = None
    resend_within: float | None = None

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.request, Request):
            raise InvalidRequestError(f"request: {type(self.request).__name__} given, allowed are {REQUESTS}")
        check_seconds("max_wait", self.max_wait)
        check_priority(self.priority)
        self.key = check_name("key", self.key)
        self.group = check_name("group", self.group)
        self.metadata = check_metadata(self.metadata)


@attrs.define(eq=False, repr=False)
class Patience:
    """How long a submission waits, and for how long it has; all times are the loop's, in seconds.

    Attributes:
        max_wait: For a slot, a permit and a service that is away, together; None for no bound.
        started: When it began.
        waited: How much of `max_wait` is used up.
        unreached: For how long the service could not be reached.
    """

    max_wait: float | None
    started: float
    waited: float = attrs.field(init=False, default=0.0)
    unreached: float = attrs.field(init=False, default=0.0)

    def was_unreached(self, seconds: float) -> None:
        """So many seconds went by because the service could not be reached."""
        self.waited += seconds
        self.unreached += seconds

    def for_service(self) -> float:
        """Give the seconds for which a service that cannot be reached is tried on: of `max_wait`, else of a minute."""
        left = self.left()
        left = TRY_FOR - self.unreached if left is None else left
        # A loop may call a clock tick early, and what is left then is no time to wait.
        return left if left > CLOCK_TICK else 0.0

    def left(self) -> float | None:
        """Give the seconds that are left of `max_wait`."""
        return None if self.max_wait is None else max(self.max_wait - self.waited, 0.0)


@attrs.frozen(eq=False, repr=False)
class Lifetime:
    """So many seconds from now on, by whichever clock they are over first: the loop's may stand still in a sleep."""

    seconds: float
    _begun: float = attrs.field(init=False, factory=lambda: asyncio.get_running_loop().time())
    _wall: float = attrs.field(init=False, factory=time.time)

    def left(self) -> float:
        """Give the seconds that are left, less than 0 when they are over."""
        passed = asyncio.get_running_loop().time() - self._begun
        return self.seconds - max(passed, time.time() - self._wall)


class Callers:
    """Who wait for a submission.

    Attributes:
        count: How many.
        leaving: How many of those were withdrawn, and have not left yet.
        hurry: Woken when no POST is under way any more; None: nobody waits for that.
    """

    count: int = 0
    leaving: int = 0
    hurry: Signal | None = None


class Announced:
    """What `on_send` and `steps` of a submission were told.

    Attributes:
        on_send: Whether it was awaited for a POST that has not left yet.
        intent: Whether it was awaited for the POST that is to leave, or has left.
        answer: The task that `answer` is awaited for, empty for another answer; None while it is not.
    """

    on_send: bool = False
    intent: bool = False
    answer: str | None = None


class Submission:
    """One request on its way to the service.

    Attributes:
        asked: What its first caller asked for; the request, once uploaded, without bytes.
        patience: How long it waits.
        outcome: The handle, or what went wrong.
        callers: Who wait for it.
        claim: Its claim to a key beyond this process, or None.
        has_slot: Whether it has a slot, or became a task.
        let_through: Whether it does not wait for a permit (any more).
        state: Where it stands.
        last: What happened to it last, or None.
        permit: The one it holds, while nobody has said what became of it; else None.
        uploads: Whether it may have pictures that are no addresses yet.
        announced: What its first caller's own code was told.
        doubt: What to tell of it while nobody knows whether it was accepted and it is sent again under its name; else
            None.
        name: For how long it may be sent again under its name, where its first POST left under one that the service
            honours; else None.
    """

    claim: "SharedKey | None" = None
    has_slot: bool = False
    let_through: bool = False
    state: SubmissionState = SubmissionState.QUEUED
    last: SubmissionEvent | None = None
    permit: Permit | None = None
    uploads: bool = True
    doubt: AmbiguousSubmitError | None = None
    name: Lifetime | None = None

    def __init__(self, asked: Asked, patience: Patience) -> None:
        self.asked = asked
        self.patience = patience
        self.outcome: Outcome[ImageTask] = Outcome()
        self.callers: Callers = Callers()
        self.announced: Announced = Announced()

    @property
    def request(self) -> Request:
        """What is submitted."""
        return self.asked.request

    @property
    def ref(self) -> str:
        """Its name."""
        return self.asked.ref

    @property
    def key(self) -> str | None:
        """The caller's own name for it, or None."""
        return self.asked.key

    @property
    def group(self) -> str | None:
        """Whose it is, or None."""
        return self.asked.group

    def move(self, event: SubmissionEvent) -> None:
        """Go where an event leads.

        Raises:
            IllegalTransitionError: It leads nowhere from here.
        """
        self.state = after(self.state, event)
        self.last = event
        if self.callers.hurry is not None and (self.may_leave or self.ended):
            self.callers.hurry.wake()
            self.callers.hurry = None

    def end(self, event: SubmissionEvent, *, task: ImageTask | None = None, error: Exception | None = None) -> None:
        """Go where an event leads that ends it, or changes its end, and tell its callers, and its lasting claim."""
        self.move(event)
        if self.claim is not None and (task is not None or self.state is SubmissionState.UNKNOWN):
            self.claim.bound(None if task is None else task.id)
        if self.outcome.done:
            self.outcome = Outcome()
        # While it is sent again its callers wait.
        if self.doubt is None or event is not UNCLEAR:
            self.outcome.settle(task, error)

    async def tell_steps(self, event: SubmissionEvent, task_id: str | None = None) -> None:
        """Have an answer written down where somebody keeps a journal of it."""
        if self.asked.steps is not None:
            self.announced.answer = task_id or ""
            try:
                await self.asked.steps.answer(self.ref, event, task_id)
            finally:
                self.announced.answer = None

    def doubted(self, seconds: float) -> None:
        """It was sent before, without a clear answer, and may be sent again under its name for so many seconds."""
        self.state, self.name = SubmissionState.UNKNOWN, Lifetime(seconds)
        what = "createTask was sent before, and it is not known whether the service accepted it"
        self.doubt = AmbiguousSubmitError(
            f"{what}; submit it again with the same ref", request=self.request, ref=self.ref
        )

    def tell_doubt(self) -> None:
        """Tell its callers that nobody knows, unless they know better."""
        if self.doubt is not None:
            self.outcome.settle(None, self.doubt)

    def latest(self, outcome: "Outcome[ImageTask]") -> "Outcome[ImageTask]":
        """Give what is to be told to one who waited for an outcome: what is known, where that is more."""
        return self.outcome if self.known or not outcome.done else outcome

    def lose_patience(self) -> None:
        """Tell those who wait for it now; whoever comes later waits until it is clear."""
        present, self.outcome = self.outcome, Outcome()
        present.settle(None, self.doubt)

    async def answered(self) -> None:
        """Wait until no POST of it is under way."""
        while not (self.may_leave or self.ended):
            self.callers.hurry = self.callers.hurry or Signal()
            await self.callers.hurry.wait()

    @property
    def may_leave(self) -> bool:
        """Whether it ends, with nothing sent, when nobody waits for it."""
        return self.state in WITHDRAWABLE

    @property
    def ended(self) -> bool:
        """Whether its callers can be told what became of it."""
        return self.state in ENDED

    @property
    def known(self) -> bool:
        """Whether it has ended, and it is certain how."""
        return self.state in KNOWN

    @property
    def private(self) -> bool:
        """Whether it ended for reasons of its first caller alone; who joined it is not concerned."""
        return self.last in PRIVATE
