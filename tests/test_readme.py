"""Every Python block of the README runs, on the emulator and on virtual time."""

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest
from documents import PACKAGE, README, blocks, compiled
from sybil import Example

import flux2_async
from flux2_async import Flux2Session, TextToImage
from flux2_async.emulator import Emulator, Plan, Script


def plain_blocks() -> list[Any]:
    return [pytest.param(block, id=f"line {block.line}") for block in blocks(README)]


@pytest.mark.parametrize("example", plain_blocks())
async def test_block(example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block runs as it stands, with the names that the text around it speaks of."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(PACKAGE / "cli" / "photos" / "coffee.png", "can.png")
    script = Script(plans=Plan(duration=8.0), render=False)
    async with Emulator(script) as emulator:
        monkeypatch.setenv("APIKLEY_API_KEY", emulator.api_key)
        monkeypatch.setenv("APIKLEY_BASE_URL", emulator.base_url)
        async with Flux2Session() as flux:
            request = TextToImage("a red kettle on a slate worktop")
            names: dict[str, Any] = {
                **{name: getattr(flux2_async, name) for name in ("Flux2Session", "ImageToImage", "TextToImage")},
                "flux": flux,
                "request": request,
                "task_id": (await flux.submit(request)).id,
            }
            pending = eval(compiled(str(example.parsed), README, example.line), names)  # noqa: S307  running the README is the purpose
            if inspect.isawaitable(pending):
                await pending


def test_there_are_blocks() -> None:
    """The README shows Python, so the test above has something to run."""
    assert len(plain_blocks()) >= 10
