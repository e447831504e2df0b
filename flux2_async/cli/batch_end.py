"""What is told when a batch has ended, whichever way."""

import re
import shlex
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
import attrs

from flux2_async.batch import Journal, JournalError, Outcome, Progress, State
from flux2_async.batch.report import write_report
from flux2_async.batch.results import CHANGES, RESULTS, read_results
from flux2_async.cli.screen import Screen, counted, error_document, with_options

LISTED: Final = 10
CAP: Final = re.compile(r"--max-credits[ =]\S+")


@attrs.define(kw_only=True)
class End:
    """How a batch ended: how far it came, what or whether somebody stopped it, the account's balances where it told.

    `skipped` are the lines that could not be used, `again` is the command that goes on with it, `report` the page.
    """

    progress: Progress
    folder: Path
    failure: Exception | None
    interrupted: bool
    skipped: int
    downloading: bool
    balance_before: float | None
    balance_after: float | None = None
    again: str = ""
    log: str = ""
    report: Path | None = None

    @property
    def left(self) -> int:
        """Requests that the next run goes on with by itself."""
        progress = self.progress
        waiting = progress.queued + progress.sending + progress.running
        return waiting + (progress.not_downloaded if self.downloading else 0)

    @property
    def results(self) -> Path | None:
        """The file of all requests; None where it could not be written, or is one from before this run."""
        written = (self.folder / RESULTS).is_file() and not (self.folder / CHANGES).exists()
        return self.folder / RESULTS if written else None

    @property
    def resumable(self) -> bool:
        """Whether the same command goes on with it; where its journal is gone it would pay again."""
        return not isinstance(self.failure, JournalError)

    @property
    def complete(self) -> bool:
        """Whether every request has its picture."""
        progress = self.progress
        missing = progress.failed + progress.unknown + progress.expired + self.skipped
        return not (self.left or missing or self.failure)


async def report(folder: Path) -> Path:
    """Write the page to look at; OSError: it cannot be written."""
    written = await anyio.to_thread.run_sync(write_report, read_results(folder), folder, abandon_on_cancel=True)
    return folder / written.name


async def tell_end(screen: Screen, journal: Journal, end: End) -> None:
    """Tell people and machines how a batch ended, and what to type next."""
    unknown = [outcome async for outcome in journal.outcomes(state=State.UNKNOWN)] if end.progress.unknown else []
    screen.result(_summary(end))
    for outcome in unknown[:LISTED]:
        screen.note(f"unknown: line {outcome.line} ({outcome.id}), submission {outcome.ref}", "yellow")
    if len(unknown) > LISTED:
        screen.note(f"unknown: {len(unknown) - LISTED} more", "yellow")
    for words in _advice(end, journal.path):
        screen.note(words)
    if end.failure is not None:
        notes = "; ".join(getattr(end.failure, "__notes__", []))
        screen.complain(end.failure, "; ".join(filter(None, (notes, f"go on with: {end.again}" * end.resumable))))
    elif end.interrupted:
        screen.complain("interrupted", f"go on with: {end.again}" if end.left else "")
    screen.document(_document(end, unknown))


def _summary(end: End) -> str:
    progress = end.progress
    parts = [counted(progress.total, "request"), f"{progress.done} done"]
    counts = {
        "not downloaded": progress.not_downloaded if end.downloading else 0,
        "no longer available": progress.expired,
        "failed": progress.failed,
        "unknown": progress.unknown,
        "at the service": progress.running + progress.sending,
        "queued": progress.queued,
        "skipped": end.skipped,
    }
    parts += [f"{count} {what}" for what, count in counts.items() if count]
    files = {"Results": end.results, "Report": end.report}
    return "\n".join([" · ".join(parts), _money(end), *(f"{name}: {file}" for name, file in files.items() if file)])


def _money(end: End) -> str:
    spent, before = end.progress.spent, end.progress.spent_before
    words = f"{spent:.10g} credits" + f" in all runs, {spent - before:.10g} of them in this one" * bool(before)
    if end.progress.reserved:
        parts = {"running": end.progress.running + end.progress.sending, "unknown": end.progress.unknown}
        told = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
        words += f", and perhaps {end.progress.reserved:.10g} more that no record has told" + f" ({told})" * bool(told)
    if end.balance_before is not None and end.balance_after is not None:
        words += f" · balance {end.balance_before:.10g} before, {end.balance_after:.10g} now"
    return words


def _advice(end: End, journal: Path) -> list[str]:
    progress = end.progress
    found = []
    if "=" in (progress.stopped or ""):
        found.append(f"Stopped by {with_options(progress.stopped or '')}.")
    if progress.unknown:
        command = ["flux2", "unknown", str(end.folder)]
        command += [] if journal == end.folder / "run.db" else ["--journal", str(journal)]
        found.append(
            f"Unknown requests may have been paid: check {end.log}, and say what became of each "
            f"with: {shlex.join(command)}. --retry-unknown sends all of them again, which may pay twice."
        )
    if progress.failed:
        found.append("--retry-failed sends again what failed.")
    if end.left and not end.interrupted and end.failure is None:
        option = (progress.stopped or "").partition("=")[0]
        if option == "max_credits":
            # The same amount would stop it again at once; without one it would cost whatever it costs.
            found.append(f"Raise --max-credits and go on with: {CAP.sub('--max-credits MORE', end.again)}")
        elif option == "max_failed":
            found.append(f"Look at what failed, correct the prompts, and go on with: {end.again}")
        else:
            # So many tasks are meant for each run.
            found.append(f"Go on with: {end.again}")
    return found


def _document(end: End, unknown: list[Outcome]) -> dict[str, Any]:
    progress = end.progress
    of_progress = ("total", "done", "failed", "unknown", "queued", "not_downloaded", "expired", "stopped")
    of_end = ("skipped", "balance_before", "balance_after", "interrupted", "complete")
    return {
        **{name: getattr(progress, name) for name in of_progress},
        **{name: getattr(end, name) for name in of_end},
        "running": progress.running + progress.sending,
        "credits": progress.spent,
        "credits_before": progress.spent_before,
        "credits_reserved": progress.reserved,
        "results": end.results and str(end.results),
        "report": end.report and str(end.report),
        "unknown_ids": [outcome.id for outcome in unknown],
        "again": end.again if end.resumable and not end.complete else None,
        "error": end.failure and error_document(end.failure),
    }
