"""What an open session consists of, and how the parts work together."""

import asyncio
import hashlib
import logging
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import aiohttp
import anyio
import anyio.to_thread
import attrs

from flux2_async._http.api import Api
from flux2_async._http.borrowed import ConnectorFactory
from flux2_async._http.credentials import Credentials
from flux2_async._http.files import Files
from flux2_async._http.transport import Transport
from flux2_async._limiter.limiter import Limiter
from flux2_async._limiter.permit import Permits
from flux2_async._limiter.slots import Slots
from flux2_async.errors import ConfigurationError
from flux2_async.models import (
    Polling,
    RateLimit,
    SessionStatistics,
    Timeouts,
)
from flux2_async.models.submission_state import SubmissionEvent
from flux2_async.session.enqueued import Enqueued
from flux2_async.session.keys import Keys
from flux2_async.session.open_ahead import OpenAhead
from flux2_async.session.sender import Sender
from flux2_async.session.submitter import Submitter
from flux2_async.session.task_ids import TaskIds
from flux2_async.session.transition import Transitions
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.observers import Observers
from flux2_async.tasks.schedule import Schedules
from flux2_async.tasks.watcher import Watcher

if TYPE_CHECKING:
    from flux2_async.coordination.client import Sharing
    from flux2_async.coordination.store import Coordination
    from flux2_async.session.callback_inbox import CallbackInbox, CallbackSettings
    from flux2_async.session.remembered import Remembered

__all__ = ["Engine", "Options", "Unsettled"]

logger = logging.getLogger("flux2_async")

IDS_PER_LINE: Final = 50
KEEPING_MAX: Final = 1.0
# Beyond what a POST may take: for what runs between permit and POST, such as `on_send`.
LEASE_SLACK: Final = 5.0

_open_accounts: Counter[str] = Counter()
_warned_accounts: set[str] = set()


@attrs.frozen
class Unsettled:
    """What a session left behind when it was closed.

    Attributes:
        task_ids: Tasks that were not finished; `attach` them when the session is open again, or in a new one.
        refs: Submissions of which it is not known whether the service accepted them.
    """

    task_ids: tuple[str, ...] = ()
    refs: tuple[str, ...] = ()


@attrs.frozen(kw_only=True, repr=False)
class Options:
    """What a session was given and is open with, see `Flux2Session`; checked.

    Attributes:
        rate_limit: New tasks per period, or None.
        max_running: Tasks alive, or None.
        polling: When to look.
        callbacks: Where callbacks come in, or None.
        coordination: How the account is shared with other processes, or None.
        http: A borrowed aiohttp session, or None.
        connector: Makes the connector of createTask, or None.
        timeouts: Seconds for each kind of call.
        private_downloads: Whether downloads may be redirected into a private network.
    """

    rate_limit: RateLimit | None
    max_running: int | None
    polling: Polling
    callbacks: "CallbackSettings | None"
    coordination: "Coordination | None"
    http: aiohttp.ClientSession | None
    connector: ConnectorFactory | None
    timeouts: Timeouts
    private_downloads: bool


