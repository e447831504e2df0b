"""Pages on this machine: who may read them, who may press their buttons, and how they stay up to date.

Every site that a browser has open may send requests to loopback. So a page is given only under a name that no stranger
can point here (an attacker's name that resolves to 127.0.0.1 is DNS rebinding), what it is made of only to itself, and
its buttons take a POST of its own origin only, as browsers tell it in Sec-Fetch-Site and Origin. Programs that are no
browsers send neither, and need none of this protection.

Knows nothing of the API: the pages of the emulator and of the report have this in common, with how they look.
"""

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from aiohttp import web

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What goes with everything that a page is made of."""

# What the style sheet and the script of every page begin with.
STYLE: Final = Path(__file__).with_name("page") / "base.css"
SCRIPT: Final = STYLE.with_name("base.js")
TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Seconds between two signs of life, by which the server notices who has gone.
ALIVE: Final = 15.0


def guarded(handler: Handler, own_names: frozenset[str] = frozenset()) -> Handler:
    """Give a handler, of a page, of what it is made of, or of a button, that answers 403 to who must not ask.

    `own_names`: host names besides addresses and `localhost` under which the page may be asked for.
    """

    async def checked(request: web.Request) -> web.StreamResponse:
        reason = refusal(request.method, request.path, request.headers, own_names)
        if reason is not None:
            return web.Response(status=403, text=f"{reason}\n", headers=HEADERS)
        return await handler(request)

    return checked


def refusal(method: str, path: str, headers: Mapping[str, str], own_names: frozenset[str]) -> str | None:
    """Say why a request is refused; None: it is not. See `guarded`.

    `/`, the page itself, may be reached by a link of another site.
    """
    host = headers.get("Host", "")
    if not _is_own(host, own_names):
        return f"this page is not called {host!r}; open it by its address, such as 127.0.0.1"
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        return "a page of another origin asked for this"
    if method == "POST":
        allowed = site in {None, "same-origin"}
    else:
        allowed = path == "/" or site in {None, "same-origin", "none"}
    return None if allowed else "a page of another site asked for this"


def _is_own(host: str, own_names: frozenset[str]) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        if name == "localhost" or name in own_names:
            return True
        # A browser asks by an address only when that address was typed or linked: no name was rebound to it.
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def file_of(*paths: Path) -> Handler:
    """Give a handler that serves files of this package, which are read now, as one."""
    body, content_type = b"".join(path.read_bytes() for path in paths), TYPES[paths[0].suffix]

    async def serve(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=HEADERS)

    return serve


async def event_stream(request: web.Request, every: float, news: Callable[[], tuple[Any, bool]]) -> web.StreamResponse:
    """Send server-sent events to an `EventSource` until its page is gone, or the server stops.

    `news` gives what is to be sent as JSON, None for nothing, and whether there is more: then it is asked again at
    once, else after `every` seconds. A page that loses the stream asks again after a second.
    """
    response = web.StreamResponse(headers=HEADERS | {"Content-Type": "text/event-stream; charset=utf-8"})
    now, sent_at, wait, content = asyncio.get_running_loop().time, 0.0, 0.0, b"retry: 1000\n\n"
    # Who closes the page breaks the connection.
    with suppress(ConnectionError):
        await response.prepare(request)
        while request.transport is not None and not request.transport.is_closing():
            if content:
                await response.write(content)
                sent_at = now()
            await asyncio.sleep(wait)
            value, more = news()
            content, wait = b":\n\n" if now() - sent_at > ALIVE else b"", 0.0 if more else every
            if value is not None:
                # Escaped, it has no line break that would end the event, and no lone surrogate.
                text = json.dumps(value, separators=(",", ":"), allow_nan=False)
                content = b"data: " + text.encode() + b"\n\n"
    return response
