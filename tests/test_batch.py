"""Batches on the emulator: what is paid, what is saved, what the next run finds."""

from pathlib import Path

from batches import batch_in, lines, prompts, requests, run
from emulated import emulated

from flux2_async.batch import Download, State


async def test_all_done(tmp_path: Path) -> None:
    """Every request is paid once and has its picture in the folder, and results.jsonl tells so in their order."""
    async with emulated() as (flux, emulator):
        outcomes = await run(tmp_path, flux, requests(5))

        assert [outcome.state for outcome in outcomes] == [State.DONE] * 5
        assert len(emulator.ledger.requests) == 5
        assert emulator.ledger.charged == 5 * 14
    for number, line in enumerate(lines(tmp_path)):
        assert (line["prompt"], line["state"], line["download"]) == (f"number {number}", "done", Download.SAVED)
        assert line["files"] == [f"images/{line['task_id']}-1.png"]
        assert (tmp_path / "results" / line["files"][0]).read_bytes().startswith(b"\x89PNG")
        assert line["credits"] == 14
    assert len(lines(tmp_path)) == 5


async def test_the_same_again_does_nothing(tmp_path: Path) -> None:
    """A batch that is done is done: the next run sends nothing and gives no outcomes."""
    async with emulated() as (flux, emulator):
        await run(tmp_path, flux, requests(3))
        again = batch_in(tmp_path, flux, requests(3))

        assert [outcome async for outcome in again] == []
        assert len(emulator.ledger.requests) == 3
        assert again.progress is not None
        assert (again.progress.total, again.progress.done, again.progress.spent) == (3, 3, 42)


async def test_more_lines_and_another_order(tmp_path: Path) -> None:
    """Lines may be added and reordered: only what is new is sent."""
    async with emulated() as (flux, emulator):
        await run(tmp_path, flux, requests(3))
        await run(tmp_path, flux, reversed(list(requests(5))))

        assert sorted(prompts(emulator.ledger.requests)) == [f"number {n}" for n in range(5)]
        assert [line["prompt"] for line in lines(tmp_path)] == [f"number {n}" for n in (4, 3, 2, 1, 0)]
