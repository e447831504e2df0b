"""How long everything still takes, told after the first five and later, against what really came."""

import asyncio
import math
import random
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from emulated import emulated, session_for
from memory_coordination import Memory

from flux2_async import Polling, RateLimit, TextToImage
from flux2_async.emulator import Limit, Plan, Script

FACTOR = 1.5


@attrs.frozen
class Told:
    at: float
    remaining: float
    ended: int


def durations(chance: random.Random, kind: str, typical: float, count: int) -> list[float]:
    match kind:
        case "narrow":
            return [chance.lognormvariate(math.log(typical), 0.1) for _ in range(count)]
        case "usual":
            return [chance.lognormvariate(math.log(typical), 0.4) for _ in range(count)]
        case _:
            return [chance.uniform(0.7 * typical, 1.3 * typical) for _ in range(count)]


async def told_and_came(took: list[float], **options: Any) -> tuple[list[Told], float]:
    """What was told at each end, and when the last one came."""
    script = Script(plans=[Plan(duration=each) for each in took], credits=1e9)
    told = []
    async with emulated(script, polling=Polling(), **options) as (flux, _):
        now = asyncio.get_running_loop().time
        ended = 0
        async for done in flux.as_completed([TextToImage(f"number {n}") for n in range(len(took))]):
            assert done.error is None
            ended += 1
            figures = flux.statistics()
            left = len(took) - ended - figures.running - figures.waiting
            remaining = flux.remaining(max(left, 0))
            assert remaining is not None
            told.append(Told(now(), remaining, ended))
        return told, now()


@pytest.mark.parametrize(
    ("kind", "typical", "limit", "running", "count"),
    [
        ("usual", 30.0, RateLimit(20, 10.0), 10, 80),
        ("narrow", 60.0, RateLimit(20, 10.0), 10, 60),
        ("even", 15.0, RateLimit(5, 5.0), 100, 120),
        ("usual", 12.0, RateLimit(2, 10.0), 100, 60),
        ("even", 30.0, RateLimit(2, 10.0), 100, 60),
        ("usual", 30.0, RateLimit(5, 5.0), 3, 40),
        ("narrow", 6.0, RateLimit(20, 10.0), 3, 60),
        ("usual", 60.0, RateLimit(5, 5.0), 10, 120),
        ("usual", 8.0, RateLimit(20, 10.0), 100, 200),
        ("even", 60.0, RateLimit(5, 5.0), 10, 60),
        ("usual", 20.0, None, 5, 60),
        ("narrow", 30.0, RateLimit(2, 10.0), 4, 40),
    ],
)
async def test_right_by_a_factor_of_one_and_a_half(
    kind: str, typical: float, limit: RateLimit | None, running: int, count: int
) -> None:
    """After the first five have ended 19 of 20 are too long or too short at most by that, and none by more than two."""
    took = durations(random.Random(f"{kind} {typical} {limit} {running}"), kind, typical, count)
    told, end = await told_and_came(took, rate_limit=limit, max_running=running)
    # What the slowest of the last ones takes nobody can know.
    judged = [each for each in told[4:] if end - each.at > 1.5 * max(took)]
    ratios = [each.remaining / (end - each.at) for each in judged]

    assert judged[0].ended == 5
    assert len(judged) >= 5
    assert sum(1 / FACTOR <= ratio <= FACTOR for ratio in ratios) >= 0.95 * len(ratios)
    assert 0.5 <= min(ratios) <= max(ratios) <= 2.0


async def test_grows_with_more() -> None:
    """Further requests take as long as the limit lets them; fewer at once take longer."""
    async with emulated(Script(plans=Plan(duration=10.0)), rate_limit=RateLimit(10, 10.0), max_running=50) as (flux, _):
        await asyncio.gather(*[await flux.submit(TextToImage(f"number {n}")) for n in range(10)])
        await asyncio.sleep(60.0)
        assert flux.remaining() == 0.0
        assert flux.remaining(1) == pytest.approx(10.0, rel=0.15)
        assert flux.remaining(10_000) == pytest.approx(10_000, rel=0.02)
        assert flux.remaining(100, max_running=1) == pytest.approx(1000.0, rel=0.15)


@pytest.mark.parametrize("others", [0, 1])
async def test_processes_that_share_an_account(others: int) -> None:
    """Each expects its share of the limit, by how many others wait as well, and starts about then."""
    memory, limit = Memory(), RateLimit(10, 10.0)
    script = Script(plans=Plan(duration=5.0), limit=Limit(10, 10.0))
    async with (
        emulated(script, coordination=memory, rate_limit=limit, max_running=None) as (flux, emulator),
        session_for(emulator, coordination=memory, rate_limit=limit, max_running=None) as other,
    ):
        begun = asyncio.get_running_loop().time()
        theirs = [other.enqueue(TextToImage(f"another kettle {n}")) for n in range(30 * others)]
        ours = [flux.enqueue(TextToImage(f"a red kettle {n}")) for n in range(30 * (2 - others))]
        await asyncio.sleep(12.0)
        expected, start = flux.remaining(), ours[-1].expected_start
        assert expected is not None
        assert start is not None
        starts_in = (start - datetime.now(UTC)).total_seconds()
        await ours[-1]
        assert starts_in == pytest.approx(asyncio.get_running_loop().time() - begun - 12.0, rel=0.25)
        assert expected == pytest.approx(starts_in + 5.0, rel=0.3)
        await asyncio.gather(*theirs)
