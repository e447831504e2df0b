"""`as_completed`: many requests, bounded memory, completion order."""

import asyncio
import gc
import pickle
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
from emulated import REQUEST, emulated, look_at_length, until

from flux2_async.batch import Job
from flux2_async.emulator import Fault, Limit, Plan, Script
from flux2_async.errors import (
    AuthenticationError,
    ConfigurationError,
    ContentModeratedError,
    FeatureDisabledError,
    InsufficientCreditsError,
    InvalidRequestError,
    QuotaExceededError,
    SessionClosedError,
)
from flux2_async.models import ImageToImage, Polling, RateLimit, Request, TextToImage
from flux2_async.tasks.handle import Completion

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
)


def requests(number: int) -> Iterator[TextToImage]:
    for n in range(number):
        yield TextToImage(f"number {n}")


async def test_completion_order() -> None:
    """Completions come as tasks finish, each with the index, the request, the handle and the result."""
    durations = [9.0, 1.0, 5.0]
    async with emulated(Script(plans=[Plan(duration=each) for each in durations])) as (flux, _):
        done = [each async for each in flux.as_completed(requests(3))]

    assert [each.index for each in done] == [1, 2, 0]
    for each in done:
        assert each.request.prompt == f"number {each.index}"
        assert each.task is not None
        assert each.result.task_id == each.task.id
        assert each.error is None


async def test_one_request_is_no_iterable() -> None:
    """What cannot be iterated over is refused at the call, with what to write instead."""
    single: Any = REQUEST
    async with emulated(Script()) as (flux, _):
        with pytest.raises(InvalidRequestError, match=r"^requests: TextToImage given, .* put a single one into a list"):
            flux.as_completed(single)


async def test_a_result_is_there_where_no_error_is() -> None:
    """Type checkers take `result` after a look at `error`; reading it in spite of an error raises that error."""
    addresses: list[str] = []
    failed: list[Completion] = []
    async with emulated(Script(plans=[Plan(outcome="moderated"), Plan()]), max_running=1) as (flux, _):
        async for done in flux.as_completed(requests(2)):
            if done.error:
                failed.append(done)
            else:
                addresses += done.result.urls

    assert len(addresses) == 1
    (failure,) = failed
    for _ in range(2):
        with pytest.raises(ContentModeratedError) as raised:
            _ = failure.result
        assert raised.value is failure.error


async def test_asynchronous_iterables() -> None:
    """Requests may come from an asynchronous source that takes its time."""

    async def source() -> AsyncIterator[TextToImage]:
        for request in requests(3):
            await asyncio.sleep(10)
            yield request

    async with emulated() as (flux, _):
        assert [each.index async for each in flux.as_completed(source())] == [0, 1, 2]


async def test_one_failure_does_not_stop_the_rest() -> None:
    """Failed, moderated, invalid and refused requests come back with their errors, the others with pictures."""
    plans = [Plan(outcome="moderated"), Plan()]
    script = Script(plans=plans, faults=[Fault("createTask", "refuse", code=422, after=1)])
    many: list[Any] = [REQUEST, TextToImage("refused"), "no request", ImageToImage("abc", images=["missing"]), REQUEST]
    async with emulated(script, max_running=1) as (flux, _):
        done = sorted([each async for each in flux.as_completed(many)], key=lambda each: each.index)

    kinds = [type(each.error).__name__ for each in done]
    assert kinds == ["ContentModeratedError", "RequestRejectedError", *["InvalidRequestError"] * 2, "NoneType"]
    assert isinstance(done[0].error, ContentModeratedError)
    assert done[0].task is not None
    assert isinstance(done[2].error, InvalidRequestError)
    assert done[4].result.task_id


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (401, AuthenticationError),
        (402, InsufficientCreditsError),
        (433, QuotaExceededError),
        (505, FeatureDisabledError),
    ],
)
async def test_a_refusal_that_meets_all_stops_the_sending(code: int, kind: type[Exception]) -> None:
    """After 401, 402, 433 or 505 nothing more is sent; the rest come back unsent with that error."""
    script = Script(
        plans=Plan(duration=30.0),
        limit=Limit(5, 10.0),
        faults=[Fault("createTask", "refuse", code=code, after=5, times=None)],
        latency=0.2,
    )
    async with emulated(script, max_running=20) as (flux, emulator):
        done = [each async for each in flux.as_completed(requests(200))]

        assert sorted(each.index for each in done) == list(range(200))
        finished = [each for each in done if each.error is None]
        assert sorted(each.index for each in finished) == [0, 1, 2, 3, 4]
        assert all(isinstance(each.error, kind) for each in done if each.error)
        # Those that were on the wire together with the first refusal, and no more.
        assert len(emulator.ledger.requests) <= 25


