"""Several limits at once, and what a service tells of its own: it is believed downwards."""

import asyncio

import pytest
from emulated import emulated
from raw_server import answer, raw_server

from flux2_async import Flux2Session, RateLimit, TextToImage
from flux2_async._limiter.windows import Windows, tightest
from flux2_async.coordination.contract import PermitEvent
from flux2_async.errors import RateLimitedError
from flux2_async.models.settings import Told

SECOND, MINUTE = RateLimit(5, 1.0), RateLimit(30, 60.0)


def test_of_several_the_tightest_speaks() -> None:
    """None is none, and the property of the session names the tightest."""
    assert Windows([]).learned_limit is None
    assert tightest([SECOND, MINUTE]) is MINUTE
    flux = Flux2Session("k", rate_limit=[SECOND, MINUTE])
    assert (flux.rate_limit, flux.rate_limits) == (MINUTE, (SECOND, MINUTE))
    assert Flux2Session("k", rate_limit=[]).rate_limit is None


def test_what_is_told_is_believed_downwards() -> None:
    """A lower limit counts at once, a higher one never; one that nobody knew of is kept to as well."""
    window = Windows([RateLimit(20, 10.0)])
    window.believe(Told(limit=50), 0.0)
    assert window.learned_limit is None
    window.believe(Told(limit=8, reset=3.0), 0.0)
    assert window.learned_limit == 8
    window.believe(Told(limit=2, reset=3600.0), 0.0)
    assert window.learned_limit == 8
    window.believe(Told(limit=6, seconds=10.0), 0.0)
    assert window.learned_limit == 6

    window.believe(Told(limit=100, seconds=3600.0), 0.0)
    assert window.rates == (RateLimit(6, 10.0), RateLimit(100, 3600.0))
    window.believe(Told(limit=7), 0.0)
    assert window.rates == (RateLimit(6, 10.0), RateLimit(100, 3600.0))


@pytest.mark.parametrize(
    ("told", "rates"),
    [
        (Told(limit=3), ((5, 1.0), (30, 60.0))),
        (Told(limit=3, reset=0.5), ((5, 1.0), (30, 60.0))),
        (Told(limit=3, reset=20.0), ((5, 1.0), (3, 60.0))),
        (Told(limit=3, seconds=1.0), ((3, 1.0), (30, 60.0))),
    ],
)
def test_of_several_the_one_that_lasts_as_long_is_meant(told: Told, rates: tuple[tuple[int, float], ...]) -> None:
    """Told without its seconds a limit is that of the window that its reset fits into; where both do nobody knows."""
    windows = Windows([SECOND, MINUTE])
    windows.believe(told, 0.0)
    assert set(windows.rates) == {RateLimit(*rate) for rate in rates}


def test_of_several_the_one_of_the_same_number_is_meant() -> None:
    """What is left of a limit is left of the window that has the same one."""
    windows = Windows([SECOND, MINUTE])
    windows.believe(Told(limit=5, remaining=0, reset=0.5), 0.0)
    assert windows.ready_at(0.0) == pytest.approx(0.5, abs=0.01)
    windows.believe(Told(limit=30, remaining=0, reset=0.5), 0.6)
    assert windows.ready_at(0.6) == pytest.approx(1.1, abs=0.01)
    assert set(windows.rates) == {SECOND, MINUTE}


@pytest.mark.parametrize("limits", [[SECOND], [SECOND, MINUTE]])
@pytest.mark.parametrize("limit", [None, 5, 100])
def test_nothing_is_left_for_longer_than_any_limit_lasts(limits: list[RateLimit], limit: int | None) -> None:
    """Of one limit or of several: a header without its seconds holds everybody, for an hour at most."""
    windows = Windows(limits)
    windows.believe(Told(limit=limit, remaining=0, reset=86_400.0), 0.0)
    assert windows.ready_at(0.0) == pytest.approx(3600.0, rel=0.01)
    assert set(windows.rates) == set(limits)


def test_what_only_the_service_told_it_may_raise() -> None:
    """Of a limit that nobody configured its last word counts, also where that is more."""
    windows = Windows([RateLimit(20, 10.0)])
    for limit in (100, 300, 50):
        windows.believe(Told(limit=limit, seconds=60.0), 0.0)
        assert windows.rates == (RateLimit(20, 10.0), RateLimit(limit, 60.0))


