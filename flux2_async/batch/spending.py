"""What a batch has spent and may still have to pay, so that a cap is never passed. Pure.

Only records tell what a task costs, and only when it has ended. Until then a task counts with the most that one of its
kind, model and resolution, is known to cost. Of a kind that none has told the price of yet, one task goes ahead alone.
"""

from collections import Counter
from collections.abc import Iterable

import attrs

from flux2_async.batch.journal.start import Tally
from flux2_async.batch.outcomes import State
from flux2_async.models.prices import DEAREST

Kind = tuple[str, str]
"""Model and resolution."""


@attrs.define
class Spending:
    """What was spent, and what may be spent besides.

    Attributes:
        cap: Credits the whole batch may cost, or None.
        spent: What records say was charged, in all runs.
        running: Tasks of each kind whose price is not known yet.
        unclear: Sends of each kind that may have been paid, and tasks that ended without a word about their price.
        prices: The most a task of each kind has cost; DEAREST for a kind whose records do not tell.
    """

    cap: float | None = None
    spent: float = 0.0
    running: Counter[Kind] = attrs.field(factory=Counter)
    unclear: Counter[Kind] = attrs.field(factory=Counter)
    prices: dict[Kind, float] = attrs.field(factory=dict)

    @classmethod
    def of(cls, tallies: Iterable[Tally], cap: float | None) -> "Spending":
        """Begin with what the journal says."""
        spending = cls(cap)
        for tally in tallies:
            kind = (tally.model, tally.resolution)
            spending.spent += tally.credits
            spending.unclear[kind] += tally.lost
            if tally.state is State.SUBMITTED:
                spending.running[kind] += tally.count
            elif tally.state is State.UNKNOWN:
                spending.unclear[kind] += tally.count
            elif tally.state is State.DONE:
                spending.unclear[kind] += tally.unpriced
                spending._learn(kind, tally.price)
            elif tally.state is State.FAILED:
                spending.unclear[kind] += tally.unpriced
        return spending

    @property
    def reserved(self) -> float:
        """Credits that what is running and what is unclear may still cost, or have cost."""
        open_tasks = self.running + self.unclear
        return sum(count * self.price(kind) for kind, count in open_tasks.items())

    def price(self, kind: Kind) -> float:
        """Give what a task of a kind counts with."""
        return self.prices.get(kind, DEAREST)

    def waits_for_price(self, kind: Kind) -> bool:
        """Whether one of its kind is on its way to tell what they cost."""
        return self.cap is not None and kind not in self.prices and self.running[kind] > 0

    def allows(self, kind: Kind) -> bool:
        """Whether one more task of a kind stays within the cap."""
        if self.cap is None:
            return True
        if self.waits_for_price(kind):
            return False
        return self.spent + self.reserved + self.price(kind) <= self.cap

    def start(self, kind: Kind) -> None:
        """Count a task that may be started."""
        self.running[kind] += 1

    def cancel(self, kind: Kind) -> None:
        """It was not started, or is not worked on any more."""
        self.running[kind] -= 1

    def mark_unclear(self, kind: Kind) -> None:
        """It is not known whether it was started."""
        self.running[kind] -= 1
        self.unclear[kind] += 1

    def find(self, kind: Kind) -> None:
        """It was."""
        self.unclear[kind] -= 1
        self.running[kind] += 1

    def pay(self, kind: Kind, charged: float | None, *, failed: bool) -> None:
        """It has ended, and the record says what it cost, or nothing about it."""
        self.running[kind] -= 1
        if failed:
            # Documented to cost nothing unless the record says otherwise.
            self.spent += charged or 0.0
            return
        self._learn(kind, charged)
        if charged is None:
            self.unclear[kind] += 1
        else:
            self.spent += charged

    def _learn(self, kind: Kind, charged: float | None) -> None:
        if charged is None:
            self.prices.setdefault(kind, DEAREST)
        else:
            self.prices[kind] = max(charged, self.prices.get(kind, 0.0))
