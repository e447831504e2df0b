"""The settings of a shared state on Redis or Valkey, and the check of its address."""

import re
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import redis.asyncio
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from flux2_async._shown.frames import made_without_frames, showable
from flux2_async.coordination.redis.store import RedisStore
from flux2_async.coordination.store import Coordination, check_settings
from flux2_async.errors import ConfigurationError
from flux2_async.models.plain import plain

_BAD_URL: Final = (
    "url: it must look like redis://host:6379/0, rediss://user:password@host:6379 or unix:///path?db=0, with options "
    "of the redis package only, and files of certificates that can be read"
)


@made_without_frames
@showable
class RedisCoordination(Coordination):
    """Many processes on any number of hosts that share an account, by a Redis (6 or newer) or Valkey.

    It has to be a server that takes writes: clusters, replicas and the ports of Sentinel are not supported. A user of
    limited rights needs these, with `flux2` for the namespace (and `+select` for another database than 0):

        ~flux2:* &flux2:* +info +subscribe +ping +publish +evalsha +script|load
        +time +get +set +del +pttl

    Args:
        url: `redis://`, `rediss://` (TLS), `valkey://`, `valkeys://` or `unix://` with options in its query, as the
            redis package takes them; never shown.
        namespace: Begins the names of all keys and channels, so that several applications can use one server.
        on_failure: While the server cannot be asked, submissions without a key go on by a safe share of the limit
            (`degrade`), or raise `CoordinationError` (`fail`).
        timeout: Seconds that the server may take to answer.

    Processes of a version that keeps another state would use the limit a second time: while any of them was there in
    the last minutes, `open` refuses to begin, and one that comes later is warned of. End them first, or name another
    namespace.

    The server's clock may be set: back costs nothing, and forward by more than a quarter of a second is noticed by
    every session that had asked before. Where none had, one step lets at most one further limit through, once.

    Raises:
        ConfigurationError: An argument cannot be used. `Flux2Session.open` raises it where the server can never serve:
            a cluster, a replica, a certificate that is not trusted, a missing right.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "flux2",
        on_failure: Literal["degrade", "fail"] = "degrade",
        timeout: float = 1.0,
    ) -> None:
        _check(namespace, on_failure, timeout)
        self._url = url
        self._namespace = plain(namespace)
        self._timeout = timeout
        self.on_failure: Literal["degrade", "fail"] = on_failure
        # An address that cannot be read is told when the session is made.
        self._client()

    def __repr__(self) -> str:
        return f"<RedisCoordination namespace={self._namespace!r} on_failure={self.on_failure!r}>"

    def store(self, account: str, member: str) -> RedisStore:
        """Make the store of a session, see `Coordination.store`."""
        del member
        # The braces keep all keys of an account on one node of a cluster.
        return RedisStore(self._client(), f"{self._namespace}:{{{account}}}", self._timeout)

    def _client(self) -> "redis.asyncio.Redis":
        pool = redis.asyncio.ConnectionPool(**_connection_options(self._url, self._timeout))
        return redis.asyncio.Redis.from_pool(pool)


def _connection_options(url: object, timeout: float) -> dict[str, Any]:
    """What a pool takes, checked without a connection; a user's own options stand, but not against what we rely on."""
    try:
        options: dict[str, Any] = {**_parse(url)}
        kind = options.get("connection_class", redis.asyncio.Connection)
        if kind is not redis.asyncio.UnixDomainSocketConnection:
            options.setdefault("socket_keepalive", True)
        options |= {
            "decode_responses": True,
            # What every server knows.
            "protocol": 2,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
        }
        connection = kind(**{name: value for name, value in options.items() if name != "connection_class"})
        if isinstance(connection, redis.asyncio.SSLConnection):
            connection.ssl_context.get()
    except (ValueError, TypeError, AttributeError, RedisError, OSError):
        raise ConfigurationError(_BAD_URL) from None
    return options


def _parse(url: Any) -> dict[str, Any]:
    # What the clients of Valkey call them.
    url = re.sub(r"^valkey(s?)://", r"redis\1://", url.strip())
    options: dict[str, Any] = {**parse_url(url)}
    is_file = options.get("connection_class") is redis.asyncio.UnixDomainSocketConnection
    # Another word for a database would be taken for 0.
    if not re.fullmatch(r".+" if is_file else r"/?[0-9]*", urlsplit(url).path):
        raise ValueError
    return options


def _check(namespace: object, on_failure: object, timeout: object) -> None:
    if not isinstance(namespace, str) or not re.fullmatch(r"[^ {}]+", namespace) or not namespace.isprintable():
        raise ConfigurationError(f"namespace: {namespace!r} given, it must be a word without blanks and braces")
    check_settings(on_failure, timeout)
