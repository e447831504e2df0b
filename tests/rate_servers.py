"""Simulated rate limiters: what a server may do with `limit` requests per `period`, on a clock given as an argument.

`take(now)` counts a request, or refuses it by returning the seconds after which that server would take one.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol


class RateServer(Protocol):
    def take(self, now: float) -> float | None: ...


class SlidingLog:
    """Exact: never more than `limit` in any half-open interval of one period."""

    def __init__(self, limit: int, period: float) -> None:
        self.limit, self.period = limit, period
        self.log: deque[float] = deque()

    def take(self, now: float) -> float | None:
        while self.log and self.log[0] + self.period <= now:
            self.log.popleft()
        if len(self.log) < self.limit:
            self.log.append(now)
            return None
        return self.log[0] + self.period - now


class FixedWindow:
    """A counter that is cleared every period; `phase` is where the first window begins."""

    def __init__(self, limit: int, period: float, *, phase: float = 0.0) -> None:
        self.limit, self.period, self.phase = limit, period, phase
        self.window, self.count = 0, 0

    def take(self, now: float) -> float | None:
        window = math.floor((now - self.phase) / self.period)
        if window > self.window:
            self.window, self.count = window, 0
        if self.count < self.limit:
            self.count += 1
            return None
        return self.phase + (self.window + 1) * self.period - now


class TokenBucket:
    """Holds `capacity` (None: `limit`), refilled evenly with `limit` per period."""

    def __init__(self, limit: int, period: float, *, capacity: float | None = None) -> None:
        self.rate = limit / period
        self.capacity = float(limit if capacity is None else capacity)
        self.tokens, self.filled_at = self.capacity, -math.inf

    def take(self, now: float) -> float | None:
        self.tokens = min(self.capacity, self.tokens + max(0.0, now - self.filled_at) * self.rate)
        self.filled_at = now
        # What a sum of small refills lacks to a whole token is rounding.
        if self.tokens >= 1 - 1e-9:
            self.tokens -= 1
            return None
        return (1 - self.tokens) / self.rate


class SlidingCounter:
    """The two-window approximation: the last window's count fades evenly, so it refuses bursts that are legal."""

    def __init__(self, limit: int, period: float, *, phase: float = 0.0) -> None:
        self.limit, self.period, self.phase = limit, period, phase
        self.window, self.count, self.previous = 0, 0, 0

    def take(self, now: float) -> float | None:
        window, part = divmod((now - self.phase) / self.period, 1.0)
        if window > self.window:
            self.previous = self.count if window == self.window + 1 else 0
            self.window, self.count = int(window), 0
        if self.previous * (1 - part) + self.count < self.limit:
            self.count += 1
            return None
        return self._frees_in(part)

    def _frees_in(self, part: float) -> float:
        # Below the limit once the fading count has lost the excess; when this window alone is full, in the next one.
        if self.count < self.limit:
            return (1 - (self.limit - self.count) / self.previous - part) * self.period + 1e-6
        return (1 - part + 1 - self.limit / self.count) * self.period + 1e-6


class Shared:
    """A server on which a stranger with the same key sends at the given instants, refused or not, never again."""

    def __init__(self, server: RateServer, strangers: Iterable[float]) -> None:
        self.server = server
        self.strangers: Iterator[float] = iter(strangers)
        self.next = next(self.strangers, math.inf)
        self.accepted = 0

    def take(self, now: float) -> float | None:
        while self.next <= now:
            self.accepted += self.server.take(self.next) is None
            self.next = next(self.strangers, math.inf)
        return self.server.take(now)
