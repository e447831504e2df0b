"""The one scheduler of all outstanding tasks; a function stands for the service, on virtual time."""

import asyncio
import gc
import itertools
import logging
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import pytest
from emulated import logged
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import VirtualClockLoop

from flux2_async._protocol.codec import FailedUnderErrorError
from flux2_async._protocol.refusals import refusal
from flux2_async.errors import (
    ApiError,
    AuthenticationError,
    EmptyResultError,
    FeatureDisabledError,
    Flux2Error,
    InsufficientCreditsError,
    MaintenanceError,
    ProtocolError,
    QuotaExceededError,
    RateLimitedError,
    ServerError,
    SessionClosedError,
    TaskFailedError,
    TaskNotFoundError,
    TaskTimeoutError,
    TransportError,
)
from flux2_async.models import Polling, TaskRecord, TaskState
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.observers import Observers
from flux2_async.tasks.schedule import Schedules
from flux2_async.tasks.watcher import Watcher

MODEL = "flux-2/flex-text-to-image"


def record(task_id: str, state: TaskState = TaskState.SUCCESS, **more: Any) -> TaskRecord:
    urls = ("https://files.example/a.png",) if state is TaskState.SUCCESS else ()
    return attrs.evolve(TaskRecord(task_id=task_id, state=state, state_text=str(state), result_urls=urls), **more)


class Slots:
    """As many as there are tasks."""

    def borrow(self, group: str | None = None) -> None: ...

    def release(self, group: str | None = None) -> None: ...


@attrs.define(eq=False)
class Service:
    """Finishes tasks at given times and can be made to fail in between."""

    done_at: dict[str, float] = attrs.field(factory=dict)
    failing: Callable[[float], Flux2Error | None] = lambda now: None
    final: Callable[[str], TaskRecord | None] = record
    latency: float = 0.1
    looks: list[tuple[float, str]] = attrs.field(factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    async def record(self, task_id: str) -> TaskRecord | None:
        now = asyncio.get_running_loop().time()
        self.looks.append((now, task_id))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.latency)
        finally:
            self.in_flight -= 1
        if error := self.failing(now):
            raise error
        if now >= self.done_at.get(task_id, float("inf")):
            return self.final(task_id)
        return record(task_id, TaskState.GENERATING)

    def finish(self, task_id: str, after: float) -> None:
        self.done_at[task_id] = asyncio.get_running_loop().time() + after


@attrs.define(eq=False)
class World:
    service: Service
    schedules: Schedules
    watcher: Watcher
    settled: list[float]
    began: float

    def watch(self, task_id: str, done_after: float | None = None) -> ImageTask:
        if done_after is not None:
            self.service.finish(task_id, done_after)
        task = ImageTask(task_id)
        self.watcher.watch(task, self.schedules.of(MODEL, "1K"))
        return task

    def attach(self, task_id: str, done_after: float | None = None) -> ImageTask:
        if done_after is not None:
            self.service.finish(task_id, done_after)
        task = ImageTask(task_id)
        self.watcher.watch(task)
        return task

    def age(self) -> float:
        return asyncio.get_running_loop().time() - self.began


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., World]]:
    worlds: list[World] = []

    def build(polling: Polling | None = None, **service_options: Any) -> World:
        polling = polling or Polling(interval=1.0)
        service = Service(**service_options)
        settled: list[float] = []
        loop = asyncio.get_running_loop()
        schedules = Schedules(polling)
        observers = Observers()
        watcher = Watcher(service, Slots(), schedules, polling, observers)
        watcher.listen(lambda *_: settled.append(loop.time()))
        worlds.append(World(service, schedules, watcher, settled, loop.time()))
        return worlds[-1]

    yield build
    for world in worlds:
        await world.watcher.aclose()


async def test_settles_a_success(make: Callable[..., World]) -> None:
    """A finished task gives its addresses at the next look, and its slot is told about once."""
    world = make()
    task = world.watch("a", 2.5)
    result = await task.result()

    assert (result.task_id, result.urls) == ("a", ("https://files.example/a.png",))
    assert result.record == task.record
    assert task.state is TaskState.SUCCESS
    assert world.age() == pytest.approx(3.1)
    assert len(world.settled) == 1
    assert len(world.watcher) == 0


