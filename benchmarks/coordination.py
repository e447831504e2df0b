"""Several processes, one account: the limit, a 429, workers that die, callbacks for each other, and what waiting costs.

The service runs in this process, the workers are processes of their own.
"""

import asyncio
import multiprocessing
import os
import random
import shutil
import signal
import socket
import statistics
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.table import Table
from flux2_async import Callbacks, Flux2Session, Polling, RateLimit, TextToImage, Timeouts
from flux2_async.coordination import Coordination, HostCoordination, PostgresCoordination, RedisCoordination
from flux2_async.emulator import Emulator, Fault, Limit, Plan, Script
from flux2_async.webhooks import Callback

LIMIT = 20
PROCESSES = 4
CROWD = 50


def coordination_of(where: str) -> Coordination:
    """Make what an address stands for: a Postgres, a Redis, or the path of a file on this host."""
    if where.startswith("postgresql://"):
        return PostgresCoordination(where)
    if "://" in where:
        return RedisCoordination(where)
    return HostCoordination(where)


@asynccontextmanager
async def redis_server() -> AsyncIterator[tuple[str, int]]:
    """Run a Redis of our own on a free port; give its address and its process."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = ("--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "")
        async with running("redis-server", *options) as process:
            await asyncio.sleep(0.5)
            yield f"redis://127.0.0.1:{port}", process


@asynccontextmanager
async def postgres_server() -> AsyncIterator[tuple[str, int]]:
    """Run a Postgres of our own, as it is configured when it is new but for its port; give address and process."""
    port = free_port()
    # Where Debian has it; on other systems it is on the path.
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path())  # noqa: ASYNC240  nothing else runs yet
    with tempfile.TemporaryDirectory() as folder:
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
        making = ("-D", f"{folder}/data", "-U", "flux2", "-A", "trust")
        async with running(str(binaries / "initdb"), *making, until_it_ends=True):
            pass
        options = ("-D", f"{folder}/data", "-k", folder, "-p", str(port), "-c", "listen_addresses=127.0.0.1")
        async with running(str(binaries / "postgres"), *options) as process:
            await asyncio.sleep(3.0)
            yield f"postgresql://flux2@127.0.0.1:{port}/postgres", process


@asynccontextmanager
async def running(program: str, *options: str, until_it_ends: bool = False) -> AsyncIterator[int]:
    """Run a server, by a user that is not root where it asks for that; give its process."""
    quiet = asyncio.subprocess.DEVNULL
    is_postgres = Path(program).name in ("initdb", "postgres")
    user: dict[str, Any] = {"user": "postgres", "group": "postgres"} if is_postgres and os.getuid() == 0 else {}
    process = await asyncio.create_subprocess_exec(program, *options, stdout=quiet, stderr=quiet, cwd="/", **user)
    try:
        if until_it_ends:
            await process.wait()
        yield process.pid
    finally:
        if process.returncode is None:
            # At once; a Postgres ends those that it has started.
            process.send_signal(signal.SIGQUIT if is_postgres else signal.SIGKILL)
            await process.wait()


def free_port() -> int:
    """Give a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def work(base_url: str, api_key: str, where: str, tasks: int, period: float, **options: Any) -> None:
    """Be one worker: submit so many at once."""
    asyncio.run(submit_all(base_url, api_key, where, tasks, period, **options))


async def submit_all(
    base_url: str, api_key: str, where: str, tasks: int, period: float, *, post: float, also: Sequence[RateLimit]
) -> None:
    """Submit so many at once within these limits as well, each for at most `post` s, and wait for their pictures."""
    async with Flux2Session(
        api_key,
        base_url=base_url,
        rate_limit=[RateLimit(LIMIT, period), *also],
        max_running=None,
        coordination=coordination_of(where),
        polling=Polling(interval=period / 2),
        timeouts=Timeouts(submit=post, connect=post / 2),
    ) as flux:
        await asyncio.gather(*(flux.submit(TextToImage(f"number {number}")) for number in range(tasks)))
        await flux.drain()


