# Install in a virtual environment: pip install "flux2-async[emulator]" pytest pytest-asyncio
# Start it: pytest test_kettle.py (with pytest-asyncio, or with anyio and its marker)
"""Tests of your program with the fixture `flux2_emulator`: no account, no network, no charge."""

import pytest

from flux2_async import ContentModeratedError, Flux2Session, ImageResult, Polling, TextToImage
from flux2_async.emulator import Plan, Script
from flux2_async.testing import RunningEmulator


async def kettle() -> ImageResult:
    """Stand for your program."""
    async with Flux2Session(polling=Polling(interval=0.1)) as flux:
        return await flux.generate(TextToImage("a red kettle", tier="pro"), timeout=10)


@pytest.mark.asyncio
async def test_a_kettle_is_paid_once(flux2_emulator: RunningEmulator) -> None:
    """The program asks for one picture."""
    result = await kettle()
    assert flux2_emulator.ledger.accepted == [result.task_id]


@pytest.mark.asyncio
@pytest.mark.flux2_script(Script(plans=Plan(outcome="moderated")))
async def test_a_refused_kettle_costs_nothing(flux2_emulator: RunningEmulator) -> None:
    """A refusal by the content filter is no charge."""
    with pytest.raises(ContentModeratedError):
        await kettle()
    assert flux2_emulator.ledger.charged == 0