@pytest.mark.parametrize("state", [TaskState.FAIL, TaskState.SUCCESS, TaskState.GENERATING])
async def test_the_first_settle_wins(make: Callable[..., World], state: TaskState) -> None:
    """A final record that a look in flight brings after a callback is counted; nothing it brings changes anything."""
    world = make(latency=1.0, final=lambda task_id: record(task_id, state))
    task = world.watch("a", 0.0)
    await asyncio.sleep(1.5)
    world.watcher.offer("a", record("a"))
    first = task.record
    await asyncio.sleep(5)

    assert task.record is first
    assert (await task).record is first
    assert world.watcher.repeated_settles == state.final
    assert len(world.settled) == len(world.service.looks) == 1


async def test_first_look_comes_after_one_interval(make: Callable[..., World]) -> None:
    """A fixed interval looks first after one interval, an interval of 0 at once."""
    slow, fast = make(), make(Polling(interval=0))
    slow.watch("a")
    fast.watch("b")
    await asyncio.sleep(0.05)

    assert slow.service.looks == []
    assert len(fast.service.looks) == 1


@pytest.mark.parametrize(
    ("final", "error"),
    [
        ({"state": TaskState.FAIL, "state_text": "fail", "result_urls": (), "fail_code": "500"}, TaskFailedError),
        ({"result_urls": ()}, EmptyResultError),
    ],
)
async def test_settles_a_failure(
    make: Callable[..., World], final: dict[str, Any], error: type[TaskFailedError | EmptyResultError]
) -> None:
    """A task that failed, or finished without a picture, settles with its error and keeps the record."""
    world = make(final=lambda task_id: record(task_id, **final))
    task = world.watch("a", 0)
    with pytest.raises(error) as caught:
        await task

    caught_error: Any = caught.value
    assert caught_error.task_id == "a"
    assert caught_error.record is task.record


async def test_documented_plan(make: Callable[..., World]) -> None:
    """Without an interval looks follow the documentation: a dense half minute, then fewer."""
    world = make(Polling())
    world.watch("a")
    await asyncio.sleep(240)
    ages = [at - world.began for at, _ in world.service.looks]

    assert sum(age < 30 for age in ages) in (10, 11, 12)
    assert sum(30 <= age < 120 for age in ages) in (10, 11, 12, 13)
    assert sum(age >= 120 for age in ages) in (4, 5, 6)


@pytest.mark.parametrize(
    "error",
    [
        TransportError("gone"),
        ProtocolError("not JSON"),
        RateLimitedError(429, "slow down", 200),
        MaintenanceError(455, "later", 200),
        ServerError(500, "oops", 200),
        ServerError(502, "bad gateway", 502),
    ],
    ids=lambda error: f"{type(error).__name__}{getattr(error, 'code', '')}",
)
async def test_an_outage_of_ten_minutes_fails_no_task(make: Callable[..., World], error: Flux2Error) -> None:
    """Failing to look slows down and goes on; the task gives its picture after the outage."""
    world = make(Polling())
    world.service.failing = lambda now: error if now - world.began < 600 else None
    task = world.watch("a", 10)
    result = await task.result()

    assert result.urls
    assert 600 <= world.age() <= 631
    assert len(world.service.looks) < 40


async def test_a_fixed_interval_slows_down_to_a_tenth(make: Callable[..., World]) -> None:
    """In an outage a fixed interval grows to at most ten times, and is itself again afterwards."""
    world = make(Polling(interval=1.0), latency=0.0)
    world.service.failing = lambda now: TransportError("gone") if now - world.began < 100 else None
    world.watch("a")
    await asyncio.sleep(130)
    times = [at - world.began for at, _ in world.service.looks]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]

    assert 5 <= max(gaps) <= 10
    assert gaps[-1] == pytest.approx(1)


async def test_a_bug_in_looking_does_not_lose_the_task(
    make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """Even an exception that should not be possible only delays a task."""
    world = make()
    world.service.failing = lambda now: 1 / 0 if now - world.began < 5 else None  # type: ignore[assignment,return-value]  # the bug
    task = world.watch("a", 0)

    assert (await task).urls
    assert "failed unexpectedly" in caplog.text


async def test_a_look_that_somebody_else_cancels(make: Callable[..., World]) -> None:
    """A cancellation that is not the session's own is a failure to look like any other."""
    world = make(Polling(interval=1.0))

    def cancelled(now: float) -> Flux2Error | None:
        if now - world.began < 5:
            raise asyncio.CancelledError
        return None

    world.service.failing = cancelled
    task = world.watch("a", 0)

    assert (await task.result(timeout=30)).urls


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError(401, "no", 200),
        InsufficientCreditsError(402, "no", 200),
        QuotaExceededError(433, "no", 200),
        FeatureDisabledError(505, "no", 200),
        ApiError(418, "no", 200),
    ],
    ids=lambda error: str(error.code),
)
async def test_a_lasting_refusal_settles(make: Callable[..., World], error: ApiError) -> None:
    """A refusal to look that lasts 60 s settles the handle with that error, not earlier."""
    world = make(Polling())
    world.service.failing = lambda now: error
    task = world.watch("a", 10)
    with pytest.raises(type(error)) as caught:
        await task

    assert caught.value is error
    assert 60 <= world.age() < 66


