"""Real processes that are stopped with permits in hand, on both stores, against an emulator that counts."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import coordinated_worker
import pytest
from emulated import until
from redis_server import RedisServer

from flux2_async.coordination import Coordination, HostCoordination, RedisCoordination
from flux2_async.emulator import Emulator, Limit, Plan, Script
from flux2_async.models import Timeouts

pytestmark = [pytest.mark.real_time, pytest.mark.timeout(120)]

LIMIT = 4
PERIOD = 1.0
TIMEOUTS = Timeouts(connect=1.0, submit=0.5)
SLACK = 0.5
LEASE = TIMEOUTS.connect + TIMEOUTS.submit + SLACK
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["coordinated_worker", "pytest", "flux2_async.coordination.host.coordinator"])

Worker = tuple[BaseProcess, Connection]


@pytest.fixture(params=["host", "redis"])
def coordination(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Coordination]:
    if request.param == "host":
        yield HostCoordination(tmp_path / "state.sqlite")
        return
    with RedisServer() as server:
        yield RedisCoordination(server.url)


def start(emulator: Emulator, coordination: Coordination, mode: str, number: int, **options: object) -> Worker:
    here, there = PROCESSES.Pipe()
    options |= {"mode": mode, "number": number, "base_url": emulator.base_url, "api_key": emulator.api_key}
    options |= {"limit": LIMIT, "period": PERIOD, "timeouts": TIMEOUTS, "slack": SLACK}
    process = PROCESSES.Process(target=coordinated_worker.main, args=(coordination, options, there))
    process.start()
    there.close()
    return process, here


async def says(worker: Worker, word: str) -> None:
    assert await asyncio.to_thread(worker[1].recv) == word


@pytest.mark.parametrize("inside", [True, False], ids=["in on_send", "between on_send and the head"])
async def test_permits_of_a_stopped_process_are_used_once(coordination: Coordination, inside: bool) -> None:
    """While a process stands still others get its permits; what it sends when it goes on, it sends by new ones."""
    script = Script(plans=Plan(duration=0.01), limit=Limit(LIMIT, PERIOD), render=False, credits=1e9)
    workers: list[Worker] = []
    async with Emulator(script) as emulator:
        accepted = emulator.ledger.accepted
        try:
            workers.append(start(emulator, coordination, "stop", LIMIT, inside=inside))
            workers += [start(emulator, coordination, "endless", 5) for _ in range(2)]
            for worker in workers:
                await says(worker, "ready")
            workers[0][1].send("go")
            await says(workers[0], "stops")
            for worker in workers[1:]:
                worker[1].send("go")
            # Nothing of it has left, so what is accepted from here on goes by its permits.
            await until(lambda: accepted, 30)
            await asyncio.sleep(LEASE)
            before = len(accepted)
            await until(lambda: len(accepted) >= before + LIMIT, 30)
            os.kill(workers[0][0].pid or 0, signal.SIGCONT)
            await says(workers[0], "done")
        finally:
            for process, line in workers:
                process.kill()
                await asyncio.to_thread(process.join)
                line.close()
                process.close()

    assert emulator.ledger.refused == 0
    assert emulator.ledger.max_in_window(PERIOD) <= LIMIT
