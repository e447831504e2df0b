"""What a refused window reaches: refusals and throughput, case by case, as means over twenty seeds and phases.

Throughput is held against two measures of what the server allows. `free`: the limit less what strangers really got
in that time, the stricter one, since a stranger crowded out counts as room left unused. `share`: the limit less what
strangers ask for, which is what a client that knew all their instants and crowded nobody out would get on a fixed
window (0.91 of it on a sliding log whose other half is asked for at random).
"""

import math
import random
from collections.abc import Callable, Iterator
from statistics import fmean

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rate_servers import (
    FixedWindow,
    Line,
    RateServer,
    Refusing,
    Shared,
    SlidingCounter,
    SlidingLog,
    TokenBucket,
    bursts,
    exact,
    never,
    poisson,
    steady,
    whole_seconds,
)

from flux2_async._limiter.probing import Ticket
from flux2_async._limiter.window import Window
from flux2_async.coordination.contract import PermitEvent
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


# Reached, rounded down by 0.01 to 0.02. Their random peaks refuse an even share of the rest, and each costs a pause.
@pytest.mark.parametrize(
    ("policy", "asked", "header", "share"),
    [
        ("log", 5, "silent", 0.84),
        ("log", 10, "silent", 0.60),
        ("log", 5, "header", 0.85),
        ("log", 10, "header", 0.67),
        ("fixed", 5, "silent", 0.81),
        ("fixed", 10, "silent", 0.71),
        ("fixed", 5, "header", 0.89),
        ("fixed", 10, "header", 0.82),
        ("bucket", 5, "silent", 0.94),
        ("bucket", 10, "silent", 1.01),
        ("bucket", 5, "header", 0.94),
        ("bucket", 10, "header", 0.94),
    ],
)
def test_random_strangers(policy: str, asked: int, header: str, share: float) -> None:
    """Strangers of no habits: under 10 % refusals, and most of the limit less what they ask for."""
    reached = submit(policy, header, asked=asked)

    assert reached.refused < 0.1
    assert reached.share >= share


@pytest.mark.parametrize(
    ("habit", "asked", "header", "free"),
    [
        (poisson, 5, "silent", 0.68),
        (poisson, 10, "silent", 0.52),
        (poisson, 5, "header", 0.72),
        (poisson, 10, "header", 0.54),
        (steady, 5, "silent", 0.79),
        (steady, 10, "silent", 0.81),
        (steady, 5, "header", 0.85),
        (steady, 10, "header", 0.87),
        (bursts, 5, "silent", 0.70),
        (bursts, 10, "silent", 0.53),
        (bursts, 5, "header", 0.76),
        (bursts, 10, "header", 0.61),
    ],
)
def test_strangers_on_a_two_window_counter(habit: Habit, asked: int, header: str, free: float) -> None:
    """There the promise is not kept: what is reached, at no more than 10 % refusals.

    A pause of a period per refusal makes it unreachable with random strangers and no Retry-After: no level, burst and
    pace does better than 0.75 (a quarter asked for) and 0.69 (half), even with their rate known.
    """
    reached = submit("counter", header, asked=asked, habit=habit)

    assert reached.refused <= 0.1
    assert reached.free >= free


@pytest.mark.parametrize("header", sorted(HEADERS))
@pytest.mark.parametrize("burst", [1, 5, 10, 15, 19, 20])
@pytest.mark.parametrize("policy", ["log", "fixed", "bucket"])
def test_burst_of_a_stranger_once(policy: str, burst: int, header: str) -> None:
    """It costs a period, not minutes: 60 submissions take at most 1.5 times what the server allows."""
    for seed in range(SEEDS):
        server = Shared(SERVERS[policy](20, seed / SEEDS * PERIOD), [1000.0] * burst)
        line = Line(server, random.Random(seed), PERIOD, header=HEADERS[header])

        assert line.submit_many(Window(RateLimit(20, PERIOD)), 60) <= 1.5 * 3 * PERIOD


