"""What was spent and what may still have to be paid, so that a cap is never passed. Pure: time comes in as an argument.

Only records tell what a task costs, and only when it has ended. Until then a task counts with the most that one of its
kind, model and resolution, is known to cost.
"""

import math
from collections import Counter, deque
from collections.abc import Sequence
from typing import Literal

import attrs

from flux2_async.models.budget import Budget
from flux2_async.models.prices import DEAREST, documented_price

Kind = tuple[str, str]
"""Model and resolution."""

# Sums of decimals.
_ROUNDING = 1e-6


@attrs.define
class Spending:
    """What was spent, and what may be spent besides.

    Attributes:
        cap: Credits all may cost together, or None.
        spent: What records say was charged.
        running: Tasks of each kind whose price is not known yet.
        unclear: Sends of each kind that may have been paid, and tasks that ended without a word about their price.
        prices: The most a task of each kind has cost; for a kind whose records do not tell, what it counts with.
        documented: Whether one of a kind counts with its documented price before a record has told, else with DEAREST.
    """

    cap: float | None = None
    spent: float = 0.0
    running: Counter[Kind] = attrs.field(factory=Counter)
    unclear: Counter[Kind] = attrs.field(factory=Counter)
    prices: dict[Kind, float] = attrs.field(factory=dict)
    documented: bool = False

    @property
    def reserved(self) -> float:
        """Credits that what is running and what is unclear may still cost, or have cost."""
        open_tasks = self.running + self.unclear
        return sum(count * self.price(kind) for kind, count in open_tasks.items())

    def price(self, kind: Kind) -> float:
        """Give what a task of a kind counts with."""
        found = self.prices.get(kind)
        if found is not None:
            return found
        return documented_price(*kind) if self.documented else DEAREST

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
        self.learn(kind, charged)
        if charged is None:
            self.unclear[kind] += 1
        else:
            self.spent += charged

    def learn(self, kind: Kind, charged: float | None) -> None:
        """A record says what one of a kind cost, or nothing about it."""
        if charged is None:
            self.prices.setdefault(kind, self.price(kind))
        else:
            self.prices[kind] = max(charged, self.prices.get(kind, 0.0))


@attrs.define(eq=False)
class Reservation:
    """Credits of one task, from before its POST.

    Attributes:
        ledger: Where they count.
        kind: Model and resolution.
        state: `open` until it is known what it costs, or that this will not be known soon (`unclear`); `gone` when it
            counts no more.
        charged: What it cost, once `paid`.
        until: When that falls out of the window.
    """

    ledger: "Ledger"
    kind: Kind
    state: Literal["open", "unclear", "paid", "gone"] = "open"
    charged: float = 0.0
    until: float = math.inf


