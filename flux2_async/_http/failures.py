"""What went wrong on the way to a server, in words."""

import socket
from collections.abc import Mapping
from typing import Final

import aiohttp

PROXY_WANTS_NO_MORE: Final = frozenset({408, 429})
PROXY_WANTS_A_LOGIN: Final = 407
NO_CONNECTION: Final = "no connection could be made; check the address and the network"


def failure_text(error: Exception, host: str | None, timeout: aiohttp.ClientTimeout | None = None) -> str:
    """Say what a failed exchange with a host died of."""
    what = words_of(error)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        status = getattr(error, "status", 0)
        what += f" with HTTP {status}" + "; give it a user name and a password" * (status == PROXY_WANTS_A_LOGIN)
    elif timeout is not None and isinstance(error, TimeoutError):
        connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
        seconds = timeout.sock_connect or timeout.connect if connecting else timeout.total
        what = what.replace("in time", f"within {seconds:g} s") if seconds else what
    return f"{what} ({host}: {type(error).__name__})"


def words_of(error: Exception) -> str:
    """Say what went wrong, and behind a semicolon what to do about it."""
    words = next((words for kind, words in FAILURES.items() if isinstance(error, kind)), "the exchange failed")
    if words == NO_CONNECTION and isinstance(getattr(error, "os_error", None), ConnectionRefusedError):
        return "the connection was refused; check the address, and whether the service runs there"
    return words


def connecting_text(error: Exception, host: str | None, seconds: float | None) -> str:
    """Say what kept a connection from being made within so many seconds."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return f"the connection was closed while it was made, as by a proxy that stops ({host}: {type(error).__name__})"
    if isinstance(error, TimeoutError):
        return f"no connection could be made within {seconds:g} s ({host}: {type(error).__name__})"
    if not isinstance(error, tuple(FAILURES)):
        return f"no connection could be made ({host}: {type(error).__name__})"
    return failure_text(error, host)


def is_lasting(error: Exception, *, reached: bool) -> bool:
    """Whether what kept a connection from being made would do so again, or is nothing that anybody knows of."""
    foreign = (ValueError, TypeError, AttributeError, RuntimeError)
    return bars_the_way(error, reached=reached) or isinstance(error, foreign)


def bars_the_way(error: Exception, *, reached: bool) -> bool:
    """Whether nothing reaches the host until a person changes something: the certificate, the proxy, the address.

    A name that is not known, of a host that was `reached` before, is a network that is away.
    """
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return 400 <= error.status < 500 and error.status not in PROXY_WANTS_NO_MORE  # noqa: PLR2004  HTTP's own class
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return error.os_error.errno == socket.EAI_NONAME and not reached
    return isinstance(
        error, aiohttp.ClientConnectorCertificateError | aiohttp.ServerFingerprintMismatch | aiohttp.InvalidURL
    )


# The first that fits counts, so subclasses stand before their bases.
FAILURES: Final[Mapping[type[Exception], str]] = {
    aiohttp.ClientConnectorDNSError: "the host name could not be resolved; check the address and the network",
    aiohttp.ClientConnectorCertificateError: (
        "the server's certificate is not trusted; check the address, the clock and the certificates of this machine"
    ),
    aiohttp.ClientSSLError: (
        "no TLS connection could be made; check whether the server speaks TLS, or wants a client certificate"
    ),
    aiohttp.ClientProxyConnectionError: "the proxy could not be reached",
    aiohttp.ClientHttpProxyError: "the proxy refused the connection",
    aiohttp.ClientConnectorError: NO_CONNECTION,
    aiohttp.ConnectionTimeoutError: "no connection could be made in time",
    aiohttp.ServerDisconnectedError: "the server closed the connection without an answer",
    aiohttp.ServerFingerprintMismatch: "the server's certificate is not the expected one",
    aiohttp.ClientPayloadError: "the answer broke off",
    aiohttp.TooManyRedirects: "too many redirects",
    aiohttp.ClientResponseError: "the answer is not valid HTTP",
    aiohttp.InvalidURL: "the address is malformed",
    aiohttp.NonHttpUrlClientError: "the address is not http(s)",
    TimeoutError: "no complete answer came in time",
    aiohttp.ClientConnectionError: "the connection broke",
    ConnectionError: "the connection broke",
    OSError: "the connection broke",
    aiohttp.ClientError: "the exchange failed",
    ValueError: "the request cannot be made",
}