async def test_a_passing_refusal_costs_nothing(make: Callable[..., World]) -> None:
    """A key that works again within a minute loses no task, however often that happens."""
    world = make(Polling())
    error = AuthenticationError(401, "no", 200)
    world.service.failing = lambda now: error if (now - world.began) % 100 < 50 else None
    task = world.watch("a", 450)

    assert (await task).urls


async def test_invisible_for_90_seconds(make: Callable[..., World]) -> None:
    """A record that is not visible is pending for 90 s, and the task unknown after that."""
    world = make(Polling(interval=1.0), final=lambda _: None)
    task = world.watch("a", 0)

    assert not await task.wait(89)
    with pytest.raises(TaskNotFoundError) as caught:
        await task
    assert caught.value.task_id == "a"
    assert 90 <= world.age() < 93


async def test_visible_in_time(make: Callable[..., World]) -> None:
    """A record that appears after 80 s is as good as any."""
    world = make(Polling(interval=1.0))
    world.service.final = lambda task_id: record(task_id) if world.age() > 80 else None
    task = world.watch("a", 0)

    assert (await task).urls


async def test_gives_up_after(make: Callable[..., World]) -> None:
    """With `give_up_after` an unfinished task settles as a timeout that carries the handle."""
    world = make(Polling(give_up_after=20))
    task = world.watch("a", 1000)
    with pytest.raises(TaskTimeoutError) as caught:
        await task

    assert caught.value.task is task
    assert caught.value.given_up
    assert isinstance(caught.value, TimeoutError)
    assert 20 <= world.age() < 21
    assert len(world.watcher) == 0


async def test_a_task_that_never_ends_is_given_up_after_20_minutes(make: Callable[..., World]) -> None:
    """Without a word of the caller's, whatever the schedule; with None never."""
    world, patient = make(Polling()), make(Polling(give_up_after=None))
    task, other = world.watch("a"), patient.watch("b")
    with pytest.raises(TaskTimeoutError, match=r"task a is not finished after 1200(\.\d+)? s, so the session"):
        await task

    assert 1200 <= world.age() < 1201
    assert not await other.wait(86400)


@pytest.mark.parametrize("polling", [Polling(give_up_after=300), Polling(give_up_after=300, interval=7.0)])
async def test_unanswered_looks_do_not_count(make: Callable[..., World], polling: Polling) -> None:
    """An outage of any length uses up nothing of `give_up_after`, and what ended meanwhile is found."""
    world = make(polling)
    world.service.failing = lambda now: ServerError(502, "", 502) if 100 < now - world.began < 4000 else None
    stuck, ends = world.watch("a"), world.watch("b", 3000)

    assert (await ends).urls
    assert 4000 < world.age() < 4071
    with pytest.raises(TaskTimeoutError):
        await stuck
    # The first look that is answered again comes up to ten intervals after the outage.
    assert 4000 + 190 < world.age() < 4000 + 210 + 70


async def test_nothing_is_given_up_without_an_answer(make: Callable[..., World]) -> None:
    """Who never saw a task does not give it up, and an answer that comes too late still counts."""
    world = make(Polling(give_up_after=20))
    world.service.failing = lambda now: TransportError("gone") if now - world.began < 5000 else None
    task = world.watch("a", 4990)

    assert (await task).urls


async def test_what_was_given_up_is_watched_again(make: Callable[..., World]) -> None:
    """Awaiting the handle again looks at once, as often as it is given up, and gives what is there by then."""
    world = make(Polling(interval=1.0, give_up_after=20))
    task = world.watch("a", 55)
    waiting = [asyncio.create_task(task.result()) for _ in range(3)]
    errors = await asyncio.gather(*waiting, return_exceptions=True)

    assert [type(error) for error in errors] == [TaskTimeoutError] * 3
    assert await task.wait(0)
    assert task.done()
    looks = len(world.service.looks)
    await asyncio.sleep(10)
    assert len(world.service.looks) == looks
    with pytest.raises(TaskTimeoutError) as caught:
        await task
    assert caught.value.given_up
    assert world.watcher.tasks() == ()
    assert (await task).urls
    assert 55 <= world.age() < 57


