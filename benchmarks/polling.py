"""Polls and lag: the learned schedule against the documented advice, fixed intervals, back-off and the optimum.

A simulation through the real `Schedule` objects, with fixed seeds: nothing is sent and nothing sleeps. Ratios of polls
are taken at equal lag. What was learned is frozen after 20 tasks and averaged over many such histories.
"""

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice, repeat
from statistics import NormalDist, fmean

import attrs

from benchmarks.table import Table
from flux2_async import Polling
from flux2_async.tasks.schedule import DocumentedAdvice, Schedule, Schedules

SAMPLES = 4000
GRID = 1000
JUDGED_BY = 50
KIND = ("flux-2/flex-text-to-image", "1K")

Quantile = Callable[[float], float]
NORMAL = NormalDist()


def lognormal(median: float, sigma: float) -> Quantile:
    """Durations whose logarithm is normal."""
    return lambda share: median * math.exp(sigma * NORMAL.inv_cdf(share))


def two_modes(share: float) -> float:
    """70 % around 6 s, 30 % around 40 s, each within about 20 %."""
    first = 0.7
    return lognormal(6.0, 0.2)(share / first) if share < first else lognormal(40.0, 0.2)((share - first) / (1 - first))


DURATIONS: dict[str, Quantile] = {
    "lognormal (median 12 s, sigma 0.5)": lognormal(12.0, 0.5),
    "narrow (median 12 s, sigma 0.2)": lognormal(12.0, 0.2),
    "two-mode (70 % 6 s, 30 % 40 s)": two_modes,
    "memoryless (mean 12 s)": lambda share: -12.0 * math.log1p(-share),
}


# From a look every half second to a few for each task; close enough for a straight line between two.
PRICES = (0.01, 0.03, 0.08, 0.15, 0.3, 0.6, 1.2, 2.0, 3.0)
TASKS = 20
HISTORIES = 80


@attrs.frozen
class Row:
    """What one schedule does with one distribution of durations.

    Attributes:
        schedule: The schedule.
        polls: Looks per task, mean.
        lag: Seconds from finished to known, mean.
        learned: Looks per task of the learned schedule, after 20 tasks, at that lag.
        optimum: Looks per task of the best schedule there is for this distribution, at that lag.
    """

    schedule: str
    polls: float
    lag: float
    learned: float
    optimum: float


@attrs.frozen
class Front:
    """What one way to poll does at each price: pairs of polls and lag, by growing lag."""

    points: tuple[tuple[float, float], ...]

    def polls_at(self, lag: float) -> float:
        """Interpolate the polls at a lag; both are nearly powers of the price."""
        lags = [math.log(each) for _, each in self.points]
        place = min(max(bisect_left(lags, math.log(lag)), 1), len(lags) - 1)
        (more, _), (fewer, _) = self.points[place - 1 : place + 1]
        share = (math.log(lag) - lags[place - 1]) / (lags[place] - lags[place - 1])
        return more * math.exp(share * math.log(fewer / more))


@attrs.frozen
class Comparison:
    """Everything about one distribution of durations.

    Attributes:
        durations: The distribution.
        rows: The schedules.
        learned: The learned schedule after 20 tasks, at many prices.
        optimum: The best there is, at the same prices.
    """

    durations: str
    rows: tuple[Row, ...]
    learned: Front
    optimum: Front


def compare() -> Iterator[Comparison]:
    """Simulate."""
    for name, quantile in DURATIONS.items():
        durations = [quantile((number + 0.5) / SAMPLES) for number in range(SAMPLES)]
        optimum = Front(tuple(best(durations, price) for price in PRICES))
        front = Front(tuple(learned(quantile, price, TASKS) for price in PRICES))
        default = PRICES.index(Polling().price)
        measured = {
            f"learned from {TASKS} tasks": front.points[default],
            f"learned from {10 * TASKS} tasks": learned(quantile, PRICES[default], 10 * TASKS),
            **others(durations, front),
            "optimum, distribution known": optimum.points[default],
        }
        rows = (
            Row(schedule, polls, lag, front.polls_at(lag), optimum.polls_at(lag))
            for schedule, (polls, lag) in measured.items()
        )
        yield Comparison(name, tuple(rows), front, optimum)


def others(durations: Sequence[float], front: Front) -> dict[str, tuple[float, float]]:
    """Polls and lag of what does not learn; `front` tells which fixed interval comes nearest to what does."""
    fixed = [by_ages(durations, repeated(tenths / 10)) for tenths in range(5, 51)]
    return {
        "documented advice": by_ages(durations, advised_ages()),
        "best fixed interval": min(fixed, key=lambda each: each[0] / front.polls_at(each[1])),
        "every 0.5 s": by_ages(durations, repeated(0.5)),
        "every 2 s": by_ages(durations, repeated(2.0)),
        "back-off 1 s x 2, at most 30 s": by_ages(durations, backed_off(1.0, 2.0, 30.0)),
        "back-off 1 s x 1.5, at most 10 s": by_ages(durations, backed_off(1.0, 1.5, 10.0)),
    }


