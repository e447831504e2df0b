"""The books of a run: how many requests are where, what they cost, whether the service is there."""

from typing import Final, Protocol

from flux2_async.batch.journal.rows import Row
from flux2_async.batch.journal.start import Start
from flux2_async.batch.outcomes import Download, State
from flux2_async.batch.progress import Count, Progress
from flux2_async.batch.spending import Spend
from flux2_async.session.circuit_breaker import CircuitBreaker
from flux2_async.tasks.outcome import Signal

__all__ = ["Books"]

# Seconds. A lost answer may be a picture that is paid for twice, so a batch waits after the first one.
FIRST_PAUSE: Final = 2.0


class Sent(Protocol):
    """One request in hand."""

    row: Row


class Books:
    """Kept by the hands, who tell them of a change before they wait for the journal to have it.

    Args:
        start: What the journal said when the run began.
        max_credits: Credits the whole batch may cost, or None.

    Attributes:
        spend: What was spent.
        count: Requests by state.
        breaker: The gate before every submission.
        posting: Requests whose createTask is about to leave or under way.
        refusals: Requests refused since the last one that was accepted.
        news: Woken when something has changed.
    """

    def __init__(self, start: Start, max_credits: float | None) -> None:
        self.spend = Spend.of(start.tallies, max_credits)
        self.count = Count.of(start.tallies)
        self.breaker = CircuitBreaker(threshold=1, first_pause=FIRST_PAUSE)
        self.posting: set[Sent] = set()
        self.refusals = 0
        self.news = Signal()

    def sending(self, hand: Sent) -> None:
        """A POST is about to leave."""
        self.posting.add(hand)

    def unsent(self, hand: Sent) -> None:
        """It did not leave."""
        self._answered(hand)

    def sent(self) -> None:
        """It leaves."""
        self.count.move(State.QUEUED, State.SUBMITTING)

    def back(self, hand: Sent) -> None:
        """It created nothing."""
        self._answered(hand)
        self.count.move(State.SUBMITTING, State.QUEUED)

    def accepted(self, hand: Sent) -> None:
        """It became a task."""
        self._answered(hand)
        self.breaker.answered()
        self.refusals = 0
        self.count.submitted += 1
        self.count.move(State.SUBMITTING, State.SUBMITTED)

    def lost(self, hand: Sent) -> None:
        """It is not known whether there is a task."""
        was_task = hand.row.task_id is not None
        self._answered(hand)
        self.spend.lose(hand.row.kind)
        self.count.move(State.SUBMITTED if was_task else State.SUBMITTING, State.UNKNOWN)

    def found(self, hand: Sent) -> None:
        """A callback told which task a lost submission became."""
        self.spend.find(hand.row.kind)
        self.count.move(State.UNKNOWN, State.SUBMITTED)

    def failed(self, hand: Sent) -> None:
        """The request was refused and is not tried again."""
        self.spend.cancel(hand.row.kind)
        self.count.move(State.QUEUED, State.FAILED)
        self.news.wake()

    def ended(self, hand: Sent, state: State, charged: float | None, *, failed: bool = False) -> None:
        """The task has ended."""
        self.spend.pay(hand.row.kind, charged, failed=failed)
        self.count.move(State.SUBMITTED, state)
        self.count.not_downloaded += state is State.DONE
        self.news.wake()

    def downloaded(self, download: Download) -> None:
        """The pictures of a request that is done are saved, or cannot be."""
        if download is not Download.PENDING:
            self.count.not_downloaded -= 1
        if download is Download.SAVED:
            self.count.downloaded += 1
        elif download is not Download.PENDING:
            self.count.expired += 1

    def progress(self, stopped: str | None) -> Progress:
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
            submitted=self.count.submitted,
            downloaded=self.count.downloaded,
            not_downloaded=self.count.not_downloaded,
            expired=self.count.expired,
            spent=self.spend.spent,
            reserved=self.spend.reserved,
            away=None if self.breaker.reason is None else str(self.breaker.reason),
            stopped=stopped,
            last_failure=self.count.last_failure,
        )

    def _answered(self, hand: Sent) -> None:
        self.posting.discard(hand)
        self.news.wake()
