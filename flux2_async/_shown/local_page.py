"""Pages on this machine: who may read them, who may press their buttons, and how they stay up to date.

Every site that a browser has open may send requests to loopback. So a page is given only under a name that no stranger
can point here (an attacker's name that resolves to 127.0.0.1 is DNS rebinding), what it is made of only to itself, and
its buttons take a POST of its own origin only, as browsers tell it in Sec-Fetch-Site and Origin. Programs that are no
browsers send neither, and need none of this protection.

Knows nothing of the API: the pages of the emulator and of the report have this in common, and no other code.
"""

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping
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


def file_of(path: Path) -> Handler:
    """Give a handler that serves one file of this package, which is read now."""
    body, content_type = path.read_bytes(), TYPES[path.suffix]

    async def serve(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=HEADERS)

    return serve


class EventStream:
    """Server-sent events to one page.

    Args:
        request: Of an `EventSource`.
        closing: Set when the server stops, which ends the stream.
    """

    def __init__(self, request: web.Request, closing: asyncio.Event) -> None:
        self._request = request
        self._closing = closing
        self._sent_at = 0.0
        self.response = web.StreamResponse(headers=HEADERS | {"Content-Type": "text/event-stream; charset=utf-8"})

    async def open(self) -> None:
        """Begin the answer; a page that loses it asks again after a second."""
        await self.response.prepare(self._request)
        await self._write(b"retry: 1000\n\n")

    async def send(self, value: Any) -> None:
        """Send a value as JSON.

        Raises:
            ConnectionError: The page is gone.
        """
        # Escaped, it has no line break that would end the event, and no lone surrogate.
        await self._write(b"data: " + json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n\n")

    async def pause(self, seconds: float) -> bool:
        """Wait, and tell whether to go on: the page is there and the server does not stop.

        Raises:
            ConnectionError: The page is gone.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass
        transport = self._request.transport
        if self._closing.is_set() or transport is None or transport.is_closing():
            return False
        if asyncio.get_running_loop().time() - self._sent_at > ALIVE:
            await self._write(b":\n\n")
        return True

    async def _write(self, content: bytes) -> None:
        await self.response.write(content)
        self._sent_at = asyncio.get_running_loop().time()
