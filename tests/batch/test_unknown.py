"""Requests that may have been accepted, and a person who says what became of them."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from batches import batch_in, prompts, requests, run
from emulated import session_for

from flux2_async.batch import Job, Journal, JournalError, Outcome, State, estimate_batch, run_batch
from flux2_async.batch.journal.start import Work
from flux2_async.batch.options import Options
from flux2_async.cli.screen import Screen
from flux2_async.cli.unknown import Decisions, unknown
from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.errors import InvalidRequestError

QUICK = Plan(duration=0.1)


def named(number: int) -> list[Job]:
    return [Job(request, id=f"shot-{index}") for index, request in enumerate(requests(number))]


def script(*faults: Fault) -> Script:
    return Script(plans=QUICK, faults=list(faults), render=False)


async def with_unknown(folder: Path, emulator: Emulator, number: int = 1) -> dict[str, Outcome]:
    """Run a batch whose first createTask loses its reply; gives what the journal says."""
    async with session_for(emulator) as flux:
        await run(folder, flux, named(number))
    async with Journal(folder / "run.db") as journal:
        return {outcome.id: outcome async for outcome in journal.outcomes()}


async def resolved(folder: Path, found: Mapping[str, str] | None = None, never_made: tuple[str, ...] = ()) -> None:
    async with Journal(folder / "run.db") as journal:
        await journal.resolve_unknown(found=found, never_made=never_made)


async def states(folder: Path) -> dict[str, str]:
    async with Journal(folder / "run.db") as journal:
        return {outcome.id: outcome.state async for outcome in journal.outcomes()}


async def test_a_task_that_is_named_is_downloaded_and_not_paid_again(tmp_path: Path) -> None:
    """The reply was lost, its id was found in the account's log: the next run saves its picture."""
    async with Emulator(script(Fault("createTask", "cut_after"))) as emulator:
        before = await with_unknown(tmp_path, emulator)
        assert before["shot-0"].state is State.UNKNOWN
        async with Journal(tmp_path / "run.db") as journal:
            [request] = await journal.unknown()
            assert (request.outcome, request.outcome.prompt) == (before["shot-0"], "number 0")
            assert request.sent_at is not None
            [now] = await journal.resolve_unknown(found={"shot-0": emulator.ledger.accepted[0]})
            assert (now.state, now.submitted_at, now.error) == (State.SUBMITTED, request.sent_at, None)
            assert await journal.unknown() == []
        async with session_for(emulator) as flux:
            [outcome] = await run(tmp_path, flux, named(1))

        assert (outcome.state, outcome.task_id, len(outcome.files)) == (State.DONE, emulator.ledger.accepted[0], 1)
        assert len(emulator.ledger.requests) == 1


async def test_what_was_never_made_is_sent_again(tmp_path: Path) -> None:
    """It is paid once, and a cap of credits does not count it twice."""
    async with Emulator(script(Fault("createTask", "cut_before"))) as emulator:
        await with_unknown(tmp_path, emulator)
        await resolved(tmp_path, never_made=("shot-0",))
        async with session_for(emulator) as flux:
            batch = batch_in(tmp_path, flux, named(1), max_credits=24.0)
            [outcome] = [outcome async for outcome in batch]

        assert outcome.state is State.DONE
        assert len(emulator.ledger.accepted) == 1
        assert batch.progress is not None
        assert (batch.progress.spent, batch.progress.reserved) == (emulator.ledger.charged, 0)


async def test_later_stays(tmp_path: Path) -> None:
    """What nobody decides is not sent again, however often the batch runs."""
    async with Emulator(script(Fault("createTask", "cut_after"))) as emulator:
        await with_unknown(tmp_path, emulator, 3)
        await resolved(tmp_path)
        async with session_for(emulator) as flux:
            await run(tmp_path, flux, named(3))

        assert await states(tmp_path) == {"shot-0": "unknown", "shot-1": "done", "shot-2": "done"}
        assert prompts(emulator.ledger.requests).count("number 0") == 1


