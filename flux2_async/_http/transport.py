"""The way to the service, over aiohttp: its connections, the key, and what a failed exchange means."""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from flux2_async._http.borrowed import ConnectorFactory, check_borrowed, make_connector, proxy_settings
from flux2_async._http.credentials import Credentials
from flux2_async._http.exchange import HEADER_LIMITS, LIKE_OURS, Failure, exchange
from flux2_async._http.fresh_connector import FreshConnector
from flux2_async._http.post import Route
from flux2_async._http.unasked import only_asked
from flux2_async._protocol.codec import Reply
from flux2_async.errors import SessionClosedError, TransportError
from flux2_async.models import Timeouts

if TYPE_CHECKING:
    from flux2_async._http.file_transport import FileTransport

JSON: Final = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json"}))


class Transport:
    """Speaks HTTP with the service.

    Args:
        credentials: The account.
        timeouts: Seconds for each kind of call.
        http: The caller's session, used for everything but createTask and never closed; None to make one.
        connector: Makes the connector of createTask, and of the other calls without `http`; None: as `http` has one.
        private_downloads: Whether a redirect of a public host of files may lead into a private network.

    Raises:
        ConfigurationError: `http` would send something of its own to hosts that must not see it, or cannot be imitated.
    """

    def __init__(
        self,
        credentials: Credentials,
        timeouts: Timeouts,
        http: aiohttp.ClientSession | None,
        connector: ConnectorFactory | None = None,
        *,
        private_downloads: bool = False,
    ) -> None:
        if http is not None:
            check_borrowed(http, connector)
        self._credentials = credentials
        self._api_url = f"{credentials.base_url}{credentials.service.api_path}"
        self._urls: dict[str, URL] = {}
        self._timeouts = timeouts
        self._record_timeout = aiohttp.ClientTimeout(total=timeouts.record, sock_connect=timeouts.connect)
        self._private_downloads = private_downloads
        self._files: FileTransport | None = None
        self._borrowed = http
        self._settings = {} if http is None else LIKE_OURS
        self._make_connector = connector
        self._http: aiohttp.ClientSession | None = None
        self._route: Route | None = None
        self._closed = False

    async def open(self) -> None:
        """Make the connections' pools, in the running loop.

        Raises:
            ConfigurationError: `connector` made none.
        """
        try:
            self._open()
        except BaseException:
            await self.aclose()
            raise

    def _open(self) -> None:
        connector = FreshConnector(make_connector(self._borrowed, self._make_connector))
        own = aiohttp.ClientSession(
            connector=connector,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            **HEADER_LIMITS,
            **proxy_settings(self._borrowed),
        )
        timeout = aiohttp.ClientTimeout(total=None, connect=self._timeouts.connect)
        self._route = Route(own, connector, self._credentials, timeout, self._timeouts.submit)
        self._http = self._borrowed or aiohttp.ClientSession(
            connector=None if self._make_connector is None else make_connector(None, self._make_connector),
            cookie_jar=aiohttp.DummyCookieJar(),
            **HEADER_LIMITS,
        )

    @property
    def files(self) -> "FileTransport":
        """Speaks HTTP with the hosts of files, without the key.

        Raises:
            SessionClosedError: Closed before any file was fetched.
        """
        if self._files is None:
            from flux2_async._http.file_transport import FileTransport  # noqa: PLC0415  loaded at first need

            assert self._http is not None, "not open"  # noqa: S101  the session opens before it fetches
            self._check_usable(self._http)
            self._files = FileTransport(
                self._timeouts, private=self._private_downloads, user_agent=self._credentials.user_agent
            )
            self._files.open(self._http, makes_own_way=self._make_connector is not None)
        return self._files

    async def aclose(self) -> None:
        """Close what `open` made; a borrowed session stays open."""
        self._closed = True
        if self._files is not None:
            await self._files.aclose()
        if self._route is not None:
            await self._route.aclose()
        if self._http is not None and self._http is not self._borrowed:
            await self._http.close()

    @property
    def submit_connections(self) -> FreshConnector:
        """The connections of createTask."""
        return self.to_create_task.connector

    @property
    def to_create_task(self) -> Route:
        """The way of the call that costs money; see `Post`."""
        assert self._route is not None, "not open"  # noqa: S101  the session opens before it sends
        return self._route

    def url(self, path: str) -> URL:
        """Where a call of the API goes."""
        if (url := self._urls.get(path)) is None:
            url = self._urls[path] = URL(f"{self._api_url}{path}")
        return url

    def call(self, method: str, path: str, **options: Any) -> Coroutine[Any, Any, Reply]:
        """Make one of the calls that cost nothing (all but createTask and uploads); `options`: see `exchange`.

        Raises:
            TransportError: No complete answer came.
        """
        # Handed on instead of wrapped, as below: every poll would pay for it.
        return self._reply(method, self.url(path), self._record_timeout, **options)

    def upload(self, path: str, content: aiohttp.FormData | bytes) -> Coroutine[Any, Any, Reply]:
        """Send one file as a form, or as JSON where the service is to find it.

        Raises:
            TransportError: No complete answer came; sending it again costs nothing.
        """
        url, headers = URL(f"{self._credentials.upload_url}{path}"), JSON if isinstance(content, bytes) else None
        timeout = aiohttp.ClientTimeout(total=self._timeouts.upload, sock_connect=self._timeouts.connect)
        return self._reply("POST", url, timeout, headers=headers, data=content)

    async def _reply(self, method: str, url: URL, timeout: aiohttp.ClientTimeout, **options: Any) -> Reply:
        assert self._http is not None, "not open"  # noqa: S101  the session opens before it sends
        self._check_usable(self._http)
        reply, failure = await exchange(
            self._http,
            method,
            url,
            middleware=self._with_key,
            redact=self._credentials.redact,
            timeout=timeout,
            **self._settings,
            **options,
        )
        if failure is not None or reply is None:
            # What broke off because of the closing is told as such.
            self._check_usable(self._http)
            failure = failure or Failure("no answer came")
            raise TransportError(failure.text, lasting=failure.lasting)
        return reply

    def _with_key(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> Coroutine[Any, Any, aiohttp.ClientResponse]:
        self._credentials.authorize(request)
        return only_asked(request, handler)

    def _check_usable(self, http: aiohttp.ClientSession) -> None:
        if self._closed:
            raise SessionClosedError("the session was closed meanwhile; open it again, or make a new one")
        if http.closed:
            raise TransportError("http: the borrowed aiohttp.ClientSession was closed", never_sent=True)
