"""Brings callbacks and tasks together.

The address of a callback names the submission (`ref`), its body the task. Usually both are known here and the callback
is a hint to look now. It may also come before the createTask reply, or for a submission whose reply was lost: then it
is parked, or tells which task the lost reply was about. It may come twice, late, for another process, or never.
"""

import asyncio
import logging
import secrets
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from flux2_async._protocol.records import memory_of
from flux2_async._shown.text import shown_address
from flux2_async.errors import SessionClosedError, TaskNotFoundError
from flux2_async.models import Callbacks, TaskRecord, TaskState
from flux2_async.models.submission_state import SubmissionEvent
from flux2_async.session.byte_bound import ByteBound, memory_of_request
from flux2_async.session.keys import Keys
from flux2_async.session.submission import Submission
from flux2_async.session.task_ids import TaskIds
from flux2_async.tasks.callback_trust import Insurance, Trust
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.observers import Observers
from flux2_async.tasks.outcome import Signal
from flux2_async.tasks.schedule import FixedInterval, Schedule
from flux2_async.tasks.watcher import Watcher
from flux2_async.webhooks import Callback, public_urls, signed_url

if TYPE_CHECKING:
    from flux2_async.coordination.client import Sharing

__all__ = ["CallbackInbox", "CallbackSettings"]

T = TypeVar("T")

logger = logging.getLogger("flux2_async")

# A callback that beats its createTask reply is early by seconds; one for a lost reply waits for somebody to `recover`.
MAX_PARKED: Final = 4096
# Bytes in memory. What a body says is a shortcut: without it a look tells the same.
MAX_RECORD: Final = 64 * 1024
MAX_PARKED_RECORDS: Final = 4 * 1024 * 1024
PARKED_FOR: Final = 3600.0
MAX_UNCLEAR: Final = 4096
MAX_UNCLEAR_BYTES: Final = 8 * 1024 * 1024
MAX_SETTLED: Final = 4096
# A callback that comes later after its task was seen to have ended came too late to be waited for.
MISSED_AFTER: Final = 10.0


@attrs.frozen
class CallbackSettings:
    """What the receivers need to know.

    Attributes:
        url: The public address, without signature.
        secret: Signs addresses.
        hmac_key: Checks the service's own signature, or None.
        confirm: Whether a record is read before a task is settled.
        lasting: Whether the secret was given, so that the addresses are good beyond this session.
    """

    url: str
    secret: bytes = attrs.field(repr=False)
    hmac_key: str | None = attrs.field(repr=False)
    confirm: bool
    lasting: bool = True

    @property
    def shown_url(self) -> str:
        """The address without what may be private in it."""
        return shown_address(self.url)

    @classmethod
    def of(cls, callbacks: Callbacks) -> "CallbackSettings":
        """Fill up what the user left open."""
        secret = callbacks.secret.encode() if callbacks.secret is not None else secrets.token_bytes(32)
        settings = cls(callbacks.url, secret, callbacks.hmac_key, callbacks.confirm, callbacks.secret is not None)
        # An address that cannot be signed is told when the session is made.
        signed_url(settings.url, "check", settings.secret)
        return settings


class _ParkedRecords:
    """What the bodies of early callbacks said, of as many as fit into a bound of bytes."""

    def __init__(self) -> None:
        self._records: dict[str, TaskRecord] = {}
        self._bytes = ByteBound(MAX_PARKED_RECORDS)

    def keep(self, ref: str, record: TaskRecord | None) -> None:
        """Keep the record of a submission instead of an earlier one; the oldest ones give way."""
        self.take(ref)
        if record is not None:
            self._records[ref] = record
            for oldest in self._bytes.keep(ref, memory_of(record, MAX_RECORD)):
                del self._records[oldest]

    def take(self, ref: str) -> TaskRecord | None:
        """Give the record of a submission, and forget it."""
        self._bytes.discard(ref)
        return self._records.pop(ref, None)


@attrs.frozen
class _Settled:
    """A task that has ended, kept no longer than somebody else keeps its handle.

    Attributes:
        id: Its id.
        requested: Whether it is known what was sent.
        handle: Its handle, while there is one.
    """

    id: str
    requested: bool
    handle: "weakref.ref[ImageTask]"

    @classmethod
    def of(cls, task: ImageTask) -> "_Settled":
        return cls(task.id, task.request is not None, weakref.ref(task))


