"""Random callers, cancellations, answers and deaths drive submissions over their table; the service counts."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, Self

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from virtual_time import VirtualClockLoop

from flux2_async._limiter.limiter import Limiter
from flux2_async._limiter.slots import Slots
from flux2_async._protocol.answers import Accepted, Answer, NeverSent, Obstacle, Refused, unclear
from flux2_async.errors import (
    AmbiguousSubmitError,
    Flux2Error,
    InsufficientCreditsError,
    RateLimitedError,
    TransportError,
)
from flux2_async.models import Polling, RateLimit, TaskRecord, TaskState, TextToImage
from flux2_async.models.events import SessionEvent, SubmissionChanged
from flux2_async.models.submission_state import SubmissionEvent, SubmissionState, after
from flux2_async.session.keys import Keys
from flux2_async.session.shared import Shared
from flux2_async.session.submission import Asked
from flux2_async.session.submitter import Submitter
from flux2_async.session.task_ids import TaskIds
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.observers import Observers
from flux2_async.tasks.schedule import Schedules
from flux2_async.tasks.watcher import Watcher

REQUEST: Final = TextToImage("a red kettle")
POLLING: Final = Polling(interval=3.0)
CONNECTING: Final = ("open", "open", "open", "open", "open", "passing", "lasting", "late")
ANSWERS: Final = ("accepted and lost", "accepted", "refused", "throttled", "lost", "accepted")


@attrs.define
class Service:
    """Waits at every step to be told what happens, and counts what it took."""

    waiting: dict[str, tuple[str, "asyncio.Future[str]"]] = attrs.field(factory=dict)
    took: list[str] = attrs.field(factory=list)
    left: Counter[str] = attrs.field(factory=Counter)
    honours: bool = False

    async def told(self, ref: str, stage: str) -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.waiting[ref] = stage, future
        try:
            return await future
        finally:
            self.waiting.pop(ref, None)

    def create_task(self, body: bytes, *, request: TextToImage, ref: str, headers: object) -> "Post":
        return Post(self, request, ref)

    async def record(self, task_id: str) -> TaskRecord:
        now = datetime.now(UTC)
        return TaskRecord(task_id=task_id, state=TaskState.FAIL, state_text="fail", create_time=now)


@attrs.define
class Post:
    """One createTask at such a service."""

    service: Service
    request: TextToImage
    ref: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    async def send(
        self, keeps_back: Callable[[], bool], announce: Callable[[], Awaitable[None]] | None = None
    ) -> Answer:
        way = await self.service.told(self.ref, "connecting")
        if way in ("passing", "lasting"):
            return NeverSent(TransportError("no way", never_sent=True), Obstacle(way))
        if announce is not None:
            await announce()
        if way == "late" or keeps_back():
            return NeverSent(TransportError("too late", never_sent=True), Obstacle.LEASE)
        self.service.left[self.ref] += 1
        answer = await self.service.told(self.ref, "answering")
        known = self.service.honours and self.ref in self.service.took
        if answer.startswith("accepted") and not known:
            self.service.took.append(self.ref)
        match answer:
            case "accepted":
                number = self.service.took.index(self.ref) if self.service.honours else len(self.service.took) - 1
                return Accepted(f"task-{number}", {})
            case "refused":
                return Refused(InsufficientCreditsError(402, "no credits"), {})
            case "throttled":
                return Refused(RateLimitedError(429, "slow down", http_status=429), {})
            case _:
                return unclear("no answer came", request=self.request, ref=self.ref)

    async def is_over(self, seconds: float) -> bool:
        return True

    def confirm(self, refused: Refused) -> Refused:
        return refused


class Machine(RuleBasedStateMachine):
    """One account's session, opened again after each death."""

    honours = False
    limiter: Limiter
    slots: Slots
    watcher: Watcher
    submitter: Submitter

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualClockLoop()
        self.service = Service(honours=self.honours)
        self.keys = Keys(86400.0)
        self.names = itertools.count()
        self.told = self.left = 0
        self.callers: dict[str, asyncio.Task[ImageTask]] = {}
        self.work: dict[str, str] = {}
        self.states: dict[str, SubmissionState] = {}
        self.open()

    def run(self, work: Callable[[], Awaitable[object]]) -> None:
        async def settle() -> None:
            await work()
            for _ in range(20):
                await asyncio.sleep(0)

        self.loop.run_until_complete(settle())

    def open(self) -> None:
        async def make() -> None:
            service: Any = self.service
            observers = Observers([self.observe])
            rate = RateLimit(2, 10.0)
            self.limiter, self.slots = Limiter(rate), Slots(3)
            schedules = Schedules(POLLING)
            self.watcher = Watcher(service, self.slots, schedules, POLLING, observers)
            shared = Shared(
                api=service,
                files=service,
                slots=self.slots,
                limiter=self.limiter,
                rate_limit=rate,
                schedules=schedules,
                watcher=self.watcher,
                keys=self.keys,
                task_ids=TaskIds(),
                observers=observers,
                names_kept=86400.0 if self.honours else None,
            )
            self.submitter = Submitter(shared)

        self.run(make)

    def observe(self, event: SessionEvent) -> None:
        """Each step is told once, and leads from the state that was told before."""
        if isinstance(event, SubmissionChanged):
            assert event.ref is not None
            before = self.states.get(event.ref, SubmissionState.QUEUED)
            self.states[event.ref] = after(before, event.event)
            assert event.state is self.states[event.ref]
            assert (event.event is SubmissionEvent.POSTED) <= (before is SubmissionState.ANNOUNCED)

    @rule(
        key=st.sampled_from([None, "a", "a", "b"]),
        max_wait=st.sampled_from([None, None, 0.0, 5.0]),
        asks=st.sampled_from([False, False, True]),
        priority=st.integers(0, 1),
    )
    def submit(self, key: str | None, max_wait: float | None, priority: int, *, asks: bool) -> None:
        ref = f"ref-{next(self.names)}"
        self.work[ref] = key or ref

        async def on_send(ref: str) -> None:
            if await self.service.told(ref, "announcing") == "raise":
                raise ValueError("the journal is full")

        async def call() -> None:
            self.callers[ref] = asyncio.create_task(
                self.submitter.submit(Asked(REQUEST, key, max_wait, priority, ref, on_send if asks else None))
            )
            # What nobody asks for is told on standard error else.
            self.callers[ref].add_done_callback(lambda caller: caller.cancelled() or caller.exception())

        self.run(call)

    @precondition(lambda self: self.service.waiting)
    @rule(data=st.data(), times=st.integers(1, 4))
    def tell(self, data: st.DataObject, times: int) -> None:
        for _ in range(times):
            if self.service.waiting:
                self.tell_one(data)

    def tell_one(self, data: st.DataObject) -> None:
        self.told += 1
        ref = data.draw(st.sampled_from(sorted(self.service.waiting)))
        stage, future = self.service.waiting[ref]
        choices = {"connecting": CONNECTING, "announcing": ("write", "write", "raise"), "answering": ANSWERS}[stage]
        answer = data.draw(st.sampled_from(choices))

        async def give() -> None:
            if not future.done():
                future.set_result(answer)

        self.run(give)

    @precondition(lambda self: not all(caller.done() for caller in self.callers.values()))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiting = sorted(ref for ref, caller in self.callers.items() if not caller.done())
        caller = self.callers[data.draw(st.sampled_from(waiting))]

        async def cancel() -> None:
            caller.cancel()

        self.run(cancel)

    @rule(seconds=st.sampled_from([0.1, 1.0, 11.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.run(lambda: asyncio.sleep(seconds))

    # Seldom, so that something has happened before.
    @precondition(lambda self: self.told > 12)
    @rule(grace=st.sampled_from([0.0, 5.0]))
    def die(self, grace: float) -> None:
        async def close() -> None:
            unclear = await self.submitter.aclose(grace)
            # They run on at the service, whose places they take.
            self.left = len(await self.watcher.aclose())
            self.limiter.close()
            self.slots.close()
            assert {ref for ref in unclear if self.states[ref] is not SubmissionState.UNKNOWN} == set()

        self.told = 0
        self.run(close)
        assert not self.submitter
        assert self.slots.borrowed == self.left
        assert all(caller.done() for caller in self.callers.values())
        self.open()

    @invariant()
    def nothing_is_paid_twice(self) -> None:
        paid = Counter(self.work[ref] for ref in self.service.took)
        assert all(count == 1 for count in paid.values()), paid

    @invariant()
    def what_is_said_is_true(self) -> None:
        for ref, state in self.states.items():
            taken = ref in self.service.took
            if state is SubmissionState.ACCEPTED:
                assert taken
            elif state not in (SubmissionState.SENT, SubmissionState.UNKNOWN):
                assert not taken, f"{ref} is {state}, and was paid for"
            if state is SubmissionState.SENT:
                assert self.service.left[ref] > 0

    @invariant()
    def callers_are_told_what_happened(self) -> None:
        for ref, caller in self.callers.items():
            if not caller.done() or caller.cancelled():
                continue
            error, work = caller.exception(), self.work[ref]
            paid = any(self.work[other] == work for other in self.service.took)
            if error is None:
                assert paid
            elif isinstance(error, AmbiguousSubmitError):
                assert self.states[error.ref] in (SubmissionState.UNKNOWN, SubmissionState.ACCEPTED)
            else:
                assert isinstance(error, Flux2Error | ValueError)
                # An own max_wait or closing says nothing of a POST that another caller of the key has under way.
                assert not paid or work != ref

    def teardown(self) -> None:
        try:
            self.die(0.0)
        finally:
            self.loop.close()


class HonouringMachine(Machine):
    """The same where the service knows a createTask again by its name."""

    honours = True


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestHonouringMachine = HonouringMachine.TestCase
TestHonouringMachine.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
