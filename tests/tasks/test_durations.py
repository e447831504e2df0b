"""What is known of how long tasks take."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_async.models import Polling
from flux2_async.tasks.durations import Durations, expected
from flux2_async.tasks.hazard import BINS, EDGES
from flux2_async.tasks.schedule import Schedules

KIND = ("flux-2/flex-text-to-image", "1K")
NOTHING = [0.0] * BINS

ages = st.floats(0, 5000)
shares = st.floats(0.01, 0.99)


def seen(took: list[float], running: list[float] = []) -> Durations:  # noqa: B006  only read
    """What a session knows that has looked often."""
    schedule = Schedules(Polling()).of(*KIND)
    for age in running:
        schedule.ran(0.0, age)
    for age in took:
        schedule.ended(0.0, age)
    return schedule.durations()


def test_before_any_the_documented_range_counts() -> None:
    """One in ten takes less than 8 s, one in ten more than 95 s."""
    durations = Durations(EDGES, NOTHING, NOTHING)

    quantiles = [durations.quantile(share) for share in (0.1, 0.5, 0.9)]
    assert quantiles == pytest.approx([8.0, math.sqrt(8.0 * 95.0), 95.0], rel=0.05)


def test_what_runs_for_long_takes_longer() -> None:
    """Of those that are 60 s old half end later than half of all, and nobody is expected to end in the past."""
    durations = Durations(EDGES, NOTHING, NOTHING)
    young, old, ancient = (expected(durations, age) for age in (0.0, 60.0, 3000.0))

    assert (young.elapsed, old.elapsed) == (0.0, 60.0)
    assert 27 < (young.median or 0) < 28
    assert 85 < (old.median or 0) < 105
    assert 0 < (old.remaining or 0) < 45
    assert 3000 < (ancient.median or 0) < 6000 < (ancient.bound or 0)
    assert young.fraction == 0.0
    assert 0.7 < (old.fraction or 0) < (ancient.fraction or 0) < 1.0


@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("typical", [3.0, 12.0, 30.0, 90.0])
def test_learns_from_a_few(sigma: float, typical: float) -> None:
    """After 40 tasks the median and the bound are near those of the distribution they come from."""
    chance = random.Random(1)
    durations = seen([chance.lognormvariate(math.log(typical), sigma) for _ in range(40)])

    assert typical / 1.35 < durations.quantile(0.5) < typical * 1.35
    bound = typical * math.exp(1.2816 * sigma)
    assert bound / 1.5 < durations.quantile(0.9) < bound * 1.5


def test_the_first_to_end_are_the_quickest() -> None:
    """When five of a hundred that began together have ended, the others tell that most take longer."""
    chance = random.Random(2)
    took = sorted(chance.lognormvariate(math.log(30.0), 0.5) for _ in range(100))

    assert seen(took[:5]).quantile(0.5) < 13
    assert 16 < seen(took[:5], [took[4]] * 95).quantile(0.5) < 60


many = st.lists(st.floats(0.1, 900), max_size=60)


@given(many, many, st.tuples(ages, ages), st.tuples(shares, shares))
def test_is_a_distribution(
    took: list[float], running: list[float], two: tuple[float, float], both: tuple[float, float]
) -> None:
    """Fewer outlive what is later, a larger share ends later and never before now, fractions never fall with age."""
    durations = seen(took, running)
    (one, other), (share, more) = sorted(two), sorted(both)

    assert durations.outlive(0.0) == 1.0
    assert 0.0 < durations.outlive(other) <= durations.outlive(one) <= 1.0
    assert one <= durations.quantile(share, one) <= durations.quantile(more, one) * (1 + 1e-9) < math.inf
    left = durations.outlive(durations.quantile(share, one)) / durations.outlive(one)
    assert left == pytest.approx(1.0 - share, rel=1e-6)
    assert 0.0 <= durations.fraction(one) <= durations.fraction(other) + 1e-9 <= 1.0 + 1e-9
    assert durations.quantile(share, one) <= durations.quantile(share, other) * (1 + 1e-9)
