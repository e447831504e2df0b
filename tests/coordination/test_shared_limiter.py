"""Sessions that share an account, on virtual time: order, pauses, outages, and what nobody may lose."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from emulated import error_of, logged, until
from memory_coordination import Memory
from rate_servers import Shared, SlidingLog, Wire, exact
from shared_limiters import PERIOD, limiters, run_all, trouble

from flux2_async.coordination.contract import Message, Terms
from flux2_async.coordination.shared_limiter import SharedLimiter
from flux2_async.errors import CoordinationError, RateLimitedError, SessionClosedError
from flux2_async.models import RateLimit


def now() -> float:
    return asyncio.get_running_loop().time()


async def take(limiter: SharedLimiter, count: int = 1) -> None:
    """Send requests that are answered at once."""
    for _ in range(count):
        (await limiter.acquire()).answered()


def wire(limit: int = 20, seed: int = 1, rtt: float = 0.05) -> Wire:
    return Wire(SlidingLog(limit, PERIOD), random.Random(seed), rtt)


@asynccontextmanager
async def busy(opened: list[SharedLimiter], each: int) -> AsyncIterator[list[float]]:
    """Keep so many submissions waiting in each process; gives the times of what was sent."""
    sent: list[float] = []

    async def one(limiter: SharedLimiter) -> None:
        with await limiter.acquire() as permit:
            sent.append(now())
            await asyncio.sleep(0.05 * random.random())
            permit.answered()

    jobs = [asyncio.create_task(one(limiter)) for limiter in opened for _ in range(each)]
    await asyncio.sleep(1.0)
    yield sent
    for job in jobs:
        job.cancel()
    await asyncio.wait(jobs)


# --- The limit ---


@pytest.mark.parametrize("processes", [1, 4, 7])
async def test_limit_holds_and_is_used_up(processes: int) -> None:
    """Several processes together are never refused, and take as long as one would."""
    server = wire()
    async with limiters(Memory(), processes) as opened:
        took = await run_all(server, [(limiter, 420 // processes) for limiter in opened])

    assert (server.accepted, server.refused) == (420, 0)
    assert took <= 20 * PERIOD * 1.03


async def test_trouble_does_not_break_the_limit() -> None:
    """Requests given up, delayed, never sent or answered by a stray 429 first cost time, but no refusal."""
    server = Wire(
        SlidingLog(20, PERIOD), random.Random(3), 0.3, 1.0,
        late=0.05, lost=0.05, unsent=0.1, stray=0.05, lateness=PERIOD, header=exact,
    )  # fmt: skip
    async with limiters(Memory(), 3) as opened:
        await run_all(server, [(limiter, 60) for limiter in opened])

    assert server.refused == 0


async def test_lower_limit_is_learned_together() -> None:
    """Where the service takes half, all processes learn it from the first refusals of any."""
    server = wire(limit=10)
    async with limiters(Memory(), 4) as opened:
        await run_all(server, [(limiter, 50) for limiter in opened])
        learned = {limiter.learned_limit for limiter in opened}

    assert server.accepted == 200
    assert server.refused <= 20
    assert learned <= {9, 10, 11}


@pytest.mark.parametrize("burst", [1, 15])
async def test_burst_of_a_stranger_once(burst: int) -> None:
    """It costs all processes a period: the whole limit is in use again in the next one."""
    server = Wire(Shared(SlidingLog(20, PERIOD), [now()] * burst), random.Random(1), 0.05)
    async with limiters(Memory(), 3) as opened:
        took = await run_all(server, [(limiter, 20) for limiter in opened])

    assert (server.accepted, server.refused) == (60, burst)
    assert took <= 1.5 * 3 * PERIOD


async def test_waiting_costs_few_questions() -> None:
    """Two thousand waiting submissions ask a few times per period and process, not per submission or second."""
    memory = Memory()
    memory.counts = True
    async with limiters(memory, 4) as opened, busy(opened, 500) as sent:
        asks, before = memory.asks, len(sent)
        await asyncio.sleep(10 * PERIOD)

        assert len(sent) - before >= 190
        assert memory.asks - asks <= 2 * (len(sent) - before)


async def test_all_processes_have_equal_shares() -> None:
    """A process with few waiting submissions is not held up by those with many."""
    async with limiters(Memory(), 4) as opened, busy(opened[:3], 400):
        begun = now()
        await run_all(wire(limit=1000), [(opened[3], 25)])

        assert now() - begun <= 7.5 * PERIOD


async def test_order_within_a_process() -> None:
    """Higher priority goes first, then who came first."""
    served: list[str] = []

    async def one(name: str, priority: int) -> None:
        permit = await limiter.acquire(priority=priority)
        served.append(name)
        permit.answered()

    async with limiters(Memory(), terms=Terms(RateLimit(1, PERIOD), 70.0)) as (limiter,):
        await take(limiter)
        async with asyncio.TaskGroup() as group:
            for name, priority in (("a", 0), ("b", 0), ("c", 5), ("d", 0)):
                group.create_task(one(name, priority))

    assert served == ["c", "a", "b", "d"]


# --- Patience, cancellation, closing ---


async def test_max_wait_of_nothing_asks_once() -> None:
    """`max_wait=0` takes what is free, and is told at once when the next may be."""
    async with limiters(Memory(), 2, Terms(RateLimit(1, PERIOD), 70.0)) as (one, other):
        (await one.acquire(max_wait=0)).answered()
        begun = now()
        error = await error_of(other.acquire(max_wait=0))
        asked = now() - begun
        again = await error_of(other.acquire(max_wait=0))

    assert isinstance(error, RateLimitedError)
    assert isinstance(again, RateLimitedError)
    assert error.retry_after == pytest.approx(PERIOD, rel=0.01)
    assert asked < 0.1


async def test_max_wait_ends_a_wait() -> None:
    """Who allows three seconds waits that long and no longer."""
    async with limiters(Memory(), terms=Terms(RateLimit(1, PERIOD), 70.0)) as (limiter,):
        await take(limiter)
        begun = now()
        error = await error_of(limiter.acquire(max_wait=3.0))

        assert isinstance(error, RateLimitedError)
        assert 2.0 <= now() - begun <= 3.0


async def test_cancelled_waiters_lose_no_permit() -> None:
    """A permit that arrives when nobody wants it any more goes to another process at once."""
    async with limiters(Memory(rtt=0.5), 2, Terms(RateLimit(1, PERIOD), 70.0)) as (one, other):
        waiter = asyncio.create_task(one.acquire())
        await asyncio.sleep(0.6)
        waiter.cancel()
        begun = now()
        await take(other)

        assert now() - begun < 4.0
        assert one.waiting == 0


async def test_process_that_gave_up_holds_up_nobody() -> None:
    """A process whose submissions were all cancelled leaves the queue."""
    async with limiters(Memory(), 2, Terms(RateLimit(1, PERIOD), 70.0)) as (one, other):
        await take(one)
        begun = now()
        waiter = asyncio.create_task(one.acquire())
        await asyncio.sleep(0.1)
        waiter.cancel()
        await take(other)

        assert now() - begun <= PERIOD * 1.06


async def test_close_settles_and_leaves() -> None:
    """What was answered is told before leaving; who waits is sent home; nothing is left running."""
    memory = Memory()
    async with limiters(memory, 1, Terms(RateLimit(1, PERIOD), 70.0)) as (limiter,):
        permit = await limiter.acquire()
        waiter = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0.1)
        permit.answered()
    assert isinstance(await error_of(waiter), SessionClosedError)
    assert memory.stores == []
    assert {task.get_name() for task in asyncio.all_tasks()} & {"flux2_async fetch permits"} == set()

    async with limiters(memory, 1, Terms(RateLimit(1, PERIOD), 70.0)) as (limiter,):
        begun = now()
        await take(limiter)
        assert PERIOD * 0.98 <= now() - begun <= PERIOD * 1.02


async def test_dropped_permit_is_held_for_two_periods() -> None:
    """A permit that nobody settled is held back like one of an unclear request."""
    async with limiters(Memory(), 2, Terms(RateLimit(1, PERIOD), 70.0)) as (one, other):
        with pytest.warns(ResourceWarning, match="dropped without being settled"):
            await one.acquire()
            # The loop itself holds what it woke a task with until that task waits again.
            await asyncio.sleep(0)
        begun = now()
        await take(other)

        assert 2 * PERIOD <= now() - begun <= 2 * PERIOD * 1.06


# --- Pauses ---


async def test_refusal_of_one_pauses_all() -> None:
    """Retry-After met by one process holds all of them, and the refused submission's process goes first."""
    async with limiters(Memory(), 3) as opened:
        permit = await opened[0].acquire()
        permit.throttled(7.0)
        begun = now()
        await asyncio.sleep(0.01)
        assert all(limiter.paused_until == pytest.approx(begun + 7.0, abs=0.01) for limiter in opened)
        error = await error_of(opened[2].acquire(max_wait=1.0))
        assert now() == pytest.approx(begun, abs=0.1)
        assert isinstance(error, RateLimitedError)
        assert error.retry_after == pytest.approx(7.0, abs=0.1)
        await asyncio.gather(*(take(limiter) for limiter in opened))

        assert now() >= begun + 7.0


