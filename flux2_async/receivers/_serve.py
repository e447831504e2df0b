"""A small server for callbacks, for programs that have none."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import attrs
from aiohttp import HttpVersion11, web

from flux2_async.receivers._aiohttp import respond
from flux2_async.receivers._handler import CallbackTarget, settings_of

__all__ = ["CallbackServer", "serve"]

# Seconds: for an idle connection, for what a refused sender still sends, and for requests under way at the end.
KEEPALIVE: Final = 75.0
LINGER: Final = 2.0
SHUTDOWN: Final = 2.0


def _without_quotes(record: logging.LogRecord) -> bool:
    """Let a record of aiohttp pass without the error's text, which quotes what is no HTTP."""
    if record.exc_info and record.exc_info[0]:
        record.msg = f"{record.msg}: {record.exc_info[0].__name__}"
        record.exc_info = None
    return True


logger = logging.getLogger("flux2_async.receivers")
logger.addFilter(_without_quotes)


@attrs.frozen
class CallbackServer:
    """Where a server listens.

    Attributes:
        host: The address of the first socket.
        port: Its port.
    """

    host: str
    port: int

    @property
    def url(self) -> str:
        """The address on this machine; what `Callbacks` takes is the public address that leads here."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/"


@asynccontextmanager
async def serve(flux: CallbackTarget, host: str, port: int) -> AsyncIterator[CallbackServer]:
    """Listen for the service's callbacks, at any path.

    Plain HTTP without access log; put it behind whatever gives the public address its TLS.

    Args:
        flux: The session, made with `callbacks`; it need not be open yet, callbacks are asked to come again until then.
        host: The address to listen at.
        port: The port; 0 takes a free one.

    Yields:
        Where it listens.

    Raises:
        ConfigurationError: The session was made without `callbacks`.
        OSError: The address or port cannot be had.
    """
    settings_of(flux)

    async def receive(request: web.BaseRequest) -> web.Response:
        # An application of aiohttp does this by itself. Who is not told to go on may wait with its body for long.
        if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return await respond(flux, request)

    # The access log would hold the signature of every address.
    server = web.Server(receive, access_log=None, logger=logger, keepalive_timeout=KEEPALIVE, lingering_time=LINGER)
    runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        address = runner.addresses[0]
        yield CallbackServer(address[0], address[1])
    finally:
        await runner.cleanup()