async def test_who_was_not_told_yet_is_told_first(make: Callable[..., World]) -> None:
    """A task that was given up while nobody waited raises once, and only then is it watched again."""
    world = make(Polling(interval=1.0, give_up_after=20))
    task = world.watch("a", 30)
    await asyncio.sleep(40)

    assert task.done()
    assert await task.wait()
    with pytest.raises(TaskTimeoutError):
        await task
    assert await task.wait()
    assert (await task).urls


async def test_a_waiter_may_leave_what_is_watched_again(make: Callable[..., World]) -> None:
    """A time-out of its own is not `given_up`, and `updates` watches again as well."""
    world = make(Polling(interval=1.0, give_up_after=20))
    task = world.watch("a", 45)
    with pytest.raises(TaskTimeoutError):
        await task
    with pytest.raises(TaskTimeoutError) as caught:
        await task.result(timeout=5)
    assert not caught.value.given_up
    with pytest.raises(TaskTimeoutError):
        await task
    assert [each.state async for each in task.updates()][-1] is TaskState.SUCCESS


async def test_nothing_is_watched_again_in_a_closed_session(make: Callable[..., World]) -> None:
    """It says that a new session is needed."""
    world = make(Polling(interval=1.0, give_up_after=20))
    task = world.watch("a")
    with pytest.raises(TaskTimeoutError):
        await task
    await world.watcher.aclose()
    with pytest.raises(SessionClosedError, match="attach it in a new session"):
        await task


async def test_an_old_task_is_told_of_once(make: Callable[..., World], caplog: pytest.LogCaptureFixture) -> None:
    """A task that runs for longer than any that ended is warned of, by its id, and the others are not."""
    world = make(Polling())
    stuck = world.watch("stuck")
    await asyncio.gather(*(world.watch(f"usual {number}", 40.0) for number in range(5)))
    assert logged(caplog) == []
    await stuck.wait(1100)

    assert logged(caplog, level=logging.WARNING) == [
        "task stuck is not finished and older than anything seen in this session"
    ]


async def test_what_slow_tasks_take_is_not_old(make: Callable[..., World], caplog: pytest.LogCaptureFixture) -> None:
    """Where tasks take minutes, one of as many is none to warn of."""
    world = make(Polling())
    await world.watch("first", 110.0)
    await world.watch("second", 150.0)
    await world.watch("third", 200.0)

    assert "older" not in caplog.text


async def test_bounded_looks_in_flight(make: Callable[..., World]) -> None:
    """However many tasks there are, no more looks are in flight than allowed, and each task has its turn."""
    world = make(Polling(interval=1.0, max_concurrency=5), latency=0.5)
    tasks = [world.watch(str(number), 3) for number in range(50)]
    await asyncio.gather(*tasks)

    assert world.service.most_in_flight == 5
    assert set(Counter(task_id for _, task_id in world.service.looks)) == {str(number) for number in range(50)}


async def test_no_coroutine_per_task(make: Callable[..., World]) -> None:
    """Outstanding tasks cost neither asyncio tasks nor timers of their own."""
    world = make(Polling(interval=1000.0))
    before = len(asyncio.all_tasks())
    for number in range(1000):
        world.watch(str(number))
    await asyncio.sleep(1)

    assert len(asyncio.all_tasks()) == before
    assert world.watcher.tasks()[999].id == "999"


async def test_hint_looks_at_once(make: Callable[..., World]) -> None:
    """A hint brings the look forward; many hints at once are one look."""
    world = make(Polling(interval=600.0))
    task = world.watch("a", 4)
    await asyncio.sleep(5)
    for _ in range(10):
        world.watcher.hint("a")
    world.watcher.hint("unknown")
    await task

    assert world.age() == pytest.approx(5.1)
    assert len(world.service.looks) == 1


async def test_hints_are_a_second_apart(make: Callable[..., World]) -> None:
    """A storm of hints makes at most one look a second, besides the repeats."""
    world = make(Polling(interval=600.0), latency=0.0)
    world.watch("a")
    for _ in range(100):
        world.watcher.hint("a")
        await asyncio.sleep(0.1)

    assert len(world.service.looks) <= 1 + 2 * 10


async def test_look_is_repeated_after_a_hint(make: Callable[..., World]) -> None:
    """A record that lags behind its callback is looked at again after 0.5, 1 and 2 s, then by the plan."""
    world = make(Polling(interval=600.0), latency=0.0)
    world.watch("a")
    await asyncio.sleep(10)
    world.watcher.hint("a")
    await asyncio.sleep(30)
    times = [at - world.began for at, _ in world.service.looks]

    assert times == pytest.approx([10, 10.5, 11.5, 13.5])


