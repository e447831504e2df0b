"""Services that know a createTask again by its name: what is unclear is sent again under it until it is clear."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from emulated import REQUEST, emulated, error_of, until
from hypothesis import given, settings
from hypothesis import strategies as st

from flux2_async import (
    Flux2Session,
    ImageToImage,
    Polling,
    RateLimit,
    Service,
    SubmissionEvent,
    SubmissionState,
    TextToImage,
    Timeouts,
)
from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.errors import AmbiguousSubmitError, ConfigurationError, InvalidRequestError
from flux2_async.models.events import SubmissionChanged

HEADER = "X-Request-ID"
LOST = ("cut_before", "cut_after", "cut_body", "html", "broken_json")


@asynccontextmanager
async def honouring(*faults: Fault, **options: Any) -> AsyncIterator[tuple[Flux2Session, Emulator]]:
    """A session and a service that honours names."""
    script = Script(plans=Plan(duration=2.0), render=False, idempotency_header=HEADER, faults=[*faults])
    async with Emulator(script) as emulator:
        period = options.pop("period", 86400.0)
        service = Service(base_url=emulator.base_url, idempotency_header=HEADER, idempotency_period=period)
        given: dict[str, Any] = {"polling": Polling(interval=1.0), "rate_limit": RateLimit(20, 1.0)} | options
        async with Flux2Session(emulator.api_key, service=service, **given) as flux:
            yield flux, emulator


def paid(emulator: Emulator) -> Counter[str | None]:
    """How many tasks were made under each name."""
    return Counter(call.name for call in emulator.ledger.requests if call.outcome == "accepted")


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_lost_answer(kind: Any, times: int, *, accepted: bool) -> None:
    """However the answer is lost, and however often: one task, its own, and nobody was in doubt."""
    lost = Fault("createTask", kind, times=times, accepted=accepted, status=502)
    async with honouring(lost) as (flux, emulator):
        task = await flux.submit(REQUEST, ref="order-1")
        assert (await task.result()).task_id == task.id
    assert emulator.ledger.accepted == [task.id]
    assert paid(emulator) == {"order-1": 1}
    assert {call.name for call in emulator.ledger.requests if call.task_id} == {"order-1"}


@pytest.mark.parametrize("kind", LOST[:-1])
async def test_the_same_where_names_are_not_honoured(kind: Any) -> None:
    """In the other world the same fault is an error, and nothing is sent again."""
    async with emulated(Script(faults=[Fault("createTask", kind, accepted=True, status=502)])) as (flux, emulator):
        assert isinstance(await error_of(flux.submit(REQUEST)), AmbiguousSubmitError)
        await asyncio.sleep(3600.0)
        assert len(emulator.ledger.requests) == 1


@given(
    faults=st.lists(
        st.tuples(st.sampled_from([*LOST, "refuse"]), st.booleans(), st.integers(1, 3), st.sampled_from([429, 455])),
        max_size=5,
    )
)
@settings(max_examples=25, deadline=None)
async def test_many_lost_answers(faults: list[tuple[Any, bool, int, int]]) -> None:
    """Whatever mixture of lost answers and refusals that pass: each request is one task, 0 unknown are left."""
    plan = [
        Fault("createTask", kind, times=times, after=2 * number, accepted=accepted, code=code, status=502)
        for number, (kind, accepted, times, code) in enumerate(faults)
        if code != 455 or kind != "refuse"
    ]
    async with honouring(*plan) as (flux, emulator):
        requests = [TextToImage(f"number {number}") for number in range(8)]
        done = [each async for each in flux.as_completed(requests)]
        assert [each.error for each in done] == [None] * 8
    assert len(emulator.ledger.accepted) == 8
    assert set(paid(emulator).values()) == {1}
    assert {each.task.id for each in done if each.task} == {*emulator.ledger.accepted}


async def test_a_refusal_of_the_repetition_proves_nothing() -> None:
    """No credits are left for the repetition, whose first was accepted: it stays unknown, and is found by its name."""
    lost = Fault("createTask", "cut_after")
    async with honouring(lost, Fault("createTask", "refuse", code=402, after=0)) as (flux, emulator):
        error = await error_of(flux.submit(REQUEST, ref="order-1", key="order"))
        assert isinstance(error, AmbiguousSubmitError)
        assert "402" in str(error)
        assert "with the same ref" in str(error)
        assert isinstance(await error_of(flux.submit(REQUEST, key="order")), AmbiguousSubmitError)
        task = await flux.submit(REQUEST, ref="order-1", resend_within=3600.0)
    assert emulator.ledger.accepted == [task.id]


async def test_who_waits_no_longer_is_told_so() -> None:
    """`max_wait` ends the wait with the error that nobody knows; it is sent again in the background all the same."""
    events: list[SubmissionChanged] = []
    async with honouring(Fault("createTask", "cut_after", times=6)) as (flux, emulator):
        flux.observe(lambda event: events.append(event) if isinstance(event, SubmissionChanged) else None)
        begun = asyncio.get_running_loop().time()
        error = await error_of(flux.submit(REQUEST, key="order", max_wait=2.0))
        assert isinstance(error, AmbiguousSubmitError)
        assert 1.9 < asyncio.get_running_loop().time() - begun < 2.5
        task = await flux.submit(REQUEST, key="order")
        assert flux.tasks() == (task,)
        assert (await task.result()).urls
    assert emulator.ledger.accepted == [task.id]
    assert [event.event for event in events].count(SubmissionEvent.REPEATED) == 6
    assert events[-1].state is SubmissionState.ACCEPTED


async def test_a_cancelled_caller_loses_nothing() -> None:
    """Who is cancelled while it is unclear leaves; once it is clear its task is in `tasks()`, and its slot is freed."""
    async with honouring(Fault("createTask", "cut_after", times=4), max_running=1) as (flux, emulator):
        caller = asyncio.ensure_future(flux.submit(REQUEST))
        await until(lambda: emulator.ledger.accepted)
        caller.cancel()
        await until(flux.tasks)
        await flux.drain()
        assert (await flux.generate(REQUEST)).urls
    assert len(emulator.ledger.accepted) == 2


async def test_a_handle_is_not_withdrawn_any_more() -> None:
    """`withdraw` says truly that something may be paid, while it is being sent again."""
    async with honouring(Fault("createTask", "cut_after", times=4)) as (flux, emulator):
        handle = flux.enqueue(REQUEST)
        await until(lambda: handle.state is SubmissionState.UNKNOWN)
        assert handle.withdraw() is False
        assert (await flux.recover(handle.ref)).id == emulator.ledger.accepted[0]


async def test_closing_ends_the_repetitions() -> None:
    """A closed session sends nothing again, says what it left, and is quick about it."""
    async with honouring(Fault("createTask", "cut_after", times=None)) as (flux, emulator):
        handle = flux.enqueue(REQUEST, ref="order-1")
        await until(lambda: len(emulator.ledger.requests) > 3)
        begun = asyncio.get_running_loop().time()
        assert (await flux.aclose()).refs == ("order-1",)
        assert asyncio.get_running_loop().time() - begun < 5.5
        assert isinstance(await error_of(handle), AmbiguousSubmitError)
        sent = len(emulator.ledger.requests)
        await asyncio.sleep(100.0)
        assert len(emulator.ledger.requests) == sent


async def test_no_name_is_used_for_longer_than_it_is_kept() -> None:
    """Of a service that stays away for longer than it keeps names, one is left unknown, and never sent too late."""
    async with honouring(Fault("createTask", "cut_after", times=None), period=600.0) as (flux, emulator):
        begun = asyncio.get_running_loop().time()
        assert isinstance(await error_of(flux.submit(REQUEST)), AmbiguousSubmitError)
        assert 400.0 < emulator.ledger.requests[-1].time - begun < 480.0
        assert asyncio.get_running_loop().time() - begun < 490.0
        sent = len(emulator.ledger.requests)
        await asyncio.sleep(3600.0)
        assert len(emulator.ledger.requests) == sent


async def test_no_name_that_is_over_when_there_is_a_connection() -> None:
    """What opening a connection takes counts: the name is looked at again immediately before the first byte."""

    class SlowConnector(aiohttp.TCPConnector):
        opened = 0

        async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
            type(self).opened += 1
            if self.opened > 1:
                await asyncio.sleep(30.0)
            return await super().connect(req, traces, timeout)

    # The name is good for ten seconds.
    options = {"period": 130.0, "connector": SlowConnector, "timeouts": Timeouts(connect=60)}
    async with honouring(Fault("createTask", "cut_after"), **options) as (flux, emulator):
        assert isinstance(await error_of(flux.submit(REQUEST)), AmbiguousSubmitError)
        await asyncio.sleep(3600.0)
    assert SlowConnector.opened == 2
    assert len(emulator.ledger.requests) == 1


async def test_two_submissions_of_one_name() -> None:
    """The caller's own second try under the same ref gives the same handle, whatever became of the first."""
    async with honouring() as (flux, emulator):
        first = await flux.submit(REQUEST, ref="order-1")
        assert await flux.submit(REQUEST, ref="order-1") is first
        assert (await first.result()).urls
    assert len(emulator.ledger.accepted) == 1


