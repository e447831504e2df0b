"""The limiter against simulated servers in virtual time, and its manners towards those who wait."""

import asyncio
import gc
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rate_servers import (
    FixedWindow,
    RateServer,
    Shared,
    SlidingCounter,
    SlidingLog,
    TokenBucket,
    Wire,
    bursts,
    exact,
    never,
    steady,
    whole_seconds,
)
from virtual_time import VirtualClockLoop, timers

from flux2_async._limiter.limiter import Limiter
from flux2_async._limiter.queue import Waiter
from flux2_async._limiter.slots import Slots
from flux2_async.errors import RateLimitedError, SessionClosedError
from flux2_async.models import RateLimit

T = TypeVar("T")
PERIOD = 10.0
KNOWN: dict[str, Callable[[int, float], RateServer]] = {
    "log": lambda limit, phase: SlidingLog(limit, PERIOD),
    "fixed": lambda limit, phase: FixedWindow(limit, PERIOD, phase=phase),
    "bucket": lambda limit, phase: TokenBucket(limit, PERIOD),
}
phases = st.floats(0, PERIOD)
seeds = st.integers(0, 2**32)


def run(scenario: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(scenario)


def dice(seed: int) -> random.Random:
    return random.Random(seed)


def now() -> float:
    return asyncio.get_running_loop().time()


async def settled() -> None:
    """Let everybody run who can."""
    for _ in range(5):
        await asyncio.sleep(0)


# --- What the promise is about: refusals and throughput ---


@settings(max_examples=60)
@given(
    policy=st.sampled_from(sorted(KNOWN)),
    limit=st.integers(1, 25),
    phase=phases,
    seed=seeds,
    rtt=st.sampled_from([0.001, 0.1, 0.3, 2.0, 30.0]),
    sigma=st.sampled_from([0.1, 1.0, 2.5]),
    trouble=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_known_limit_is_never_refused(
    *, policy: str, limit: int, phase: float, seed: int, rtt: float, sigma: float, trouble: float
) -> None:
    """No delay, loss, give-up, stray 429 or request that never left makes a server of the known size refuse one."""
    wire = Wire(
        KNOWN[policy](limit, phase), dice(seed), rtt, sigma,
        late=trouble, lost=trouble, unsent=trouble, stray=trouble / 3, lateness=PERIOD, header=exact,
    )  # fmt: skip
    run(wire.submit_many(Limiter(RateLimit(limit, PERIOD)), 8 * limit))

    assert wire.refused == 0


@pytest.mark.parametrize("rtt", [0.01, 0.1, 0.5, 1.0])
def test_known_limit_is_used_up(rtt: float) -> None:
    """400 requests take 1 + RTT / period of the optimum, and 1.5 % more at most."""
    wire = Wire(SlidingLog(20, PERIOD), dice(1), rtt, sigma=0.05)
    took = run(wire.submit_many(Limiter(RateLimit(20, PERIOD)), 400))

    assert wire.refused == 0
    assert took / (19 * PERIOD) <= 1 + rtt / PERIOD + 0.015


@settings(max_examples=15)
@given(
    phase=phases, seed=seeds, rtt=st.sampled_from([0.01, 0.3, 2.0]), sigma=st.sampled_from([0.3, 1.0]),
    header=st.sampled_from([never, exact, whole_seconds]),
)  # fmt: skip
def test_two_window_counter_refuses_little(
    phase: float, seed: int, rtt: float, sigma: float, header: Callable[[float], float | None]
) -> None:
    """A counter that refuses legal bursts refuses less than a tenth, wherever its windows begin."""
    wire = Wire(SlidingCounter(20, PERIOD, phase=phase), dice(seed), rtt, sigma, header=header)
    took = run(wire.submit_many(Limiter(RateLimit(20, PERIOD)), 400))

    assert wire.refused < 40
    # Seldom an even stream that is refused goes back to bursts for a while; 1.2 to 1.3 times the optimum are usual.
    assert took < 19 * PERIOD * (2.5 + rtt / PERIOD)


@settings(max_examples=10)
@given(seed=seeds, rtt=st.sampled_from([0.01, 0.3, 2.0]), header=st.sampled_from([never, exact, whole_seconds]))
def test_small_bucket_refuses_little(seed: int, rtt: float, header: Callable[[float], float | None]) -> None:
    """A bucket of half the size, refilled as fast, refuses at most 20 of 400."""
    wire = Wire(TokenBucket(20, PERIOD, capacity=10), dice(seed), rtt, header=header)
    took = run(wire.submit_many(Limiter(RateLimit(20, PERIOD)), 400))

    assert wire.refused <= 20
    # Seldom an even stream that is refused goes back to bursts for a while; 1.2 to 1.3 times the optimum are usual.
    assert took < 19 * PERIOD * (2.5 + rtt / PERIOD)


@pytest.mark.parametrize("count", [400, 1000])
@pytest.mark.parametrize("header", [never, exact])
@pytest.mark.parametrize("real", [10, 5])
@pytest.mark.parametrize("policy", sorted(KNOWN))
def test_lower_limit_is_learned(policy: str, real: int, header: Callable[[float], float | None], count: int) -> None:
    """Half or a quarter of the limit: all get through, under 10 % refusals, within 15 % of what the server allows."""
    wire = Wire(KNOWN[policy](real, 3.3), dice(count + real), 0.3, 1.0, header=header)
    took = run(wire.submit_many(Limiter(RateLimit(20, PERIOD)), count))

    assert wire.accepted == count
    assert wire.refused < 0.1 * count
    assert (count / real - 1) * PERIOD / took >= 0.85


@settings(max_examples=10)
@given(phase=phases, seed=seeds, real=st.sampled_from([10, 5]), header=st.sampled_from([never, exact]))
def test_lower_two_window_counter(phase: float, seed: int, real: int, header: Callable[[float], float | None]) -> None:
    """A lower limit that also refuses bursts: all get through, under 10 % refusals."""
    wire = Wire(SlidingCounter(real, PERIOD, phase=phase), dice(seed), 0.3, header=header)
    took = run(wire.submit_many(Limiter(RateLimit(20, PERIOD)), 400))

    assert wire.accepted == 400
    assert wire.refused < 40
    assert (400 / real - 1) * PERIOD / took >= 0.55


@pytest.mark.parametrize(("share", "count"), [(5, 400), (10, 400), (10, 1000)])
@pytest.mark.parametrize("header", [never, exact])
@pytest.mark.parametrize("habit", [steady, bursts])
@pytest.mark.parametrize("policy", sorted(KNOWN))
def test_stranger_on_the_key(
    *,
    policy: str,
    habit: Callable[[random.Random, int, float], Iterator[float]],
    share: int,
    header: Callable[[float], float | None],
    count: int,
) -> None:
    """What a stranger leaves is used: all get through, under 10 % refusals, on average within 15 % of it."""
    used = []
    rounds = 1000 // count
    for seed in range(rounds):
        rng = dice(seed)
        server = Shared(KNOWN[policy](20, seed / rounds * PERIOD), habit(rng, share, PERIOD))
        wire = Wire(server, rng, 0.3, 0.5, header=header)
        took = run(wire.submit_many(Limiter(RateLimit(20, PERIOD)), count))
        left = 20 - server.accepted * PERIOD / (took + PERIOD)
        used.append((count / left - 1) * PERIOD / took)

        assert wire.accepted == count
        assert wire.refused < 0.1 * count
    assert fmean(used) >= 0.85


def test_limit_that_comes_back_is_found() -> None:
    """When a stranger who shared for long leaves, the limit grows back and is forgotten, bursts included."""

    async def scenario() -> None:
        limiter = Limiter(RateLimit(20, PERIOD))
        visitor = (1000 + i * 0.5 for i in range(200))
        wire = Wire(Shared(SlidingLog(20, PERIOD), visitor), dice(2), 0.1)
        await wire.submit_many(limiter, 100)
        assert limiter.learned_limit is not None
        await wire.submit_many(limiter, 800)

        assert limiter.learned_limit is None
        before = wire.refused
        await asyncio.sleep(2 * PERIOD)
        assert await wire.submit_many(limiter, 20) < 1.0
        assert before == wire.refused

    run(scenario())


@pytest.mark.parametrize("burst", [1, 5, 15, 20])
def test_burst_of_a_stranger_once(burst: int) -> None:
    """It costs a period: the whole limit is in use again in the next one, and 60 take at most 1.5 times the optimum."""
    wire = Wire(Shared(SlidingLog(20, PERIOD), [1000.0] * burst), dice(burst), 0.3)
    took = run(wire.submit_many(Limiter(RateLimit(20, PERIOD)), 60))

    assert wire.refused == burst
    assert took <= 1.5 * 3 * PERIOD


def test_failed_tries_are_rare() -> None:
    """In 100 periods a refused limit is tried a dozen times, not every few periods."""
    wire = Wire(SlidingLog(10, PERIOD), dice(1), 0.1)
    run(wire.submit_many(Limiter(RateLimit(20, PERIOD)), 1000))

    assert wire.refused <= 10 + 12


async def test_burst_of_refusals_is_one_piece_of_news() -> None:
    """Twelve accepted and eight refused teach 12, in whatever order and however late the answers come."""
    limiter = Limiter(RateLimit(20, PERIOD))
    permits = [await limiter.acquire() for _ in range(20)]
    assert limiter.learned_limit is None
    for permit in permits[:3]:
        permit.answered()
    for permit in permits[12:19]:
        permit.throttled(None)
    assert limiter.learned_limit == 3
    for permit in permits[3:12]:
        permit.answered()
    assert limiter.learned_limit == 12
    await asyncio.sleep(2 * PERIOD)
    permits[19].throttled(None)

    assert limiter.learned_limit == 12
    assert limiter.paused_until == now() + PERIOD


async def test_nothing_accepted_goes_on_one_at_a_time() -> None:
    """A key where all is refused is tried once per period, not in bursts."""
    limiter = Limiter(RateLimit(3, PERIOD))
    for permit in [await limiter.acquire() for _ in range(3)]:
        permit.throttled(None)
    for _ in range(5):
        begun = now()
        waiting = [asyncio.create_task(limiter.acquire()) for _ in range(3)]
        await asyncio.wait(waiting, return_when="FIRST_COMPLETED")
        assert [task.done() for task in waiting] == [True, False, False]
        assert begun + PERIOD == now()
        waiting[0].result().throttled(None)
        for task in waiting[1:]:
            task.cancel()

    assert limiter.learned_limit == 1


async def test_one_refusal_of_nothing_teaches_nothing() -> None:
    """A 429 where nothing had been sent before pauses, and the whole limit is free afterwards."""
    limiter = Limiter(RateLimit(3, PERIOD))
    (await limiter.acquire()).throttled(None)
    begun = now()
    permits = [await limiter.acquire() for _ in range(3)]

    assert begun + PERIOD == now()
    for permit in permits:
        permit.answered()
    assert limiter.learned_limit is None


async def sent_at(limiter: Limiter, count: int) -> list[float]:
    """The seconds until each of so many, answered at once, may leave."""
    begun, times = now(), []
    for _ in range(count):
        (await limiter.acquire()).answered()
        times.append(now() - begun)
    return times


async def test_steps_upwards_after_a_refusal() -> None:
    """What was taken goes at once, then the rest of the limit one by one, 1.1 x period / limit apart."""
    limiter = Limiter(RateLimit(10, PERIOD))
    burst = [await limiter.acquire() for _ in range(10)]
    for permit in burst[:4]:
        permit.answered()
    for permit in burst[4:]:
        permit.throttled(PERIOD + 1)
    assert limiter.learned_limit == 4

    pause = PERIOD + 1
    assert await sent_at(limiter, 10) == pytest.approx([pause] * 4 + [pause + 1.1 * i for i in range(1, 7)])
    assert limiter.learned_limit is None


async def test_sends_are_paced_after_bursts_were_refused_twice() -> None:
    """Where what had passed at once is refused, sends go one at a time from then on."""
    limiter = Limiter(RateLimit(10, PERIOD))
    burst = [await limiter.acquire() for _ in range(4)]
    for permit in burst[:2]:
        permit.answered()
    for permit in burst[2:]:
        permit.throttled(2 * PERIOD)
    for permit in [await limiter.acquire() for _ in range(2)]:
        permit.throttled(2 * PERIOD)

    assert await sent_at(limiter, 5) == pytest.approx([2 * PERIOD + 1.1 * i for i in range(5)])


async def test_unsent_request_leaves_its_place_in_the_pace() -> None:
    """Where sends are spaced, one that never left does not push the next one back."""
    limiter = Limiter(RateLimit(2, PERIOD))
    for permit in [await limiter.acquire() for _ in range(2)]:
        permit.throttled(None)
    unsent = await limiter.acquire()
    begun = now()
    for _ in range(5):
        unsent.never_sent()
        unsent = await limiter.acquire()

    assert now() == begun
    unsent.answered()


# --- The gate ---


@pytest.mark.parametrize("rate", [RateLimit(5, PERIOD), None], ids=["limit", "no limit"])
async def test_refusal_stops_everybody(rate: RateLimit | None) -> None:
    """After a 429 nobody sends before Retry-After is over, and the refused one goes first."""
    limiter = Limiter(rate)
    permit = await limiter.acquire()
    begun, order = now(), []

    async def wait(name: str, *, priority: int = 0, first: bool = False) -> None:
        (await limiter.acquire(priority=priority, first=first)).answered()
        order.append((name, now() - begun))

    permit.throttled(7.0)
    assert begun + 7 == limiter.paused_until
    async with asyncio.TaskGroup() as group:
        group.create_task(wait("urgent", priority=9))
        group.create_task(wait("refused", first=True))
    assert [name for name, _ in order] == ["refused", "urgent"]
    assert order[0][1] == 7.0
    assert limiter.paused_until is None


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        (None, 10),
        (0.0, 10),
        (-3.0, 10),
        (float("nan"), 10),
        (0.001, 2),
        (1.5, 2),
        (2.5, 2.5),
        (3599.0, 3599),
        (1e9, 3600),
        (float("inf"), 3600),
    ],
)
async def test_how_long_a_refusal_pauses(retry_after: float | None, pause: float) -> None:
    """A Retry-After that says nothing counts as the period, a tiny one as its share, an absurd one as an hour."""
    limiter = Limiter(RateLimit(5, PERIOD))
    (await limiter.acquire()).throttled(retry_after)

    assert now() + pause == limiter.paused_until


