"""The four ways in which a service counts new tasks. Pure: the time comes in as an argument.

What was refused leaves no trace.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Mapping

from flux2_async.emulator.script import Limit

# Sums of floats: a request exactly on the border is admitted.
EPSILON = 1e-9


class Policy(ABC):
    """One way of counting."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit

    @abstractmethod
    def wait(self, now: float) -> float:
        """Seconds until one more task could be admitted; 0.0: it is now."""

    @abstractmethod
    def used(self, now: float) -> float:
        """How much of the limit is taken, in tasks."""

    @abstractmethod
    def count(self, now: float) -> None:
        """One task was admitted."""


class _SlidingLog(Policy):
    """At most `limit` tasks in the last `period` seconds."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self._log: deque[float] = deque()

    def wait(self, now: float) -> float:
        return 0.0 if self.used(now) < self._limit.limit else self._log[0] + self._limit.period - now

    def used(self, now: float) -> float:
        while self._log and self._log[0] + self._limit.period <= now + EPSILON:
            self._log.popleft()
        return float(len(self._log))

    def count(self, now: float) -> None:
        self._log.append(now)


class _TokenBucket(Policy):
    """`limit` tokens at the start, `limit` per `period` flow back, a task takes one."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self._rate = limit.limit / limit.period
        self._tokens = float(limit.limit)
        self._updated: float | None = None

    def wait(self, now: float) -> float:
        missing = 1.0 - self._level(now)
        return 0.0 if missing <= EPSILON else missing / self._rate

    def used(self, now: float) -> float:
        return self._limit.limit - self._level(now)

    def count(self, now: float) -> None:
        self._tokens = self._level(now) - 1.0
        self._updated = now

    def _level(self, now: float) -> float:
        since = 0.0 if self._updated is None else now - self._updated
        return min(self._limit.limit, self._tokens + since * self._rate)


class _FixedWindow(Policy):
    """At most `limit` tasks in each window of `period` seconds, counted from the zero of the clock."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        # By the number of the window.
        self._counts = Counter[int]()

    def wait(self, now: float) -> float:
        return 0.0 if self.used(now) < self._limit.limit else (self._number(now) + 1) * self._limit.period - now

    def used(self, now: float) -> float:
        return float(self._counts[self._number(now)])

    def count(self, now: float) -> None:
        number = self._number(now)
        self._counts = Counter({number - 1: self._counts[number - 1], number: self._counts[number] + 1})

    def _number(self, now: float) -> int:
        return math.floor((now + EPSILON) / self._limit.period)

    def _both(self, now: float) -> tuple[int, int]:
        """The tasks of the window before, and of this one."""
        return self._counts[self._number(now) - 1], self._counts[self._number(now)]


class _TwoWindows(_FixedWindow):
    """The count of this window and the weighted count of the one before stay within `limit`."""

    def wait(self, now: float) -> float:
        previous, current = self._both(now)
        into = (now + EPSILON) / self._limit.period % 1.0
        room = self._limit.limit - 1 - current
        if previous * (1.0 - into) <= room + EPSILON:
            return 0.0
        if room < 0:
            # Full by itself: the earliest chance is early in the next window, when this one's weight has fallen.
            return self._limit.period * (1.0 - into + max(0.0, 1.0 - (self._limit.limit - 1) / current))
        return self._limit.period * (1.0 - room / previous - into)

    def used(self, now: float) -> float:
        previous, current = self._both(now)
        return previous * (1.0 - (now + EPSILON) / self._limit.period % 1.0) + current


POLICIES: Mapping[str, type[Policy]] = {
    "sliding": _SlidingLog,
    "fixed": _FixedWindow,
    "bucket": _TokenBucket,
    "counter": _TwoWindows,
}


def policy_for(limit: Limit) -> Policy:
    """A fresh count for a limit, whose `policy` chooses the way."""
    return POLICIES[limit.policy](limit)
