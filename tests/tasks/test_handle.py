"""The handle: many who wait, each on their own terms."""

import asyncio
import math
from typing import Any

import attrs
import pytest
from emulated import REQUEST, emulated, error_of, session_for

from flux2_async.emulator import Plan, Script
from flux2_async.errors import InvalidRequestError, TaskFailedError, TaskTimeoutError
from flux2_async.models import ImageResult, Polling, TaskState, TextToImage
from flux2_async.models.expectation import Expectation
from flux2_async.tasks.handle import ImageTask


async def test_awaiting_is_the_result() -> None:
    """`await task` and `await task.result()` are the same, as often as wanted."""
    async with emulated() as (flux, _):
        task = await flux.submit(REQUEST)

        results = [await task.result(), await task, await task]

        assert all(result is results[0] for result in results)
        assert task.done()


async def test_a_timeout_bounds_one_wait_only() -> None:
    """`result(timeout)` ends that wait; the error carries the handle, which goes on."""
    async with emulated(Script(plans=Plan(duration=10.0))) as (flux, emulator):
        task = await flux.submit(REQUEST)
        other = asyncio.create_task(task.result())
        begun = asyncio.get_running_loop().time()
        caught = await error_of(task.result(timeout=3))

        assert isinstance(caught, TaskTimeoutError)
        assert caught.task is task
        assert caught.task_id == task.id
        assert asyncio.get_running_loop().time() - begun == pytest.approx(3)
        assert await task is await other
        assert len(emulator.ledger.accepted) == 1


@pytest.mark.parametrize("timeout", [0, -1])
async def test_a_timeout_of_zero_asks_only(timeout: float) -> None:
    """Without time to wait, as behind a deadline, the answer is there or not, at once."""
    async with emulated() as (flux, _):
        task = await flux.submit(REQUEST)

        assert not await task.wait(timeout)
        assert isinstance(await error_of(task.result(timeout)), TaskTimeoutError)
        await task
        assert await task.wait(timeout)
        assert (await task.result(timeout)).urls


@pytest.mark.parametrize("timeout", [float("nan"), True, "1"])
async def test_a_timeout_is_a_time(timeout: Any) -> None:
    """What is no time to wait is told at once, as `generate` tells it."""
    async with emulated() as (flux, _):
        task = await flux.submit(REQUEST)
        for waiting in (task.wait(timeout), task.result(timeout), flux.generate(REQUEST, timeout=timeout)):
            with pytest.raises(InvalidRequestError, match=r"timeout: .* given, it must be a number of seconds"):
                await waiting


async def test_cancelling_a_waiter_cancels_its_wait_only() -> None:
    """Neither the task nor another waiter notices that one was cancelled."""
    async with emulated(Script(plans=Plan(duration=10.0))) as (flux, emulator):
        task = await flux.submit(REQUEST)
        one, two = asyncio.create_task(task.result()), asyncio.create_task(task.result())
        await asyncio.sleep(1)
        one.cancel()

        assert (await two).urls
        assert one.cancelled()
        assert len(emulator.ledger.accepted) == 1


@pytest.mark.parametrize(("timeout", "told"), [(0.1 + 0.2, " after 0.3 s"), (0.001, " after 0.001 s"), (0, "")])
async def test_a_timeout_is_told_in_round_numbers(timeout: float, told: str) -> None:
    """What `generate` has left of its time-out has sixteen digits, which nobody wants to read; no time is not told."""
    async with emulated(Script(plans=Plan(duration=10.0))) as (flux, _):
        task = await flux.submit(REQUEST)
        caught = await error_of(task.result(timeout=timeout))

        assert str(caught) == f"task {task.id} is not finished{told}; it goes on, so wait again at no cost"


@pytest.mark.parametrize("hidden_for", [math.inf, 3.0])
async def test_a_timeout_says_whether_the_service_knows_the_task(hidden_for: float) -> None:
    """Whoever waits for an id that the service does not know is told that, and not that it goes on."""
    async with emulated(Script(plans=Plan(duration=60.0, hidden_for=hidden_for))) as (flux, _):
        task = await flux.submit(REQUEST)
        caught = await error_of(task.result(timeout=20))

        unknown = f"the service does not know task {task.id} after 20 s: check the id and the account; a new "
        assert str(caught).startswith(unknown if hidden_for > 20 else f"task {task.id} is not finished after 20 s; ")