@pytest.mark.parametrize(
    "rate", [None, RateLimit(1000, PERIOD), RateLimit(5, 0.1)], ids=["no limit", "high limit", "short period"]
)
@pytest.mark.parametrize("retry_after", [1e-9, 0.001, 0.999])
async def test_no_refusal_pauses_for_less_than_a_second(rate: RateLimit | None, retry_after: float) -> None:
    """A service that asks to come back at once is not asked a thousand times a second."""
    limiter = Limiter(rate)
    (await limiter.acquire()).throttled(retry_after)

    assert now() + 1 == limiter.paused_until


async def test_pause_is_never_lifted_early() -> None:
    """Neither a shorter pause nor an answer that comes meanwhile opens the gate."""
    limiter = Limiter(RateLimit(5, PERIOD))
    slow, quick, other = [await limiter.acquire() for _ in range(3)]
    begun = now()
    quick.throttled(30.0)
    await asyncio.sleep(1)
    other.throttled(2.0)
    limiter.pause(1.0)
    slow.answered()
    assert begun + 30 == limiter.paused_until
    (await limiter.acquire()).answered()

    assert begun + 30 == now()


async def test_pause_from_outside() -> None:
    """A sibling's 429 closes the gate without teaching a limit."""
    limiter = Limiter(RateLimit(5, PERIOD))
    limiter.pause(4.0)
    begun = now()
    (await limiter.acquire()).answered()

    assert begun + 4 == now()
    assert limiter.learned_limit is None


