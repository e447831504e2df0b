"""The recipes for many processes, with real workers and a real Redis."""

import asyncio
import importlib
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from documents import imported, recipe
from emulated import callback_answers, free_port, until
from postgres_server import PostgresServer
from redis_server import RedisServer

from flux2_async import TextToImage
from flux2_async.emulator import Fault, Ledger, Limit, Plan, Script
from flux2_async.testing import RunningEmulator

pytestmark = pytest.mark.real_time

WORKERS = 2
PERIOD = 1.0


@pytest.fixture
def redis_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with RedisServer() as server:
        monkeypatch.setenv("REDIS_URL", server.url)
        yield server.url


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a recipe lies as `app.py`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@asynccontextmanager
async def running(*words: str, folder: Path) -> AsyncIterator[int]:
    """A command as a user starts it, stopped by the signal that a service manager sends."""
    with (folder / "log.txt").open("ab") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", *words, cwd=folder, stdout=log, stderr=log)
        try:
            yield process.pid
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.wait()


def write(recipe: Path, folder: Path) -> None:
    shutil.copy(recipe, folder / "app.py")


# --- FastAPI with several workers


@pytest.fixture
async def workers(
    flux2_emulator: RunningEmulator, redis_url: str, program: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("PUBLIC_URL", url)
    monkeypatch.setenv("APIKLEY_CALLBACK_SECRET", "one for all workers")
    write(recipe("workers"), program)
    words = (
        "uvicorn",
        "app:make_app",
        "--factory",
        "--workers",
        str(WORKERS),
        "--port",
        str(port),
        "--log-level",
        "warning",
        # Whom a test stops is not to be replaced.
        "--timeout-worker-healthcheck",
        "600",
    )
    async with running(*words, folder=program):
        await until_served(url)
        yield url


async def until_served(url: str) -> None:
    async with aiohttp.ClientSession() as http:
        for _ in range(600):
            try:
                async with http.get(f"{url}/docs") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
    raise AssertionError("uvicorn does not answer")


async def order(url: str, number: int) -> dict[str, Any]:
    # A connection of its own: the kernel gives each connection to some worker.
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/orders/{number}", params={"prompt": f"kettle {number}"}) as response,
    ):
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def order_at_another(url: str, number: int, worker: int, emulator: RunningEmulator) -> dict[str, Any]:
    """Order while that worker takes no connection: which one does is otherwise the kernel's to say."""
    before = len(emulator.ledger.accepted)
    os.kill(worker, signal.SIGSTOP)
    try:
        job = asyncio.create_task(order(url, number))
        # A callback may come over a connection that it has taken earlier.
        await until(lambda: job.done() or len(emulator.ledger.accepted) > before)
    finally:
        os.kill(worker, signal.SIGCONT)
    answer = await job
    assert answer["worker"] != worker
    return answer


