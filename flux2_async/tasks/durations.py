"""How long tasks of one kind take, and what that says of one that runs already. Pure.

The share of tasks that outlive an age comes from the counts of `hazard`, bin by bin (the actuarial estimate of a life
table), so that tasks which still run count as well: the first of a hundred to end are the quickest of them. Ages that
few have reached lean on the log-logistic distributions under which what was seen is likely; before anything was seen
that is one whose middle eight in ten are the documented range, 8 to 95 s.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise, product
from operator import mul
from typing import Final

from flux2_async.models.expectation import Expectation

SHORT: Final = 8.0
LONG: Final = 95.0
MEDIAN: Final = math.sqrt(SHORT * LONG)
SHAPE: Final = 2.0 * math.log(9.0) / math.log(LONG / SHORT)
# Medians and shapes that tasks may have: from all alike within a tenth to the documented range.
MEDIANS: Final = tuple(MEDIAN * 1.2**step for step in range(-16, 13))
SHAPES: Final = (SHAPE, 2.6, 4.0, 6.0, 9.0, 14.0, 25.0)
# How far from the documented median one is likely to be: a factor of e to that.
LIKELY: Final = 1.0
NEGLIGIBLE: Final = 1e-3
# So many tasks of what is likely are taken for seen.
WEIGHT: Final = 1.0
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
        likely = _likely(edges, ends, at_risk)
        outlived = (
            1.0 - _ended(1.0 - after / before, count, seconds / (end - begin))
            for (begin, end), (before, after), count, seconds in zip(
                pairwise(edges), pairwise(likely), ends, at_risk, strict=True
            )
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
    return _outlive(age, MEDIAN, SHAPE)


def _outlive(age: float, median: float, shape: float) -> float:
    return 1.0 / (1.0 + math.pow(age / median, shape))


def _ended(likely: float, count: float, at_risk: float) -> float:
    """The share of those that reach a bin which end in it; `at_risk`: so many of them, on average over the bin."""
    return (count + WEIGHT * likely) / (max(at_risk + count / 2.0, count) + WEIGHT)


def _likely(edges: Sequence[float], ends: Sequence[float], at_risk: Sequence[float]) -> list[float]:
    """The share of tasks that outlive each edge, by all candidates as far as they are likely."""
    if not any(ends):
        return [_documented(edge) for edge in edges]
    weights = []
    for (median, _), hazards, logarithms in _candidates(tuple(edges)):
        far = math.log(median / MEDIAN) / LIKELY
        weights.append(sum(map(mul, ends, logarithms)) - sum(map(mul, at_risk, hazards)) - far * far / 2.0)
    best = max(weights)
    kept = [
        (math.exp(weight - best), candidate[0])
        for weight, candidate in zip(weights, _candidates(tuple(edges)), strict=True)
        if weight - best > math.log(NEGLIGIBLE)
    ]
    total = sum(weight for weight, _ in kept)
    return [sum(weight * _outlive(edge, *shape) for weight, shape in kept) / total for edge in edges]


_Candidate = tuple[tuple[float, float], list[float], list[float]]


@cache
def _candidates(edges: tuple[float, ...]) -> list[_Candidate]:
    """Median and shape of each, its hazard in each bin, in ends per second of those that run, and its logarithm."""
    candidates = []
    for median, shape in product(MEDIANS, SHAPES):
        outlived = [_outlive(edge, median, shape) for edge in edges]
        hazards = [
            max(math.log(before / after) / (end - begin), 1e-12)
            for (begin, end), (before, after) in zip(pairwise(edges), pairwise(outlived), strict=True)
        ]
        candidates.append(((median, shape), hazards, list(map(math.log, hazards))))
    return candidates