async def test_hint_during_a_look_is_not_lost(make: Callable[..., World]) -> None:
    """A hint that comes while a look is in flight makes another one, a second after the first."""
    world = make(Polling(interval=5.0), latency=0.4)
    task = world.watch("a", 5.1)
    await asyncio.sleep(5.2)
    world.watcher.hint("a")
    await task

    assert world.age() == pytest.approx(6.4)


async def test_what_settles_by_itself_is_not_kept(make: Callable[..., World]) -> None:
    """A task that a callback settles an hour before its poll is let go of, and of the others every poll is made."""
    world = make(Polling(interval=3600.0))
    kept = weakref.WeakSet(world.watch(f"{number}") for number in range(300))
    await asyncio.sleep(1.0)
    for number in range(0, 300, 3):
        world.watcher.offer(f"{number}", record(f"{number}"))
        world.watcher.offer(f"{number + 1}", record(f"{number + 1}"))
    gc.collect()
    assert len(world.watcher) == 100
    assert len(kept) <= 150
    await asyncio.sleep(3600.0 * 1.5)
    assert {task_id for _, task_id in world.service.looks} == {f"{number}" for number in range(2, 300, 3)}
    for number in range(2, 300, 3):
        world.watcher.offer(f"{number}", record(f"{number}"))
    gc.collect()
    assert not kept


async def test_close_settles_what_is_left(make: Callable[..., World]) -> None:
    """Closing settles every outstanding task with an error that carries its id, and stops looking."""
    world = make()
    tasks = [world.watch(name, 100) for name in "abc"]
    waiting = [asyncio.create_task(task.result()) for task in tasks]
    await asyncio.sleep(1.05)
    left = await world.watcher.aclose()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    looks = len(world.service.looks)
    await asyncio.sleep(100)

    assert left == ("a", "b", "c")
    assert [(type(error), getattr(error, "task_id", None)) for error in errors] == [
        (SessionClosedError, name) for name in "abc"
    ]
    assert len(world.service.looks) == looks
    assert len(world.settled) == 3


async def test_updates_follow_the_stages(make: Callable[..., World]) -> None:
    """`updates` gives each stage once and ends with the final record."""
    world = make()
    task = world.watch("a", 5)
    states = [each.state async for each in task.updates()]

    assert states == [TaskState.GENERATING, TaskState.SUCCESS]
    assert [each.state async for each in task.updates()] == [TaskState.SUCCESS]


async def test_updates_end_with_the_error_of_a_task_without_record(make: Callable[..., World]) -> None:
    """Where no final record comes, `updates` raises what `result` raises."""
    world = make(Polling(give_up_after=5))
    task = world.watch("a")
    seen = []
    with pytest.raises(TaskTimeoutError):
        async for each in task.updates():
            seen.append(each.state)  # noqa: PERF401  a comprehension would lose what came before the error

    assert seen == [TaskState.GENERATING]


async def test_a_task_that_was_seen_is_not_unknown_at_once(make: Callable[..., World]) -> None:
    """A record that is missing once, long after it was seen, is looked for again; it takes 90 s to be unknown."""
    world = make(Polling(interval=5.0))
    task = world.watch("a")
    await asyncio.sleep(200)
    world.service.finish("a", 0)
    world.service.final = lambda task_id: record(task_id) if world.age() > 260 else None

    assert (await task).urls


@pytest.mark.parametrize("outage", [0.0, 600.0])
async def test_one_missing_record_loses_no_task(make: Callable[..., World], outage: float) -> None:
    """Who looks rarely, or could not look for long, believes no single answer that there is no such task."""
    world = make(Polling(interval=100.0))
    world.service.failing = lambda now: ServerError(502, "", 502) if 0 < now - world.began - 150 < outage else None
    answers = iter([record("a", TaskState.GENERATING), None, record("a")])
    world.service.final = lambda _: next(answers)

    assert (await world.watch("a", 0)).urls


async def test_an_outage_between_two_missing_records_loses_no_task(make: Callable[..., World]) -> None:
    """The 90 s are those in which looks were answered: what missed it just after createTask proves nothing later."""
    world = make(Polling(interval=1.0))
    world.service.failing = lambda now: ServerError(502, "", 502) if 1.5 < now - world.began < 200 else None
    answers = iter([None, None, record("a")])
    world.service.final = lambda _: next(answers)

    assert (await world.watch("a", 0)).urls