# --- When permits come back ---


@pytest.mark.parametrize(
    ("settle", "after"),
    [
        (lambda permit: permit.never_sent(), 0.0),
        (lambda permit: permit.answered(), 10.01),
        (lambda permit: permit.unclear(), 20.02),
    ],
)
async def test_permit_comes_back(settle: Callable[[Any], None], after: float) -> None:
    """At once, after a period or after two, by what became of the request."""
    limiter = Limiter(RateLimit(1, PERIOD))
    permit = await limiter.acquire()
    waiter = asyncio.create_task(limiter.acquire())
    await asyncio.sleep(100)
    assert not waiter.done()
    settle(permit)
    begun = now()
    (await waiter).answered()

    assert after == pytest.approx(now() - begun)


async def test_first_settling_counts() -> None:
    """A permit is settled once; what is said later changes nothing."""
    limiter = Limiter(RateLimit(2, PERIOD))
    with await limiter.acquire() as permit:
        permit.never_sent()
        permit.never_sent()
        permit.throttled(100.0)
    assert permit.settled
    assert limiter.paused_until is None
    held = [await limiter.acquire(max_wait=0) for _ in range(2)]
    with pytest.raises(RateLimitedError):
        await limiter.acquire(max_wait=0)
    for permit in held:
        permit.answered()


