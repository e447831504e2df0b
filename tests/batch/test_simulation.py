"""Batches in random misfortune, by seed: runs of one journal, each ended somehow, judged by the ledger."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
from batches import lines, prompts, receiving, requests
from emulated import free_port, session_for

from flux2_async.batch import Batch, Journal, Outcome, State, document, run_batch
from flux2_async.batch.journal.rows import Row
from flux2_async.emulator import Emulator, Fault, Limit, Plan, Script
from flux2_async.emulator.files import tiny_png
from flux2_async.errors import ApiError, SessionClosedError
from flux2_async.models import Polling, RateLimit, Timeouts
from flux2_async.session.session import Flux2Session

NUMBER = 8
PRICE = 14.0
ENDS = ("none", "stop", "now", "now", "aclose", "cancel", "cancel", "break", "close", "close")
FAULTS = (
    *(Fault("createTask", kind, after=after) for kind in ("cut_after", "cut_before", "hang") for after in (0, 1, 3, 5)),
    *(Fault("createTask", "refuse", code=code, after=after) for code in (429, 455, 422) for after in (0, 2, 6)),
    *(Fault("recordInfo", kind, times=3) for kind in ("refuse", "html", "cut_body")),
    *(Fault("file", kind, after=after) for kind in ("html", "cut_body", "hang") for after in (0, 2)),
)


class Counted(Journal):
    """A journal in which something happens when it is written to for the n-th time."""

    left = -1
    moment: Callable[[], object] | None = None

    def change(self, row: Row, **values: Any) -> "asyncio.Future[Any]":
        self.count()
        return super().change(row, **values)

    def count(self) -> None:
        self.left -= 1
        if self.left == 0 and self.moment is not None:
            asyncio.get_running_loop().call_soon(self.moment)


class World:
    """What outlives the runs."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.luck = random.Random(seed)
        self.folder = folder
        self.port = free_port() if self.luck.random() < 0.5 else None
        self.limit = self.luck.choice([Limit(3, 5.0, "bucket"), Limit(20, 10.0)])
        self.emulator = Emulator(
            Script(
                plans=[self.plan() for _ in range(2 * NUMBER)],
                limit=self.limit,
                faults=self.luck.sample(FAULTS, self.luck.randint(0, 5)),
                latency=self.luck.choice([0.0, 0.5]),
                render=False,
            )
        )

    def plan(self) -> Plan:
        luck = self.luck
        return Plan(
            duration=luck.choice([0.5, 3.0, 20.0]),
            outcome=luck.choice(["success", "success", "success", "fail"]),
            hidden_for=luck.choice([0.0, 0.0, 0.0, 1.0, 120.0]),
            callback=luck.choice(["once", "once", "early", "lost"]),
            record_lag=luck.choice([0.0, 0.0, 2.0]),
        )

    async def session(self, stack: AsyncExitStack) -> Flux2Session:
        rate = RateLimit(self.limit.limit, self.limit.period)
        options: dict[str, Any] = {"rate_limit": rate, "timeouts": Timeouts(submit=10.0, download=10.0)}
        options["polling"] = Polling(interval=10.0)
        if self.port is not None:
            return await stack.enter_async_context(receiving(self.emulator, self.port, **options))
        return await stack.enter_async_context(session_for(self.emulator, **options))

    async def run(self, end: str, **options: Any) -> list[Outcome]:
        async with AsyncExitStack() as stack:
            flux = await self.session(stack)
            journal = await stack.enter_async_context(Counted(self.folder / "run.db"))
            items, folder = requests(NUMBER), self.folder / "results"
            batch = run_batch(flux, items, journal=journal, directory=folder, recover_timeout=20.0, **options)
            outcomes: list[Outcome] = []
            leaving: list[bool] = []
            reader = asyncio.create_task(read(batch, outcomes, leaving))
            acts: dict[str, Callable[[], object]] = {
                "stop": batch.stop,
                "now": lambda: batch.stop(now=True),
                "aclose": lambda: asyncio.create_task(batch.aclose()),
                "cancel": reader.cancel,
                "break": lambda: leaving.append(True),
                "close": lambda: asyncio.create_task(flux.aclose(0.0)),
            }
            journal.moment, journal.left = acts.get(end), self.luck.randint(1, 4 * NUMBER)
            async with asyncio.timeout(3600.0):
                await asyncio.wait([reader])
            if not reader.cancelled() and (error := reader.exception()):
                assert isinstance(error, SessionClosedError if end == "close" else ApiError)
            await self.check(batch, outcomes, {outcome.id: outcome async for outcome in journal.outcomes()})
        return outcomes

    async def check(self, batch: Batch, outcomes: list[Outcome], kept: dict[str, Outcome]) -> None:
        """What everybody says of this run agrees."""
        assert len({outcome.id for outcome in outcomes}) == len(outcomes)
        assert [kept[outcome.id] for outcome in outcomes] == outcomes
        assert lines(self.folder) == [json.loads(json.dumps(document(outcome))) for outcome in kept.values()]
        progress, states = batch.progress, Counter(outcome.state for outcome in kept.values())
        assert progress is not None
        told = (progress.queued, progress.sending, progress.running, progress.done, progress.failed, progress.unknown)
        assert told == tuple(states[state] for state in State)
        assert progress.spent == sum(outcome.credits or 0.0 for outcome in kept.values())
        unsure = states[State.SUBMITTED] + states[State.SUBMITTING] + states[State.UNKNOWN]
        assert progress.reserved == unsure * PRICE
        calls = self.emulator.ledger.requests
        assert [call for call in calls if call.code == 429 and call.fault is None] == []
        accepted = prompts(call for call in calls if call.outcome == "accepted")
        assert len(set(accepted)) == len(accepted)
        for outcome in kept.values():
            for file in outcome.files:
                assert (self.folder / "results" / file).read_bytes() == tiny_png(f"{outcome.task_id}/0")


async def read(batch: Batch, outcomes: list[Outcome], leaving: list[bool]) -> None:
    async with aclosing(aiter(batch)) as stream:
        async for outcome in stream:
            outcomes.append(outcome)
            if leaving:
                break


@pytest.mark.parametrize("seed", range(16))
async def test_nothing_is_lost_or_paid_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """In every run all accounts agree, and in the end each request is done and saved, failed, or unknown."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + loop.time())
    world = World(seed, tmp_path)
    async with world.emulator as emulator:
        for _ in range(world.luck.randint(1, 3)):
            await world.run(world.luck.choice(ENDS), max_running=world.luck.choice([None, 2]))
            await asyncio.sleep(world.luck.choice([0.0, 1.0, 200.0]))
        emulator.clear_faults()
        # What was not visible for too long is looked at again.
        await world.run("none")
        await asyncio.sleep(200.0)
        await world.run("none")
    mine = lines(tmp_path)
    assert {line["state"] for line in mine} <= {"done", "failed", "unknown"}
    assert [line["download"] for line in mine if line["state"] == "done"] == ["saved"] * len(
        [line for line in mine if line["state"] == "done"]
    )
    assert [line for line in mine if line["state"] == "unknown" and line["task_id"]] == []
    lost = {*emulator.ledger.accepted} - {line["task_id"] for line in mine}
    assert len(lost) <= len([line for line in mine if line["state"] == "unknown"])
