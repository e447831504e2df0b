"""Real processes that share an account over each real store, against an emulator that counts, in short periods."""

import asyncio
import itertools
import math
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import attrs
import coordinated_worker
import pytest
from emulated import callback_answers, free_port, parts_of, session_for, until
from postgres_server import PostgresServer
from redis_server import RedisServer

from flux2_async import Budget, RateLimit
from flux2_async.coordination import Coordination, HostCoordination
from flux2_async.coordination.account_state import FORMAT
from flux2_async.coordination.shared_limiter import digest
from flux2_async.coordination.store import Kept
from flux2_async.emulator import Emulator, Fault, Limit, Plan, Script
from flux2_async.models import Timeouts

pytestmark = pytest.mark.real_time

# Workers are forked by a process that has imported everything; pytest, because it is the main module of their parent.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "aiohttp.web",
        "coordinated_worker",
        "flux2_async.coordination.client",
        "flux2_async.coordination.host.store",
        "flux2_async.coordination.postgres.store",
        "flux2_async.coordination.redis.store",
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

    async def asleep(self) -> None:
        """Wait until it has done what it was about, and waits."""
        before = -1
        while before != (before := self.wake_ups()):  # noqa: ASYNC110  what another process does
            await asyncio.sleep(0.2)

    def wake_ups(self) -> int:
        """How often any of its threads has woken up after waiting."""
        total = 0
        for status in Path(f"/proc/{self.process.pid}/task").glob("*/status"):
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            total += int(fields["voluntary_ctxt_switches"])
        return total


@attrs.define
class Team:
    """Workers on one emulator and one store."""

    emulator: Emulator
    coordination: Coordination
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
            process = processes.Process(target=coordinated_worker.main, args=(self.coordination, options, there))
            process.start()
            there.close()
            hired.append(Worker(process, here))
        self.alive += hired
        for worker in hired:
            await worker.says("ready")
        return hired

    async def let(self, workers: Sequence[Worker], come_to: str) -> None:
        """Give workers their word, and wait until they say that they have come so far."""
        for worker in workers:
            worker.tell()
        for worker in workers:
            await worker.says(come_to)

    async def kill(self, worker: Worker) -> None:
        self.alive.remove(worker)
        await worker.kill()


@asynccontextmanager
async def team(coordination: Coordination, limit: int, period: float, **script: Any) -> AsyncIterator[Team]:
    plans = script.pop("plans", Plan(duration=0.01))
    rules = Script(plans=plans, limit=Limit(limit, period, retry_after="seconds"), render=False, credits=1e9, **script)
    async with Emulator(rules) as emulator:
        made = Team(emulator, coordination)
        try:
            yield made
        finally:
            for worker in tuple(made.alive):
                await made.kill(worker)


async def used_up(emulator: Emulator, limit: int, period: float, since: int = 0) -> None:
    """Wait until as many have been accepted in one period as may be, not counting the first ones."""
    times = emulator.ledger.accepted_at

    def at_once() -> bool:
        return any(last - times[n] < period for n, last in enumerate(times[since + limit - 1 :], since))

    await until(at_once)


@pytest.fixture
def host(tmp_path: Path) -> Coordination:
    return HostCoordination(tmp_path / "state.sqlite")


@pytest.fixture(params=["host", "redis", "postgres"])
def coordination(request: pytest.FixtureRequest) -> Coordination:
    if request.param == "host":
        return request.getfixturevalue("host")  # type: ignore[no-any-return]  # pytest says of no fixture what it is
    server: RedisServer | PostgresServer = request.getfixturevalue(f"{request.param}_server")
    server.empty()
    return server.coordination()


async def test_four_processes_use_up_one_limit(coordination: Coordination) -> None:
    """Four processes, 120 tasks and more, 20 per period: none is refused, a window is used up, and none holds more."""
    period = 0.5
    async with team(coordination, 20, period) as crew:
        for worker in await crew.hire(4, "endless", number=30):
            worker.tell()
        ledger = crew.emulator.ledger
        await until(lambda: len(ledger.accepted) >= 120)
        # For which a busy machine may need some more.
        await used_up(crew.emulator, 20, period)

    assert ledger.refused == 0
    assert ledger.max_in_window(period) == 20