async def test_permit_left_open_is_held_for_two_periods() -> None:
    """Leaving the context without a word counts as unclear."""
    limiter = Limiter(RateLimit(1, PERIOD))
    with await limiter.acquire():
        begun = now()
    (await limiter.acquire()).answered()

    assert pytest.approx(now() - begun) == 2 * PERIOD * 1.001


async def test_dropped_permit_warns_and_comes_back() -> None:
    """A permit that nobody settles is noticed, and its place is not lost."""
    limiter = Limiter(RateLimit(1, PERIOD))
    with pytest.warns(ResourceWarning, match="dropped without being settled"):
        await limiter.acquire()
    begun = now()
    (await limiter.acquire()).answered()

    assert pytest.approx(now() - begun) == 2 * PERIOD * 1.001


# --- Several limits at once ---


def most_within(times: Sequence[float], period: float) -> int:
    return max((sum(start <= time < start + period for time in times) for start in times), default=0)


@given(
    st.lists(st.builds(RateLimit, st.integers(1, 6), st.floats(0.5, 30.0)), min_size=1, max_size=3),
    st.integers(0, 9999),
)
async def test_no_limit_is_passed(rates: list[RateLimit], seed: int) -> None:
    """Whatever the limits and the delays, no period of any of them holds more counts than it allows."""
    luck, counted = random.Random(seed), list[float]()
    limiter, loop = Limiter(rates), asyncio.get_running_loop()

    async def send() -> None:
        permit = await limiter.acquire()
        await asyncio.sleep(luck.uniform(0.0, 2.0))
        match luck.choice(["answered", "answered", "unclear", "never"]):
            case "never":
                permit.never_sent()
                return
            case "answered":
                counted.append(loop.time())
                await asyncio.sleep(luck.uniform(0.0, 2.0))
                permit.answered()
            case _:
                counted.append(loop.time())
                permit.unclear()

    await asyncio.gather(*(send() for _ in range(15)))
    for rate in rates:
        assert most_within(counted, rate.period) <= rate.limit


