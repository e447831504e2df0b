"""What an open session consists of, and how its parts are made."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import urlsplit

import attrs

from flux2_async._http.api import Api
from flux2_async._http.credentials import Credentials
from flux2_async._http.files import Files
from flux2_async._http.transport import Transport
from flux2_async._limiter.limiter import Limiter
from flux2_async._limiter.slots import Slots
from flux2_async._shown.frames import Secret
from flux2_async.errors import InvalidRequestError
from flux2_async.models import RateLimit
from flux2_async.models.service import name_taken, wrong_header
from flux2_async.models.submission_state import SubmissionEvent
from flux2_async.session.enqueued import Enqueued
from flux2_async.session.keys import Keys
from flux2_async.session.options import Options
from flux2_async.session.shared import Shared
from flux2_async.session.submission import Asked
from flux2_async.session.submitter import Submitter
from flux2_async.session.task_ids import TaskIds
from flux2_async.tasks.observers import Observers
from flux2_async.tasks.schedule import Schedules
from flux2_async.tasks.watcher import Watcher

if TYPE_CHECKING:
    from flux2_async.coordination.client import Sharing
    from flux2_async.coordination.store import Coordination
    from flux2_async.models import SessionStatistics
    from flux2_async.session.callback_inbox import CallbackInbox
    from flux2_async.session.remembered import Remembered

# Beyond what a POST may take: for what runs between permit and POST, such as `on_send`.
LEASE_SLACK: Final = 5.0


def _inbox(parts: "Parts") -> "CallbackInbox | None":
    if parts.options.callbacks is None:
        return None
    from flux2_async.session.callback_inbox import CallbackInbox  # noqa: PLC0415  most sessions poll alone

    return CallbackInbox(parts.options.callbacks, watcher=parts.watcher, keepers=parts, sharing=parts.sharing)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Parts(Shared):
    """What an open session consists of, each made from those before it.

    Attributes:
        asked: Here, so that who imports the session alone need not load it.
        opened: Closes what is open, in reverse.
    """

    asked: ClassVar[type[Asked]] = Asked
    credentials: Credentials
    options: Options
    transport: Transport
    remembered: "Remembered | None"
    inbox: "CallbackInbox | None" = attrs.field(init=False, default=attrs.Factory(_inbox, takes_self=True))
    loop: asyncio.AbstractEventLoop = attrs.field(init=False, factory=asyncio.get_running_loop)
    submitter: Submitter = attrs.field(init=False, default=attrs.Factory(Submitter, takes_self=True))
    enqueued: Enqueued = attrs.field(
        init=False, default=attrs.Factory(lambda self: Enqueued(self.submitter), takes_self=True)
    )
    opened: AsyncExitStack = attrs.field(init=False, factory=AsyncExitStack)

    def checked(self, asked: Asked) -> Asked:
        """Give what `submit` was asked for, checked by what the service takes."""
        if (headers := asked.headers) is not None:
            if wrong := wrong_header(headers.reveal()) or name_taken(self.credentials.service, headers.reveal()):
                raise InvalidRequestError(wrong)
            asked.headers = Secret(dict(headers.reveal()))
        return asked


def make_parts(credentials: Credentials, options: Options, observers: Observers, before: Parts | None) -> Parts:
    """Make the parts of a session in the running event loop, each from those before it."""
    service, account = credentials.service, credentials.account
    # What the service counts, and what keys stand for, does not end with the session; but another key may stand in the
    # environment by now.
    before = before if before is not None and before.credentials.account == account else None
    host = urlsplit(credentials.base_url).hostname or ""
    observers.begin(service=host, shared=options.coordination is not None)
    transport = Transport(
        credentials, options.timeouts, options.http, options.connector, private_downloads=options.private_downloads
    )
    api = Api(transport)
    slots = Slots(options.max_running, options.max_running_per_group)
    schedules = Schedules(options.polling)
    watcher = Watcher(api, slots, schedules, options.polling, observers)
    keys, task_ids = (Keys(options.key_ttl), TaskIds()) if before is None else (before.keys, before.task_ids)
    sharing = None if options.coordination is None else _share(options.coordination, account, options, watcher)
    limiter = sharing.limiter if sharing is not None else _limiter(options.rate_limits, before)
    limiter.follow(slots)
    if options.budgets is not None:
        options.budgets.begin(sharing)
    parts = Parts(
        credentials=credentials,
        options=options,
        transport=transport,
        remembered=_remembered(credentials.base_url) if options.polling.remember else None,
        api=api,
        files=Files(api, service.max_image_bytes),
        slots=slots,
        limiter=limiter,
        rate_limit=options.rate_limit,
        schedules=schedules,
        watcher=watcher,
        keys=keys,
        task_ids=task_ids,
        observers=observers,
        budgets=options.budgets,
        sharing=sharing,
        names_kept=service.idempotency_period if service.idempotency_header else None,
    )
    if parts.inbox is not None and before is not None and before.inbox is not None:
        parts.inbox.take_over(before.inbox)
    return parts


def statistics_of(parts: Parts, steps: Mapping[SubmissionEvent, int]) -> "SessionStatistics":
    """Give a snapshot; `steps`: how often each event of the submissions' table happened."""
    from flux2_async.models.statistics import SessionStatistics  # noqa: PLC0415  few ask

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


def _limiter(rate_limits: tuple[RateLimit, ...], before: Parts | None) -> Limiter:
    limiter = Limiter(rate_limits)
    if before is not None and isinstance(before.limiter, Limiter):
        limiter.take_over(before.limiter)
    return limiter


def _share(coordination: "Coordination", account: str, options: Options, watcher: Watcher) -> "Sharing":
    # Most sessions are the only ones of their account.
    from flux2_async.coordination.client import Sharing  # noqa: PLC0415
    from flux2_async.coordination.contract import Terms  # noqa: PLC0415

    lease = options.timeouts.connect + options.timeouts.submit + LEASE_SLACK
    terms = Terms(
        options.rate_limits,
        lease,
        post=options.timeouts.submit,
        key_ttl=options.key_ttl,
        per_group=options.max_running_per_group,
        max_running=options.max_running,
    )
    return Sharing(coordination, account, terms, watcher)


def _remembered(base_url: str) -> "Remembered":
    from flux2_async.session.remembered import Remembered  # noqa: PLC0415  most sessions learn anew

    return Remembered(base_url)
