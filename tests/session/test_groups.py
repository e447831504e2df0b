"""Groups take turns: whoever asks for much does not hold up who asks for little."""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
from emulated import emulated, error_of, most_at_once, session_for
from hypothesis import example, given, settings
from hypothesis import strategies as st
from memory_coordination import Memory
from virtual_time import VirtualClockLoop

from flux2_async import (
    Flux2Session,
    InvalidRequestError,
    Polling,
    Queued,
    RateLimit,
    RateLimitedError,
    SessionEvent,
    Settled,
    SubmissionChanged,
    SubmissionEvent,
    SubmissionHandle,
    SubmissionState,
    TextToImage,
)
from flux2_async.emulator import Emulator, Limit, Plan, Script

RICH = 1e6
LONG = Script(plans=Plan(duration=60.0), credits=RICH)
# Looks are not what is measured here.
SELDOM = Polling(interval=10.0)


def request_of(name: str) -> TextToImage:
    return TextToImage(f"a picture for {name}")


def enqueue(flux: Flux2Session, count: int, group: str | None, **options: Any) -> list[SubmissionHandle]:
    return [flux.enqueue(request_of(str(group)), group=group, **options) for _ in range(count)]


def accepted(emulator: Emulator) -> list[str]:
    """Whose pictures were accepted, in order."""
    tasks = map(emulator.task, emulator.ledger.accepted)
    return [task.body["input"]["prompt"].removeprefix("a picture for ") for task in tasks]


class Alive:
    """Counts the tasks that are alive, of all and by group."""

    def __init__(self) -> None:
        self.now: Counter[str | None] = Counter()
        self.most: Counter[str | None] = Counter()
        self.most_of_all = 0

    def __call__(self, event: SessionEvent) -> None:
        if isinstance(event, SubmissionChanged) and event.event is SubmissionEvent.ACCEPTED:
            self.now[event.group] += 1
            self.most |= self.now
            self.most_of_all = max(self.most_of_all, self.now.total())
        elif isinstance(event, Settled):
            self.now[event.group] -= 1


@pytest.mark.parametrize(("after", "duration"), [(0.0, 60.0), (5.0, 60.0), (75.0, 60.0), (130.0, 3.0)])
async def test_one_among_five_hundred(after: float, duration: float) -> None:
    """Who has one request waits for two permits at most, whenever it comes, also when all slots are out."""
    alive = Alive()
    script = Script(plans=Plan(duration=duration), credits=RICH)
    options: dict[str, Any] = {"rate_limit": RateLimit(20, 10.0), "polling": Polling(interval=duration / 6)}
    async with emulated(script, observers=[alive], **options) as (flux, emulator):
        enqueue(flux, 500, "alice")
        await asyncio.sleep(after)
        before = len(emulator.ledger.accepted)
        single = flux.enqueue(request_of("bob"), group="bob")
        position = single.position
        await single

        # The first twenty find permits and wait for none.
        assert accepted(emulator).index("bob") - max(before, 20) <= 2
        assert position is not None
        assert position <= 2
        assert alive.most_of_all <= 100


async def test_turns_go_on() -> None:
    """Two who want much get one by turns, though one of them had taken all slots; nobody exceeds `max_running`."""
    alive = Alive()
    options: dict[str, Any] = {"rate_limit": RateLimit(10, 10.0), "max_running": 30, "polling": SELDOM}
    async with emulated(LONG, observers=[alive], **options) as (flux, emulator):
        enqueue(flux, 60, "alice")
        await asyncio.sleep(5)
        enqueue(flux, 60, "bob")
        await asyncio.sleep(600)

        assert accepted(emulator)[:30] == ["alice"] * 10 + ["alice", "bob"] * 10
        assert alive.most_of_all == 30
        later = Counter(accepted(emulator)[30:100])
        assert abs(later["alice"] - later["bob"]) <= 2
        await flux.drain(3600)
        assert Counter(accepted(emulator)) == {"alice": 60, "bob": 60}


async def test_priority_comes_first() -> None:
    """Turns are within a priority: a higher one goes before, whoever's it is."""
    async with emulated(LONG, rate_limit=RateLimit(1, 5.0)) as (flux, emulator):
        enqueue(flux, 4, "alice")
        enqueue(flux, 2, "bob")
        urgent = enqueue(flux, 2, "alice", priority=1)
        await asyncio.sleep(1)
        assert [handle.position for handle in urgent] == [0, 1]
        await asyncio.sleep(50)

        assert accepted(emulator) == ["alice"] * 3 + ["bob", "alice", "bob", "alice", "alice"]