async def test_all_that_is_allowed_is_used() -> None:
    """The second's limit makes the pace, and the minute's ends it; nothing is lost between them."""
    limiter, loop, times = Limiter([RateLimit(5, 1.0), RateLimit(30, 60.0)]), asyncio.get_running_loop(), list[float]()
    for _ in range(40):
        permit = await limiter.acquire()
        times.append(loop.time() - 1000.0)
        permit.answered()
    assert times[4] == 0.0
    assert 1.0 <= times[5] < 1.1
    assert 5.0 <= times[29] < 5.1
    assert 60.0 <= times[30] < 60.1


@pytest.mark.parametrize(
    ("retry_after", "pause", "learned"), [(0.5, 1.0, None), (40.0, 40.0, 9), (None, 60.0, 9), (90.0, 90.0, 9)]
)
async def test_a_429_is_blamed_on_one(retry_after: float | None, pause: float, learned: int | None) -> None:
    """The pause tells whose it is, else the fullest: that one learns, the others keep their limits."""
    limiter, loop = Limiter([RateLimit(5, 1.0), RateLimit(10, 60.0)]), asyncio.get_running_loop()
    for _ in range(9):
        (await limiter.acquire()).answered()
    (await limiter.acquire()).throttled(retry_after)
    assert limiter.paused_until == pytest.approx(loop.time() + pause)
    assert limiter.learned_limit == learned


# --- Order ---


async def arrivals(*waiters: tuple[str, dict[str, Any]]) -> list[str]:
    """The order in which these get the one slot there is."""
    slots, order = Slots(1), []
    await slots.acquire()

    async def wait(name: str, options: dict[str, Any]) -> None:
        await slots.acquire(**options)
        order.append(name)
        await asyncio.sleep(0.001)
        slots.release()

    async with asyncio.TaskGroup() as group:
        for name, options in waiters:
            group.create_task(wait(name, options))
        await settled()
        assert len(waiters) == slots.waiting
        slots.release()
    return order


