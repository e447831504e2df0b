"""`flux2 emulator`: the service on this machine until Ctrl-C."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from typing import Final, TypeVar
from urllib.request import getproxies, proxy_bypass

from flux2_async.cli.emulator_options import EmulatorOptions
from flux2_async.cli.emulator_script import script_of
from flux2_async.cli.screen import Screen, UsageError, one_line
from flux2_async.emulator import CallbackCall, Emulator, Exchange

T = TypeVar("T")

MAX_PORT: Final = 65535
MAX_PROMPT: Final = 60


async def serve(screen: Screen, host: str, port: int, options: EmulatorOptions, *, log: bool) -> int:
    """Run the emulator until it is interrupted, and give 0; with `log` each request is told in a line."""
    check_port(port)

    def tell(event: Exchange | CallbackCall) -> None:
        screen.note(f"{datetime.now().astimezone():%H:%M:%S.%f}"[:12] + f"  {line_of(event, emulator)}")

    emulator = Emulator(script_of(options), host=host, port=port, log=tell if log else None)
    async with listening(emulator, host, port):
        _tell(screen, emulator)
        await interrupted(screen)
        accepted = len(emulator.ledger.accepted)
        screen.note(f"stopped; {accepted} {'task was' if accepted == 1 else 'tasks were'} accepted")
    return 0


@asynccontextmanager
async def listening(server: AbstractAsyncContextManager[T], host: str, port: int) -> AsyncIterator[T]:
    """Enter what listens at an address; the OSError says what to do."""
    async with AsyncExitStack() as stack:
        try:
            entered = await stack.enter_async_context(server)
        except OSError as error:
            reason = listening_failure(error)
            raise OSError(f"{host}:{port}: {reason}; give another --host or --port, where 0 takes a free one") from None
        yield entered


async def interrupted(screen: Screen) -> None:
    """Wait for Ctrl-C, which is the usual end of what serves, after all that was said is out."""
    screen.out.file.flush()
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


def check_port(port: int) -> None:
    """Raise `UsageError` where there can be no such port."""
    if not 0 <= port <= MAX_PORT:
        raise UsageError(f"--port: {port} given, it must be 0 to {MAX_PORT}")


def listening_failure(error: OSError) -> str:
    """Say why an address cannot be listened on, without the address, which asyncio adds in its own way."""
    # The number of a name that is unknown is not one of these.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror).split(" (")[0]


def line_of(event: Exchange | CallbackCall, emulator: Emulator) -> str:
    """Say in one line what a request was and what became of it."""
    if isinstance(event, CallbackCall):
        answer = "no answer" if event.status is None else str(event.status)
        again = f", attempt {event.attempt}" if event.attempt > 1 else ""
        return f"{'callback':<12} {answer:<9} {event.task_id}  to {one_line(event.url)}{again}"
    words = [one_line(event.task_id), _about(event, emulator)] if event.task_id else []
    words += [f"Retry-After: {event.retry_after}"] if event.retry_after else []
    words += [f"fault {event.fault}"] if event.fault else []
    words += [f"{event.seconds * 1000:.0f} ms"]
    answer = "cut" if event.status is None else str(event.status)
    if event.code not in (None, event.status):
        # As upstream answers: the reason is in the body.
        answer += f", {event.code}"
    return f"{one_line(event.endpoint):<12} {answer:<9} {'  '.join(filter(None, words))}"


def _about(event: Exchange, emulator: Emulator) -> str:
    try:
        task = emulator.task(event.task_id or "")
    except KeyError:
        return ""
    if event.endpoint == "createTask":
        prompt = one_line(str(task.body["input"].get("prompt", "")))
        return f"{prompt[:MAX_PROMPT]!r}{'…' if len(prompt) > MAX_PROMPT else ''}"
    return task.state if event.endpoint == "recordInfo" else ""


def _tell(screen: Screen, emulator: Emulator) -> None:
    settings = {
        "APIKLEY_API_KEY": emulator.api_key,
        "APIKLEY_BASE_URL": emulator.base_url,
        "APIKLEY_UPLOAD_URL": emulator.upload_url,
    }
    host = emulator.base_url.partition("://")[2]
    if getproxies().get("http") and not proxy_bypass(host):
        # The other commands go through the proxies of the environment, and no proxy finds this machine's loopback.
        settings["NO_PROXY"] = host.rpartition(":")[0]
    screen.note(
        f"The emulated service runs; watch and steer it at {emulator.base_url}/ ; Ctrl-C ends it. In another terminal:",
        "dim",
    )
    screen.result("\n".join(f"export {name}={value}" for name, value in settings.items()))
    screen.note('Then for example: flux2 generate "A lighthouse at dawn"', "dim")
    screen.document(settings)
