"""What an open session consists of: its parts are made and opened in order, and closed in reverse."""

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

import aiohttp
import anyio
import anyio.to_thread
import attrs

from flux2_async._http.api import Api
from flux2_async._http.borrowed import ConnectorFactory
from flux2_async._http.credentials import Credentials
from flux2_async._http.files import Files
from flux2_async._http.transport import Transport
from flux2_async._limiter.limiter import Gate, Limiter
from flux2_async._limiter.slots import Slots
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
from flux2_async.tasks.observers import Observers
from flux2_async.tasks.schedule import Schedules
from flux2_async.tasks.watcher import Watcher

if TYPE_CHECKING:
    from flux2_async.coordination.client import Sharing
    from flux2_async.coordination.store import Coordination
    from flux2_async.session.callback_inbox import CallbackInbox
    from flux2_async.session.callback_settings import CallbackSettings
    from flux2_async.session.remembered import Remembered

logger = logging.getLogger("flux2_async")

IDS_PER_LINE: Final = 50
KEEPING_MAX: Final = 1.0
# Beyond what a POST may take: for what runs between permit and POST, such as `on_send`.
LEASE_SLACK: Final = 5.0

# Those that are open without a coordination.
_alone: WeakSet["Parts"] = WeakSet()
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


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Parts:
    """What an open session consists of.

    Attributes:
        loop: The event loop they were made in.
        base_url: The service.
        account: A digest of address and key.
        transport: Speaks HTTP.
        api: The calls.
        files: Uploads and downloads.
        slots: Tasks that may be alive.
        sharing: The side of a coordination, or None.
        limiter: Tasks that may be started.
        schedules: When to look.
        remembered: What an earlier session has learned of that, or None.
        watcher: Looks at tasks, and settles them.
        keys: What each key stands for.
        task_ids: Those of submissions.
        inbox: Takes callbacks; None without.
        submitter: Takes submissions.
        enqueued: Those that nobody has to await.
        opened: Closes what is open, in reverse.
    """

    loop: asyncio.AbstractEventLoop
    base_url: str
    account: str
    transport: Transport
    api: Api
    files: Files
    slots: Slots
    sharing: "Sharing | None"
    limiter: Gate
    schedules: Schedules
    remembered: "Remembered | None"
    watcher: Watcher
    keys: Keys
    task_ids: TaskIds
    inbox: "CallbackInbox | None"
    submitter: Submitter
    enqueued: Enqueued
    opened: AsyncExitStack


def make_parts(credentials: Credentials, options: Options, observers: Observers, before: Parts | None) -> Parts:
    """Make the parts of a session in the running event loop, each from those before it.

    Args:
        credentials: The account.
        options: What the session was given.
        observers: Told what happens.
        before: The parts of the session when it was open before, or None: what the service counts and what keys stand
            for does not end with a session's being closed.
    """
    base_url = credentials.base_url
    account = hashlib.sha256(f"{base_url} {credentials.api_key.reveal()}".encode()).hexdigest()
    # Another key may stand in the environment by now.
    before = before if before is not None and before.account == account else None
    observers.begin()
    transport = Transport(
        credentials, options.timeouts, options.http, options.connector, private_downloads=options.private_downloads
    )
    api = Api(transport)
    files = Files(api, credentials.service.max_image_bytes)
    slots = Slots(options.max_running)
    schedules = Schedules(options.polling)
    watcher = Watcher(api, slots, schedules, options.polling, observers)
    keys, task_ids = (Keys(), TaskIds()) if before is None else (before.keys, before.task_ids)
    sharing = None if options.coordination is None else _share(options.coordination, account, options, api, watcher)
    limiter = sharing.limiter if sharing is not None else _limiter(options.rate_limit, before)
    inbox = None
    if options.callbacks is not None:
        from flux2_async.session.callback_inbox import CallbackInbox  # noqa: PLC0415  most sessions poll alone

        inbox = CallbackInbox(
            options.callbacks, watcher=watcher, keys=keys, task_ids=task_ids, observers=observers, sharing=sharing
        )
        if before is not None and before.inbox is not None:
            inbox.take_over(before.inbox)
    transitions = Transitions(
        limiter=limiter,
        rate_limit=options.rate_limit,
        schedules=schedules,
        watcher=watcher,
        inbox=inbox,
        keys=keys,
        observers=observers,
    )
    sender = Sender(
        api=api,
        files=files,
        slots=slots,
        limiter=limiter,
        inbox=inbox,
        transitions=transitions,
        task_ids=task_ids,
        observers=observers,
    )
    submitter = Submitter(
        sender=sender, transitions=transitions, files=files, keys=keys, watcher=watcher, sharing=sharing
    )
    return Parts(
        loop=asyncio.get_running_loop(),
        base_url=base_url,
        account=account,
        transport=transport,
        api=api,
        files=files,
        slots=slots,
        sharing=sharing,
        limiter=limiter,
        schedules=schedules,
        remembered=_remembered(base_url) if options.polling.remember else None,
        watcher=watcher,
        keys=keys,
        task_ids=task_ids,
        inbox=inbox,
        submitter=submitter,
        enqueued=Enqueued(submitter),
        opened=AsyncExitStack(),
    )