@pytest.mark.parametrize("alone", [False, True], ids=["together", "alone"])
async def test_no_refusal_pauses_for_less_than_a_second(*, alone: bool) -> None:
    """A service that asks one process to come back at once is not asked again at once, by none of them."""
    memory = Memory()
    memory.down = alone
    async with limiters(memory, 2) as opened:
        (await opened[0].acquire()).throttled(0.001)
        refused_at = now()
        await asyncio.sleep(0.01)
        assert opened[0].paused_until == refused_at + 1.0
        # Who comes back by chance within that time is told of a longer pause.
        memory.down = False
        await until(lambda: all(limiter.membership.joined for limiter in opened))

        assert alone or opened[1].paused_until == pytest.approx(refused_at + 1.0, abs=0.1)


async def test_pause_that_a_permit_crosses() -> None:
    """A permit lent just before another process met a 429 is given back, not used."""
    async with limiters(Memory(rtt=1.0), 2) as (one, other):
        (await one.acquire()).throttled(30.0)
        begun = now()
        await take(other)

        assert now() >= begun + 30.0


async def test_refused_late_in_a_short_pause() -> None:
    """Whose a 429 is may be known just before its pause ends: those who wait are let through then, and not later."""
    async with limiters(Memory(), 2, Terms(RateLimit(10, PERIOD), 70.0)) as (one, other):
        permits = [await one.acquire() for _ in range(10)]
        permits[0].pause(2.0)
        begun = now()
        waiting = asyncio.create_task(take(other))
        await asyncio.sleep(1.98)
        permits[0].throttled(2.0)
        await waiting

        assert 2.0 <= now() - begun <= 2.5
        for permit in permits:
            permit.never_sent()


