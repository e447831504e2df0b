"""`flux2 report`: the page of a batch, as a file or served while the batch runs."""

from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread

from flux2_async.batch import Journal, JournalError, Outcome
from flux2_async.batch.report import serve_report, write_report
from flux2_async.batch.report.following import Following
from flux2_async.batch.results import RESULTS, write_results
from flux2_async.cli.screen import Screen, UsageError, counted
from flux2_async.cli.serve import check_port, interrupted, listening


async def report(screen: Screen, folder: Path, title: str) -> None:
    """Write the page; UsageError: there is no batch in the folder."""
    _check_folder(folder)
    await _bring_up_to_date(folder)
    outcomes, total = await anyio.to_thread.run_sync(_outcomes, folder)
    if not outcomes:
        raise UsageError(f"{str(folder)!r} has no {RESULTS}; name the folder that flux2 batch was given as --out")
    written = await anyio.to_thread.run_sync(
        lambda: write_report(outcomes, folder, title=title), abandon_on_cancel=True
    )
    screen.result(str(folder / written.name))
    others = f" of {total}, the rest was not sent yet" if total > len(outcomes) else ""
    screen.note(f"{counted(len(outcomes), 'request')}{others}; --serve shows them while a batch runs", "dim")
    screen.document({"report": str(folder / written.name), "requests": len(outcomes)})


async def serve(screen: Screen, folder: Path, title: str, host: str, port: int) -> int:
    """Serve the page until it is interrupted, and give 0."""
    check_port(port)
    _check_folder(folder)
    await _bring_up_to_date(folder)
    async with listening(serve_report(folder, host=host, port=port, title=title), host, port) as address:
        screen.note("The report is at the address below, and its rows arrive there; Ctrl-C ends it.", "dim")
        screen.result(address)
        screen.document({"address": address})
        await interrupted(screen)
        screen.note("stopped")
    return 0


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"there is no folder {str(folder)!r}; name the one that flux2 batch was given as --out")


async def _bring_up_to_date(folder: Path) -> None:
    """Write what a run that was killed could not: its journal, whose log lies beside it, knows all of its requests."""
    for path in await anyio.to_thread.run_sync(_left_behind, folder):
        # One that runs, or is none of ours, is left alone.
        with suppress(JournalError):
            async with Journal(path) as journal:
                await write_results(journal, folder)
            return


def _left_behind(folder: Path) -> list[Path]:
    """Give the journals with a log that is not older than `results.jsonl`, the last one that was written first."""
    written = _written_at(folder / RESULTS)
    logs = {log: at for log in folder.glob("*.db-wal") if (at := _written_at(log)) >= written}
    paths = [log.with_suffix(".db") for log in sorted(logs, key=logs.__getitem__, reverse=True)]
    # Where somebody has moved the journal, a new one would take its place, and the log with it.
    return [path for path in paths if path.is_file()]


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _outcomes(folder: Path) -> tuple[list[Outcome], int]:
    """Give what is told of the batch in the folder, and how many requests it has."""
    following = Following(folder)
    following.news()
    outcomes = sorted(following.outcomes.values(), key=lambda outcome: outcome.line)
    return outcomes, following.total or len(outcomes)
