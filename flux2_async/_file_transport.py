"""Files from any host, without the key.

No error of aiohttp leaves this module, not even as a context, so errors are raised after the `except` block.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import attrs

from flux2_async._failures import failure_text
from flux2_async._version import USER_AGENT
from flux2_async.errors import SessionClosedError, TransportError
from flux2_async.models import Timeouts

__all__ = ["FileReply", "FileTransport"]

CHUNK: Final = 64 * 1024


@attrs.frozen
class FileReply:
    """The head of a file that is being downloaded, and its content.

    Attributes:
        status: HTTP status, 200 or 206 for content.
        headers: Of the answer, names in any case.
    """

    status: int
    headers: Mapping[str, str]
    _response: aiohttp.ClientResponse

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give the content piece by piece.

        Yields:
            Up to 64 KiB at a time.

        Raises:
            TransportError: The content broke off.
        """
        content = self._response.content
        while True:
            chunk, failure = b"", None
            try:
                chunk = await content.read(CHUNK)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = TransportError(failure_text(error, self._response.url.host))
            if failure:
                raise failure
            if not chunk:
                return
            yield chunk


class FileTransport:
    """Speaks HTTP with the hosts of files.

    Args:
        timeouts: Seconds for each kind of call.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._http: aiohttp.ClientSession | None = None
        self._closed = False

    def open(self, http: aiohttp.ClientSession) -> None:
        """Go through this session from now on; whoever gives it also closes it."""
        self._http = http

    def close(self) -> None:
        """Fetch nothing any more."""
        self._closed = True

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[FileReply]:
        """Open a file at any host, without the key.

        Args:
            url: Its http(s) address.
            headers: Further headers, such as Range.

        Yields:
            The answer, whatever its status; its content is read with `chunks`.

        Raises:
            TransportError: No answer came.
        """
        assert self._http is not None, "not open"  # noqa: S101  the session opens before it sends
        timeout = aiohttp.ClientTimeout(total=self._timeouts.download, sock_connect=self._timeouts.connect)
        # Content-Length is compared with what arrives, so nothing may be unpacked on the way.
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        self._check_usable()
        response = failure = None
        try:
            response = await self._http.get(
                url,
                headers=sent,
                timeout=timeout,
                max_redirects=5,
                middlewares=(),
                raise_for_status=False,
                auto_decompress=True,
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            failure = TransportError(failure_text(error, urlsplit(url).hostname))
        if failure or response is None:
            raise failure or TransportError("no answer came")
        try:
            yield FileReply(response.status, response.headers, response)
        finally:
            response.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise SessionClosedError("the session was closed meanwhile; make a new one")
        if self._http is not None and self._http.closed:
            raise TransportError("http: the borrowed aiohttp.ClientSession was closed", never_sent=True)