async def test_wait_for_and_timeout_scopes() -> None:
    """The usual scopes of asyncio work on a handle and leave it alone."""
    async with emulated(Script(plans=Plan(duration=10.0))) as (flux, _):
        task = await flux.submit(REQUEST)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task.result(), 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await task

        assert (await task).urls


async def test_wait_never_raises_the_outcome() -> None:
    """`wait` says that a failed task is done; only the result raises."""
    async with emulated(Script(plans=Plan(outcome="fail"))) as (flux, _):
        task = await flux.submit(REQUEST)

        assert await task.wait()
        assert isinstance(await error_of(task.result()), TaskFailedError)


async def test_updates() -> None:
    """`updates` gives the stages in the service's own words, and ends."""
    script = Script(plans=Plan(duration=9.0, states=("waiting", "generating", "painting")))
    async with emulated(script, polling=Polling(interval=1.0)) as (flux, _):
        task = await flux.submit(REQUEST)
        seen = [(record.state, record.state_text) async for record in task.updates()]

    assert seen == [
        (TaskState.WAITING, "waiting"),
        (TaskState.GENERATING, "generating"),
        (TaskState.UNKNOWN, "painting"),
        (TaskState.SUCCESS, "success"),
    ]


async def test_two_followers() -> None:
    """Several may follow one task; a slow one sees the changes it missed as one."""
    script = Script(plans=Plan(duration=6.0))
    async with emulated(script, polling=Polling(interval=1.0)) as (flux, _):
        task = await flux.submit(REQUEST)

        async def follow(pause: float) -> list[str]:
            seen = []
            async for record in task.updates():
                seen.append(record.state_text)
                await asyncio.sleep(pause)
            return seen

        quick, slow = await asyncio.gather(follow(0), follow(60))

    assert quick == ["waiting", "queuing", "generating", "success"]
    assert slow == ["waiting", "success"]


@pytest.mark.parametrize("polling", [Polling(price=30.0, wait_min=10.0, wait_max=60.0), Polling(interval=60.0)])
async def test_updates_that_are_looked_for(polling: Polling) -> None:
    """Whoever follows a task sees its stages, however rarely the session looks; afterwards it looks as rarely again."""
    rarely = attrs.evolve(polling, wait_min=0.5)
    async with emulated(Script(plans=Plan(duration=9.0)), polling=rarely) as (flux, emulator):
        task = await flux.submit(REQUEST)
        seen = [record.state_text async for record in task.updates(every=1.0)]
        assert seen == ["waiting", "queuing", "generating", "success"]
        assert 9 <= emulator.ledger.polls_of(task.id) <= 12

        other = await flux.submit(REQUEST)
        updates = other.updates(every=0.01)
        assert (await anext(updates)).state_text == "waiting"
        await asyncio.sleep(1.0)
        assert emulator.ledger.polls_of(other.id) <= 3
        await updates.aclose()
        before = emulator.ledger.polls_of(other.id)
        await asyncio.sleep(6.0)
        assert emulator.ledger.polls_of(other.id) <= before + 1
        assert (await other).urls


@pytest.mark.parametrize("every", [0, -1.0, float("nan"), True, "1"])
async def test_every_is_a_time(every: Any) -> None:
    """What is no time above 0 is told when the first stage is asked for."""
    async with emulated() as (flux, _):
        task = await flux.submit(REQUEST)
        with pytest.raises(InvalidRequestError, match="every: "):
            await anext(task.updates(every=every))


async def test_followers_ask_for_the_shortest() -> None:
    """Of several who follow a task the one that wants to see the most decides, as long as that one is there."""
    async with emulated(Script(plans=Plan(duration=40.0)), polling=Polling(interval=3600.0)) as (flux, emulator):
        task = await flux.submit(REQUEST)

        async def follow(every: float) -> None:
            async for _ in task.updates(every=every):
                pass

        often, seldom = (asyncio.create_task(follow(every)) for every in (1.0, 10.0))
        await asyncio.sleep(10.5)
        often.cancel()
        polls = emulator.ledger.polls_of(task.id)
        assert 10 <= polls <= 12
        await seldom
        assert 2 <= emulator.ledger.polls_of(task.id) - polls <= 4


