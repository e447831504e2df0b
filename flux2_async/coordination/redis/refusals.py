"""What a Redis that refuses something means: whether waiting helps, and what to do, in words of ours.

The server's own words are not shown: they may repeat what it was sent.
"""

import re
import ssl
from collections.abc import Iterator
from typing import Any, Final

from redis.exceptions import MasterDownError, ResponseError

from flux2_async.coordination.store import HopelessError
from flux2_async.errors import ConfigurationError, CoordinationError

OLDEST_VERSION: Final = (6, 0)
_CLUSTER: Final = "redis: this is a node of a cluster, and clusters are not supported; use a server of its own"
# By the names of the package's classes, and by the server's words: those of Redis 6 for what a script may not do are of
# no class of their own.
_HOPELESS: Final = {
    r"\bNoPermissionError|NOPERM|user executing the script can't": (
        "redis: the user lacks {lacks}; see RedisCoordination for the rights that are needed"
    ),
    r"\b(AuthenticationError|AuthorizationError|NOAUTH|WRONGPASS)\b": (
        "redis refuses the user or the password; check them in the url"
    ),
    r"\b(AskError|ClusterError)\b": _CLUSTER,
    r"\b(ReadOnlyError|READONLY)\b": "redis takes no writes here; give the address of the server that does",
    "DB index is out of range": "redis has no database of the number in the url",
    "unknown command": (
        "redis does not know a command that is needed; use a Redis or Valkey server, no proxy or Sentinel"
    ),
}
_LACKS: Final = "a right: to a command within scripts, or to the namespace's keys or channels"


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


def evicts(info: dict[str, Any]) -> str:
    """Give the policy by which a server that is full drops keys, all of which have an end here; empty: it drops none.

    Hosted ones may not say how much they hold.
    """
    policy = str(info.get("maxmemory_policy", "noeviction"))
    return "" if policy == "noeviction" or info.get("maxmemory") == 0 else policy


def told(error: Exception) -> CoordinationError:
    """Say what a failure means."""
    told = " ".join([*(kind.__name__ for kind in type(error).__mro__), str(error)])
    for words, hopeless in _HOPELESS.items():
        if re.search(words, told) and not isinstance(error, MasterDownError):
            command = re.search(r"'([a-z|]{2,20})' command", told)
            return HopelessError(hopeless.format(lacks=f"+{command[1]}" if command else _LACKS))
    causes = [type(cause).__name__ for cause in _causes(error) if isinstance(cause, ssl.SSLError | PermissionError)]
    if causes:
        kinds = ", ".join(causes)
        return HopelessError(f"redis: the connection is refused ({kinds}); check scheme, certificates and rights")
    if isinstance(error, ResponseError):
        word = next(iter(str(error).split()), "")
        return CoordinationError(f"redis answers {word if word.isupper() else type(error).__name__}")
    return CoordinationError(f"redis cannot be reached ({type(error).__name__})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
