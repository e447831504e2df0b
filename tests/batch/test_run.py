"""Batches on the emulator: what is paid, what is saved, what the next run finds."""

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from batches import batch_in, collect, lines, prompts, requests, run
from emulated import REQUEST, emulated, session_for, until
from file_host import picture

from flux2_async.batch import Download, Job, Journal, State, read_jobs, run_batch
from flux2_async.batch.report.rows import page_row
from flux2_async.emulator import Emulator, Fault, Limit, Plan, Script
from flux2_async.errors import (
    AmbiguousSubmitError,
    ApiError,
    ConfigurationError,
    InvalidRequestError,
    RequestRejectedError,
    SessionClosedError,
    TransportError,
)
from flux2_async.models import Callbacks, ImageToImage, Polling, RateLimit
from flux2_async.models.events import Queued, SessionEvent, Settled

PNG = picture(100)


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


async def states(journal: Journal) -> list[str]:
    return [outcome.state.value async for outcome in journal.outcomes()]


async def test_a_refusal_is_written_back_before_the_pause(tmp_path: Path) -> None:
    """While a 429 is waited out the refused request is queued, and then it is sent again and paid once."""
    script = Script(faults=[Fault("createTask", "refuse", retry_after=30)])
    async with emulated(script) as (flux, emulator), Journal(tmp_path / "run.db") as journal:
        running = asyncio.create_task(collect(run_batch(flux, requests(1), journal=journal, directory=tmp_path)))
        await until(lambda: flux.statistics().refused)
        await asyncio.sleep(1)
        assert await states(journal) == ["queued"]
        await running
        assert await states(journal) == ["done"]
        assert [call.outcome for call in emulator.ledger.requests] == ["refused", "accepted"]


async def test_what_is_on_disk_when_the_post_leaves(tmp_path: Path) -> None:
    """While createTask is under way its request is submitting, with the ref; then submitted, with the id."""
    async with emulated(Script(latency=5.0)) as (flux, emulator), Journal(tmp_path / "run.db") as journal:
        running = asyncio.create_task(collect(run_batch(flux, requests(1), journal=journal, directory=tmp_path)))
        await until(lambda: emulator.ledger.accepted)
        [outcome] = [each async for each in journal.outcomes()]
        assert (outcome.state, outcome.task_id) == ("submitting", None)
        assert outcome.ref is not None
        await until(flux.tasks)
        [outcome] = [each async for each in journal.outcomes()]
        assert (outcome.state, [outcome.task_id]) == ("submitted", emulator.ledger.accepted)
        await running


async def test_a_lost_reply_is_unknown_and_never_sent_again_unless_asked(tmp_path: Path) -> None:
    """Who is unclear is listed as unknown in every run; retry_unknown alone sends it again."""
    script = Script(faults=[Fault("createTask", "cut_after", after=1)])
    async with emulated(script) as (flux, emulator):
        outcomes = await run(tmp_path, flux, requests(3))
        assert sorted(outcome.state for outcome in outcomes) == ["done", "done", "unknown"]
        assert await run(tmp_path, flux, requests(3)) == []
        assert len(emulator.ledger.accepted) == 3
        [unknown] = [line for line in lines(tmp_path) if line["state"] == "unknown"]
        assert unknown["error"]["type"] == "AmbiguousSubmitError"

        [outcome] = await run(tmp_path, flux, requests(3), retry_unknown=True)
        assert (outcome.state, outcome.id) == ("done", unknown["id"])
        assert len(emulator.ledger.accepted) == 4


@pytest.mark.parametrize("code", [401, 402, 433, 505, 404])
async def test_a_refusal_that_meets_all_stops_the_sending(tmp_path: Path, code: int) -> None:
    """After such a refusal nothing more is sent, what runs is finished, the rest are queued for the next run."""
    fault = Fault("createTask", "refuse", code=code, after=5, times=None)
    async with emulated(Script(faults=[fault], plans=Plan(duration=30.0)), rate_limit=RateLimit(5, 10.0)) as (
        flux,
        emulator,
    ):
        batch = batch_in(tmp_path, flux, requests(15))
        outcomes = []
        with pytest.raises(ApiError) as caught:
            async for outcome in batch:
                outcomes.append(outcome)  # noqa: PERF401  a comprehension would lose what came before the error
        assert caught.value.code == code
        assert [outcome.state for outcome in outcomes] == ["done"] * 5
        assert len(emulator.ledger.requests) <= 10
        assert [line["state"] for line in lines(tmp_path)].count("queued") == 10
    async with emulated() as (flux, emulator):
        assert len(await run(tmp_path, flux, requests(15))) == 10


