"""One request in, one answer out, over aiohttp.

What a failed exchange means is decided here (`_failure`), what a reply to createTask means in `_answers`.

No error of aiohttp leaves this module, not even as a context: `ClientResponseError` shows the Authorization
header in its repr. Errors are therefore raised after the `except` block, never in it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from flux2_async._answers import Answer, NeverSent, judge, unclear
from flux2_async._credentials import Credentials, check_borrowed
from flux2_async._failures import failure_text
from flux2_async._file_transport import FileTransport
from flux2_async._refusal import Redactor
from flux2_async._version import USER_AGENT
from flux2_async._wire import Reply
from flux2_async.errors import SessionClosedError, TransportError
from flux2_async.models import Request, Timeouts

__all__ = ["Transport"]

# An idle connection that the server is about to close makes a POST look like a lost reply.
SUBMIT_KEEPALIVE: Final = 1.0
# Of a connector's settings. The others say how many connections there are, and how long idle ones live.
ROUTE: Final = ("ssl", "family", "resolver", "use_dns_cache", "happy_eyeballs_delay", "interleave", "socket_factory")
MAX_REPLY: Final = 8 * 1024 * 1024

# Subclasses of less certain errors: ClientConnectorError is a ClientOSError, ConnectionTimeoutError a
# ServerTimeoutError. ClientHttpProxyError is the proxy's refusal of CONNECT.
NEVER_SENT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)


class Transport:
    """Speaks HTTP with the service.

    Attributes:
        files: Speaks with the hosts of files, without the key.

    Args:
        credentials: The account.
        timeouts: Seconds for each kind of call.
        http: The caller's session, used for everything but createTask and never closed; None to make one.

    Raises:
        ConfigurationError: `http` would send something of its own to hosts that must not see it.
    """

    def __init__(self, credentials: Credentials, timeouts: Timeouts, http: aiohttp.ClientSession | None) -> None:
        if http is not None:
            check_borrowed(http)
        self._credentials = credentials
        self._timeouts = timeouts
        self._submit_timeout = aiohttp.ClientTimeout(total=timeouts.connect + timeouts.submit, connect=timeouts.connect)
        self._record_timeout = aiohttp.ClientTimeout(total=timeouts.record, sock_connect=timeouts.connect)
        self.files = FileTransport(timeouts)
        self._borrowed = http
        self._http: aiohttp.ClientSession | None = None
        self._submit_http: aiohttp.ClientSession | None = None
        self._closed = False
        self._redact = Redactor(credentials.api_key)
        self._headers = {
            "Authorization": f"Bearer {credentials.api_key}",
            "Accept": "application/json",
            "User-Agent": USER_AGENT,
        }
        self._json_headers = {**self._headers, "Content-Type": "application/json"}

    async def open(self) -> None:
        """Make the connections' pools, in the running loop."""
        self._http = self._borrowed or aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        self._submit_http = _submit_session(self._borrowed)
        self.files.open(self._http)

    async def aclose(self) -> None:
        """Close what `open` made; a borrowed session stays open."""
        self._closed = True
        self.files.close()
        if self._submit_http is not None:
            await self._submit_http.close()
        if self._http is not None and self._http is not self._borrowed:
            await self._http.close()

    async def create_task(self, body: bytes, *, request: Request, ref: str) -> Answer:
        """Send createTask once.

        Args:
            body: The encoded request.
            request: What it stands for, for the error.
            ref: The name of this submission, for the error.

        Returns:
            What is known of it; it raises nothing.
        """
        assert self._submit_http is not None, "not open"  # noqa: S101  the session opens before it sends
        reply, failure = await self._exchange(
            self._submit_http,
            "POST",
            f"{self._credentials.base_url}/api/v1/jobs/createTask",
            timeout=self._submit_timeout,
            headers=self._json_headers,
            data=body,
        )
        if reply is None:
            assert failure is not None, "neither a reply nor a failure"  # noqa: S101  _exchange gives one of them
            return NeverSent(failure) if failure.never_sent else unclear(str(failure), request=request, ref=ref)
        broken_off = None if failure is None else str(failure)
        return judge(reply, sent=body, request=request, ref=ref, now=datetime.now(UTC), broken_off=broken_off)

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Reply:
        """Make one of the calls that cost nothing (all but createTask and uploads).

        Raises:
            TransportError: No complete answer came.
        """
        return await self._reply(
            method,
            f"{self._credentials.base_url}{path}",
            timeout=self._record_timeout,
            headers=self._headers if body is None else self._json_headers,
            data=body,
            params=params,
        )

    async def upload(self, form: aiohttp.FormData | aiohttp.MultipartWriter) -> Reply:
        """Send one file to the stream upload.

        Raises:
            TransportError: No complete answer came; sending the file again costs nothing.
        """
        return await self._reply(
            "POST",
            f"{self._credentials.upload_url}/api/file-stream-upload",
            timeout=aiohttp.ClientTimeout(total=self._timeouts.upload, sock_connect=self._timeouts.connect),
            headers=self._headers,
            data=form,
        )

    async def _reply(self, method: str, url: str, **options: Any) -> Reply:
        assert self._http is not None, "not open"  # noqa: S101  the session opens before it sends
        reply, failure = await self._exchange(self._http, method, url, **options)
        if failure is not None or reply is None:
            # What broke off because of the closing is told as such.
            raise self._unusable(self._http) or failure or TransportError("no answer came")
        return reply

    def _unusable(self, http: aiohttp.ClientSession) -> SessionClosedError | TransportError | None:
        if self._closed:
            return SessionClosedError("the session was closed meanwhile; make a new one")
        if http.closed:
            return TransportError("http: the borrowed aiohttp.ClientSession was closed", never_sent=True)
        return None

    async def _exchange(
        self, http: aiohttp.ClientSession, method: str, url: str, **options: Any
    ) -> tuple[Reply | None, TransportError | None]:
        """Give the answer, the failure, or both where the answer broke off."""
        if http.closed:
            return None, TransportError("http: the borrowed aiohttp.ClientSession was closed", never_sent=True)
        response = failure = None
        body = bytearray()
        try:
            async with http.request(
                method,
                url,
                allow_redirects=False,
                middlewares=(),
                raise_for_status=False,
                auto_decompress=True,
                **options,
            ) as response:
                while not response.content.at_eof():
                    body += await response.content.readany()
                    if len(body) > MAX_REPLY:
                        failure = TransportError(f"the answer of {response.url.host} is longer than {MAX_REPLY} bytes")
                        break
        except Exception as error:  # noqa: BLE001  a trace of a borrowed session may raise anything, also after the answer
            failure = _failure(error, urlsplit(url).hostname)
        if response is None:
            return None, failure
        return Reply(response.status, response.headers, bytes(body), self._redact), failure


