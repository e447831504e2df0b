"""What the log says of the account's limit."""

import asyncio
import logging

import pytest
from emulated import emulated, logged, session_for
from memory_coordination import Memory

from flux2_async.emulator import Limit, Plan, Script
from flux2_async.models import RateLimit, TextToImage


async def test_refusals_pauses_and_what_they_teach(caplog: pytest.LogCaptureFixture) -> None:
    """Each 429, its pause and the learned limit are INFO; that somebody else may be there is one WARNING."""
    script = Script(plans=Plan(duration=1.0), limit=Limit(4, 10.0), render=False)
    with caplog.at_level(logging.INFO, "flux2_async"):
        async with emulated(script, rate_limit=RateLimit(8, 10.0)) as (flux, emulator):
            tasks = await asyncio.gather(*(flux.submit(TextToImage(f"number {n}")) for n in range(30)))
            await asyncio.gather(*tasks)
            refused = sum(call.outcome == "refused" for call in emulator.ledger.requests)
            assert flux.statistics().refused == refused > 1
    told = [record for record in caplog.records if "refused by 429: all submissions pause for" in record.message]
    assert len(told) == refused
    assert {record.levelname for record in told} == {"INFO"}
    assert any("the limit is taken to be 4 for now, instead of 8 in 10 s" in message for message in caplog.messages)
    [hint] = logged(caplog, level=logging.WARNING)
    assert "although this session keeps to 8 in 10 s: something else uses this account as well" in hint


async def test_the_end_of_a_learned_limit(caplog: pytest.LogCaptureFixture) -> None:
    """When a stranger is gone, it is told that the whole limit is used again."""
    script = Script(plans=Plan(duration=1.0), limit=Limit(8, 10.0), render=False)
    with caplog.at_level(logging.INFO, "flux2_async"):
        async with emulated(script, rate_limit=RateLimit(8, 10.0)) as (flux, emulator):
            async with session_for(emulator, rate_limit=None) as stranger:
                await asyncio.gather(*(stranger.submit(TextToImage(f"strange {n}")) for n in range(6)))
            tasks = await asyncio.gather(*(flux.submit(TextToImage(f"number {n}")) for n in range(60)))
            await asyncio.gather(*tasks)
            assert flux.statistics().learned_limit is None
    taught = [message for message in caplog.messages if "the limit is taken to be" in message]
    assert taught
    assert caplog.messages.index("the whole limit is used again: 8 in 10 s") > caplog.messages.index(taught[0])


async def test_without_a_limit_nobody_is_suspected(caplog: pytest.LogCaptureFixture) -> None:
    """Who set no limit is told of refusals only."""
    script = Script(plans=Plan(duration=1.0), limit=Limit(4, 10.0), render=False)
    with caplog.at_level(logging.INFO, "flux2_async"):
        async with emulated(script, rate_limit=None) as (flux, _):
            await asyncio.gather(*(flux.submit(TextToImage(f"number {n}")) for n in range(6)))
    assert any("refused by 429" in message for message in caplog.messages)
    assert "something else uses this account" not in caplog.text


async def test_who_shares_a_limit_is_not_advised_to(caplog: pytest.LogCaptureFixture) -> None:
    """With a coordination the reason is elsewhere: a stranger, a lower limit, or processes with different ones."""
    script = Script(plans=Plan(duration=1.0), limit=Limit(4, 10.0), render=False)
    async with emulated(script, rate_limit=RateLimit(8, 10.0), coordination=Memory()) as (flux, _):
        await asyncio.gather(*(flux.submit(TextToImage(f"number {n}")) for n in range(6)))
    [hint] = [message for message in caplog.messages if "refused by 429 although" in message]
    assert "although this session was given 8 in 10 s: a program outside the shared state uses this account" in hint
    assert "processes that share it were given different limits" in hint
    assert "coordination=" not in hint
