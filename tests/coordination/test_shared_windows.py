"""Several limits at once that processes share, and limits that answers tell one of them."""

import asyncio
import json
import math
import random
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from memory_coordination import Memory
from rate_servers import SlidingLog, Wire
from raw_server import answer, raw_server
from shared_limiters import limiters, run_all, trouble

from flux2_async import Flux2Session, RateLimit, TextToImage
from flux2_async.coordination.account_state import AccountState
from flux2_async.coordination.contract import Hint, Known, PermitEvent, Settlement, Terms
from flux2_async.coordination.shared_limiter import SharedLimiter
from flux2_async.errors import RateLimitedError
from flux2_async.models.settings import Told

REQUEST = TextToImage("a red kettle")
SECOND, HALF_MINUTE = RateLimit(4, 1.0), RateLimit(20, 30.0)
TERMS = Terms((SECOND, HALF_MINUTE), 70.0)


ENDS = (PermitEvent.ANSWERED, PermitEvent.ANSWERED, PermitEvent.UNCLEAR, PermitEvent.NEVER_SENT)


class All:
    """A server with several limits, which counts only what all of them admit."""

    def __init__(self, *rates: RateLimit) -> None:
        self.logs = [SlidingLog(rate.limit, rate.period) for rate in rates]

    def take(self, now: float) -> float | None:
        waits = [wait for log in self.logs if (wait := log.take(now)) is not None]
        if waits:
            for log in self.logs:
                if log.log and log.log[-1] == now:
                    log.log.pop()
        return max(waits, default=None)


@attrs.define(eq=False)
class Sent:
    """A request that has a permit."""

    lease: str
    peer: str
    counted: bool = False


class SharedWindows(RuleBasedStateMachine):
    """Processes that ask, send, lose answers and die, a state that is written down and read, and several limits.

    A request is counted before its answer, or at most a period of the shortest limit after it was given up.
    """

    sent = Bundle("sent")

    @initialize(
        periods=st.sets(st.sampled_from([1.0, 5.0, 20.0, 60.0]), min_size=2, max_size=3),
        limits=st.tuples(*[st.integers(1, 9)] * 3),
    )
    def begin(self, periods: set[float], limits: tuple[int, ...]) -> None:
        self.rates = tuple(RateLimit(limit, period) for limit, period in zip(limits, sorted(periods), strict=False))
        self.server, self.now = All(*self.rates), 0.0
        self.terms = Terms(self.rates, 1e9)
        self.state = AccountState("e", self.terms, 0.0)
        self.names = dict.fromkeys("abc", 0)
        self.late: list[tuple[float, Sent]] = []
        self.under_way: list[Sent] = []
        for peer in self.names:
            self.join(peer)

    def join(self, peer: str) -> None:
        self.names[peer] += 1
        keeps = [each.lease for each in self.under_way if each.peer == peer]
        name, known = f"{peer}.{self.names[peer]}", Known("e", self.state.number)
        options: dict[str, Any] = {"terms": self.terms, "keeps": keeps, "seen_for": math.inf}
        assert self.state.join(name, known, self.now, replaces=f"{peer}.", **options) is not None

    def count(self, request: Sent) -> None:
        if not request.counted:
            request.counted = True
            assert self.server.take(self.now) is None

    @rule(target=sent, peer=st.sampled_from("abc"), want=st.integers(1, 12), lost=st.booleans())
    def ask(self, peer: str, want: int, lost: bool) -> Any:
        reply = self.state.acquire(f"{peer}.{self.names[peer]}", Known("e"), want, self.now)
        assert reply is not None
        assert not reply.leases or reply.paused == 0.0
        if lost:
            self.join(peer)
            return multiple()
        requests = [Sent(lease, peer) for lease in reply.leases]
        self.under_way += requests
        return multiple(*requests)

    @rule(request=sent)
    def arrives(self, request: Sent) -> None:
        if request in self.under_way:
            self.count(request)

    @rule(
        request=sent,
        event=st.sampled_from(ENDS),
        ago=st.sampled_from([0.0, 0.4]),
        late=st.floats(0.0, 1.0),
    )
    def ends(self, request: Sent, event: PermitEvent, ago: float, late: float) -> None:
        if request not in self.under_way or (event is PermitEvent.NEVER_SENT and request.counted):
            return
        self.under_way.remove(request)
        if event is PermitEvent.ANSWERED:
            self.count(request)
            ago = 0.0
        elif event is PermitEvent.UNCLEAR:
            self.late.append((self.now + late * self.rates[0].period - ago, request))
        self.state.settle(Settlement(request.lease, event, ago), self.now)

    @rule(peer=st.sampled_from("abc"), late=st.floats(0.0, 1.0))
    def dies(self, peer: str, late: float) -> None:
        for request in [each for each in self.under_way if each.peer == peer]:
            self.under_way.remove(request)
            self.late.append((self.now + late * self.rates[0].period, request))
        self.state.died(f"{peer}.{self.names[peer]}", self.now)
        self.join(peer)

    @rule(which=st.integers(0, 1), limit=st.integers(0, 12), reset=st.none() | st.floats(0.0, 60.0))
    def is_told(self, which: int, limit: int, reset: float | None) -> None:
        told = Told(limit, self.rates[which].period, limit if reset else None, reset)
        self.state.believe(Hint((told,), 0.1), self.now)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 4.0, 20.0, 61.0]))
    def passes(self, seconds: float) -> None:
        end = self.now + seconds
        for at, request in sorted(self.late, key=lambda entry: entry[0]):
            if at <= end:
                self.now = max(at, self.now)
                self.count(request)
        self.late = [(at, request) for at, request in self.late if at > end]
        self.now = end

    @rule()
    def is_written_down(self) -> None:
        self.state = AccountState.load(json.loads(json.dumps(self.state.dump())))

    @invariant()
    def all_windows_believe_what_they_may(self) -> None:
        if hasattr(self, "state"):
            reply = self.state.touch(f"a.{self.names['a']}", Known("e"), self.now)
            assert reply is not None
            believed = {rate.period: rate.limit for rate in reply.rates}
            assert believed.keys() == {rate.period for rate in self.rates}
            assert all(1 <= believed[rate.period] <= rate.limit for rate in self.rates)

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        for request in tuple(self.under_way):
            self.ends(request, PermitEvent.ANSWERED, 0.0, 0.0)
        self.passes(190.0)
        begun, got, most = self.now, 0, 99
        while got < most:
            reply = self.state.acquire(f"b.{self.names['b']}", Known("e"), most - got, self.now)
            assert reply is not None
            got, most = got + len(reply.leases), min(rate.limit for rate in reply.rates)
            self.now += reply.wait
        assert self.now - begun <= 1.2 * self.rates[-1].period