async def test_expectation() -> None:
    """First the documented range, then what tasks of its kind took; one that runs for longer takes longer still."""
    script = Script(plans=[*[Plan(duration=12.0)] * 12, Plan(duration=60.0)])
    async with emulated(script, rate_limit=None) as (flux, _):
        first = await flux.submit(REQUEST)
        new = first.expectation()
        assert attrs.astuple(new) == pytest.approx((0.0, 27.6, 95.0, 0.0), rel=0.05, abs=0.01)
        await asyncio.sleep(10.0)
        older = first.expectation()
        assert older.elapsed == pytest.approx(10.0, abs=0.1)
        assert (older.median or 0) > (new.median or 0)
        assert 0.2 < (older.fraction or 0) < 0.6
        await asyncio.gather(first, *[await flux.submit(REQUEST) for _ in range(11)])
        assert first.expectation() == Expectation(elapsed=12.0, median=12.0, bound=12.0, fraction=1.0)
        assert first.expectation().remaining == 0.0

        stuck = await flux.submit(REQUEST)
        assert stuck.expectation().median == pytest.approx(12.0, rel=0.1)
        assert stuck.expectation().bound == pytest.approx(12.0, rel=0.3)
        other = await flux.submit(TextToImage("another kind", resolution="2K"))
        assert other.expectation().median == pytest.approx(27.6, rel=0.05)
        await asyncio.sleep(30.0)
        late = stuck.expectation()
        assert late.elapsed is not None
        assert late.median is not None
        assert late.elapsed < late.median < (late.bound or 0)
        assert 0.9 < (late.fraction or 0) < 1.0
        await stuck


async def test_nothing_is_expected_of_what_is_not_known() -> None:
    """The age of an attached task is not known at first, nor how long one takes that is not watched any more."""
    nothing = Expectation()
    async with emulated(Script(plans=Plan(duration=20.0))) as (flux, emulator):
        assert nothing.remaining is None
        assert ImageTask("of-nobody").expectation() == nothing
        task_id = (await flux.submit(REQUEST)).id
        await flux.aclose()
        async with session_for(emulator) as later:
            attached = later.attach(task_id)
            assert attached.expectation() == nothing
            # One that was created here tells how the clocks lie to each other.
            await later.submit(REQUEST)
            await asyncio.sleep(3.0)
            assert attached.expectation().elapsed == pytest.approx(3.0, abs=0.2)
            await later.aclose()
            assert attached.expectation() == nothing


async def test_a_task_that_is_given_up_frees_its_slot() -> None:
    """Given up, it makes room for the next one; awaited again, it takes a slot again and gives its picture."""
    script = Script(plans=[Plan(duration=100.0), Plan(duration=2.0)])
    async with emulated(script, max_running=1, polling=Polling(interval=1.0, give_up_after=20)) as (flux, _):
        stuck = await flux.submit(REQUEST)
        next_one = await flux.submit(REQUEST)
        caught = await error_of(stuck.result())

        assert isinstance(caught, TaskTimeoutError)
        assert caught.given_up
        assert caught.task is stuck
        assert (await next_one).urls
        assert flux.statistics().running == 0
        assert flux.attach(stuck.id) is stuck
        assert flux.tasks() == (stuck,)
        await error_of(stuck.result())
        while not isinstance(outcome := await outcome_of(stuck), ImageResult):
            assert isinstance(outcome, TaskTimeoutError)
        assert flux.statistics().running == 0


async def outcome_of(task: ImageTask) -> object:
    """What awaiting gives or raises."""
    (outcome,) = await asyncio.gather(task.result(), return_exceptions=True)
    return outcome


async def test_repr_shows_where_it_is() -> None:
    """A handle shows its id and its state, and nothing of its request."""
    async with emulated() as (flux, _):
        task = await flux.submit(REQUEST)
        assert repr(task) == f"<ImageTask {task.id} waiting outstanding>"
        await task
        assert repr(task) == f"<ImageTask {task.id} success settled>"


async def test_followers_do_not_grow_the_error() -> None:
    """Following a task that ended without a record, many times, does not collect frames in its error."""
    polling = Polling(interval=1.0, give_up_after=0.5)
    async with emulated(Script(plans=Plan(duration=60.0, hidden_for=60.0)), polling=polling) as (flux, _):
        task = await flux.submit(REQUEST)
        depths = []
        for _ in range(3):
            with pytest.raises(TaskTimeoutError, match="is not known to the service after") as caught:
                [record async for record in task.updates()]
            depths.append(len(caught.traceback))

    assert len(set(depths)) == 1
