"""When to look again."""

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waits import wait

from flux2_async.models import Polling, TaskRecord, TaskState
from flux2_async.tasks.hazard import BINS
from flux2_async.tasks.schedule import DocumentedAdvice, FixedInterval, Schedule, Schedules, wait_after_failure

KIND = ("flux-2/flex-text-to-image", "1K")

ages = st.floats(0, 1e7)
spreads = st.floats(0, 1)


@pytest.mark.parametrize(
    ("age", "low", "high"), [(0.1, 2, 3), (29.9, 2, 3), (30, 5, 10), (119.9, 5, 10), (120, 15, 30), (86400, 15, 30)]
)
@given(spread=spreads)
def test_follows_the_documented_advice(age: float, low: float, high: float, spread: float) -> None:
    """Every 2-3 s for 30 s, 5-10 s until two minutes, 15-30 s after."""
    assert low <= wait(DocumentedAdvice(Polling()), age, spread) <= high


def test_spreads_a_burst() -> None:
    """Tasks of one burst are not looked at in one burst."""
    learned = Schedules(Polling()).of(*KIND)

    assert wait(learned, 0, 1.0) - wait(learned, 0, 0.0) > 0.2


@given(ages, spreads, st.floats(0.01, 100), st.floats(0, 100))
def test_stays_within_the_bounds(age: float, spread: float, low: float, extra: float) -> None:
    """No wait is shorter than `wait_min` or longer than `wait_max`."""
    polling = Polling(wait_min=low, wait_max=low + extra)

    assert low <= wait(Schedules(polling).of(*KIND), age, spread) <= low + extra


@given(ages, spreads, st.floats(0, 1e4))
def test_a_fixed_interval_is_fixed(age: float, spread: float, interval: float) -> None:
    """With an interval the wait is that interval, at any age."""
    assert wait(Schedules(Polling(interval=interval)).of(*KIND), age, spread) == interval


def test_failures_double_the_wait() -> None:
    """A look that failed is tried again after half a second, then after twice as long, as far as `wait_max`."""
    schedule = DocumentedAdvice(Polling(wait_max=30))
    waits = [wait_after_failure(schedule, 2.5, failures, 0.0) for failures in (1, 2, 3, 4, 7, 5000)]

    assert waits == [0.5, 1, 2, 4, 30, 30]


def test_a_fixed_interval_slows_down_at_most_tenfold() -> None:
    """Under a fixed interval failures slow down to at most ten times the interval."""
    waits = [wait_after_failure(FixedInterval(2.0), 2.0, failures, 0.0) for failures in (1, 5, 6, 50)]

    assert waits == [0.5, 8, 16, 20]


def test_no_busy_loop_on_failures() -> None:
    """As fast as replies come is not as fast as failures come."""
    assert wait_after_failure(FixedInterval(0.0), 0.0, 1, 1.0) >= 0.1
    assert wait_after_failure(FixedInterval(0.0), 0.0, 50, 0.0) == 1.0


@given(st.sampled_from([DocumentedAdvice(Polling()), FixedInterval(0.2), FixedInterval(100.0)]), st.integers(1, 10**6))
def test_tasks_that_failed_together_do_not_come_back_together(schedule: Schedule, failures: int) -> None:
    """Also where the wait cannot grow any more, it is anything between half and all of it."""
    usual = wait(schedule, 0.0, 0.5)

    assert wait_after_failure(schedule, usual, failures, 1.0) == wait_after_failure(schedule, usual, failures, 0.0) / 2
    assert wait_after_failure(schedule, usual, failures, 0.0) <= schedule.wait_max(usual)