async def test_stray_429_holds_its_permit_for_two_periods() -> None:
    """A 429 whose request was accepted after all gives nobody a permit when its pause is over."""
    async with limiters(Memory(), 2, Terms(RateLimit(1, PERIOD), 70.0)) as (one, other):
        permit = await one.acquire()
        permit.pause(1.0)
        await asyncio.sleep(0.5)
        permit.unclear()
        begun = now()
        await take(other)

        assert 2 * PERIOD <= now() - begun <= 2 * PERIOD * 1.06


async def test_refused_submission_asks_at_once() -> None:
    """A refused submission goes before another process that has waited for long, though its own asked a moment ago."""
    async with limiters(Memory(), 2, Terms(RateLimit(2, PERIOD), 70.0)) as (one, other):
        permit = await one.acquire()
        await take(other)
        begun = now()
        ahead, behind = asyncio.create_task(take(other)), asyncio.create_task(take(one))
        await asyncio.sleep(0.1)
        permit.throttled(1.0)
        (await one.acquire(first=True)).answered()

        assert now() - begun <= 1.1 * PERIOD
        await asyncio.wait([ahead, behind])


async def test_pause_heard_of_is_bounded() -> None:
    """However long a pause somebody tells of, it ends after an hour at the latest."""
    async with limiters(Memory()) as (limiter,):
        limiter.hear(Message("pause", seconds=1e9))

        assert limiter.paused_until == pytest.approx(now() + 3600.0)


