"""A budget is never exceeded, whatever becomes of what is sent under it, and in whichever process."""

import itertools
from typing import Literal

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from flux2_async.coordination import budget_state
from flux2_async.errors import CoordinationError
from flux2_async.models.budget import Budget
from flux2_async.models.spending import Kind, Ledger, Reservation

FLEX: Kind = ("flux-2/flex-text-to-image", "1K")
PRO: Kind = ("flux-2/pro-text-to-image", "1K")
PRICE = {FLEX: 14.0, PRO: 5.0}
LEASE = 70.0


@attrs.define(eq=False)
class Process:
    """One of those that share the account."""

    name: str
    ledger: Ledger
    alive: bool = True


@attrs.define(eq=False)
class Task:
    """What was sent by one, and what it costs in truth; `at`: when the service took it, if it did."""

    process: Process
    kind: Kind
    reservation: Reservation
    sent_at: float
    at: float | None = None
    known: Literal["sent", "accepted", "unclear", "settled"] = "sent"


class Shared(RuleBasedStateMachine):
    """Several processes under one budget: what the service took never costs more than it, in any window."""

    tasks = Bundle("tasks")

    @initialize(cap=st.sampled_from([30.0, 60.0]), per=st.sampled_from([None, 50.0, 400.0]))
    def begin(self, cap: float, per: float | None) -> None:
        self.cap, self.per, self.budget = cap, per, Budget(cap, per)
        self.now = 0.0
        self.text: str | None = None
        self.names = (f"process {number}" for number in itertools.count())
        self.processes = [self.new(), self.new()]
        self.taken: list[Task] = []

    def new(self) -> Process:
        return Process(next(self.names), Ledger(self.budget, {}))

    def share(self, process: Process, price: float = 0.0) -> bool:
        own = process.ledger.snapshot(self.now)
        self.text, _, (fits, process.ledger.elsewhere) = budget_state.spend(
            self.text, self.now, member=process.name, own=own, price=price, budget=self.budget, lease=LEASE
        )
        return fits

    @rule(
        target=tasks,
        number=st.integers(0, 1),
        kind=st.sampled_from([FLEX, PRO]),
        lost=st.booleans(),
        late=st.booleans(),
    )
    def send(self, number: int, kind: Kind, *, lost: bool, late: bool) -> object:
        """Reserve, ask the others, send; `lost`: the answer of the others is lost, and it is asked again."""
        process = self.processes[number]
        if not process.ledger.fits(kind, self.now):
            return multiple()
        reservation = process.ledger.reserve(kind)
        if lost:
            self.share(process, PRICE[kind])
        if not self.share(process, PRICE[kind]):
            process.ledger.release(reservation)
            return multiple()
        task = Task(process, kind, reservation, self.now)
        if not late:
            self.take(task)
        return task

    @rule(task=tasks)
    def take(self, task: Task) -> None:
        """The service takes it, whether or not anybody hears of that."""
        if task.at is None and task.known == "sent" and self.now <= task.sent_at + LEASE:
            task.at = self.now
            self.taken.append(task)

    @rule(task=tasks)
    def answer(self, task: Task) -> None:
        if task.known != "sent" or not task.process.alive:
            return
        if task.at is None:
            task.process.ledger.release(task.reservation)
            task.known = "settled"
        else:
            task.known = "accepted"

    @rule(task=tasks)
    def lose(self, task: Task) -> None:
        """Nobody knows whether it was taken; or it was given up, or the session was closed."""
        if task.known in ("sent", "accepted") and task.process.alive:
            task.process.ledger.mark_unclear(task.reservation, self.now)
            task.known = "unclear"

    @rule(task=tasks, told=st.booleans())
    def end(self, task: Task, *, told: bool) -> None:
        """Its record says what it cost, or nothing about it; also of one that was unclear."""
        if task.at is not None and task.known in ("accepted", "unclear") and task.process.alive:
            task.process.ledger.pay(task.reservation, PRICE[task.kind] if told else None, self.now, failed=False)
            task.known = "settled"

    @rule(task=consumes(tasks))
    def fail(self, task: Task) -> None:
        """It fails, which costs nothing."""
        if task.at is not None and task.known in ("accepted", "unclear") and task.process.alive:
            task.process.ledger.pay(task.reservation, 0.0, self.now, failed=True)
            self.taken.remove(task)
            task.known = "settled"

    @rule(number=st.integers(0, 1))
    def tell(self, number: int) -> None:
        self.share(self.processes[number])

    @rule(number=st.integers(0, 1))
    def die(self, number: int) -> None:
        """One is killed, and another one begins; what the dead one had on its way arrives or does not."""
        self.processes[number].alive = False
        self.processes[number] = self.new()

    @rule(seconds=st.sampled_from([1.0, 30.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_exceeded(self) -> None:
        if not hasattr(self, "cap"):
            return
        window = [task for task in self.taken if self.per is None or task.at is None or task.at > self.now - self.per]
        assert sum(PRICE[task.kind] for task in window) <= self.cap + 1e-6
        for process in self.processes:
            assert process.ledger.snapshot(self.now)[0] >= 0


Shared.TestCase.settings = settings(max_examples=150, stateful_step_count=50)
TestShared = Shared.TestCase


def test_a_window_moves() -> None:
    """What was paid counts for `per` seconds; what is unclear likewise, until its end is told."""
    ledger = Ledger(Budget(30.0, 100.0), {})
    one, two = ledger.reserve(FLEX), ledger.reserve(FLEX)
    assert not ledger.fits(FLEX, 0.0)
    assert ledger.fits_after(FLEX, 0.0) is None
    ledger.pay(one, 14.0, 10.0, failed=False)
    ledger.mark_unclear(two, 20.0)
    assert (ledger.spent, ledger.reserved, ledger.fits_after(FLEX, 30.0)) == (14.0, 14.0, 80.0)
    assert ledger.fits(FLEX, 110.0)
    ledger.pay(two, 10.0, 115.0, failed=False)
    assert (ledger.spent, ledger.reserved) == (10.0, 0.0)
    assert not ledger.is_empty(200.0)
    assert ledger.is_empty(215.0)
    assert (ledger.spent, ledger.reserved) == (0.0, 0.0)
    # It was forgotten, and is told of all the same.
    ledger.pay(two, 12.0, 220.0, failed=False)
    assert ledger.spent == 12.0


def test_what_is_dearer_than_documented_is_learned() -> None:
    """The most that one has cost is what the next counts with; one that fails costs nothing unless it says so."""
    ledger = Ledger(Budget(100.0), {})
    ledger.pay(ledger.reserve(PRO), 20.0, 0.0, failed=False)
    ledger.pay(ledger.reserve(PRO), None, 0.0, failed=True)
    ledger.pay(ledger.reserve(PRO), 3.0, 0.0, failed=True)
    assert (ledger.price(PRO), ledger.price(FLEX), ledger.spent, ledger.reserved) == (20.0, 14.0, 23.0, 0.0)
    ledger.pay(ledger.reserve(PRO), None, 0.0, failed=False)
    assert (ledger.spent, ledger.reserved) == (23.0, 20.0)


@pytest.mark.parametrize("text", ["[]", "1", "{", '{"a": 1}', '{"a": ["x", 1, []]}', '{"a": [1, 2, [[1]]]}'])
def test_a_text_of_somebody_else_is_no_licence(text: str) -> None:
    """What cannot be read is an error, since it may hide what was spent."""
    with pytest.raises(CoordinationError, match="cannot be read"):
        budget_state.spend(text, 0.0, member="a", own=(0.0, ()), price=1.0, budget=Budget(10.0), lease=LEASE)
