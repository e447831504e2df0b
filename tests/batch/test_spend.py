"""What a batch may cost."""

import asyncio
from pathlib import Path

import pytest
from batches import batch_in, collect, lines, requests, run
from emulated import emulated, until
from hypothesis import given
from hypothesis import strategies as st

from flux2_async.batch import Journal
from flux2_async.batch.journal.checksums import update
from flux2_async.batch.journal.start import Tally
from flux2_async.batch.outcomes import State
from flux2_async.batch.spending import BatchSpending
from flux2_async.emulator import Fault, Plan, Script
from flux2_async.errors import ConfigurationError
from flux2_async.models import RateLimit, TextToImage
from flux2_async.models.prices import DEAREST

KIND = ("flux-2/flex-text-to-image", "1K")


@given(st.data())
def test_the_cap_is_never_passed(data: st.DataObject) -> None:
    """Whatever tasks cost up to the documented maximum and become, their sum stays within the cap."""
    cap = data.draw(st.floats(0, 300))
    prices = {("a", "1K"): data.draw(st.floats(0, DEAREST)), ("b", "2K"): data.draw(st.floats(0, DEAREST))}
    spend = BatchSpending(cap)
    really = 0.0
    running: list[tuple[str, str]] = []
    for _ in range(data.draw(st.integers(0, 60))):
        step = data.draw(st.sampled_from(["start", "success", "fail", "lose", "silent"]))
        if step == "start":
            kind = data.draw(st.sampled_from(sorted(prices)))
            if spend.allows(kind):
                spend.start(kind)
                running.append(kind)
        elif running:
            kind = running.pop(data.draw(st.integers(0, len(running) - 1)))
            really += 0.0 if step == "fail" else prices[kind]
            if step == "lose":
                spend.mark_unclear(kind)
            else:
                told = {"success": prices[kind], "fail": 0.0, "silent": None}[step]
                spend.pay(kind, told, failed=step == "fail")
    assert really + sum(prices[kind] for kind in running) <= cap + 1e-6


def test_the_first_of_a_kind_goes_ahead_alone() -> None:
    """Until a price is known no second task of the kind is started under a cap."""
    spend = BatchSpending(1000.0)
    assert spend.allows(KIND)
    spend.start(KIND)
    assert not spend.allows(KIND)
    assert spend.allows(("other", "2K"))
    spend.pay(KIND, 14.0, failed=False)
    assert (spend.spent, spend.reserved, spend.price(KIND)) == (14.0, 0.0, 14.0)
    assert spend.allows(KIND)


def test_without_a_cap_nothing_is_held_back() -> None:
    """What is spent is counted all the same."""
    spend = BatchSpending()
    for _ in range(3):
        assert spend.allows(KIND)
        spend.start(KIND)
    assert spend.reserved == 3 * DEAREST
    spend.cancel(KIND)
    assert spend.reserved == 2 * DEAREST


def test_it_begins_with_the_journal() -> None:
    """What earlier runs spent, run, lost and gave up counts."""
    tallies = [
        Tally(*KIND, State.DONE, 3, 3, 1, 28.0, 14.0, 0, 0, 0),
        Tally(*KIND, State.SUBMITTED, 2, 2, 2, 0.0, None, 1, 0, 0),
        Tally(*KIND, State.UNKNOWN, 1, 1, 1, 0.0, None, 0, 0, 0),
        Tally(*KIND, State.FAILED, 1, 1, 0, 24.0, 24.0, 0, 0, 0),
        Tally(*KIND, State.QUEUED, 9, 9, 9, 0.0, None, 0, 0, 0),
    ]
    spend = BatchSpending.of(tallies, 1000.0)
    assert spend.spent == 52.0
    # One done without a figure, two running, one given up, one unknown.
    assert spend.reserved == 5 * 14.0
    spend.find(KIND)
    assert spend.running[KIND] == 3
    assert spend.reserved == 5 * 14.0


async def test_max_credits(tmp_path: Path) -> None:
    """The service never charges more than the cap, in all runs together; the rest stay queued."""
    async with emulated(Script(plans=Plan(duration=5.0))) as (flux, emulator):
        batch = batch_in(tmp_path, flux, requests(20), max_credits=100.0)
        outcomes = await collect(batch)
        assert (len(outcomes), emulator.ledger.charged) == (7, 98.0)
        assert batch.progress is not None
        assert "max_credits=100: 98 are spent" in (batch.progress.stopped or "")
        assert await run(tmp_path, flux, requests(20), max_credits=100.0) == []
        assert len(await run(tmp_path, flux, requests(20), max_credits=112.0)) == 1
        assert emulator.ledger.charged == 112.0


