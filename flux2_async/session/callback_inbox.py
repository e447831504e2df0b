"""Brings callbacks and tasks together.

The address of a callback names the submission (`ref`), its body the task. Usually both are known here and the callback
is a hint to poll now. It may also come before the createTask reply, or for a submission whose reply was lost: then it
is parked, or tells which task the lost reply was about. It may come twice, late, for another process, or never.
"""

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from flux2_async._protocol.records import memory_of
from flux2_async.errors import CoordinationError, SessionClosedError, TaskNotFoundError
from flux2_async.models import TaskRecord, TaskState
from flux2_async.models.submission_state import SubmissionEvent, SubmissionState
from flux2_async.session.callback_arrivals import CallbackArrivals
from flux2_async.session.callback_entries import MAX_RECORD, CallbackEntries, Early, Told
from flux2_async.session.callback_settings import CallbackSettings
from flux2_async.session.ending import Keepers
from flux2_async.session.submission import Submission
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.outcome import Signal
from flux2_async.tasks.watcher import Watcher
from flux2_async.webhooks import Callback, public_urls, signed_url

if TYPE_CHECKING:
    from flux2_async.coordination.client import Sharing

logger: logging.Logger = logging.getLogger("flux2_async")

EARLY_FOR: Final = 3600.0
# Where processes share an account, `recover` asks for what another one was told, since news may be lost.
ASK_EVERY: Final = 2.0