async def test_one_bad_request_does_not_stop_the_rest(tmp_path: Path) -> None:
    """A request that the service does not take, and a task that fails, are failed and left alone until asked for."""
    plans = [Plan(outcome="fail"), Plan()]
    script = Script(plans=plans, faults=[Fault("createTask", "refuse", code=422, after=2)])
    async with emulated(script) as (flux, emulator):
        await run(tmp_path, flux, requests(5))
        failed = [line for line in lines(tmp_path) if line["state"] == "failed"]
        assert sorted(line["error"]["type"] for line in failed) == ["RequestRejectedError", "TaskFailedError"]
        assert sorted(str(line["error"]["code"]) for line in failed) == ["422", "500"]
        assert await run(tmp_path, flux, requests(5)) == []
        again = await run(tmp_path, flux, requests(5), retry_failed=True)
        assert sorted(outcome.id for outcome in again) == sorted(line["id"] for line in failed)
        assert {line["state"] for line in lines(tmp_path)} == {"done"}
        assert len(emulator.ledger.requests) == 7


async def test_refusals_of_everything_stop_it(tmp_path: Path) -> None:
    """When the service takes none of many requests, the fault is not theirs and the rest are not burnt."""
    script = Script(faults=[Fault("createTask", "refuse", code=422, times=None)])
    async with emulated(script) as (flux, emulator):
        with pytest.raises(RequestRejectedError) as caught:
            await run(tmp_path, flux, requests(200), max_running=1)
        assert len(emulator.ledger.requests) == 20
        assert "20 requests in a row" in caught.value.__notes__[0]


async def test_what_meets_every_request_ends_the_waiting_for_a_turn(tmp_path: Path) -> None:
    """Requests that wait for the limit go back to the queue at once when another one meets what all would meet."""
    script = Script(faults=[Fault("createTask", "refuse", code=402, times=None)])
    async with emulated(script, rate_limit=RateLimit(1, 1000.0)) as (flux, emulator):
        begun = asyncio.get_running_loop().time()
        with pytest.raises(ApiError):
            await run(tmp_path, flux, requests(5))
        assert asyncio.get_running_loop().time() - begun < 100
        assert len(emulator.ledger.requests) == 1
        assert [line["state"] for line in lines(tmp_path)] == ["queued"] * 5


async def test_an_outage_is_waited_out(tmp_path: Path) -> None:
    """While nobody listens nothing is lost and nothing failed; afterwards the batch goes on by itself."""
    async with emulated(Script(plans=Plan(duration=20.0)), rate_limit=RateLimit(5, 10.0)) as (flux, emulator):
        batch = batch_in(tmp_path, flux, requests(10))
        running = asyncio.create_task(collect(batch))
        await until(lambda: len(emulator.ledger.accepted) == 5)
        await emulator.stop()
        await asyncio.sleep(600)
        assert batch.progress is not None
        assert batch.progress.away is not None
        await emulator.start()
        assert len(await running) == 10
        assert len(emulator.ledger.accepted) == 10
        assert batch.progress.away is None


async def test_maintenance_is_waited_out_with_few_tries(tmp_path: Path) -> None:
    """A maintenance of ten minutes costs a try a minute, not a refusal for each request."""
    async with emulated(Script(outage=(0.0, 600.0)), rate_limit=RateLimit(100, 10.0)) as (flux, emulator):
        await run(tmp_path, flux, requests(30))
        assert len(emulator.ledger.accepted) == 30
        refused = [call for call in emulator.ledger.requests if call.outcome == "refused"]
        assert len(refused) <= 30 + 20


async def test_a_service_that_stays_away_ends_the_run(tmp_path: Path) -> None:
    """After an hour the run ends with the reason, and everything is still queued."""
    async with emulated() as (flux, emulator):
        await emulator.stop()
        begun = asyncio.get_running_loop().time()
        with pytest.raises(TransportError):
            await run(tmp_path, flux, requests(3))
        assert 3600 < asyncio.get_running_loop().time() - begun < 4000
        assert {line["state"] for line in lines(tmp_path)} == {"queued"}
        await emulator.start()


