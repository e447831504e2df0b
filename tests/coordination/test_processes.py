"""Real processes on one account: the limit holds while some are killed, and nobody sends during a pause of another."""

import asyncio
import multiprocessing
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

import pytest
from emulated import until
from redis_server import RedisServer

from flux2_async import Flux2Session, Polling, RateLimit, TextToImage, Timeouts
from flux2_async.coordination import RedisCoordination
from flux2_async.emulator import Emulator, Fault, Limit, Plan, Script

pytestmark = [pytest.mark.real_time, pytest.mark.timeout(120)]

LIMIT = 20
PERIOD = 1.0
PROCESSES = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    PROCESSES.set_forkserver_preload([__name__])
    with RedisServer() as server:
        yield server.url


def work(base_url: str, api_key: str, url: str, tasks: int) -> None:
    asyncio.run(submit_all(base_url, api_key, url, tasks))


async def submit_all(base_url: str, api_key: str, url: str, tasks: int) -> None:
    async with Flux2Session(
        api_key,
        base_url=base_url,
        rate_limit=RateLimit(LIMIT, PERIOD),
        max_running=None,
        coordination=RedisCoordination(url),
        polling=Polling(interval=0.3),
        timeouts=Timeouts(connect=1.0, submit=2.0),
    ) as flux:
        await asyncio.gather(*(flux.submit(TextToImage(f"number {number}")) for number in range(tasks)))
        await flux.drain()


def start(emulator: Emulator, url: str, tasks: int) -> BaseProcess:
    worker = PROCESSES.Process(target=work, args=(emulator.base_url, emulator.api_key, url, tasks))
    worker.start()
    return worker


def script(**options: object) -> Script:
    return Script(plans=Plan(duration=0.1), limit=Limit(LIMIT, PERIOD), credits=1e6, render=False, **options)  # type: ignore[arg-type]  # passed on as it is


async def test_limit_holds_while_a_process_is_killed(url: str) -> None:
    """One of four is killed in the middle: the others finish all they have, and no window is ever overfull."""
    async with Emulator(script()) as emulator:
        workers = [start(emulator, url, 30) for _ in range(4)]
        await until(lambda: len(emulator.ledger.accepted) >= 25, 60)
        workers[0].kill()
        for worker in workers:
            await asyncio.to_thread(worker.join)

    assert [worker.exitcode for worker in workers[1:]] == [0, 0, 0]
    assert 90 <= len(emulator.ledger.accepted) <= 120
    assert emulator.ledger.refused == 0
    assert emulator.ledger.max_in_window(PERIOD) <= LIMIT


async def test_pause_of_one_holds_all(url: str) -> None:
    """After a 429 with Retry-After met by one process nothing leaves any of them until that is over."""
    pause = 2.0
    fault = Fault("createTask", "refuse", retry_after=pause, after=22)
    async with Emulator(script(faults=[fault])) as emulator:
        workers = [start(emulator, url, 10) for _ in range(4)]
        for worker in workers:
            await asyncio.to_thread(worker.join)

    calls = emulator.ledger.requests
    refused = next(call.time for call in calls if call.outcome == "refused")
    # What was on its way when the answer came cannot be called back.
    assert [call.time - refused for call in calls if 0.3 < call.time - refused < pause] == []
    assert len(emulator.ledger.accepted) == 40
