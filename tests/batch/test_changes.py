"""`changes.jsonl`: what onlookers learn of a batch whose journal is locked."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from batch_outcomes import Told, done, failed, queued
from batches import batch_in, collect, requests
from emulated import session_for

from flux2_async.batch import Download, Outcome, State
from flux2_async.batch.report.following import Following
from flux2_async.batch.results import CHANGES, RESULTS
from flux2_async.emulator import Emulator, Plan, Script


def written(folder: Path, outcomes: Any) -> None:
    """`results.jsonl` as a run writes it at its end."""
    changes = Told(folder, 0)
    for outcome in outcomes:
        changes.tell(outcome)
    changes.end(remove=False)
    content = (folder / CHANGES).read_bytes().split(b"\n", 1)[1]
    (folder / CHANGES).unlink()
    (folder / "new").write_bytes(content)
    (folder / "new").replace(folder / RESULTS)


async def test_a_running_batch_tells_what_it_accepted_and_finished(tmp_path: Path) -> None:
    """Each request stands there when it was accepted and when it has ended; at the end the file is gone."""
    following = Following(tmp_path / "results")
    async with (
        Emulator(Script(plans=Plan(duration=float("inf")), render=False)) as emulator,
        session_for(emulator) as flux,
    ):
        running = asyncio.ensure_future(collect(batch_in(tmp_path, flux, requests(3))))
        while len(following.outcomes) < 3:
            await asyncio.sleep(0.05)
            following.news()
        assert {outcome.state for outcome in following.outcomes.values()} == {State.SUBMITTED}
        assert (following.total, following.running) == (3, True)
        first = emulator.ledger.accepted[0]
        emulator.finish(first)
        news: list[str] = []
        while not news:
            await asyncio.sleep(0.05)
            news = following.news()
        [changed] = news
        assert following.outcomes[changed].task_id == first
        assert following.outcomes[changed].download is Download.SAVED
        for task_id in emulator.ledger.accepted:
            emulator.finish(task_id)
        ended = await running
    following.news()

    assert not (tmp_path / "results" / CHANGES).exists()
    assert following.outcomes == {outcome.id: outcome for outcome in ended}
    assert following.running is False


async def test_a_running_batch_tells_when_it_will_have_ended(tmp_path: Path) -> None:
    """As its session expects, after the first ends; nothing of the kind once it runs no more."""
    following, expected = Following(tmp_path / "results"), set[float | None]()
    async with (
        Emulator(Script(plans=Plan(duration=0.5), render=False)) as emulator,
        session_for(emulator) as flux,
    ):
        batch = batch_in(tmp_path, flux, requests(12), max_running=2)
        begun = time.time()
        async for _ in batch:
            following.news()
            expected.add(following.ends_at)
        took = time.time() - begun
    following.news()

    told = [each for each in expected if each is not None]
    assert told
    assert begun < min(told) <= max(told) < begun + 100 + took
    assert following.ends_at is None


async def test_what_cannot_be_written_stops_no_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Onlookers see less, once told in the log; every picture is made."""
    (tmp_path / "results" / CHANGES).mkdir(parents=True)
    async with Emulator(Script(plans=Plan(duration=0.1), render=False)) as emulator, session_for(emulator) as flux:
        await collect(batch_in(tmp_path, flux, requests(3)))
    assert len((tmp_path / "results" / RESULTS).read_text().splitlines()) == 3
    assert [record.message for record in caplog.records if CHANGES in record.message] == [
        f"{CHANGES} is not written any more: [Errno 21] Is a directory: '{tmp_path / 'results' / CHANGES}'"
    ]


def test_what_a_run_that_died_has_told_is_still_there(tmp_path: Path) -> None:
    """Over the results of the run before; half of a line and other nonsense is passed over; nothing runs any more."""
    written(tmp_path, queued(3))
    changes = Told(tmp_path, 3)
    changes.tell(done(1))
    changes.end(remove=False)
    with (tmp_path / CHANGES).open("ab") as file:
        file.write(b'nonsense\n[]\n{"id": "shot-2"}\n{"id": "sho')
    following = Following(tmp_path)
    following.news()

    assert [outcome.state for outcome in following.outcomes.values()] == [State.DONE, State.QUEUED, State.QUEUED]
    assert following.running is False
    again = Told(tmp_path, 3)
    again.tell(failed(3))
    assert following.news() == ["shot-3"]
    assert following.running is True
    again.end(remove=True)
    assert following.news() == []


def test_each_change_is_told_once(tmp_path: Path) -> None:
    """What is as it was is no news, whichever file it stands in."""
    changes = Told(tmp_path, 2)
    following = Following(tmp_path)
    assert following.news() == []
    changes.tell(done(1))
    changes.tell(done(1))
    assert following.news() == ["shot-1"]
    assert following.news() == []
    changes.tell(failed(2))
    assert following.news() == ["shot-2"]
    written_before = following.outcomes.copy()
    changes.end(remove=True)
    written(tmp_path, written_before.values())
    assert following.news() == []
    written(tmp_path, [done(1), done(2)])
    assert following.news() == ["shot-2"]


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    """A look may come between two parts of a line."""
    changes = Told(tmp_path, 1)
    changes.tell(done(1, prompt="a long one " * 400))
    content = (tmp_path / CHANGES).read_bytes()
    changes.end(remove=False)
    following = Following(tmp_path)
    for cut in (10, len(content) // 2, len(content) - 1):
        (tmp_path / CHANGES).write_bytes(content[:cut])
        assert following.news() == []
    (tmp_path / CHANGES).write_bytes(content)
    assert following.news() == ["shot-1"]
    outcome: Outcome = following.outcomes["shot-1"]
    assert outcome == done(1, prompt="a long one " * 400)
    assert json.loads(content.splitlines()[0]) == {"total": 1}
