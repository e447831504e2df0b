"""`flux2 emulator`: the service on this machine until Ctrl-C."""

import asyncio
import math
import os
from contextlib import AsyncExitStack
from urllib.request import getproxies, proxy_bypass

from flux2_async.cli.screen import Screen, UsageError
from flux2_async.cli.service import CREDITS, LIMIT
from flux2_async.emulator import Emulator, Plan, Script

__all__ = ["listening_failure", "serve"]

MAX_PORT = 65535


async def serve(screen: Screen, host: str, port: int, duration: float) -> int:
    """Run the emulator until it is interrupted.

    Args:
        screen: Where the settings are printed.
        host: The address to listen on.
        port: The port, 0 for a free one.
        duration: Seconds that a task takes.

    Returns:
        0: being interrupted is its usual end.

    Raises:
        UsageError: A number is out of bounds.
        OSError: The address cannot be listened on.
    """
    if not 0 <= port <= MAX_PORT:
        raise UsageError(f"--port: {port} given, it must be 0 to {MAX_PORT}")
    if not (duration >= 0 and math.isfinite(duration)):
        raise UsageError(f"--duration: {duration} given, it must be a number of seconds of 0 or more")
    script = Script(plans=Plan(duration=duration), limit=LIMIT, credits=CREDITS)
    async with AsyncExitStack() as stack:
        try:
            emulator = await stack.enter_async_context(Emulator(script, host=host, port=port))
        except OSError as error:
            reason = listening_failure(error)
            raise OSError(f"{host}:{port}: {reason}; give another --host or --port, where 0 takes a free one") from None
        _tell(screen, emulator)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            accepted = len(emulator.ledger.accepted)
            screen.note(f"stopped; {accepted} {'task was' if accepted == 1 else 'tasks were'} accepted")
    return 0


def listening_failure(error: OSError) -> str:
    """Say why an address cannot be listened on, without the address, which asyncio adds in its own way."""
    # The number of a name that is unknown is not one of these.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror).split(" (")[0]


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
    screen.note("The emulated service runs; Ctrl-C ends it. In another terminal:", "dim")
    screen.result("\n".join(f"export {name}={value}" for name, value in settings.items()))
    screen.note('Then for example: flux2 generate "A lighthouse at dawn"', "dim")
    screen.document(settings)
    screen.out.file.flush()