async def test_local_pictures_are_uploaded(tmp_path: Path) -> None:
    """Paths are uploaded when their request is sent."""
    (tmp_path / "a.png").write_bytes(PNG)
    async with emulated() as (flux, emulator):
        [outcome] = await run(tmp_path, flux, [ImageToImage("make it red", images=[tmp_path / "a.png"])])
        assert outcome.images == (str(tmp_path / "a.png"),)
        assert len(emulator.ledger.uploads) == 1


async def test_bytes_are_refused(tmp_path: Path) -> None:
    """Pictures that a later process cannot find again are refused, before anything is sent."""
    async with emulated() as (flux, emulator):
        with pytest.raises(InvalidRequestError, match=r"line 2: images\[0\]: bytes given"):
            await run(tmp_path, flux, [REQUEST, ImageToImage("make it red", images=[PNG])])
        assert emulator.ledger.requests == []


async def test_a_picture_that_cannot_be_fetched_now_is_fetched_by_the_next_run(tmp_path: Path) -> None:
    """A done request without its file is downloaded again, without a new task."""
    script = Script(faults=[Fault("file", "html", status=503, times=5)])
    async with emulated(script) as (flux, emulator):
        for download, missing in (("pending", 1), ("saved", 0)):
            batch = batch_in(tmp_path, flux, requests(1))
            [outcome] = await collect(batch)
            assert (outcome.state, outcome.download, len(outcome.files)) == ("done", download, 1 - missing)
            assert batch.progress is not None
            assert (batch.progress.not_downloaded, batch.progress.downloaded) == (missing, 1 - missing)
        assert outcome.error is None
        assert len(emulator.ledger.requests) == 1


async def test_an_expired_picture_is_told_as_such(tmp_path: Path) -> None:
    """A link that is gone for good is called expired, and not asked for again."""
    async with emulated(Script(result_life=3600.0, file_life=7200.0)) as (flux, emulator):
        [outcome] = await run(tmp_path, flux, requests(1), download=False)
        assert (outcome.download, outcome.files) == ("off", ())
        await asyncio.sleep(8000)
        [outcome] = await run(tmp_path, flux, requests(1))
        assert (outcome.state, outcome.download) == ("done", "expired")
        fetched = emulator.ledger.calls["file"]
        again = batch_in(tmp_path, flux, requests(1))
        assert await collect(again) == []
        assert emulator.ledger.calls["file"] == fetched
        assert again.progress is not None
        assert (again.progress.done, again.progress.expired, again.progress.not_downloaded) == (1, 1, 0)


async def test_an_expired_link_is_renewed(tmp_path: Path) -> None:
    """While the service keeps the file, its expired link is replaced."""
    async with emulated(Script(result_life=3600.0)) as (flux, _):
        await run(tmp_path, flux, requests(1), download=False)
        await asyncio.sleep(8000)
        [outcome] = await run(tmp_path, flux, requests(1))
        assert outcome.download == "saved"


async def test_a_saved_picture_that_is_gone_is_fetched_again(tmp_path: Path) -> None:
    """What somebody deleted, or another folder has, is downloaded again while the service keeps it, and never paid."""
    async with emulated(Script(result_life=3600.0)) as (flux, emulator):
        first, second = await run(tmp_path, flux, requests(2))
        (tmp_path / "results" / first.files[0]).unlink()
        await asyncio.sleep(8000)
        [outcome] = await run(tmp_path, flux, requests(2))
        assert (outcome.id, outcome.download, outcome.files) == (first.id, "saved", first.files)
        (tmp_path / "results" / "images").rename(tmp_path / "elsewhere")
        assert len(await run(tmp_path, flux, requests(2), download=False)) == 0
        fetched = await run(tmp_path, flux, requests(2))
        assert {name for outcome in fetched for name in outcome.files} == {*first.files, *second.files}
        assert all((tmp_path / "results" / name).is_file() for name in (*first.files, *second.files))
        assert await run(tmp_path, flux, requests(2)) == []
        assert len(emulator.ledger.accepted) == 2


async def test_a_saved_picture_that_is_gone_for_good_is_told(tmp_path: Path) -> None:
    """When the service does not keep it either, it is missing, and nothing is paid for it again."""
    async with emulated(Script(result_life=3600.0, file_life=7200.0)) as (flux, emulator):
        [outcome] = await run(tmp_path, flux, requests(1))
        (tmp_path / "results" / outcome.files[0]).unlink()
        await asyncio.sleep(8000)
        batch = batch_in(tmp_path, flux, requests(1))
        [outcome] = await collect(batch)
        assert (outcome.state, outcome.download, outcome.files) == ("done", "expired", ())
        assert batch.progress is not None
        assert batch.progress.expired == 1
        assert len(emulator.ledger.accepted) == 1


