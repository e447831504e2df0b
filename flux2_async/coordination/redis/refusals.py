"""What a Redis that refuses something means: whether waiting helps, and what to do, in words of ours.

The server's own words are not shown: they may repeat what it was sent.
"""

import re
import ssl
from collections.abc import Iterator
from typing import Any, Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterError,
    MasterDownError,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
)

from flux2_async.coordination.store import HopelessError
from flux2_async.errors import ConfigurationError, CoordinationError

OLDEST_VERSION: Final = (6, 0)
_CLUSTER: Final = "redis: this is a node of a cluster, and clusters are not supported; use a server of its own"


def check_server(info: dict[str, Any]) -> None:
    """Refuse a server that, by what it says of itself, can never do what is needed.

    Raises:
        ConfigurationError: It is too old, a node of a cluster, a replica, or a Sentinel.
    """
    mode = info.get("redis_mode", "standalone")
    if mode == "sentinel":
        raise ConfigurationError(
            "redis: this is the port of a Sentinel; give the address of the server that it watches"
        )
    if mode == "cluster":
        raise ConfigurationError(_CLUSTER)
    if info.get("role") in ("slave", "replica"):
        raise ConfigurationError("redis: this is a replica; give the address of the server that takes writes")
    # Valkey names a version of Redis as well, the one it is compatible with.
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise ConfigurationError(f"redis {version} is too old; {oldest} or newer, or any Valkey, is needed")


def told(error: Exception) -> CoordinationError:
    """Say what a failure means."""
    causes = tuple(_causes(error))
    kinds = ", ".join(type(cause).__name__ for cause in causes if isinstance(cause, ssl.SSLError | PermissionError))
    hopeless = (
        _of_a_user(error, str(error))
        or _of_a_command(error, str(error))
        or (f"redis: the connection is refused ({kinds}); check scheme, certificates and rights" if kinds else "")
    )
    if hopeless:
        return HopelessError(hopeless)
    if isinstance(error, ResponseError):
        return CoordinationError(f"redis answers {_first_word(error)}")
    return CoordinationError(f"redis cannot be reached ({type(error).__name__})")


def _of_a_user(error: Exception, text: str) -> str:
    # The one of Redis 6 for what a script may not do has no class of its own.
    if isinstance(error, NoPermissionError) or "user executing the script can't" in text or "NOPERM" in text:
        command = re.search(r"'([a-z|]{2,20})' command", text)
        lacks = (
            f"+{command[1]}"
            if command
            else "a right: to a command within scripts, or to the namespace's keys or channels"
        )
        return f"redis: the user lacks {lacks}; see RedisCoordination for the rights that are needed"
    refused = isinstance(error, AuthenticationError | AuthorizationError) or text.startswith(("NOAUTH", "WRONGPASS"))
    return "redis refuses the user or the password; check them in the url" if refused else ""


def _of_a_command(error: Exception, text: str) -> str:
    if isinstance(error, AskError | ClusterError) and not isinstance(error, MasterDownError):
        return _CLUSTER
    if isinstance(error, ReadOnlyError):
        return "redis takes no writes here; give the address of the server that does"
    if "DB index is out of range" in text:
        return "redis has no database of the number in the url"
    if "unknown command" in text:
        return "redis does not know a command that is needed; use a Redis or Valkey server, no proxy or Sentinel"
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_word(error: Exception) -> str:
    words = str(error).split()
    return words[0] if words and words[0].isupper() else type(error).__name__