async def test_the_rate_is_kept() -> None:
    """Repetitions take permits like all others, so that the limit is not tripped by them."""
    async with honouring(Fault("createTask", "cut_after", times=5), rate_limit=RateLimit(2, 10.0)) as (flux, emulator):
        await asyncio.gather(*(flux.submit(TextToImage(f"number {n}")) for n in range(4)))
    times = [call.time for call in emulator.ledger.requests]
    assert all(later - sooner >= 10.0 for sooner, later in zip(times, times[2:], strict=False))
    assert len(emulator.ledger.accepted) == 4


@pytest.mark.parametrize(("max_running", "limit"), [(2, 1), (3, 1), (3, 2)])
async def test_nobody_waits_for_ever_behind_repetitions(max_running: int, limit: int) -> None:
    """Who is sent again waits for a permit like all others, also where groups were let ahead of who has a slot."""
    lost = Fault("createTask", "cut_after", times=3)
    async with honouring(lost, max_running=max_running, rate_limit=RateLimit(limit, 10.0)) as (flux, emulator):
        groups = [*["alice"] * max_running, "bob", "carol", "dave", "alice", "bob", "eve"]
        handles = [flux.enqueue(REQUEST, group=group) for group in groups]
        async with asyncio.timeout(3600.0):
            for handle in handles:
                await (await handle)
    assert len(emulator.ledger.accepted) == len(groups)