class CallbackInbox:
    """Receives callbacks and brings them to their tasks.

    Attributes:
        entries: What is known of each ref.
        arrivals: Whether callbacks come.
        received: How many came.
    """

    def __init__(
        self,
        settings: CallbackSettings,
        *,
        watcher: Watcher,
        keepers: Keepers,
        sharing: "Sharing | None" = None,
    ) -> None:
        self.entries: CallbackEntries = CallbackEntries()
        self.arrivals: CallbackArrivals = CallbackArrivals(watcher, settings.shown_url)
        self.received: int = 0
        self._settings = settings
        self._watcher = watcher
        self._keepers = keepers
        self._sharing = sharing
        self._loop = asyncio.get_running_loop()
        self._news = Signal()
        self._closed = False
        watcher.listen(self.settled)
        if sharing is not None:
            sharing.on_callback = self.relayed

    def address(self, ref: str) -> str:
        """Give the signed address of a submission's callback."""
        return signed_url(self._settings.url, ref, self._settings.secret)

    def accepted(self, ref: str, task: ImageTask) -> None:
        """Remember which task a submission became, and use a callback that came before."""
        # The reply has the last word.
        self._know(ref, task, None)
        early = self.entries.take_early(ref)
        if early is not None and early.until > self._loop.time():
            self._bring(task, early.callback)

    def ended(self, submission: Submission) -> None:
        """Remember a submission that has no task where its reply was lost, and use a callback that came before.

        Of many the oldest are forgotten. The callback of a forgotten one is for nobody here and kept like any such, so
        that `recover` finds its task all the same; its key goes on raising its error until then.
        """
        if submission.state is SubmissionState.UNKNOWN:
            self.entries.unclear(submission)
            early = self.entries.take_early(submission.ref)
            if early is not None:
                self._found(submission, early.callback)
        self._news.wake()

    def take_over(self, before: "CallbackInbox") -> None:
        """Go on knowing the submissions whose reply was lost when the session was open before."""
        for entry in before.entries:
            if entry.unclear is not None:
                self.entries.unclear(entry.unclear)

    def settled(self, task: ImageTask, called: bool) -> None:  # noqa: FBT001  called by the watcher alone
        """Forget an outstanding task; `called` tells whether a callback came before it was settled."""
        ref = self.entries.ref_of(task.id)
        if ref is None:
            return
        told = self.entries[ref].told
        unknown = told is not None and isinstance(task.error, TaskNotFoundError)
        self.entries.ended(ref, task, exists=not unknown)
        if told is not None and unknown:
            self._unlearn(ref, task, told)
            return
        # Who gives up, or is not let poll, was no faster than the callback.
        if not called and task.record is not None and task.record.state.final:
            self.arrivals.expect(ref, task.id)

    async def deliver(self, ref: str, callback: Callback) -> bool:
        """Use an authenticated callback; give False where it is not certain that it survives this process."""
        return self._deliver(ref, callback) or self._sharing is None or await self._sharing.relay(ref, callback.task_id)

    def relayed(self, ref: str, task_id: str) -> None:
        """Use what another process was told at the address of a submission; it is never passed on again."""
        self._deliver(ref, Callback(task_id, None))

    def _deliver(self, ref: str, callback: Callback) -> bool:
        """Use a callback; give False when nothing else tells which task the submission is."""
        self.received += 1
        self.arrivals.came(ref)
        logger.debug("callback for task %s (submission %s)", callback.task_id, ref)
        entry = self.entries[ref]
        if entry.task is not None:
            self._bring(entry.task, callback)
        elif entry.unclear is not None:
            return not self._found(entry.unclear, callback)
        else:
            # The user's own ref may name another submission, which is still being sent.
            known = entry.settled is not None and entry.settled.id == callback.task_id
            # Else a poll was faster, or this one is repeated.
            if not known:
                self._keep(ref, callback)
            self._watcher.hint(callback.task_id)
            return known
        return True

    async def recover(
        self, ref: str, submission: Submission | None, bound: asyncio.Timeout, give_up_after: float | None
    ) -> ImageTask:
        """Wait until it is known which task a submission became, for which its key stands from then on.

        Args:
            ref: Its name.
            submission: The one of this name that is under way, or None.
            bound: Of the wait; without an end where the caller named none.
            give_up_after: Seconds that it has then, from when only a callback can tell. None: as many as it takes.

        Raises:
            SessionClosedError: The session was closed meanwhile.
            Exception: What the submission under way ended with instead of a task.
        """
        task = await self._known(ref, submission, bound, give_up_after)
        self._keepers.task_ids.add(task.id, ref)
        self._keepers.keys.found(ref, task.id)
        if self._sharing is not None:
            await self._sharing.recovered(ref, task.id)
        return task

    async def _known(
        self, ref: str, submission: Submission | None, bound: asyncio.Timeout, give_up_after: float | None
    ) -> ImageTask:
        while True:
            if self._closed:
                raise SessionClosedError(
                    "the session was closed before the callback came; recover it when the session is open again"
                )
            entry = self.entries[ref]
            task, settled, early = entry.task, entry.settled, entry.early
            if task is None and entry.unclear is None and settled is not None:
                task = settled.handle() or self._watcher.attach(settled.id)
                self.entries.settled(ref, task)
            if task is not None:
                return task
            # It stays, for a submission that is still being sent.
            if (
                early is not None
                and early.until > self._loop.time()
                and not self.entries.ref_of(early.callback.task_id)
            ):
                task = self._watcher.attach(early.callback.task_id)
                self._know(ref, task, Told())
                self._watcher.hint(task.id)
                return task
            # Of several of one name an earlier one may be open.
            if submission is not None and submission.known and entry.unclear is None:
                return submission.outcome.get()
            if give_up_after is not None and bound.when() is None and (submission is None or submission.ended):
                bound.reschedule(self._loop.time() + give_up_after)
            await self._heard_of(ref)

    async def _heard_of(self, ref: str) -> None:
        """Wait for news, also of what another process was told, perhaps before this one was there to hear it."""
        if self._sharing is None:
            await self._news.wait()
            return
        with suppress(CoordinationError):
            task_id = await self._sharing.membership.ask(self._sharing.coordinator.callback_of, ref)
            entry = self.entries[ref]
            if task_id is not None and entry.unclear is not None and not self.entries.is_of_another(task_id, ref):
                self._found(entry.unclear, Callback(task_id, None))
                return
            missed = entry.unclear is None and (entry.early is None or entry.early.until <= self._loop.time())
            if task_id is not None and missed:
                self._keep(ref, Callback(task_id, None))
                return
        with suppress(TimeoutError):
            async with asyncio.timeout(ASK_EVERY):
                await self._news.wait()

    def close(self) -> None:
        """End all `recover`."""
        self._closed = True
        self.arrivals.close()
        self._news.wake()

    def _bring(self, task: ImageTask, callback: Callback) -> None:
        record = callback.record
        own = callback.task_id == task.id
        if own and not self._settings.confirm and record is not None and _can_settle(record):
            self._watcher.offer(task.id, record)
            return
        self._watcher.hint(task.id)
        if not own:
            logger.warning("a callback for task %s came at the address of task %s", callback.task_id, task.id)
            self._watcher.hint(callback.task_id)
            ref = self.entries.ref_of(task.id)
            if ref is not None and self.entries[ref].told is not None:
                # One of the two is wrong; if it is the first, this one is needed.
                self._keep(ref, callback)

    def _know(self, ref: str, task: ImageTask, told: Told | None) -> None:
        self.entries.outstanding(ref, task, told)
        self._news.wake()

    def _found(self, submission: Submission, callback: Callback) -> bool:
        """Give a submission whose reply was lost its task, at once: nobody may ever ask for it; False: another's."""
        ref = submission.ref
        if self.entries.is_of_another(callback.task_id, ref):
            logger.warning("a callback for task %s came at the address of %s", callback.task_id, ref)
            self._watcher.hint(callback.task_id)
            return False
        self.entries.found(ref)
        logger.info("submission %s was accepted as task %s", ref, callback.task_id)
        task = self._watcher.attach(callback.task_id)
        self._keepers.task_ids.add(task.id, ref)
        task._came_from(submission.asked)  # noqa: SLF001  the handle is written by its session alone
        told = Told(submission, submission.doubt or submission.outcome.error)
        # Its key, if it has one, stands for the task from now on.
        self._keepers.end(submission, SubmissionEvent.FOUND, task=task)
        self._know(ref, task, told)
        # Never from the body: nothing but the body says that the task is this one's.
        self._watcher.hint(task.id)
        return True

    def _unlearn(self, ref: str, task: ImageTask, told: Told) -> None:
        """Take back what a callback told, because the service does not know its task."""
        logger.warning("the callback of submission %s named task %s, which does not exist", ref, task.id)
        early = self.entries[ref].early
        if early is not None and early.callback.task_id == task.id:
            self.entries.take_early(ref)
        if self._sharing is not None:
            self._sharing.disproved(ref, task.id)
        if (submission := told.submission) is not None:
            self._keepers.end(submission, SubmissionEvent.DISPROVED, error=told.error, named=task.id)
            self.ended(submission)

    def _keep(self, ref: str, callback: Callback) -> None:
        if memory_of(callback.record, MAX_RECORD) > MAX_RECORD:
            callback = Callback(callback.task_id, None)
        self.entries.early(ref, Early(self._loop.time() + EARLY_FOR, callback))
        self._news.wake()


def _can_settle(record: TaskRecord) -> bool:
    # A success without a picture may be a short form of the body; the record knows.
    whole = bool(record.result_urls) or record.state is TaskState.FAIL
    return whole and public_urls(record)
