"""What an open session consists of, and how the parts work together."""

import asyncio
import hashlib
import logging
import uuid
from collections import Counter
from collections.abc import Callable
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
from flux2_async.errors import ConfigurationError, RateLimitedError, SessionClosedError, TaskTimeoutError
from flux2_async.models import (
    ImageToImage,
    Polling,
    RateLimit,
    Request,
    SessionStatistics,
    Timeouts,
)
from flux2_async.models.submission_state import SubmissionEvent, SubmissionState
from flux2_async.session.keys import Keys, fingerprint
from flux2_async.session.submission import OnSend, Patience, Record, Submission
from flux2_async.session.submitter import Submitter
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.observers import Observers
from flux2_async.tasks.outcome import Signal
from flux2_async.tasks.schedule import Schedules
from flux2_async.tasks.watcher import Watcher

if TYPE_CHECKING:
    from flux2_async.coordination.client import Sharing
    from flux2_async.coordination.store import Coordination
    from flux2_async.session.callback_inbox import CallbackDesk, CallbackSettings
    from flux2_async.session.remembered import Remembered

__all__ = ["Engine", "Unsettled"]

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


class Engine:
    """The parts of one session, made in the loop they run in.

    Args:
        credentials: The account.
        rate_limit: New tasks per period, or None.
        max_running: Tasks alive, or None.
        polling: When to look.
        timeouts: Seconds for each kind of call.
        callbacks: Where callbacks come in, or None.
        http: A borrowed aiohttp session, or None.
        connector: Makes the connector of createTask, or None.
        private_downloads: Whether downloads may be redirected into a private network.
        coordination: How the account is shared with other processes, or None.
        observers: Told what happens.
        before: The parts of the session when it was open before, or None: what the service counts and what keys stand
            for does not end with a session's being closed.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        rate_limit: RateLimit | None,
        max_running: int | None,
        polling: Polling,
        timeouts: Timeouts,
        callbacks: "CallbackSettings | None",
        http: aiohttp.ClientSession | None,
        connector: ConnectorFactory | None = None,
        private_downloads: bool = False,
        coordination: "Coordination | None" = None,
        before: "Engine | None" = None,
        observers: Observers,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.observers = observers
        observers.begin()
        self.transport = Transport(credentials, timeouts, http, connector, private_downloads=private_downloads)
        self.api = Api(self.transport)
        self.files = Files(self.api)
        self.slots = Slots(max_running)
        self.base_url = credentials.base_url
        self._account = hashlib.sha256(f"{credentials.base_url} {credentials.api_key.reveal()}".encode()).hexdigest()
        self.sharing = None if coordination is None else self._share(coordination, rate_limit, timeouts)
        self.limiter: Permits = Limiter(rate_limit) if self.sharing is None else self.sharing.limiter
        self.schedules = Schedules(polling)
        self._remembered = _remembered(credentials.base_url) if polling.remember else None
        self.watcher = Watcher(
            self.api.record, self.schedules, polling, self._on_settled, self.slots.borrow, observers=observers
        )
        self.desk = None if callbacks is None else self._receive(callbacks)
        self.submitter = Submitter(
            api=self.api,
            files=self.files,
            slots=self.slots,
            limiter=self.limiter,
            rate_limit=rate_limit,
            observers=observers,
            address=self._address,
            on_accepted=self._on_accepted,
            on_end=self._on_end,
        )
        self.notified = 0
        self._counted = False
        self._keys = Keys()
        self._quieter = Signal()
        # Another key may stand in the environment by now.
        if before is not None and before._account == self._account:  # noqa: SLF001  of the same kind
            self._take_over(before)

    def _take_over(self, before: "Engine") -> None:
        self._keys = before._keys  # noqa: SLF001  of the same kind
        self.submitter.take_over(before.submitter)
        if isinstance(self.limiter, Limiter) and isinstance(before.limiter, Limiter):
            self.limiter.take_over(before.limiter)
        if self.desk is not None and before.desk is not None:
            self.desk.take_over(before.desk)

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
        _open_accounts[self._account] += 1
        if _open_accounts[self._account] > 1 and self._account not in _warned_accounts:
            _warned_accounts.add(self._account)
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
        finally:
            try:
                task_ids = await self.watcher.aclose()
            finally:
                self.limiter.close()
                self.slots.close()
                if self.desk is not None:
                    self.desk.close()
                self._quieter.wake()
                if self._counted:
                    self._counted = False
                    _open_accounts[self._account] -= 1
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
        if self._counted:
            self._counted = False
            _open_accounts[self._account] -= 1
        _log_left("the event loop was closed; tasks not finished, to be attached in a new session", task_ids)
        _log_left("the event loop was closed; submissions that may have been accepted", refs)
        return Unsettled(task_ids, refs)

    async def _keep_what_was_learned(self) -> None:
        knowledge = self.schedules.knowledge()
        if self._remembered is not None and knowledge["kinds"]:
            # Closing is bounded in time, whatever disk the folder is on.
            with anyio.move_on_after(KEEPING_MAX, shield=True):
                await anyio.to_thread.run_sync(self._remembered.keep, knowledge, abandon_on_cancel=True)

    async def submit(
        self,
        request: Request,
        *,
        key: str | None = None,
        max_wait: float | None = None,
        priority: int = 0,
        ref: str | None = None,
        on_send: OnSend | None = None,
        record: Record | None = None,
        started: Callable[[Submission], None] | None = None,
    ) -> ImageTask:
        """Submit a checked request, or join the submission that its key stands for; see `Flux2Session.submit`."""
        if isinstance(request, ImageToImage):
            await self.files.check(request.images)
        content = "" if key is None else await fingerprint(request)
        begun, patience = self.loop.time(), max_wait
        while key is not None and (other := self._keys.get(key, content, self.loop.time())):
            try:
                return self._watched(await self._join(other, max_wait))
            except Exception as error:
                # Not its error: our own `max_wait` ran out.
                if error is not other.outcome.error or not other.private:
                    raise
            if patience is not None:
                max_wait = max(0.0, begun + patience - self.loop.time())
        submission = Submission(ref or uuid.uuid4().hex, request, key, priority, Patience(max_wait), on_send, record)
        if key is not None and self.sharing is not None:
            submission.claim = self.sharing.key(key, content, submission.ref, request, self.attach)
        self.submitter.start(submission)
        if key is not None:
            self._keys.bind(key, content, submission, self.loop.time())
        if started is not None:
            started(submission)
        return await self.submitter.wait(submission)

    def attach(self, task_id: str) -> ImageTask:
        """Give the handle of an outstanding task, or look after another one from now on."""
        known = self.watcher.get(task_id) or self.watcher.resume(task_id)
        if known is not None:
            return known
        task = ImageTask(task_id)
        self.slots.borrow()
        self.watcher.watch(task)
        return task

    def _watched(self, task: ImageTask) -> ImageTask:
        """Give the handle of a key's task, another one where the session was closed, or gave up, before it ended."""
        error = task._outcome.error  # noqa: SLF001  without raising it
        if not isinstance(error, SessionClosedError | TaskTimeoutError):
            return task
        again = self.attach(task.id)
        again.request = again.request or task.request
        return again

    def notify(self, task_id: str) -> None:
        """Look at a task now."""
        self.notified += 1
        self.watcher.hint(task_id)

    async def recover(self, ref: str) -> ImageTask:
        """Wait until a callback tells which task a submission became; see `Flux2Session.recover`."""
        if self.desk is None:
            raise ConfigurationError(
                "recover: only a callback can tell which task a submission became; open the session with "
                "callbacks=Callbacks(...), or look at the account's log"
            )
        task = await self.desk.recover(ref)
        self.submitter.know(task.id)
        if self.sharing is not None:
            await self.sharing.recovered(ref, task.id)
        return task

    async def drain(self) -> None:
        """Wait until no submission and no task is outstanding."""
        while self.watcher or self.submitter:
            await self._quieter.wait()

    def statistics(self) -> SessionStatistics:
        """Give a snapshot."""
        paused_until = None
        if self.limiter.paused_until is not None:
            left = self.limiter.paused_until - self.loop.time()
            paused_until = datetime.now(UTC) + timedelta(seconds=left)
        return SessionStatistics(
            running=len(self.watcher),
            waiting=self.slots.waiting + self.limiter.waiting + self.submitter.held,
            submitted=self.observers.steps[SubmissionEvent.ACCEPTED],
            refused=self.observers.steps[SubmissionEvent.THROTTLED],
            ambiguous=self.observers.steps[SubmissionEvent.UNCLEAR],
            polls=self.watcher.polls,
            callbacks=self.notified + (self.desk.received if self.desk is not None else 0),
            repeated_settles=self.watcher.repeated_settles,
            learned_limit=self.limiter.learned_limit,
            paused_until=paused_until,
        )

    async def _join(self, submission: Submission, max_wait: float | None) -> ImageTask:
        try:
            async with asyncio.timeout(None if submission.outcome.done else max_wait):
                return await self.submitter.wait(submission)
        except TimeoutError:
            if not submission.may_leave:
                return await self.submitter.wait(submission)
            raise RateLimitedError(
                429, f"the submission under this key is not sent after max_wait={max_wait} s; try again later"
            ) from None

    def _receive(self, callbacks: "CallbackSettings") -> "CallbackDesk":
        from flux2_async.session.callback_inbox import CallbackDesk  # noqa: PLC0415  most sessions poll alone

        return CallbackDesk(callbacks, self.watcher, self.observers, self.attach, self._relay)

    def _share(self, coordination: "Coordination", rate_limit: RateLimit | None, timeouts: Timeouts) -> "Sharing":
        # Most sessions are the only ones of their account.
        from flux2_async.coordination.client import Sharing  # noqa: PLC0415
        from flux2_async.coordination.contract import Terms  # noqa: PLC0415

        async def exists(task_id: str) -> bool:
            return await self.api.record(task_id) is not None

        lease = timeouts.connect + timeouts.submit + LEASE_SLACK
        terms = Terms(rate_limit, lease, post=timeouts.submit)
        return Sharing(coordination, self._account, terms, on_callback=self._relayed, exists=exists)

    def _relay(self, ref: str, task_id: str) -> None:
        if self.sharing is not None:
            self.sharing.relay(ref, task_id)

    def _relayed(self, ref: str, task_id: str) -> None:
        if self.desk is not None:
            self.desk.overhear(ref, task_id)
        else:
            self.watcher.hint(task_id)

    def _address(self, ref: str) -> str | None:
        return self.desk.address(ref) if self.desk is not None else None

    def _on_accepted(self, submission: Submission, task_id: str) -> tuple[ImageTask, bool]:
        task = self.watcher.get(task_id)
        new = task is None
        if task is None:
            task = ImageTask(task_id, submission.request, ref=submission.ref, key=submission.key)
            schedule = self.schedules.of(submission.request.model, submission.request.resolution)
            self.watcher.watch(task, self.desk.insured(schedule) if self.desk is not None else schedule)
        elif task.request is None:
            # Attached before its createTask reply came.
            task.request = submission.request
        if self.desk is not None:
            self.desk.accepted(submission.ref, task)
        return task, new

    def _on_settled(self, task: ImageTask, called: bool) -> None:  # noqa: FBT001  called by the watcher alone
        if self.desk is not None:
            self.desk.settled(task, called=called)
        self.slots.release()
        self._quieter.wake()

    def _on_end(self, submission: Submission) -> None:
        key, error = submission.key, submission.outcome.error
        if submission.state is SubmissionState.UNKNOWN:
            # It may have been accepted, so it keeps its key.
            if self.desk is not None:
                self.desk.ambiguous(submission)
        elif key is not None and error is not None:
            self._keys.free(key, submission)
        self._quieter.wake()


def _remembered(base_url: str) -> "Remembered":
    from flux2_async.session.remembered import Remembered  # noqa: PLC0415  most sessions learn anew

    return Remembered(base_url)


def _log_left(what: str, names: tuple[str, ...]) -> None:
    # Leaving `async with` gives no answer to look at, so the log has to name them all.
    for begin in range(0, len(names), IDS_PER_LINE):
        logger.warning("%s: %s", what, " ".join(names[begin : begin + IDS_PER_LINE]))