class CallbackInbox:
    """Receives callbacks and brings them to their tasks.

    Args:
        settings: As the receivers know them.
        watcher: Looks at tasks, and settles them.
        keys: Told of submissions that are found.
        task_ids: Told of their tasks.
        observers: Likewise.
        sharing: Takes callbacks that are for none of the submissions here, or None.
    """

    def __init__(
        self,
        settings: CallbackSettings,
        *,
        watcher: Watcher,
        keys: Keys,
        task_ids: TaskIds,
        observers: Observers,
        sharing: "Sharing | None" = None,
    ) -> None:
        self._settings = settings
        self._watcher = watcher
        self._keys = keys
        self._task_ids = task_ids
        self._observers = observers
        self._sharing = sharing
        watcher.listen(self.settled)
        if sharing is not None:
            sharing.on_callback = self.overhear
        self._loop = asyncio.get_running_loop()
        self._trust = Trust()
        self._insured: dict[Schedule, Schedule] = {}
        self._tasks: dict[str, ImageTask] = {}
        self._refs: dict[str, str] = {}
        # Outstanding tasks of which a callback alone says whose they are, and what stood there before, if anything.
        self._told: dict[str, tuple[Submission, Exception | None] | None] = {}
        self._settled: OrderedDict[str, _Settled] = OrderedDict()
        self._unclear_bytes = ByteBound(MAX_UNCLEAR_BYTES)
        self._unclear: OrderedDict[str, Submission] = OrderedDict()
        self._parked: OrderedDict[str, tuple[float, Callback]] = OrderedDict()
        self._parked_records = _ParkedRecords()
        # Tasks that a look found finished and whose callback may still come.
        self._awaited: dict[str, asyncio.TimerHandle] = {}
        self._warned = False
        self._news = Signal()
        self._closed = False
        self.received = 0

    def insured(self, usual: Schedule) -> Schedule:
        """Give the schedule of a task with a callback, where `usual` is that of one without."""
        # Who fixes an interval has decided how much insurance there is.
        if isinstance(usual, FixedInterval):
            return usual
        if usual not in self._insured:
            self._insured[usual] = Insurance(usual, self._trust)
        return self._insured[usual]

    def address(self, ref: str) -> str:
        """Give the signed address of a submission's callback."""
        return signed_url(self._settings.url, ref, self._settings.secret)

    def accepted(self, ref: str, task: ImageTask) -> None:
        """Remember which task a submission became, and use a callback that came before."""
        self._know(ref, task)
        # The reply has the last word.
        self._told.pop(ref, None)
        until, callback = self._parked.pop(ref, (0.0, None))
        record = self._parked_records.take(ref)
        if callback is not None and until > self._loop.time():
            self._bring(task, Callback(callback.task_id, record))

    def unclear(self, submission: Submission) -> None:
        """Remember a submission whose reply was lost, and use a callback that came before.

        Of many the oldest are forgotten. The callback of a forgotten one is for nobody here and kept like any such, so
        that `recover` finds its task all the same; its key goes on raising its error until then.
        """
        self._unclear[submission.ref] = submission
        for oldest in self._unclear_bytes.keep(submission.ref, memory_of_request(submission.request)):
            del self._unclear[oldest]
        while len(self._unclear) > MAX_UNCLEAR:
            self._unclear_bytes.discard(self._unclear.popitem(last=False)[0])
        _, callback = self._parked.pop(submission.ref, (0.0, None))
        if callback is not None:
            self._found(submission, callback)

    def take_over(self, before: "CallbackInbox") -> None:
        """Go on knowing the submissions whose reply was lost when the session was open before."""
        self._unclear, self._unclear_bytes = before._unclear, before._unclear_bytes  # noqa: SLF001  of the same kind

    def settled(self, task: ImageTask, called: bool) -> None:  # noqa: FBT001  called by the watcher alone
        """Forget an outstanding task; `called` tells whether a callback came before it was settled."""
        ref = self._refs.pop(task.id, None)
        if ref is None:
            return
        # The user's own ref may name two submissions.
        if self._tasks.get(ref) is task:
            del self._tasks[ref]
        told = ref in self._told
        before = self._told.pop(ref, None)
        if told and isinstance(task.error, TaskNotFoundError):
            self._unlearn(ref, task, before)
            return
        self._settled[ref] = _Settled.of(task)
        _shorten(self._settled, MAX_SETTLED)
        # Who gives up, or is not let look, was no faster than the callback.
        if not called and task.record is not None and task.record.state.final and ref not in self._awaited:
            self._awaited[ref] = self._loop.call_later(MISSED_AFTER, self._missed, ref, task.id)

    def deliver(self, ref: str, callback: Callback) -> None:
        """Use an authenticated callback."""
        if memory_of(callback.record, MAX_RECORD) > MAX_RECORD:
            callback = Callback(callback.task_id, None)
        if not self._deliver(ref, callback) and self._sharing is not None:
            self._sharing.relay(ref, callback.task_id)

    def overhear(self, ref: str, task_id: str) -> None:
        """Use what another process was told at the address of a submission; it is never passed on again."""
        self._deliver(ref, Callback(task_id, None))

    def _deliver(self, ref: str, callback: Callback) -> bool:
        """Use a callback; give False when it is for none of the submissions here."""
        self.received += 1
        self._trust.earn()
        if (awaited := self._awaited.pop(ref, None)) is not None:
            awaited.cancel()
        logger.debug("callback for task %s (submission %s)", callback.task_id, ref)
        task = self._tasks.get(ref)
        if task is not None:
            self._bring(task, callback)
        elif ref in self._unclear:
            self._found(self._unclear[ref], callback)
        else:
            settled = self._settled.get(ref)
            # The user's own ref may name another submission, which is still being sent.
            known = settled is not None and settled.id == callback.task_id
            # Else a look was faster, or this one is repeated.
            if not known:
                self._park(ref, callback)
            self._watcher.hint(callback.task_id)
            return known
        return True

    async def recover(self, ref: str) -> ImageTask:
        """Wait until it is known which task a submission became, for which its key stands from then on.

        Raises:
            SessionClosedError: The session was closed meanwhile.
        """
        task = await self._known(ref)
        self._task_ids.add(task.id)
        self._keys.found(ref, task.id)
        if self._sharing is not None:
            await self._sharing.recovered(ref, task.id)
        return task

    async def _known(self, ref: str) -> ImageTask:
        while True:
            if self._closed:
                raise SessionClosedError(
                    "the session was closed before the callback came; recover it when the session is open again"
                )
            task = self._tasks.get(ref)
            if task is None and ref not in self._unclear and (settled := self._settled.get(ref)) is not None:
                task = settled.handle() or self._watcher.attach(settled.id)
                self._settled[ref] = _Settled.of(task)
            if task is not None:
                return task
            # It stays parked, for a submission that is still being sent.
            until, callback = self._parked.get(ref, (0.0, None))
            if callback is not None and until > self._loop.time() and callback.task_id not in self._refs:
                task = self._watcher.attach(callback.task_id)
                self._told[ref] = None
                self._know(ref, task)
                self._watcher.hint(task.id)
                return task
            await self._news.wait()

    def close(self) -> None:
        """End all `recover`."""
        self._closed = True
        for awaited in self._awaited.values():
            awaited.cancel()
        self._awaited.clear()
        self._news.wake()

    def _missed(self, ref: str, task_id: str) -> None:
        """Look as without callbacks from now on, because one did not come."""
        del self._awaited[ref]
        if not self._warned:
            self._warned = True
            logger.warning(
                "task %s is finished and its callback did not come within %.0f s; until one comes the session polls as "
                "without callbacks. See that the service reaches %s from outside (flux2 doctor --callback-url)",
                task_id,
                MISSED_AFTER,
                self._settings.shown_url,
            )
        if self._trust.lose():
            self._watcher.come_back()

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
            if (ref := self._refs.get(task.id)) in self._told and ref is not None:
                # One of the two is wrong; if it is the first, this one is needed.
                self._park(ref, callback)

    def _know(self, ref: str, task: ImageTask) -> None:
        self._tasks[ref] = task
        self._refs[task.id] = ref
        self._news.wake()

    def _found(self, submission: Submission, callback: Callback) -> None:
        """Give a submission whose reply was lost its task, at once: nobody may ever ask for it."""
        if self._is_of_another(callback.task_id, submission.ref):
            logger.warning("a callback for task %s came at the address of %s", callback.task_id, submission.ref)
            self._watcher.hint(callback.task_id)
            return
        self._unclear.pop(submission.ref, None)
        self._unclear_bytes.discard(submission.ref)
        logger.info("submission %s was accepted as task %s", submission.ref, callback.task_id)
        task = self._watcher.attach(callback.task_id)
        self._task_ids.add(task.id)
        task._came_from(submission)  # noqa: SLF001  the handle is written by its session alone
        self._told[submission.ref] = submission, submission.outcome.error
        # Its key, if it has one, stands for the task from now on.
        submission.end(SubmissionEvent.FOUND, task=task)
        self._keys.ended(submission)
        self._know(submission.ref, task)
        # Never from the body: nothing but the body says that the task is this one's.
        self._watcher.hint(task.id)
        self._observers.stepped(submission, SubmissionEvent.FOUND, None, task.id)

    def _is_of_another(self, task_id: str, ref: str) -> bool:
        # Under its own ref stands what `recover` found while it was being sent, or, with a request, an earlier task.
        return self._refs.get(task_id, ref) != ref or any(
            settled.id == task_id and (other != ref or settled.requested) for other, settled in self._settled.items()
        )

    def _unlearn(self, ref: str, task: ImageTask, before: tuple[Submission, Exception | None] | None) -> None:
        """Take back what a callback told, because the service does not know its task."""
        logger.warning("the callback of submission %s named task %s, which does not exist", ref, task.id)
        _, callback = self._parked.get(ref, (0.0, None))
        if callback is not None and callback.task_id == task.id:
            del self._parked[ref]
        if before is not None:
            submission, error = before
            submission.end(SubmissionEvent.DISPROVED, error=error)
            self._keys.ended(submission)
            self._observers.stepped(submission, SubmissionEvent.DISPROVED, error, task.id)
            self.unclear(submission)

    def _park(self, ref: str, callback: Callback) -> None:
        self._parked[ref] = (self._loop.time() + PARKED_FOR, Callback(callback.task_id, None))
        self._parked_records.keep(ref, callback.record)
        self._parked.move_to_end(ref)
        _shorten(self._parked, MAX_PARKED)
        self._news.wake()


def _can_settle(record: TaskRecord) -> bool:
    # A success without a picture may be a short form of the body; the record knows.
    whole = record.state is TaskState.FAIL or (record.state is TaskState.SUCCESS and bool(record.result_urls))
    return whole and public_urls(record)


def _shorten(book: OrderedDict[str, T], most: int) -> None:
    while len(book) > most:
        book.popitem(last=False)
