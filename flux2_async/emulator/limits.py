"""The four ways in which a service counts new tasks. Pure: the time comes in as an argument.

What was refused leaves no trace.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Mapping

from flux2_async.emulator.script import Limit

# Sums of floats: a request exactly on the border is admitted.
EPSILON = 1e-9
# Of a period: as exactly as this is the time found at which there is room again.
PARTS = 2**40


class Policy(ABC):
    """One way of counting."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        # Of the tasks that may still count.
        self._times: list[float] = []

    @abstractmethod
    def used(self, now: float) -> float:
        """How much of the limit is taken, in tasks; as time goes by it only falls, in two periods to nothing."""

    def wait(self, now: float) -> float:
        """Seconds until one more task could be admitted; 0.0: it is now."""
        most, part = self.limit.limit - 1 + EPSILON, self.limit.period / PARTS
        return part * bisect_left(range(2 * PARTS), True, key=lambda parts: self.used(now + parts * part) <= most)  # noqa: FBT003  what is looked for

    def count(self, now: float) -> None:
        """One task was admitted."""
        del self._times[: bisect_left(self._times, now - 2 * self.limit.period)]
        self._times.append(now)


class _SlidingLog(Policy):
    """At most `limit` tasks in the last `period` seconds."""

    def used(self, now: float) -> float:
        return float(len(self._times) - bisect_right(self._times, now - self.limit.period + EPSILON))


class _TokenBucket(Policy):
    """`limit` tokens at the start, `limit` per `period` flow back, a task takes one."""

    _full_at = -math.inf

    def used(self, now: float) -> float:
        return max(0.0, self._full_at - now) * self.limit.limit / self.limit.period

    def count(self, now: float) -> None:
        self._full_at = max(self._full_at, now) + self.limit.period / self.limit.limit


class _FixedWindow(Policy):
    """At most `limit` tasks in each window of `period` seconds, counted from the zero of the clock."""

    def used(self, now: float) -> float:
        return float(self._since(math.floor(self._window(now))))

    def _window(self, moment: float) -> float:
        return (moment + EPSILON) / self.limit.period

    def _since(self, window: int) -> int:
        """Tasks of this window and those behind it."""
        return len(self._times) - bisect_left(self._times, window, key=lambda moment: math.floor(self._window(moment)))


class _TwoWindows(_FixedWindow):
    """The count of this window and the weighted count of the one before stay within `limit`."""

    def used(self, now: float) -> float:
        into, number = math.modf(self._window(now))
        current = self._since(int(number))
        return (self._since(int(number) - 1) - current) * (1.0 - into) + current


POLICIES: Mapping[str, type[Policy]] = {
    "sliding": _SlidingLog,
    "fixed": _FixedWindow,
    "bucket": _TokenBucket,
    "counter": _TwoWindows,
}


def policy_for(limit: Limit) -> Policy:
    """A fresh count for a limit, whose `policy` chooses the way."""
    return POLICIES[limit.policy](limit)
