"""What a batch has spent and may still have to pay, so that `max_credits` is never passed. Pure.

Of a kind that none has told the price of yet, one task goes ahead alone.
"""

from collections.abc import Iterable

from flux2_async.batch.journal.start import Tally
from flux2_async.batch.outcomes import State
from flux2_async.models.spending import Kind, Spending


class BatchSpending(Spending):
    """The money of a batch, in all its runs."""

    @classmethod
    def of(cls, tallies: Iterable[Tally], cap: float | None) -> "BatchSpending":
        """Begin with what the journal says."""
        # A cap has to hold where the service asks for more than is documented.
        spending = cls(cap, documented=cap is None)
        for tally in tallies:
            kind = (tally.model, tally.resolution)
            spending.spent += tally.credits
            spending.unclear[kind] += tally.lost
            if tally.state is State.SUBMITTED:
                spending.running[kind] += tally.count
            elif tally.state is State.UNKNOWN:
                spending.unclear[kind] += tally.count
            elif tally.state in (State.DONE, State.FAILED):
                spending.unclear[kind] += tally.unpriced
            if tally.state is State.DONE:
                spending.learn(kind, tally.price)
        return spending

    def waits_for_price(self, kind: Kind) -> bool:
        """Whether one of its kind is on its way to tell what they cost."""
        return self.cap is not None and kind not in self.prices and self.running[kind] > 0

    def allows(self, kind: Kind) -> bool:
        """Whether one more task of a kind stays within the cap."""
        if self.cap is None:
            return True
        if self.waits_for_price(kind):
            return False
        return self.needed(kind) <= self.cap

    def needed(self, kind: Kind) -> float:
        """Give the least cap with which one more task of a kind can be started now."""
        return self.spent + self.reserved + self.price(kind)

    def why_not(self, kind: Kind) -> str:
        """Say why one more task of a kind does not stay within the cap."""
        text = (
            f"{self.spent:g} are spent, {self.reserved:g} reserved for what is running or unknown, and one more "
            f"picture may cost {self.price(kind):g}"
        )
        if kind in self.prices:
            return text
        return (
            f"{text}: no price of {' '.join(kind)} was seen yet in this batch, so its first picture counts with the "
            f"dearest documented price; it is sent with max_credits={self.needed(kind):g} or more"
        )
