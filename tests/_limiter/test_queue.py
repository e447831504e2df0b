"""In what order those pass who wait, against a plain list that knows the rules by heart."""

import asyncio
import itertools
import time
from collections import Counter
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flux2_async._limiter.queue import IMPATIENT_AFTER, Waiter, WaitQueue

GROUPS = (None, "alice", "bob", "carol")


@attrs.define(eq=False)
class Person:
    """One who waits, as the model knows them."""

    number: int
    group: str | None
    priority: int
    since: float
    first: bool
    waiter: Waiter[int]


class Order(RuleBasedStateMachine):
    """Whatever comes, leaves, ages and passes: the queue gives whom the rules name, and nobody twice or never."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.now = 1000.0
        self.kept_back: set[str | None] = set()
        self.queue = WaitQueue[int](self.kept_back.__contains__)
        self.waiting: list[Person] = []
        self.numbers = itertools.count()
        # When each group had its last turn, or came.
        self.turns: dict[str | None, int] = {}
        self.turn = itertools.count()

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()

    @rule(group=st.sampled_from(GROUPS), priority=st.integers(0, 2), age=st.integers(0, 70), first=st.booleans())
    def come(self, group: str | None, priority: int, age: int, *, first: bool) -> None:
        first = first and age > 60
        number, since = next(self.numbers), self.now - age
        waiter = self.queue.push(
            self.loop.create_future(),
            now=self.now,
            priority=priority,
            max_wait=None,
            since=since,
            first=first,
            patience=0.0,
            owner=number,
            group=group,
        )
        if not first and not any(each.group == group and not each.first for each in self.waiting):
            self.turns[group] = next(self.turn)
        self.waiting.append(Person(number, group, priority, since, first, waiter))

    @rule(seconds=st.sampled_from([1.0, 20.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        person = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(person)
        self.queue.remove(person.waiter)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), priority=st.integers(0, 2))
    def prioritise(self, data: st.DataObject, priority: int) -> None:
        person = data.draw(st.sampled_from(self.waiting))
        person.priority = priority
        self.queue.prioritise(person.number, priority)

    @rule(group=st.sampled_from(GROUPS))
    def keep_back_or_let_in(self, group: str | None) -> None:
        self.kept_back.symmetric_difference_update({group})
        if group not in self.kept_back:
            self.queue.let_in(group)

    @rule(count=st.integers(1, 4))
    def let_through(self, count: int) -> None:
        for _ in range(count):
            expected, found = self.by_the_rules(), self.queue.next(self.now)
            assert found is (expected.waiter if expected else None)
            if expected is None or found is None:
                return
            self.waiting.remove(expected)
            self.queue.remove(found)
            self.queue.had_turn(found)
            if not expected.first:
                self.turns[expected.group] = next(self.turn)

    def by_the_rules(self) -> Person | None:
        if first := [each for each in self.waiting if each.first]:
            return min(first, key=lambda each: (-each.priority, each.number))
        there = [each for each in self.waiting if each.group not in self.kept_back]
        if not there:
            return None
        highest = max(each.priority for each in there)
        entitled = {each.group for each in there if each.priority == highest or self.is_impatient(each)}
        group = min(entitled, key=self.turns.__getitem__)
        of_group = [each for each in there if each.group == group]
        if impatient := [each for each in of_group if self.is_impatient(each)]:
            return min(impatient, key=lambda each: (each.since, each.number))
        return min(of_group, key=lambda each: (-each.priority, each.number))

    def is_impatient(self, person: Person) -> bool:
        return person.since + IMPATIENT_AFTER <= self.now

    @invariant()
    def all_are_there(self) -> None:
        if hasattr(self, "queue"):
            assert self.queue.live == len(self.waiting)

    @invariant()
    def others_can_be_told_who_may_pass(self) -> None:
        if not hasattr(self, "queue") or self.kept_back:
            return
        told = list(self.queue.wants(self.now))
        assert {group for group, _, _ in told} == {each.group for each in self.waiting}
        if first := [each for each in self.waiting if each.first]:
            entitled = first if len(told) > 1 else self.waiting
        else:
            highest = max((each.priority for each in self.waiting), default=0)
            entitled = [each for each in self.waiting if each.priority == highest or self.is_impatient(each)]
            entitled = entitled if len(told) > 1 else self.waiting
            turns = [self.turns[group] for group, _, _ in told]
            assert turns == sorted(turns)
        assert {group: count for group, count, _ in told if count} == Counter(each.group for each in entitled)
        assert {group for group, _, goes_first in told if goes_first} == {each.group for each in first}


Order.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestOrder = Order.TestCase


@settings(max_examples=40)
@given(
    crowd=st.lists(st.tuples(st.sampled_from(GROUPS), st.integers(0, 200)), min_size=10, max_size=80),
    served=st.integers(0, 30),
)
def test_a_single_one_waits_for_one_turn_of_each_other_group(crowd: list[tuple[str | None, int]], served: int) -> None:
    """Whoever waits already and for however long: who comes alone is passed by one of each other group at most."""
    loop = asyncio.new_event_loop()
    queue = WaitQueue[int]()

    def push(group: str | None, since: float) -> Waiter[int]:
        fixed: dict[str, Any] = {"priority": 0, "max_wait": None, "first": False, "patience": 0.0}
        return queue.push(loop.create_future(), now=1000.0, since=since, group=group, **fixed)

    def serve() -> Waiter[int] | None:
        if (waiter := queue.next(1000.0)) is not None:
            queue.remove(waiter)
            queue.had_turn(waiter)
        return waiter

    for group, age in crowd:
        push(group, 1000.0 - age)
    for _ in range(served):
        serve()
    single = push("dave", 1000.0)
    before: list[str | None] = []
    while (waiter := serve()) is not single:
        assert waiter is not None
        before.append(waiter.group)

    assert len(set(before)) == len(before) <= len(GROUPS)
    loop.close()


@pytest.mark.parametrize("groups", [1, 3, 10_000])
def test_many_groups_are_cheap(groups: int) -> None:
    """Twenty thousand who wait, of whom a quarter leaves, come and pass in a second: no turn looks at all of them."""
    loop = asyncio.new_event_loop()
    queue = WaitQueue[int]()
    fixed: dict[str, Any] = {"now": 1000.0, "max_wait": None, "first": False, "patience": 0.0}
    begun = time.process_time()
    waiters = [
        queue.push(loop.create_future(), group=str(n % groups), priority=n % 3, since=900.0 + n % 90, **fixed)
        for n in range(20_000)
    ]
    for waiter in waiters[::4]:
        queue.remove(waiter)
    passed = 0
    while (next_one := queue.next(1000.0)) is not None:
        queue.remove(next_one)
        queue.had_turn(next_one)
        passed += 1
    loop.close()

    assert passed == 15_000
    assert time.process_time() - begun < 4
