"""The shared state on Redis or Valkey: one Lua script per operation, the server's time only, every key with an expiry.

Calls never wait long: a server that hangs must not hold up submissions. A call that failed is not repeated here, since
nobody knows whether it was carried out; who asks joins anew instead, which sets that right.
"""

import asyncio
import itertools
import logging
import math
import random
import re
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

import redis.asyncio
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterError,
    MasterDownError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from flux2_async._shown import made_without_frames, showable
from flux2_async.coordination.account_state import FORMAT, Known
from flux2_async.coordination.contract import (
    Answer,
    Claim,
    Coordination,
    Coordinator,
    KeyEntry,
    Message,
    Settlement,
    Terms,
    decode_message,
    encode_message,
)
from flux2_async.coordination.membership import finish
from flux2_async.coordination.redis.scripts import BOOK_SCRIPTS, KEY_SCRIPTS, script
from flux2_async.coordination.shared_limiter import boot_time
from flux2_async.errors import ConfigurationError, CoordinationError
from flux2_async.models import RateLimit
from flux2_async.models.plain import is_number, plain

__all__ = ["RedisCoordination"]

T = TypeVar("T")

logger = logging.getLogger("flux2_async")

OLDEST_VERSION: Final = (6, 0)
HEARTBEAT: Final = 20.0
RESUBSCRIBE_MAX: Final = 2.0
_BAD_URL: Final = (
    "url: it must look like redis://host:6379/0, rediss://user:password@host:6379 or unix:///path?db=0, with options "
    "of the redis package only, and files of certificates that can be read"
)
_CLUSTER: Final = "redis: this is a node of a cluster, and clusters are not supported; use a server of its own"


