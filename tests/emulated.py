"""A session on the emulator, as most tests want it."""

import asyncio
import logging
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from programs import at_the_end

from flux2_async._http.files import Files
from flux2_async.emulator import Emulator, Plan, Script
from flux2_async.models import Polling, TextToImage
from flux2_async.session.parts import Parts
from flux2_async.session.session import Flux2Session
from flux2_async.tasks import schedule
from flux2_async.testing import RunningEmulator

REQUEST = TextToImage("a red kettle on a slate worktop")


def session_for(emulator: "Emulator | RunningEmulator", **options: Any) -> Flux2Session:
    """A session that is not open yet."""
    options = {"polling": Polling(interval=1.0)} | options
    return Flux2Session(emulator.api_key, base_url=emulator.base_url, upload_url=emulator.upload_url, **options)


@asynccontextmanager
async def emulated(script: Script | None = None, **options: Any) -> AsyncIterator[tuple[Flux2Session, Emulator]]:
    """An open session and the emulator it talks to; nothing is drawn."""
    script = script or Script(plans=Plan(duration=2.0))
    script.render = False
    async with Emulator(script) as emulator, session_for(emulator, **options) as flux:
        yield flux, emulator


def look_at_length(monkeypatch: pytest.MonkeyPatch, look: Callable[[], Awaitable[object]]) -> None:
    """Let each look at a request's pictures last as long as `look`, as on a slow file system."""

    async def check(*_: object) -> None:
        await look()

    monkeypatch.setattr(Files, "check", check)


def free_port() -> int:
    """A port that nobody listens at until the test lets somebody, and that nobody else is given while this runs."""
    while True:
        # Hypothesis seeds the common generator, in each process alike.
        port = random.SystemRandom().randrange(20_000, 32_000)
        reserved = socket.socket()
        try:
            reserved.bind(("127.0.0.1", port))
        except OSError:
            reserved.close()
            continue
        # Those that listen may have the port beside it, as servers ask to; whoever looks for a free one does not ask.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        at_the_end.enter_context(reserved)
        return port


def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sessions with default settings look every 50 ms, for tests of the command, which run in real time."""
    monkeypatch.setattr(schedule.Schedules, "of", lambda *_: schedule.FixedInterval(0.05))
    monkeypatch.setattr(schedule, "ADVICE", ((float("inf"), 0.05),))


def look_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sessions with default settings wait for callbacks, which on a busy machine take longer than a usual look."""
    monkeypatch.setattr(schedule.Schedules, "of", lambda *_: schedule.FixedInterval(1000.0))


async def until(condition: Callable[[], object], limit: float = 120.0) -> None:
    """Let (virtual) time pass until something is so."""
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.01)


def logged(caplog: pytest.LogCaptureFixture, *others: str, level: int = logging.NOTSET) -> list[str]:
    """What loggers of the package said, and these others: asyncio may tell at any time what an earlier test left."""
    names = {"flux2_async", *others}
    lines = (line for line in caplog.records if line.levelno >= level)
    return [line.getMessage() for line in lines if line.name.partition(".")[0] in names]


async def callback_answers(emulator: "Emulator | RunningEmulator", count: int = 1) -> list[int | None]:
    """What was answered to that many callbacks, or more; a result comes before the emulator reads the answer."""
    await until(lambda: len(emulator.ledger.callbacks) >= count)
    return [call.status for call in emulator.ledger.callbacks]


async def most_at_once(emulator: Emulator, seconds: float) -> Counter[str]:
    """Watch how many tasks of each prompt run at the service at most."""
    most: Counter[str] = Counter()
    for _ in range(int(seconds / 0.1)):
        tasks = map(emulator.task, emulator.ledger.accepted)
        most |= Counter(task.body["input"]["prompt"] for task in tasks if task.state not in ("success", "fail"))
        await asyncio.sleep(0.1)
    return most


def parts_of(flux: Flux2Session) -> Parts:
    """What an open session, or one that was open, consists of."""
    parts = flux._life.parts
    assert parts is not None, "never opened"
    return parts


async def error_of(awaitable: Awaitable[object]) -> Exception:
    """The error that something raises."""
    try:
        value = await awaitable
    except Exception as error:  # noqa: BLE001  the tests look at what it is
        return error
    raise AssertionError(f"no error, but {value!r}")
