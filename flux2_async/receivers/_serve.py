"""A small server for callbacks, for programs that have none."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
from aiohttp import web

from flux2_async.receivers._aiohttp import go_on, respond
from flux2_async.receivers._handler import CallbackTarget, settings_of

# Seconds: for the first request of a connection until all its headers are there, for an idle connection after that, for
# what a refused sender still sends, and for requests under way at the end.
HEAD_TIMEOUT: Final = 15.0
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


class _Server(web.Server):
    """Closes connections that bring no request, which aiohttp leaves open for long or for ever."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._silent: dict[object, asyncio.TimerHandle] = {}

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._silent[handler] = asyncio.get_running_loop().call_later(HEAD_TIMEOUT, handler.force_close)

    def spoke(self, handler: object) -> None:
        """The headers of a request are there."""
        if (timer := self._silent.pop(handler, None)) is not None:
            timer.cancel()

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        self.spoke(handler)
        super().connection_lost(handler, exc)


@asynccontextmanager
async def serve(flux: CallbackTarget, host: str, port: int) -> AsyncIterator[CallbackServer]:
    """Listen for the service's callbacks, at any path.

    Plain HTTP without access log; put it behind whatever gives the public address its TLS.

    Example:
        flux = Flux2Session(callbacks=Callbacks("https://app.example/flux2/callback/", secret="kept"))
        async with flux, serve(flux, "127.0.0.1", 0) as server:
            print(server.port)  # lead the public address there

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
        server.spoke(request.protocol)
        # An application of aiohttp does this by itself.
        await go_on(request)
        return await respond(flux, request, unpacks=False)

    # The access log would hold the signature of every address. Nothing is unpacked before its sender is known.
    server = _Server(
        receive,
        access_log=None,
        logger=logger,
        keepalive_timeout=KEEPALIVE,
        lingering_time=LINGER,
        auto_decompress=False,
    )
    runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        address = runner.addresses[0]
        yield CallbackServer(address[0], address[1])
    finally:
        await runner.cleanup()