@pytest.mark.parametrize("header", sorted(HEADERS))
@pytest.mark.parametrize("burst", [5, 10, 15, 19])
def test_burst_of_a_stranger_once_on_a_two_window_counter(burst: int, header: str) -> None:
    """There a moment in twenty is unlucky; on average it is the same, and a refused burst is not taken for a limit."""
    took = []
    for seed in range(SEEDS):
        server = Shared(SlidingCounter(20, PERIOD, phase=seed / SEEDS * PERIOD), [1000.0] * burst)
        line = Line(server, random.Random(seed), PERIOD, header=HEADERS[header])
        took.append(line.submit_many(Window(RateLimit(20, PERIOD)), 60))

    assert fmean(took) <= 1.5 * 3 * PERIOD


def test_the_first_burst_after_a_stranger_may_lose_a_few() -> None:
    """A fading count that meets it, in one phase of forty, does not end the way back, which took 4.8 x the optimum."""
    took = []
    for seed in range(200):
        server = Shared(SlidingCounter(20, PERIOD, phase=seed / 200 * PERIOD), [1000.0] * 15)
        line = Line(server, random.Random(seed), PERIOD)
        took.append(line.submit_many(Window(RateLimit(20, PERIOD)), 60) / (3 * PERIOD))

    assert sorted(took)[-3] <= 2.0


@pytest.mark.parametrize("burst", [5, 10, 15])
def test_a_question_that_costs_little_is_asked_once_more(burst: int) -> None:
    """Where a fading count meets it, which says that it is over in a moment, the way back goes on.

    In a phase of forty that took 3.8 times what a server without fading allows.
    """
    for seed in range(200):
        server = Shared(SlidingCounter(20, PERIOD, phase=seed / 200 * PERIOD), [1000.0] * burst)
        line = Line(server, random.Random(seed), PERIOD, header=exact)

        assert line.submit_many(Window(RateLimit(20, PERIOD)), 60) <= 1.9 * 3 * PERIOD


@pytest.mark.parametrize("number", [1, 2, 19, 20, 21, 35])
def test_single_refusal_of_no_cause(number: int) -> None:
    """One 429 that has nothing to do with the limit costs the pause it asks for, and little else."""
    for seed in range(SEEDS):
        line = Line(Refusing(SlidingLog(20, PERIOD), number), random.Random(seed), PERIOD)

        # Two periods for 60, and the pause.
        assert line.submit_many(Window(RateLimit(20, PERIOD)), 60) <= 1.1 * 3 * PERIOD


@pytest.mark.parametrize("header", sorted(HEADERS))
def test_no_burst_at_all(header: str) -> None:
    """A server that takes one per period / limit and no burst: at most 1.6 times the optimum for 60."""
    for seed in range(SEEDS):
        line = Line(TokenBucket(20, PERIOD, capacity=1), random.Random(seed), PERIOD, 0.05, 0.1, HEADERS[header])

        assert line.submit_many(Window(RateLimit(20, PERIOD)), 60) <= 1.6 * 59 * PERIOD / 20


@pytest.mark.parametrize(
    ("pause", "limit", "rest"), [(30.0, 10, 0.88), (30.0, 5, 0.88), (60.0, 10, 0.83), (60.0, 5, 0.89)]
)
@pytest.mark.parametrize("policy", sorted(SERVERS))
def test_long_pauses_are_rarely_risked(policy: str, limit: int, pause: float, rest: float) -> None:
    """Where each refusal costs half a minute or a whole one, what is left after the first one still goes on well.

    To find out whether a stranger was the reason costs one more pause; of a minute, that is a seventh of what 400 take
    at ten in ten seconds.
    """
    used = []
    for seed in range(SEEDS):
        server = SERVERS[policy](limit, seed / SEEDS * PERIOD)
        line = Line(server, random.Random(seed * 7919 + 13), PERIOD, header=lambda _: pause)
        took = line.submit_many(Window(RateLimit(20, PERIOD)), 400) - pause
        # One period's worth had been sent before the first pause.
        used.append(((400 - limit) / limit - 1) * PERIOD / took)

        assert line.refused < 0.1 * 400
    assert fmean(used) >= rest


