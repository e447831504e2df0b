"""What is known of each submission at whose address callbacks come in."""

import weakref
from collections.abc import Iterator
from typing import Final

import attrs

from flux2_async._protocol.records import memory_of
from flux2_async.session.byte_bound import ByteBound, memory_of_request
from flux2_async.session.submission import Submission
from flux2_async.tasks.handle import ImageTask
from flux2_async.webhooks import Callback

# A callback that beats its createTask reply is early by seconds; one for a lost reply waits for somebody to `recover`.
MAX_EARLY: Final = 4096
# Bytes in memory. What a body says is a shortcut: without it a poll tells the same.
MAX_RECORD: Final = 64 * 1024
MAX_EARLY_RECORDS: Final = 4 * 1024 * 1024
MAX_UNCLEAR: Final = 4096
MAX_UNCLEAR_BYTES: Final = 8 * 1024 * 1024
MAX_SETTLED: Final = 4096


@attrs.frozen
class Told:
    """Where a callback alone told of a task: the submission whose reply was lost and its error, if they are known."""

    submission: Submission | None = None
    error: Exception | None = None


@attrs.frozen
class Early:
    """A callback that came before anybody knew of its submission, kept until a loop time."""

    until: float
    callback: Callback


# Made for each task, and changed by nobody.
@attrs.define(eq=False)
class Settled:
    """A task that has ended, kept no longer than somebody else keeps its handle.

    `requested`: it is known what was sent.
    """

    id: str
    requested: bool
    handle: "weakref.ref[ImageTask]"


# Every task changes its own several times; `CallbackEntries` alone does.
@attrs.define(eq=False)
class Entry:
    """What is known of a ref: its state is the first of these that is there, since a ref may be given twice.

    Attributes:
        task: The outstanding task.
        told: Where a callback alone says that it is this submission's.
        unclear: The submission, while nobody knows whether it was accepted.
        settled: The task that has ended.
        early: The callback that came before all that.
    """

    task: ImageTask | None = None
    told: Told | None = None
    unclear: Submission | None = None
    settled: Settled | None = None
    early: Early | None = None

    def __bool__(self) -> bool:
        return (
            self.task is not None
            or self.told is not None
            or self.unclear is not None
            or self.settled is not None
            or self.early is not None
        )


NOTHING: Final = Entry()


class CallbackEntries:
    """Entries by ref; of what is not outstanding, the newest ones alone, in bounded memory."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        # Of outstanding tasks.
        self._refs: dict[str, str] = {}
        self._unclear = ByteBound(MAX_UNCLEAR_BYTES, names=MAX_UNCLEAR)
        self._settled = ByteBound(0, names=MAX_SETTLED)
        self._early = ByteBound(0, names=MAX_EARLY)
        self._early_records = ByteBound(MAX_EARLY_RECORDS)

    def __getitem__(self, ref: str) -> Entry:
        return self._entries.get(ref, NOTHING)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def ref_of(self, task_id: str) -> str | None:
        """Give the ref of an outstanding task."""
        return self._refs.get(task_id)

    def is_of_another(self, task_id: str, ref: str) -> bool:
        """Whether a task is known to be that of another submission."""
        # Under its own ref stands what `recover` found while it was being sent, or, with a request, an earlier task.
        return self._refs.get(task_id, ref) != ref or any(
            entry.settled is not None and entry.settled.id == task_id and (other != ref or entry.settled.requested)
            for other, entry in self._entries.items()
        )

    def outstanding(self, ref: str, task: ImageTask, told: Told | None) -> None:
        """A submission is a task; `told`: where a callback alone says so."""
        self._refs[task.id] = ref
        entry = self._of(ref)
        entry.task, entry.told = task, told

    def ended(self, ref: str, task: ImageTask, *, exists: bool) -> None:
        """A task is not outstanding any more; `exists`: it has ended, else the service does not know it."""
        del self._refs[task.id]
        entry = self._of(ref)
        entry.told, entry.task = None, None if entry.task is task else entry.task
        if exists:
            self.settled(ref, task)
        else:
            self._without(ref, "told")

    def settled(self, ref: str, task: ImageTask) -> None:
        """A submission was a task that has ended."""
        self._of(ref).settled = Settled(task.id, task.request is not None, weakref.ref(task))
        for oldest in self._settled.keep(ref):
            self._without(oldest, "settled")

    def unclear(self, submission: Submission) -> None:
        """Nobody knows whether a submission was accepted."""
        self._of(submission.ref).unclear = submission
        for oldest in self._unclear.keep(submission.ref, memory_of_request(submission.request)):
            self._without(oldest, "unclear")

    def found(self, ref: str) -> None:
        """It is known now."""
        self._unclear.discard(ref)
        self._without(ref, "unclear")

    def early(self, ref: str, early: Early) -> None:
        """A callback came for nobody yet; it takes the place of an earlier one."""
        self._of(ref).early = early
        record = early.callback.record
        for oldest in self._early_records.keep(ref, 0 if record is None else memory_of(record, MAX_RECORD)):
            if (kept := self[oldest].early) is not None:
                self._of(oldest).early = Early(kept.until, Callback(kept.callback.task_id, None))
        for oldest in self._early.keep(ref):
            self.take_early(oldest)

    def take_early(self, ref: str) -> Early | None:
        """Give the callback that came for a submission, and forget it."""
        early = self[ref].early
        if early is not None:
            self._early.discard(ref)
            self._early_records.discard(ref)
            self._without(ref, "early")
        return early

    def _of(self, ref: str) -> Entry:
        """Give the entry of a ref, for a fact that comes."""
        if (entry := self._entries.get(ref)) is None:
            entry = self._entries[ref] = Entry()
        return entry

    def _without(self, ref: str, fact: str) -> None:
        """Forget a fact, and with the last one the ref."""
        if (entry := self._entries.get(ref)) is not None:
            setattr(entry, fact, None)
            if not entry:
                del self._entries[ref]
