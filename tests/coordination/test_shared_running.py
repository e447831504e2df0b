"""How many tasks run in all processes of an account together: `max_running` holds for all of them."""

import asyncio
import itertools
import json
import math
import random
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import Any

import attrs
import pytest
from emulated import error_of, most_at_once, session_for
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_coordination import Memory

from flux2_async import RateLimit, RateLimitedError, TextToImage
from flux2_async.coordination.account_state import PEER_SEEN_FOR, AccountState
from flux2_async.coordination.contract import Known, PermitEvent, Settlement, Terms
from flux2_async.emulator import Emulator, Plan, Script
from flux2_async.models.submission_state import SubmissionState

REQUEST = TextToImage("a red kettle")


@pytest.mark.parametrize("faults", [0, 3])
@pytest.mark.parametrize("mute", [False, True])
async def test_so_many_run_together_and_no_more(*, faults: int, mute: bool) -> None:
    """Of two processes each gets its tasks through, all places are used, and none is used twice."""
    memory = Memory()
    memory.mute = mute
    async with Emulator(Script(plans=Plan(duration=4.0), credits=1e6)) as emulator:
        options: dict[str, Any] = {"max_running": 3, "coordination": memory}
        async with session_for(emulator, **options) as one, session_for(emulator, **options) as two:
            for flux, _ in itertools.product((one, two), range(9)):
                flux.enqueue(REQUEST)
            watching = asyncio.create_task(most_at_once(emulator, 60.0))
            await asyncio.sleep(1)
            error = await error_of(two.submit(REQUEST, max_wait=0))
            assert isinstance(error, RateLimitedError)
            assert "3 tasks are running and max_running is 3" in str(error)
            memory.lost_answers = faults
            await asyncio.sleep(19)
            assert min(flux.statistics().submitted for flux in (one, two)) >= 4
            await asyncio.gather(one.drain(), two.drain())

            assert await watching == {REQUEST.prompt: 3}
            assert len(emulator.ledger.accepted) == 18


async def test_a_bound_of_each_and_of_a_group_hold_together() -> None:
    """Each process keeps to its own bound of all, and a group's bound holds within it."""
    async with Emulator(Script(plans=Plan(duration=1e4), credits=1e6)) as emulator:
        options: dict[str, Any] = {"coordination": Memory(), "max_running_per_group": 2}
        async with (
            session_for(emulator, max_running=3, **options) as small,
            session_for(emulator, max_running=5, **options) as large,
        ):
            for flux, group, _ in itertools.product((small, large), ("alice", "bob", None), range(3)):
                flux.enqueue(TextToImage(str(group)), group=group)
            await asyncio.sleep(30)
            prompts = [emulator.task(task_id).body["input"]["prompt"] for task_id in emulator.ledger.accepted]
            assert len(prompts) == 5
            assert max(Counter(prompts).values()) <= 2
            assert small.statistics().submitted <= 3


@pytest.mark.parametrize("group", [None, "alice"])
async def test_tasks_of_a_process_without_a_bound_count_for_the_others(group: str | None) -> None:
    """What runs there fills the places of those that have a bound, and leaves them when it ends, idle as it may be."""
    async with Emulator(Script(plans=Plan(duration=20.0), credits=1e6)) as emulator:
        options: dict[str, Any] = {"coordination": Memory()}
        async with (
            session_for(emulator, max_running=2, **options) as bound,
            session_for(emulator, max_running=None, **options) as free,
        ):
            for _ in range(3):
                await free.submit(REQUEST, group=group)
            bound.enqueue(REQUEST, group=group)
            await asyncio.sleep(10)
            assert bound.statistics().submitted == 0
            await free.drain()
            await asyncio.sleep(0.1)
            assert bound.statistics().submitted == 1


async def test_tasks_of_a_dead_process_count_for_a_minute() -> None:
    """They run on at the service; a minute after it was last heard of the next one is sent."""
    memory = Memory()
    async with Emulator(Script(plans=Plan(duration=1e4), credits=1e6)) as emulator:
        options: dict[str, Any] = {"max_running": 1, "coordination": memory}
        async with session_for(emulator, **options) as one, session_for(emulator, **options) as two:
            await one.submit(REQUEST)
            handle = two.enqueue(REQUEST)
            await asyncio.sleep(100)
            memory.stores[0].cut = True
            await asyncio.sleep(35)
            assert len(emulator.ledger.accepted) == 1
            await asyncio.sleep(35)
            assert handle.state is SubmissionState.ACCEPTED


async def test_tasks_of_a_closed_session_count_for_a_minute() -> None:
    """They run on at the service as those of a dead process do; those that were finished do not count."""
    async with Emulator(Script(plans=[Plan(duration=5.0), Plan(duration=1e4)], credits=1e6)) as emulator:
        options: dict[str, Any] = {"max_running": 2, "coordination": Memory()}
        async with session_for(emulator, **options) as two:
            async with session_for(emulator, **options) as one:
                await (await one.submit(REQUEST)).wait()
                await one.submit(REQUEST)
            handles = [two.enqueue(REQUEST) for _ in range(2)]
            await asyncio.sleep(50)
            assert len(emulator.ledger.accepted) == 3
            await asyncio.sleep(15)
            assert [handle.state for handle in handles] == 2 * [SubmissionState.ACCEPTED]