# A fresh interpreter takes longer to start than a worker may live in one of the cases.
processes = multiprocessing.get_context("forkserver")


def start_worker(
    emulator: Emulator, where: str, tasks: int, period: float, *, post: float = 2.0, also: Sequence[RateLimit] = ()
) -> BaseProcess:
    """Start a worker process."""
    arguments = (emulator.base_url, emulator.api_key, where, tasks, period)
    worker = processes.Process(target=work, args=arguments, kwargs={"post": post, "also": also})
    worker.start()
    return worker


async def ended(worker: BaseProcess) -> None:
    """Wait for a worker's end."""
    await asyncio.to_thread(worker.join)


def script_for(period: float, **options: Any) -> Script:
    """Give a service with a limit of 20 per period, whose pictures are drawn by nobody."""
    return Script(plans=Plan(duration=0.1), limit=Limit(LIMIT, period), credits=1e6, render=False, **options)


async def burst(where: str, period: float, count: int, server: int | None, tasks: int = 200) -> dict[str, float]:
    """Let processes submit together; give refusals, the fullest window, the time over the optimum, a server's CPU."""
    async with Emulator(script_for(period)) as emulator:
        used = cpu_of(server) if server else 0.0
        # Many processes that start at once keep the service from answering for seconds.
        post = 2.0 if count == PROCESSES else 20.0
        workers = [start_worker(emulator, where, tasks // count, period, post=post) for _ in range(count)]
        await asyncio.gather(*(ended(worker) for worker in workers))
        times = emulator.ledger.accepted_at
        found = {
            "accepted": len(times),
            "refused": emulator.ledger.refused,
            "window": emulator.ledger.max_in_window(period),
            "ratio": (times[-1] - times[0]) / (period * (tasks / LIMIT - 1)),
        }
        return found | ({"server's CPU ms per task": (cpu_of(server) - used) * 1e3 / tasks} if server else {})


async def refusal(where: str, period: float) -> dict[str, float]:
    """Let one process meet a 429 with Retry-After; give how many came before it was over, and when the last one did."""
    pause = 2 * period
    fault = Fault("createTask", "refuse", retry_after=pause, after=30)
    async with Emulator(script_for(period, faults=[fault])) as emulator:
        workers = [start_worker(emulator, where, 20, period) for _ in range(PROCESSES)]
        await asyncio.gather(*(ended(worker) for worker in workers))
        calls = emulator.ledger.requests
        refused = next(call.time for call in calls if call.outcome == "refused")
        after = [call.time - refused for call in calls if 0 < call.time - refused < pause]
        # What had left when the answer came cannot be called back.
        return {"accepted": len(emulator.ledger.accepted), "after": len(after), "last": max(after, default=0.0)}


async def kills(where: str, period: float, seconds: float, *also: RateLimit) -> dict[str, float]:
    """Kill a worker of four every second, start another; give refusals, the fullest windows and the throughput."""
    async with Emulator(script_for(period)) as emulator:
        loop = asyncio.get_running_loop()
        workers = [start_worker(emulator, where, 500, period, also=also) for _ in range(PROCESSES)]
        end = loop.time() + seconds
        while loop.time() < end:
            await asyncio.sleep(1.0)
            dying = workers.pop(random.randrange(PROCESSES))  # noqa: S311  any will do
            dying.kill()
            await ended(dying)
            workers.append(start_worker(emulator, where, 500, period, also=also))
        for worker in workers:
            worker.kill()
            await ended(worker)
        times = emulator.ledger.accepted_at
        return {
            "refused": emulator.ledger.refused,
            "window": emulator.ledger.max_in_window(period),
            "throughput": len(times) / (seconds / period * LIMIT),
            **{f"window of {rate.period:g} s": emulator.ledger.max_in_window(rate.period) for rate in also},
        }


async def fan_out(where: str, count: int = 200) -> tuple[float, float]:
    """Deliver callbacks to one session for tasks of another; give median and 99th percentile of the seconds."""
    callbacks = Callbacks("https://app.example/", secret="the same in all")  # noqa: S106  of a measurement
    async with Emulator(Script(plans=Plan(duration=0.0), credits=1e6, render=False)) as emulator:
        options: dict[str, Any] = {"base_url": emulator.base_url, "rate_limit": None, "callbacks": callbacks}
        options |= {"polling": Polling(interval=1000.0), "max_running": None}
        async with (
            Flux2Session(emulator.api_key, coordination=coordination_of(where), **options) as one,
            Flux2Session(emulator.api_key, coordination=coordination_of(where), **options) as other,
        ):
            await asyncio.sleep(0.2)
            samples = []
            for number in range(count):
                task = await one.submit(TextToImage("a picture"), ref=f"r{number}")
                begun = asyncio.get_running_loop().time()
                delivering = asyncio.create_task(other.deliver(f"r{number}", Callback(task.id, None)))
                await task.wait()
                samples.append(asyncio.get_running_loop().time() - begun)
                await delivering
    return statistics.median(samples), statistics.quantiles(samples, n=100)[98]


async def waiting(where: str, period: float, seconds: float) -> dict[str, float]:
    """Let 2,000 submissions wait in four processes; give how many were sent, and CPU seconds per second."""
    async with Emulator(script_for(period)) as emulator:
        workers = [start_worker(emulator, where, 500, period) for _ in range(PROCESSES)]
        await asyncio.sleep(5.0)
        before, begun = [cpu_of(worker.pid or 0) for worker in workers], len(emulator.ledger.accepted)
        await asyncio.sleep(seconds)
        cpu = [(cpu_of(worker.pid or 0) - used) / seconds for worker, used in zip(workers, before, strict=True)]
        sent = len(emulator.ledger.accepted) - begun
        for worker in workers:
            worker.kill()
            await ended(worker)
        return {"sent": sent, "most CPU s/s of a process": max(cpu)}


def cpu_of(pid: int) -> float:
    """Give the CPU seconds that a process has used, and all that it has started."""
    process = Path(f"/proc/{pid}")
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    children = (process / "task" / str(pid) / "children").read_text().split()
    # Its own, and of those that have ended.
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_of(int(child)) for child in children)


def measure(period: float = 10.0) -> Iterator[Table]:
    """Measure all coordinations; give a table each.

    Args:
        period: Seconds of the limit.
    """
    stores = (f"flux2_async.coordination.{kind}.store" for kind in ("host", "postgres", "redis"))
    processes.set_forkserver_preload([__name__, *stores])
    yield asyncio.run(_measure_server("redis", redis_server(), period))
    yield asyncio.run(_measure_server("postgres", postgres_server(), period))
    with tempfile.TemporaryDirectory() as folder:
        yield asyncio.run(_measure("host", f"{folder}/shared.sqlite3", period))


async def _measure_server(name: str, server: AbstractAsyncContextManager[tuple[str, int]], period: float) -> Table:
    async with server as (url, process):
        return await _measure(name, url, period, process)


async def _measure(name: str, where: str, period: float, server: int | None = None) -> Table:
    median, worst = await fan_out(where)
    return Table(
        title=f"{name}: {PROCESSES} processes, {LIMIT} per {period:g} s",
        columns=("case", "result"),
        rows=[
            ("200 tasks", shown(await burst(where, period, PROCESSES, server))),
            (f"200 tasks, {CROWD} processes", shown(await burst(where, period, CROWD, server))),
            ("429 with Retry-After met by one", shown(await refusal(where, period))),
            ("a worker killed every second, 60 s", shown(await kills(where, period, 60.0))),
            (
                f"the same, also {LIMIT // 4} per {period / 5:g} s",
                shown(await kills(where, period, 60.0, RateLimit(LIMIT // 4, period / 5))),
            ),
            ("callback passed on", f"median {median * 1e3:.1f} ms, 99th percentile {worst * 1e3:.1f} ms"),
            ("2,000 waiting, 30 s", shown(await waiting(where, period, 30.0))),
        ],
    )


def shown(figures: dict[str, float]) -> str:
    """Give figures as text."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