async def test_the_task_of_another_account_is_unknown(tmp_path: Path) -> None:
    """A task that the service does not know is not taken for failed, and looked for again by the next run."""
    async with emulated(Script(plans=Plan(duration=1000.0))) as (flux, _):
        batch = batch_in(tmp_path, flux, requests(1))
        running = asyncio.create_task(collect(batch))
        await until(flux.tasks)
        await batch.aclose()
        await running
    async with emulated() as (flux, emulator):
        for _ in range(2):
            [outcome] = await run(tmp_path, flux, requests(1))
            assert (outcome.state, outcome.error and outcome.error.type) == ("unknown", "TaskNotFoundError")
        assert emulator.ledger.requests == []


async def test_a_restart_waits_out_the_period(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of the run before count: the next one sends when a period has passed since its last answer."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + loop.time())
    script = Script(limit=Limit(20, 10.0))
    script.render = False
    async with Emulator(script) as emulator:
        async with session_for(emulator) as flux:
            await run(tmp_path, flux, requests(20))
        async with session_for(emulator) as flux:
            await run(tmp_path, flux, requests(30))
        assert emulator.ledger.refused == 0
        assert len(emulator.ledger.accepted) == 30
        # Two clocks may differ a little in their rates.
        first, second = emulator.ledger.accepted_at[19:21]
        assert second - first == pytest.approx(10.01, abs=0.001)


async def test_a_send_that_was_given_up_counts_from_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been accepted just before, so that the next run waits two periods from then on."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + loop.time())
    async with emulated(Script(faults=[Fault("createTask", "hang")])) as (flux, _):
        [outcome] = await run(tmp_path, flux, requests(1))
        assert outcome.state == "unknown"
        given_up = loop.time()
    async with emulated() as (flux, _):
        # To be sent again, and not sent: that is forgotten by no run.
        batch = batch_in(tmp_path, flux, requests(1), retry_unknown=True)
        running = asyncio.create_task(collect(batch))
        await until(lambda: batch.progress)
        await batch.aclose()
        assert await running == []
    async with emulated() as (flux, emulator):
        await run(tmp_path, flux, requests(2))
        assert emulator.ledger.accepted_at[0] - given_up == pytest.approx(20.02, abs=0.001)


async def test_callbacks_need_a_lasting_secret(tmp_path: Path) -> None:
    """A random secret would leave the next process unable to check the callbacks of this one."""
    async with emulated(callbacks=Callbacks("http://127.0.0.1:9/")) as (flux, emulator):
        with pytest.raises(ConfigurationError, match="secret"):
            await run(tmp_path, flux, requests(1))
        assert emulator.ledger.requests == []


async def test_a_file_that_vanishes_is_a_failure_of_its_request(tmp_path: Path) -> None:
    """A picture removed after the check fails its request alone, at no cost."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PNG)
    items = [ImageToImage("make it red", images=[tmp_path / name]) for name in ("a.png", "b.png")]
    async with emulated(Script(plans=Plan(duration=5.0)), rate_limit=RateLimit(1, 30.0), max_running=1) as (
        flux,
        emulator,
    ):
        running = asyncio.create_task(run(tmp_path, flux, items, max_running=1))
        await until(lambda: emulator.ledger.accepted)
        (tmp_path / "b.png").unlink()
        first, second = await running
        assert (first.state, second.state) == ("done", "failed")
        assert second.error is not None
        assert second.error.type == "InvalidRequestError"
        assert len(emulator.ledger.requests) == 1


async def test_while_answers_are_lost_one_request_at_a_time_is_risked(tmp_path: Path) -> None:
    """Each lost answer is a request that may be paid for nothing, so that the others wait until one is answered."""
    fault = Fault("createTask", "html", status=502, accepted=True, times=None)
    async with emulated(Script(faults=[fault], credits=1e6)) as (flux, emulator):
        running = asyncio.create_task(run(tmp_path, flux, requests(100)))
        await until(lambda: emulator.ledger.requests)
        await asyncio.sleep(600)
        risked = len(emulator.ledger.requests)
        emulator.clear_faults()
        outcomes = await running
    # What had left before the first answer, and tries after about 2, 4, 8, 16, 32 and then every 60 seconds.
    assert risked == pytest.approx(20 + 5 + 8, abs=2)
    assert Counter(outcome.state for outcome in outcomes) == {"unknown": risked, "done": 100 - risked}


async def test_answers_that_stay_lost_end_the_run(tmp_path: Path) -> None:
    """After an hour nothing more is risked, and the reason is raised."""
    fault = Fault("createTask", "html", status=502, accepted=True, times=None)
    async with emulated(Script(faults=[fault])) as (flux, emulator):
        with pytest.raises(AmbiguousSubmitError):
            await run(tmp_path, flux, requests(100))
        assert len(emulator.ledger.requests) < 100
    assert {line["state"] for line in lines(tmp_path)} == {"queued", "unknown"}


async def test_an_upload_that_fails_is_an_outage(tmp_path: Path) -> None:
    """When uploads meet a broken server the request waits for it, and is not failed."""
    (tmp_path / "a.png").write_bytes(PNG)
    script = Script(faults=[Fault("upload", "refuse", code=500, times=12)])
    async with emulated(script) as (flux, emulator):
        [outcome] = await run(tmp_path, flux, [ImageToImage("make it red", images=[tmp_path / "a.png"])])
        assert outcome.state == "done"
        assert len(emulator.ledger.requests) == 1


async def test_looking_that_is_refused_for_good_ends_the_run(tmp_path: Path) -> None:
    """A key that is no longer good ends the run; the task is submitted, and the next run brings its picture."""
    async with emulated(Script(plans=Plan(duration=30.0))) as (flux, emulator):
        emulator.inject(Fault("recordInfo", "refuse", code=401, times=100))
        with pytest.raises(ApiError, match="401"):
            await run(tmp_path, flux, requests(1))
        [line] = lines(tmp_path)
        assert (line["state"], line["error"]["code"]) == ("submitted", 401)
        emulator.clear_faults()
        [outcome] = await run(tmp_path, flux, requests(1))
        assert (outcome.download, outcome.error) == ("saved", None)
        assert len(emulator.ledger.requests) == 1


async def test_a_folder_that_cannot_be_written_any_more_stops_it(tmp_path: Path) -> None:
    """When pictures can no longer be saved nothing more is sent."""
    async with emulated(Script(plans=Plan(duration=5.0)), rate_limit=RateLimit(1, 10.0)) as (flux, emulator):
        running = asyncio.create_task(run(tmp_path, flux, requests(5)))
        await until(lambda: emulator.ledger.accepted)
        images = tmp_path / "results" / "images"
        images.rmdir()
        images.write_text("in the way")
        with pytest.raises(InvalidRequestError, match="cannot be written"):
            await running
        assert len(emulator.ledger.requests) == 1
        images.unlink()
        assert len(await run(tmp_path, flux, requests(5))) == 5
        assert len(emulator.ledger.requests) == 5


async def test_a_link_that_may_be_renewed_later_is_not_given_up(tmp_path: Path) -> None:
    """While the service cannot be asked for a new link the picture is pending, not expired."""
    async with emulated(Script(result_life=3600.0)) as (flux, emulator):
        await run(tmp_path, flux, requests(1), download=False)
        await asyncio.sleep(8000)
        emulator.inject(Fault("download-url", "refuse", code=455, times=50))
        [outcome] = await run(tmp_path, flux, requests(1))
        assert outcome.download == "pending"
        emulator.clear_faults()
        [outcome] = await run(tmp_path, flux, requests(1))
        assert outcome.download == "saved"


async def test_a_picture_that_takes_long_to_save_is_saved_once(tmp_path: Path) -> None:
    """What the last run left at the service and this one is still saving is not taken for a file that is missing."""
    script = Script(plans=[Plan(duration=1.0), Plan(duration=3.0), Plan(duration=3.0)])
    async with emulated(script) as (flux, emulator):
        batch = batch_in(tmp_path, flux, requests(3))
        running = asyncio.create_task(collect(batch))
        await until(lambda: len(emulator.ledger.accepted) == 3)
        await batch.aclose()
        await running
        emulator.inject(Fault("file", "hang", task=0))
        outcomes = await run(tmp_path, flux, requests(3), max_running=2)
        assert sorted(str(outcome.task_id) for outcome in outcomes) == sorted(emulator.ledger.accepted)
        assert [outcome.download for outcome in outcomes] == ["saved"] * 3


@pytest.mark.parametrize("code", [408, 451, 501])
async def test_a_gateways_code_does_not_pay_again(tmp_path: Path, code: int) -> None:
    """A look that a gateway answers by a code that would end the task leaves nothing for `retry_failed` to send."""
    script = Script(error_style="http", faults=[Fault("recordInfo", "refuse", code=code, times=3)])
    async with emulated(script) as (flux, emulator):
        outcomes = await run(tmp_path, flux, requests(2))
        await run(tmp_path, flux, requests(2), retry_failed=True)

        assert [outcome.state for outcome in outcomes] == [State.DONE] * 2
        assert len(emulator.ledger.requests) == 2


async def test_a_task_that_never_ends_is_left_to_the_next_run(tmp_path: Path) -> None:
    """After `task_timeout` it is submitted and not failed, makes room for others, and is paid once."""
    script = Script(plans=[Plan(duration=1000.0), Plan(duration=2.0)])
    async with emulated(script, max_running=1, polling=Polling(interval=5.0)) as (flux, emulator):
        first = await run(tmp_path, flux, requests(3), task_timeout=60)
        again = await run(tmp_path, flux, requests(3), task_timeout=60, retry_failed=True)
        last = await run(tmp_path, flux, requests(3))

        assert sorted(outcome.state for outcome in first) == [State.DONE, State.DONE, State.SUBMITTED]
        [error] = [outcome.error for outcome in first if outcome.error]
        assert (error.type, "after task_timeout=60 s" in error.message) == ("TaskTimeoutError", True)
        assert "give_up_after" not in error.message
        assert [outcome.state for outcome in [*again, *last]] == [State.SUBMITTED, State.DONE]
        assert len(emulator.ledger.requests) == 3


async def test_a_batch_may_wait_for_longer_than_its_session(tmp_path: Path) -> None:
    """`task_timeout` stands for the session's own bound, also where it is longer."""
    async with emulated(Script(plans=Plan(duration=150.0)), polling=Polling(interval=1.0, give_up_after=60.0)) as (
        flux,
        _,
    ):
        [outcome] = await run(tmp_path, flux, requests(1), task_timeout=300)

        assert outcome.state is State.DONE


async def test_groups_and_metadata_survive_a_restart(tmp_path: Path) -> None:
    """A list's column `group` and all it does not know go with tasks and events, in the next run too, and are shown."""
    table = tmp_path / "list.csv"
    table.write_text("id,prompt,group,order\na,a kettle,alice,1\nb,a cup,bob,2\nc,a lake,,3\n")
    script = Script(plans=Plan(duration=20.0))
    seen: list[SessionEvent] = []
    async with emulated(script, rate_limit=RateLimit(2, 5.0)) as (flux, emulator):
        flux.observe(seen.append)
        batch = batch_in(tmp_path, flux, read_jobs(table), group="night")
        following = asyncio.create_task(collect(batch))
        await until(lambda: len(emulator.ledger.accepted) == 2)
        await batch.aclose()
        await following
        await flux.aclose()
        async with session_for(emulator) as later:
            later.observe(seen.append)
            outcomes = await run(tmp_path, later, read_jobs(table), group="night")

    expected = {"a": ("alice", "1"), "b": ("bob", "2"), "c": ("night", "3")}
    told = {
        (kind, event.group, (event.metadata or {}).get("order"))
        for event in seen
        for kind in (Queued, Settled)
        if isinstance(event, kind) and not isinstance(getattr(event, "error", None), SessionClosedError)
    }
    assert told == {(kind, *each) for kind in (Queued, Settled) for each in expected.values()}
    assert {outcome.id: outcome.group for outcome in outcomes} == {"a": "alice", "b": "bob", "c": None}
    assert [(line["group"], line["extra"]) for line in lines(tmp_path)] == [
        ("alice", {"group": "alice", "order": "1"}),
        ("bob", {"group": "bob", "order": "2"}),
        (None, {"order": "3"}),
    ]
    assert ["group", "bob"] in page_row(next(each for each in outcomes if each.id == "b"), [], [])["extra"]


@pytest.mark.parametrize(
    ("extra", "group"), [({"group": 7}, "7"), ({"group": True}, None), ({"group": ["a"]}, None), ({"group": ""}, None)]
)
def test_which_columns_are_groups(extra: dict[str, Any], group: str | None) -> None:
    """Text and whole numbers are; what else stands there is kept all the same."""
    job = Job(REQUEST, extra=extra)

    assert (job.group, job.extra) == (group, extra)
    assert Job(REQUEST, group="mine", extra=extra).extra == {"group": "mine"}
    with pytest.raises(InvalidRequestError, match="group: "):
        Job(REQUEST, group="")
