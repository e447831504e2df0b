"""Simulated rate limiters: what a server may do with `limit` requests per `period`, and a client on a wire with delays.

`take(now)` counts a request, or refuses it by returning the seconds after which that server would take one.
"""

import asyncio
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import attrs

from flux2_async._limiter.limiter import Gate
from flux2_async._limiter.permit import Permit, PermitEvent
from flux2_async._limiter.probing import Ticket
from flux2_async._limiter.window import Window, pause_after

STRAY_PAUSE = 1.0
"""Seconds that a 429 of nobody asks for: the shortest that are believed."""


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


class Refusing:
    """A server that refuses the request of this number, counted from 1, whatever the limit."""

    def __init__(self, server: RateServer, number: int) -> None:
        self.server, self.number, self.seen = server, number, 0

    def take(self, now: float) -> float | None:
        self.seen += 1
        return 1.0 if self.seen == self.number else self.server.take(now)


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


def steady(rng: random.Random, per_period: int, period: float, *, jitter: float = 0.0) -> Iterator[float]:
    """A stranger who sends evenly, each moved by up to `jitter` of the spacing."""
    begun = 1000.0 - period * (1 + rng.random())
    spacing = period / per_period
    return (begun + (i + jitter * rng.random()) * spacing for i in range(100_000))


def bursts(rng: random.Random, per_period: int, period: float) -> Iterator[float]:
    """A stranger who sends all at once, each time a little more than a period later."""
    begun = 1000.0 - period * rng.random()
    return (begun + (i // per_period) * 1.03 * period for i in range(100_000))


def poisson(rng: random.Random, per_period: int, period: float) -> Iterator[float]:
    """A stranger of no habits."""
    at = 1000.0 - period
    for _ in range(100_000):
        at += rng.expovariate(per_period / period)
        yield at


def never(retry_after: float) -> float | None:
    return None


def exact(retry_after: float) -> float | None:
    return retry_after


def whole_seconds(retry_after: float) -> float | None:
    return float(math.ceil(retry_after))


@attrs.define
class Wire:
    """The way to a server and back: delays, losses, and what was seen on it.

    Attributes:
        rtt: Mean seconds up and down together, lognormal with `sigma` each way.
        late: Share of the requests that arrive up to `lateness` seconds later.
        lost: Share of the requests that the client gives up after one mean RTT, while they arrive up to `lateness`
            seconds after that.
        unsent: Share of the permits whose request never leaves.
        stray: Share of the requests that a 429 of nobody answers before they arrive, up to `lateness` seconds late but
            within its pause, so that the client sees both.
        header: Turns the server's Retry-After into what it says, None when it is silent.
    """

    server: RateServer
    rng: random.Random
    rtt: float
    sigma: float = 0.3
    late: float = 0.0
    lost: float = 0.0
    unsent: float = 0.0
    stray: float = 0.0
    lateness: float = 0.0
    header: Callable[[float], float | None] = never
    accepted: int = 0
    refused: int = 0
    last_at: float = 0.0

    def _delay(self) -> float:
        mu = math.log(self.rtt / 2) - self.sigma**2 / 2
        return self.rng.lognormvariate(mu, self.sigma)

    def _count(self) -> float | None:
        retry_after = self.server.take(asyncio.get_running_loop().time())
        self.accepted += retry_after is None
        self.refused += retry_after is not None
        return retry_after

    async def submit(self, limiter: Gate) -> None:
        """One submission as the session does it: again after a refusal, never again once given up."""
        first = False
        while True:
            permit = await limiter.acquire(first=first)
            if self.rng.random() < self.unsent:
                permit.never_sent()
            elif self.rng.random() < self.lost:
                return await self._give_up(permit)
            elif self.rng.random() < self.stray:
                return await self._contradict(permit)
            elif await self._answer(permit):
                return None
            else:
                first = True

    async def _give_up(self, permit: Permit) -> None:
        arrives_in = self.rtt + self.rng.random() * self.lateness
        asyncio.get_running_loop().call_later(arrives_in, self._count)
        await asyncio.sleep(self.rtt)
        permit.unclear()

    async def _contradict(self, permit: Permit) -> None:
        permit.pause(self.header(STRAY_PAUSE))
        await asyncio.sleep(self.rng.random() * min(self.lateness, STRAY_PAUSE))
        self._count()
        permit.unclear()

    async def _answer(self, permit: Permit) -> bool:
        late = self.rng.random() * self.lateness if self.rng.random() < self.late else 0.0
        await asyncio.sleep(self._delay() + late)
        retry_after = self._count()
        await asyncio.sleep(self._delay())
        self.last_at = asyncio.get_running_loop().time()
        if retry_after is None:
            permit.answered()
            return True
        permit.throttled(self.header(retry_after))
        return False

    async def submit_many(self, limiter: Gate, count: int) -> float:
        """Submit them all at once; the seconds until the last answer."""
        begun = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self.submit(limiter))
        return self.last_at - begun


@attrs.define
class Line:
    """Submissions through a window alone, event by event and without a loop: milliseconds for hundreds of them.

    A 429 closes the gate as the limiter does: for Retry-After where there is one, else for `period`.
    """

    server: RateServer
    rng: random.Random
    period: float
    rtt: float = 0.3
    sigma: float = 0.5
    header: Callable[[float], float | None] = never
    refused: int = 0
    gate: float = 0.0
    now: float = 1000.0

    def _delay(self) -> float:
        return self.rng.lognormvariate(math.log(self.rtt / 2) - self.sigma**2 / 2, self.sigma)

    def submit_many(self, window: Window, count: int) -> float:
        """Submit them all at once; the seconds until the last of them was accepted."""
        now = begun = self.now
        # When what arrives where: no answer yet at the server, the server's Retry-After (0: accepted) at the client.
        events: list[tuple[float, int, Ticket, float | None]] = []
        numbers, accepted, waiting = itertools.count(), 0, count
        while accepted < count:
            ready = max(self.gate, window.ready_at(now)) if waiting else math.inf
            if ready <= now:
                waiting -= 1
                heapq.heappush(events, (now + self._delay(), next(numbers), window.take(now), None))
            elif events and events[0][0] <= ready:
                now, _, ticket, answer = heapq.heappop(events)
                if answer is None:
                    answer = self.server.take(now) or 0.0
                    heapq.heappush(events, (now + self._delay(), next(numbers), ticket, answer))
                elif answer:
                    waiting += 1
                    self._refuse(window, ticket, now, answer)
                else:
                    accepted += 1
                    window.settle(ticket, PermitEvent.ANSWERED, now)
            else:
                now = ready
        self.now = now
        return now - begun

    def _refuse(self, window: Window, ticket: Ticket, now: float, retry_after: float) -> None:
        self.refused += 1
        pause = pause_after(window.rate, self.header(retry_after))
        window.settle(ticket, PermitEvent.THROTTLED, now, pause)
        window.settle(ticket, PermitEvent.REFUSED, now)
        self.gate = max(self.gate, now + pause)
