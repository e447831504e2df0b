"""When to look at a task whose callback may get lost."""

import itertools

import pytest
from waits import wait

from flux2_async.models import Polling
from flux2_async.tasks.callback_trust import Insurance, Trust
from flux2_async.tasks.schedule import DocumentedAdvice, Schedules


def earned() -> Trust:
    trust = Trust()
    trust.earn()
    return trust


def test_trust_is_earned_and_lost() -> None:
    """There is none before a callback came, and none after one that did not; its end is told once."""
    trust = Trust()
    assert not trust
    assert not trust.lose()
    trust.earn()
    assert trust
    assert [trust.lose(), trust.lose()] == [True, False]
    assert not trust


def test_without_trust_looks_come_as_without_callbacks() -> None:
    """At every age."""
    usual = DocumentedAdvice(Polling())
    schedule = Insurance(usual, Trust())

    assert [wait(schedule, age, 0.3) for age in (0.0, 20.0, 100.0)] == [wait(usual, a, 0.3) for a in (0.0, 20.0, 100.0)]


def test_insurance_looks_at_the_age_limits() -> None:
    """Trusted callbacks leave a look at 30 s and at 2 min, then the usual schedule."""
    schedule = Insurance(DocumentedAdvice(Polling()), earned())
    ages = list(itertools.accumulate(range(3), lambda age, _: age + wait(schedule, age, 0.0), initial=0.0))

    assert ages[1:3] == [30.0, 120.0]
    assert ages[3] - ages[2] == pytest.approx(22.5, abs=2)


def test_insurance_is_spread() -> None:
    """Tasks of one burst are not all looked at in one moment, and none before the age limit."""
    schedule = Insurance(DocumentedAdvice(Polling()), earned())

    assert 30.0 == wait(schedule, 0.0, 0.0) < wait(schedule, 0.0, 0.5) < wait(schedule, 0.0, 1.0) <= 33.0


def test_tasks_with_a_callback_teach_those_without() -> None:
    """What a callback finds finished is learned from, and is where the looks come when callbacks are not trusted."""
    usual, trust = Schedules(Polling()).of("flux-2/flex-text-to-image", "1K"), earned()
    schedule = Insurance(usual, trust)
    for _ in range(20):
        schedule.ran(0.0, 5.0)
        schedule.ended(5.0, 12.0)
    trusted = wait(schedule, 0.0, 0.5)
    trust.lose()

    assert trusted >= 30
    assert schedule.without_callback is usual
    assert 7 < wait(schedule, 0.0, 0.5) == wait(usual, 0.0, 0.5) < 12
