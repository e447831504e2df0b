"""Texts on Redis or Valkey: compare and set by a script of five lines, the server's time only, each with an expiry.

Calls never wait long: a server that hangs must not hold up submissions.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any, Final, TypeVar

import redis.asyncio
from redis.exceptions import RedisError

from flux2_async.coordination.account_state import FORMAT
from flux2_async.coordination.redis.refusals import check_server, evicts, told
from flux2_async.coordination.store import Found, HopelessError, Kept, RemoteStore, finish
from flux2_async.errors import ConfigurationError

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("flux2_async")

# A text begins with a token that no other has. Who names that of what is there changes it; who does not, reads it.
COMPARE_AND_SET: Final = """
local kept = redis.call('GET', KEYS[1])
if ARGV[1] ~= (kept and string.sub(kept, 1, 16) or '') then
    local time = redis.call('TIME')
    return {kept, time[1], time[2]}
elseif ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
else
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
"""
TOKEN: Final = 16
NO_TOKEN: Final = "none"  # noqa: S105  it opens nothing
PING_EVERY: Final = 20.0
RESUBSCRIBE_MAX: Final = 2.0
# What 0.1.0 kept, for an hour more than what any of its processes could have lent; no version had another form.
STATE_OF_0_1_0: Final = "book"
OTHER_STATE_IN_USE: Final = 3_600_000
OTHERS_ARE_THERE: Final = (
    "redis: processes of another version of flux2_async have used this account in the last minutes, and each version "
    "uses the whole limit; run one version in all processes, or name another namespace:"
    " RedisCoordination(namespace=...)"
)
EVICTS: Final = (
    "redis: this server drops keys when it is full (maxmemory-policy %s), also those that tell what is paid: the same "
    "`key=` may then be paid again, and a budget exceeded; set maxmemory-policy to noeviction, or use another server"
)


@cache
def _warn_of(policy: str, _: object) -> None:
    """Warn once of each run of a server; hosted ones, which may not name it, share one."""
    logger.warning(EVICTS, policy)


class RedisStore(RemoteStore):
    """See `Store`; `prefix` begins the names of all keys and of the channel, an answer may take `timeout` seconds."""

    def __init__(self, client: "redis.asyncio.Redis", prefix: str, timeout: float) -> None:
        self._client = client
        self._prefix = prefix
        self._channel = f"{prefix}:{FORMAT}:news"
        self._timeout = timeout
        self._compare_and_set = client.register_script(COMPARE_AND_SET)
        self._listener: asyncio.Task[None] | None = None

    async def listen(self, on_line: Callable[[str], None]) -> None:
        """See `Store`."""
        if self._listener is None:
            loop = asyncio.get_running_loop()
            self._listener = loop.create_task(self._listen(on_line), name="flux2_async listen to redis")
        try:
            info = await self._call(self._client.info)
            check_server(info)
            await self._call(self._listen_once)
            await self.try_rights()
            if await self._others_are_there():
                raise ConfigurationError(OTHERS_ARE_THERE)
            if policy := evicts(info):
                _warn_of(policy, info.get("run_id"))
        except HopelessError as error:
            raise ConfigurationError(str(error)) from None

    async def look(self, name: str) -> Found:
        """See `RemoteStore`."""
        if (found := await self.replace(name, NO_TOKEN, Kept(None, 0.0, None))) is None:
            raise HopelessError("redis does not carry out the script of compare and set")
        return found

    async def replace(self, name: str, token: str, kept: Kept[Any]) -> Found | None:
        """See `RemoteStore`."""
        arguments: tuple[str, str, int] = token, "", 1
        if kept.text is not None:
            arguments = token, f"{secrets.token_hex(TOKEN // 2)}{kept.text}", max(1, round(1000 * kept.seconds))
        reply: Any = await self._call(lambda: self._compare_and_set(keys=[f"{self._prefix}:{name}"], args=arguments))
        if reply is None:
            return None
        found, whole, micro = reply
        now = int(whole) + int(micro) / 1_000_000
        return Found(found[:TOKEN], found[TOKEN:], now) if found else Found("", None, now)

    async def publish(self, line: str) -> None:
        """See `Store`."""
        await self._call(lambda: self._client.publish(self._channel, line))

    async def aclose(self) -> None:
        """See `Store`."""
        await finish(self._listener)
        await self._client.aclose()

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call the server; the one place where its failures become ours."""
        try:
            async with asyncio.timeout(2 * self._timeout):
                return await call()
        except (RedisError, OSError, TimeoutError) as error:
            failure = told(error)
            if isinstance(failure, HopelessError):
                # One that became a replica keeps its connections, and the address may lead to its successor.
                await self._client.connection_pool.disconnect()
        raise failure

    async def _listen_once(self) -> None:
        async with self._subscription() as pubsub:
            await pubsub.ping()
            await pubsub.get_message(timeout=2 * self._timeout)

    async def _others_are_there(self) -> bool:
        left: int = await self._call(partial(self._client.pttl, f"{self._prefix}:{STATE_OF_0_1_0}"))
        return left > OTHER_STATE_IN_USE

    @asynccontextmanager
    async def _subscription(self) -> AsyncIterator[Any]:
        async with self._client.pubsub() as pubsub:
            await pubsub.subscribe(self._channel)
            # Only the answer tells whether it is allowed.
            if await pubsub.get_message(timeout=2 * self._timeout) is None:
                raise TimeoutError
            yield pubsub

    async def _listen(self, on_line: Callable[[str], None]) -> None:
        """Hear what the others publish, whatever happens to the connection."""
        wait = 0.05
        while True:
            try:
                async with self._subscription() as pubsub:
                    # What was said meanwhile is lost.
                    on_line("")
                    wait = 0.05
                    await self._hear(pubsub, on_line)
            except Exception as error:  # noqa: BLE001  a listener that died would be missed by nobody
                logger.debug("listening to redis broke off: %s", type(error).__name__)
            await asyncio.sleep(wait * (0.5 + random.random()))  # noqa: S311  it spreads in time, it guards nothing
            wait = min(2 * wait, RESUBSCRIBE_MAX)

    async def _hear(self, pubsub: Any, on_line: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        ping_at, heard, warned = loop.time() + PING_EVERY, True, False
        while True:
            received = await pubsub.get_message(ignore_subscribe_messages=True, timeout=max(ping_at - loop.time(), 0.0))
            heard = heard or received is not None
            if received is not None and received["data"]:
                on_line(received["data"])
            if loop.time() >= ping_at:
                if not heard:
                    # Not even the last ping: the other end is gone without a word, as after a failover.
                    raise TimeoutError
                ping_at, heard = loop.time() + PING_EVERY, False
                await pubsub.ping()
                if not warned and await self._others_are_there():
                    warned = True
                    logger.warning(OTHERS_ARE_THERE)
