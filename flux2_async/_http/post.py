"""One createTask on its way: its connection, who is told before it leaves, the last look, its answer."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, Self

import aiohttp
import attrs
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from flux2_async._http.credentials import Credentials
from flux2_async._http.exchange import Failure, exchange
from flux2_async._http.failures import bars_the_way, connecting_text, failure_text, is_lasting
from flux2_async._http.fresh_connection import FreshConnection
from flux2_async._http.fresh_connector import FreshConnector
from flux2_async._protocol.answers import Accepted, Answer, NeverSent, Obstacle, Refused, Unclear, confirm, unclear
from flux2_async._protocol.codec import Reply
from flux2_async._protocol.framing import behind_reply
from flux2_async._shown.frames import Secret
from flux2_async.errors import TransportError
from flux2_async.models import Request

# One connection carries one request, and the server need not keep it.
HEADERS: Final = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json", "Connection": "close"}))

Announce = Callable[[], Awaitable[None]]
Judge = Callable[..., Accepted | Refused | Unclear]

MAX_SPOILED: Final = 5
"""Connections that the peer ends, or speaks on, before their first byte, until that is no accident."""


@attrs.frozen(eq=False, repr=False)
class Route:
    """The way that all createTasks of a session go.

    Attributes:
        http: Their session.
        connector: Its connector.
        credentials: The account.
        timeout: Bounds the making of a connection.
        seconds: From the first byte to the whole answer.
    """

    http: aiohttp.ClientSession
    connector: FreshConnector
    credentials: Credentials
    timeout: aiohttp.ClientTimeout
    seconds: float

    async def aclose(self) -> None:
        """Close session and connections."""
        await self.http.close()
        await self.connector.aclose()


class Post:
    """One createTask over a connection of its own, which is closed when this context manager is left.

    Args:
        route: The way to the service.
        url: Of the call.
        body: The encoded request.
        judge: Says what a reply means; see `answers.judge`.
        request: What the body stands for, for the error.
        ref: The name of this submission, for the error.
        headers: Of this call alone; they outrank the session's.
    """

    _announce: Announce | None = None
    _kept_back: Exception | None = None
    _late = False
    _unconnected: NeverSent | None = None
    _connection: FreshConnection | None = None

    def __init__(
        self,
        route: Route,
        url: URL,
        body: bytes,
        *,
        judge: Judge,
        request: Request,
        ref: str,
        headers: Secret | None = None,
    ) -> None:
        self._route = route
        self._url = url
        self._body = body
        self._judge_reply = judge
        self._request = request
        self._ref = ref
        self._headers = headers

    @property
    def sent(self) -> bool:
        """Whether a byte of it may have left."""
        return self._connection is not None and self._connection.given > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    async def send(self, lease_ended: Callable[[], bool], announce: Announce | None = None) -> Answer:
        """Open a connection, and let the request go over it.

        Args:
            lease_ended: Asked immediately before the first byte; True keeps the request from leaving.
            announce: Awaited once, when there is a connection and before anything leaves; it may take its time, as a
                connection that is too old by then is replaced. None: nobody has to be told.

        Returns:
            What is known of it.

        Raises:
            Exception: What `announce` raised; nothing left.
        """
        self._lease_ended, self._announce = lease_ended, announce
        # A connection that the peer spoiled before the first byte is neither an attempt nor an outage.
        left = MAX_SPOILED
        while True:
            left -= 1
            reply, failure = await exchange(
                self._route.http,
                "POST",
                self._url,
                middleware=self._send_fresh,
                redact=self._route.credentials.redact,
                timeout=self._route.timeout,
            )
            if (error := self._kept_back) is not None:
                self._kept_back = None
                try:
                    raise error
                finally:
                    # Its frames hold this one.
                    del error
            if (connection := self._connection) is not None:
                if connection.overdue:
                    within = aiohttp.ClientTimeout(total=self._route.seconds)
                    failure = Failure(failure_text(TimeoutError(), self._url.authority, within))
                elif connection.spoiled and not connection.given and left and not self._late:
                    continue
            return self._judge(reply, failure.text if failure else None)

    async def is_over(self, seconds: float) -> bool:
        """Watch the connection for so long, once it was answered: whether its peer has ended it, or spoken on."""
        assert self._connection is not None, "answered without a connection"  # noqa: S101  it came over one
        return bool(behind_reply(self._connection.heard)) or await self._connection.is_over(seconds)

    def confirm(self, answer: Accepted | Refused) -> Accepted | Refused | Unclear:
        """Say whether an answer is this request's, by what else has come over the connection."""
        assert self._connection is not None, "answered without a connection"  # noqa: S101  it came over one
        return confirm(answer, self._connection.heard, sent=self._body, request=self._request, ref=self._ref)

    async def _send_fresh(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        request.headers.update(HEADERS)
        request.headers["Content-Length"] = str(len(self._body))
        self._route.credentials.authorize(request)
        if (header := self._route.credentials.service.idempotency_header) is not None:
            request.headers[header] = self._ref
        # Behind the others, and not as an argument, which lies open in frames.
        if self._headers is not None:
            request.headers.update(self._headers.reveal())
        connection = await self._open(request)
        if (announce := self._announce) is not None:
            self._announce = None
            try:
                await announce()
            except BaseException as error:
                connection.close()
                if not isinstance(error, Exception):
                    raise
                self._kept_back = error
            if self._kept_back is not None:
                # `send` raises it: aiohttp would make another one of it.
                raise aiohttp.ClientError
        # What the system alone has seen of the peer is asked for once, before the first byte.
        if not connection.seems_fresh():
            connection.close()
            connection = await self._open(request)
        self._connection = connection
        connection.use(self._may_leave, self._body, self._route.seconds)
        self._route.connector.assign(request, connection)
        return await handler(request)

    async def _open(self, request: aiohttp.ClientRequest) -> FreshConnection:
        try:
            return await self._route.connector.open(request, self._route.timeout)
        except Exception as error:
            reached = self._route.connector.reached
            text = connecting_text(error, request.url.host_port_subcomponent, self._route.timeout.connect)
            lasting, barred = is_lasting(error, reached=reached), bars_the_way(error, reached=reached)
            self._connection = None
            self._unconnected = _never_sent(text, Obstacle.LASTING if lasting else Obstacle.PASSING, barred=barred)
            raise

    def _may_leave(self) -> bool:
        self._late = self._lease_ended()
        return not self._late

    def _judge(self, reply: Reply | None, failure: str | None) -> Answer:
        if reply is not None:
            answer = self._judge_reply(
                reply,
                sent=self._body,
                request=self._request,
                ref=self._ref,
                now=lambda: datetime.now(UTC),
                broken_off=failure,
            )
            # A refusal is confirmed later, as its caller may wait for more to come.
            return self.confirm(answer) if isinstance(answer, Accepted) else answer
        if self.sent:
            return unclear(failure or "no answer came", request=self._request, ref=self._ref)
        return self._kept(failure or "no answer came")

    def _kept(self, failure: str) -> NeverSent:
        """Say what kept the request from leaving."""
        if self._connection is None and self._unconnected is not None:
            return self._unconnected
        if self._late:
            return _never_sent("the permit's lease ended before the request could leave", Obstacle.LEASE)
        if self._connection is not None and self._connection.spoiled:
            told = f"each of {MAX_SPOILED} connections was closed by the server, or received data, before it was used"
            return _never_sent(told, Obstacle.PASSING)
        # Where it was not even asked for a connection, it is neither the network's doing nor ours.
        return _never_sent(failure, Obstacle.LASTING)


def _never_sent(text: str, obstacle: Obstacle, *, barred: bool = False) -> NeverSent:
    return NeverSent(TransportError(text, never_sent=True, lasting=barred), obstacle)