def test_workers_and_queue_are_entered_twice(
    flux2_emulator: RunningEmulator, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was closed is opened again, in another event loop, and the keys of before stand for the same."""
    monkeypatch.setenv("PUBLIC_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("APIKLEY_CALLBACK_SECRET", "one for all workers")
    app = imported(recipe("workers"))["make_app"]()
    queue = imported(recipe("taskiq"))

    async def use() -> str:
        async with app.router.lifespan_context(app):
            task = await app.state.flux.submit(TextToImage("a red kettle"), key="order-1")
            await task.result(30)
        await queue["opened"](None)
        again = await queue["flux"].submit(TextToImage("a red kettle"), key="order-1")
        await queue["closed"](None)
        assert again.id == task.id
        return str(task.id)

    assert len({asyncio.run(use()) for _ in range(2)}) == 1
    assert len(flux2_emulator.ledger.accepted) == 1


@pytest.mark.flux2_script(Script(plans=Plan(duration=1.0), render=False, limit=Limit(20, 10.0)))
async def test_callbacks_and_clicks_reach_whichever_worker(workers: str, flux2_emulator: RunningEmulator) -> None:
    """A picture is brought by its callback alone, and repeated clicks on an order are paid once, at any worker."""
    orders = []
    for number in range(20):
        # One after the other, because one worker takes all connections that come at once.
        orders.append(asyncio.create_task(order(workers, number)))
        await until(lambda: len(flux2_emulator.ledger.accepted) == len(orders))
    answers = list(await asyncio.gather(*orders))
    if len({answer["worker"] for answer in answers}) == 1:
        answers.append(await order_at_another(workers, len(answers), answers[0]["worker"], flux2_emulator))

    ledger = flux2_emulator.ledger
    assert sorted(answer["id"] for answer in answers) == sorted(ledger.accepted)
    assert await callback_answers(flux2_emulator, len(answers)) == [200] * len(answers)
    # The look that confirms a callback, at once; on a busy machine a usual one, which comes late, may be there besides.
    ledger = flux2_emulator.ledger
    late = sorted(ledger.poll_times[call.task_id][0] - call.time for call in ledger.callbacks)
    assert late[0] >= 0
    assert late[len(late) // 2] < 1
    assert [call.outcome for call in ledger.requests] == ["accepted"] * len(answers)
    again = list(await asyncio.gather(*(order(workers, 7) for _ in range(10))))
    if len({answer["worker"] for answer in again}) < WORKERS:
        again.append(await order_at_another(workers, 7, again[0]["worker"], flux2_emulator))
    assert {answer["id"] for answer in again} == {answers[7]["id"]}
    assert flux2_emulator.ledger.accepted == ledger.accepted


# --- taskiq


MESSAGES = 18


@pytest.mark.flux2_script(Script(plans=Plan(duration=0.5), render=False, limit=Limit(20, 10.0)))
async def test_a_killed_worker_costs_no_picture_and_no_second_payment(
    flux2_emulator: RunningEmulator, redis_url: str, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two worker processes share the queue and the limit; one dies in the middle, the other one finishes all."""
    monkeypatch.setenv("IDLE_MS", "3000")
    write(recipe("taskiq"), program)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    words = ("taskiq", "worker", "app:broker", "--workers", "1", "--max-async-tasks", "8")
    monkeypatch.syspath_prepend(program)
    monkeypatch.delitem(sys.modules, "app", raising=False)
    app = importlib.import_module("app")
    broker, picture = app.broker, app.picture
    await broker.startup()
    try:
        async with running(*words, folder=program), running(*words, folder=program) as victim:
            jobs = [await picture.kiq(f"order-{number}", f"kettle {number}") for number in range(MESSAGES)]
            # A look comes seconds after the POST, and who dies during a POST leaves its key in doubt for over a minute.
            await until(lambda: len(flux2_emulator.ledger.accepted) >= 8 and flux2_emulator.ledger.polls)
            for child in children(victim):
                os.kill(child, signal.SIGKILL)
            os.kill(victim, signal.SIGKILL)
            results = [await finished(job, app.nudge) for job in jobs]
    finally:
        await broker.shutdown()

    ledger = flux2_emulator.ledger
    prompts = [json.dumps(flux2_emulator.task(task_id).body["input"]["prompt"]) for task_id in ledger.accepted]
    assert sorted(prompts) == sorted(set(prompts))
    unknown = [result for result in results if result.is_err]
    assert all("AmbiguousSubmitError" in repr(result.error) for result in unknown)
    files = {Path(path).name for result in results if not result.is_err for path in result.return_value}
    assert len(files) == MESSAGES - len(unknown)
    assert files == {path.name for path in (program / "pictures").iterdir() if path.name in files}
    assert [call.outcome for call in ledger.requests] == ["accepted"] * len(ledger.accepted)


async def finished(job: Any, nudge: Any) -> Any:
    """Wait for a job, and play the scheduler, which sends a message every minute, meanwhile."""
    while not await job.is_ready():
        await nudge.kiq()
        await asyncio.sleep(0.5)
    return await job.get_result()


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in found.split()]


# --- Celery


PRODUCER = """
import json

from app import picture

orders = [picture.delay(f"order-{number}", f"kettle {number}") for number in range(8)]
print(json.dumps([order.get(timeout=120) for order in orders]))
"""
IDLE_S = 3.0


