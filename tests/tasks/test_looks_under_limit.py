"""Looks at many tasks behind a limit on recordInfo; the limit is simulated, on virtual time."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import attrs
import pytest
from rate_servers import FixedWindow, RateServer, SlidingLog, TokenBucket

from flux2_async.errors import Flux2Error, RateLimitedError, ServerError
from flux2_async.models import Polling, TaskRecord, TaskState
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.observers import Observers
from flux2_async.tasks.schedule import Schedules
from flux2_async.tasks.watcher import Watcher

TASKS = 40
# A client that sends 5 a second, evenly, has asked for 40 tasks after 8 s, and for its own first look a second goes by.
PACED = 9.0

SERVERS: dict[str, Callable[[], RateServer]] = {
    # nginx's limit_req: without burst, and with one.
    "no burst": lambda: TokenBucket(5, 1.0, capacity=1.0),
    "burst=5": lambda: TokenBucket(5, 1.0),
    "sliding": lambda: SlidingLog(5, 1.0),
    "fixed": lambda: FixedWindow(5, 1.0),
}
POLLINGS = {
    "default": Polling(),
    "price 0.03": Polling(price=0.03),
    "price 0.1": Polling(price=0.1),
    "price 1": Polling(price=1.0),
    "interval 0": Polling(interval=0.0),
    "interval 0.2": Polling(interval=0.2),
    "interval 1": Polling(interval=1.0),
}


class Slots:
    """As many as there are tasks."""

    def borrow(self, group: str | None = None) -> None: ...

    def release(self, group: str | None = None) -> None: ...


@attrs.define(eq=False)
class Limited:
    """The service behind a limit; tasks end at `done_at`, looks at those `failing` fail so often."""

    server: RateServer
    refusal: Callable[[], Flux2Error]
    done_at: float = 0.0
    chance: random.Random = attrs.field(factory=lambda: random.Random(7))
    failing: Counter[str] = attrs.field(factory=Counter)
    passed: list[tuple[float, str]] = attrs.field(factory=list)
    refused: list[float] = attrs.field(factory=list)

    async def record(self, task_id: str) -> TaskRecord | None:
        loop = asyncio.get_running_loop()
        way = self.chance.uniform(0.005, 0.025)
        await asyncio.sleep(way)
        now = loop.time()
        refused = self.server.take(now) is not None
        await asyncio.sleep(way)
        if self.failing[task_id]:
            self.failing[task_id] -= 1
            raise ServerError(503, "busy", 503)
        if refused:
            self.refused.append(now)
            raise self.refusal()
        self.passed.append((now, task_id))
        if now < self.done_at:
            return TaskRecord(task_id=task_id, state=TaskState.GENERATING, state_text="generating")
        urls = ("https://files.example/a.png",)
        return TaskRecord(task_id=task_id, state=TaskState.SUCCESS, state_text="success", result_urls=urls)


@attrs.define(eq=False)
class World:
    service: Limited
    schedules: Schedules
    watcher: Watcher

    def watch(self, task_id: str) -> ImageTask:
        task = ImageTask(task_id)
        self.watcher.watch(task, self.schedules.of("flux-2/flex-text-to-image", "1K"))
        return task


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., World]]:
    watchers: list[Watcher] = []

    def build(server: RateServer, polling: Polling, refusal: Callable[[], Flux2Error]) -> World:
        service = Limited(server, refusal)
        schedules = Schedules(polling)
        watchers.append(Watcher(service, Slots(), schedules, polling, Observers()))
        return World(service, schedules, watchers[-1])

    yield build
    for watcher in watchers:
        await watcher.aclose()


REFUSALS: dict[str, Callable[[], Flux2Error]] = {
    "429": lambda: RateLimitedError(429, "slow down", 429),
    "429 with Retry-After": lambda: RateLimitedError(429, "slow down", 429, retry_after=1.0),
    "503": lambda: ServerError(503, "busy", 503),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("polling", POLLINGS)
@pytest.mark.parametrize("server", SERVERS)
async def test_all_are_known_in_twice_the_time_of_a_paced_client(
    make: Callable[..., World], server: str, polling: str, refusal: str
) -> None:
    """40 finished tasks behind five looks a second are known within 18 s, with and without Retry-After."""
    world = make(SERVERS[server](), POLLINGS[polling], REFUSALS[refusal])
    began = asyncio.get_running_loop().time()
    await asyncio.gather(*(world.watch(str(number)) for number in range(TASKS)))

    assert asyncio.get_running_loop().time() - began <= 2 * PACED


@pytest.mark.parametrize("server", SERVERS)
async def test_looks_go_on_under_a_limit(make: Callable[..., World], server: str) -> None:
    """While 40 tasks run for a minute, few looks are refused, the limit is used, and each task has its turn."""
    world = make(SERVERS[server](), Polling(interval=1.0), REFUSALS["429"])
    began = asyncio.get_running_loop().time()
    world.service.done_at = began + 60.0
    tasks = [world.watch(str(number)) for number in range(TASKS)]
    await asyncio.sleep(60.0)
    passed = [task_id for at, task_id in world.service.passed if at >= began + 10.0]

    assert sum(at >= began + 10.0 for at in world.service.refused) <= 0.1 * len(passed)
    assert len(passed) >= 0.7 * 5 * 50
    turns = Counter(passed)
    assert len(turns) == TASKS
    assert max(turns.values()) - min(turns.values()) <= 2
    await asyncio.gather(*tasks)
    assert asyncio.get_running_loop().time() - began <= 60.0 + 2 * PACED


@pytest.mark.parametrize("refusal", ["429", "429 with Retry-After"])
@pytest.mark.parametrize("server", SERVERS)
async def test_those_who_follow_share_the_pace(make: Callable[..., World], server: str, refusal: str) -> None:
    """40 tasks that are followed four times a second are looked at as often as the limit allows, and each in turn."""
    world = make(SERVERS[server](), Polling(), REFUSALS[refusal])
    began = asyncio.get_running_loop().time()
    world.service.done_at = began + 60.0

    async def follow(task: ImageTask) -> None:
        async for _ in task.updates(every=0.25):
            pass

    following = [asyncio.create_task(follow(world.watch(str(number)))) for number in range(TASKS)]
    await asyncio.sleep(60.0)
    passed = [task_id for at, task_id in world.service.passed if at >= began + 10.0]

    assert sum(at >= began + 10.0 for at in world.service.refused) <= 0.1 * len(passed)
    assert len(passed) >= 0.7 * 5 * 50
    turns = Counter(passed)
    assert len(turns) == TASKS
    assert max(turns.values()) - min(turns.values()) <= 2
    await asyncio.gather(*following)


@pytest.mark.parametrize("server", SERVERS)
async def test_who_asks_besides_delays_no_result_for_long(make: Callable[..., World], server: str) -> None:
    """While 100 ask for tasks that do not exist, 40 finished tasks are known in the time of half the limit."""
    world = make(SERVERS[server](), Polling(), REFUSALS["429"])
    began = asyncio.get_running_loop().time()

    async def ask(number: int) -> None:
        while True:
            with suppress(RateLimitedError):
                await world.watcher.ask(f"no such task {number}")
            await asyncio.sleep(2.0)

    asking = [asyncio.create_task(ask(number)) for number in range(100)]
    await asyncio.gather(*(world.watch(str(number)) for number in range(TASKS)))
    took = asyncio.get_running_loop().time() - began
    for each in asking:
        each.cancel()
    await asyncio.wait(asking)

    assert took <= 4 * PACED
    passed = [task_id for _, task_id in world.service.passed]
    assert sum("no such" in task_id for task_id in passed) >= 5


async def test_a_limit_that_is_gone_is_forgotten(make: Callable[..., World]) -> None:
    """Minutes after the last refusal looks leave together again."""
    world = make(SERVERS["no burst"](), Polling(interval=1.0), REFUSALS["429"])
    await asyncio.gather(*(world.watch(str(number)) for number in range(TASKS)))
    world.service.server = TokenBucket(10_000, 1.0)
    await asyncio.sleep(301.0)
    began = asyncio.get_running_loop().time()
    await asyncio.gather(*(world.watch(f"later {number}") for number in range(TASKS)))

    assert asyncio.get_running_loop().time() - began < 1.1


@pytest.mark.parametrize("polling", POLLINGS)
@pytest.mark.parametrize("others", [0, 5])
async def test_three_503_delay_one_result_by_at_most_five_seconds(
    make: Callable[..., World], polling: str, others: int
) -> None:
    """A look that failed three times is tried again soon each time, also where looks at other tasks pass meanwhile."""

    async def known_after(failures: int) -> float:
        world = make(TokenBucket(10_000, 1.0), POLLINGS[polling], REFUSALS["503"])
        world.service.failing["a"] = failures
        began = asyncio.get_running_loop().time()
        for number in range(others):
            world.service.done_at = began + 3.0
            world.watch(str(number))
        await world.watch("a")
        return asyncio.get_running_loop().time() - began

    assert await known_after(3) - await known_after(0) <= 5.0
