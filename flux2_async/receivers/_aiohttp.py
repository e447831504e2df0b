"""Callbacks in an aiohttp application."""

from functools import partial

from aiohttp import HttpVersion11, StreamReader, web

from flux2_async.errors import ConfigurationError
from flux2_async.receivers._handler import (
    CallbackTarget,
    DisconnectedError,
    Incoming,
    declared_length,
    handle,
    settings_of,
)


def aiohttp_routes(flux: CallbackTarget, path: str) -> list[web.RouteDef]:
    """Routes that take the service's callbacks.

    Add them: `app.add_routes(aiohttp_routes(flux, "/flux2/callback"))`.

    Args:
        flux: The session, made with `callbacks`; it need not be open yet, callbacks are asked to come again until then.
        path: Where in the application; it is taken with and without a final slash, since senders follow no redirect.

    Returns:
        One or two routes for all methods; others than POST are refused with 405.

    Raises:
        ConfigurationError: The session was made without `callbacks`, or the path does not start with a slash.
    """
    settings_of(flux)
    if not path.startswith("/"):
        raise ConfigurationError(f"path: {path!r} given, it must start with '/'")

    receive = partial(respond, flux)
    bare = path.rstrip("/")
    return [web.route("*", each, receive, expect_handler=go_on) for each in (bare, f"{bare}/") if each]


async def go_on(request: web.BaseRequest) -> None:
    """Tell a sender who asks first to go on; who is not told may wait with its body for long."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def respond(flux: CallbackTarget, request: web.BaseRequest, *, unpacks: bool = True) -> web.Response:
    """Answer one request of aiohttp; its body may be read already, as middlewares do that log or count.

    `unpacks`: whether aiohttp was left to unpack bodies, as it does unless told otherwise.
    """
    headers, content = request.headers, request.content
    body: bytes | None = None
    if content.is_eof() and content.exception() is None:
        # Where nothing is left, the request has kept what was read before.
        body = await request.read() if content.at_eof() else content.read_nowait()
    query, packing = request.rel_url.raw_query_string, headers.get("Content-Encoding")
    length = declared_length(headers.get("Content-Length")) if body is None else None
    read = partial(_read, content)
    answer = await handle(flux, Incoming(request.method, query, headers, length, read, body, unpacks, packing))
    return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


async def _read(content: StreamReader) -> tuple[bytes, bool]:
    try:
        return await content.readany(), not content.at_eof()
    except (web.RequestPayloadError, OSError):
        raise DisconnectedError from None