class History:
    """Tasks of one kind, polled by a schedule and teaching it."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.chance = random.Random(7)

    def run(self, duration: float) -> tuple[int, float]:
        age, looks = 0.0, 0
        while True:
            before = age
            age += wait(self.schedule, age, self.chance.random())
            looks += 1
            if age >= duration:
                self.schedule.ended(before, duration)
                return looks, age - duration
            self.schedule.ran(before, age)


@given(
    st.lists(st.tuples(st.floats(0, 2000), st.floats(0, 100), st.booleans()), max_size=40),
    ages,
    spreads,
    st.floats(1e-3, 1e3),
)
def test_any_history_stays_within_the_bounds(
    history: list[tuple[float, float, bool]], age: float, spread: float, price: float
) -> None:
    """Whatever was learned, waits are finite and neither shorter than `wait_min` nor longer than `wait_max`."""
    schedule = Schedules(Polling(price=price)).of(*KIND)
    for begin, took, ended in history:
        (schedule.ended if ended else schedule.ran)(begin, begin + took)

    assert 0.25 <= wait(schedule, age, spread) <= 30.0


@given(spread=spreads)
@pytest.mark.parametrize(("age", "low", "high"), [(0, 2, 3), (25, 2, 3), (31, 5, 10), (90, 5, 10), (121, 15, 30)])
def test_begins_with_the_documented_advice(age: float, low: float, high: float, spread: float) -> None:
    """Before a task was seen to end, looks come as the documentation advises."""
    assert low <= wait(Schedules(Polling()).of(*KIND), age, spread) <= high


@pytest.mark.parametrize("age", [479.9, 480.0, 1e6])
def test_very_old_tasks_are_looked_at_as_advised(age: float) -> None:
    """What outlives all that can be learned is looked at as the documentation advises."""
    usual, often = (Schedules(Polling(price=price)).of(*KIND) for price in (0.3, 0.03))
    for _ in range(100):
        usual.ended(0.0, 470.0)
        often.ended(0.0, 470.0)

    assert wait(usual, age, 0.5) == 22.5
    assert wait(often, age, 0.5) == pytest.approx(22.5 / math.sqrt(10))


def test_the_price_counts_from_the_first_task() -> None:
    """A lower price looks more often, also where nothing was learned and for tasks from elsewhere."""
    cheap, dear = Schedules(Polling(price=0.03)), Schedules(Polling(price=1.2))

    assert wait(cheap.of(*KIND), 0, 0.5) < 1
    assert wait(cheap.unknown, 1, 0.5) < 1
    assert wait(dear.of(*KIND), 0, 0.5) > 4
    assert wait(dear.unknown, 1, 0.5) > 4


@pytest.mark.parametrize(("sigma", "gain"), [(0.5, 1.25), (0.2, 2.2)], ids=["lognormal", "narrow"])
def test_learned_looks_are_fewer(sigma: float, gain: float) -> None:
    """After 20 tasks polls x lag, which is half the mean duration for a fixed interval, is that many times smaller."""
    polls, lags, durations = 0, 0.0, 0.0
    for seed in range(20):
        history = History(Schedules(Polling()).of(*KIND))
        history.chance.seed(seed)
        for number in range(70):
            duration = 12.0 * math.exp(sigma * history.chance.gauss(0, 1))
            looks, lag = history.run(duration)
            if number >= 20:
                polls, lags, durations = polls + looks, lags + lag, durations + duration

    assert (polls / 1000) * (lags / 1000) * gain < durations / 1000 / 2


def test_kinds_learn_apart() -> None:
    """Each model and resolution has times of its own."""
    schedules = Schedules(Polling())
    flex, large = schedules.of("flux-2/flex-text-to-image", "1K"), schedules.of("flux-2/flex-text-to-image", "2K")
    for _ in range(20):
        flex.ended(0.0, 12.0)

    assert schedules.of("flux-2/flex-text-to-image", "1K") is flex
    assert wait(flex, 0, 0.5) > 7
    assert wait(large, 0, 0.5) == wait(Schedules(Polling()).of(*KIND), 0, 0.5)


def test_failures_are_ends() -> None:
    """Where half of the tasks are refused within two seconds, looks come there as well."""
    schedules = Schedules(Polling())
    both, drawn = schedules.of("a", "1K"), schedules.of("b", "1K")
    for number in range(40):
        both.ended(0.0, 2.0 if number % 2 else 12.0)
        drawn.ended(0.0, 12.0)

    assert 1.5 < wait(both, 0, 0.5) < 3.5
    assert wait(drawn, 0, 0.5) > 8


def test_the_number_of_kinds_is_bounded() -> None:
    """Names that records make up are not remembered without end."""
    schedules = Schedules(Polling())
    for number in range(100):
        schedules.of(f"model-{number}", "1K").ended(0.0, 12.0)

    assert schedules.of("one more", "1K") is schedules.unknown
    assert len(schedules.knowledge()["kinds"]) == 32


@pytest.mark.parametrize(
    ("model", "param", "known"),
    [
        ("m", {"input": {"resolution": "2K"}}, True),
        (None, {"input": {"resolution": "2K"}}, False),
        ("m", None, False),
        ("m", {"input": "text"}, False),
        ("m", {"input": {"resolution": 2}}, False),
    ],
)
def test_a_record_tells_its_kind(model: str | None, param: Any, known: bool) -> None:
    """A record's model and resolution name the kind; without both it is unknown."""
    schedules = Schedules(Polling())
    record = TaskRecord(task_id="a", state=TaskState.GENERATING, state_text="generating", model=model, param=param)

    assert schedules.of_record(record) is (schedules.of("m", "2K") if known else schedules.unknown)