async def test_break_stops_the_sending() -> None:
    """After `break` nothing more is sent, and what was sent stays outstanding."""
    script = Script(plans=[Plan(duration=1.0), Plan(duration=60.0)])
    async with emulated(script, max_running=5) as (flux, emulator):
        async for done in flux.as_completed(requests(1000)):
            assert done.index == 0
            break
        await asyncio.sleep(1)
        sent = len(emulator.ledger.requests)
        await asyncio.sleep(30)

        assert sent == len(emulator.ledger.requests) <= 6
        assert {task.id for task in flux.tasks()} == set(emulator.ledger.accepted[1:])
        await flux.drain()


async def test_a_slow_consumer_stops_the_intake() -> None:
    """At most `max_running` requests are taken in and not yet given out."""
    taken = 0

    def source() -> Iterator[TextToImage]:
        nonlocal taken
        for request in requests(50):
            taken += 1
            yield request

    given = 0
    async with emulated(Script(plans=Plan(duration=0.5))) as (flux, _):
        async for _ in flux.as_completed(source(), max_running=4):
            given += 1
            await asyncio.sleep(20)
            # One more waits at the door.
            assert taken <= given + 4

    assert given == 50


async def test_an_error_of_the_source_comes_out_last() -> None:
    """When the iterable itself fails, what was sent is given first, then its error is raised."""

    def source() -> Iterator[TextToImage]:
        yield from requests(3)
        raise RuntimeError("the list is broken")

    done: list[Completion] = []
    async with emulated() as (flux, _):
        with pytest.raises(RuntimeError, match="the list is broken"):
            async for each in flux.as_completed(source()):
                done.append(each)  # noqa: PERF401  a comprehension would lose what came before the error

    assert len([each for each in done if each.error is None]) == 3


async def test_closing_ends_the_iteration() -> None:
    """Closing the session gives every request on its way back with an error, and ends."""
    async with emulated(Script(plans=Plan(duration=100.0)), max_running=3) as (flux, _):
        iterating = asyncio.create_task(_collect(flux.as_completed(requests(10))))
        await until(lambda: len(flux.tasks()) == 3)
        await flux.aclose()
        done = await iterating

    assert len(done) == 10
    assert all(isinstance(each.error, SessionClosedError) for each in done)


async def test_cancelling_the_consumer_keeps_what_was_sent() -> None:
    """A cancelled consumer stops the sending; tasks at the service stay outstanding."""
    async with emulated(Script(plans=Plan(duration=20.0)), max_running=3) as (flux, emulator):
        iterating = asyncio.create_task(_collect(flux.as_completed(requests(10))))
        await until(lambda: len(flux.tasks()) == 3)
        iterating.cancel()
        await asyncio.wait([iterating])
        await flux.drain()

        assert len(emulator.ledger.accepted) == 3


async def _collect(source: AsyncIterator[Completion]) -> list[Completion]:
    return [each async for each in source]


async def test_flat_memory() -> None:
    """Ten times the requests take no more memory."""

    async def peak(number: int) -> int:
        gc.collect()
        tracemalloc.start()
        async with emulated(
            Script(plans=Plan(duration=0.2)), rate_limit=None, max_running=20, polling=Polling(interval=0.3)
        ) as (flux, emulator):
            count = 0
            async for _ in flux.as_completed(requests(number)):
                count += 1
                # The emulator remembers everything, which is not what is measured.
                emulator.ledger.requests.clear()
        assert count == number
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    await peak(20)
    small, large = await peak(50), await peak(500)
    assert large < small * 3


async def test_nothing_to_do() -> None:
    """No requests give no completions."""
    empty: list[Request] = []
    async with emulated() as (flux, _):
        assert [each async for each in flux.as_completed(empty)] == []


async def test_a_cancellation_in_the_source_comes_out() -> None:
    """A source that ends in CancelledError, as of a task it awaits, does not leave its reader waiting for ever."""

    async def source() -> AsyncIterator[TextToImage]:
        yield REQUEST
        gone = asyncio.get_running_loop().create_future()
        gone.cancel()
        await gone

    async with emulated() as (flux, _):
        reading = asyncio.create_task(_collect(flux.as_completed(source())))
        await asyncio.wait([reading], timeout=60)

        assert reading.cancelled()