@made_without_frames
@showable
class RedisCoordination(Coordination):
    """Many processes on any number of hosts that share an account, by a Redis (6 or newer) or Valkey.

    It has to be a server that takes writes: clusters, replicas and the ports of Sentinel are not supported. A user of
    limited rights needs these, with `flux2` for the namespace (and `+select` for another database than 0):

        ~flux2:* &flux2:* +info +subscribe +ping +publish +evalsha +script|load
        +time +get +set +del +hset +hmget +expire

    Args:
        url: `redis://`, `rediss://` (TLS), `valkey://`, `valkeys://` or `unix://` with options in its query, as the
            redis package takes them; never shown.
        namespace: Begins the names of all keys and channels, so that several applications can use one server.
        on_failure: While the server cannot be asked, submissions without a key go on by a safe share of the limit
            (`degrade`), or raise `CoordinationError` (`fail`).
        timeout: Seconds that the server may take to answer.

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
        self.on_failure = on_failure
        # An address that cannot be read is told when the session is made.
        self._client()

    def __repr__(self) -> str:
        return f"<RedisCoordination namespace={self._namespace!r} on_failure={self.on_failure!r}>"

    def coordinator(self, account: str, terms: Terms, on_message: Callable[[Message], None]) -> "RedisCoordinator":
        """See `Coordination`."""
        # The braces keep all keys of an account on one node of a cluster.
        return RedisCoordinator(self._client(), f"{self._namespace}:{{{account}}}", terms, on_message, self._timeout)

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


def _parse(url: object) -> dict[str, Any]:
    if not isinstance(url, str):
        raise TypeError
    # What the clients of Valkey call them.
    url = re.sub(r"^valkey(s?)://", r"redis\1://", url.strip())
    options: dict[str, Any] = {**parse_url(url)}
    path = urlsplit(url).path
    if options.get("connection_class") is redis.asyncio.UnixDomainSocketConnection:
        usable = bool(path)
    else:
        # Another word for a database would be taken for 0.
        usable = re.fullmatch(r"/?[0-9]*", path) is not None
    if not usable:
        raise ValueError
    return options


def _check(namespace: object, on_failure: object, timeout: object) -> None:
    if not isinstance(namespace, str) or not re.fullmatch(r"[^ {}]+", namespace) or not namespace.isprintable():
        raise ConfigurationError(f"namespace: {namespace!r} given, it must be a word without blanks and braces")
    if on_failure not in ("degrade", "fail"):
        raise ConfigurationError(f"on_failure: {on_failure!r} given, it must be 'degrade' or 'fail'")
    if not is_number(timeout) or not 0 < timeout < math.inf:
        raise ConfigurationError(f"timeout: {timeout!r} given, it must be a number of seconds above 0")


class RedisCoordinator(Coordinator):
    """See `Coordinator`."""

    def __init__(
        self,
        client: "redis.asyncio.Redis",
        prefix: str,
        terms: Terms,
        on_message: Callable[[Message], None],
        timeout: float,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._channel = f"{prefix}:news"
        self._terms = terms
        self._on_message = on_message
        self._timeout = timeout
        self._name = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._peer = ""
        self._known = Known()
        # The state's time in the answer to the latest question, and when that was asked.
        self._seen, self._asked_at = "", 0.0
        self._scripts = {name: client.register_script(script(name)) for name in (*BOOK_SCRIPTS, *KEY_SCRIPTS)}
        self._listener: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """See `Coordinator`."""
        self._listener = asyncio.get_running_loop().create_task(self._listen(), name="flux2_async listen to redis")
        try:
            check_server(await self._call(self._client.info))
            await self._call(self._use_all_rights)
        except _HopelessError as error:
            raise ConfigurationError(str(error)) from None

    async def join(self, held: Sequence[float] = (), keeps: Sequence[str] = (), alone: float = 0.0) -> Answer:
        """See `Coordinator`."""
        replaces, self._peer = f"{self._name}.", f"{self._name}.{next(self._numbers)}"
        return await self._ask("join", replaces, repr(alone), len(held), *map(repr, held), *keeps)

    async def acquire(self, want: int, *, first: bool = False) -> Answer:
        """See `Coordinator`."""
        return await self._ask("acquire", want, "1" if first else "")

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """See `Coordinator`."""
        facts = [(told.lease, told.fate.value, repr(told.ago), repr(told.pause)) for told in settlements]
        await self._book("settle", *itertools.chain.from_iterable(facts))

    async def publish(self, message: Message) -> None:
        """See `Coordinator`."""
        await self._call(lambda: self._client.publish(self._channel, encode_message(self._peer, message)))

    async def look(self, key: str) -> KeyEntry | None:
        """See `Coordinator`."""
        return _entry(await self._key("look", Claim(key, "", "", "")))

    async def reserve(self, claim: Claim) -> KeyEntry | None:
        """See `Coordinator`."""
        return _entry(await self._key("reserve", claim, repr(self._terms.lease)))

    async def bind(self, claim: Claim, task_id: str) -> None:
        """See `Coordinator`."""
        await self._key("bind", claim, task_id)

    async def doubt(self, claim: Claim) -> None:
        """See `Coordinator`."""
        await self._key("doubt", claim)

    async def free(self, claim: Claim) -> None:
        """See `Coordinator`."""
        await self._key("free", claim)

    async def unknown_in(self, ref: str) -> float | None:
        """See `Coordinator`."""
        key = await self._key_of(ref)
        entry = await self.look(key) if key else None
        return entry.wait if entry and entry.ref == ref and entry.state != "bound" else None

    async def resolve(self, ref: str, task_id: str) -> None:
        """See `Coordinator`."""
        if key := await self._key_of(ref):
            await self._key("resolve", Claim(key, "", ref, ""), task_id)

    async def aclose(self) -> None:
        """See `Coordinator`."""
        await finish(self._listener)
        try:
            if self._peer:
                await self._book("leave")
        except CoordinationError:
            # It is forgotten in a minute.
            pass
        finally:
            await self._client.aclose()

    async def _book(self, name: str, *facts: object) -> Any:
        rate = self._terms.rate or RateLimit(1, 1.0)
        arguments: list[Any] = [
            "",
            self._peer,
            secrets.token_hex(8),
            self._known.epoch,
            self._known.number,
            rate.limit if self._terms.rate else 0,
            repr(rate.period),
            repr(self._terms.lease),
            self._channel,
            self._seen,
            repr(boot_time() - self._asked_at),
            *facts,
        ]
        return await self._call(lambda: self._scripts[name](keys=[f"{self._prefix}:book:{FORMAT}"], args=arguments))

    async def _key(self, name: str, claim: Claim, extra: str = "") -> Any:
        keys = [f"{self._prefix}:key:{claim.key}", f"{self._prefix}:ref:{claim.ref}"]
        arguments = ("", self._peer, self._channel, claim.key, claim.fingerprint, claim.ref, claim.owner, extra)
        return await self._call(lambda: self._scripts[name](keys=keys, args=arguments))

    async def _key_of(self, ref: str) -> str:
        return str(await self._call(lambda: self._client.get(f"{self._prefix}:ref:{ref}")) or "")

    async def _ask(self, name: str, *facts: object) -> Answer:
        asked_at = boot_time()
        reply = await self._book(name, *facts)
        if reply is None:
            raise CoordinationError("redis has forgotten this session")
        wait, paused, learned, peers, epoch, number, seen, *leases = reply
        if asked_at >= self._asked_at:
            self._seen, self._asked_at = seen, asked_at
        if self._known.epoch != epoch or int(number) > self._known.number:
            self._known = Known(epoch, int(number))
        return Answer(tuple(leases), float(wait), float(paused), int(learned) if learned else None, int(peers))

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call the server; the one place where its failures become ours."""
        try:
            async with asyncio.timeout(2 * self._timeout):
                return await call()
        except (RedisError, OSError, TimeoutError) as error:
            told = _told(error)
        raise told

    async def _use_all_rights(self) -> None:
        """Do once whatever may be forbidden: who may not listen would else miss every callback, and never know."""
        async with self._subscription() as pubsub:
            await pubsub.ping()
            await pubsub.get_message(timeout=2 * self._timeout)
            await self.publish(Message("wake"))
        await self._key_of("")
        claim = Claim(f"check {self._name}", "", "", self._name)
        await self.reserve(claim)
        await self.free(claim)
        # Of somebody who was never there.
        await self._book("leave")

    @asynccontextmanager
    async def _subscription(self) -> AsyncIterator[Any]:
        async with self._client.pubsub() as pubsub:
            await pubsub.subscribe(self._channel)
            # Only the answer tells whether it is allowed.
            if await pubsub.get_message(timeout=2 * self._timeout) is None:
                raise TimeoutError
            yield pubsub

    async def _listen(self) -> None:
        """Hear what the others publish, whatever happens to the connection, and say that we are still there."""
        wait = 0.05
        while True:
            try:
                async with self._subscription() as pubsub:
                    # What was said meanwhile is lost; whoever waits should ask.
                    self._on_message(Message("wake"))
                    wait = 0.05
                    await self._hear(pubsub)
            except Exception as error:  # noqa: BLE001  a listener that died would be missed by nobody
                logger.debug("listening to redis broke off: %s", type(error).__name__)
            await asyncio.sleep(wait * (0.5 + random.random()))  # noqa: S311  it spreads in time, it guards nothing
            wait = min(2 * wait, RESUBSCRIBE_MAX)

    async def _hear(self, pubsub: Any) -> None:
        loop = asyncio.get_running_loop()
        next_beat = loop.time() + HEARTBEAT
        heard = True
        while True:
            received = await pubsub.get_message(
                ignore_subscribe_messages=True, timeout=max(next_beat - loop.time(), 0.0)
            )
            heard = heard or received is not None
            if received is not None and (decoded := decode_message(received["data"])) is not None:
                sender, message = decoded
                if sender.partition(".")[0] != self._name:
                    self._on_message(message)
            if loop.time() >= next_beat:
                if not heard:
                    # Not even the last ping: the other end is gone without a word, as after a failover.
                    raise TimeoutError
                next_beat, heard = loop.time() + HEARTBEAT, False
                await pubsub.ping()
                await self._beat()

    async def _beat(self) -> None:
        try:
            if self._peer:
                # Who asks for nothing would else not know how many there are when it has to do without the others.
                self._on_message(Message("peers", peers=(await self._ask("touch")).peers))
        except CoordinationError:
            # Whoever asks next finds out, and joins again.
            logger.debug("redis did not answer to a heartbeat")


