"""Callbacks in an aiohttp application."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from flux2_async.errors import ConfigurationError
from flux2_async.receivers._handler import CallbackTarget, DisconnectedError, Incoming, handle, settings_of

__all__ = ["aiohttp_routes", "respond"]


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

    async def receive(request: web.Request) -> web.Response:
        return await respond(flux, request)

    bare = path.rstrip("/")
    return [web.route("*", each, receive) for each in (bare, f"{bare}/") if each]


async def respond(flux: CallbackTarget, request: web.BaseRequest) -> web.Response:
    """Answer one request of aiohttp.

    Args:
        flux: The session.
        request: Its body not read yet.

    Returns:
        The answer.
    """
    query = request.rel_url.raw_query_string
    async with aclosing(_chunks(request)) as chunks:
        incoming = Incoming(request.method, query, request.headers, request.content_length, chunks)
        answer = await handle(flux, incoming)
    return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


async def _chunks(request: web.BaseRequest) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in request.content.iter_any():
            yield chunk
    except (web.RequestPayloadError, OSError):
        raise DisconnectedError from None