def _failure(error: Exception, host: str | None) -> TransportError:
    """Say what a failed exchange means; only a connection that was never made is a certain "no"."""
    return TransportError(failure_text(error, host), never_sent=isinstance(error, NEVER_SENT))


def _submit_session(borrowed: aiohttp.ClientSession | None) -> aiohttp.ClientSession:
    """Make the session of createTask, on the same way out as the borrowed one."""
    route: dict[str, Any] = {}
    options: dict[str, Any] = {}
    if borrowed is not None:
        route = _route_of(borrowed.connector)
        proxies = {name: getattr(borrowed, f"_default_{name}", None) for name in ("proxy", "proxy_auth")}
        options = {name: value for name, value in proxies.items() if value is not None}
        options |= {"trust_env": borrowed.trust_env, "trace_configs": borrowed.trace_configs}
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=SUBMIT_KEEPALIVE, **route)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), **options)


def _route_of(connector: aiohttp.BaseConnector | None) -> dict[str, Any]:
    """Give what decides where the connections of a connector go, from where and how."""
    # aiohttp offers no public way to ask for these; what is missing takes aiohttp's default.
    route = {name: getattr(connector, f"_{name}") for name in ROUTE if hasattr(connector, f"_{name}")}
    # One that the connector made for itself it also closes.
    if getattr(connector, "_resolver_owner", True):
        route.pop("resolver", None)
    if local := getattr(connector, "_local_addr_infos", None):
        route["local_addr"] = local[0][-1]
    return route
