"""When a window that was refused tries a higher level."""

import pytest

from flux2_async._growth import EARNS, FORGET, MAX_PATIENCE, PATIENCE, SAVINGS, Growth

PERIOD = 10.0


def periods_until_try(growth: Growth, *, even: bool, begun: float = 0.0) -> int:
    """Clean periods until the next try, at a level of 12 with all permits always out."""
    growth.tries(begun, limit=12, even=even, room=True)
    for period in range(1, 2 * MAX_PATIENCE):
        if growth.tries(begun + period * PERIOD, limit=12, even=even, room=True):
            return period
    raise AssertionError("it never tried")


@pytest.mark.parametrize("even", [True, False])
def test_next_step_after_a_level_that_passed(*, even: bool) -> None:
    """A burst has passed after one clean period, an even stream after two; then comes the next step."""
    growth = Growth(PERIOD)
    assert periods_until_try(growth, even=even) == PATIENCE

    assert periods_until_try(growth, even=even, begun=PATIENCE * PERIOD) == (2 if even else 1)


def test_firm_limit_is_tried_ever_more_rarely() -> None:
    """Four times as rarely after each try refused by one, up to the longest wait; anew when the limit moved."""
    growth, waits = Growth(PERIOD), []
    periods_until_try(growth, even=True)
    for _ in range(3):
        growth.stop(limit=12, even=True, firm=True)
        waits.append(periods_until_try(growth, even=True))
    growth.stop(limit=12, even=True, firm=False)

    assert waits == [4 * PATIENCE, MAX_PATIENCE, MAX_PATIENCE]
    assert periods_until_try(growth, even=True) == PATIENCE


def test_spent_budget_doubles_the_wait() -> None:
    """While more was refused than submissions taken have earned, and no longer."""
    growth = Growth(PERIOD)
    growth.spend(SAVINGS)
    growth.stop(limit=12, even=False, firm=False)
    assert periods_until_try(growth, even=False) == 4
    for _ in range(EARNS):
        growth.earn()
    growth.stop(limit=12, even=False, firm=False)

    assert periods_until_try(growth, even=False) == 2


def test_forgets_at_the_top() -> None:
    """Without room there is no try, and after enough clean periods the refusals are forgotten."""
    growth = Growth(PERIOD)
    growth.tries(0, limit=19, even=True, room=False)
    for period in range(1, FORGET + 1):
        assert not growth.forgets
        assert not growth.tries(period * PERIOD, limit=19, even=True, room=False)

    assert growth.forgets