class _HopelessError(CoordinationError):
    """Waiting will not help."""


def check_server(info: dict[str, Any]) -> None:
    """Refuse a server that can never do what is needed.

    Args:
        info: What it says of itself.

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


def _told(error: Exception) -> CoordinationError:
    """Say what a failure means, without the server's own words, which may repeat what it was sent."""
    causes = tuple(_causes(error))
    kinds = ", ".join(type(cause).__name__ for cause in causes if isinstance(cause, ssl.SSLError | PermissionError))
    hopeless = (
        _of_a_user(error, str(error))
        or _of_a_command(error, str(error))
        or (f"redis: the connection is refused ({kinds}); check scheme, certificates and rights" if kinds else "")
    )
    if hopeless:
        return _HopelessError(hopeless)
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
    return "redis refuses user or password; check them in the url" if refused else ""


def _of_a_command(error: Exception, text: str) -> str:
    if isinstance(error, AskError | ClusterError) and not isinstance(error, MasterDownError):
        return _CLUSTER
    if isinstance(error, ReadOnlyError):
        return "redis takes no writes here; give the address of the server that does"
    if "DB index is out of range" in text:
        return "redis has no database of the number in the url"
    if "unknown command" in text:
        return "redis does not know a command that is needed; give a server of Redis or Valkey, no proxy, no Sentinel"
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_word(error: Exception) -> str:
    words = str(error).split()
    return words[0] if words and words[0].isupper() else type(error).__name__


def _entry(reply: Any) -> KeyEntry | None:
    if not reply:
        return None
    fingerprint, ref, state, task_id, wait = reply
    return KeyEntry(fingerprint, ref, state, task_id, float(wait))
