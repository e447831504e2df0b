"""100 tasks at once against a limit of 20 per period: refusals, and the time over the optimum of four periods."""

import asyncio
from typing import Literal

from flux2_async import Flux2Session, RateLimit, TextToImage
from flux2_async.emulator import Emulator, Limit, Plan, Script

TASKS = 100
LIMIT = 20

# What we believe, and the policy of the service.
CASES: tuple[tuple[str, int, Literal["sliding", "fixed", "bucket"]], ...] = (
    ("known", LIMIT, "sliding"),
    ("known", LIMIT, "fixed"),
    ("known", LIMIT, "bucket"),
    ("believed 40", 40, "sliding"),
)


async def measure(period: float) -> None:
    """Print a line for each case.

    Args:
        period: Seconds of the limit.
    """
    optimum = period * (TASKS / LIMIT - 1)
    print(f"{TASKS} tasks at once, {LIMIT} per {period:g} s, optimum {optimum:g} s")
    for belief, believed, policy in CASES:
        script = Script(plans=Plan(duration=0.1), limit=Limit(LIMIT, period, policy), credits=1e6, render=False)
        async with Emulator(script) as emulator:
            seconds = await burst(emulator, RateLimit(believed, period))
            refused, lost = emulator.ledger.refused, TASKS - len(emulator.ledger.accepted)
        took = f"{seconds:.2f} s, {seconds / optimum:.3f} x the optimum"
        print(f"  limit {belief}, {policy}: {refused} refused, {lost} lost, {took}")


async def burst(emulator: Emulator, rate_limit: RateLimit) -> float:
    """Submit all at once and give the seconds until the last one is accepted."""
    loop = asyncio.get_running_loop()
    async with Flux2Session(
        emulator.api_key, base_url=emulator.base_url, rate_limit=rate_limit, max_running=None
    ) as flux:
        begun = loop.time()
        await asyncio.gather(*(flux.submit(TextToImage(f"number {number}")) for number in range(TASKS)))
        seconds = loop.time() - begun
        await flux.drain()
        return seconds