async def test_pause_by_hand() -> None:
    """`pause` holds every process."""
    async with limiters(Memory(), 2) as (one, other):
        begun = now()
        one.pause(5.0)
        await asyncio.sleep(0.1)
        await take(other)

        assert now() == pytest.approx(begun + 5.0, abs=0.3)


# --- Outages ---


async def test_outage_leaves_a_safe_share(caplog: pytest.LogCaptureFixture) -> None:
    """Without the shared state each of four goes on by a quarter, after two periods; one warning each; no refusal."""
    memory, server = Memory(), wire()
    async with limiters(memory, 4) as opened:
        jobs = [asyncio.create_task(server.submit(limiter)) for limiter in opened for _ in range(100)]
        await asyncio.sleep(25.0)
        memory.down = True
        down_at, sent = now(), server.accepted
        await asyncio.sleep(95.0)
        sent = server.accepted - sent
        memory.down = False
        await asyncio.wait(jobs)

    assert server.refused == 0
    assert server.accepted == 400
    assert 110 <= sent <= 160
    assert len(logged(caplog, level=logging.WARNING)) == 4
    assert server.last_at - down_at <= 95.0 + (400 - 60 - sent) / 20 * PERIOD + 4 * PERIOD


@pytest.mark.parametrize("seed", range(4))
async def test_outages_and_losses_break_no_limit(seed: int) -> None:
    """Outages long and short, lost answers and a state that vanished: all get through, none is refused."""
    rng = random.Random(seed)
    memory, server = Memory(), wire(seed=seed)
    async with limiters(memory, 4) as opened:
        jobs = [asyncio.create_task(server.submit(limiter)) for limiter in opened for _ in range(60)]
        await trouble(memory, jobs, rng, 40.0)

    assert (server.accepted, server.refused) == (240, 0)


async def test_short_outage_costs_little() -> None:
    """A second without the shared state is not noticed in the throughput."""
    memory, server = Memory(), wire()
    async with limiters(memory, 2) as opened:
        job = asyncio.create_task(run_all(server, [(limiter, 100) for limiter in opened]))
        await asyncio.sleep(35.0)
        memory.down = True
        await asyncio.sleep(1.0)
        memory.down = False
        took = await job

    assert server.refused == 0
    assert took <= 9 * PERIOD * 1.05


async def test_lost_answers_strand_no_permit() -> None:
    """Permits whose answer got lost are free again as soon as the process is back."""
    memory, server = Memory(), wire()
    async with limiters(memory, 2) as opened:
        memory.lost_answers = 1
        took = await run_all(server, [(limiter, 60) for limiter in opened])

    assert server.refused == 0
    assert took <= 5 * PERIOD * 1.05


async def test_permit_under_way_stays_out_when_its_process_joins_anew() -> None:
    """A lost answer must not give back what is still being sent."""
    memory = Memory()
    async with limiters(memory, 2, Terms(RateLimit(2, PERIOD), 70.0)) as (one, other):
        under_way = await one.acquire()
        (await other.acquire()).answered()
        await asyncio.sleep(0.1)
        memory.lost_answers = 1
        waiting = asyncio.create_task(take(one))
        await until(lambda: one.membership.term == 1 and one.membership.joined)
        begun = now()
        await take(other, 1)
        await waiting

        assert now() - begun >= PERIOD * 1.9
        under_way.answered()


async def test_answer_to_an_earlier_member_is_not_used() -> None:
    """What was lent before the session joined anew belongs to others by then."""
    async with limiters(Memory()) as (limiter,):
        membership, late = limiter.membership, asyncio.Event()

        async def slow() -> str:
            await late.wait()
            return "leases"

        async def failing() -> str:
            raise CoordinationError("lost")

        async def slow_failing() -> str:
            await late.wait()
            raise CoordinationError("lost")

        questions = [asyncio.create_task(error_of(membership.ask(question))) for question in (slow, slow_failing)]
        await asyncio.sleep(0)
        assert isinstance(await error_of(membership.ask(failing)), CoordinationError)
        await until(lambda: membership.joined)
        late.set()

        assert [type(await question) for question in questions] == [CoordinationError, CoordinationError]
        assert membership.joined