def test_after_a_long_pause_what_had_passed_is_the_limit() -> None:
    """Of a burst that lies in two fixed windows both take a limit: believing that cost pauses one after the other."""
    for phase in range(40):
        line = Line(FixedWindow(10, PERIOD, phase=phase / 4), random.Random(phase * 7919 + 13), PERIOD)
        line.header = lambda _: 60.0
        took = line.submit_many(Window(RateLimit(20, PERIOD)), 400)

        # The first pause, and two more of a minute.
        assert took <= 3 * 60.0 + 1.05 * 39 * PERIOD


def test_a_limit_that_has_passed_since_is_kept_after_a_long_pause() -> None:
    """What a stranger left in one burst is no limit where all has passed for periods, until the next one comes."""
    for seed in range(SEEDS):
        window, server = Window(RateLimit(20, PERIOD)), Shared(SlidingLog(20, PERIOD), [1000.0] * 15 + [1080.0] * 15)
        line = Line(server, random.Random(seed), PERIOD)
        assert line.submit_many(window, 100) < 75.0
        line.now, line.header = 1080.0, lambda _: 60.0

        assert line.submit_many(window, 400) <= 60.0 + 1.3 * 20 * PERIOD


events = st.lists(
    st.tuples(
        st.sampled_from(
            ["take", "take", "take", "answered", "answered", "refused", "throttled", "never_sent", "unclear"]
        ),
        st.integers(0, 30),
        st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0, 4.0, 11.0, 40.0]),
        st.sampled_from([1.0, PERIOD, 6 * PERIOD]),
    ),
    max_size=250,
)


@settings(max_examples=100)
@given(limit=st.integers(1, 25), events=events)
def test_whatever_happens(limit: int, events: list[tuple[str, int, float, float]]) -> None:
    """No period ever holds more than the limit, what is learned lies within it, and no permit is lost."""
    window, now, gate = Window(RateLimit(limit, PERIOD)), 1000.0, 0.0
    out: list[Ticket] = []
    counted: list[float] = []
    for event, which, seconds, pause in events:
        now += seconds
        if event == "take" and max(gate, window.ready_at(now)) <= now:
            out.append(window.take(now))
        elif event != "take" and out:
            ticket = out.pop(which % len(out))
            if event in ("throttled", "refused"):
                window.settle(ticket, PermitEvent.THROTTLED, now, pause)
                gate = max(gate, now + pause)
            if event == "throttled":
                # Any event may follow.
                out.append(ticket)
            else:
                window.settle(ticket, PermitEvent(event), now)
            if event == "answered":
                # The server may have counted it at the latest moment, which is the worst.
                counted.append(now)
                assert len(counted) <= limit or counted[-1] - counted[-1 - limit] >= PERIOD
        learned = window.learned_limit
        assert learned is None or 1 <= learned < limit
    for ticket in out:
        window.settle(ticket, PermitEvent.NEVER_SENT, now)
    for _ in range(window.learned_limit or limit):
        now = max(now, window.ready_at(now))
        assert now < math.inf
        window.settle(window.take(now), PermitEvent.ANSWERED, now)


def test_limit_grows_when_it_is_raised() -> None:
    """Where the real limit goes from half to whole, the whole is in use again after a dozen pauses."""
    window, server = Window(RateLimit(20, PERIOD)), SlidingLog(10, PERIOD)
    line = Line(server, random.Random(1), PERIOD)
    line.submit_many(window, 200)
    assert window.learned_limit == 10
    server.limit = 20
    line = Line(server, random.Random(1), PERIOD, now=line.now)
    line.submit_many(window, 600)

    assert window.learned_limit is None
    assert line.refused == 0


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


@pytest.mark.parametrize("header", [never, exact, whole_seconds])
def test_two_window_counter_refuses_few_on_average(header: Callable[[float], float | None]) -> None:
    """Of 400, averaged over the moments in which its windows may begin, 3.5 % at most."""
    refused = 0
    for seed in range(20):
        server = SlidingCounter(20, PERIOD, phase=PERIOD * seed / 20)
        line = Line(server, random.Random(seed), PERIOD, 0.3, 0.3, header=header)
        line.submit_many(Window(RateLimit(20, PERIOD)), 400)
        refused += line.refused

    assert refused / 20 <= 14
