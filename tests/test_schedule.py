"""When to look again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_async._schedule import DocumentedAdvice, FixedInterval, Schedules, wait_after_failure
from flux2_async.models import Polling

KIND = ("flux-2/flex-text-to-image", "1K")

ages = st.floats(0, 1e7)
spreads = st.floats(0, 1)


@pytest.mark.parametrize(
    ("age", "low", "high"), [(0.1, 2, 3), (29.9, 2, 3), (30, 5, 10), (119.9, 5, 10), (120, 15, 30), (86400, 15, 30)]
)
@given(spread=spreads)
def test_follows_the_documented_advice(age: float, low: float, high: float, spread: float) -> None:
    """Every 2-3 s for 30 s, 5-10 s until two minutes, 15-30 s after."""
    assert low <= DocumentedAdvice(Polling()).wait(age, spread) <= high


def test_spreads_a_burst() -> None:
    """Tasks of one burst are not looked at in one burst."""
    learned = Schedules(Polling()).of(*KIND)

    assert learned.wait(0, 1.0) - learned.wait(0, 0.0) > 0.2


@given(ages, spreads, st.floats(0.01, 100), st.floats(0, 100))
def test_stays_within_the_bounds(age: float, spread: float, low: float, extra: float) -> None:
    """No wait is shorter than `wait_min` or longer than `wait_max`."""
    polling = Polling(wait_min=low, wait_max=low + extra)

    assert low <= Schedules(polling).of(*KIND).wait(age, spread) <= low + extra


@given(ages, spreads, st.floats(0, 1e4))
def test_a_fixed_interval_is_fixed(age: float, spread: float, interval: float) -> None:
    """With an interval the wait is that interval, at any age."""
    assert Schedules(Polling(interval=interval)).of(*KIND).wait(age, spread) == interval


def test_failures_double_the_wait() -> None:
    """Each failure in a row doubles the wait, as far as `wait_max`."""
    schedule = DocumentedAdvice(Polling(wait_max=30))
    waits = [wait_after_failure(schedule, 2.5, failures, None) for failures in (1, 2, 3, 4, 5000)]

    assert waits == [5, 10, 20, 30, 30]


def test_a_fixed_interval_slows_down_at_most_tenfold() -> None:
    """Under a fixed interval failures slow down to at most ten times the interval."""
    waits = [wait_after_failure(FixedInterval(2.0), 2.0, failures, None) for failures in (1, 2, 3, 4, 5)]

    assert waits == [4, 8, 16, 20, 20]


def test_no_busy_loop_on_failures() -> None:
    """As fast as replies come is not as fast as failures come."""
    assert wait_after_failure(FixedInterval(0.0), 0.0, 1, None) >= 0.1
    assert wait_after_failure(FixedInterval(0.0), 0.0, 50, None) == 1.0


@given(spreads, st.integers(1, 1000), st.floats(0, 1e9))
def test_retry_after_is_honoured(usual: float, failures: int, retry_after: float) -> None:
    """No look comes before Retry-After is over, but an absurd one keeps nobody for more than five minutes."""
    wait = wait_after_failure(DocumentedAdvice(Polling()), usual, failures, retry_after)

    assert min(retry_after, 300) <= wait <= 300