async def test_what_was_sent_alone_is_declared() -> None:
    """Each permit of the own share is named at the return, by the time until it comes back."""
    memory = Memory()
    memory.down = True
    async with limiters(memory, 1, Terms(RateLimit(24, PERIOD), 70.0)) as (limiter,):
        answered, unclear, under_way = [await limiter.acquire() for _ in range(3)]
        answered.answered()
        unclear.unclear()
        await asyncio.sleep(5.0)
        memory.down = False
        await until(lambda: limiter.membership.joined)
        assert memory.account is not None
        held = [at - now() for at, _ in memory.account["_windows"]["windows"][0]["_returns"]]
        under_way.answered()

    assert sorted(held) == [pytest.approx(seconds, abs=3.0) for seconds in (0.5 * PERIOD, 1.5 * PERIOD, 2 * PERIOD)]


async def test_slow_answer_to_what_was_sent_alone_counts() -> None:
    """A request that was sent alone and is answered long after the return holds its permit for a period from then."""
    memory = Memory()
    memory.down = True
    async with limiters(memory, 1, Terms(RateLimit(1, PERIOD), 70.0)) as (limiter,):
        under_way = await limiter.acquire()
        memory.down = False
        await until(lambda: limiter.membership.joined)
        await asyncio.sleep(3 * PERIOD)
        under_way.answered()
        begun = now()
        await take(limiter)

        assert now() - begun >= PERIOD


async def test_slow_answer_to_what_was_sent_before_counts_alone() -> None:
    """A request that was sent before an outage and is answered late in it is held against the own share."""
    memory = Memory()
    async with limiters(memory, 1, Terms(RateLimit(1, PERIOD), 70.0)) as (limiter,):
        under_way = await limiter.acquire()
        memory.down = True
        limiter.pause(0.1)
        await until(lambda: not limiter.membership.joined)
        await asyncio.sleep(1.5 * PERIOD)
        under_way.answered()
        begun = now()
        await take(limiter)

        assert now() - begun >= PERIOD


async def test_refusal_met_alone_holds_all_afterwards() -> None:
    """A 429 that a process met while it was alone is told to the others when it is back."""
    memory = Memory()
    memory.down = True
    async with limiters(memory, 2) as (one, other):
        (await one.acquire()).throttled(60.0)
        refused_at = now()
        memory.down = False
        await until(lambda: one.membership.joined and other.membership.joined)
        await asyncio.sleep(0.1)

        assert other.paused_until == pytest.approx(refused_at + 60.0, abs=0.1)


async def test_refusal_that_could_not_be_told_is_told_again() -> None:
    """A 429 whose telling met the outage is told to the others when the process is back."""
    memory = Memory()
    async with limiters(memory, 2) as (one, other):
        permit = await one.acquire()
        memory.down = True
        permit.throttled(60.0)
        refused_at = now()
        await until(lambda: not one.membership.joined)
        memory.down = False
        await until(lambda: one.membership.joined)
        await asyncio.sleep(0.1)

        assert other.paused_until == pytest.approx(refused_at + 60.0, abs=0.1)


async def test_share_is_of_the_learned_limit() -> None:
    """Where refusals have taught a lower limit, the share is a part of that."""
    memory = Memory()
    async with limiters(memory, 2) as (one, _):
        permits = [await one.acquire() for _ in range(10)]
        for permit in permits[:4]:
            permit.answered()
        for permit in permits[4:]:
            permit.throttled(1.0)
        await asyncio.sleep(1.5)
        assert isinstance(await error_of(one.acquire(max_wait=0)), RateLimitedError)
        assert one.learned_limit == 4
        memory.down = True
        one.pause(0.1)
        await until(lambda: not one.membership.joined)
        begun = now()
        await take(one, 4)

        # Two at once after two periods, two more after the third.
        assert 3 * PERIOD <= now() - begun <= 3.1 * PERIOD