async def test_what_waits_is_not_sent_after_a_refusal_that_meets_all() -> None:
    """Requests that wait for a permit when such a refusal comes are given up."""
    script = Script(faults=[Fault("createTask", "refuse", code=402, times=None)])
    async with emulated(script, rate_limit=RateLimit(1, 5.0)) as (flux, emulator):
        done = [each async for each in flux.as_completed(requests(10))]

        assert all(isinstance(each.error, InsufficientCreditsError) for each in done)
        assert len(done) == 10
        assert len(emulator.ledger.requests) == 1


async def test_what_is_looked_at_is_not_sent_after_a_refusal_that_meets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose pictures are still looked at when the refusal comes goes back unsent as well."""
    look_at_length(monkeypatch, partial(asyncio.sleep, 5.0))
    with_picture = ImageToImage("a red kettle", images=[PNG])
    script = Script(faults=[Fault("createTask", "refuse", code=402)])
    async with emulated(script) as (flux, emulator):
        done = [each async for each in flux.as_completed([*requests(1), with_picture])]

        assert [type(each.error) for each in done] == [InsufficientCreditsError] * 2
        assert len(emulator.ledger.requests) == 1


async def test_what_waits_is_not_sent_after_break() -> None:
    """Requests that wait for a permit at the `break` are given up."""
    async with emulated(Script(plans=Plan(duration=0.5)), rate_limit=RateLimit(1, 5.0)) as (flux, emulator):
        async for _ in flux.as_completed(requests(10)):
            break
        await asyncio.sleep(60)

        assert len(emulator.ledger.requests) == 1


async def test_an_iteration_that_nobody_closes_ends_when_it_is_collected() -> None:
    """Who keeps it in an error that refers to itself leaves no asyncio task behind, and nothing is complained about."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with emulated(Script(plans=Plan(duration=2.0)), max_running=2) as (flux, _):
        stream = flux.as_completed(requests(10))
        cycle: list[object] = [stream]
        cycle.append(cycle)
        await anext(stream)
        await flux.drain()
        del stream, cycle
        gc.collect()
        await asyncio.sleep(0.1)

        assert complaints == []
        assert not [task for task in asyncio.all_tasks() if "Completions" in repr(task)]


async def test_what_cannot_work_is_told_before_the_iteration() -> None:
    """A wrong `max_running` and a closed session are told by the call itself, where its line is in the traceback."""
    async with emulated(Script()) as (flux, _):
        with pytest.raises(ConfigurationError, match="max_running"):
            flux.as_completed(requests(1), max_running=0)
        await flux.aclose()
        with pytest.raises(SessionClosedError):
            flux.as_completed(requests(1))


async def test_what_belongs_to_a_request_comes_back_with_it(tmp_path: Path) -> None:
    """Whose a request is and what was given with it stand in its completion and its task, also where it was refused."""
    (tmp_path / "red.png").write_bytes(PNG)
    jobs: list[TextToImage | Job] = [
        Job(TextToImage("a kettle"), group="alice", extra={"order": 7}),
        Job(TextToImage("a cup"), extra={"group": "bob"}),
        Job(ImageToImage("make it red", images=["red.png"]), folder=tmp_path, group="carol"),
        Job(ImageToImage("make it red", images=["nowhere.png"]), folder=tmp_path, group="dave", extra={"order": 8}),
        TextToImage("a lake"),
    ]
    async with emulated() as (flux, emulator):
        done = sorted([each async for each in flux.as_completed(jobs, group="all")], key=lambda each: each.index)
        [wrong] = [each async for each in flux.as_completed([b"a cup"])]  # type: ignore[list-item]  # it is what is tested

    assert [(each.group, each.metadata) for each in done] == [
        ("alice", {"order": 7, "group": "alice"}),
        ("bob", {"group": "bob"}),
        ("carol", {"group": "carol"}),
        ("dave", {"order": 8, "group": "dave"}),
        ("all", None),
    ]
    for each in done[:3]:
        assert each.task is not None
        assert (each.task.group, each.task.metadata) == (each.group, each.metadata)
    assert len(emulator.ledger.uploads) == 1
    assert isinstance(done[3].error, InvalidRequestError)
    assert isinstance(wrong.error, InvalidRequestError)
    assert "a Job around one" in str(wrong.error)

    kept = pickle.loads(pickle.dumps(attrs.evolve(done[0], task=None)))
    assert (kept.group, kept.metadata) == ("alice", {"order": 7, "group": "alice"})
    assert "order" not in repr(kept)