async def test_unusable_wishes() -> None:
    """The header of the name is the library's own, and only a service that honours names is sent one again."""
    with pytest.raises(ConfigurationError, match=r"headers: X-Request-ID given.*given as ref"):
        Service(base_url="https://a.example", headers={"x-request-id": "1"}, idempotency_header=HEADER)
    with pytest.raises(ConfigurationError, match="headers: X-Request-ID given") as caught:
        Flux2Session(
            "k", service=Service(base_url="https://a.example", idempotency_header=HEADER), headers={"x-REQUEST-id": "1"}
        )
    assert caught.value.__cause__ is None
    with pytest.raises(ConfigurationError, match=r"Service\.idempotency_header: it must be the name of a header"):
        Service(base_url="https://a.example", idempotency_header="X Y")
    async with honouring() as (flux, _):
        wishes: list[dict[str, Any]] = [
            {"headers": {HEADER: "1"}},
            {"resend_within": 5.0},
            {"resend_within": -1, "ref": "a"},
        ]
        for wish in wishes:
            assert isinstance(await error_of(flux.submit(REQUEST, **wish)), InvalidRequestError)
    async with emulated() as (flux, _):
        assert isinstance(await error_of(flux.submit(REQUEST, ref="a", resend_within=5.0)), InvalidRequestError)
        assert isinstance(await error_of(flux.submit(ImageToImage("abc", images=["x"]), ref="a")), InvalidRequestError)