async def test_tries_to_be_back_are_few_and_soon_enough() -> None:
    """In an outage a process tries every second or so, and with a short period often enough to be back within it."""
    memory = Memory()
    memory.down = True
    async with limiters(memory):
        await asyncio.sleep(60.0)
        assert 20 <= memory.tries <= 80
    async with limiters(memory, 1, Terms(RateLimit(20, 1.0), 70.0)) as (limiter,):
        await asyncio.sleep(60.0)
        memory.down = False
        begun = now()
        await until(lambda: limiter.membership.joined)
        assert now() - begun <= 0.4


async def test_taken_while_joining_counts() -> None:
    """A permit that was taken while the answer to joining was on its way is told afterwards, for two periods."""
    memory = Memory(rtt=3.0)
    memory.down = True
    async with limiters(memory, 1, Terms(RateLimit(1, PERIOD), 70.0)) as (limiter,):
        await asyncio.sleep(2 * PERIOD - 1.0)
        memory.down = False
        await until(lambda: memory.account is not None)
        under_way = await limiter.acquire()
        assert not limiter.membership.joined
        begun = now()
        await until(lambda: limiter.membership.joined)
        waiting = asyncio.create_task(take(limiter))
        await asyncio.sleep(1.8 * PERIOD)
        assert not waiting.done()
        under_way.never_sent()
        await waiting
        assert now() - begun <= 2 * PERIOD + 20.0


async def test_start_without_the_shared_state() -> None:
    """A session that never saw the others takes an eighth of the limit, and joins later."""
    memory = Memory()
    memory.down = True
    async with limiters(memory) as (limiter,):
        begun = now()
        await take(limiter, 4)
        alone = now() - begun
        memory.down = False
        await until(lambda: limiter.membership.joined)

    assert 3 * PERIOD <= alone <= 3 * PERIOD * 1.01


@pytest.mark.parametrize("notices_after", [0.0, 0.9, 1.9])
async def test_who_notices_an_outage_late_does_not_break_the_limit(notices_after: float) -> None:
    """A process that asked nothing for most of an outage and is back first gets nothing that others send alone."""
    memory = Memory()
    server = wire()
    async with limiters(memory, 4) as opened:
        early, late = opened[1:], opened[0]
        await run_all(server, [(limiter, 1) for limiter in opened])
        memory.down = True
        alone = asyncio.create_task(run_all(server, [(limiter, 60) for limiter in early]))
        await asyncio.sleep(notices_after * PERIOD)
        late.pause(0.001)
        # The own shares begin two periods after the others have noticed.
        await asyncio.sleep((2.05 - notices_after) * PERIOD)
        memory.down = False
        await until(lambda: late.membership.joined)
        await run_all(server, [(late, 60)])
        await alone

    assert server.refused == 0


@pytest.mark.parametrize("known_from", ["message", "before"])
async def test_shares_of_all_are_no_more_than_the_limit(known_from: str) -> None:
    """Who has asked for nothing since the others joined, or was back before them, knows how many they are."""
    memory, server = Memory(), wire()
    async with limiters(memory, 4) as opened:
        if known_from == "before":
            await run_all(server, [(limiter, 1) for limiter in opened])
            memory.down = True
            for limiter in opened:
                limiter.pause(0.001)
            # The state has forgotten all of them meanwhile.
            await asyncio.sleep(90.0)
            memory.mute, memory.down = True, False
            await until(lambda: all(limiter.membership.joined for limiter in opened))
        await asyncio.sleep(1.0)
        memory.down = True
        await run_all(server, [(limiter, 20) for limiter in opened])

    assert server.refused == 0


async def test_shares_are_of_the_lowest_limit_that_is_open() -> None:
    """Who was given a higher limit, and has asked for nothing since the others joined, knows theirs."""
    memory, server = Memory(), wire(10)
    async with limiters(memory, 2) as high, limiters(memory, 2, Terms(RateLimit(10, PERIOD), 70.0)) as low:
        await asyncio.sleep(1.0)
        memory.down = True
        await run_all(server, [(limiter, 10) for limiter in (*high, *low)])

    assert server.refused == 0


async def test_safe_share_is_at_least_one() -> None:
    """Where there are more processes than permits each still sends one per period while it is alone."""
    memory = Memory()
    async with limiters(memory, 3, Terms(RateLimit(2, PERIOD), 70.0)) as opened:
        await take(opened[0])
        memory.down = True
        begun = now()
        await take(opened[0], 3)

        assert 3 * PERIOD <= now() - begun <= 5 * PERIOD