async def open_parts(parts: Parts) -> None:
    """Read what an earlier session has learned, make the connections' pools, and join who shares the account."""
    async with AsyncExitStack() as opening:
        if parts.remembered is not None:
            await anyio.to_thread.run_sync(parts.remembered.restore, parts.schedules, abandon_on_cancel=True)
        await parts.transport.open()
        opening.push_async_callback(parts.transport.aclose)
        if parts.sharing is not None:
            await parts.sharing.open()
            opening.push_async_callback(parts.sharing.aclose)
        else:
            _count(parts)
            opening.callback(_alone.discard, parts)
        if parts.inbox is not None:
            opening.callback(parts.inbox.close)
        opening.callback(parts.slots.close)
        opening.callback(parts.limiter.close)
        if isinstance(parts.limiter, Limiter):
            opening.callback(OpenAhead(parts.limiter, parts.transport).close)
        parts.opened.push_async_callback(_keep_what_was_learned, parts)
        parts.opened.push_async_exit(opening.pop_all())


async def close_parts(parts: Parts, grace: float) -> Unsettled:
    """Close everything in order, whatever happens on the way.

    Args:
        parts: What was opened.
        grace: Seconds for createTask calls under way.

    Returns:
        What was left.
    """
    refs: tuple[str, ...] = ()
    task_ids: tuple[str, ...] = ()
    try:
        async with parts.opened:
            try:
                refs = await parts.submitter.aclose(grace)
                await parts.enqueued.aclose()
            finally:
                task_ids = await parts.watcher.aclose()
    finally:
        _log_left("session closed; tasks not finished, to be attached in a new session", task_ids)
        _log_left("session closed; submissions that may have been accepted", refs)
    return Unsettled(task_ids, refs)


def leave_parts(parts: Parts) -> Unsettled:
    """Do what can be done without the event loop, which was closed while the session was open in it."""
    refs, task_ids = parts.submitter.leave(), parts.watcher.leave()
    parts.enqueued.leave()
    _alone.discard(parts)
    _log_left("the event loop was closed; tasks not finished, to be attached in a new session", task_ids)
    _log_left("the event loop was closed; submissions that may have been accepted", refs)
    return Unsettled(task_ids, refs)


def statistics_of(parts: Parts, steps: Mapping[SubmissionEvent, int]) -> SessionStatistics:
    """Give a snapshot; `steps`: how often each event of the submissions' table happened."""
    paused_until = None
    if parts.limiter.paused_until is not None:
        left = parts.limiter.paused_until - parts.loop.time()
        paused_until = datetime.now(UTC) + timedelta(seconds=left)
    return SessionStatistics(
        running=len(parts.watcher),
        waiting=parts.slots.waiting + parts.limiter.waiting + parts.submitter.held,
        submitted=steps[SubmissionEvent.ACCEPTED],
        refused=steps[SubmissionEvent.THROTTLED],
        ambiguous=steps[SubmissionEvent.UNCLEAR],
        polls=parts.watcher.polls,
        callbacks=parts.watcher.notified + (parts.inbox.received if parts.inbox is not None else 0),
        repeated_settles=parts.watcher.repeated_settles,
        learned_limit=parts.limiter.learned_limit,
        paused_until=paused_until,
    )


def _limiter(rate_limit: RateLimit | None, before: Parts | None) -> Limiter:
    limiter = Limiter(rate_limit)
    if before is not None and isinstance(before.limiter, Limiter):
        limiter.take_over(before.limiter)
    return limiter


def _share(coordination: "Coordination", account: str, options: Options, api: Api, watcher: Watcher) -> "Sharing":
    # Most sessions are the only ones of their account.
    from flux2_async.coordination.client import Sharing  # noqa: PLC0415
    from flux2_async.coordination.contract import Terms  # noqa: PLC0415

    lease = options.timeouts.connect + options.timeouts.submit + LEASE_SLACK
    terms = Terms(options.rate_limit, lease, post=options.timeouts.submit)
    return Sharing(coordination, account, terms, watcher=watcher, records=api)


def _count(parts: Parts) -> None:
    """Warn of a second open session of one account in this process."""
    if parts.account not in _warned_accounts and any(other.account == parts.account for other in _alone):
        _warned_accounts.add(parts.account)
        logger.warning(
            "a second session of one account is open in this process; together they may exceed its limit. "
            "Share one session"
        )
    _alone.add(parts)


async def _keep_what_was_learned(parts: Parts) -> None:
    knowledge = parts.schedules.knowledge()
    if parts.remembered is not None and knowledge["kinds"]:
        # Closing is bounded in time, whatever disk the folder is on.
        with anyio.move_on_after(KEEPING_MAX, shield=True):
            await anyio.to_thread.run_sync(parts.remembered.keep, knowledge, abandon_on_cancel=True)


def _remembered(base_url: str) -> "Remembered":
    from flux2_async.session.remembered import Remembered  # noqa: PLC0415  most sessions learn anew

    return Remembered(base_url)


def _log_left(what: str, names: tuple[str, ...]) -> None:
    # Leaving `async with` gives no answer to look at, so the log has to name them all.
    for begin in range(0, len(names), IDS_PER_LINE):
        logger.warning("%s: %s", what, " ".join(names[begin : begin + IDS_PER_LINE]))