@pytest.mark.parametrize("mute", [False, True])
async def test_what_runs_in_an_idle_process_counts_also_after_the_state_was_lost(*, mute: bool) -> None:
    """It says anew what runs there, as soon as another one finds the loss, or else with its next sign of life."""
    memory = Memory()
    memory.mute = mute
    async with Emulator(Script(plans=Plan(duration=1e4), credits=1e6)) as emulator:
        options: dict[str, Any] = {"max_running": 3, "coordination": memory, "rate_limit": RateLimit(5, 1.0)}
        async with session_for(emulator, **options) as idle, session_for(emulator, **options) as other:
            for _ in range(3):
                await idle.submit(REQUEST)
            memory.empty()
            await asyncio.sleep(25.0 if mute else 0.0)
            assert isinstance(await error_of(other.submit(REQUEST, max_wait=30.0)), RateLimitedError)
        assert len(emulator.ledger.accepted) == 3


async def test_place_of_an_idle_process_is_used_at_once() -> None:
    """Whose task ends says so to those who wait elsewhere, also where nothing waits there."""
    async with Emulator(Script(plans=Plan(duration=5.0), credits=1e6)) as emulator:
        options: dict[str, Any] = {"max_running": 1, "coordination": Memory()}
        async with session_for(emulator, **options) as one, session_for(emulator, **options) as two:
            task = await one.submit(REQUEST)
            handle = two.enqueue(REQUEST)
            await task.result()
            await asyncio.sleep(0.1)
            assert handle.state is SubmissionState.ACCEPTED


async def test_start_is_expected_when_others_leave_room() -> None:
    """Places that other processes use are not counted on."""
    async with Emulator(Script(plans=Plan(duration=20.0), credits=1e6)) as emulator:
        options: dict[str, Any] = {"max_running": 3, "rate_limit": RateLimit(100, 1.0), "coordination": Memory()}
        async with session_for(emulator, **options) as one, session_for(emulator, **options) as two:
            for _ in range(3):
                await two.submit(REQUEST)
                await two.drain()
            for _ in range(2):
                await one.submit(REQUEST)
            handles = [two.enqueue(REQUEST) for _ in range(3)]
            await asyncio.sleep(1)
            expected = handles[2].expected_start
            assert expected is not None
            # The first runs, the second begins when it ends, or earlier; without the others the third would run too.
            assert (expected - datetime.now(UTC)).total_seconds() >= 15.0


async def test_alone_a_process_keeps_to_its_part_of_the_places() -> None:
    """Where the others cannot be heard, each uses its share of what may run at once."""
    memory = Memory()
    async with Emulator(Script(plans=Plan(duration=1e4), credits=1e6)) as emulator:
        options: dict[str, Any] = {"max_running": 6, "coordination": memory, "rate_limit": RateLimit(20, 1.0)}
        async with session_for(emulator, **options) as one, session_for(emulator, **options) as two:
            memory.down = True
            for flux, _ in itertools.product((one, two), range(6)):
                flux.enqueue(REQUEST)
            await asyncio.sleep(60)
            assert [flux.statistics().submitted for flux in (one, two)] == [3, 3]


@attrs.define(eq=False)
class Process:
    """What a process waits for, what runs there, and under which name it takes part."""

    waiting: int
    running: list[float] = attrs.field(factory=list)
    joins: int = 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), most=st.integers(1, 8), seen=st.booleans())
def test_never_more_run_than_may(*, seed: int, most: int, seen: bool) -> None:
    """Processes that ask, end tasks, lose answers and die: the service never has more, and all get through."""
    rng, terms = random.Random(seed), Terms(RateLimit(5, 1.0), 30.0, max_running=most)
    state, now, left = AccountState("e", terms, 0.0), 0.0, list[float]()
    processes = {name: Process(rng.randrange(20)) for name in "abc"}

    def ask(name: str, process: Process, *, lost: bool) -> float:
        peer = f"{name}.{process.joins}"
        state.run(peer, {"": len(process.running)})
        reply = state.acquire(peer, Known("e"), process.waiting, now, most=most)
        if reply is None or lost:
            process.joins += 1
            peer = f"{name}.{process.joins}"
            seen_for = PEER_SEEN_FOR if seen else math.inf
            join = partial(state.join, peer, Known("e", state.number), now, terms=terms, seen_for=seen_for)
            state.run(peer, {"": len(process.running)})
            # A sign of its life may be faster, or its answer is lost again.
            join(replaces=rng.choice(["", f"{name}."]))
            state.run(peer, {"": len(process.running)})
            join(replaces=f"{name}.")
            return 0.0
        for lease in reply.leases:
            state.settle(Settlement(lease, PermitEvent.ANSWERED, 0.0), now)
            process.running.append(now + rng.uniform(0.5, 20.0))
        process.waiting -= len(reply.leases)
        return reply.wait

    waits = dict.fromkeys(processes, 0.0)
    for step in itertools.count():
        now += rng.expovariate(1.0)
        left = [end for end in left if end > now]
        for name, process in processes.items():
            process.running = [end for end in process.running if end > now]
            if waits[name] <= now or (state.wakes and rng.random() < 0.5):
                waits[name] = now + ask(name, process, lost=step < 60 and rng.random() < 0.1)
        if step < 60 and rng.random() < 0.05:
            name = rng.choice("abc")
            process = processes[name]
            state.died(f"{name}.{process.joins}", now)
            left += process.running
            processes[name] = Process(process.waiting, joins=process.joins + 1)
            waits[name] = now
        assert len(left) + sum(len(process.running) for process in processes.values()) <= most
        if rng.random() < 0.2:
            state = AccountState.load(json.loads(json.dumps(state.dump())))
        if not any(process.waiting for process in processes.values()):
            break
        assert now < 2000.0