async def test_priority_then_arrival() -> None:
    """Higher priority first, first come first served within one."""
    order = await arrivals(
        ("a", {}), ("b", {"priority": 1}), ("c", {}), ("d", {"priority": 1}), ("e", {"priority": -1})
    )

    assert order == ["b", "d", "a", "c", "e"]


async def test_long_waiting_is_top_priority() -> None:
    """Who has waited for a minute, here or before, goes before any priority; one second less does not."""
    begun = now()
    order = await arrivals(
        ("new", {"priority": 99}),
        ("old", {"since": begun - 60}),
        ("almost", {"since": begun - 59}),
        ("older", {"since": 0}),
    )

    assert order == ["older", "old", "new", "almost"]


async def test_late_caller_passes_nobody() -> None:
    """A caller who comes between the release and the running of the next one waits behind it."""
    slots, order = Slots(1), []
    await slots.acquire()

    async def wait(name: str) -> None:
        await slots.acquire()
        order.append(name)
        slots.release()

    early = asyncio.create_task(wait("early"))
    await settled()
    slots.release()
    await asyncio.gather(wait("late"), early)

    assert order == ["early", "late"]


# --- max_wait ---


async def test_max_wait_runs_out() -> None:
    """The error comes exactly then and says when to come again; the queue is left."""
    limiter = Limiter(RateLimit(1, PERIOD))
    (await limiter.acquire()).answered()
    begun = now()
    with pytest.raises(RateLimitedError, match=r"1 per 10 s is used up. max_wait=4 s is shorter") as caught:
        await limiter.acquire(max_wait=4)

    assert begun + 4 == now()
    assert pytest.approx(caught.value.retry_after) == 6.01
    assert (caught.value.code, caught.value.http_status) == (429, None)
    assert limiter.waiting == 0


async def test_max_wait_that_was_used_in_part() -> None:
    """What was waited elsewhere counts, and the error names what the caller gave, to the last digit."""
    limiter, slots = Limiter(RateLimit(1, PERIOD)), Slots(0)
    (await limiter.acquire()).answered()
    for turnstile in (limiter, slots):
        begun = now()
        with pytest.raises(RateLimitedError, match=r"max_wait=4.125 s") as caught:
            await turnstile.acquire(max_wait=4.125, waited=3.0)
        assert caught.value.code == 429
        assert begun + 1.125 == now()


@pytest.mark.parametrize("early", [True, False], ids=["known before", "begins meanwhile"])
async def test_max_wait_shorter_than_the_pause(*, early: bool) -> None:
    """A pause that is longer than max_wait is told at once, and those with more time go on waiting."""
    limiter = Limiter(RateLimit(2, PERIOD))
    one, two = await limiter.acquire(), await limiter.acquire()
    begun = now()
    if early:
        one.throttled(30.0)
    hasty = asyncio.create_task(limiter.acquire(max_wait=29))
    patient = asyncio.create_task(limiter.acquire(max_wait=31))
    await settled()
    if not early:
        one.throttled(30.0)
    with pytest.raises(RateLimitedError, match="pause for another 30 s") as caught:
        await hasty
    assert begun == now()
    assert caught.value.retry_after == 30
    two.never_sent()
    (await patient).answered()
    assert begun + 30 == now()


async def test_max_wait_zero() -> None:
    """Only if free at once: taken when it is, an error without waiting when it is not."""
    slots, limiter = Slots(1), Limiter(None)
    begun = now()
    await slots.acquire(max_wait=0)
    (await limiter.acquire(max_wait=0)).throttled(5)
    with pytest.raises(RateLimitedError, match="1 tasks are running and max_running is 1") as caught:
        await slots.acquire(max_wait=0)
    assert caught.value.retry_after is None
    with pytest.raises(RateLimitedError):
        await limiter.acquire(max_wait=0)

    assert begun == now()


