"""How far a batch is."""

from collections import Counter
from collections.abc import Iterable

import attrs

from flux2_async.batch.journal.start import Tally
from flux2_async.batch.outcomes import Failure, State


@attrs.frozen(kw_only=True)
class Progress:
    """A snapshot of a batch: of all requests that its input asks for or that were ever sent, in this run or before.

    Attributes:
        total: All of them.
        queued: Not at the service.
        sending: createTask under way.
        running: Accepted and not finished.
        done: Made and paid.
        failed: Refused or failed.
        unknown: Perhaps accepted.
        submitted: Tasks accepted in this run.
        downloaded: Requests whose pictures were saved in this run.
        not_downloaded: Requests whose pictures are made and not saved; the next run downloads them.
        expired: Requests whose pictures were made and are no longer available.
        spent: Credits that records say were charged, in all runs.
        spent_before: Credits of them that were charged before this run.
        reserved: Credits that what is running or unknown may cost besides; by what was seen, else by
            the documented prices, or under `max_credits` as there.
        away: Why nothing is sent at present, or None.
        stopped: Why nothing more is sent in this run although there is more to send, or None.
        last_failure: The failure seen last, or None.
        pricing: Under `max_credits`, the model and resolution of which one picture goes ahead alone to tell its price,
            while the others wait for it; None: nothing waits for a price.
    """

    total: int
    queued: int
    sending: int
    running: int
    done: int
    failed: int
    unknown: int
    submitted: int
    downloaded: int
    not_downloaded: int
    expired: int
    spent: float
    reserved: float
    away: str | None
    stopped: str | None
    last_failure: Failure | None
    pricing: str | None = None
    spent_before: float = 0.0


@attrs.define
class Count:
    """Requests by their state; all but `states`, how many there are in each, is as in `Progress`."""

    states: Counter[State] = attrs.field(factory=Counter)
    submitted: int = 0
    downloaded: int = 0
    not_downloaded: int = 0
    expired: int = 0
    last_failure: Failure | None = None
    spent_before: float = 0.0

    @classmethod
    def of(cls, tallies: Iterable[Tally]) -> "Count":
        """Begin with what the journal says."""
        count = cls()
        for tally in tallies:
            count.states[tally.state] += tally.wanted
            count.not_downloaded += tally.not_downloaded
            count.expired += tally.expired
            count.spent_before += tally.credits
        return count

    def move(self, old: State, new: State) -> None:
        """One request is somewhere else now."""
        self.states[old] -= 1
        self.states[new] += 1
