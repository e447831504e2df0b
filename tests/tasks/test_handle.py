"""The handle: many who wait, each on their own terms."""

import asyncio

import pytest
from emulated import REQUEST, emulated, error_of

from flux2_async.emulator import Plan, Script
from flux2_async.errors import TaskFailedError, TaskTimeoutError
from flux2_async.models import ImageResult, Polling, TaskState
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
    """Without time to wait the answer is there or not, at once."""
    async with emulated() as (flux, _):
        task = await flux.submit(REQUEST)

        assert not await task.wait(timeout)
        assert isinstance(await error_of(task.result(timeout)), TaskTimeoutError)
        await task
        assert await task.wait(timeout)
        assert (await task.result(timeout)).urls


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


async def test_a_timeout_is_told_in_round_numbers() -> None:
    """What `generate` has left of its time-out has sixteen digits, which nobody wants to read."""
    async with emulated(Script(plans=Plan(duration=10.0))) as (flux, _):
        task = await flux.submit(REQUEST)
        caught = await error_of(task.result(timeout=0.1 + 0.2))

        assert str(caught) == f"task {task.id} is not finished after 0.3 s; it goes on, wait again at no cost"


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
            with pytest.raises(TaskTimeoutError) as caught:
                [record async for record in task.updates()]
            depths.append(len(caught.traceback))

    assert len(set(depths)) == 1
