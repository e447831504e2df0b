"""One request in, one reply out, over aiohttp, and nothing of aiohttp besides.

`ClientResponseError` shows the Authorization header in its repr, and the frames of aiohttp hold what was sent. So an
error becomes a text where it is caught.
"""

import asyncio
from inspect import signature
from typing import Any, Final

import aiohttp
import attrs
from yarl import URL

from flux2_async._http.failures import bars_the_way, failure_text
from flux2_async._protocol.codec import Reply
from flux2_async._shown.text import Redactor

MAX_REPLY: Final = 8 * 1024 * 1024
# Eight times what aiohttp takes: gateways add policies and cookies, and behind them stands the id of a paid task.
HEADER_LIMITS: Final[dict[str, Any]] = {
    "max_line_size": 64 * 1024,
    "max_field_size": 64 * 1024,
    # Older ones do not count them.
    **({"max_headers": 1024} if "max_headers" in signature(aiohttp.ClientSession.__init__).parameters else {}),
}
LIKE_OURS: Final = {"auto_decompress": True, **HEADER_LIMITS}
"""Settings of our own sessions, which each call over a borrowed one is given."""


@attrs.frozen(eq=False, repr=False)
class Failure:
    """What broke an exchange off.

    Attributes:
        text: In words.
        lasting: Whether every exchange with this host would meet it.
    """

    text: str
    lasting: bool = False


def end_with_connection(response: aiohttp.ClientResponse) -> None:
    """Tell who reads a body that aiohttp ended its connection, as where it is no HTTP from its middle on."""
    if (connection := response.connection) is None or connection.protocol is None:
        return
    content, closed = response.content, connection.protocol.closed

    def cut(_: object = None) -> None:
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError())

    if closed is None:
        cut()
        return
    # Once for each connection, which may be kept for long.
    closed.remove_done_callback(_heard)
    closed.add_done_callback(_heard)
    closed.add_done_callback(cut)
    content.on_eof(lambda: closed.remove_done_callback(cut))  # type: ignore[arg-type]  # nobody looks at what it gives


def _heard(closed: asyncio.Future[None]) -> None:
    """Asyncio complains of an error that nobody asks for."""
    if not closed.cancelled():
        closed.exception()


async def exchange(
    http: aiohttp.ClientSession,
    method: str,
    url: URL,
    *,
    middleware: aiohttp.ClientMiddlewareType,
    redact: Redactor,
    timeout: aiohttp.ClientTimeout,
    **options: Any,
) -> tuple[Reply | None, Failure | None]:
    """Send one request, whatever the settings of the session.

    Args:
        http: The session, made with `HEADER_LIMITS` or given `LIKE_OURS` besides.
        method: HTTP's.
        url: Where to.
        middleware: Sees the request before a connection is asked for; adds the headers, and so the key, which no
            argument carries.
        redact: Takes the key out of texts of the server that are shown.
        timeout: Bounds it.
        **options: What else aiohttp is to be told: `params` of the query, the body as `data`, `headers` which the
            middleware does not add.

    Returns:
        The reply, and what failed; both where the reply broke off.
    """
    response = failure = None
    body = bytearray()
    try:
        async with http.request(
            method,
            url,
            allow_redirects=False,
            middlewares=(middleware,),
            raise_for_status=False,
            timeout=timeout,
            **options,
        ) as response:
            end_with_connection(response)
            content = response.content
            while not content.at_eof():
                body += await content.readany()
                if len(body) > MAX_REPLY:
                    failure = Failure(f"the answer of {response.url.host} is longer than {MAX_REPLY} bytes")
                    break
    except Exception as error:  # noqa: BLE001  a trace of a borrowed session may raise anything, also after the answer
        failure = Failure(failure_text(error, url.authority, timeout), lasting=bars_the_way(error, reached=True))
    if response is None:
        return None, failure
    return Reply(response.status, response.headers, bytes(body), redact), failure