@pytest.mark.parametrize("interval", [60.0, 1000.0])
async def test_a_task_nobody_knows_is_told_after_90_s(make: Callable[..., World], interval: float) -> None:
    """However rare looks are, the last one comes 90 s after the first that missed the task."""
    world = make(Polling(interval=interval), latency=0.0, final=lambda _: None)
    with pytest.raises(TaskNotFoundError, match="after 90 s"):
        await world.watch("a", 0)

    assert world.age() == pytest.approx(interval + 90.0)


async def test_a_failed_look_does_not_use_up_a_hint(make: Callable[..., World]) -> None:
    """When the look after a hint fails, the next one comes soon, not by the plan."""
    world = make(Polling(interval=600.0), latency=0.0)
    world.service.failing = lambda now: ServerError(502, "bad gateway", 502) if now - world.began < 11 else None
    task = world.watch("a", 5)
    await asyncio.sleep(10)
    world.watcher.hint("a")
    await task

    assert 11.0 <= world.age() <= 13.0


async def test_retry_after_outranks_a_hint(make: Callable[..., World]) -> None:
    """Asked to wait, even a hinted task waits."""
    world = make(Polling(interval=600.0), latency=0.0)
    error = RateLimitedError(429, "slow down", 200, retry_after=30.0)
    world.service.failing = lambda now: error if now - world.began < 11 else None
    world.watch("a", 5)
    await asyncio.sleep(10)
    world.watcher.hint("a")
    await asyncio.sleep(29)

    assert len(world.service.looks) == 1


async def test_each_outage_begins_anew(make: Callable[..., World]) -> None:
    """After a look that succeeded, the next failure slows down as little as the very first."""
    world = make(Polling(interval=1.0), latency=0.0)
    outages = ((0, 50), (79.5, 80.5))
    world.service.failing = lambda now: (
        TransportError("gone") if any(begin < now - world.began < end for begin, end in outages) else None
    )
    world.watch("a")
    await asyncio.sleep(120)
    times = [at - world.began for at, _ in world.service.looks]

    assert max(later - earlier for earlier, later in itertools.pairwise(times) if later > 60) <= 2


async def test_close_does_not_wait_for_a_look(make: Callable[..., World]) -> None:
    """A look in flight, however long it takes, is over when closing is, which takes no time."""
    world = make(latency=1000.0)
    before = asyncio.all_tasks()
    world.watch("a")
    await asyncio.sleep(5)
    assert len(asyncio.all_tasks() - before) == 1
    closed_at = world.age()
    await world.watcher.aclose()

    assert asyncio.all_tasks() - before == set()
    assert world.age() == closed_at


async def test_gives_up_in_time_between_two_looks(make: Callable[..., World]) -> None:
    """`give_up_after` counts also where the next look would come much later."""
    world = make(Polling(interval=600.0, give_up_after=20))
    task = world.watch("a")
    with pytest.raises(TaskTimeoutError):
        await task

    assert world.age() == pytest.approx(20.1)


@pytest.mark.parametrize(("refusal", "looks"), [(None, 2), (AuthenticationError(401, "wrong key", 200), 6)])
async def test_the_last_look_comes_once(make: Callable[..., World], refusal: Flux2Error | None, looks: int) -> None:
    """However begin and bound add up, the look at the bound (20.3 s, or 60 s of refusals) is the last one."""
    world = make(Polling(interval=12.3, give_up_after=None if refusal else 20.3), latency=0.0)

    def failing(_: float) -> Flux2Error | None:
        # Replies that take no time could follow each other for ever.
        world.service.latency = 0.0 if len(world.service.looks) < 1000 else 1.0
        return refusal

    world.service.failing = failing
    for number in range(50):
        world.watch(str(number))
        await asyncio.sleep(1 / 27)
    await asyncio.sleep(200)

    assert len(world.settled) == 50
    assert len(world.service.looks) == 50 * looks


async def test_a_hint_replaces_the_planned_look(make: Callable[..., World]) -> None:
    """After a hint looks count from it; the one that was planned before does not come on top."""
    world = make(Polling(interval=30.0), latency=0.0)
    # Its look stands before the one that is replaced.
    world.watch("other")
    await asyncio.sleep(5)
    world.watch("a")
    await asyncio.sleep(5)
    world.watcher.hint("a")
    await asyncio.sleep(33)
    times = [at - world.began for at, task_id in world.service.looks if task_id == "a"]

    assert times == pytest.approx([10, 10.5, 11.5, 13.5])


async def test_a_hint_never_delays_a_look(make: Callable[..., World]) -> None:
    """Where the next look comes within the second anyway, a hint leaves it where it is."""
    world = make(Polling(interval=0.5), latency=0.0)
    world.watch("a")
    await asyncio.sleep(0.6)
    world.watcher.hint("a")
    await asyncio.sleep(0.5)

    assert [at - world.began for at, _ in world.service.looks] == pytest.approx([0.5, 1.0])


