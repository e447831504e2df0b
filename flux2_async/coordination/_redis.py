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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from flux2_async._coordination import (
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
from flux2_async._membership import finish
from flux2_async._shared_limiter import boot_time
from flux2_async.coordination._book import Known
from flux2_async.coordination._scripts import BOOK_SCRIPTS, KEY_SCRIPTS, script
from flux2_async.errors import ConfigurationError, CoordinationError
from flux2_async.models import RateLimit

__all__ = ["RedisCoordination"]

T = TypeVar("T")

logger = logging.getLogger("flux2_async")

OLDEST_VERSION: Final = (6, 0)
HEARTBEAT: Final = 20.0
RESUBSCRIBE_MAX: Final = 2.0
_REFUSED: Final = "redis refuses this user or this command; check user, password and rights"


class RedisCoordination(Coordination):
    """Many processes on any number of hosts that share an account, by a Redis (6 or newer) or Valkey.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as the redis package takes it; never shown.
        namespace: Begins the names of all keys and channels, so that several applications can use one server; a user
            of limited rights needs `~NAMESPACE:*`, `&NAMESPACE:*`, the commands of scripts, strings and hashes, INFO.
        on_failure: While the server cannot be asked, submissions without a key go on by a safe share of the limit
            (`degrade`), or raise `CoordinationError` (`fail`).
        timeout: Seconds that the server may take to answer.

    The server's clock may be set: back costs nothing, and forward by more than a quarter of a second is noticed by
    every session that had asked before. Where none had, one step lets at most one further limit through, once.

    Raises:
        ConfigurationError: An argument cannot be used.
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
        self._namespace = namespace
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
        try:
            return redis.asyncio.Redis.from_url(
                self._url,
                decode_responses=True,
                # What every server knows.
                protocol=2,
                socket_timeout=self._timeout,
                socket_connect_timeout=self._timeout,
                socket_keepalive=True,
                retry=Retry(NoBackoff(), 0),
            )
        except (ValueError, TypeError, AttributeError):
            raise ConfigurationError(
                "url: it must look like redis://host:6379/0, rediss://user:password@host:6379 or unix:///path"
            ) from None


def _check(namespace: object, on_failure: object, timeout: object) -> None:
    if not isinstance(namespace, str) or not re.fullmatch(r"[^ {}]+", namespace) or not namespace.isprintable():
        raise ConfigurationError(f"namespace: {namespace!r} given, it must be a word without blanks and braces")
    if on_failure not in ("degrade", "fail"):
        raise ConfigurationError(f"on_failure: {on_failure!r} given, it must be 'degrade' or 'fail'")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
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
            check_version(await self._call(lambda: self._client.info("server")))
            await self._call(self._use_all_rights)
        except _RefusedError:
            raise ConfigurationError(
                "redis refuses this user; check user and password in the url, and the rights of the user, who needs the"
                " keys and the channels that begin with the namespace"
            ) from None

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
        return await self._call(lambda: self._scripts[name](keys=[f"{self._prefix}:book"], args=arguments))

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
        except (AuthenticationError, AuthorizationError, NoPermissionError):
            raise _RefusedError(_REFUSED) from None
        except ResponseError as error:
            word = _first_word(error)
            if word in ("NOAUTH", "WRONGPASS"):
                raise _RefusedError(_REFUSED) from None
            raise CoordinationError(f"redis answers {word}") from None
        except (RedisError, OSError, TimeoutError) as error:
            raise CoordinationError(f"redis cannot be reached ({type(error).__name__})") from None

    async def _use_all_rights(self) -> None:
        # Who may not listen would else miss every callback, and never know.
        async with self._subscription():
            await self.look("")
            await self.publish(Message("wake"))

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


class _RefusedError(CoordinationError):
    """User or password are wrong, or not allowed to do this."""


def check_version(info: dict[str, Any]) -> None:
    """Refuse a server that is too old.

    Raises:
        ConfigurationError: It is.
    """
    # Valkey names a version of Redis as well, the one it is compatible with.
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise ConfigurationError(f"redis {version} is too old; {oldest} or newer, or any Valkey, is needed")


def _first_word(error: Exception) -> str:
    # The server's own words may repeat what it was sent.
    words = str(error).split()
    return words[0] if words and words[0].isupper() else type(error).__name__


def _entry(reply: Any) -> KeyEntry | None:
    if not reply:
        return None
    fingerprint, ref, state, task_id, wait = reply
    return KeyEntry(fingerprint, ref, state, task_id, float(wait))
