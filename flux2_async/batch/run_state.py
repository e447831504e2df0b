"""What a run knows: how many requests are where, what they cost, whether the service is there, what stopped it."""

import asyncio
from typing import Final, Protocol

import attrs

from flux2_async.batch.journal.rows import Row, failure_of
from flux2_async.batch.journal.start import Start
from flux2_async.batch.outcomes import Download, State
from flux2_async.batch.progress import Count, Progress
from flux2_async.batch.spending import BatchSpending
from flux2_async.errors import Flux2Error
from flux2_async.session.circuit_breaker import CircuitBreaker
from flux2_async.tasks.outcome import Signal

# Seconds. A lost answer may be a picture that is paid for twice, so a batch waits after the first one.
FIRST_PAUSE: Final = 2.0
# Seconds; a service that is away for longer is not waited for any more.
MAX_OUTAGE: Final = 3600.0
# So many refusals without a single acceptance in between are not about the requests.
REFUSALS_IN_A_ROW: Final = 20
# Requests that have ended before the share of failed ones says anything.
JUDGED_FROM: Final = 20


class Stopped(Exception):  # noqa: N818  no error: the batch is to send nothing more
    """Nothing is sent any more."""


class Sender(Protocol):
    """What works on one request."""

    row: Row


class RunState:
    """Told of a change by those who work on requests, before they wait for the journal to have it.

    Attributes:
        breaker: The gate before every submission.
        posting: Who has a createTask about to leave or under way.
        searching: Who waits for the callback of a submission without a reply.
        refusals: Requests refused since the last one that was accepted.
        changed: Woken when something has changed.
        stopping: Done as soon as nothing more is to be sent.
        stopped: As in `Progress`; likewise `pricing`.
        failure: What stopped the run, or None.
    """

    def __init__(self, start: Start, max_credits: float | None, max_failed: float | None = None) -> None:
        self.spending: BatchSpending = BatchSpending.of(start.tallies, max_credits)
        self.count: Count = Count.of(start.tallies)
        self.breaker: CircuitBreaker = CircuitBreaker(threshold=1, first_pause=FIRST_PAUSE)
        self.posting: set[Sender] = set()
        self.searching: set[Sender] = set()
        self.refusals: int = 0
        self.changed: Signal = Signal()
        self.stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stopped: str | None = None
        self.pricing: str | None = None
        self._max_failed = max_failed
        self._ended = 0
        self._failed = 0
        self.failure: Exception | None = None

    def check_sending(self) -> None:
        """Raise `Stopped` where nothing is sent any more."""
        if self.stopping.done():
            raise Stopped

    def stop(self) -> None:
        """Send nothing more."""
        if not self.stopping.done():
            self.stopping.set_result(None)
        self.changed.wake()

    def fail(self, error: BaseException) -> None:
        """Stop because of something that every other request would meet as well."""
        error = error if isinstance(error, Exception) else RuntimeError(repr(error))
        if self.failure is None:
            self.failure = error
        self.count.last_failure = failure_of(error)
        self.stop()

    def away(self, sender: Sender, error: Flux2Error) -> None:
        """The service cannot be reached, is under maintenance, or its answer was lost."""
        self.breaker.failed(sender, error)
        if self.breaker.seconds > MAX_OUTAGE:
            self.fail(error)

    def rejected(self, error: Flux2Error) -> None:
        """The service does not like a request."""
        self.refusals += 1
        if self.refusals >= REFUSALS_IN_A_ROW:
            error.add_note(f"{self.refusals} requests in a row were refused")
            self.fail(error)

    def sending(self, sender: Sender) -> None:
        """A POST is about to leave."""
        self.posting.add(sender)

    def withdrawn(self, sender: Sender) -> None:
        """It did not leave."""
        self.posting.discard(sender)
        self.changed.wake()

    def sent(self) -> None:
        """It leaves."""
        self.count.move(State.QUEUED, State.SUBMITTING)

    def refused(self, sender: Sender) -> None:
        """It created nothing."""
        self.withdrawn(sender)
        self.count.move(State.SUBMITTING, State.QUEUED)

    def accepted(self, sender: Sender) -> None:
        """It became a task."""
        self.withdrawn(sender)
        self.breaker.answered()
        self.refusals = 0
        self.count.submitted += 1
        self.count.move(State.SUBMITTING, State.SUBMITTED)

    def unclear(self, sender: Sender) -> None:
        """It is not known whether there is a task."""
        was_task = sender.row.task_id is not None
        self.withdrawn(sender)
        self.spending.mark_unclear(sender.row.kind)
        self.count.move(State.SUBMITTED if was_task else State.SUBMITTING, State.UNKNOWN)

    def resent(self, sender: Sender) -> None:
        """An unclear submission is sent again under its name."""
        self.spending.find(sender.row.kind)
        self.count.move(State.UNKNOWN, State.SUBMITTING)

    def found(self, sender: Sender) -> None:
        """A callback told which task an unclear submission became."""
        self.searching.discard(sender)
        self.spending.find(sender.row.kind)
        self.count.move(State.UNKNOWN, State.SUBMITTED)

    def failed(self, sender: Sender) -> None:
        """The request was refused and is not tried again."""
        self.spending.cancel(sender.row.kind)
        self.count.move(State.QUEUED, State.FAILED)
        self._judge(failed=True)
        self.changed.wake()

    def ended(self, sender: Sender, state: State, charged: float | None, *, failed: bool = False) -> None:
        """The task has ended."""
        self.spending.pay(sender.row.kind, charged, failed=failed)
        self.count.move(State.SUBMITTED, state)
        self.count.not_downloaded += state is State.DONE
        self._judge(failed=state is State.FAILED)
        self.changed.wake()

    def downloaded(self, download: Download) -> None:
        """The pictures of a request that is done are saved, or cannot be."""
        if download is not Download.PENDING:
            self.count.not_downloaded -= 1
        if download is Download.SAVED:
            self.count.downloaded += 1
        elif download is not Download.PENDING:
            self.count.expired += 1

    def progress(self) -> Progress:
        """Give a snapshot."""
        states = self.count.states
        return Progress(
            total=states.total(),
            queued=states[State.QUEUED],
            sending=states[State.SUBMITTING],
            running=states[State.SUBMITTED],
            done=states[State.DONE],
            failed=states[State.FAILED],
            unknown=states[State.UNKNOWN],
            **attrs.asdict(self.count, filter=attrs.filters.exclude("states"), recurse=False),
            spent=self.spending.spent,
            reserved=self.spending.reserved,
            away=None if self.breaker.reason is None else str(self.breaker.reason),
            stopped=self.stopped,
            pricing=self.pricing,
        )

    def _judge(self, *, failed: bool) -> None:
        """Stop when too many have failed; what was sent goes on to its end."""
        self._ended += 1
        self._failed += failed
        share = self._max_failed
        if share is None or self._ended < JUDGED_FROM or self._failed <= share * self._ended or self.stopping.done():
            return
        self.stopped = f"max_failed={share:g}: {self._failed} of the {self._ended} requests that have ended failed"
        self.stop()
