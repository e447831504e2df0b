"""What tasks teach about the next one: how likely a task is to end at each age, and when a poll of it is due. Pure.

The hazard (ends per second of those that still run) is constant within a bin of ages, and bins grow with age. Counted
are ends and seconds at risk, so that a task that still runs, is given up or was attached late counts at the ages at
which it was seen to run, and at no others. Each bin leans on its neighbours with the weight of a few tasks, and these
lean on a prior with the weight of half a task.

A poll is due when the lag that it is expected to save has grown to its price. Under a constant hazard that is a spacing
of sqrt(2 x price / hazard), the optimum of the inspection problem of Barlow, Hunter and Proschan (1963); in a gap
between two lumps of ends it also finds those that were late in the first lump.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from operator import mul
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from flux2_async.tasks.durations import Durations

# Ten bins to a factor of four, from 0.3 s to 8 minutes; 30 s and 120 s, where the documented advice changes, are edges.
EDGES: Final = (0.0, *(30.0 * 4.0 ** (k / 10) for k in range(-34, 21)))
WIDTHS: Final = tuple(end - begin for begin, end in pairwise(EDGES))
BINS: Final = len(WIDTHS)

# A bin remembers about so many tasks, older ones fade: four times as many gain 1 %, and follow a change as much later.
KEEP: Final = 50.0
# The plan is made anew with so much news, as a share of the polls that are known, at most so many.
NEWS: Final = 0.1
POLLS: Final = 200.0
# Of a kind that nobody plans by.
SELDOM: Final = 2000.0
# Found by simulating narrow, wide, two-mode and memoryless durations; the figures depend little on them.
NEIGHBOURS: Final = 3
WEIGHT_OF_NEIGHBOURS: Final = tuple(4.0 * width for width in WIDTHS)
WEIGHT_OF_PRIOR: Final = tuple(0.5 * width for width in WIDTHS)
# No estimate from so few tasks is surer than that; it also keeps the product over all bins within a float.
SURVIVAL_MIN: Final = 0.01


class Hazard:
    """Learns from the tasks of one kind.

    Args:
        prior: The hazard in each bin before any task was seen, above 0.
        ends: Ends that were seen in each bin before. None: none.
        at_risk: Seconds for which tasks were seen to run in each bin before. None: none.
    """

    __slots__ = (
        "_area",
        "_at_risk",
        "_durations",
        "_ended",
        "_ends",
        "_entered",
        "_known",
        "_news",
        "_partly",
        "_planned",
        "_polls",
        "_prior",
        "_survival",
        "_taught",
    )

    def __init__(
        self, prior: Sequence[float], ends: Sequence[float] | None = None, at_risk: Sequence[float] | None = None
    ) -> None:
        self._prior = prior
        # Made when somebody asks.
        self._durations: Durations | None = None
        self._ends = list(ends or [0.0] * BINS)
        self._at_risk = list(at_risk or [0.0] * BINS)
        # Since they were folded in: ends, by how many tasks the number at risk changes in a bin, and seconds of partly
        # used bins.
        self._ended = [0.0] * BINS
        self._entered = [0] * (BINS + 1)
        self._partly = [0.0] * (BINS + 1)
        self._known = sum(self._ends)
        self._polls = POLLS
        # Until an end was seen the plan is that of the prior.
        self._taught = self._known > 0.0
        self._fold()

    def plan_seldom(self) -> None:
        """Take in what was counted only as often as older tasks are to fade: nobody plans by it."""
        self._known = self._polls = SELDOM

    def ran(self, begin: float, end: float, *, ended: bool = False) -> None:
        """Count a task that was seen to run from one age to another, in seconds, or `ended` then."""
        first, last = bisect_right(EDGES, begin) - 1, bisect_right(EDGES, end) - 1
        if ended:
            self._ended[min(last, BINS - 1)] += 1.0
            self._taught = True
        self._entered[first] += 1
        self._partly[first] -= begin - EDGES[first]
        self._entered[last] -= 1
        self._partly[last] += end - EDGES[last]
        self._durations = None
        self._news += 1
        if self._taught and self._news >= NEWS * self._known:
            self._known = min(self._known + self._news, self._polls)
            self._fold()

    def wait(self, age: float, price: float) -> float:
        """Give the seconds until a poll is due.

        Args:
            age: Seconds at which the task still ran.
            price: Seconds of lag that a poll is worth.

        Returns:
            Seconds, not less than `price`; infinity where no poll is due before the last bin ends.
        """
        begin = _bin(age)
        if begin >= BINS:
            return math.inf
        survival, area = self.at(begin, age)
        # Expected lag if the poll is at t: t - age - (area - area at t) / survival. It is sought between two edges, of
        # which the first is not beyond `due`.
        due = age + price + area / survival
        low, high = begin, min(_bin(due) + 1, BINS)
        while high - low > 1:
            middle = (low + high) // 2
            if EDGES[middle] + self._area[middle] / survival <= due:
                low = middle
            else:
                high = middle
        start, at_start = age, survival
        if low > begin:
            start, at_start, area = EDGES[low], self._survival[low], self._area[low]
        missing = due - start - area / survival
        ended = 1.0 - at_start / survival
        density = (self._survival[low] - self._survival[low + 1]) / WIDTHS[low] / survival
        root = ended + math.sqrt(max(ended * ended + 2.0 * density * missing, 0.0))
        poll = start + 2.0 * missing / root if root > 0.0 else math.inf
        return poll - age if poll < EDGES[-1] else math.inf

    def durations(self) -> "Durations":
        """Give how long tasks of this kind take, by all that was seen."""
        from flux2_async.tasks.durations import Durations  # noqa: PLC0415  few ask

        if self._durations is None:
            self._durations = Durations(EDGES, *self._seen())
        return self._durations

    def knowledge(self, most: float = KEEP) -> tuple[list[float], list[float]]:
        """Give `ends` and `at_risk`, each bin faded to at most so many tasks."""
        self._fold()
        return self._faded(most)

    def at(self, bin_: int, age: float) -> tuple[float, float]:
        """Give the share of tasks that outlive an age (in the bin of this number), and its integral from there on."""
        if not self._planned:
            self._plan()
        survival, area = self._survival[bin_], self._area[bin_]
        into = age - EDGES[bin_]
        there = survival + (self._survival[bin_ + 1] - survival) * into / WIDTHS[bin_]
        return there, area - into * (survival + there) / 2

    def _fold(self) -> None:
        """Take in what was counted; it is planned by when somebody asks, which under a fixed interval nobody does."""
        self._ends, self._at_risk = self._seen()
        self._ends, self._at_risk = self._faded(KEEP)
        self._ended = [0.0] * BINS
        self._entered = [0] * (BINS + 1)
        self._partly = [0.0] * (BINS + 1)
        self._news = 0
        self._planned = False

    def _seen(self) -> tuple[list[float], list[float]]:
        """Give ends and seconds at risk in each bin, with those that are not folded in yet."""
        at_risk, inside = [], 0
        for before, width, entered, partly in zip(self._at_risk, WIDTHS, self._entered, self._partly, strict=False):
            inside += entered
            seconds = before + inside * width + partly
            # By rounding it may be less than nothing.
            at_risk.append(max(0.0, seconds))
        return [before + ended for before, ended in zip(self._ends, self._ended, strict=True)], at_risk

    def _plan(self) -> None:
        self._planned = True
        self._survival, self._area = _curves(tuple(self._estimates()))

    def _faded(self, most: float) -> tuple[list[float], list[float]]:
        ends, at_risk = list(self._ends), list(self._at_risk)
        for number, width in enumerate(WIDTHS):
            if ends[number] > most or at_risk[number] > most * width:
                share = most / max(ends[number], at_risk[number] / width)
                ends[number] *= share
                at_risk[number] *= share
        return ends, at_risk

    def _estimates(self) -> list[float]:
        """The hazard in each bin."""
        if not any(self._ends):
            # Tasks that all still run say when no poll is needed, but not when the first one is.
            return list(self._prior)
        ends, at_risk = _smooth(self._ends), _smooth(self._at_risk)
        around = _leaning(_sum_around(ends), _sum_around(at_risk), WEIGHT_OF_PRIOR, self._prior)
        return _leaning(ends, at_risk, WEIGHT_OF_NEIGHBOURS, around)


def _bin(age: float) -> int:
    return bisect_right(EDGES, age) - 1


# Until a task has ended they are those of the prior, whatever was seen.
@lru_cache(maxsize=4)
def _curves(hazards: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """The share of tasks that outlive each edge, and its integral from there on."""
    # Conditional survival bin by bin; within a bin ends are spread evenly.
    bins = [max(math.exp(-hazard * width), SURVIVAL_MIN) for hazard, width in zip(hazards, WIDTHS, strict=True)]
    survival = [1.0, *accumulate(bins, mul)]
    areas = [width * (before + after) / 2 for width, (before, after) in zip(WIDTHS, pairwise(survival), strict=True)]
    # From the far end, since a sum from the near one would lose the tail's digits.
    return survival, [*accumulate(reversed(areas), initial=0.0)][::-1]


def _leaning(
    ends: Sequence[float], at_risk: Sequence[float], weights: Sequence[float], on: Sequence[float]
) -> list[float]:
    """The hazard in each bin, which leans on another one with so many seconds of it."""
    rows = zip(ends, at_risk, weights, on, strict=True)
    return [(ended + weight * other) / (seconds + weight) for ended, seconds, weight, other in rows]


def _smooth(values: list[float]) -> list[float]:
    """Spread each over three bins."""
    rows = zip([values[0], *values[:-1]], values, [*values[1:], values[-1]], strict=True)
    return [(left + 2.0 * value + right) / 4.0 for left, value, right in rows]


def _sum_around(values: list[float]) -> list[float]:
    sums = [0.0, *accumulate(values)]
    ends = sums[NEIGHBOURS + 1 :] + sums[-1:] * NEIGHBOURS
    begins = [0.0] * NEIGHBOURS + sums[: -NEIGHBOURS - 1]
    return [end - begin for begin, end in zip(begins, ends, strict=True)]
