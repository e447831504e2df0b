"""Trying again what costs nothing to repeat: uploads and downloads. Never createTask."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio

from flux2_async.errors import Flux2Error, RateLimitedError

logger: logging.Logger = logging.getLogger("flux2_async.transfers")

T = TypeVar("T")

PAUSES: Final = (0.5, 1.5, 4.5, 13.5)
"""Seconds before the second to the fifth try.

Growing threefold, they get over a broken connection at once and over a restarting server in 20 s; what lasts longer
is better told to the caller than waited for.
"""

MAX_RETRY_AFTER: Final = 60.0
"""Seconds. When the service asks for more, its error is handed on at once, with `retry_after`."""


async def persist(attempt: Callable[[], Awaitable[T]]) -> T:
    """Call until it succeeds, fails for good, or has failed five times; it must be harmless to do it twice.

    Errors that are not `transient` are final.

    Raises:
        Flux2Error: What the last try raised.
    """
    for pause in PAUSES:
        try:
            return await attempt()
        except Flux2Error as error:
            asked = (isinstance(error, RateLimitedError) and error.retry_after) or 0.0
            if not error.transient or asked > MAX_RETRY_AFTER:
                raise
            wait = max(pause, asked)
            logger.info("%s; trying again in %g s", str(error).rstrip("."), wait)
        await anyio.sleep(wait)
    return await attempt()
