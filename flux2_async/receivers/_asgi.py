"""Callbacks in any ASGI 3 application: FastAPI, Starlette, Litestar, or alone below an ASGI server."""

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any

from flux2_async.receivers._handler import (
    CallbackTarget,
    DisconnectedError,
    Incoming,
    declared_length,
    handle,
    settings_of,
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]


def asgi_app(flux: CallbackTarget) -> ASGIApp:
    """An ASGI application that takes the service's callbacks.

    Mount it: `app.mount("/flux2/callback", asgi_app(flux))`. It answers at every path below. Frameworks redirect a
    request for the place itself to the one with a final slash, and senders follow no redirect; so let the address in
    `Callbacks` end in a slash.

    Args:
        flux: The session, made with `callbacks`; it need not be open yet, callbacks are asked to come again until then.

    Returns:
        The application. It refuses WebSocket connections.

    Raises:
        ConfigurationError: The session was made without `callbacks`.
    """
    settings_of(flux)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _respond(flux, scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        else:
            # The specification wants an exception, which servers take for "not supported".
            raise NotImplementedError(f"ASGI scope {scope['type']!r}: callbacks come by http only")

    return app


async def _respond(flux: CallbackTarget, scope: Message, receive: Receive, send: Send) -> None:
    # Of two the first counts, as in aiohttp.
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed([*scope["headers"]])}
    length = declared_length(headers.get("content-length"))
    query, packing = scope.get("query_string", b"").decode("latin-1"), headers.get("content-encoding")
    incoming = Incoming(scope["method"], query, headers, length, partial(_read, receive), packing=packing)
    answer = await handle(flux, incoming)
    sent = {**answer.headers, "Content-Length": str(len(answer.body))}
    raw = [(name.lower().encode(), value.encode()) for name, value in sent.items()]
    # A sender who has left is no error.
    with suppress(OSError):
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        await send({"type": "http.response.body", "body": answer.body})


async def _read(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise DisconnectedError
    return message.get("body", b""), message.get("more_body", False)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
