"""Sessions for the commands: with the real service, or with an emulated one of their own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp

from flux2_async.cli.options import CREDITS, Service, named_service, parse_rate_limit
from flux2_async.coordination.store import Coordination
from flux2_async.emulator import Emulator, Limit, Plan, Script
from flux2_async.models import Polling, RateLimit
from flux2_async.session.session import Flux2Session

# Upstream's figure, which real accounts are said to have.
LIMIT: Final = Limit(20, 10.0, retry_after="seconds")
# One task is waited for as long as its --timeout says.
PATIENT: Final = Polling(give_up_after=None)
# Polling costs nothing on loopback, and makes the progress lively.
EMULATED_POLLING: Final = Polling(interval=0.3)


@asynccontextmanager
async def opened(
    service: Service | None = None,
    *,
    polling: Polling = PATIENT,
    coordination: Coordination | None = None,
    **options: Any,
) -> AsyncIterator[Flux2Session]:
    """Open a session as the options say, with an emulated service, which ends with it, or the environment's account.

    `polling` and `coordination` are for the real service.
    """
    limit = parse_rate_limit(service.rate_limit) if service else None
    if service and service.emulate:
        script = Script(plans=Plan(duration=3.0), limit=LIMIT, credits=CREDITS)
        async with Emulator(script) as emulator, emulated(emulator, limit, **options) as flux:
            yield flux
        return
    # Through its proxies, as users of other commands expect; the library by itself reads no proxy settings.
    async with (
        aiohttp.ClientSession(trust_env=True, cookie_jar=aiohttp.DummyCookieJar()) as http,
        Flux2Session(
            service=named_service(),
            rate_limit=limit,
            polling=polling,
            coordination=coordination,
            http=http,
            **options,
        ) as flux,
    ):
        yield flux


def emulated(emulator: Emulator, limit: RateLimit | None, **options: Any) -> Flux2Session:
    """Make a session with an emulator; nothing of the environment is read."""
    return Flux2Session(
        emulator.api_key,
        base_url=emulator.base_url,
        upload_url=emulator.upload_url,
        rate_limit=limit,
        polling=EMULATED_POLLING,
        **options,
    )