@pytest.mark.flux2_script(Script(plans=Plan(duration=2.0), render=False, limit=Limit(20, 10.0)))
async def test_a_celery_worker_that_is_killed_while_it_waits_pays_nothing_twice(
    flux2_emulator: RunningEmulator, redis_url: str, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes of a worker die by -9 between payment and picture; another one finishes each order, paid once."""
    monkeypatch.setenv("IDLE_S", str(IDLE_S))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    write(recipe("celery"), program)
    words = ("celery", "-A", "app", "worker", "--concurrency", "4", "--without-gossip", "--without-mingle")
    # In a process of its own: Celery leaves connections to be collected.
    producer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PRODUCER), cwd=program, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with running(*words, "-n", "victim", folder=program) as victim:
            # Who dies during a POST leaves its key in doubt; looks come seconds after all four that can wait are paid.
            await until(lambda: len(flux2_emulator.ledger.accepted) >= 4)
            await asyncio.sleep(0.5)
            for pid in (*children(victim), victim):
                os.kill(pid, signal.SIGKILL)
        paid = {*flux2_emulator.ledger.accepted}
        # A worker looks for messages that nobody finished when it starts, and then each 100 s.
        await asyncio.sleep(IDLE_S + 0.5)
        async with running(*words, "-n", "other", folder=program):
            printed, _ = await producer.communicate()
    finally:
        with suppress(ProcessLookupError):
            producer.kill()
        await producer.wait()

    files = json.loads(printed)
    ledger = flux2_emulator.ledger
    prompts = sorted(flux2_emulator.task(task_id).body["input"]["prompt"] for task_id in ledger.accepted)
    assert prompts == [f"kettle {number}" for number in range(8)]
    assert 4 <= len(paid) < 8
    assert paid < {*ledger.accepted}
    assert {Path(path).name for [path] in files} == {f"{task_id}-1.png" for task_id in ledger.accepted}
    assert [call.outcome for call in ledger.requests] == ["accepted"] * 8


# --- DBOS


@pytest.mark.flux2_script(Script(plans=Plan(duration=3.0), render=False, limit=Limit(20, 10.0)))
async def test_workflows_of_dbos_that_are_killed_while_they_wait_pay_nothing_twice(
    flux2_emulator: RunningEmulator, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies by -9 when all six orders are paid; started again it finishes each of them, for nothing more."""
    write(recipe("dbos"), program)
    orders = [f"order-{number}" for number in range(6)]
    with PostgresServer() as server:
        monkeypatch.setenv("DATABASE_URL", server.url)
        async with running("app", *orders, folder=program) as pid:
            await until(lambda: len(flux2_emulator.ledger.accepted) == len(orders))
            # Who dies before the answer has come leaves its key in doubt.
            await asyncio.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
        assert not (program / "pictures").exists()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "app.py", *orders), cwd=program, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()

    ledger = flux2_emulator.ledger
    assert process.returncode == 0
    assert sorted(printed.decode().split()) == sorted(f"pictures/{task_id}-1.png" for task_id in ledger.accepted)
    assert [call.outcome for call in ledger.requests] == ["accepted"] * len(orders)


# --- A backend whose jobs survive


JOBS = 22


@asynccontextmanager
async def jobs_on(port: int, folder: Path) -> AsyncIterator[int]:
    """The recipe `jobs` as a server, killed at the end by a signal that nobody can hear."""
    async with running("uvicorn", "app:app", "--port", str(port), "--log-level", "warning", folder=folder) as pid:
        await until_served(f"http://127.0.0.1:{port}")
        yield pid
        os.kill(pid, signal.SIGKILL)


async def job(port: int, number: int, method: str = "GET") -> dict[str, Any]:
    url, params = f"http://127.0.0.1:{port}/jobs/job-{number}", {"prompt": f"kettle {number}"}
    async with aiohttp.ClientSession() as http, http.request(method, url, params=params) as response:
        assert response.status == (200 if method == "GET" else 202), await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def all_ended(port: int, count: int = JOBS) -> list[dict[str, Any]]:
    jobs = []
    for number in range(count):
        while not ((each := await job(port, number))["picture"] or each["error"]):  # noqa: ASYNC110  what another process says
            await asyncio.sleep(0.2)
        jobs.append(each)
    return jobs


