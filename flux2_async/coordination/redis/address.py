"""The address of a Redis or Valkey: its check, and what a client takes."""

import re
from typing import Any, Final
from urllib.parse import urlsplit

import redis.asyncio
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from flux2_async.errors import ConfigurationError

_BAD_URL: Final = (
    "url: it must look like redis://host:6379/0, rediss://user:password@host:6379 or unix:///path?db=0, with options "
    "of the redis package only, and files of certificates that can be read"
)


def client_of(url: object, timeout: float) -> "redis.asyncio.Redis":
    """Make a client, which connects when it is used; an answer may take `timeout` seconds.

    Raises:
        ConfigurationError: The address cannot be used.
    """
    return redis.asyncio.Redis.from_pool(redis.asyncio.ConnectionPool(**_connection_options(url, timeout)))


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
