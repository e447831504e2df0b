"""The pace that looks share after the service refused one."""

import math

from hypothesis import given
from hypothesis import strategies as st

from flux2_async.tasks.pace import FORGOTTEN, SLOWEST, Pace


def look(pace: Pace, now: float, *, passes: bool = True, retry_after: float | None = None) -> float:
    """Send the next look as soon as the pace lets it, answered at once; give when that was."""
    at = max(now, pace.opens(now))
    pace.left(at)
    if passes:
        pace.passed(at, at)
    else:
        pace.refused(at, at, retry_after)
    return at


def looks_until(pace: Pace, now: float, end: float) -> list[float]:
    """Send looks that pass one after the other until a time."""
    times = []
    while pace.opens(now) < end:
        now = look(pace, now)
        times.append(now)
    return times


def test_nothing_is_held_before_a_refusal() -> None:
    """Looks leave when they are due."""
    pace = Pace()

    assert [look(pace, 5.0) for _ in range(1000)] == [5.0] * 1000
    assert pace.rate is None


def test_the_pace_begins_with_what_passed_within_a_second() -> None:
    """Four of twenty passed: four a second, evenly, after the second that is used up."""
    pace = Pace()
    look(pace, 8.0)
    for _ in range(20):
        pace.left(10.0)
    for number in range(20):
        (pace.refused if number >= 4 else pace.passed)(10.0, 10.1 + number / 1000)

    assert pace.rate == 4.0
    assert pace.opens(10.5) == 11.104
    pace.left(11.104)
    assert pace.opens(11.2) == 11.354


def test_the_pace_grows_by_one_a_second() -> None:
    """As long as all pass and there are looks that wait for it."""
    pace = Pace()
    look(pace, 0.0, passes=False)
    times = looks_until(pace, 0.0, 10.0)

    assert pace.rate in (9.0, 10.0)
    assert [sum(second <= at < second + 1 for at in times) for second in range(1, 5)] == [2, 3, 4, 5]


def test_a_pace_that_nobody_waits_for_does_not_grow() -> None:
    """What was never needed was never tried."""
    pace = Pace()
    look(pace, 0.0, passes=False)
    for second in range(2, 100):
        look(pace, second * 2.0)

    assert pace.rate == 1.0


def test_a_refusal_halves_it_and_the_refused_pace_is_not_tried_again_at_once() -> None:
    """Then it grows to what has passed for a second, and above that only ten seconds later."""
    pace = Pace()
    look(pace, 0.0, passes=False)
    times = looks_until(pace, 0.0, 10.0)
    passed = pace.rate
    assert passed is not None
    at = look(pace, times[-1], passes=False)

    assert pace.rate == passed / 2
    looks_until(pace, at, at + 9.9)
    assert pace.rate == passed - 1
    looks_until(pace, at + 9.9, at + 13.0)
    assert (pace.rate or 0.0) > passed


def test_the_refusals_of_one_burst_are_one_piece_of_news() -> None:
    """What left before the pace was changed says nothing about the new pace."""
    pace = Pace()
    for number in range(40):
        pace.left(number / 1000)
    for number in range(40):
        (pace.refused if number % 4 else pace.passed)(number / 1000, 0.5 + number / 1000)

    assert pace.rate == 1.0
    assert pace.opens(0.6) == 1.501


def test_retry_after_holds_all_looks() -> None:
    """A short one as it is, a long one as far as five minutes; the pace is what it would be without."""
    for asked, held in ((0.0, 1.0), (0.5, 1.0), (3.0, 3.0), (1e9, 300.0)):
        pace = Pace()
        look(pace, 0.0, passes=False, retry_after=asked)
        assert (pace.rate, pace.opens(0.1)) == (1.0, held)


def test_a_question_that_costs_more_is_asked_more_rarely() -> None:
    """With a Retry-After of 20 s the refused pace is tried again 200 s later."""
    pace = Pace()
    look(pace, 0.0, passes=False)
    at = look(pace, looks_until(pace, 0.0, 6.0)[-1], passes=False, retry_after=20.0)
    proven = pace.rate
    assert proven is not None
    highest = 0.0
    now = at
    while now < at + 199.0:
        now = look(pace, now)
        highest = max(highest, pace.rate or math.inf)

    assert highest <= 2 * proven - 1


def test_the_pace_is_forgotten() -> None:
    """Five minutes after the last refusal looks leave when they are due."""
    pace = Pace()
    look(pace, 0.0, passes=False)
    assert pace.opens(0.5) == 1.0
    assert pace.opens(FORGOTTEN) == FORGOTTEN
    assert pace.rate is None


steps = st.lists(
    st.tuples(st.floats(0, 5), st.floats(0, 5), st.booleans(), st.none() | st.floats(0, 1e6)), min_size=1, max_size=80
)


@given(steps)
def test_looks_are_spread_whatever_happens(steps: list[tuple[float, float, bool, float | None]]) -> None:
    """Two looks are never closer than the pace says, which stays within its bounds, and none waits for ever."""
    pace, now, left = Pace(), 0.0, -math.inf
    for idle, took, passes, retry_after in steps:
        now += idle
        opens = pace.opens(now)
        assert opens <= now + max(1 / SLOWEST, 300.0)
        at = max(now, opens)
        if pace.rate is not None:
            assert at - left >= 1 / pace.rate - 1e-9 or at - left >= 1 / (pace.rate + 1) - 1e-9
        pace.left(at)
        left, now = at, at + took
        if passes:
            pace.passed(left, now)
        else:
            pace.refused(left, now, retry_after)
        assert pace.rate is None or SLOWEST <= pace.rate <= len(steps)