SharedWindows.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSharedWindows = SharedWindows.TestCase


async def send_all(wire: Wire, opened: list[SharedLimiter], count: int) -> float:
    return await run_all(wire, [(each, count // len(opened)) for each in opened])


async def test_several_limits_are_used_up_together() -> None:
    """Three processes are refused by neither limit, and take no longer than one alone."""
    rates, took = (SECOND, HALF_MINUTE), []
    for processes in (1, 3):
        wire = Wire(All(*rates), random.Random(1), 0.05)
        async with limiters(Memory(), processes, TERMS) as opened:
            took.append(await send_all(wire, opened, 90))
        assert (wire.accepted, wire.refused) == (90, 0)

    assert took[1] <= 1.02 * took[0] + 1.0


@pytest.mark.parametrize("seed", range(4))
async def test_several_limits_survive_outages(seed: int) -> None:
    """The state is away, forgets everything, or loses answers: neither limit refuses anybody."""
    random.seed(seed)
    rng, memory, wire = random.Random(seed), Memory(), Wire(All(SECOND, HALF_MINUTE), random.Random(seed), 0.05)
    async with limiters(memory, 3, TERMS) as opened:
        job = asyncio.create_task(send_all(wire, opened, 300))
        await trouble(memory, [job], rng, 100.0)

    assert (wire.accepted, wire.refused) == (300, 0)


@pytest.mark.parametrize(("retry_after", "seconds"), [(None, 30.0), (0.5, 1.0), (12.0, 12.0)])
async def test_a_429_pauses_all_for_the_limit_that_is_full(retry_after: float | None, seconds: float) -> None:
    """Where the service names no pause, the fuller limit's period holds all, he who met the refusal included."""
    async with limiters(Memory(), 2, TERMS) as opened:
        for _ in range(19):
            (await opened[0].acquire()).answered()
        (await opened[0].acquire()).throttled(retry_after)
        begun = asyncio.get_running_loop().time()
        await asyncio.sleep(0.5)

        assert [limiter.paused_until for limiter in opened] == pytest.approx(2 * [begun + seconds], abs=0.1)


async def test_limit_told_to_one_holds_for_all() -> None:
    """One process reads a lower limit and what is left of it: another one obeys at once, and asks upwards again."""
    async with limiters(Memory(), 2, TERMS) as opened:
        one, other = opened
        (await one.acquire()).answered()
        one.believe([Told(limit=6, seconds=30.0, remaining=1, reset=8.0)])
        await asyncio.sleep(0.1)
        (await other.acquire(max_wait=0.0)).answered()
        assert other.learned_limit == 6
        begun = asyncio.get_running_loop().time()
        (await other.acquire()).answered()
        assert asyncio.get_running_loop().time() - begun == pytest.approx(8.0, abs=0.2)

        await send_all(Wire(All(SECOND, HALF_MINUTE), random.Random(2), 0.05), opened, 160)
        assert other.learned_limit is None


async def test_limit_told_while_alone_is_for_the_share() -> None:
    """A process that the others cannot hear keeps to its part of what it is told."""
    memory = Memory()
    async with limiters(memory, 2, TERMS) as (one, _):
        memory.down = True
        one.pause(0.1)
        await asyncio.sleep(61.0)
        assert not one.membership.joined
        one.believe([Told(limit=4, seconds=30.0)])
        begun = asyncio.get_running_loop().time()
        for _ in range(3):
            (await one.acquire()).answered()
        assert asyncio.get_running_loop().time() - begun >= 30.0


async def test_headers_of_one_session_hold_another() -> None:
    """Over real sockets: a session that has sent nothing yet knows what was answered to another one."""
    accepted = {"code": 200, "msg": "success", "data": {"taskId": "t-1"}}
    told = "X-RateLimit-Limit: 5\r\nX-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: 7\r\n"
    memory = Memory()
    async with raw_server([answer(200, accepted, told)]) as server:
        options: dict[str, Any] = {"base_url": server.url, "rate_limit": RateLimit(20, 10.0), "coordination": memory}
        async with Flux2Session("k", **options) as one, Flux2Session("k", **options) as other:
            await one.submit(REQUEST)
            await asyncio.sleep(0.1)
            with pytest.raises(RateLimitedError) as caught:
                await other.submit(REQUEST, max_wait=0.0)

    assert caught.value.retry_after == pytest.approx(7.0, abs=0.2)
    assert other.statistics().learned_limit == 5