async def test_four_processes_stay_within_one_budget(coordination: Coordination) -> None:
    """Four processes that want 40 pictures make the seven that 100 credits are enough for, also once one is killed."""
    async with team(coordination, 20, 0.5, plans=Plan(duration=1000.0)) as crew:
        workers = await crew.hire(4, "spend", number=10, budget=Budget(100))
        await crew.let(workers, "done")
        assert len(crew.emulator.ledger.accepted) == 7

        await crew.kill(workers[0])
        (late,) = await crew.hire(1, "spend", number=10, budget=Budget(115))
        await crew.let([late], "done")
        assert len(crew.emulator.ledger.accepted) == 8
        assert crew.emulator.ledger.refused == 0


async def test_pause_of_one_process_holds_all(coordination: Coordination) -> None:
    """One process is told to wait for a second: nobody sends before it is over, and all go on then."""
    fault = Fault("createTask", "refuse", after=5, code=429, retry_after=1)
    async with team(coordination, 1, 0.1, faults=[fault]) as crew:
        workers = await crew.hire(4, "submit", number=3)
        await crew.let(workers, "done")
        calls = crew.emulator.ledger.requests

    refused_at = calls[5].time
    assert [call.outcome for call in calls].count("refused") == 1
    assert calls[6].time >= refused_at + 1.0
    assert len(crew.emulator.ledger.accepted) == 12


def groups_of(emulator: Emulator) -> list[str]:
    """Whose pictures were accepted, in order."""
    return [emulator.task(task_id).body["input"]["prompt"] for task_id in emulator.ledger.accepted]


def contains(emulator: Emulator, group: str) -> bool:
    return group in groups_of(emulator)


async def queued(crew: Team, group: str) -> None:
    """Wait until the shared state knows that somebody waits for a group, or has lent to it already."""
    emulator = crew.emulator
    async with session_for(emulator) as flux:
        account = parts_of(flux).credentials.account
    store = crew.coordination.store(account, "onlooker")
    try:
        await store.listen(lambda _: None)
        async with asyncio.timeout(120.0):
            while not contains(emulator, group):
                state = await store.update(f"{FORMAT}:account", lambda text, _: Kept(text, 0.0, text))
                if state and digest(group) in state:
                    return
                await asyncio.sleep(0.01)
    finally:
        await store.aclose()


async def test_one_among_five_hundred(coordination: Coordination) -> None:
    """Who has one request waits for two permits behind 500 in three processes, beside them or elsewhere."""
    # Who does not come for a permit in the time of one is passed over.
    async with team(coordination, 1, 2.5, plans=Plan(duration=1000.0)) as crew:
        await crew.let(await crew.hire(3, "groups", groups={"alice": 170}), "asked")
        for groups in ({"bob": 1}, {"alice": 30, "carol": 1}):
            workers = await crew.hire(1, "groups", groups=groups)
            await until(lambda: len(groups_of(crew.emulator)) >= 3)
            single = list(groups)[-1]
            await crew.let(workers, "asked")
            await queued(crew, single)
            before = len(groups_of(crew.emulator))
            await until(partial(contains, crew.emulator, single))
            assert groups_of(crew.emulator).index(single) - before <= 2
        assert crew.emulator.ledger.refused == 0


async def test_process_whose_turn_it_is_is_killed(coordination: Coordination) -> None:
    """Of three that take turns one is killed: the others go on at once, and nobody waits for the end of a lease."""
    async with team(coordination, 1, 0.8, plans=Plan(duration=1000.0)) as crew:
        workers = [(await crew.hire(1, "groups", groups={group: 50}))[0] for group in ("alice", "bob", "carol")]
        await crew.let(workers, "asked")
        # Two after bob's last one it is bob's turn again, for which he does not live on, however late this notices.
        await until(lambda: groups_of(crew.emulator)[-2:-1] == ["bob"])
        os.kill(workers[1].process.pid or 0, signal.SIGSTOP)
        await until(lambda: groups_of(crew.emulator)[-3:-2] == ["bob"])
        await crew.kill(workers[1])
        before = len(groups_of(crew.emulator))
        # A lease lasts for more than a minute.
        await until(lambda: len(groups_of(crew.emulator)) >= before + 6, 60)

        later = groups_of(crew.emulator)[before:]
        assert set(later[1:]) == {"alice", "carol"}
        assert crew.emulator.ledger.refused == 0


