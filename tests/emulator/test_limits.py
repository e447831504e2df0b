"""The four ways in which the emulator counts new tasks."""

import asyncio
import math
import time
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import pytest
from emulator_client import emulated
from hypothesis import given
from hypothesis import strategies as st

from flux2_async.emulator import Limit, Script
from flux2_async.emulator.limits import policy_for

Policy = Literal["sliding", "fixed", "bucket", "counter"]
POLICIES: tuple[Policy, ...] = ("sliding", "fixed", "bucket", "counter")

gaps = st.lists(st.floats(0.0, 15.0), min_size=1, max_size=80)


def admitted(limit: Limit, moments: list[float]) -> list[float]:
    policy = policy_for(limit)
    taken = []
    for now in moments:
        if policy.wait(now) == 0.0:
            policy.count(now)
            taken.append(now)
    return taken


def moments_of(pauses: list[float]) -> list[float]:
    return [sum(pauses[: n + 1]) for n in range(len(pauses))]


@given(gaps, st.integers(1, 6))
def test_a_sliding_log_never_holds_more_than_the_limit(pauses: list[float], limit: int) -> None:
    """No half-open window of the period ever admits more, and a refusal means that it is full."""
    moments = moments_of(pauses)
    taken = admitted(Limit(limit, 10.0), moments)

    for moment in moments:
        inside = [t for t in taken if moment - 10.0 + 1e-6 < t <= moment]
        assert len(inside) <= limit
        assert moment in taken or len([t for t in taken if moment - 10.0 - 1e-6 < t <= moment]) == limit


@given(gaps, st.integers(1, 6))
def test_a_fixed_window_counts_from_its_border_on(pauses: list[float], limit: int) -> None:
    """Each window admits its first `limit` calls and no more."""
    moments = moments_of(pauses)
    taken = admitted(Limit(limit, 10.0, "fixed"), moments)

    windows: dict[int, list[float]] = {}
    for moment in moments:
        windows.setdefault(math.floor((moment + 1e-9) / 10.0), []).append(moment)
    assert taken == [moment for inside in windows.values() for moment in inside[:limit]]


@given(gaps, st.integers(1, 6))
def test_a_bucket_gives_out_what_flowed_in(pauses: list[float], limit: int) -> None:
    """Any span of x seconds admits at most the capacity plus what flows in within x, and a full second bucket more."""
    taken = admitted(Limit(limit, 10.0, "bucket"), moments_of(pauses))

    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= limit + (taken[last] - start) * limit / 10.0 + 1e-6


@given(gaps, st.integers(1, 6))
def test_a_two_window_counter_weights_the_window_before(pauses: list[float], limit: int) -> None:
    """Whatever was admitted kept the weighted count within the limit."""
    taken = admitted(Limit(limit, 10.0, "counter"), moments_of(pauses))

    for moment in taken:
        window = math.floor((moment + 1e-9) / 10.0)
        before = [math.floor((t + 1e-9) / 10.0) for t in taken if t <= moment]
        weight = 1.0 - (moment / 10.0 - window)
        assert before.count(window) + before.count(window - 1) * weight <= limit + 1e-6


@pytest.mark.parametrize("policy", POLICIES)
@given(pauses=gaps, limit=st.integers(1, 6))
def test_who_waits_as_long_as_told_is_admitted(policy: Policy, pauses: list[float], limit: int) -> None:
    """`wait` is long enough, and half of it is not."""
    state = policy_for(Limit(limit, 10.0, policy))
    for now in moments_of(pauses):
        wait = state.wait(now)
        if wait > 1e-6:
            assert state.wait(now + wait / 2) > 0.0
            assert state.wait(now + wait + 1e-6) == 0.0
            return
        state.count(now)


def test_a_burst_tells_the_policies_apart() -> None:
    """Two full bursts, six seconds apart across a window's border: each policy admits another number."""
    moments = [6.0] * 10 + [12.0] * 10
    counts = {policy: len(admitted(Limit(10, 10.0, policy), moments)) for policy in POLICIES}

    assert counts == {"sliding": 10, "fixed": 20, "bucket": 16, "counter": 12}


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_service_refuses_what_is_too_much(policy: Policy) -> None:
    """429 without Retry-After; what was refused is not queued, not charged, and does not count."""
    async with emulated(Script(limit=Limit(3, 10.0, policy))) as raw:
        answers = [await raw.create() for _ in range(5)]
        await asyncio.sleep(21.0)
        later = await raw.create()

        assert [answer.code for answer in answers] == [200, 200, 200, 429, 429]
        assert answers[3].json == {"code": 429, "msg": "Rate limit exceeded", "data": None}
        assert "Retry-After" not in answers[3].headers
        assert later.code == 200
        assert raw.emulator.ledger.refused == 2
        assert raw.emulator.ledger.charged == 20.0
        assert raw.emulator.ledger.max_in_window(10.0) == 3


async def test_retry_after_in_seconds_is_long_enough() -> None:
    """Whole seconds, rounded up: who waits as long is admitted, who waits a second less is not."""
    async with emulated(Script(limit=Limit(1, 9.5, retry_after="seconds"), error_style="http")) as raw:
        await raw.create()
        await asyncio.sleep(2.0)
        refused = await raw.create()
        await asyncio.sleep(7.0)
        early = await raw.create()
        await asyncio.sleep(1.0)

        assert (refused.status, refused.headers["Retry-After"]) == (429, "8")
        assert early.status == 429
        assert (await raw.create()).status == 200


async def test_retry_after_as_a_date_is_in_the_services_wall_clock() -> None:
    """An HTTP date that lies after the wait, by less than a second more."""
    async with emulated(Script(limit=Limit(1, 30.0, retry_after="date"))) as raw:
        begun = time.time()
        await raw.create()
        date = parsedate_to_datetime((await raw.create()).headers["Retry-After"])

        assert isinstance(date, datetime)
        assert 29.9 <= date.timestamp() - begun <= 32.0


async def test_the_limit_can_change_while_running() -> None:
    """A new limit starts with an empty count; None refuses nothing any more."""
    async with emulated(Script(limit=Limit(1, 10.0))) as raw:
        codes = [(await raw.create()).code for _ in range(2)]
        raw.emulator.script.limit = Limit(2, 10.0)
        codes += [(await raw.create()).code for _ in range(3)]
        raw.emulator.script.limit = None
        codes += [(await raw.create()).code for _ in range(3)]

        assert codes == [200, 429, 200, 200, 429, 200, 200, 200]