async def test_fail_instead_of_degrading() -> None:
    """With on_failure="fail" submissions fail while the shared state is away, also those that wait, and go on after."""
    memory = Memory(on_failure="fail")
    async with limiters(memory, 1, Terms(RateLimit(1, PERIOD), 70.0)) as (limiter,):
        await take(limiter)
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(1.0)
        memory.down = True
        assert isinstance(await error_of(waiting), CoordinationError)
        assert isinstance(await error_of(limiter.acquire()), CoordinationError)
        memory.down = False
        await until(lambda: limiter.membership.joined)
        await take(limiter)

    memory.down = True
    with pytest.raises(CoordinationError, match="on_failure='degrade'"):
        async with limiters(memory):
            raise AssertionError("it must not open")


async def test_rejoining_is_no_burst() -> None:
    """What was sent by the own share counts when the shared state, new and empty, is back."""
    memory, server = Memory(), wire(limit=4)
    async with limiters(memory, 2, Terms(RateLimit(4, PERIOD), 70.0)) as opened:
        jobs = [asyncio.create_task(server.submit(limiter)) for limiter in opened for _ in range(15)]
        await asyncio.sleep(0.5)
        memory.down = True
        memory.empty()
        # It is noticed with the first question, a period later.
        await until(lambda: server.accepted == 8)
        memory.down = False
        await asyncio.wait(jobs)

    assert server.refused == 0


async def test_without_a_limit_a_refusal_still_pauses_all() -> None:
    """`rate_limit=None` shares nothing but the pause."""
    async with limiters(Memory(), 2, Terms(None, 70.0)) as (one, other):
        begun = now()
        permits = await asyncio.gather(*(one.acquire() for _ in range(250)))
        assert now() - begun < 0.1
        for permit in permits[1:]:
            permit.answered()
        permits[0].throttled(None)
        await asyncio.sleep(0.1)
        await take(other)

        assert now() == pytest.approx(begun + 10.0, abs=0.3)


# --- The end of a lease ---


async def test_lease_ends_while_there_is_still_time_for_a_post() -> None:
    """A permit may be used as long as a request sent now is answered before the others count it as lost."""
    terms = Terms(RateLimit(1, PERIOD), 70.0, post=60.0)
    async with limiters(Memory(), terms=terms) as (limiter,):
        permit = await limiter.acquire()
        assert not permit.lease_ended()
        await asyncio.sleep(9.5)
        assert not permit.lease_ended()
        await asyncio.sleep(0.6)
        assert permit.lease_ended()
        permit.never_sent()

        begun = now()
        again = await limiter.acquire()
        assert not again.lease_ended()
        assert now() - begun < 1.0, "what was given back is free at once"
        again.answered()


async def test_lease_goes_on_while_the_machine_sleeps() -> None:
    """A lease ends by a clock that does not stand still when the loop's does, counted from before the question."""
    terms = Terms(RateLimit(1, PERIOD), 70.0, post=60.0)
    memory = Memory()
    async with limiters(memory, terms=terms) as (limiter,):
        permit = await limiter.acquire()
        memory.asleep = 11.0
        assert permit.lease_ended()
        permit.never_sent()
        await asyncio.sleep(1.0)

        tries, waiting = memory.tries, asyncio.create_task(limiter.acquire())
        await until(lambda: memory.tries > tries)
        memory.asleep += 11.0
        late = await waiting
        assert late.lease_ended(), "the machine slept while the answer was on its way"
        late.never_sent()


async def test_permit_of_an_outage_ends_with_it() -> None:
    """What was let through by a share of the limit and is not sent by the time the others are back is asked anew."""
    memory = Memory()
    async with limiters(memory) as (limiter,):
        memory.down = True
        (await limiter.acquire()).never_sent()
        await until(lambda: not limiter.membership.joined)
        permit = await limiter.acquire()
        assert not permit.lease_ended()
        memory.down = False
        await until(lambda: limiter.membership.joined)
        assert permit.lease_ended()
        permit.never_sent()
