"""Sessions for the commands: with the real service, or with an emulated one of their own."""

import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp

from flux2_async import coordination as places
from flux2_async.cli.options import COORDINATION, CREDITS, Service, named_service, parse_rate_limit
from flux2_async.cli.screen import UsageError
from flux2_async.coordination.store import Coordination
from flux2_async.emulator import Emulator, Limit, Plan, Script
from flux2_async.errors import ConfigurationError
from flux2_async.models import Polling, RateLimit
from flux2_async.session.session import Flux2Session

# Upstream's figure, which real accounts are said to have.
LIMIT: Final = Limit(20, 10.0, retry_after="seconds")
# One task is waited for as long as its --timeout says.
PATIENT: Final = Polling(give_up_after=None)
# Polling costs nothing on loopback, and makes the progress lively.
EMULATED_POLLING: Final = Polling(interval=0.3)

PASSWORD: Final = re.compile("//[^/]*:[^/]*@|password=")
KINDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys", "unix"), "RedisCoordination"),
    **dict.fromkeys(("postgresql", "postgres"), "PostgresCoordination"),
}


@asynccontextmanager
async def opened(
    service: Service | None = None, *, polling: Polling = PATIENT, coordination: str = "", **options: Any
) -> AsyncIterator[Flux2Session]:
    """Open a session as the options say, with an emulated service, which ends with it, or the environment's account.

    `polling`, and `coordination` where nobody has named one, are for the real service.
    """
    limit = parse_rate_limit(service.rate_limit) if service else None
    if service and service.emulate:
        script = Script(plans=Plan(duration=3.0), limit=LIMIT, credits=CREDITS)
        async with Emulator(script) as emulator, emulated(emulator, limit, **options) as flux:
            yield flux
        return
    shared = shared_place(service, coordination) if service else None
    # Through its proxies, as users of other commands expect; the library by itself reads no proxy settings.
    async with (
        aiohttp.ClientSession(trust_env=True, cookie_jar=aiohttp.DummyCookieJar()) as http,
        Flux2Session(
            service=named_service(), rate_limit=limit, polling=polling, coordination=shared, http=http, **options
        ) as flux,
    ):
        yield flux


def shared_place(service: Service, usual: str = "") -> Coordination | None:
    """Give what the option names, else the environment, else `usual`, empty: none."""
    given = service.coordination
    name = COORDINATION if given is None else "--coordination"
    text = (os.environ.get(COORDINATION, "") if given is None else given).strip() or usual
    scheme, _, rest = text.partition(":")
    kind = KINDS.get(scheme.partition("+")[0])
    if given is not None and PASSWORD.search(given):
        raise UsageError(f"--coordination: others of this machine could read the password; set {COORDINATION} instead")
    try:
        if not text or text == "none":
            return None
        if kind is not None and rest.startswith("//"):
            made: Coordination = getattr(places, kind)(text)
            return made
        if scheme == "host" and (rest or text == "host"):
            return places.HostCoordination(rest or None)
    except ConfigurationError as error:
        raise UsageError(f"{name}: {error}") from None
    raise UsageError(f"{name}: allowed are host, host:FILE, {', '.join(f'{kind}://...' for kind in KINDS)}")


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