async def test_learns_from_its_tasks(make: Callable[..., World]) -> None:
    """After 20 tasks of 12 s the next ones cost two or three looks each and are known within two seconds."""
    world = make(Polling(), latency=0.0)
    for number in range(20):
        await world.watch(str(number), 12.0)
    looks = len(world.service.looks)
    began = world.age()
    for number in range(20, 30):
        await world.watch(str(number), 12.0)

    assert (len(world.service.looks) - looks) / 10 <= 3
    assert (world.age() - began) / 10 - 12 <= 2


async def test_a_burst_is_not_looked_at_in_a_burst(make: Callable[..., World]) -> None:
    """Tasks that were created at once are looked at by few at a time, also when all is learned."""
    world = make(Polling(max_concurrency=1000), latency=0.0)
    for number in range(30):
        await world.watch(f"before {number}", 12.0)
    world.service.looks.clear()
    await asyncio.gather(*(world.watch(str(number), 12.0) for number in range(100)))
    first = sorted({task_id: at for at, task_id in reversed(world.service.looks)}.values())

    assert first[-1] - first[0] > 0.5
    assert max(Counter(round(at, 2) for at in first).values()) <= 10


async def test_a_few_polls_of_a_burst_leave_together(make: Callable[..., World]) -> None:
    """A process that watches some tasks wakes up for several of them at once, round after round."""
    world = make(Polling())
    await asyncio.gather(*(world.watch(str(number), 12.0) for number in range(20)))
    moments = {round(at, 3) for at, _ in world.service.looks}

    assert len(moments) <= 0.6 * len(world.service.looks)


async def test_processes_of_a_host_do_not_look_at_the_same_moments(make: Callable[..., World]) -> None:
    """They share its clock, and the moments at which several polls leave are those of each process."""
    worlds = [make(Polling(), latency=0.0) for _ in range(4)]
    await asyncio.gather(*(world.watch(str(number), 12.0) for world in worlds for number in range(20)))
    often = [Counter(round(at % 0.1, 6) for at, _ in world.service.looks).most_common(1)[0] for world in worlds]

    assert all(count > 20 for _, count in often)
    assert len({phase for phase, _ in often}) == 4


async def test_attached_tasks_are_looked_at_soon_and_spread(make: Callable[..., World]) -> None:
    """They may have ended long ago: all are looked at within an interval of the documentation, not at one moment."""
    world = make(Polling(max_concurrency=1000), latency=0.0)
    tasks = [world.attach(str(number), 0.0) for number in range(100)]
    await asyncio.gather(*tasks)
    times = [at - world.began for at, _ in world.service.looks]

    assert len(times) == 100
    assert max(times) <= 2.5
    assert max(Counter(round(at, 1) for at in times).values()) <= 40
    assert sum(time < 1.25 for time in times) in range(30, 70)


async def test_an_empty_success_is_filled_later(make: Callable[..., World]) -> None:
    """A success whose addresses come 20 s later gives them; nobody is shown the empty one."""
    world = make(Polling(interval=1.0))
    world.service.final = lambda task_id: record(
        task_id, result_urls=() if world.age() < 21 else ("https://f.example/a",)
    )
    task = world.watch("a", 0)
    seen = [each async for each in task.updates()]

    assert (await task).urls == ("https://f.example/a",)
    assert [each.result_urls for each in seen] == [("https://f.example/a",)]
    assert world.age() < 40


@pytest.mark.parametrize("polling", [Polling(), Polling(interval=0), Polling(interval=600.0)])
async def test_an_empty_success_is_told_after_30_s(make: Callable[..., World], polling: Polling) -> None:
    """Then it is an `EmptyResultError`, however rarely looks come, and after few looks."""
    world = make(polling, final=lambda task_id: record(task_id, result_urls=()))
    task = world.watch("a", 0)
    with pytest.raises(EmptyResultError) as caught:
        await task

    first = world.service.looks[0][0]
    assert caught.value.record is task.record
    assert world.service.looks[-1][0] - first == pytest.approx(30.0, abs=0.2)
    assert len(world.service.looks) <= 10


async def test_an_empty_success_needs_an_answer_to_be_told(make: Callable[..., World]) -> None:
    """An outage that begins after it proves nothing."""
    world = make(Polling(interval=1.0))
    world.service.failing = lambda now: ServerError(502, "", 502) if 1.5 < now - world.began < 300 else None
    world.service.final = lambda task_id: record(
        task_id, result_urls=() if world.age() < 2 else ("https://f.example/a",)
    )

    assert (await world.watch("a", 0)).urls


