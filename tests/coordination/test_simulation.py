"""Processes of one account that join, leave, die and lose the shared state by chance: what holds whatever happens."""

import asyncio
import random
from contextlib import suppress

import attrs
import pytest
from memory_coordination import Memory, MemoryStore
from rate_servers import SlidingLog

from flux2_async.coordination.contract import Terms
from flux2_async.coordination.coordinator import Coordinator
from flux2_async.coordination.shared_limiter import SharedLimiter
from flux2_async.errors import SessionClosedError
from flux2_async.models import RateLimit

LIMIT, PERIOD = 12, 10.0
TERMS = Terms(RateLimit(LIMIT, PERIOD), 30.0)
EVENTS = ("outage", "outage", "lost answers", "mute", "die", "leave", "join", "join", "cancel", "quiet")


@attrs.define(eq=False)
class Process:
    limiter: SharedLimiter
    store: MemoryStore
    jobs: list[asyncio.Task[None]] = attrs.field(factory=list)
    served: int = 0

    @property
    def waiting(self) -> list[asyncio.Task[None]]:
        self.jobs = [job for job in self.jobs if not job.done()]
        return self.jobs


class Account:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.memory, self.server = Memory(rtt=0.02), SlidingLog(LIMIT, PERIOD)
        self.processes: list[Process] = []
        self.sending: set[asyncio.Task[None]] = set()
        self.refused = 0

    async def join(self) -> None:
        limiter = SharedLimiter(Coordinator(self.memory, "account", TERMS), TERMS, may_degrade=True)
        self.processes.append(Process(limiter, self.memory.stores[-1]))
        await limiter.open()

    def submit(self, process: Process, count: int) -> None:
        process.jobs += [asyncio.create_task(self._submit(process)) for _ in range(count)]

    async def _submit(self, process: Process) -> None:
        me = asyncio.current_task()
        assert me is not None
        with suppress(SessionClosedError):
            with await process.limiter.acquire() as permit:
                self.sending.add(me)
                there, back = (0.1 * self.rng.lognormvariate(0, 1) for _ in range(2))
                # It arrives whether or not the process still lives.
                asyncio.get_running_loop().call_later(there, self._count)
                await asyncio.sleep(there + back)
                permit.answered()
                process.served += 1
        self.sending.discard(me)

    def _count(self) -> None:
        self.refused += self.server.take(asyncio.get_running_loop().time()) is not None

    async def die(self, process: Process) -> None:
        """End as a killed process does: nobody is told anything."""
        self.processes.remove(process)
        for job in process.waiting:
            job.cancel()
        process.store.cut = True
        await process.limiter.aclose()
        await asyncio.gather(*process.waiting, return_exceptions=True)

    async def leave(self, process: Process) -> None:
        self.processes.remove(process)
        await process.limiter.aclose()
        await asyncio.gather(*process.waiting)

    async def outage(self) -> None:
        self.memory.down = True
        await asyncio.sleep(self.rng.choice([0.3, 5.0, 18.0, 25.0, 70.0]))
        self.memory.down = False
        # Who joins before anybody is back cannot know that the others send by themselves.
        await asyncio.sleep(0.4 * PERIOD)

    async def happen(self) -> None:
        event = self.rng.choice(EVENTS)
        process = self.rng.choice(self.processes)
        match event:
            case "outage":
                await self.outage()
            case "lost answers":
                self.memory.lost_answers = 2
            case "mute":
                self.memory.mute = not self.memory.mute
            case "die" if len(self.processes) > 1:
                await self.die(process)
            case "leave" if len(self.processes) > 1:
                await self.leave(process)
            case "join" if len(self.processes) < 5:
                await self.join()
            case "cancel":
                for job in [job for job in process.waiting if job not in self.sending]:
                    job.cancel()


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_happens_the_limit_holds_and_nobody_starves(seed: int) -> None:
    """Busy and idle processes, outages, deaths, lost words: no refusal, an end for all, a share for each, no rest."""
    random.seed(seed)
    others, account = asyncio.all_tasks(), Account(seed)
    for _ in range(3):
        await account.join()
    for _ in range(25):
        await asyncio.sleep(account.rng.expovariate(1 / PERIOD))
        for process in account.processes:
            if len(process.waiting) < LIMIT:
                account.submit(process, account.rng.choice([0, 0, 1, 2 * LIMIT]))
        await account.happen()
    # The last of the dead are forgotten by then.
    await asyncio.sleep(TERMS.lease + 3 * PERIOD)
    left = sum(len(process.waiting) for process in account.processes)
    await asyncio.sleep((left / LIMIT + 2) * 1.1 * PERIOD)
    assert not any(process.waiting for process in account.processes)

    begun = {process: process.served for process in account.processes}
    for process in account.processes:
        account.submit(process, 12 * LIMIT)
    await asyncio.sleep(10 * PERIOD)
    served = [process.served - begun[process] for process in account.processes]
    assert sum(served) >= 8.5 * LIMIT
    assert min(served) >= 0.4 * sum(served) / len(served)
    while account.processes:
        await account.leave(account.processes[0])
    assert account.refused == 0
    assert account.memory.stores == []
    assert asyncio.all_tasks() == others
