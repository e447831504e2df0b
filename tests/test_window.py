"""What a refused window reaches: refusals and throughput, case by case, as means over twenty seeds and phases.

Throughput is held against two measures of what the server allows. `free`: the limit less what strangers really got
in that time, the stricter one, since a stranger crowded out counts as room left unused. `share`: the limit less what
strangers ask for, which is what a client that knew all their instants and crowded nobody out would get on a fixed
window (0.91 of it on a sliding log whose other half is asked for at random).
"""

import random
from collections.abc import Callable, Iterator
from statistics import fmean

import attrs
import pytest
from rate_servers import (
    FixedWindow,
    Line,
    RateServer,
    Shared,
    SlidingCounter,
    SlidingLog,
    TokenBucket,
    bursts,
    exact,
    never,
    poisson,
    steady,
)

from flux2_async._window import Window
from flux2_async.models import RateLimit

PERIOD = 10.0
SEEDS = 20
SERVERS: dict[str, Callable[[int, float], RateServer]] = {
    "log": lambda limit, phase: SlidingLog(limit, PERIOD),
    "fixed": lambda limit, phase: FixedWindow(limit, PERIOD, phase=phase),
    "bucket": lambda limit, phase: TokenBucket(limit, PERIOD),
    "counter": lambda limit, phase: SlidingCounter(limit, PERIOD, phase=phase),
}
HEADERS = {"silent": never, "header": exact}
Habit = Callable[[random.Random, int, float], Iterator[float]]


@attrs.frozen
class Reached:
    """Means over all seeds of throughput by both measures, and of all the worst share of refusals."""

    free: float
    share: float
    refused: float


def submit(
    policy: str, header: str, *, limit: int = 20, asked: int = 0, habit: Habit = poisson, count: int = 400
) -> Reached:
    free, share, refused = [], [], []
    for seed in range(SEEDS):
        strangers = habit(random.Random(seed), asked, PERIOD) if asked else ()
        server = Shared(SERVERS[policy](limit, seed / SEEDS * PERIOD), strangers)
        line = Line(server, random.Random(seed * 7919 + 13), PERIOD, header=HEADERS[header])
        took = line.submit_many(Window(RateLimit(20, PERIOD)), count) / PERIOD
        free.append((count / (limit - server.accepted / (took + 1)) - 1) / took)
        share.append((count / (limit - asked) - 1) / took)
        refused.append(line.refused / count)
    return Reached(fmean(free), fmean(share), max(refused))


@pytest.mark.parametrize("header", sorted(HEADERS))
@pytest.mark.parametrize("limit", [10, 5])
@pytest.mark.parametrize("policy", sorted(SERVERS))
def test_lower_limit(policy: str, limit: int, header: str) -> None:
    """Half or a quarter of the limit: under 10 % refusals, within 15 % of it, within 6 % where bursts are legal."""
    reached = submit(policy, header, limit=limit)

    assert reached.refused < 0.1
    assert reached.free >= (0.85 if policy == "counter" else 0.94)


@pytest.mark.parametrize("asked", [5, 10])
@pytest.mark.parametrize("habit", [steady, bursts])
@pytest.mark.parametrize("policy", ["log", "fixed", "bucket"])
def test_regular_strangers(policy: str, habit: Habit, asked: int) -> None:
    """Strangers with habits: under 10 % refusals, within 15 % of what they leave by either measure."""
    reached = submit(policy, "silent", asked=asked, habit=habit)

    assert reached.refused < 0.1
    assert min(reached.free, reached.share) >= 0.85


# Reached, rounded down by 0.01 to 0.02: by what strangers got. Their random peaks refuse an even share of the rest.
@pytest.mark.parametrize(
    ("policy", "asked", "header", "free"),
    [
        ("log", 5, "silent", 0.83),
        ("log", 10, "silent", 0.70),
        ("log", 5, "header", 0.86),
        ("log", 10, "header", 0.74),
        ("fixed", 5, "silent", 0.88),
        ("fixed", 10, "silent", 0.78),
        ("fixed", 5, "header", 0.92),
        ("fixed", 10, "header", 0.89),
        ("bucket", 5, "silent", 0.97),
        ("bucket", 10, "silent", 0.98),
        ("bucket", 5, "header", 0.96),
        ("bucket", 10, "header", 0.94),
    ],
)
def test_random_strangers(policy: str, asked: int, header: str, free: float) -> None:
    """Strangers of no habits: under 10 % refusals, within 15 % of the limit less what they ask for."""
    reached = submit(policy, header, asked=asked)

    assert reached.refused < 0.1
    assert reached.share >= 0.85
    assert reached.free >= free


@pytest.mark.parametrize(
    ("habit", "asked", "header", "free"),
    [
        (poisson, 5, "silent", 0.66),
        (poisson, 10, "silent", 0.54),
        (poisson, 5, "header", 0.69),
        (poisson, 10, "header", 0.60),
        (steady, 5, "silent", 0.81),
        (steady, 10, "silent", 0.82),
        (steady, 5, "header", 0.82),
        (steady, 10, "header", 0.85),
        (bursts, 5, "silent", 0.70),
        (bursts, 10, "silent", 0.55),
        (bursts, 5, "header", 0.77),
        (bursts, 10, "header", 0.72),
    ],
)
def test_strangers_on_a_two_window_counter(habit: Habit, asked: int, header: str, free: float) -> None:
    """There the promise is not kept: what is reached, still under 10 % refusals.

    A pause of a period per refusal makes it unreachable with random strangers and no Retry-After: no level, burst and
    pace does better than 0.75 (a quarter asked for) and 0.69 (half), even with their rate known.
    """
    reached = submit("counter", header, asked=asked, habit=habit)

    assert reached.refused < 0.1
    assert reached.free >= free


@pytest.mark.parametrize("header", sorted(HEADERS))
@pytest.mark.parametrize("rtt", [0.3, 2.0])
def test_small_bucket(rtt: float, header: str) -> None:
    """A bucket of half the size, refilled as fast: at most 20 of 400 refused, on slow lines as well."""
    worst = 0
    for seed in range(30):
        server = TokenBucket(20, PERIOD, capacity=10)
        line = Line(server, random.Random(seed), PERIOD, rtt, 0.3, HEADERS[header])
        line.submit_many(Window(RateLimit(20, PERIOD)), 400)
        worst = max(worst, line.refused)

    assert worst <= 20
