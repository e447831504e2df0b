"""What tasks teach about the next one."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flux2_async.tasks.hazard import BINS, EDGES, KEEP, Hazard

PRIOR = (0.05,) * BINS

ages = st.floats(0, 1e4)
# A task: where it was seen to run, and whether it had ended there.
histories = st.lists(st.tuples(ages, ages, st.booleans()), max_size=60)


def taught(history: list[tuple[float, float, bool]]) -> Hazard:
    hazard = Hazard(PRIOR)
    for one, other, ended in history:
        hazard.ran(min(one, other), max(one, other), ended=ended)
    return hazard


def after(durations: list[float], hazard: Hazard | None = None) -> Hazard:
    hazard = hazard or Hazard(PRIOR)
    for duration in durations:
        hazard.ran(0.0, duration, ended=True)
    return hazard


def survival(hazard: Hazard, age: float) -> float:
    bin_ = next(j for j, (begin, end) in enumerate(pairwise(EDGES)) if begin <= age < end)
    return hazard.at(bin_, age)[0]


@pytest.mark.parametrize("price", [0.03, 0.3, 3.0])
@pytest.mark.parametrize(("age", "rel"), [(0.0, 0.02), (1.0, 0.02), (17.0, 0.05), (100.0, 0.15)])
def test_a_constant_hazard_gives_equal_spacing(age: float, rel: float, price: float) -> None:
    """The expected lag of a memoryless task, in closed form, is the price after the wait, as exactly as bins allow."""
    wait = Hazard(PRIOR).wait(age, price)

    assert wait - (1 - math.exp(-0.05 * wait)) / 0.05 == pytest.approx(price, rel=rel)


@given(histories, ages, st.floats(1e-6, 1e4))
def test_any_history_gives_a_wait(history: list[tuple[float, float, bool]], age: float, price: float) -> None:
    """Whatever was seen, a wait is a number of seconds above the price, or infinity beyond the last bin."""
    wait = taught(history).wait(age, price)

    assert wait >= price * 0.999
    assert age + wait < EDGES[-1] or wait == math.inf


@given(histories, st.floats(0, 400), st.floats(1e-3, 10), st.floats(1, 10))
def test_a_dearer_look_comes_later(
    history: list[tuple[float, float, bool]], age: float, price: float, factor: float
) -> None:
    """A higher price never shortens a wait."""
    hazard = taught(history)

    assert hazard.wait(age, price * factor) >= hazard.wait(age, price) * 0.999999


@given(histories, st.floats(0, 400), st.floats(1e-3, 10), st.floats(1e-3, 10))
def test_time_alone_brings_a_look_no_nearer_than_it_takes(
    history: list[tuple[float, float, bool]], age: float, price: float, later: float
) -> None:
    """A task that is seen to run later is looked at later: a look in between never brings the next one forward."""
    hazard = taught(history)

    assert age + later + hazard.wait(age + later, price) >= (age + hazard.wait(age, price)) * 0.999999


@given(st.lists(ages, min_size=2, max_size=10), st.booleans())
def test_looks_on_the_way_change_nothing(seen: list[float], ended: bool) -> None:
    """A task counts the same, however often it was looked at."""
    seen = [0.0, *sorted(seen)]
    often, once = Hazard(PRIOR), Hazard(PRIOR)
    for begin, end in pairwise(seen[:-1]):
        often.ran(begin, end)
    often.ran(*seen[-2:], ended=ended)
    once.ran(0.0, seen[-1], ended=ended)

    for one, other in zip(often.knowledge(), once.knowledge(), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@given(st.floats(1.0, 200.0))
def test_finds_the_duration_of_tasks_that_are_all_alike(duration: float) -> None:
    """After 20 tasks of one duration the first look comes shortly before or after it, and one soon after finds it."""
    hazard = after([duration] * 20)
    first = hazard.wait(0.0, 0.3)
    age, looks = first, 1
    while age < duration:
        age += hazard.wait(age, 0.3)
        looks += 1

    assert 0.6 * duration < first < 1.2 * duration + 1
    assert looks <= 5 + duration / 20
    assert age - duration < 0.15 * duration + 1


def test_tasks_that_still_run_are_survivors() -> None:
    """Ten that ended and ten that were seen to run much longer make half that outlive that age."""
    hazard = after([10.0] * 10)
    everybody = survival(hazard, 13.0)
    for _ in range(10):
        hazard.ran(0.0, 60.0)
    hazard.knowledge()

    assert everybody < 0.1
    assert survival(hazard, 13.0) == pytest.approx(0.5, abs=0.1)


def test_tasks_that_came_late_say_nothing_of_earlier_ages() -> None:
    """Ten that were first seen at 30 s do not make it more likely to live that long."""
    hazard = after([10.0] * 10 + [50.0] * 10)
    before = survival(hazard, 15.0)
    for _ in range(10):
        hazard.ran(30.0, 50.0, ended=True)
    hazard.knowledge()

    assert survival(hazard, 15.0) == pytest.approx(before, abs=0.05)


def test_tasks_that_all_still_run_change_nothing() -> None:
    """Until one has ended the prior holds, also while a hundred are seen to run."""
    hazard = Hazard(PRIOR)
    for _ in range(100):
        hazard.ran(0.0, 20.0)

    assert hazard.wait(5.0, 0.3) == Hazard(PRIOR).wait(5.0, 0.3)


@pytest.mark.parametrize(("before", "then"), [(12.0, 30.0), (30.0, 12.0)])
def test_a_service_that_changes_is_followed(before: float, then: float) -> None:
    """300 tasks after a service became slower, or faster, looks are where they would be had it always been so."""
    chance = random.Random(1)
    old = [before * math.exp(0.2 * chance.gauss(0, 1)) for _ in range(1000)]
    new = [then * math.exp(0.2 * chance.gauss(0, 1)) for _ in range(300)]
    hazard = after(old)
    assert hazard.wait(0.0, 0.3) == pytest.approx(after(old[:200]).wait(0.0, 0.3), rel=0.2)

    after(new[:20], hazard)
    beginning = hazard.wait(0.0, 0.3)
    after(new[20:], hazard)

    assert hazard.wait(0.0, 0.3) == pytest.approx(after(new).wait(0.0, 0.3), rel=0.25)
    assert abs(hazard.wait(0.0, 0.3) - then) < abs(beginning - then)


def test_ends_without_time_at_risk_leave_a_chance() -> None:
    """Tasks attached at the moment of their end make no age impossible to outlive."""
    hazard = Hazard(PRIOR)
    for edge in EDGES[:-1]:
        for _ in range(50):
            hazard.ran(edge, edge, ended=True)

    assert all(hazard.wait(edge, 0.3) >= 0.299 for edge in EDGES)
    assert survival(hazard, EDGES[-2]) > 0.0


def test_ages_never_seen_keep_the_prior() -> None:
    """What ends at 5 s says nothing of tasks that run for two minutes."""
    hazard = after([5.0] * 200)

    assert hazard.wait(120.0, 0.3) == pytest.approx(Hazard(PRIOR).wait(120.0, 0.3), rel=0.01)


@settings(max_examples=20)
@given(st.lists(ages, min_size=1, max_size=5))
def test_memory_is_bounded(durations: list[float]) -> None:
    """No bin keeps more than so many tasks."""
    ends, at_risk = after(durations * 100).knowledge()

    assert max(ends) <= KEEP
    assert max(seconds / (end - begin) for seconds, (begin, end) in zip(at_risk, pairwise(EDGES), strict=True)) <= (
        KEEP * 1.001
    )


def test_knowledge_goes_on() -> None:
    """What one has learned makes another one wait alike; made smaller, new tasks outweigh it sooner."""
    hazard = after([12.0] * 200)
    copy = Hazard(PRIOR, *hazard.knowledge())
    smaller = Hazard(PRIOR, *hazard.knowledge(10.0))
    waits = [after([30.0] * 60, each).wait(0.0, 0.3) for each in (copy, smaller)]

    assert Hazard(PRIOR, *hazard.knowledge()).wait(0.0, 0.3) == pytest.approx(hazard.wait(0.0, 0.3))
    assert waits[0] < waits[1]
