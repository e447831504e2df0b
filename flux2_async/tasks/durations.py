"""How long tasks of one kind take, and what that says of one that runs already. Pure.

The share of tasks that outlive an age comes from the counts of `hazard`, bin by bin (the actuarial estimate of a life
table), so that tasks which still run count as well: the first of a hundred to end are the quickest of them. Where few
or none were seen, as at ages that no task has reached, the documented range speaks: seen were 8 to 95 s, taken here for
the middle eight in ten of a log-logistic distribution.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import Final

from flux2_async.models.expectation import Expectation

SHORT: Final = 8.0
LONG: Final = 95.0
MEDIAN: Final = math.sqrt(SHORT * LONG)
SHAPE: Final = 2.0 * math.log(9.0) / math.log(LONG / SHORT)
# So many tasks of the documented range are taken for seen.
WEIGHT: Final = 0.5
HALF: Final = 0.5
MOST: Final = 0.9


class Durations:
    """What is known of how long tasks of one kind take.

    Args:
        edges: The ages between which ends are counted, from 0.0, in seconds.
        ends: Ends that were seen in each bin.
        at_risk: Seconds for which tasks were seen to run in each bin.
    """

    __slots__ = ("_edges", "_survival")

    def __init__(self, edges: Sequence[float], ends: Sequence[float], at_risk: Sequence[float]) -> None:
        self._edges = edges
        outlived = (
            1.0 - _ended(begin, end, count, seconds / (end - begin))
            for (begin, end), count, seconds in zip(pairwise(edges), ends, at_risk, strict=True)
        )
        # Falling, and above 0.0 everywhere.
        self._survival: list[float] = [1.0, *accumulate(outlived, mul)]

    def outlive(self, age: float) -> float:
        """Give the share of tasks that take longer, 0.0 to 1.0."""
        bin_ = bisect_right(self._edges, age) - 1
        if bin_ >= len(self._edges) - 1:
            return self._survival[-1] * _documented(age) / _documented(self._edges[-1])
        begin, end = self._edges[bin_], self._edges[bin_ + 1]
        share = (age - begin) / (end - begin)
        return self._survival[bin_] * (1.0 - share) + self._survival[bin_ + 1] * share

    def quantile(self, share: float, age: float = 0.0) -> float:
        """Give the age, in seconds, by which a share (above 0.0, below 1.0) of those that reach `age` have ended."""
        left = self.outlive(age) * (1.0 - share)
        after = bisect_left(self._survival, -left, key=lambda survival: -survival)
        if after >= len(self._survival):
            tail = left / self._survival[-1] * _documented(self._edges[-1])
            return MEDIAN * math.pow(1.0 / tail - 1.0, 1.0 / SHAPE)
        begin, end = self._survival[after - 1], self._survival[after]
        into = (begin - left) / (begin - end)
        return max(self._edges[after - 1] + into * (self._edges[after] - self._edges[after - 1]), age)

    def fraction(self, age: float) -> float:
        """Give how much of their time tasks have behind them at an age, 1.0 for those that have ended, on average."""
        last = max(self._edges[-1], age)
        # Half of what comes later has ended by about 1.5 times that age.
        behind = 1.0 - self.outlive(age) + self.outlive(last) * age / (1.5 * last)
        for (begin, end), (before, after) in zip(pairwise(self._edges), pairwise(self._survival), strict=True):
            if end > age:
                # Within a bin ends are spread evenly; of the one that the age is in, what is left of it counts.
                ahead = max(begin, age)
                behind += (before - after) * (end - ahead) / (end - begin) * age / ((ahead + end) / 2.0)
        return min(behind, 1.0)


def expected(durations: Durations | None, age: float) -> Expectation:
    """Give what is expected of a task that runs and is so many seconds old; None: of one of which nothing is known."""
    if durations is None:
        return Expectation()
    return Expectation(
        elapsed=age,
        median=durations.quantile(HALF, age),
        bound=durations.quantile(MOST, age),
        fraction=durations.fraction(age),
    )


def _documented(age: float) -> float:
    """The share of tasks that take longer, where none was seen."""
    return 1.0 / (1.0 + math.pow(age / MEDIAN, SHAPE))


def _ended(begin: float, end: float, count: float, at_risk: float) -> float:
    """The share of those that reach a bin which end in it; `at_risk`: so many of them, on average over the bin."""
    documented = 1.0 - _documented(end) / _documented(begin)
    return (count + WEIGHT * documented) / (max(at_risk + count / 2.0, count) + WEIGHT)
