"""The four ways in which a service counts new tasks. Pure: the time comes in as an argument.

Each policy answers `wait(now)`: 0.0 when one more task is admitted, else the seconds until that could be; `used(now)`:
how much of the limit is taken, in tasks; and is told of every admitted task by `count(now)`. What was refused leaves no
trace.
"""

import math
from collections import deque
from typing import Protocol

from flux2_async.emulator.script import Limit

# Sums of floats: a request exactly on the border is admitted.
EPSILON = 1e-9


class Policy(Protocol):
    """One way of counting."""

    def wait(self, now: float) -> float:
        """Seconds until one more task is admitted; 0.0: now."""
        ...

    def used(self, now: float) -> float:
        """How much of the limit is taken, in tasks."""
        ...

    def count(self, now: float) -> None:
        """One task was admitted."""
        ...


class SlidingLog:
    """At most `limit` tasks in the last `period` seconds."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._log: deque[float] = deque()

    def wait(self, now: float) -> float:
        """See `Policy`."""
        return 0.0 if self.used(now) < self._limit.limit else self._log[0] + self._limit.period - now

    def used(self, now: float) -> float:
        """See `Policy`."""
        while self._log and self._log[0] + self._limit.period <= now + EPSILON:
            self._log.popleft()
        return float(len(self._log))

    def count(self, now: float) -> None:
        """See `Policy`."""
        self._log.append(now)


class FixedWindow:
    """At most `limit` tasks in each window of `period` seconds, counted from the zero of the clock."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._window = -math.inf
        self._count = 0

    def wait(self, now: float) -> float:
        """See `Policy`."""
        window = math.floor((now + EPSILON) / self._limit.period)
        return 0.0 if self.used(now) < self._limit.limit else (window + 1) * self._limit.period - now

    def used(self, now: float) -> float:
        """See `Policy`."""
        window = math.floor((now + EPSILON) / self._limit.period)
        return float(self._count) if window == self._window else 0.0

    def count(self, now: float) -> None:
        """See `Policy`."""
        window = math.floor((now + EPSILON) / self._limit.period)
        self._count = self._count + 1 if window == self._window else 1
        self._window = window


class TokenBucket:
    """`limit` tokens at the start, `limit` per `period` flow back, a task takes one."""

    def __init__(self, limit: Limit) -> None:
        self._capacity = limit.limit
        self._rate = limit.limit / limit.period
        self._tokens = float(limit.limit)
        self._updated: float | None = None

    def wait(self, now: float) -> float:
        """See `Policy`."""
        missing = 1.0 - self._level(now)
        return 0.0 if missing <= EPSILON else missing / self._rate

    def used(self, now: float) -> float:
        """See `Policy`."""
        return self._capacity - self._level(now)

    def count(self, now: float) -> None:
        """See `Policy`."""
        self._tokens = self._level(now) - 1.0
        self._updated = now

    def _level(self, now: float) -> float:
        since = 0.0 if self._updated is None else now - self._updated
        return min(self._capacity, self._tokens + since * self._rate)


class TwoWindows:
    """The count of this window and the weighted count of the one before stay within `limit`."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._window = -math.inf
        self._current = 0
        self._previous = 0

    def wait(self, now: float) -> float:
        """See `Policy`."""
        previous, current = self._counts(now)
        into = (now + EPSILON) / self._limit.period % 1.0
        room = self._limit.limit - 1 - current
        if previous * (1.0 - into) <= room + EPSILON:
            return 0.0
        if room < 0:
            # Full by itself: the earliest chance is early in the next window, when this one's weight has fallen.
            return self._limit.period * (1.0 - into + max(0.0, 1.0 - (self._limit.limit - 1) / current))
        return self._limit.period * (1.0 - room / previous - into)

    def used(self, now: float) -> float:
        """See `Policy`."""
        previous, current = self._counts(now)
        return previous * (1.0 - (now + EPSILON) / self._limit.period % 1.0) + current

    def count(self, now: float) -> None:
        """See `Policy`."""
        self._previous, self._current = self._counts(now)
        self._window = math.floor((now + EPSILON) / self._limit.period)
        self._current += 1

    def _counts(self, now: float) -> tuple[int, int]:
        passed = math.floor((now + EPSILON) / self._limit.period) - self._window
        if passed == 0:
            return self._previous, self._current
        return (self._current if passed == 1 else 0), 0


POLICIES: dict[str, type[SlidingLog | FixedWindow | TokenBucket | TwoWindows]] = {
    "sliding": SlidingLog,
    "fixed": FixedWindow,
    "bucket": TokenBucket,
    "counter": TwoWindows,
}


def policy_for(limit: Limit) -> Policy:
    """A fresh count for a limit, whose `policy` chooses the way."""
    return POLICIES[limit.policy](limit)
