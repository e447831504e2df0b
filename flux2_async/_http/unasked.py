"""Connections that are kept, and used again: what came on one unasked is nobody's answer."""

from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp.connector import Connection

# Of connections that are kept; a server that speaks first on every new one is none.
MOST_DROPPED: Final = 10


class _SpokenUnaskedError(aiohttp.ClientConnectionError):
    """Nothing was sent on this connection."""


async def only_asked(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType, tries: int = MOST_DROPPED
) -> aiohttp.ClientResponse:
    """Send a request on no connection on which its peer has spoken unasked: aiohttp takes that for the next answer.

    A second answer that came late would else be another task's record, or another task's picture. A middleware, since a
    pool may be the caller's.
    """
    # Before the head is written is the last moment at which that can be seen. A later aiohttp may call it otherwise.
    if hasattr(request, "send"):
        request.send = partial(_send, request)  # type: ignore[method-assign]  # of this request alone
    try:
        return await handler(request)
    except _SpokenUnaskedError:
        if not tries:
            raise
    return await only_asked(request, handler, tries - 1)


def _send(request: aiohttp.ClientRequest, connection: Connection) -> Coroutine[Any, Any, aiohttp.ClientResponse]:
    # Else it would hold itself, and its answer with it, until the garbage collector comes.
    del request.send
    if connection.protocol is not None and connection.protocol.should_close:
        raise _SpokenUnaskedError("an answer to no request")
    return request.send(connection)