class Engine:
    """The parts of one session, made in the loop they run in.

    Args:
        credentials: The account.
        options: What the session was given.
        observers: Told what happens.
        before: The parts of the session when it was open before, or None: what the service counts and what keys stand
            for does not end with a session's being closed.
    """

    def __init__(
        self, credentials: Credentials, options: Options, *, observers: Observers, before: "Engine | None" = None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.observers = observers
        observers.begin()
        self.transport = Transport(
            credentials,
            options.timeouts,
            options.http,
            options.connector,
            private_downloads=options.private_downloads,
        )
        self.api = Api(self.transport)
        self.files = Files(self.api)
        self.slots = Slots(options.max_running)
        self.base_url = credentials.base_url
        self.account = hashlib.sha256(f"{credentials.base_url} {credentials.api_key.reveal()}".encode()).hexdigest()
        self.sharing = None if options.coordination is None else self._share(options.coordination, options)
        self.limiter: Permits = Limiter(options.rate_limit) if self.sharing is None else self.sharing.limiter
        self.schedules = Schedules(options.polling)
        self._remembered = _remembered(credentials.base_url) if options.polling.remember else None
        self.watcher = Watcher(self.api, self.slots, self.schedules, options.polling, observers)
        # Another key may stand in the environment by now.
        before = before if before is not None and before.account == self.account else None
        self.keys: Keys = Keys() if before is None else before.keys
        self.task_ids: TaskIds = TaskIds() if before is None else before.task_ids
        self.inbox = None if options.callbacks is None else self._receive(options.callbacks)
        transitions = Transitions(
            limiter=self.limiter,
            rate_limit=options.rate_limit,
            schedules=self.schedules,
            watcher=self.watcher,
            inbox=self.inbox,
            keys=self.keys,
            observers=observers,
        )
        self.sender = Sender(
            api=self.api,
            files=self.files,
            slots=self.slots,
            limiter=self.limiter,
            inbox=self.inbox,
            transitions=transitions,
            task_ids=self.task_ids,
            observers=observers,
        )
        self.submitter = Submitter(
            sender=self.sender,
            transitions=transitions,
            files=self.files,
            keys=self.keys,
            watcher=self.watcher,
            sharing=self.sharing,
        )
        self.enqueued = Enqueued(self.submitter)
        self._open_ahead = OpenAhead(self.limiter, self.transport) if isinstance(self.limiter, Limiter) else None
        self.notified = 0
        self._counted = False
        if before is not None:
            self._take_over(before)

    def _take_over(self, before: "Engine") -> None:
        if isinstance(self.limiter, Limiter) and isinstance(before.limiter, Limiter):
            self.limiter.take_over(before.limiter)
        if self.inbox is not None and before.inbox is not None:
            self.inbox.take_over(before.inbox)

    async def open(self) -> None:
        """Read what an earlier session has learned, make the connections' pools, and join who shares the account."""
        if self._remembered is not None:
            await anyio.to_thread.run_sync(self._remembered.restore, self.schedules, abandon_on_cancel=True)
        await self.transport.open()
        if self.sharing is not None:
            try:
                await self.sharing.open()
            except BaseException:
                await self.transport.aclose()
                raise
            return
        self._counted = True
        _open_accounts[self.account] += 1
        if _open_accounts[self.account] > 1 and self.account not in _warned_accounts:
            _warned_accounts.add(self.account)
            logger.warning(
                "a second session of one account is open in this process; together they may exceed its limit. "
                "Share one session"
            )

    async def close(self, grace: float) -> Unsettled:
        """Close everything in order, whatever happens on the way.

        Args:
            grace: Seconds for createTask calls under way.

        Returns:
            What was left.
        """
        refs: tuple[str, ...] = ()
        task_ids: tuple[str, ...] = ()
        try:
            refs = await self.submitter.aclose(grace)
            await self.enqueued.aclose()
        finally:
            try:
                task_ids = await self.watcher.aclose()
            finally:
                if self._open_ahead is not None:
                    self._open_ahead.close()
                self.limiter.close()
                self.slots.close()
                if self.inbox is not None:
                    self.inbox.close()
                if self._counted:
                    self._counted = False
                    _open_accounts[self.account] -= 1
                if self.sharing is not None:
                    await self.sharing.aclose()
                await self.transport.aclose()
                await self._keep_what_was_learned()
                _log_left("session closed; tasks not finished, to be attached in a new session", task_ids)
                _log_left("session closed; submissions that may have been accepted", refs)
        return Unsettled(task_ids, refs)

    def leave(self) -> Unsettled:
        """Do what can be done without the event loop, which was closed while the session was open in it."""
        refs, task_ids = self.submitter.leave(), self.watcher.leave()
        self.enqueued.leave()
        if self._open_ahead is not None:
            self._open_ahead.close()
        if self._counted:
            self._counted = False
            _open_accounts[self.account] -= 1
        _log_left("the event loop was closed; tasks not finished, to be attached in a new session", task_ids)
        _log_left("the event loop was closed; submissions that may have been accepted", refs)
        return Unsettled(task_ids, refs)

    async def _keep_what_was_learned(self) -> None:
        knowledge = self.schedules.knowledge()
        if self._remembered is not None and knowledge["kinds"]:
            # Closing is bounded in time, whatever disk the folder is on.
            with anyio.move_on_after(KEEPING_MAX, shield=True):
                await anyio.to_thread.run_sync(self._remembered.keep, knowledge, abandon_on_cancel=True)

    def notify(self, task_id: str) -> None:
        """Look at a task now."""
        self.notified += 1
        self.watcher.hint(task_id)

    async def recover(self, ref: str) -> ImageTask:
        """Wait until a callback tells which task a submission became; see `Flux2Session.recover`."""
        if self.inbox is None:
            raise ConfigurationError(
                "recover: only a callback can tell which task a submission became; open the session with "
                "callbacks=Callbacks(...), or look at the account's log"
            )
        task = await self.inbox.recover(ref)
        self.task_ids.add(task.id)
        self.keys.found(ref, task.id)
        if self.sharing is not None:
            await self.sharing.recovered(ref, task.id)
        return task

    async def drain(self) -> None:
        """Wait until no submission and no task is outstanding."""
        while self.watcher or self.submitter or self.enqueued:
            await (self.enqueued or self.submitter or self.watcher).ended.wait()

    def statistics(self) -> SessionStatistics:
        """Give a snapshot."""
        paused_until = None
        if self.limiter.paused_until is not None:
            left = self.limiter.paused_until - self.loop.time()
            paused_until = datetime.now(UTC) + timedelta(seconds=left)
        return SessionStatistics(
            running=len(self.watcher),
            waiting=self.slots.waiting + self.limiter.waiting + self.sender.breaker.waiting,
            submitted=self.observers.steps[SubmissionEvent.ACCEPTED],
            refused=self.observers.steps[SubmissionEvent.THROTTLED],
            ambiguous=self.observers.steps[SubmissionEvent.UNCLEAR],
            polls=self.watcher.polls,
            callbacks=self.notified + (self.inbox.received if self.inbox is not None else 0),
            repeated_settles=self.watcher.repeated_settles,
            learned_limit=self.limiter.learned_limit,
            paused_until=paused_until,
        )

    def _receive(self, callbacks: "CallbackSettings") -> "CallbackInbox":
        from flux2_async.session.callback_inbox import CallbackInbox  # noqa: PLC0415  most sessions poll alone

        return CallbackInbox(
            callbacks,
            watcher=self.watcher,
            keys=self.keys,
            task_ids=self.task_ids,
            observers=self.observers,
            sharing=self.sharing,
        )

    def _share(self, coordination: "Coordination", options: Options) -> "Sharing":
        # Most sessions are the only ones of their account.
        from flux2_async.coordination.client import Sharing  # noqa: PLC0415
        from flux2_async.coordination.contract import Terms  # noqa: PLC0415

        lease = options.timeouts.connect + options.timeouts.submit + LEASE_SLACK
        terms = Terms(options.rate_limit, lease, post=options.timeouts.submit)
        return Sharing(coordination, self.account, terms, on_callback=self._relayed, records=self.api)

    def _relayed(self, ref: str, task_id: str) -> None:
        if self.inbox is not None:
            self.inbox.overhear(ref, task_id)
        else:
            self.watcher.hint(task_id)


def _remembered(base_url: str) -> "Remembered":
    from flux2_async.session.remembered import Remembered  # noqa: PLC0415  most sessions learn anew

    return Remembered(base_url)


def _log_left(what: str, names: tuple[str, ...]) -> None:
    # Leaving `async with` gives no answer to look at, so the log has to name them all.
    for begin in range(0, len(names), IDS_PER_LINE):
        logger.warning("%s: %s", what, " ".join(names[begin : begin + IDS_PER_LINE]))