@pytest.mark.parametrize(
    "told",
    [
        Told(limit=5, seconds=999_999_999_999.0),
        Told(limit=1, seconds=999_999_998.0, remaining=0),
        Told(limit=0, seconds=3600.0),
        Told(limit=1_000_000, seconds=86_400.0, remaining=0),
    ],
)
def test_what_can_be_no_limit_stops_nobody(told: Told) -> None:
    """A window of years or of nothing is a slip of a header, and one of a million permits would fill the memory."""
    window = Windows([RateLimit(20, 10.0)])
    window.believe(told, 0.0)
    assert (window.rates, window.ready_at(0.0)) == ((RateLimit(20, 10.0),), 0.0)


def test_what_is_under_way_counts_for_a_limit_told_meanwhile() -> None:
    """It may be counted as late as its answer, however long ago the limit was told; an unclear one a period later."""
    both = Windows([RateLimit(20, 10.0)])
    tickets = [both.take(0.0) for _ in range(3)]
    both.believe(Told(limit=3, seconds=2.0), 1.0)
    both.settle(tickets[0], PermitEvent.ANSWERED, 4.0)
    both.settle(tickets[1], PermitEvent.UNCLEAR, 4.0)
    both.settle(tickets[2], PermitEvent.NEVER_SENT, 4.0)
    assert both.ready_at(4.0) == 4.0
    assert [both.ready_at(4.0, ahead) for ahead in (1, 2)] == pytest.approx([6.0, 8.0], abs=0.01)


def test_nothing_is_left_of_a_limit_that_is_told() -> None:
    """What a limit that nobody knew of has left counts from the first word of it on."""
    both = Windows([RateLimit(20, 10.0)])
    both.believe(Told(limit=100, seconds=3600.0, remaining=1, reset=60.0), 0.0)
    assert both.ready_at(0.0) == 0.0
    assert both.ready_at(0.0, 1) == pytest.approx(60.0, abs=0.1)


def test_what_others_have_used_is_left_to_them() -> None:
    """`remaining` holds what it leaves no room for until the reset; told again, it holds nothing twice."""
    window = Windows([RateLimit(20, 10.0)])
    for _ in range(3):
        window.believe(Told(remaining=2, reset=4.0), 0.0)
    assert [window.ready_at(0.0, ahead) for ahead in (0, 1)] == [0.0, 0.0]
    assert window.ready_at(0.0, 2) == pytest.approx(4.0, abs=0.01)
    assert window.ready_at(5.0, 19) == 5.0


async def test_a_session_keeps_to_all_of_them() -> None:
    """Over real sockets the service counts no more in any period than each limit allows."""
    async with emulated(rate_limit=[RateLimit(3, 1.0), RateLimit(7, 20.0)]) as (flux, emulator):
        await asyncio.gather(*(flux.submit(TextToImage(f"number {n}")) for n in range(16)))
    assert emulator.ledger.max_in_window(1.0) == 3
    assert emulator.ledger.max_in_window(20.0) == 7


REFUSED = {"code": 429, "msg": "slow", "data": {"retryAfter": 2, "limit": 3, "tier": "free", "windowSeconds": 60}}


async def test_a_session_believes_answers() -> None:
    """Headers of an acceptance, and the body of a refusal, lower the limit at once."""
    accepted = {"code": 200, "msg": "success", "data": {"taskId": "t-1"}}
    told = "X-RateLimit-Limit: 5\r\nX-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: 7\r\n"
    async with raw_server([answer(200, accepted, told)]) as server:
        async with Flux2Session("k", base_url=server.url, rate_limit=RateLimit(20, 10.0)) as flux:
            await flux.submit(TextToImage("a red kettle"))
            assert flux.statistics().learned_limit == 5
            with pytest.raises(RateLimitedError) as caught:
                await flux.submit(TextToImage("a red kettle"), max_wait=0.0)
            assert caught.value.retry_after == pytest.approx(7.0, abs=0.1)
    async with raw_server([answer(429, REFUSED)]) as server:
        async with Flux2Session("k", base_url=server.url, rate_limit=RateLimit(20, 60.0)) as flux:
            with pytest.raises(RateLimitedError):
                await flux.submit(TextToImage("a red kettle"), max_wait=0.0)
            assert flux.statistics().learned_limit == 3
