"""The settings of a shared state on Redis or Valkey; the redis package is needed when one is made."""

import re
from typing import Literal

from flux2_async._shown.frames import made_without_frames, showable
from flux2_async.coordination.store import Coordination, Store, check_settings, needs
from flux2_async.errors import ConfigurationError
from flux2_async.models.plain import plain


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
        self.store("", "")

    def __repr__(self) -> str:
        return f"<RedisCoordination namespace={self._namespace!r} on_failure={self.on_failure!r}>"

    def store(self, account: str, member: str) -> Store:
        """Make the store of a session, see `Coordination.store`."""
        del member
        with needs("redis", type(self).__name__, extra="redis"):
            from flux2_async.coordination.redis.address import client_of  # noqa: PLC0415  it needs the package
            from flux2_async.coordination.redis.store import RedisStore  # noqa: PLC0415  likewise
        # The braces keep all keys of an account on one node of a cluster.
        return RedisStore(client_of(self._url, self._timeout), f"{self._namespace}:{{{account}}}", self._timeout)


def _check(namespace: object, on_failure: object, timeout: object) -> None:
    if not isinstance(namespace, str) or not re.fullmatch(r"[^ {}]+", namespace) or not namespace.isprintable():
        raise ConfigurationError(f"namespace: {namespace!r} given, it must be a word without blanks and braces")
    check_settings(on_failure, timeout)