async def test_an_id_that_the_service_does_not_know_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped id: the next run says so, the request is unknown as before, and can be decided again."""
    async with Emulator(script(Fault("createTask", "cut_after"))) as emulator:
        await with_unknown(tmp_path, emulator)
        await resolved(tmp_path, {"shot-0": "0" * 32})
        async with session_for(emulator) as flux:
            [outcome] = await run(tmp_path, flux, named(1))
        assert (outcome.state, outcome.task_id) == (State.UNKNOWN, "0" * 32)
        assert outcome.error is not None
        assert outcome.error.type == "TaskNotFoundError"
        # A list of decisions that nobody has written anything into decides nothing.
        screen, journal = Screen(machine=True), tmp_path / "run.db"
        assert await unknown(screen, journal, Decisions(), ask=False) == 1
        [listed] = json.loads(capsys.readouterr().out)["unknown"]
        assert (listed["task_id"], listed["task_not_found"]) == (None, "0" * 32)
        decisions = tmp_path / "decisions.jsonl"
        decisions.write_text(json.dumps(listed))
        assert await unknown(screen, journal, Decisions(file=decisions), ask=False) == 1
        assert await states(tmp_path) == {"shot-0": "unknown"}
        await resolved(tmp_path, {"shot-0": emulator.ledger.accepted[0]})
        async with session_for(emulator) as flux:
            [outcome] = await run(tmp_path, flux, named(1))
        assert outcome.state is State.DONE
        assert len(emulator.ledger.requests) == 1


@pytest.mark.parametrize("never_made", [["shot-0"], "shot-0"])
async def test_what_was_being_sent_when_the_process_died_is_unknown(
    tmp_path: Path, never_made: list[str] | str
) -> None:
    """It is listed and decided before the next run has looked at it; a single text is one id."""
    async with Journal(tmp_path / "run.db") as journal:
        await journal.enter(named(1), Options())
        await journal.begin(Options())
        [row] = await journal.take(Work.QUEUED, None, 10)
        await journal.sending(row, "f00")
    async with Journal(tmp_path / "run.db") as journal:
        [request] = await journal.unknown()
        assert (request.outcome.state, request.outcome.ref) == (State.SUBMITTING, "f00")
        [now] = await journal.resolve_unknown(never_made=never_made)
        assert (now.state, now.ref) == (State.QUEUED, None)


@pytest.mark.parametrize(
    ("found", "never_made", "words"),
    [
        ({"shot-9": "f00"}, (), "no request of the journal has the id 'shot-9'"),
        ({}, ("shot-9",), "no request of the journal has the id 'shot-9'"),
        ({"shot-2": "f00"}, (), "request 'shot-2' .line 3. is done, and only unknown ones are decided"),
        ({}, ("shot-2",), "request 'shot-2' .line 3. is done, and only unknown ones are decided"),
        ({"shot-0": " ", "shot-1": "f00"}, ("shot-2",), "shot-0' .line 1.: task_id: .*; request 'shot-2' .line 3. is"),
        ({"shot-0": "f00", "shot-1": "f00"}, (), "request 'shot-0' .line 1. is given task 'f00', as is 'shot-1'"),
        ({"shot-0": "f00"}, ("shot-0",), "request 'shot-0' .line 1. is given a task and said to be never made"),
        ({"shot-0": "f00", "shot-1": "a b"}, (), "request 'shot-1' .line 2.: task_id: 'a b' given, it must be the"),
        ({"shot-0": ""}, (), "request 'shot-0' .line 1.: task_id: '' given"),
        (
            {"shot-0": "f00", "shot-1": "TAKEN"},
            (),
            "'shot-1' .line 2. is given task '.*', as is 'shot-2'; a task",
        ),
    ],
)
async def test_what_does_not_fit_changes_nothing(
    tmp_path: Path, found: dict[str, str], never_made: tuple[str, ...], words: str
) -> None:
    """One decision that cannot be followed, and none is: an id nobody has, a task of another request, two answers."""
    async with Emulator(script(Fault("createTask", "cut_after", 2))) as emulator:
        before = await with_unknown(tmp_path, emulator, 3)
        taken = before["shot-2"].task_id or ""
        given = {name: taken if task_id == "TAKEN" else task_id for name, task_id in found.items()}
        with pytest.raises(InvalidRequestError, match=words):
            await resolved(tmp_path, given, never_made)
        assert await states(tmp_path) == {"shot-0": "unknown", "shot-1": "unknown", "shot-2": "done"}


async def test_nothing_is_decided_while_a_batch_runs(tmp_path: Path) -> None:
    """Neither by another process, which the file is locked for, nor beside a batch of this one."""
    async with Emulator(Script(plans=Plan(duration=5.0), render=False)) as emulator, session_for(emulator) as flux:
        async with Journal(tmp_path / "run.db") as journal:
            async for _ in run_batch(flux, named(2), journal=journal, directory=tmp_path):
                with pytest.raises(JournalError, match="a batch is running with"):
                    await journal.unknown()
                with pytest.raises(JournalError, match="a batch is running with"):
                    await journal.resolve_unknown(never_made=["shot-0"])
                with pytest.raises(JournalError, match="a batch is running with"):
                    await estimate_batch(named(2), journal=journal)
                with pytest.raises(JournalError, match="a batch is running with"):
                    await anext(aiter(run_batch(flux, named(2), journal=journal, directory=tmp_path / "other")))
                with pytest.raises(JournalError, match="is being used by another process"):
                    await resolved(tmp_path, never_made=("shot-0",))
            assert await journal.unknown() == []


async def test_a_decision_is_whole_when_the_journal_is_opened_again(tmp_path: Path) -> None:
    """Rows carry a check, which a decision keeps right; opening looks at all of them."""
    async with Emulator(script(Fault("createTask", "cut_after", 2))) as emulator:
        await with_unknown(tmp_path, emulator, 2)
    await resolved(tmp_path, {"shot-0": "f00"}, ("shot-1",))
    assert await states(tmp_path) == {"shot-0": "submitted", "shot-1": "queued"}