async def test_failed_tasks_leave_room(tmp_path: Path) -> None:
    """What turns out to cost nothing is spent on others."""
    plans = [Plan(outcome="fail")] * 3 + [Plan()]
    async with emulated(Script(plans=plans)) as (flux, emulator):
        outcomes = await run(tmp_path, flux, requests(20), max_credits=40.0)
        assert sorted(outcome.state for outcome in outcomes) == ["done"] * 2 + ["failed"] * 3
        assert emulator.ledger.charged == 28.0


async def test_unknown_counts(tmp_path: Path) -> None:
    """What may have been paid counts, also after it was sent again."""
    script = Script(faults=[Fault("createTask", "cut_after", after=1)])
    async with emulated(script) as (flux, emulator):
        await run(tmp_path, flux, requests(20), max_credits=45.0)
        # Two that are done, one unknown: 42.
        assert emulator.ledger.charged == 42.0
        assert await run(tmp_path, flux, requests(20), max_credits=45.0, retry_unknown=True) == []
        await run(tmp_path, flux, requests(20), max_credits=56.0, retry_unknown=True)
        assert emulator.ledger.charged == 56.0


async def test_kinds_are_told_apart(tmp_path: Path) -> None:
    """A dear kind that no longer fits stops the run, whatever a cheap one costs."""
    many = [TextToImage("cheap one", tier="pro"), TextToImage("dear one", resolution="2K"), TextToImage("second one")]
    async with emulated() as (flux, emulator):
        await run(tmp_path, flux, many, max_credits=30.0)
        assert emulator.ledger.charged == 29.0
        assert [line["credits"] for line in lines(tmp_path)] == [5, 24, None]


async def test_max_tasks(tmp_path: Path) -> None:
    """At most so many are taken from the queue in a run; the next run goes on."""
    async with emulated() as (flux, emulator):
        for done in (3, 6, 7):
            batch = batch_in(tmp_path, flux, requests(7), max_tasks=3)
            await collect(batch)
            assert len(emulator.ledger.accepted) == done
        assert batch.progress is not None
        assert batch.progress.stopped is None


async def test_limit_and_shuffle(tmp_path: Path) -> None:
    """`limit` takes the first, with `shuffle` some of all, and the same ones in every run."""
    async with emulated() as (flux, emulator):
        for _ in range(2):
            await run(tmp_path / "a", flux, requests(20), limit=5)
        assert [line["prompt"] for line in lines(tmp_path / "a")] == [f"number {n}" for n in range(5)]
        for _ in range(2):
            await run(tmp_path / "b", flux, requests(20), limit=5, shuffle=True)
        assert len(emulator.ledger.accepted) == 10
        chosen = [line["prompt"] for line in lines(tmp_path / "b")]
        assert len(chosen) == 5
        assert chosen != [f"number {n}" for n in range(5)]


async def test_a_cap_waits_for_running_tasks(tmp_path: Path) -> None:
    """While a task whose price decides runs, nothing is sent; it is not taken for the end."""
    async with emulated(Script(plans=Plan(duration=50.0)), rate_limit=RateLimit(20, 10.0)) as (flux, emulator):
        batch = batch_in(tmp_path, flux, requests(2), max_credits=40.0)
        running = asyncio.create_task(collect(batch))
        await until(lambda: emulator.ledger.accepted)
        await asyncio.sleep(30)
        assert len(emulator.ledger.accepted) == 1
        assert len(await running) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("limit", 0),
        ("max_tasks", 1.5),
        ("max_credits", -1),
        ("max_credits", True),
        ("recover_timeout", None),
        ("task_timeout", 0),
    ],
)
async def test_options_are_checked(tmp_path: Path, option: str, value: object) -> None:
    """An option that makes no sense is told at once, by its name."""
    async with emulated() as (flux, _):
        with pytest.raises(ConfigurationError, match=option):
            batch_in(tmp_path, flux, [], **{option: value})


async def test_a_charge_that_nobody_told_counts_in_later_runs(tmp_path: Path) -> None:
    """A task that succeeded without picture and price may have cost something, also when it is sent again."""
    script = Script(plans=[Plan(outcome="empty"), Plan()])
    async with emulated(script) as (flux, _):
        await run(tmp_path, flux, requests(1))
        async with Journal(tmp_path / "run.db") as journal:
            await journal.read(lambda connection: connection.execute(update({"credits": "NULL"})))
        for retried, spent in ((False, 0), (True, 14)):
            batch = batch_in(tmp_path, flux, requests(1), retry_failed=retried)
            await collect(batch)
            assert batch.progress is not None
            assert (batch.progress.spent, batch.progress.reserved) == (spent, 14)