async def test_no_connection_for_whom_there_is_no_room() -> None:
    """One who was let ahead has no permit in sight while a task has the slot that it needs."""
    slots, limiter = Slots(1), Limiter(RateLimit(5, PERIOD))
    limiter.follow(slots)
    await slots.acquire(group="alice")
    await slots.acquire(group="bob")
    now = asyncio.get_running_loop().time()
    assert (limiter.free_at(0), limiter.free_at(1)) == (now, math.inf)
    permit = await limiter.acquire(group="alice")
    assert limiter.free_at(0) == math.inf
    waiting = asyncio.create_task(limiter.acquire(group="bob"))
    await asyncio.sleep(100)
    assert not waiting.done()
    permit.answered()
    slots.release("alice")
    (await waiting).answered()
    slots.release("bob")


# --- Slots, closing, cancelling ---


async def test_slots_over_borrowed() -> None:
    """Attached tasks take slots above the cap; new ones wait until the count is below it again."""
    slots = Slots(2)
    for _ in range(4):
        slots.borrow()
    waiter = asyncio.create_task(slots.acquire())
    for expected in (3, 2):
        slots.release()
        await settled()
        assert (expected, False) == (slots.borrowed, waiter.done())
    slots.release()
    await waiter

    assert slots.borrowed == 2


async def test_slots_without_cap() -> None:
    """None lets everybody in; giving back more than was taken is an error."""
    slots = Slots(None)
    for _ in range(1000):
        await slots.acquire(max_wait=0)
    for _ in range(1000):
        slots.release()
    with pytest.raises(ValueError, match="nobody had borrowed"):
        slots.release()


@pytest.mark.parametrize(
    "make", [lambda: Limiter(RateLimit(1, PERIOD)), lambda: Slots(0 + 1)], ids=["limiter", "slots"]
)
async def test_close(make: Callable[[], Limiter | Slots]) -> None:
    """Who waits and who comes later is told, no timer stays, and what is out can still be settled."""
    turnstile = make()
    grant = await turnstile.acquire()
    waiter = asyncio.create_task(turnstile.acquire(max_wait=5))
    await settled()
    turnstile.close()
    turnstile.close()
    with pytest.raises(SessionClosedError):
        await waiter
    with pytest.raises(SessionClosedError):
        await turnstile.acquire()
    if grant is not None:
        grant.answered()

    await settled()
    assert timers() == 0
    assert turnstile.waiting == 0


@pytest.mark.parametrize("order", ["releasefirst", "cancelfirst"])
async def test_cancelled_waiter_hands_the_slot_on(order: str) -> None:
    """Cancelled before or after being let through: the next one gets the slot."""
    slots = Slots(1)
    await slots.acquire()
    first, second = asyncio.create_task(slots.acquire()), asyncio.create_task(slots.acquire())
    await settled()
    if order == "releasefirst":
        slots.release()
        first.cancel()
    else:
        first.cancel()
        slots.release()
    await second

    assert first.cancelled()
    assert (slots.borrowed, slots.waiting) == (1, 0)


async def test_cancelled_while_running_out_of_time() -> None:
    """Cancelled in the same instant in which max_wait ran out: nothing is left over, nothing is logged."""
    slots, complaints = Slots(1), []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    await slots.acquire()
    waiter = asyncio.create_task(slots.acquire(max_wait=3))
    await settled()
    asyncio.get_running_loop().call_later(3, waiter.cancel)
    await asyncio.wait([waiter])
    assert waiter.cancelled()
    del waiter
    gc.collect()

    assert complaints == []
    assert slots.waiting == 0


visits = st.fixed_dictionaries(
    {
        # A coarse grid, so that releases, deadlines and cancellations meet in one instant.
        "arrives": st.integers(0, 12),
        "cancelled_after": st.none() | st.integers(0, 12),
        "max_wait": st.none() | st.integers(0, 12),
        "holds": st.integers(0, 3),
        "priority": st.integers(0, 2),
        "event": st.sampled_from(["never_sent", "answered", "unclear", "throttled"]),
    }
)


