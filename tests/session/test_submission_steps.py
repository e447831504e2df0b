"""What the keeper of a record is told of a submission, and when."""

import asyncio

import attrs
import pytest
from emulated import REQUEST, emulated, error_of, until

from flux2_async import Flux2Session, Service, Timeouts
from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.errors import (
    AmbiguousSubmitError,
    InsufficientCreditsError,
    RateLimitedError,
    SessionClosedError,
    TransportError,
)
from flux2_async.models import RateLimit
from flux2_async.models.submission_state import SubmissionEvent


@attrs.define
class Keeper:
    """Notes what it is told, and the loop's time."""

    told: list[tuple[str, ...]] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)
    seconds: float = 0.0
    patient: bool = True

    async def intent(self, ref: str) -> None:
        self._note("intent", ref)

    async def answer(self, ref: str, event: SubmissionEvent, task_id: str | None) -> None:
        self._note(str(event), ref, *filter(None, [task_id]))
        if task_id is not None:
            await asyncio.sleep(self.seconds)

    def wanted(self) -> bool:
        return self.patient

    def _note(self, *words: str) -> None:
        self.told.append(words)
        self.times.append(asyncio.get_running_loop().time())


async def test_a_refusal_is_told_before_the_pause() -> None:
    """A 429 is told at once, the next try before it leaves, and the id of the accepted one."""
    keeper = Keeper()
    async with emulated(Script(faults=[Fault("createTask", "refuse", retry_after=5)])) as (flux, _):
        task = await flux.submit(REQUEST, ref="mine", steps=keeper)

    assert keeper.told == [("intent", "mine"), ("throttled", "mine"), ("intent", "mine"), ("accepted", "mine", task.id)]
    assert keeper.times[1] - keeper.times[0] < 1
    assert keeper.times[2] - keeper.times[1] >= 5


async def test_a_refusal_stands_when_no_other_try_is_wanted() -> None:
    """The pause that the service asks for is not waited for, and the refusal is the outcome."""
    keeper = Keeper(patient=False)
    begun = asyncio.get_running_loop().time()
    async with emulated(Script(faults=[Fault("createTask", "refuse", retry_after=3000)])) as (flux, _):
        error = await error_of(flux.submit(REQUEST, ref="mine", steps=keeper))
    assert isinstance(error, RateLimitedError)
    assert keeper.told == [("intent", "mine"), ("throttled", "mine")]
    assert keeper.times[1] - begun < 1


async def test_nothing_is_told_without_a_connection() -> None:
    """An intent is told when there is a connection to send by, so that an outage leaves none."""
    keeper = Keeper()
    async with emulated() as (flux, emulator):
        await emulator.stop()
        assert isinstance(await error_of(flux.submit(REQUEST, ref="mine", steps=keeper)), TransportError)
        await emulator.start()

    assert keeper.told == []


async def test_a_final_refusal_is_told() -> None:
    """A refusal that nobody tries again is told as well."""
    keeper = Keeper()
    async with emulated(Script(faults=[Fault("createTask", "refuse", code=402)])) as (flux, _):
        assert isinstance(await error_of(flux.submit(REQUEST, ref="mine", steps=keeper)), InsufficientCreditsError)

    assert keeper.told == [("intent", "mine"), ("refused", "mine")]


async def test_an_unclear_answer_is_neither() -> None:
    """Of a lost reply nothing is told: neither refused nor accepted is known."""
    keeper = Keeper()
    async with emulated(Script(faults=[Fault("createTask", "cut_after")])) as (flux, _):
        assert isinstance(await error_of(flux.submit(REQUEST, ref="mine", steps=keeper)), AmbiguousSubmitError)

    assert keeper.told == [("intent", "mine")]


async def test_the_id_is_told_before_it_is_used() -> None:
    """While the id is being recorded the task is not looked at, and its caller not told."""
    keeper = Keeper(seconds=30.0)
    async with emulated() as (flux, emulator):
        caller = asyncio.create_task(flux.submit(REQUEST, ref="mine", steps=keeper))
        await asyncio.sleep(29)
        assert not caller.done()
        assert (emulator.ledger.polls, flux.tasks()) == (0, ())
        assert (await caller).id == keeper.told[-1][-1]