def called_back(ledger: Ledger, task_id: str) -> bool:
    return any(call.task_id == task_id and call.status == 200 for call in ledger.callbacks)


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
@pytest.mark.flux2_script(
    Script(
        plans=lambda index, _: Plan(duration=1.0 if index % 2 else 14.0),
        render=False,
        limit=Limit(20, 10.0),
        callback_retries=(1.0,) * 120,
    )
)
async def test_jobs_survive_being_killed_at_whatever_moment(
    database: str, flux2_emulator: RunningEmulator, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while jobs wait for their turn, while one is sent, and when some are saved: each is paid and made once."""
    port = free_port()
    monkeypatch.setenv("PUBLIC_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("APIKLEY_CALLBACK_SECRET", "the same after a restart")
    write(recipe("jobs"), program)
    with ExitStack() as stack:
        if database == "postgres":
            url = stack.enter_context(PostgresServer()).url
            monkeypatch.setenv("DATABASE_URL", url.replace("postgresql:", "postgresql+psycopg:"))
        else:
            # Only on one host the others know at once that its sender has died.
            flux2_emulator.inject(Fault("createTask", "hang", task=7, accepted=True))
        async with jobs_on(port, program):
            taken = [await job(port, number, "PUT") for number in (*range(JOBS), 0)]
            # The one whose answer never comes is told by its callback, which nobody waits for.
            await until(lambda: len(flux2_emulator.ledger.accepted) >= 20)
            await until(lambda: called_back(flux2_emulator.ledger, flux2_emulator.ledger.accepted[7]))
            await asyncio.sleep(0.5)
        assert [each["id"] for each in taken] == [f"job-{number}" for number in (*range(JOBS), 0)]
        async with jobs_on(port, program):
            # Who dies during a POST leaves its key in doubt.
            await until(lambda: len(flux2_emulator.ledger.accepted) == JOBS)
            await asyncio.sleep(0.5)
            saved = [each for number in range(JOBS) if (each := await job(port, number))["picture"]]
        async with jobs_on(port, program):
            jobs = await all_ended(port)

    ledger = flux2_emulator.ledger
    prompts = {task_id: flux2_emulator.task(task_id).body["input"]["prompt"] for task_id in ledger.accepted}
    assert 0 < len(saved) < JOBS
    assert {each["task"]: each["prompt"] for each in jobs} == prompts
    assert sorted(prompts.values()) == sorted(f"kettle {number}" for number in range(JOBS))
    assert [call.outcome for call in ledger.requests] == ["accepted"] * JOBS
    assert [each["error"] for each in jobs] == [None] * JOBS
    # Who is killed while a file comes leaves a part of it.
    saved_files = {path for path in (program / "pictures").iterdir() if path.suffix != ".part"}
    assert {program / each["picture"] for each in jobs} == saved_files


@pytest.mark.flux2_script(Script(plans=lambda *_: Plan(duration=1.0), render=False))
async def test_a_job_whose_end_cannot_be_written_down_is_gone_on_with(
    flux2_emulator: RunningEmulator, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the folder or the database refuses is no end of a job: tried again without a restart, and paid once.

    No job is taken without a prompt.
    """
    port = free_port()
    monkeypatch.setenv("PUBLIC_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("APIKLEY_CALLBACK_SECRET", "the same after a restart")
    often = recipe("jobs").read_text().replace("asyncio.sleep(60)", "asyncio.sleep(0.5)")
    (program / "app.py").write_text(often)
    (program / "pictures").write_text("in the way")
    async with jobs_on(port, program):
        async with aiohttp.ClientSession() as http:
            async with http.put(f"http://127.0.0.1:{port}/jobs/job-9", params={"prompt": ""}) as response:
                assert (response.status, "prompt" in await response.text()) == (422, True)
        await job(port, 0, "PUT")
        await until(lambda: bool(flux2_emulator.ledger.accepted))
        await asyncio.sleep(3)
        assert (await job(port, 0))["error"] is None
        (program / "pictures").unlink()
        await all_ended(port, 1)
        await job(port, 1, "PUT")
        await until(lambda: len(flux2_emulator.ledger.accepted) == 2)
        with closing(sqlite3.connect(program / "jobs.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            # Until it has ended, and writing that down has failed: SQLite waits for five seconds.
            await asyncio.sleep(8)
            other.execute("ROLLBACK")
        jobs = await all_ended(port, 2)
    assert all((program / each["picture"]).is_file() for each in jobs)
    assert [each["error"] for each in jobs] == [None, None]
    assert len(flux2_emulator.ledger.requests) == 2
