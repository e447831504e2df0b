"""What a batch is said to cost and take before anything is sent."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from batches import batch_in, collect, requests, run
from emulated import emulated, until
from hypothesis import given
from hypothesis import strategies as st

from flux2_async.batch import BadLine, InvalidInputError, Job, Journal, JournalError, State, estimate_batch
from flux2_async.emulator import Fault, Plan, Script
from flux2_async.errors import ConfigurationError
from flux2_async.models import ImageToImage, RateLimit, Request, TextToImage
from flux2_async.models.budget import seconds_of
from flux2_async.models.prices import DEAREST, PRICES, documented_price


async def test_a_new_batch_costs_what_is_documented() -> None:
    """By tier and resolution; the time is that of the limit and the recorded range; no file is made."""
    shapes: list[Any] = [{"tier": tier, "resolution": size} for tier, size in PRICES]
    wanted = [TextToImage(f"number {n}", **shape) for n in range(10) for shape in shapes]
    estimate = await estimate_batch(wanted)

    assert (estimate.requests, estimate.credits) == (40, 10 * (14 + 24 + 5 + 7))
    assert estimate.seconds == (10.0 + 8.0, 10.0 + 95.0)
    assert {(kind.model, kind.resolution): (kind.requests, kind.price, kind.seen) for kind in estimate.kinds} == {
        (f"flux-2/{tier}-text-to-image", size): (10, price, False) for (tier, size), price in PRICES.items()
    }
    assert (estimate.done, estimate.waiting, estimate.failed, estimate.unknown, estimate.spent) == (0, 0, 0, 0, 0.0)


async def test_the_estimate_is_what_the_batch_then_sends_and_pays(tmp_path: Path) -> None:
    """For a new one, and for the rest of one that was stopped; then by the prices and times that it has seen."""
    script = Script(plans=Plan(duration=4.0, credits=3.0))
    async with emulated(script, rate_limit=RateLimit(5, 10.0)) as (flux, emulator):
        await run(tmp_path, flux, requests(10), max_tasks=4)
        spent = emulator.ledger.charged
        estimate = await estimate_batch(requests(10), journal=tmp_path / "run.db", rate_limit=RateLimit(5, 10.0))
        assert (estimate.requests, estimate.credits, estimate.done, estimate.spent) == (6, 18.0, 4, 12.0)
        assert [kind.seen for kind in estimate.kinds] == [True]
        assert estimate.seconds == pytest.approx((14.0, 14.0), abs=0.01)
        await run(tmp_path, flux, requests(10))

        assert emulator.ledger.charged - spent == estimate.credits
        assert len(emulator.ledger.requests) == 10


async def test_the_least_cap_is_what_a_run_begins_with(tmp_path: Path) -> None:
    """With less nothing is sent, and the reason names it; after the first picture its price counts."""
    pro = [TextToImage(f"number {n}", tier="pro") for n in range(3)]
    path = tmp_path / "run.db"
    async with emulated() as (flux, emulator):
        least = (await estimate_batch(pro, journal=path)).least_max_credits
        assert least == DEAREST
        short = batch_in(tmp_path, flux, pro, max_credits=least - 1)
        assert await collect(short) == []
        assert short.progress is not None
        assert (short.progress.stopped or "").endswith(
            "one more picture may cost 24: no price of flux-2/pro-text-to-image 1K was seen yet in this batch, so its "
            "first picture counts with the dearest documented price; it is sent with max_credits=24 or more"
        )
        assert len(await run(tmp_path, flux, pro, max_credits=least, max_tasks=1)) == 1
        assert (await estimate_batch(pro, journal=path)).least_max_credits == 10
        second = batch_in(tmp_path, flux, pro, max_credits=9.0)
        assert await collect(second) == []
        assert second.progress is not None
        assert (second.progress.stopped or "").endswith("one more picture may cost 5")
        assert emulator.ledger.charged == 5
    assert (await estimate_batch([])).least_max_credits == 0


async def test_the_journal_is_as_it_was(tmp_path: Path) -> None:
    """Neither the input nor what would be sent again has entered it."""
    async with emulated(Script(plans=Plan(outcome="fail", duration=1.0))) as (flux, _):
        await run(tmp_path, flux, requests(2))
    async with Journal(tmp_path / "run.db") as journal:
        before = [outcome async for outcome in journal.outcomes()]
        estimate = await estimate_batch(requests(5), journal=journal, retry_failed=True)
        assert (estimate.requests, estimate.failed) == (5, 0)
        assert [outcome async for outcome in journal.outcomes()] == before
        assert (await estimate_batch(requests(5), journal=journal)).failed == 2
        with pytest.raises(InvalidInputError):
            await estimate_batch([*requests(5), BadLine(6, "no JSON")], journal=journal)
        assert [outcome async for outcome in journal.outcomes()] == before
    assert [state.state for state in before] == [State.FAILED, State.FAILED]


async def test_what_would_not_be_sent_is_not_counted(tmp_path: Path) -> None:
    """What is unknown, what is beyond `limit` and `max_tasks`, and what cannot be used."""
    async with emulated(Script(plans=Plan(duration=1.0), faults=[Fault("createTask", "cut_after")])) as (flux, _):
        await run(tmp_path, flux, requests(1))
    path = tmp_path / "run.db"
    assert (await estimate_batch(requests(3), journal=path)).requests == 2
    assert (await estimate_batch(requests(3), journal=path)).unknown == 1
    assert (await estimate_batch(requests(3), journal=path, retry_unknown=True)).requests == 3
    assert (await estimate_batch(requests(30), limit=7)).requests == 7
    assert (await estimate_batch(requests(30), limit=7, shuffle=True)).requests == 7
    assert (await estimate_batch(requests(30), max_tasks=4)).credits == 4 * 14
    mixed: list[TextToImage] = [TextToImage("one flex"), *(TextToImage(f"{n}", tier="pro") for n in range(100, 103))]
    assert (await estimate_batch(mixed, max_tasks=2)).requests == 2
    missing: list[Request] = [*requests(2), ImageToImage("no such", images=["missing.png"])]
    skipping = await estimate_batch(missing, skip_invalid=True)
    assert (skipping.requests, skipping.invalid_count, skipping.invalid[0].line) == (2, 1, 3)
    with pytest.raises(InvalidInputError):
        await estimate_batch(missing)


async def test_nothing_is_estimated_that_could_not_be_run(tmp_path: Path) -> None:
    """The errors of `run_batch`: a damaged journal, two requests of one id, arguments without sense."""
    (tmp_path / "run.db").write_text("no journal")
    with pytest.raises(JournalError, match="is not a journal"):
        await estimate_batch(requests(1), journal=tmp_path / "run.db")
    with pytest.raises(InvalidInputError, match="stands in line 1 as well"):
        await estimate_batch([Job(TextToImage("a house"), id="x"), Job(TextToImage("a tree"), id="x")])
    with pytest.raises(ConfigurationError, match="max_tasks"):
        await estimate_batch(requests(1), max_tasks=-1)
    assert (await estimate_batch([])).seconds == (0.0, 0.0)


@given(st.integers(1, 3000), st.floats(0.1, 100), st.integers(1, 50), st.floats(0.5, 60), st.integers(1, 200))
def test_the_time_is_that_of_the_best_way(number: int, task: float, limit: int, period: float, places: int) -> None:
    """No order of sending is faster than what is said, and one takes little longer."""
    said = seconds_of(number, task, RateLimit(limit, period), places)
    sent: list[float] = []
    for index in range(number):
        by_limit = sent[index - limit] + period if index >= limit else 0.0
        by_places = sent[index - places] + task if index >= places else 0.0
        sent.append(max(by_limit, by_places, sent[-1] if sent else 0.0))
    really = sent[-1] + task
    assert said <= really + 1e-6
    assert really <= 2 * said + 1e-6


def test_what_is_not_documented_counts_as_the_dearest() -> None:
    """A model of tomorrow is not said to cost less than it might."""
    assert documented_price("flux-2/pro-image-to-image", "2K") == 7.0
    assert documented_price("flux-3/max-text-to-image", "1K") == documented_price("x", "8K") == DEAREST == 24.0


async def test_too_many_failures_stop_the_sending(tmp_path: Path) -> None:
    """A broken template costs 20 requests and what runs, not the night; what was sent goes on to its end."""
    script = Script(plans=Plan(duration=3.0, outcome="fail"))
    async with emulated(script, rate_limit=RateLimit(5, 10.0)) as (flux, emulator):
        batch = batch_in(tmp_path, flux, requests(200), max_failed=0.2)
        outcomes = await collect(batch)
        assert batch.progress is not None
        assert 20 <= len(outcomes) == len(emulator.ledger.accepted) <= 30
        assert batch.progress.stopped == "max_failed=0.2: 20 of the 20 requests that have ended failed"
        assert batch.progress.queued == 200 - len(outcomes)
        # The next run judges its own.
        script.plans = Plan(duration=0.5)
        assert len(await run(tmp_path, flux, requests(200), max_failed=0.2, max_tasks=30)) == 30


async def test_failures_within_the_share_stop_nothing(tmp_path: Path) -> None:
    """One in five of each hundred may fail; and before 20 have ended nothing is judged."""
    plans = [Plan(duration=1.0, outcome="moderated" if n % 5 == 4 else "success") for n in range(60)]
    async with emulated(Script(plans=plans), rate_limit=None) as (flux, _):
        assert len(await run(tmp_path, flux, requests(60), max_failed=0.2, max_running=1)) == 60
    few = tmp_path / "few"
    async with emulated(Script(plans=Plan(duration=1.0, outcome="fail")), rate_limit=None) as (flux, _):
        assert len(await run(few, flux, requests(19), max_failed=0.0)) == 19


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "0.2", True])
async def test_a_share_is_a_number_of_0_to_1(tmp_path: Path, share: object) -> None:
    """A percentage is told what to write instead."""
    async with emulated() as (flux, _):
        with pytest.raises(ConfigurationError, match=r"max_failed: .* given, it must be a share of 0 to 1"):
            batch_in(tmp_path, flux, requests(1), max_failed=share)


async def test_progress_tells_who_waits_for_a_price(tmp_path: Path) -> None:
    """Under a cap the first of a kind goes ahead alone, and is named until it has told."""
    async with emulated(Script(plans=Plan(duration=5.0)), rate_limit=None) as (flux, emulator):
        batch = batch_in(tmp_path, flux, requests(3), max_credits=1000.0)
        running = asyncio.create_task(collect(batch))
        await until(lambda: batch.progress is not None and batch.progress.pricing)
        assert batch.progress is not None
        assert batch.progress.pricing == "flux-2/flex-text-to-image 1K"
        await until(lambda: len(emulator.ledger.accepted) > 1)
        assert batch.progress.pricing is None
        assert len(await running) == 3
        free = batch_in(tmp_path / "free", flux, requests(3))
        async for _ in free:
            assert free.progress is not None
            assert free.progress.pricing is None