async def test_bound_of_a_group_holds_in_all(coordination: Coordination) -> None:
    """One task of a group runs at a time, whichever process it is in, and each of them gets all of its own through."""
    duration = 0.3
    async with team(coordination, 20, 0.2, plans=Plan(duration=duration)) as crew:
        workers = await crew.hire(2, "groups", groups={"alice": 4}, per_group=1, interval=0.05)
        await crew.let(workers, "asked")
        for worker in workers:
            await worker.says("done")
        times = crew.emulator.ledger.accepted_at

        assert len(times) == 8
        assert all(later - earlier >= duration for earlier, later in itertools.pairwise(times))


async def test_so_many_tasks_run_in_all(coordination: Coordination) -> None:
    """Three run at a time in three processes, also when one is killed whose tasks the service goes on with."""
    duration = 0.4

    def plans(index: int, _: object) -> Plan:
        return Plan(duration=math.inf if index < 3 else duration)

    async with team(coordination, 20, 0.2, plans=plans) as crew:
        workers = await crew.hire(3, "groups", groups={"alice": 6}, max_running=3, interval=0.05)
        await crew.let(workers, "asked")
        await until(lambda: len(crew.emulator.ledger.accepted) >= 3)
        await asyncio.sleep(duration)
        assert len(crew.emulator.ledger.accepted) == 3
        for task_id in tuple(crew.emulator.ledger.accepted):
            crew.emulator.finish(task_id)
        await until(lambda: len(crew.emulator.ledger.accepted) >= 6)
        await crew.kill(workers[0])
        for worker in workers[1:]:
            await worker.says("done")
        times = crew.emulator.ledger.accepted_at

        assert len(times) >= 12
        assert all(later - earlier >= duration for earlier, later in zip(times, times[3:], strict=False))


async def test_tasks_of_a_killed_process_count_no_more(host: Coordination) -> None:
    """The one task that a group may have runs in a process that is killed: the next one is sent in another."""
    async with team(host, 20, 0.2, plans=Plan(duration=1000.0)) as crew:
        doomed, other = await crew.hire(2, "groups", groups={"alice": 1}, per_group=1)
        for number, worker in enumerate((doomed, other)):
            worker.tell()
            await worker.says("asked")
            await until(lambda: crew.emulator.ledger.accepted)
            await asyncio.sleep(0.5 * number)
        assert len(crew.emulator.ledger.accepted) == 1
        await crew.kill(doomed)
        await until(lambda: len(crew.emulator.ledger.accepted) == 2)


async def test_permits_of_a_killed_process_come_back(host: Coordination) -> None:
    """All permits are out in a process whose requests hang; it is killed, and two periods later others have them."""
    hangs = Fault("createTask", "hang", times=5)
    async with team(host, 5, 0.3, faults=[hangs]) as crew:
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


async def test_one_process_after_another_is_killed(coordination: Coordination) -> None:
    """Processes are killed and replaced: the limit is never passed, and those that are left use it up in the end."""
    limit, period = 10, 0.3
    # Where nobody can tell who has died, what the dead had borrowed comes back when their leases have ended.
    options = {"number": 20, "timeouts": Timeouts(connect=1.0, submit=2.0), "slack": 0.5}
    async with team(coordination, limit, period) as crew:
        for worker in await crew.hire(4, "endless", **options):
            worker.tell()
        ledger = crew.emulator.ledger
        await until(lambda: len(ledger.accepted) >= 2 * limit)
        for _ in range(3):
            await crew.kill(crew.alive[0])
            (worker,) = await crew.hire(1, "endless", **options)
            worker.tell()
        await used_up(crew.emulator, limit, period, len(ledger.accepted))

    assert ledger.refused == 0
    assert ledger.max_in_window(period) <= limit


