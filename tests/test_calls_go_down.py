"""Who calls whom while a request walks through the layers: down, but for what each of these tests names."""

import gc
import logging
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
from batches import batch_in
from emulated import REQUEST, emulated

from flux2_async.emulator import Fault, Plan, Script
from flux2_async.models import Callbacks
from flux2_async.webhooks import Callback

CONTRACTS: Final = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
HEIGHTS: Final = {
    name.strip(): -depth for depth, layer in enumerate(CONTRACTS[0]["layers"]) for name in layer.split("|")
}
# Told and asked at the moment that matters, from within aiohttp: before the connection carries anything, and before its
# first byte.
POST: Final = {"_http.post > session.posting": 2}


def module(frame: FrameType) -> str:
    """Its module below our package, or nothing."""
    package, _, rest = frame.f_globals.get("__name__", "").partition(".")
    return rest if package == "flux2_async" else ""


def height(frame: FrameType) -> int | None:
    return HEIGHTS.get(module(frame).partition(".")[0])


def caller_of(frame: FrameType) -> FrameType | None:
    """The nearest frame of ours below, unless the event loop called."""
    caller = frame.f_back
    while caller is not None and height(caller) is None:
        caller = None if caller.f_globals.get("__name__", "").startswith("asyncio.") else caller.f_back
    return caller


@contextmanager
def upward_calls() -> Iterator[Counter[str]]:
    """Count calls from a layer to one above it, and the start of coroutines, not what they go on with."""
    calls: Counter[str] = Counter()

    def see(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or (here := height(frame)) is None:
            return
        # The argument of `RESUME` is 0 where a function begins, and tells by what a coroutine had stopped elsewhere.
        if frame.f_code.co_code[frame.f_lasti + 1] & 3:
            return
        caller = caller_of(frame)
        if caller is not None and here > (height(caller) or 0) and frame.f_code.co_name != "__del__":
            calls[f"{module(caller)} > {module(frame)}"] += 1

    with pytest.MonkeyPatch.context() as patched:
        # A test of a command may have left the command's own, which is called from where something is logged.
        patched.setattr(logging.getLogger("flux2_async"), "handlers", [])
        # A generator that an earlier test left is closed by whichever call the garbage collector interrupts.
        gc.collect()
        gc.disable()
        sys.setprofile(see)
        try:
            yield calls
        finally:
            sys.setprofile(None)
            gc.enable()


async def test_a_submit_that_waits_for_nothing() -> None:
    """It is told of its connection and of its first byte, and nothing else calls up."""
    async with emulated(Script(plans=Plan(duration=60.0))) as (flux, _):
        await flux.submit(REQUEST)
        with upward_calls() as calls:
            await flux.submit(REQUEST)

    assert calls == POST


async def test_a_throttled_submit() -> None:
    """Each of its two attempts likewise; and that it waits is told once to who opens connections ahead."""
    async with emulated(Script(plans=Plan(duration=60.0))) as (flux, emulator):
        await flux.submit(REQUEST)
        emulator.inject(Fault("createTask", "refuse", code=429, retry_after=1.0))
        with upward_calls() as calls:
            await flux.submit(REQUEST)

    assert calls == {"_http.post > session.posting": 4, "_limiter.turnstile > session.open_ahead": 1}


async def test_a_callback() -> None:
    """It goes from the inbox to the task, and the task's end is told to the inbox once."""
    callbacks = Callbacks("http://127.0.0.1:1/", secret="of all processes")
    async with emulated(Script(plans=Plan(duration=1.0)), callbacks=callbacks) as (flux, emulator):
        task = await flux.submit(REQUEST, ref="mine")
        emulator.finish(task.id)
        with upward_calls() as calls:
            await flux.deliver("mine", Callback(task.id, None))
            await task

    assert calls == {"tasks.watcher > session.callback_inbox": 1}


async def test_a_row_of_a_batch(tmp_path: Path) -> None:
    """Its journal is told once before the POST and once of the answer, and both are awaited."""
    async with emulated(Script(plans=Plan(duration=60.0))) as (flux, _):
        with upward_calls() as calls:
            # Left to be collected, it may leave files of its journal open.
            async with aclosing(aiter(batch_in(tmp_path, flux, [REQUEST]))) as outcomes:
                await anext(outcomes)

    assert calls == {**POST, "session.posting > batch.worker": 1, "session.submission > batch.worker": 1}