async def test_results_that_cannot_be_read_are_told(
    make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """A success that names more results than have an address settles, with a warning."""
    extra = {"resultJson": {"resultUrls": ["https://f.example/a", "ftp://f.example/b"]}}
    world = make(final=lambda task_id: record(task_id, extra=extra))
    await world.watch("a", 0)

    assert "task a names 1 more results" in caplog.text


def failed_under_error(status: int = 501) -> FailedUnderErrorError:
    failed = record("a", TaskState.FAIL, fail_code="501", fail_message="broken")
    return FailedUnderErrorError(ServerError(501, "broken", status, task_id="a"), failed)


@pytest.mark.parametrize("polling", [Polling(), Polling(interval=0), Polling(interval=600.0)])
async def test_a_failure_under_an_error_is_final_after_60_s(make: Callable[..., World], polling: Polling) -> None:
    """Told under an HTTP status that says that the call failed, it is believed when it is still told 60 s later."""
    world = make(polling)
    world.service.failing = lambda _: failed_under_error()
    task = world.watch("a")
    with pytest.raises(TaskFailedError) as caught:
        await task

    assert caught.value.record is task.record
    assert world.service.looks[-1][0] - world.service.looks[0][0] == pytest.approx(60.0, abs=1.0)


async def test_a_failure_under_an_error_that_passes_ends_no_task(make: Callable[..., World]) -> None:
    """However often it is told, an answer between begins the 60 s anew."""
    world = make(Polling(interval=1.0))
    world.service.failing = lambda now: failed_under_error() if (now - world.began) % 100 < 50 else None

    assert (await world.watch("a", 450)).urls


@pytest.mark.parametrize("code", [408, 425, 499])
async def test_a_gateway_without_an_answer_refuses_nothing(make: Callable[..., World], code: int) -> None:
    """Its time-outs are failures to look, for as long as they last."""
    world = make(Polling(interval=1.0))
    world.service.failing = lambda now: refusal(code, "timed out", code) if now - world.began < 300 else None

    assert (await world.watch("a", 0)).urls


async def test_an_empty_success_that_was_none(make: Callable[..., World]) -> None:
    """Where it runs on after an empty success, the next one is looked at again for as long."""
    world = make(Polling(interval=1.0))

    def seen(task_id: str) -> TaskRecord:
        age = world.age()
        if age < 3:
            return record(task_id, result_urls=())
        return (
            record(task_id, TaskState.GENERATING)
            if age < 100
            else record(task_id, result_urls=() if age < 120 else ("https://f.example/a",))
        )

    world.service.final = seen

    assert (await world.watch("a", 0)).urls


@given(
    outages=st.lists(st.tuples(st.floats(0.1, 300), st.floats(0.1, 600)), max_size=5),
    done_after=st.none() | st.floats(0, 3000),
    give_up_after=st.floats(1, 600),
    interval=st.none() | st.floats(0.2, 100),
)
@settings(max_examples=60)
def test_no_task_is_given_up_before_its_time(
    outages: list[tuple[float, float]], done_after: float | None, give_up_after: float, interval: float | None
) -> None:
    """However answers and outages follow each other, what ends within `give_up_after` of answers gives its picture."""
    away, at = [], 0.0
    for answered, lasting in outages:
        away.append((at + answered, at + answered + lasting))
        at = away[-1][1]

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        begun, polling = loop.time(), Polling(give_up_after=give_up_after, interval=interval)
        service, schedules = Service(latency=0.0), Schedules(polling)
        service.failing = lambda now: (
            TransportError("gone") if any(begin <= now - begun < end for begin, end in away) else None
        )
        watcher = Watcher(service, Slots(), schedules, polling, Observers())
        task = ImageTask("a")
        if done_after is not None:
            service.finish("a", done_after)
        watcher.watch(task, schedules.of(MODEL, "1K"))
        (outcome,) = await asyncio.gather(task.result(), return_exceptions=True)
        unanswered, since = 0.0, None
        for looked in [at for at, _ in service.looks]:
            if service.failing(looked) is not None:
                since = looked if since is None else since
            elif since is not None:
                unanswered, since = unanswered + looked - since, None
        last = service.looks[-1][0]

        assert since is None
        if isinstance(outcome, TaskTimeoutError):
            assert last - begun - unanswered == pytest.approx(give_up_after)
            assert done_after is None or done_after > last - begun - 1e-6
        else:
            assert done_after is not None
            assert done_after <= last - begun + 1e-6
        await watcher.aclose()

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(watch())
