"""What an open session shares with other processes of its account: permits, keys, and callbacks for each other."""

import asyncio
import hashlib
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

from flux2_async.coordination.contract import Claim, Message, Terms
from flux2_async.coordination.coordinator import Coordinator
from flux2_async.coordination.membership import Membership
from flux2_async.coordination.shared_limiter import SharedLimiter
from flux2_async.coordination.store import Coordination, finish
from flux2_async.errors import AmbiguousSubmitError, CoordinationError, Flux2Error, InvalidRequestError
from flux2_async.models import Request
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.watcher import Watcher

logger: logging.Logger = logging.getLogger("flux2_async")

# News of a key can be lost; this is how long nobody minds.
LOOK_EVERY: Final = 2.0
MAX_RELAYS: Final = 1000
# Services give up after 15 s, in which the body comes as well.
KEPT_WITHIN: Final = 5.0
CLOSE_TIMEOUT: Final = 1.0


class Sharing:
    """The session's side of a coordination.

    `watcher` watches the tasks of keys; `on_callback` is called with ref and task id of a callback that another process
    received, and has the watcher poll until somebody sets it.
    """

    def __init__(self, coordination: Coordination, account: str, terms: Terms, watcher: Watcher) -> None:
        self.coordinator: Coordinator = Coordinator(coordination, account, terms)
        self.limiter: SharedLimiter = SharedLimiter(
            self.coordinator, terms, may_degrade=coordination.on_failure == "degrade"
        )
        self.membership: Membership = self.limiter.membership
        self.on_callback: Callable[[str, str], None] = lambda _, task_id: watcher.hint(task_id)
        self.watcher: Watcher = watcher
        # Of keys; each goes with the last who waits for it.
        self._key_news = WeakValueDictionary[str, asyncio.Event]()
        # What others are to know of callbacks, and what becomes of keys by them.
        self._relays: set[asyncio.Task[None]] = set()
        self._overflowed = False
        self._doubts: set[asyncio.Task[None]] = set()
        # What callbacks told last of submissions of which it is looked whether that task exists.
        self._told: dict[str, str] = {}
        self._holds: dict[str, asyncio.Task[None]] = {}
        self._hold_every = terms.lease / 3
        self._to_tell: deque[Callable[[], Awaitable[None]]] = deque()
        self._telling: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Join; see `SharedLimiter.open`."""
        try:
            await self.limiter.open(self._hear)
        except BaseException:
            await self.membership.aclose()
            raise

    async def aclose(self) -> None:
        """Tell what is left to tell, and leave."""
        last_words = [*self._relays, *([] if self._telling is None else [self._telling])]
        if last_words and self.membership.joined:
            await asyncio.wait(last_words, timeout=CLOSE_TIMEOUT)
        for job in (*last_words, *self._doubts, *self._holds.values()):
            await finish(job)
        await self.limiter.aclose()

    async def relay(self, ref: str, task_id: str) -> bool:
        """Keep a callback that is for none of our tasks, and tell the others, in the background, until it is done.

        Returns:
            Whether that was done in a few seconds.
        """
        job = self._in_background(lambda: self.membership.ask(self.coordinator.pass_on, ref, task_id), self._relays)
        if job is None:
            if not self._overflowed:
                self._overflowed = True
                logger.warning(
                    "%d callbacks wait for the shared state of this account, and further ones are dropped: polls find "
                    "pictures all the same, but a submission whose answer was lost stays unclear unless its callback "
                    "comes again",
                    MAX_RELAYS,
                )
            return False
        self._doubt(ref, task_id)
        await asyncio.wait([job], timeout=KEPT_WITHIN)
        return job.done() and not job.cancelled()

    def _doubt(self, ref: str, task_id: str) -> None:
        known = ref in self._told
        self._told[ref] = task_id
        if not known and self._in_background(partial(self._end_doubt_of, ref), self._doubts) is None:
            del self._told[ref]

    async def _end_doubt_of(self, ref: str) -> None:
        """Look at what callbacks tell of a submission, one after the other: who knows its address may tell anything."""
        looked = None
        try:
            while (task_id := self._told[ref]) != looked and await self.end_doubt(ref, task_id) is False:
                looked = task_id
                await asyncio.sleep(LOOK_EVERY)
        except Flux2Error as error:
            if _passes(error):
                raise
        del self._told[ref]

    def disproved(self, ref: str, task_id: str) -> None:
        """Keep a callback no longer: the service does not know its task, and everybody who asks would poll it anew."""
        self._in_background(lambda: self.membership.ask(self.coordinator.drop_callback, ref, task_id), self._doubts)

    async def recovered(self, ref: str, task_id: str) -> None:
        """Let the key of a submission stand for the task that a callback told; later, if that takes long."""
        if (job := self._in_background(partial(self.end_doubt, ref, task_id), self._doubts)) is not None:
            await asyncio.wait([job], timeout=CLOSE_TIMEOUT)

    async def end_doubt(self, ref: str, task_id: str) -> bool | None:
        """Bind a key of which its process, which may have died, does not tell what became.

        Returns:
            Whether there is such a task; None where no key is in doubt.

        Raises:
            Flux2Error: It cannot be known now.
        """
        while wait := await self.membership.ask(self.coordinator.unknown_in, ref):  # noqa: ASYNC110  the dead set no event
            await asyncio.sleep(min(wait, LOOK_EVERY))
        if wait is None:
            return None
        if await self.watcher.ask(task_id) is None:
            return False
        await self.membership.ask(self.coordinator.resolve, ref, task_id)
        return True

    def key(self, key: str, fingerprint: str, ref: str, request: Request) -> "SharedKey":
        """Give a submission's claim to a key."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        return SharedKey(self, Claim(digest, fingerprint, ref, uuid.uuid4().hex), key, request)

    def hold(self, claim: Claim) -> None:
        """Renew the reservation of a key until `let_go`: only who has died leaves it in doubt."""
        self.let_go(claim)
        self._holds[claim.owner] = asyncio.get_running_loop().create_task(
            self._hold(claim), name="flux2_async hold key"
        )

    def let_go(self, claim: Claim) -> None:
        """Say no more that a key is reserved."""
        if (job := self._holds.pop(claim.owner, None)) is not None:
            job.cancel()

    def tell_later(self, statement: Callable[[], Awaitable[None]]) -> None:
        """Say something of a key in the background, again until it was heard."""
        self._to_tell.append(statement)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell(), name="flux2_async tell keys")

    async def news_of(self, key: str, seconds: float) -> None:
        """Wait until somebody says something of a key, or so long."""
        event = self._key_news.setdefault(key, asyncio.Event())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    def _hear(self, message: Message) -> None:
        match message.kind:
            case "callback":
                self.on_callback(message.ref, message.task_id)
            case "key":
                if (event := self._key_news.get(message.key)) is not None:
                    event.set()
            case kind:
                if kind == "pause":
                    logger.info(
                        "another process of this account lets all submissions pause for %.1f s", message.seconds
                    )
                self.limiter.hear(message)

    async def _hold(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(self._hold_every)
            with suppress(CoordinationError):
                await self.membership.ask(self.coordinator.reserve, claim)

    async def _tell(self) -> None:
        while self._to_tell:
            try:
                await self.membership.ask(self._to_tell[0])
            except CoordinationError:
                await asyncio.sleep(0.1)
            else:
                self._to_tell.popleft()

    def _in_background(
        self, work: Callable[[], Awaitable[object]], jobs: set[asyncio.Task[None]]
    ) -> asyncio.Task[None] | None:
        if len(jobs) >= MAX_RELAYS:
            return None
        job = asyncio.get_running_loop().create_task(self._quietly(work), name="flux2_async relay")
        jobs.add(job)
        job.add_done_callback(jobs.discard)
        return job

    async def _quietly(self, work: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await work()
            except Flux2Error as error:
                if _passes(error):
                    # Nobody else knows it, and the service does not say it again.
                    await asyncio.sleep(LOOK_EVERY)
                    continue
                logger.debug("what a callback told could not be passed on: %s", type(error).__name__)
            return


def _passes(error: Flux2Error) -> bool:
    return error.transient or isinstance(error, CoordinationError)


class SharedKey:
    """One submission's claim to a key that all processes know; `key` and `request` are for errors."""

    def __init__(self, sharing: Sharing, claim: Claim, key: str, request: Request) -> None:
        self._sharing = sharing
        self._coordinator = sharing.coordinator
        self._claim = claim
        self._key = key
        self._request = request
        self._reserved = False
        self._heard = asyncio.Event()

    async def look(self) -> ImageTask | None:
        """Give the task that the key stands for, after waiting for a POST that is under way; None: the key is free.

        Raises:
            InvalidRequestError: The key stands for another request.
            AmbiguousSubmitError: Nobody knows whether the task exists.
            CoordinationError: The shared state cannot be asked.
        """
        while True:
            entry = await self._sharing.membership.ask(self._coordinator.look, self._claim.key)
            if entry is None:
                return None
            if entry.fingerprint != self._claim.fingerprint:
                raise InvalidRequestError(
                    f"key: {self._key!r} already stands for another request; give each piece of work a key of its own"
                )
            if entry.state == "bound":
                return self._sharing.watcher.attach(entry.task_id)
            if entry.state == "unknown":
                if await self._told(entry.ref):
                    continue
                raise AmbiguousSubmitError(
                    f"another process sent createTask under key {self._key!r}, and nobody knows whether the service "
                    "accepted it; call recover(ref), or check the task log of your account before you use another key",
                    request=self._request,
                    ref=entry.ref,
                )
            await self._sharing.news_of(self._claim.key, min(entry.wait, LOOK_EVERY))

    async def _told(self, ref: str) -> bool:
        """Use a callback that was taken before its process, or the one that took it, died."""
        task_id = await self._sharing.membership.ask(self._coordinator.callback_of, ref)
        try:
            return task_id is not None and bool(await self._sharing.end_doubt(ref, task_id))
        except CoordinationError:
            raise
        except Flux2Error as error:
            # Whether that task exists is not known now, nor does anything get lost by that.
            logger.debug("what a callback told of submission %s cannot be polled: %s", ref, type(error).__name__)
            return False

    async def is_taken(self) -> bool:
        """Whether another process has reserved the key, or it stands for a task.

        Raises:
            CoordinationError: The shared state cannot be asked.
        """
        return await self._sharing.membership.ask(self._coordinator.look, self._claim.key) is not None

    async def reserve(self) -> bool:
        """Reserve the key for a POST; False: somebody else was faster, look again.

        Raises:
            CoordinationError: The shared state cannot be asked.
        """
        # Also when no answer comes: it may be reserved.
        self._reserved = True
        self._reserved = await self._sharing.membership.ask(self._coordinator.reserve, self._claim) is None
        if self._reserved:
            # What is told of the POST, or a refusal that is not certain yet, may take longer than a reservation lasts.
            self._sharing.hold(self._claim)
        return self._reserved

    async def release(self) -> None:
        """Free the key while this submission waits for another try."""
        self._sharing.let_go(self._claim)
        try:
            await self._sharing.membership.ask(self._coordinator.free, self._claim)
        except CoordinationError:
            # It stays ours, and nobody is to be in doubt of it before the next try.
            self._sharing.hold(self._claim)
            logger.debug("a key could not be freed")

    def bound(self, task_id: str | None) -> None:
        """Say which task it is; None: nobody knows whether there is one."""
        self._sharing.let_go(self._claim)
        self._sharing.tell_later(partial(self._bind, task_id))

    async def _bind(self, task_id: str | None) -> None:
        await self._coordinator.bind(self._claim, task_id)
        if task_id is not None:
            self._heard.set()

    async def heard(self) -> None:
        """Wait until the others know that, a few seconds at most: were this process to die now they would doubt it."""
        if self._reserved:
            with suppress(TimeoutError):
                async with asyncio.timeout(KEPT_WITHIN):
                    await self._heard.wait()

    def freed(self) -> None:
        """Say that nothing was created."""
        self._sharing.let_go(self._claim)
        if self._reserved:
            self._sharing.tell_later(partial(self._coordinator.free, self._claim))