async def test_killed_processes_exceed_none_of_several_limits(coordination: Coordination) -> None:
    """Three processes of which two are killed and replaced are refused by neither limit, and use up the longer one."""
    long, short = RateLimit(12, 1.5), RateLimit(3, 0.2)
    options = {"number": 20, "timeouts": Timeouts(connect=1.0, submit=2.0), "slack": 0.5, "rates": [short, long]}
    async with team(coordination, long.limit, long.period) as crew:
        ledger = crew.emulator.ledger

        def accepted(count: int) -> bool:
            return len(ledger.accepted) >= count

        for worker in await crew.hire(3, "endless", **options):
            worker.tell()
        for turn in range(2):
            await until(partial(accepted, (turn + 1) * long.limit))
            await crew.kill(crew.alive[0])
            (worker,) = await crew.hire(1, "endless", **options)
            worker.tell()
        await used_up(crew.emulator, long.limit, long.period, len(ledger.accepted))

    assert ledger.refused == 0
    assert ledger.max_in_window(short.period) <= short.limit
    assert ledger.max_in_window(long.period) == long.limit


@pytest.mark.parametrize(
    ("coordination", "inside"),
    [("host", True), ("redis", False), ("postgres", False)],
    ids=["host, in on_send", "redis, between on_send and the head", "postgres, between on_send and the head"],
    indirect=["coordination"],
)
async def test_permits_of_a_stopped_process_are_used_once(coordination: Coordination, *, inside: bool) -> None:
    """While a process stands still others get its permits; what it sends when it goes on, it sends by new ones."""
    limit, period = 4, 0.4
    options: dict[str, Any] = {"timeouts": Timeouts(connect=0.4, submit=0.5), "slack": 0.3}
    async with team(coordination, limit, period) as crew:
        (stopped,) = await crew.hire(1, "stop", number=limit, inside=inside, **options)
        (other,) = await crew.hire(1, "endless", number=2 * limit, **options)
        await crew.let([stopped], "stops")
        other.tell()
        ledger = crew.emulator.ledger
        # Nothing of it has left, so what is accepted from here on goes by its permits, whose leases are over.
        await until(lambda: len(ledger.accepted) >= 2 * limit)
        os.kill(stopped.process.pid or 0, signal.SIGCONT)
        await stopped.says("done")

    assert ledger.refused == 0
    assert ledger.max_in_window(period) <= limit


async def test_callback_reaches_the_process_that_waits(host: Coordination) -> None:
    """One process receives the callbacks, another one waits for the pictures, and looks at once."""
    async with team(host, 100, 1.0, plans=Plan(duration=0.05)) as crew:
        port = free_port()
        address = f"http://127.0.0.1:{port}/callback"
        receiver = await crew.hire(1, "receive", port=port, callbacks=address)
        await crew.let(receiver, "done")
        waiter = await crew.hire(1, "await", number=10, callbacks=address)
        await crew.let(waiter, "done")
        assert len(await callback_answers(crew.emulator, 10)) == 10
        ledger = crew.emulator.ledger

    # Without a callback the first look comes after a thousand seconds.
    assert all(ledger.poll_times[call.task_id][0] >= call.time for call in ledger.callbacks)


async def test_idle_processes_sleep(host: Coordination) -> None:
    """A process that has nothing to do does not wake up; one whose submissions wait does so rarely."""
    async with team(host, 1, 3.0) as crew:
        workers = await crew.hire(2, "submit", number=100)
        for worker in workers:
            await worker.asleep()
        begun, idle_before = time.monotonic(), workers[0].wake_ups()
        workers[1].tell()
        await until(lambda: crew.emulator.ledger.accepted)
        await workers[1].asleep()
        told, busy_before = time.monotonic(), workers[1].wake_ups()
        await asyncio.sleep(1.0)
        busy = (workers[1].wake_ups() - busy_before) / (time.monotonic() - told)
        idle = (workers[0].wake_ups() - idle_before) / (time.monotonic() - begun)

    assert idle <= 3
    assert busy <= 20
