"""Real processes that share an account on one host, against an emulator that counts, in real time and short periods."""

# ruff: noqa: ASYNC240  a test may wait for the disk

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import attrs
import coordinated_worker
import pytest
from emulated import REQUEST, free_port, until

from flux2_async.coordination import HostCoordination
from flux2_async.emulator import Emulator, Fault, Limit, Plan, Script
from flux2_async.errors import CoordinationError
from flux2_async.models import Polling, RateLimit
from flux2_async.session.session import Flux2Session
from flux2_async.tasks.handle import ImageTask

pytestmark = pytest.mark.real_time

# Workers are forked by a process that has imported everything; pytest, because it is the main module of their parent.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "aiohttp.web",
        "flux2_async.session.session",
        "flux2_async.coordination.host.coordinator",
        "flux2_async.receivers._aiohttp",
        "pytest",
    ]
)


@attrs.define
class Worker:
    """A process of `coordinated_worker`."""

    process: BaseProcess
    line: Connection

    async def says(self, word: str) -> None:
        assert await asyncio.to_thread(self.line.recv) == word

    def tell(self) -> None:
        self.line.send("go")

    async def kill(self) -> None:
        self.process.kill()
        await asyncio.to_thread(self.process.join)
        self.line.close()
        self.process.close()

    def wake_ups(self) -> int:
        """How often any of its threads has woken up after waiting."""
        total = 0
        for status in Path(f"/proc/{self.process.pid}/task").glob("*/status"):
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            total += int(fields["voluntary_ctxt_switches"])
        return total


@attrs.define
class Team:
    """Workers on one emulator and one file."""

    emulator: Emulator
    path: Path
    alive: list[Worker] = attrs.field(factory=list)

    async def hire(self, count: int, mode: str, **options: Any) -> list[Worker]:
        """Start workers, and wait until they are ready for a word."""
        limit = self.emulator.script.limit
        assert limit is not None
        options |= {"mode": mode, "base_url": self.emulator.base_url, "api_key": self.emulator.api_key}
        options |= {"limit": limit.limit, "period": limit.period}
        hired: list[Worker] = []
        for _ in range(count):
            here, there = processes.Pipe()
            arguments = (HostCoordination(self.path), options, there)
            process = processes.Process(target=coordinated_worker.main, args=arguments)
            process.start()
            there.close()
            hired.append(Worker(process, here))
        self.alive += hired
        for worker in hired:
            await worker.says("ready")
        return hired

    async def kill(self, worker: Worker) -> None:
        self.alive.remove(worker)
        await worker.kill()


@asynccontextmanager
async def team(path: Path, limit: int, period: float, **script: Any) -> AsyncIterator[Team]:
    plans = script.pop("plans", Plan(duration=0.01))
    rules = Script(plans=plans, limit=Limit(limit, period, retry_after="seconds"), render=False, credits=1e9, **script)
    async with Emulator(rules) as emulator:
        made = Team(emulator, path)
        try:
            yield made
        finally:
            for worker in tuple(made.alive):
                await made.kill(worker)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite"


async def test_four_processes_use_up_one_limit(path: Path) -> None:
    """Four processes, 200 tasks, 20 per period: none is refused, a window is used up, and none holds more."""
    period = 0.5
    async with team(path, 20, period) as crew:
        workers = await crew.hire(4, "submit", number=50)
        for worker in workers:
            worker.tell()
        for worker in workers:
            await worker.says("done")
        ledger = crew.emulator.ledger

    assert len(ledger.accepted) == 200
    assert ledger.refused == 0
    assert ledger.max_in_window(period) == 20


async def test_pause_of_one_process_holds_all(path: Path) -> None:
    """One process is told to wait for a second: nobody sends before it is over, and all go on then."""
    fault = Fault("createTask", "refuse", after=5, code=429, retry_after=1)
    async with team(path, 1, 0.1, faults=[fault]) as crew:
        workers = await crew.hire(4, "submit", number=3)
        for worker in workers:
            worker.tell()
        for worker in workers:
            await worker.says("done")
        calls = crew.emulator.ledger.requests

    refused_at = calls[5].time
    assert [call.outcome for call in calls].count("refused") == 1
    assert calls[6].time >= refused_at + 1.0
    assert len(crew.emulator.ledger.accepted) == 12