async def test_at_most_so_many_of_a_group() -> None:
    """A group at its bound waits and holds up no other; its tasks that end let its next ones in."""
    alive = Alive()
    options: dict[str, Any] = {"max_running_per_group": 2, "max_running": 5, "observers": [alive]}
    async with emulated(Script(plans=Plan(duration=10.0)), **options) as (flux, emulator):
        enqueue(flux, 6, "alice")
        await asyncio.sleep(1)
        enqueue(flux, 2, "bob")
        enqueue(flux, 4, None)
        await asyncio.sleep(1)
        assert Counter(accepted(emulator)) == {"alice": 2, "bob": 2, "None": 1}
        error = await error_of(flux.submit(request_of("alice"), group="alice", max_wait=0))
        assert isinstance(error, RateLimitedError)
        assert "max_running_per_group is 2" in str(error)
        assert str(error).endswith("raise max_wait or max_running_per_group")
        await flux.drain()

        assert Counter(accepted(emulator)) == {"alice": 6, "bob": 2, "None": 4}
        assert alive.most == {"alice": 2, "bob": 2, None: 2}
        assert alive.most_of_all == 5


async def test_as_completed_is_of_a_group() -> None:
    """Its tasks carry the group and take its turns."""
    async with emulated(Script(plans=Plan(duration=1.0)), rate_limit=RateLimit(2, 10.0)) as (flux, emulator):

        async def many() -> list[str | None]:
            done = flux.as_completed([request_of("alice")] * 10, group="alice")
            return [each.task.group if each.task else "none" async for each in done]

        working = asyncio.create_task(many())
        await asyncio.sleep(1)
        await flux.generate(request_of("bob"), group="bob")
        assert accepted(emulator).index("bob") <= 4
        assert await working == ["alice"] * 10
        with pytest.raises(InvalidRequestError, match="group"):
            flux.as_completed([], group="")


@pytest.mark.parametrize("name", ["key", "group"])
async def test_a_name_that_is_no_unicode_is_refused(name: str) -> None:
    """Half a surrogate pair, as JSON may hold one, cannot be hashed for other processes: it ended all their permits."""
    async with emulated() as (flux, emulator):
        options: dict[str, Any] = {name: "k\ud800"}
        error = await error_of(flux.submit(request_of("alice"), **options))
        with pytest.raises(InvalidRequestError, match="task_id: half a surrogate pair given at character 2"):
            flux.attach("k\ud800")

    assert isinstance(error, InvalidRequestError)
    assert str(error) == f"{name}: half a surrogate pair given at character 2, all text must be valid Unicode"
    assert emulator.ledger.charged == 0


@settings(max_examples=15, deadline=None)
@given(
    crowd=st.lists(st.sampled_from(["alice", "bob", "carol"]), min_size=3, max_size=25),
    withdrawn=st.sets(st.integers(0, 24), max_size=6),
    max_running=st.sampled_from([4, 100]),
)
@example(crowd=["alice", "carol", "bob", "alice", "carol", "bob"], withdrawn={2}, max_running=4)
def test_positions_are_true(crowd: list[str], withdrawn: set[int], max_running: int) -> None:
    """Of those with one priority a position is the number of those that are sent before."""

    async def scenario() -> None:
        sent: list[str | None] = []

        def observe(event: SessionEvent) -> None:
            if isinstance(event, SubmissionChanged) and event.event is SubmissionEvent.ACCEPTED:
                sent.append(event.ref)

        script = Script(plans=Plan(duration=1.0))
        async with emulated(script, rate_limit=RateLimit(1, 2.5), max_running=max_running, observers=[observe]) as (
            flux,
            _,
        ):
            await flux.submit(request_of("nobody"))
            handles = [flux.enqueue(request_of(group), group=group, ref=f"{n}") for n, group in enumerate(crowd)]
            await asyncio.sleep(0.1)
            for number in withdrawn:
                if number < len(handles):
                    handles[number].withdraw()
            await asyncio.sleep(0.1)
            left = [handle for handle in handles if handle.state is SubmissionState.QUEUED]
            told = {handle.ref: handle.position for handle in left}
            del sent[:]
            await flux.drain(3600)
            assert [told[ref] for ref in sent if ref is not None] == list(range(len(left)))

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("faults", [0, 1])
async def test_one_among_five_hundred_in_coordination(*, beside: bool, faults: int) -> None:
    """One user's 500 requests in four processes hold up another user's single one by two permits, wherever it comes."""
    memory = Memory()
    async with (
        Emulator(Script(plans=Plan(duration=30.0), credits=RICH, render=False)) as emulator,
        AsyncExitStack() as stack,
    ):
        options: dict[str, Any] = {"rate_limit": RateLimit(1, 1.0), "coordination": memory, "polling": SELDOM}
        *opened, last = [await stack.enter_async_context(session_for(emulator, **options)) for _ in range(5)]
        for flux in opened:
            enqueue(flux, 125, "alice")
        await asyncio.sleep(25.3)
        memory.lost_answers = faults
        before = len(emulator.ledger.accepted)
        await (opened[1] if beside else last).submit(request_of("bob"), group="bob")

        assert before >= 20
        assert len(emulator.ledger.accepted) - before - 1 <= 2 + 2 * faults