def measure() -> Iterator[Table]:
    """Give a table for each distribution."""
    columns = ("schedule", "polls", "lag, s", "polls x lag", "x learned", "x optimum")
    notes = (
        "x: times as many polls at equal lag as the learned schedule after 20 tasks, and as the optimum",
        f"learned: frozen after so many tasks, the mean of {HISTORIES} histories with fixed seeds",
        "best fixed interval: of all from 0.5 to 5 s, the one that comes nearest to the learned schedule",
    )
    for comparison in compare():
        cells = [
            (row.schedule, row.polls, row.lag, row.polls * row.lag, row.polls / row.learned, row.polls / row.optimum)
            for row in comparison.rows
        ]
        yield Table(f"Polls and lag, {comparison.durations}", columns, cells, notes)


def learned(quantile: Quantile, price: float, tasks: int) -> tuple[float, float]:
    """Polls and lag of what was learned from so many tasks, the mean of many histories."""
    results = []
    for seed in range(HISTORIES):
        chance = random.Random(seed)  # noqa: S311  a simulation wants a seed
        schedule = Schedules(Polling(price=price)).of(*KIND)
        for _ in range(tasks):
            poll(schedule, quantile(chance.random()), chance, learning=True)
        shares = ((number + 0.5) / JUDGED_BY for number in range(JUDGED_BY))
        results += [poll(schedule, quantile(share), chance, learning=False) for share in shares]
    return fmean(polls for polls, _ in results), fmean(lag for _, lag in results)


def poll(schedule: Schedule, duration: float, chance: random.Random, *, learning: bool) -> tuple[int, float]:
    """Look at one task until it is finished; give the looks and the lag."""
    age, polls = 0.0, 0
    while True:
        before = age
        age += chance.uniform(*schedule.waits(age))
        polls += 1
        if age >= duration:
            break
        if learning:
            schedule.ran(before, age)
    if learning:
        schedule.ended(before, duration)
    return polls, age - duration


def by_ages(durations: Sequence[float], ages: Iterator[float]) -> tuple[float, float]:
    """Polls and lag of looks at given ages; `durations` are sorted."""
    polls, lag, looks = 0, 0.0, 0
    age = 0.0
    for duration in durations:
        while age < duration:
            age = next(ages)
            looks += 1
        polls += looks
        lag += age - duration
    return polls / len(durations), lag / len(durations)


def repeated(interval: float) -> Iterator[float]:
    """The ages of looks at a fixed interval."""
    return accumulate(repeat(interval))


def backed_off(first: float, factor: float, most: float) -> Iterator[float]:
    """The ages of looks with exponential back-off."""
    return accumulate(min(first * factor**number, most) for number in range(1000))


def advised_ages() -> Iterator[float]:
    """The ages of looks at the middle of what the API's documentation advises."""
    advice = DocumentedAdvice(Polling())
    # At age 0 it would look at a random moment: that is for tasks that come from elsewhere.
    ages = accumulate(repeat(0.0), lambda age, _: age + sum(advice.waits(age or 0.001)) / 2)
    return islice(ages, 1, None)


def best(durations: Sequence[float], price: float) -> tuple[float, float]:
    """Polls and lag of the schedule with the least price x polls + lag, by dynamic programming over a grid of ages.

    `costs[i]` is what tasks that run at age `grid[i]` cost from there on, `ahead[i]` the next look.
    """
    total = len(durations)
    grid = [durations[-1] * number / GRID for number in range(GRID + 1)]
    ended = [bisect_right(durations, age) for age in grid]
    sums = [0.0, *accumulate(durations)]
    costs, ahead = [0.0] * (GRID + 1), [GRID] * (GRID + 1)
    for begin in range(GRID - 1, -1, -1):
        least = math.inf
        for look in range(begin + 1, GRID + 1):
            lag = grid[look] * (ended[look] - ended[begin]) - (sums[ended[look]] - sums[ended[begin]])
            # It only grows from here.
            if lag > least:
                break
            if lag + costs[look] < least:
                least, ahead[begin] = lag + costs[look], look
        costs[begin] = least + price * (total - ended[begin])
    polls, lag, begin = 0, 0.0, 0
    while begin < GRID:
        look = ahead[begin]
        polls += total - ended[begin]
        lag += grid[look] * (ended[look] - ended[begin]) - (sums[ended[look]] - sums[ended[begin]])
        begin = look
    return polls / total, lag / total