async def test_a_cancelled_caller_changes_nothing() -> None:
    """The id of a POST whose caller was cancelled is told all the same, and its task goes on."""
    keeper = Keeper(seconds=1.0)
    async with emulated(Script(latency=1.0)) as (flux, emulator):
        caller = asyncio.create_task(flux.submit(REQUEST, ref="mine", steps=keeper))
        await until(lambda: emulator.ledger.accepted)
        caller.cancel()
        await flux.drain()

        assert keeper.told[-1] == ("accepted", "mine", emulator.ledger.accepted[0])


async def test_closing_while_the_id_is_recorded_calls_it_unclear() -> None:
    """A session that is closed before the record is written names the ref, since the task exists."""
    keeper = Keeper(seconds=100.0)
    async with emulated() as (flux, emulator):
        caller = asyncio.create_task(flux.submit(REQUEST, ref="mine", steps=keeper))
        await until(lambda: keeper.told[1:])
        left = await flux.aclose(grace=5.0)

        assert left.refs == ("mine",)
        assert isinstance(await error_of(caller), AmbiguousSubmitError)
        assert len(emulator.ledger.accepted) == 1


@pytest.mark.parametrize("unclear", [False, True])
@pytest.mark.parametrize("grace", [0.0, 5.0])
async def test_an_id_that_came_is_written_whenever_the_session_is_closed(grace: float, *, unclear: bool) -> None:
    """At whatever step of the loop it is closed: an id that the journal was about to write is written."""

    class Slow(Keeper):
        async def answer(self, ref: str, event: SubmissionEvent, task_id: str | None) -> None:
            self._note("begun")
            await asyncio.sleep(0.5)
            self._note(str(event), ref, *filter(None, [task_id]))

    begun = 0
    for steps in range(0, 60, 3):
        keeper = Slow()
        faults = [Fault("createTask", "cut_after", times=2)] if unclear else []
        script = Script(faults=faults, render=False, idempotency_header="X-Name")
        async with Emulator(script) as emulator:
            service = Service(base_url=emulator.base_url, idempotency_header="X-Name")
            flux = Flux2Session(emulator.api_key, service=service, timeouts=Timeouts(connect=0.1))
            await flux.open()
            caller = asyncio.create_task(error_of(flux.submit(REQUEST, ref="mine", steps=keeper)))
            await until(lambda: [call.task_id for call in emulator.ledger.requests if call.task_id][2 * unclear :])
            for _ in range(steps):
                await asyncio.sleep(0)
            await flux.aclose(grace)
            caller.cancel()
        begun += ("begun",) in keeper.told
        assert (("begun",) in keeper.told) == (("accepted", "mine", emulator.ledger.accepted[0]) in keeper.told)
    assert begun > 0


async def test_what_send_raises_keeps_it_from_being_sent() -> None:
    """A record that cannot be written sends nothing, and permit and slot are free again."""

    class Full(Keeper):
        async def intent(self, ref: str) -> None:
            raise OSError("disk full")

    async with emulated(max_running=1, rate_limit=RateLimit(1, 600.0)) as (flux, emulator):
        assert isinstance(await error_of(flux.submit(REQUEST, ref="mine", steps=Full())), OSError)
        await flux.submit(REQUEST, max_wait=0.0)
        assert len(emulator.ledger.requests) == 1


async def test_a_submission_given_up_is_not_told() -> None:
    """Who leaves while waiting for a permit was never sent, and nothing is told."""
    keeper = Keeper()
    async with emulated(Script(plans=Plan(duration=1.0)), rate_limit=RateLimit(1, 60.0)) as (flux, _):
        await flux.submit(REQUEST)
        caller = asyncio.create_task(flux.submit(REQUEST, ref="mine", steps=keeper))
        await asyncio.sleep(5)
        caller.cancel()
        [outcome] = await asyncio.gather(caller, return_exceptions=True)

        assert isinstance(outcome, asyncio.CancelledError | SessionClosedError)
        assert keeper.told == []