@pytest.mark.parametrize("beside", [True, False])
async def test_one_where_another_runs_all_in_coordination(*, beside: bool) -> None:
    """Where one user's tasks in four processes are all that may run, another one's single waits for two."""
    script = Script(plans=[Plan(duration=50.0 + n) for n in range(100)], credits=RICH, render=False)
    async with Emulator(script) as emulator, AsyncExitStack() as stack:
        options: dict[str, Any] = {"max_running": 12, "coordination": Memory()}
        *opened, last = [await stack.enter_async_context(session_for(emulator, **options)) for _ in range(5)]
        for flux in opened:
            enqueue(flux, 40, "alice")
        await asyncio.sleep(125.3)
        before = len(emulator.ledger.accepted)
        await (opened[1] if beside else last).submit(request_of("bob"), group="bob")

        assert before >= 24
        assert len(emulator.ledger.accepted) - before - 1 <= 2


async def test_groups_share_alike_in_coordination() -> None:
    """Three groups in four processes get a third each, those without a group as one of them, at the whole limit."""
    script = Script(plans=Plan(duration=5.0), credits=RICH, limit=Limit(10, 10.0), render=False)
    async with Emulator(script) as emulator, AsyncExitStack() as stack:
        options: dict[str, Any] = {"rate_limit": RateLimit(10, 10.0), "coordination": Memory()}
        opened = [await stack.enter_async_context(session_for(emulator, **options)) for _ in range(4)]
        for flux, group in zip(opened, ["alice", "alice", None, "alice"], strict=True):
            enqueue(flux, 200, group)
        enqueue(opened[3], 200, "bob")
        await asyncio.sleep(301)

        # The first ten went to who was there first.
        shares = Counter(accepted(emulator)[10:])
        assert shares.total() >= 290
        assert emulator.ledger.refused == 0
        assert max(shares.values()) - min(shares.values()) <= 2


async def test_who_has_waited_a_minute_takes_turns_in_coordination() -> None:
    """Behind higher priorities in its own process and another user elsewhere one gets a permit after a minute."""
    async with Emulator(LONG) as emulator:
        options: dict[str, Any] = {"rate_limit": RateLimit(1, 5.0), "coordination": Memory(), "polling": SELDOM}
        async with session_for(emulator, **options) as one, session_for(emulator, **options) as two:
            enqueue(one, 40, "alice", priority=1)
            enqueue(two, 40, "carol")
            enqueue(one, 1, "bob")
            await asyncio.sleep(59)
            assert "bob" not in accepted(emulator)
            await asyncio.sleep(17)
            assert "bob" in accepted(emulator)
            await asyncio.sleep(100)
            later = Counter(accepted(emulator)[-20:])
            assert later == {"alice": 10, "carol": 10}


async def test_priority_is_of_a_process() -> None:
    """Priorities hold within each process, and what waits there behind them keeps its turn among the others."""
    async with Emulator(LONG) as emulator:
        options: dict[str, Any] = {"rate_limit": RateLimit(1, 5.0), "coordination": Memory(), "polling": SELDOM}
        async with session_for(emulator, **options) as one, session_for(emulator, **options) as two:
            enqueue(one, 3, "alice")
            await asyncio.sleep(0.5)
            enqueue(two, 2, "bob")
            await asyncio.sleep(0.5)
            enqueue(one, 2, "carol", priority=1)
            await asyncio.sleep(40)

            assert accepted(emulator) == ["alice", "bob", "carol", "bob", "carol", "alice", "alice"]


