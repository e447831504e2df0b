"""Random callers against a random service, in virtual time: the three promises hold whatever they do to each other.

Which seeds are run never changes, but sockets are real, so two runs of one seed may differ in the order of packets.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import attrs
import pytest
from emulated import parts_of, session_for

from flux2_async.emulator import Emulator, Fault, Limit, Plan, Script
from flux2_async.emulator.script import Endpoint, FaultKind, Outcome
from flux2_async.errors import AmbiguousSubmitError, SessionClosedError
from flux2_async.models import RateLimit, TextToImage, Timeouts
from flux2_async.session.session import Flux2Session
from flux2_async.tasks.handle import ImageTask

LIMIT, PERIOD = 3, 3.0
OUTCOMES: tuple[Outcome, ...] = ("success", "success", "fail", "moderated")
KINDS: tuple[FaultKind, ...] = ("refuse", "cut_before", "cut_after", "cut_body", "broken_json", "html", "hang")


@attrs.define
class Run:
    """One run, and what the callers were told of each prompt."""

    random: random.Random
    emulator: Emulator
    told: dict[str, list[object]] = attrs.field(factory=dict)

    def some_seconds(self) -> float:
        return self.random.choice([0.0, 0.001, self.random.uniform(0, 3), self.random.uniform(0, 30)])

    def new_prompt(self) -> str:
        self.told[prompt := f"picture number {len(self.told)}"] = []
        return prompt

    def accepted(self, prompt: str) -> list[str | None]:
        calls = self.emulator.ledger.requests
        return [call.task_id for call in calls if call.task_id and (call.body or {})["input"]["prompt"] == prompt]

    async def misfortunes(self) -> None:
        for _ in range(10):
            await asyncio.sleep(self.random.expovariate(0.2))
            on: Endpoint = self.random.choice(("createTask", "createTask", "recordInfo"))
            kind = self.random.choice(KINDS if on == "createTask" else KINDS[1:])
            code, done = self.random.choice([429, 402, 422, 455]), self.random.random() < 0.5
            self.emulator.inject(Fault(on, kind, code=code, accepted=done, after=self.random.randrange(3)))
            if self.random.random() < 0.1:
                await self.emulator.stop()
                await self.emulator.start()

    async def leave(self, work: Coroutine[Any, Any, object]) -> object:
        """Do something, and perhaps be cancelled: after some turns of the loop, or after a time."""
        task = asyncio.ensure_future(work)
        how = self.random.choice(["stay", "turns", "time"])
        if how == "turns":
            for _ in range(self.random.randrange(50)):
                await asyncio.sleep(0)
        elif how == "time":
            await asyncio.wait([task], timeout=self.some_seconds())
        if how != "stay":
            task.cancel()
        (told,) = await asyncio.gather(task, return_exceptions=True)
        return told

    async def submit(self, flux: Flux2Session, prompt: str, key: str | None) -> None:
        async def on_send(_: str) -> None:
            await asyncio.sleep(self.some_seconds() / 10)
            if self.random.random() < 0.1:
                raise ValueError("the journal is full")

        wait = self.random.choice([None, None, 0.0, 5.0])
        told = await self.leave(
            flux.submit(
                TextToImage(prompt), key=key, max_wait=wait, priority=self.random.choice([0, 1]), on_send=on_send
            )
        )
        self.told[prompt].append(told)
        if isinstance(told, ImageTask):
            await self.leave(told.wait())

    async def iterate(self, flux: Flux2Session) -> None:
        prompts = [self.new_prompt() for _ in range(self.random.randrange(1, 5))]

        async def consume() -> None:
            async with aclosing(flux.as_completed(map(TextToImage, prompts), max_running=2)) as stream:
                async for each in stream:
                    self.told[each.request.prompt].append(each.task or each.error)
                    if self.random.random() < 0.2:
                        return

        await self.leave(consume())

    async def callers(self, flux: Flux2Session) -> None:
        async def later(work: Callable[..., Awaitable[object]], *args: Any) -> None:
            await asyncio.sleep(self.some_seconds())
            try:
                await work(flux, *args)
            except SessionClosedError:
                assert "closed" in repr(flux)

        work = [later(self.iterate) for _ in range(2)]
        for number in range(8):
            key = f"key {number}" if number % 2 else None
            prompt = self.new_prompt()
            work += [later(self.submit, prompt, key) for _ in range(3 if key else 1)]
        await asyncio.gather(*work)

    def check(self, flux: Flux2Session) -> None:
        known = flux.statistics()
        assert known.submitted <= len(self.emulator.ledger.accepted) <= known.submitted + known.ambiguous
        for prompt, told in self.told.items():
            accepted = self.accepted(prompt)
            handles = {each.id for each in told if isinstance(each, ImageTask)}
            unclear = any(isinstance(each, AmbiguousSubmitError) for each in told)
            assert len(accepted) <= 1, f"{prompt} was paid twice"
            assert handles <= set(accepted)
            # Who was cancelled was told nothing.
            surely_not = told and not unclear and all(isinstance(each, Exception) for each in told)
            assert not (accepted and surely_not), f"{prompt} exists, callers were told {told}"
        for call in self.emulator.ledger.requests:
            assert call.fault or call.code != 429, "the limit was tripped"


@pytest.mark.parametrize("seed", range(12))
async def test_the_promises_hold(seed: int) -> None:
    """No prompt is paid twice, callers are told what the service did, no task and no slot is lost, no limit tripped."""
    chance = random.Random(seed)

    def plan(index: int, _: object) -> Plan:
        mine = random.Random(f"{seed} {index}")
        outcome = mine.choice(OUTCOMES)
        return Plan(duration=mine.uniform(0, 20), outcome=outcome, hidden_for=mine.choice([0, 0, 10]), record_lag=1.0)

    script = Script(plans=plan, limit=Limit(LIMIT, PERIOD, chance.choice(["sliding", "fixed", "bucket"])), render=False)
    script.credits, script.latency = 1e6, lambda _: chance.uniform(0, 0.5)
    async with Emulator(script) as emulator:
        run = Run(chance, emulator)
        trouble = asyncio.ensure_future(run.misfortunes())
        options = {"rate_limit": RateLimit(LIMIT, PERIOD), "max_running": 4, "timeouts": Timeouts(submit=5, record=5)}
        async with session_for(emulator, **options) as flux:
            calling = asyncio.ensure_future(run.callers(flux))
            if chance.random() < 0.5:
                await asyncio.sleep(run.some_seconds())
                await flux.aclose(grace=chance.choice([0.0, 5.0]))
                await calling
            else:
                await calling
                await flux.drain(timeout=3600)
                assert parts_of(flux).slots.borrowed == 0
        await trouble
        run.check(flux)
        async with session_for(emulator) as later:
            for task_id in emulator.ledger.accepted:
                task = later.attach(task_id)
                assert await task.wait(timeout=3600)
                assert task.state == ("fail" if emulator.task(task_id).plan.failing else "success")