def test_a_fixed_interval_stays_fixed() -> None:
    """With an interval what tasks teach moves no look: it is kept, by kinds, for those who ask how long they take."""
    schedules = Schedules(Polling(interval=2.0))
    schedule = schedules.of(*KIND)
    for _ in range(20):
        schedule.ended(5.0, 9.0)
    later = Schedules(Polling(interval=3.0))
    later.remember(schedules.knowledge())

    for age in (0.0, 8.0, 100.0):
        assert (wait(schedule, age, 0.5), wait(later.of(*KIND), age, 0.5)) == (2.0, 3.0)
    assert schedule is schedule.without_callback is schedules.of(*KIND)
    assert 8.0 < schedule.durations().quantile(0.5) < 10.0
    assert 8.0 < later.of(*KIND).durations().quantile(0.5) < 10.0
    assert schedules.unknown.durations().quantile(0.5) == Schedules(Polling()).unknown.durations().quantile(0.5)


def test_tasks_from_elsewhere_are_first_looked_at_at_any_moment() -> None:
    """Of unknown age, they may have ended: the first look comes within an interval, many spread all over it."""
    unknown = Schedules(Polling()).unknown

    assert [wait(unknown, 0, spread) for spread in (0.0, 0.5, 1.0)] == [0.25, 1.375, 2.5]


def test_knowledge_is_remembered() -> None:
    """Another session goes on where one has ended; its own tasks soon weigh more."""
    schedules, others = Schedules(Polling()), Schedules(Polling())
    for _ in range(200):
        schedules.of(*KIND).ended(0.0, 12.0)
    learned = wait(schedules.of(*KIND), 0, 0.5)
    others.remember(json.loads(json.dumps(schedules.knowledge())))
    remembered = wait(others.of(*KIND), 0, 0.5)
    for each in (others, schedules):
        for _ in range(60):
            each.of(*KIND).ended(0.0, 30.0)

    assert remembered == pytest.approx(learned, rel=0.2)
    assert wait(others.of(*KIND), 0, 0.5) > wait(schedules.of(*KIND), 0, 0.5)


GOOD = [0.0] * BINS


@pytest.mark.parametrize(
    "knowledge",
    [
        None,
        [],
        {},
        {"version": 1},
        {"version": 2, "kinds": {}},
        {"version": 1, "kinds": []},
        {"version": 1, "kinds": {str(number): {"ends": GOOD, "at_risk": GOOD} for number in range(33)}},
        {"version": 1, "kinds": {"a 1K": None}},
        {"version": 1, "kinds": {"a 1K": {"ends": GOOD}}},
        {"version": 1, "kinds": {"a 1K": {"ends": GOOD, "at_risk": GOOD[1:]}}},
        {"version": 1, "kinds": {"a 1K": {"ends": GOOD, "at_risk": [-1.0, *GOOD[1:]]}}},
        {"version": 1, "kinds": {"a 1K": {"ends": [math.nan, *GOOD[1:]], "at_risk": GOOD}}},
        {"version": 1, "kinds": {"a 1K": {"ends": ["1", *GOOD[1:]], "at_risk": GOOD}}},
        {"version": 1, "kinds": {"a 1K": {"ends": [True, *GOOD[1:]], "at_risk": GOOD}}},
        {"version": 1, "kinds": {"a 1K": {"ends": [10**400, *GOOD[1:]], "at_risk": GOOD}}},
    ],
)
def test_knowledge_that_cannot_be_used(knowledge: Any) -> None:
    """What is not exactly what this version writes is refused, whole."""
    schedules = Schedules(Polling())
    with pytest.raises(ValueError, match=r"."):
        schedules.remember(knowledge)

    assert schedules.knowledge()["kinds"] == {}


def test_tasks_that_all_still_run_are_nothing_to_remember() -> None:
    """A kind of which no task has ended is not kept."""
    schedules = Schedules(Polling())
    schedules.of(*KIND).ran(0.0, 12.0)
    schedules.of("another", "1K").ended(0.0, 12.0)

    assert list(schedules.knowledge()["kinds"]) == ["another 1K"]