@pytest.mark.parametrize("faults", [0, 3])
@pytest.mark.parametrize("mute", [False, True])
async def test_bound_of_a_group_in_coordination(*, faults: int, mute: bool) -> None:
    """So many of a group run in all processes together, and no more; the others go on, and none of its own starves."""
    memory = Memory()
    memory.mute = mute
    async with Emulator(Script(plans=Plan(duration=4.0), credits=RICH)) as emulator:
        options: dict[str, Any] = {"max_running_per_group": 2, "coordination": memory}
        async with session_for(emulator, **options) as one, session_for(emulator, **options) as two:
            for flux in (one, two):
                enqueue(flux, 8, "alice")
            watching = asyncio.create_task(most_at_once(emulator, 60.0))
            await asyncio.sleep(1)
            error = await error_of(two.submit(request_of("alice"), group="alice", max_wait=0))
            assert isinstance(error, RateLimitedError)
            assert "max_running_per_group is 2" in str(error)
            memory.lost_answers = faults
            handles = enqueue(two, 2, "bob")
            await asyncio.sleep(1.5)
            assert all(handle.state is SubmissionState.ACCEPTED for handle in handles)
            await asyncio.sleep(8)
            assert min(flux.statistics().submitted for flux in (one, two)) >= 2
            await asyncio.gather(one.drain(), two.drain())

            assert await watching == {"a picture for alice": 2, "a picture for bob": 2}
            assert Counter(accepted(emulator)) == {"alice": 16, "bob": 2}


async def test_bound_of_a_group_outlives_no_process_by_much() -> None:
    """What ran in a process that died is counted for a minute, and what was attached elsewhere only once."""
    memory = Memory()
    async with Emulator(Script(plans=Plan(duration=1e4), credits=RICH)) as emulator:
        options: dict[str, Any] = {"max_running_per_group": 1, "coordination": memory}
        async with session_for(emulator, **options) as one, session_for(emulator, **options) as two:
            task = await one.submit(request_of("alice"), group="alice")
            handle = two.enqueue(request_of("alice"), group="alice")
            two.attach(task.id)
            await asyncio.sleep(100)
            assert len(emulator.ledger.accepted) == 1
            memory.stores[0].cut = True
            await asyncio.sleep(30)
            assert len(emulator.ledger.accepted) == 1
            await asyncio.sleep(40)
            assert handle.state is SubmissionState.ACCEPTED


async def test_whatever_happens_no_slot_is_lost() -> None:
    """Groups, faults, withdrawals, keys and closing at random: never more alive than allowed, and all come back."""
    dice = random.Random(7)
    alive, queued = Alive(), 0

    def observe(event: SessionEvent) -> None:
        nonlocal queued
        queued += isinstance(event, Queued)

    script = Script(
        plans=[Plan(duration=1.0 + n % 7) for n in range(60)],
        latency=lambda _: dice.random(),
        limit=Limit(12, 10.0, policy="sliding"),
        credits=RICH,
    )
    options: dict[str, Any] = {
        "max_running": 6,
        "max_running_per_group": 4,
        "rate_limit": RateLimit(15, 10.0),
        "observers": [alive, observe],
    }
    async with emulated(script, **options) as (flux, emulator):
        for number in range(250):
            group = dice.choice(["alice", "alice", "alice", "bob", "carol", None])
            key = f"key {number // 2}" if number % 5 == 0 else None
            handle = flux.enqueue(request_of(str(group)), group=group, key=key, max_wait=dice.choice([None, 20.0]))
            if dice.random() < 0.2:
                asyncio.get_running_loop().call_later(dice.random() * 30, handle.withdraw)
            await asyncio.sleep(dice.random())
        await flux.drain(3600)
        assert alive.most_of_all <= 6
        assert all(count <= 4 for count in alive.most.values())
        assert emulator.ledger.accepted
        # All of them are free again.
        enqueue(flux, 3, "alice")
        enqueue(flux, 3, "bob")
        await asyncio.sleep(15)
        await flux.drain(600)
    assert queued > 100
