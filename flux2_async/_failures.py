"""What went wrong on the way to a server, in words."""

from collections.abc import Mapping
from typing import Final

import aiohttp

__all__ = ["FAILURES", "failure_text"]


def failure_text(error: Exception, host: str | None) -> str:
    """Say what a failed exchange with a host died of."""
    what = next((words for kind, words in FAILURES.items() if isinstance(error, kind)), "the exchange failed")
    return f"{what} ({host}: {type(error).__name__})"


# The first that fits counts, so subclasses stand before their bases.
FAILURES: Final[Mapping[type[Exception], str]] = {
    aiohttp.ClientConnectorDNSError: "the host name could not be resolved; check the address and the network",
    aiohttp.ClientConnectorCertificateError: "the server's certificate is not trusted",
    aiohttp.ClientSSLError: "no TLS connection could be made",
    aiohttp.ClientProxyConnectionError: "the proxy could not be reached",
    aiohttp.ClientHttpProxyError: "the proxy refused the connection",
    aiohttp.ClientConnectorError: "no connection could be made; check the address and the network",
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
    # With trust_env=True an entry of the netrc file for this host collides with the key.
    ValueError: "the request cannot be made; see that no netrc entry names this host",
}
