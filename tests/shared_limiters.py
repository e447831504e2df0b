"""Limiters of several processes that share an account in memory."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from memory_coordination import Memory
from rate_servers import Wire

from flux2_async.coordination.contract import Terms
from flux2_async.coordination.coordinator import Coordinator
from flux2_async.coordination.shared_limiter import SharedLimiter
from flux2_async.models import RateLimit

PERIOD = 10.0
TERMS = Terms(RateLimit(20, PERIOD), 70.0)


@asynccontextmanager
async def limiters(memory: Memory, count: int = 1, terms: Terms = TERMS) -> AsyncIterator[list[SharedLimiter]]:
    """Open limiters of so many processes."""
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(count):
            made = SharedLimiter(
                Coordinator(memory, "account", terms), terms, may_degrade=memory.on_failure == "degrade"
            )
            await made.open()
            stack.push_async_callback(made.aclose)
            opened.append(made)
        yield opened


async def run_all(wire: Wire, shares: Sequence[tuple[SharedLimiter, int]]) -> float:
    """Send so many requests by each; gives the seconds until the last one was answered."""
    begun = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        for limiter, count in shares:
            for _ in range(count):
                group.create_task(wire.submit(limiter))
    return wire.last_at - begun


async def trouble(memory: Memory, jobs: Sequence[asyncio.Task[object]], rng: random.Random, longest: float) -> None:
    """Until all has ended, lose the state's answers, the state itself, or be without it for up to so many seconds."""
    while not all(job.done() for job in jobs):
        await asyncio.sleep(rng.uniform(1.0, longest))
        kind = rng.choice(["down", "lost", "empty", "empty and down"])
        memory.lost_answers = 3 if kind == "lost" else 0
        memory.down = "down" in kind
        if "empty" in kind:
            memory.empty()
        await asyncio.sleep(rng.choice([0.5, 5.0, longest]) if memory.down else 0.0)
        memory.down = False