class Ledger:
    """The money of one budget, or of one group of it.

    What was paid counts for `per` seconds from when that was known, which is later than when the service took it.

    Args:
        budget: As the user made it.
        prices: See `Spending`; shared by the ledgers of a session.
        name: By which all processes know it.

    Attributes:
        budget: As given.
        name: As given.
        elsewhere: What other processes have spent and reserved, as they told last.
        heard: Whether they were asked yet.
    """

    def __init__(self, budget: Budget, prices: dict[Kind, float], name: str = "") -> None:
        self.budget: Budget = budget
        self.name: str = name
        self.elsewhere: tuple[float, float] = (0.0, 0.0)
        self.heard: bool = False
        self._per = math.inf if budget.per is None else budget.per
        self._spending = Spending(prices=prices, documented=True)
        self._leaving: deque[tuple[float, Reservation]] = deque()

    @property
    def spent(self) -> float:
        """Credits that were paid, here and elsewhere."""
        return self._spending.spent + self.elsewhere[0]

    @property
    def reserved(self) -> float:
        """Credits that may have been paid or will be, here and elsewhere."""
        return self._spending.reserved + self.elsewhere[1]

    def price(self, kind: Kind) -> float:
        """Give what a task of a kind counts with."""
        return self._spending.price(kind)

    def fits(self, kind: Kind, now: float) -> bool:
        """Whether one more of a kind is within the cap."""
        self._forget(now)
        return self.spent + self.reserved + self.price(kind) <= self.budget.credits + _ROUNDING

    def fits_after(self, kind: Kind, now: float) -> float | None:
        """Give the seconds until one more of a kind is within the cap by what is known now; None: nobody knows."""
        missing = self.spent + self.reserved + self.price(kind) - self.budget.credits - _ROUNDING
        for until, reservation in self._leaving:
            if reservation.until == until:
                missing -= self._amount(reservation)
            if missing <= 0 and until < math.inf:
                return max(until - now, 0.0)
        return None

    def reserve(self, kind: Kind) -> Reservation:
        """Count one more."""
        self._spending.start(kind)
        return Reservation(self, kind)

    def release(self, reservation: Reservation) -> None:
        """It was not taken, and will not be."""
        self._open(reservation)
        self._spending.cancel(reservation.kind)
        reservation.state = "gone"

    def mark_unclear(self, reservation: Reservation, now: float) -> None:
        """Nobody knows whether it was taken, or what it costs."""
        self._open(reservation)
        self._spending.mark_unclear(reservation.kind)
        self._leave(reservation, "unclear", now)

    def pay(self, reservation: Reservation, charged: float | None, now: float, *, failed: bool) -> None:
        """It has ended, and the record says what it cost, or nothing about it."""
        self._open(reservation)
        self._spending.pay(reservation.kind, charged, failed=failed)
        reservation.charged = charged or 0.0
        self._leave(reservation, "unclear" if charged is None and not failed else "paid", now)

    def snapshot(self, now: float) -> tuple[float, Sequence[tuple[float, float]]]:
        """Give what others need to know: credits that are open, and those that leave, with the seconds until then."""
        self._forget(now)
        if self._per == math.inf:
            return self._spending.reserved, ((math.inf, self._spending.spent),)
        leaving: dict[float, float] = {}
        for until, reservation in self._leaving:
            if reservation.until == until:
                # Later at worst, so that a busy window is told in a few words.
                part = math.ceil((until - now) / self._per * 32) / 32 * self._per
                leaving[part] = leaving.get(part, 0.0) + self._amount(reservation)
        running = sum(count * self.price(kind) for kind, count in self._spending.running.items())
        return running, tuple(leaving.items())

    def is_empty(self, now: float) -> bool:
        """Whether nothing of it counts any more."""
        self._forget(now)
        return not self._leaving and not self._spending.running.total() and self._per < math.inf

    def _amount(self, reservation: Reservation) -> float:
        return reservation.charged if reservation.state == "paid" else self.price(reservation.kind)

    def _open(self, reservation: Reservation) -> None:
        """What was unclear, or forgotten, or told before, is told anew."""
        match reservation.state:
            case "unclear":
                self._spending.find(reservation.kind)
            case "paid":
                self._spending.spent -= reservation.charged
                self._spending.start(reservation.kind)
            case "gone":
                self._spending.start(reservation.kind)
            case "open":
                pass
        reservation.state, reservation.until = "open", math.inf

    def _leave(self, reservation: Reservation, state: Literal["unclear", "paid"], now: float) -> None:
        reservation.state, reservation.until = state, now + self._per
        if self._per < math.inf:
            self._leaving.append((reservation.until, reservation))

    def _forget(self, now: float) -> None:
        while self._leaving and self._leaving[0][0] <= now:
            until, reservation = self._leaving.popleft()
            if reservation.until != until:
                continue
            if reservation.state == "paid":
                self._spending.spent = max(self._spending.spent - reservation.charged, 0.0)
            else:
                self._spending.unclear[reservation.kind] -= 1
            reservation.state = "gone"
