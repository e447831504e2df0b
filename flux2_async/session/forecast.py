"""When what waits starts, and when all has ended: limit, places and durations, played forward. Pure."""

import heapq
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from typing import Final

from flux2_async._limiter.window import Supply
from flux2_async.tasks.durations import Durations

# So many starts are played; what comes after them goes on as their second half did.
PLAYED: Final = 1000
# Of durations the middle part: the last one of a hundred is too uncertain to be told as a time.
MIDDLE: Final = 0.92
# The golden section: what is taken in such steps is spread evenly, wherever it is stopped.
STEP: Final = 0.6180339887498949


class Forecast:
    """What becomes of so many that wait; times are seconds of one clock.

    Args:
        count: How many wait.
        supply: When there are permits for them.
        now: The time.
        running: What runs: how long its kind takes, and its age.
        places: How many may run at once, maybe infinity.
        lag: Seconds from the end of a task until it is known, on average.
        durations: How long those that wait take, in turns; at least one where some wait.
    """

    def __init__(
        self,
        count: int,
        supply: Supply,
        *,
        now: float,
        running: Iterable[tuple[Durations, float]],
        places: float,
        lag: float,
        durations: Sequence[Durations],
    ) -> None:
        self._now = now
        self._beyond = max(count - PLAYED, 0)
        self._share = 0.5
        # The oldest first, so that each age has some of all durations.
        self._ends = [
            now + kind.quantile(self._next_share(), age) - age + lag
            for kind, age in sorted(running, key=lambda one: -one[1])
        ]
        heapq.heapify(self._ends)
        self._starts: list[float] = []
        start = now
        for number, kind in enumerate(islice(cycle(durations), count - self._beyond)):
            start = max(start, supply.at(number, self._starts))
            while len(self._ends) >= places:
                start = max(start, heapq.heappop(self._ends))
            self._starts.append(start)
            heapq.heappush(self._ends, start + kind.quantile(self._next_share()) + lag)

    @property
    def start(self) -> float:
        """Seconds from `now` until the last of those that wait starts."""
        return self._starts[-1] + self._later - self._now if self._starts else 0.0

    @property
    def end(self) -> float:
        """Seconds from `now` until nothing runs any more."""
        return max(self._ends, default=self._now) + self._later - self._now

    @property
    def _later(self) -> float:
        if not self._beyond:
            return 0.0
        half = PLAYED // 2
        return self._beyond * (self._starts[-1] - self._starts[half]) / (PLAYED - 1 - half)

    def _next_share(self) -> float:
        share, self._share = self._share, (self._share + STEP) % 1.0
        return 0.5 + MIDDLE * (share - 0.5)
