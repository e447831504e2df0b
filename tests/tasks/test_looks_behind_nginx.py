"""Looks at many tasks behind a limit that we did not write: nginx's `limit_req`, in front of the emulator."""

import asyncio
from pathlib import Path

import pytest
from emulated import REQUEST
from nginx import RECORD_INFO, nginx

from flux2_async.emulator import Emulator, Plan, Script
from flux2_async.models import Polling
from flux2_async.session.session import Flux2Session

pytestmark = pytest.mark.real_time

TASKS = 40

CASES = {
    "default": (Polling(), "limit_req_status 429;"),
    "interval-Retry-After": (Polling(interval=1.0), "limit_req_status 429; add_header Retry-After 1 always;"),
    "often-503": (Polling(price=0.03), ""),
}


async def learn_all(folder: Path, polling: Polling, refusing: str) -> int:
    """Submit tasks that are finished at once, look at them through nginx, and give how many looks it refused."""
    script = Script(plans=Plan(duration=0.0), credits=1e6, render=False)
    async with Emulator(script) as emulator:
        with nginx(folder, emulator.base_url, RECORD_INFO, refusing) as url:
            async with Flux2Session(emulator.api_key, base_url=url, rate_limit=None, polling=polling) as flux:
                tasks = await asyncio.gather(*(flux.submit(REQUEST) for _ in range(TASKS)))
                await asyncio.gather(*(task.result() for task in tasks))
    return (folder / "error.log").read_text().count("limiting requests")


async def test_all_are_known_and_few_looks_are_refused(tmp_path: Path) -> None:
    """40 finished tasks behind five looks a second are all known, and few looks are refused on the way.

    How long that takes is judged on virtual time and in the benchmarks.
    """
    refused = await asyncio.gather(*(learn_all(tmp_path / name, *case) for name, case in CASES.items()))

    assert min(refused) > 0
    # Looks of one burst leave before the first of them is refused; looks that back off each for itself met 284.
    assert max(refused) <= 3 * TASKS