async def cancel_at_will(visit: dict[str, Any], stay: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await asyncio.sleep(visit["arrives"])
    task = asyncio.create_task(stay())
    patience = visit["cancelled_after"]
    timer = None if patience is None else asyncio.get_running_loop().call_later(patience, task.cancel)
    await asyncio.wait([task])
    if timer:
        timer.cancel()
    if not task.cancelled() and (error := task.exception()):
        assert isinstance(error, RateLimitedError)


@settings(max_examples=70)
@given(script=st.lists(visits, min_size=5, max_size=40), limit=st.integers(1, 4), refusals=st.booleans())
def test_no_permit_is_lost_or_doubled(*, script: list[dict[str, Any]], limit: int, refusals: bool) -> None:
    """Whatever is cancelled, given up or refused: never more than `limit` out, and in the end all are there."""
    period = 3.0
    out, most = 0, 0

    async def scenario() -> None:
        limiter = Limiter(RateLimit(limit, period))

        async def stay(visit: dict[str, Any]) -> None:
            nonlocal out, most
            with await limiter.acquire(priority=visit["priority"], max_wait=visit["max_wait"]) as permit:
                out += 1
                most = max(most, out)
                try:
                    await asyncio.sleep(visit["holds"])
                    if visit["event"] == "throttled":
                        permit.throttled(visit["holds"] if refusals else None)
                    else:
                        getattr(permit, visit["event"])()
                finally:
                    out -= 1

        async with asyncio.TaskGroup() as group:
            for visit in script:
                if refusals or visit["event"] != "throttled":
                    group.create_task(cancel_at_will(visit, partial(stay, visit)))
        await asyncio.sleep(20)
        assert (limiter.waiting, out) == (0, 0)
        assert refusals or limiter.learned_limit is None
        # Twice: what the first time took comes back as well.
        for _ in range(2):
            for _ in range(limiter.learned_limit or limit):
                (await limiter.acquire(max_wait=3600 if refusals else 0)).answered()
            with pytest.raises(RateLimitedError):
                await limiter.acquire(max_wait=0)
            await asyncio.sleep(20)
            assert timers() == 0

    run(scenario())

    assert most <= limit


@settings(max_examples=50)
@given(st.lists(visits, min_size=5, max_size=40), st.integers(1, 4))
def test_no_slot_is_lost_or_doubled(script: list[dict[str, Any]], max_running: int) -> None:
    """Whatever is cancelled or runs out of time: never more than the cap inside, and in the end none."""
    inside, most = 0, 0

    async def scenario() -> Slots:
        slots = Slots(max_running)

        async def stay(visit: dict[str, Any]) -> None:
            nonlocal inside, most
            await slots.acquire(priority=visit["priority"], max_wait=visit["max_wait"])
            try:
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(visit["holds"])
            finally:
                inside -= 1
                slots.release()

        async with asyncio.TaskGroup() as group:
            for visit in script:
                group.create_task(cancel_at_will(visit, partial(stay, visit)))
        assert timers() == 0
        return slots

    slots = run(scenario())

    assert most <= max_running
    assert (slots.borrowed, slots.waiting) == (0, 0)


# --- Cost ---


async def test_crowd_is_cheap() -> None:
    """30 000 waiters with deadlines, half of them cancelled, pass in seconds: no grant looks at all of them."""
    slots = Slots(1)
    await slots.acquire()
    tasks = [asyncio.create_task(slots.acquire(max_wait=1e6, priority=i % 3)) for i in range(30_000)]
    begun = time.process_time()
    await settled()
    for task in tasks[::2]:
        task.cancel()
    await settled()
    assert slots.waiting == 15_000
    for i in range(15_000):
        slots.release()
        if i % 50 == 0:
            await asyncio.sleep(0)
    await settled()

    assert slots.waiting == 0
    assert all(task.done() for task in tasks)
    assert time.process_time() - begun < 5


async def test_those_who_left_are_forgotten() -> None:
    """Callers who give up again and again do not fill the queue, though nobody ever passes."""

    def waiters() -> int:
        gc.collect()
        return sum(isinstance(each, Waiter) for each in gc.get_objects())

    before = waiters()
    slots = Slots(1)
    await slots.acquire()
    for _ in range(2000):
        with pytest.raises(RateLimitedError):
            await slots.acquire(max_wait=1)

    assert waiters() - before < 100


async def test_permit_of_one_process_has_no_lease() -> None:
    """Nobody else can take it meanwhile, so it may be used however late."""
    permit = await Limiter(RateLimit(1, 10.0)).acquire()
    await asyncio.sleep(1e6)
    assert not permit.lease_ended()
    permit.answered()
