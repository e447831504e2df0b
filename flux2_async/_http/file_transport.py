"""Files from any host, without the key.

Addresses are requested as they were given, and redirects followed here: aiohttp would quote both anew, which breaks
their signatures, and would follow anywhere.

No error of aiohttp leaves this module, not even as a context, so errors are raised after the `except` block.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import SplitResult
from urllib.request import getproxies, proxy_bypass

import aiohttp
import attrs
from yarl import URL

from flux2_async._http.borrowed import route_of
from flux2_async._http.exchange import HEADER_LIMITS, end_with_connection
from flux2_async._http.failures import failure_text
from flux2_async._http.unasked import only_asked
from flux2_async._protocol.addresses import is_public_address, is_public_number, redirected, split_address
from flux2_async._shown.version import USER_AGENT
from flux2_async.errors import ConfigurationError, Flux2Error, SessionClosedError, TransportError
from flux2_async.models import Timeouts

CHUNK: Final = 64 * 1024
MAX_REDIRECTS: Final = 5
REDIRECTS: Final = (301, 302, 303, 307, 308)


async def _anonymous(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Leave out what a netrc file put on a request: signed addresses are refused when it comes along."""
    request.headers.pop("Authorization", None)
    return await only_asked(request, handler)


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
        """Give the content piece by piece, up to 64 KiB at a time.

        Raises:
            TransportError: The content broke off.
        """
        content = self._response.content
        while True:
            chunk, failure = b"", None
            try:
                chunk = await content.read(CHUNK)
            except Exception as error:  # noqa: BLE001  in a body that is no HTTP aiohttp raises errors that are none of its own
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
        private: Whether a redirect of a public host may lead into a private network.
        user_agent: Who asks.
    """

    def __init__(self, timeouts: Timeouts, *, private: bool = False, user_agent: str = USER_AGENT) -> None:
        self._limits = aiohttp.ClientTimeout(total=timeouts.download, sock_connect=timeouts.connect)
        self._seconds = timeouts.download
        self._user_agent = user_agent
        self._private = private
        self._http: aiohttp.ClientSession | None = None
        self._public: aiohttp.ClientSession | None = None
        self._makes_own_way = False
        self._closed = False

    def open(self, http: aiohttp.ClientSession, *, makes_own_way: bool = False) -> None:
        """Go through this session from now on; whoever gives it also closes it.

        Args:
            http: The session.
            makes_own_way: Whether its connections are made in a way of its own, such as through a SOCKS proxy, so that
                nobody else can tell where they end.
        """
        self._http = http
        self._makes_own_way = makes_own_way

    async def aclose(self) -> None:
        """Fetch nothing any more."""
        self._closed = True
        if self._public is not None:
            await self._public.close()

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[FileReply]:
        """Open a file at any host, without the key, following redirects; `headers` are further ones, such as Range.

        Yields:
            The answer, whatever its status; its content is read with `chunks`.

        Raises:
            TransportError: No answer came.
            ConfigurationError: A public host leads into a private network, which this session does not allow.
        """
        # Content-Length is compared with what arrives, so nothing may be unpacked on the way.
        sent = {"User-Agent": self._user_agent, "Accept-Encoding": "identity", **headers}
        response = await self._follow(url, sent)
        end_with_connection(response)
        try:
            yield FileReply(response.status, response.headers, response)
        finally:
            response.close()

    async def _follow(self, url: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        deadline = asyncio.get_running_loop().time() + self._seconds
        # An address that the service gives may be private: who runs a service of his own runs it there.
        stays_public = False
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._request(url, headers, deadline, stays_public=stays_public)
            location = response.headers.get("Location")
            if response.status not in REDIRECTS or location is None:
                return response
            response.release()
            if not (self._private or stays_public):
                stays_public = await _is_public(url)
            url = redirected(url, location)
        raise TransportError(f"too many redirects ({_as_given(url).host})")

    async def _request(
        self, url: str, headers: Mapping[str, str], deadline: float, *, stays_public: bool
    ) -> aiohttp.ClientResponse:
        http = self._usable()
        address = _as_given(url)
        response = None
        failure: Flux2Error | None = None
        try:
            if stays_public:
                http = self._way_to_public(http, address)
            response = await http.get(
                address,
                headers=headers,
                timeout=aiohttp.ClientTimeout(
                    total=max(0.001, deadline - asyncio.get_running_loop().time()),
                    sock_connect=self._limits.sock_connect,
                ),
                allow_redirects=False,
                middlewares=(only_asked if address.user else _anonymous,),
                raise_for_status=False,
                auto_decompress=True,
                **HEADER_LIMITS,
            )
        except _PrivateAddressError:
            failure = _refused(address.host)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            reason = getattr(error, "os_error", None)
            is_private = isinstance(reason, _PrivateAddressError)
            told = failure_text(error, address.host, self._limits)
            failure = _refused(address.host) if is_private else TransportError(told)
        if failure or response is None:
            raise failure or TransportError("no answer came")
        return response

    def _usable(self) -> aiohttp.ClientSession:
        assert self._http is not None, "not open"  # noqa: S101  the session opens before it sends
        if self._closed:
            raise SessionClosedError("the session was closed meanwhile; open it again, or make a new one")
        if self._http.closed:
            raise TransportError("http: the borrowed aiohttp.ClientSession was closed", never_sent=True)
        return self._http

    def _way_to_public(self, http: aiohttp.ClientSession, address: URL) -> aiohttp.ClientSession:
        """Give the session by which only public addresses are reached.

        Raises:
            _PrivateAddressError: The address itself is private.
        """
        if self._makes_own_way or _has_proxy(http, address):
            # Where the other end connects to is not seen from here.
            if not is_public_address(str(address)):
                raise _PrivateAddressError("private")
            return http
        if self._public is None:
            route = route_of(http.connector)
            inner = route.pop("socket_factory", None)
            connector = aiohttp.TCPConnector(**route, socket_factory=_public_sockets(inner))
            self._public = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._public


class _PrivateAddressError(OSError):
    """A connection would have led into a private network; it was not made."""


def _public_sockets(inner: Callable[[Any], socket.socket] | None) -> Callable[[Any], socket.socket]:
    """Give what makes the sockets of a connector whose connections end at public addresses only."""

    def made(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if not is_public_number(address[0]):
            # Always the same words, so that of a host with several such addresses this error comes out.
            raise _PrivateAddressError("private")
        return inner(info) if inner else socket.socket(family, kind, protocol)

    return made


def _as_given(url: str) -> URL:
    """Give an address that aiohttp requests byte for byte.

    Raises:
        TransportError: It is malformed.
    """
    try:
        origin, target = split_address(url)
        base = URL(origin)
        # Taken apart into path and query, an empty query would be lost.
        return URL(SplitResult(base.scheme, base.raw_authority, target, "", ""), encoded=True)
    except ValueError:
        pass
    raise TransportError("the address is malformed, or not http(s)")


async def _is_public(url: str) -> bool:
    """Whether a host that was given may be a public one."""
    host = _as_given(url).host
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        # Only a proxy knows it.
        return True
    return any(is_public_number(str(info[4][0])) for info in found)


def _has_proxy(http: aiohttp.ClientSession, address: URL) -> bool:
    # aiohttp offers no public way to ask for a session's own proxy.
    if getattr(http, "_default_proxy", None) is not None:
        return True
    return http.trust_env and address.scheme in getproxies() and not proxy_bypass(address.host or "")


def _refused(host: str | None) -> ConfigurationError:
    return ConfigurationError(
        f"a public host redirected to {host}, which is in a private network, so it was not followed; where that is "
        "right, make the session with private_downloads=True"
    )