async def test_permits_of_a_killed_process_come_back(path: Path) -> None:
    """All permits are out in a process whose requests hang; it is killed, and two periods later others have them."""
    hangs = Fault("createTask", "hang", times=5)
    async with team(path, 5, 0.3, faults=[hangs]) as crew:
        (doomed,) = await crew.hire(1, "submit", number=5)
        (other,) = await crew.hire(1, "submit", number=10)
        doomed.tell()
        await until(lambda: len(crew.emulator.ledger.requests) == 5)
        other.tell()
        await asyncio.sleep(0.5)
        before = len(crew.emulator.ledger.requests)
        killed_at = time.monotonic()
        await crew.kill(doomed)
        await other.says("done")

    assert before == 5
    assert len(crew.emulator.ledger.accepted) >= 10
    assert crew.emulator.ledger.requests[5].time >= killed_at + 2 * 0.3
    assert crew.emulator.ledger.refused == 0


async def test_one_process_after_another_is_killed(path: Path) -> None:
    """Processes are killed and replaced: the limit is never passed, and those that are left use it up in the end."""
    limit, period = 10, 0.3
    async with team(path, limit, period) as crew:
        for worker in await crew.hire(4, "endless", number=20):
            worker.tell()
        ledger = crew.emulator.ledger
        await until(lambda: len(ledger.accepted) >= 2 * limit)
        for _ in range(4):
            await crew.kill(crew.alive[0])
            (worker,) = await crew.hire(1, "endless", number=20)
            worker.tell()
        killed = len(ledger.accepted_at)

        def used_up() -> bool:
            later = ledger.accepted_at[killed:]
            return any(last - first < period for first, last in zip(later, later[limit - 1 :], strict=False))

        await until(used_up, 60)

    assert ledger.refused == 0
    assert ledger.max_in_window(period) <= limit


async def test_callback_reaches_the_process_that_waits(path: Path) -> None:
    """One process receives the callbacks, another one waits for the pictures, and looks at once."""
    async with team(path, 100, 1.0, plans=Plan(duration=0.05)) as crew:
        port = free_port()
        address = f"http://127.0.0.1:{port}/callback"
        (receiver,) = await crew.hire(1, "receive", port=port, callbacks=address)
        receiver.tell()
        await receiver.says("done")
        (waiter,) = await crew.hire(1, "await", number=10, callbacks=address)
        waiter.tell()
        await waiter.says("done")
        ledger = crew.emulator.ledger

    # Without a callback the first look comes after a thousand seconds.
    assert len(ledger.callbacks) == 10
    assert all(ledger.poll_times[call.task_id][0] >= call.time for call in ledger.callbacks)


async def test_idle_processes_sleep(path: Path) -> None:
    """A process that has nothing to do does not wake up; one whose submissions wait does so rarely."""
    async with team(path, 1, 3.0) as crew:
        workers = await crew.hire(2, "submit", number=100)
        await asyncio.sleep(0.2)
        idle_before = workers[0].wake_ups()
        workers[1].tell()
        await until(lambda: crew.emulator.ledger.accepted)
        await asyncio.sleep(0.3)
        busy_before = workers[1].wake_ups()
        await asyncio.sleep(1.0)
        busy = workers[1].wake_ups() - busy_before
        idle = workers[0].wake_ups() - idle_before

    assert idle <= 5
    assert busy <= 20


async def patiently(flux: Flux2Session) -> ImageTask:
    async with asyncio.timeout(10):
        while True:
            try:
                return await flux.submit(REQUEST, key="after")
            except CoordinationError:
                await asyncio.sleep(0.05)


def put_a_folder_at(path: Path) -> None:
    """Take the file away for good: whoever still has something to write makes it anew, until it cannot."""
    while not path.is_dir():
        for name in path.parent.glob(f"{path.name}*"):
            if name.is_file():
                name.unlink(missing_ok=True)
        with suppress(FileExistsError):
            path.mkdir()


async def test_lost_file_hurts_nothing_that_runs(path: Path) -> None:
    """While the file cannot be used tasks end, submissions go on, those with a key fail; then all is as before."""
    async with team(path, 20, 0.3, plans=Plan(duration=0.5)) as crew:
        coordination = HostCoordination(path)
        session = Flux2Session(
            crew.emulator.api_key,
            base_url=crew.emulator.base_url,
            rate_limit=RateLimit(20, 0.3),
            polling=Polling(interval=0.1),
            coordination=coordination,
        )
        async with session as flux:
            running = await flux.submit(REQUEST, key="before")
            put_a_folder_at(path)
            with pytest.raises(CoordinationError):
                await flux.submit(REQUEST, key="meanwhile")
            without_key = await flux.submit(REQUEST)
            results = [await running.result(timeout=10), await without_key.result(timeout=10)]
            path.rmdir()
            again = await patiently(flux)

    assert [bool(result.urls) for result in results] == [True, True]
    assert again.id in crew.emulator.ledger.accepted
    assert len(crew.emulator.ledger.accepted) == 3
