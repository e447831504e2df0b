"""`flux2 demo`: the main job end to end on the embedded emulator, with pictures to look at."""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import NoneType
from typing import Any

import anyio.to_thread
import attrs
from PIL import Image
from rich.table import Table
from rich.text import Text

from flux2_async._http.atomic_file import replacing
from flux2_async.cli.board import Board, Row, told_left
from flux2_async.cli.options import Target, check_writable
from flux2_async.cli.run import followed
from flux2_async.cli.save import save
from flux2_async.cli.screen import INTERRUPTED, CommandError, Screen, error_document
from flux2_async.cli.script import PHOTOS, WISHES, Wish, demo_script
from flux2_async.cli.service import LIMIT, emulated
from flux2_async.cli.sheet import draw_card, draw_sheet
from flux2_async.emulator import Emulator
from flux2_async.errors import ContentModeratedError, Flux2Error
from flux2_async.models import RateLimit, TaskRecord, UploadedFile
from flux2_async.models.events import SessionEvent, SubmissionChanged
from flux2_async.models.submission_state import SubmissionEvent
from flux2_async.session.session import Flux2Session
from flux2_async.tasks.handle import ImageTask

SHEET = "contact-sheet.png"
REFUSED = "refused by 429, waits"
ROOMY = 80


@attrs.define(eq=False)
class Show:
    """One request of the demo on its way, and what became of it.

    Attributes:
        sends: How often createTask was called for it.
        refused_at: When a 429 came, or None.
        waited: Seconds from the 429 to the next try.
        task: Once it is accepted, or None.
        card: Its part of the contact sheet, once it has ended.
    """

    number: int
    wish: Wish
    row: Row
    sends: int = 0
    refused_at: datetime | None = None
    waited: float = 0.0
    task: ImageTask | None = None
    record: TaskRecord | None = None
    picture: Path | None = None
    card: Image.Image | None = None
    error: Flux2Error | OSError | None = None

    @property
    def note(self) -> str:
        """What is worth telling besides the outcome."""
        return f"429 first, waited {self.waited:.1f} s" if self.sends > 1 else ""

    @property
    def credits(self) -> float:
        """What it cost."""
        return (self.record and self.record.credits_consumed) or 0.0


async def demo(screen: Screen, out: Path, limit: RateLimit | None) -> None:
    """Run the demo; `out` is made when it is missing. CommandError: something went wrong that is no part of it."""
    check_writable(out, "--out: {!r} cannot be written ({}); give another folder", make=True)
    begun = time.monotonic()
    shows = [Show(n, wish, Row(f"{n:>2} {wish.prompt}", wish.facts)) for n, wish in enumerate(WISHES, start=1)]
    async with Emulator(demo_script(LIMIT)) as emulator, emulated(emulator, limit) as flux:
        try:
            await _perform(screen, emulator.base_url, flux, shows, out)
        except asyncio.CancelledError:
            await anyio.to_thread.run_sync(draw_result, shows, out / SHEET, time.monotonic() - begun)
            screen.result(f"Contact sheet: {out / SHEET}")
            raise CommandError("interrupted; the emulated service ended with its tasks", code=INTERRUPTED) from None
    seconds = time.monotonic() - begun
    sheet = out / SHEET
    await anyio.to_thread.run_sync(draw_result, shows, sheet, seconds)
    _tell(screen, shows, sheet, seconds)
    unplanned = [s for s in shows if type(s.error) is not (ContentModeratedError if s.wish.moderated else NoneType)]
    if unplanned:
        first = unplanned[0].error or "no moderation"
        raise CommandError(f"{len(unplanned)} of {len(shows)} requests ended otherwise than planned: {first}")


async def _perform(screen: Screen, address: str, flux: Flux2Session, shows: Sequence[Show], out: Path) -> None:
    def footer() -> str:
        done = sum(show.row.ended is not None for show in shows)
        running = f"{flux.statistics().running} running{told_left(flux.remaining())}"
        return f" {done} of {len(shows)} finished, {running}; emulated, so it costs nothing"

    with Board(screen, [show.row for show in shows], footer) as board:
        by_prompt = {show.wish.prompt: show for show in shows}
        flux.observe(lambda event: _hear(event, by_prompt, board))
        board.log(f"emulator at {address}")
        names = sorted(PHOTOS)
        uploaded = dict(zip(names, await asyncio.gather(*(flux.upload(PHOTOS[name]) for name in names)), strict=True))
        for name, file in uploaded.items():
            board.log(f"uploaded {PHOTOS[name].name}, {file.size:,} bytes")
        async with asyncio.TaskGroup() as plays:
            for show in shows:
                plays.create_task(_play(flux, show, uploaded, board, out))


def _hear(event: SessionEvent, shows: Mapping[str, Show], board: Board) -> None:
    """Tell of each 429 when it comes: the session itself just waits and tries again."""
    if not isinstance(event, SubmissionChanged):
        return
    show = shows[event.request.prompt]
    if event.event is SubmissionEvent.THROTTLED:
        show.refused_at = event.time
        board.change(show.row, REFUSED)
    elif event.event is SubmissionEvent.POSTED:
        show.sends += 1
        show.waited = (event.time - show.refused_at).total_seconds() if show.refused_at else 0.0
        board.change(show.row, "sending")


async def _play(flux: Flux2Session, show: Show, uploaded: Mapping[str, UploadedFile], board: Board, out: Path) -> None:
    try:
        show.task = await flux.submit(show.wish.request(uploaded))
        board.change(show.row, "accepted")
        result = await followed(show.task, board, show.row, None)
        show.record = result.record
        board.change(show.row, "downloading")
        words = re.findall(r"[a-z0-9]+", show.wish.prompt.lower())
        # A name that the next run uses again.
        [show.picture] = await save(flux, result, Target(out, f"{show.number:02}-{'-'.join(words[:6])}.jpg"))
        board.change(show.row, "done", ended=True)
    except (Flux2Error, OSError) as error:
        show.error = error
        show.record = getattr(error, "record", None)
        moderated = isinstance(error, ContentModeratedError)
        board.change(show.row, "moderated" if moderated else "failed", ended=True)
    # While others still run: nobody has to wait for the whole sheet at the end.
    show.card = await anyio.to_thread.run_sync(_card, show)


def _card(show: Show) -> Image.Image:
    ended = show.picture or show.error
    return draw_card(
        show.wish.prompt,
        [PHOTOS[name] for name in show.wish.photos],
        show.picture,
        running="" if ended else "Being made" if show.task else "Waiting",
        reason=_reason(show),
        facts=show.wish.long_facts,
        figures=f"{show.row.seconds or 0.0:.1f} s · {show.credits:g} credits",
        note=show.note,
    )


def draw_result(shows: Sequence[Show], path: Path, seconds: float) -> None:
    """Draw the contact sheet; blocks."""
    sheet = draw_sheet(
        [show.card or _card(show) for show in shows],
        title="flux2 demo",
        subtitle=_summary(shows, seconds),
        remark="Drawn by the embedded emulator, not by a model",
    )
    with replacing(path, durable=False) as file:
        sheet.save(file, "PNG", compress_level=1)


def _reason(show: Show) -> str:
    if isinstance(show.error, ContentModeratedError):
        return f"Moderation refused it, as the demo wanted, at no charge: {show.error.fail_message}"
    if show.error or show.task is None:
        return str(show.error or "It was not sent yet.")
    expected = show.task.expectation()
    end = datetime.now().astimezone() + timedelta(seconds=expected.remaining or 0.0)
    return f"{expected.elapsed or 0.0:.1f} s so far; it was expected at {end:%H:%M:%S %Z}."


def _summary(shows: Sequence[Show], seconds: float) -> str:
    pictures = sum(show.picture is not None for show in shows)
    moderated = sum(isinstance(show.error, ContentModeratedError) for show in shows)
    total = sum(show.credits for show in shows)
    return f"{len(shows)} requests · {pictures} pictures · {moderated} moderated · {seconds:.1f} s · {total:g} credits"


def _tell(screen: Screen, shows: Sequence[Show], sheet: Path, seconds: float) -> None:
    # How it was asked for matters less than what it cost.
    roomy = screen.out.width >= ROOMY
    taken = 2 + (17 + 2 if roomy else 0) + 9 + 6 + 7 + 5 * 2
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("", justify="right", min_width=2)
    table.add_column("request", no_wrap=True, max_width=max(10, screen.out.width - taken))
    if roomy:
        table.add_column("as", no_wrap=True, style="dim", min_width=17)
    table.add_column("outcome", no_wrap=True, min_width=9)
    table.add_column("time", justify="right", no_wrap=True, min_width=6)
    table.add_column("credits", justify="right", no_wrap=True, min_width=7)
    for show in shows:
        outcome = Text("picture", "green") if show.picture else Text(show.row.state, "red")
        took = f"{show.row.seconds or 0.0:.1f} s"
        facts = [show.wish.facts] if roomy else []
        table.add_row(str(show.number), show.wish.prompt, *facts, outcome, took, f"{show.credits:g}")
    screen.result(table)
    screen.result(f"\n{_summary(shows, seconds)}")
    for show in shows:
        if isinstance(show.error, ContentModeratedError):
            screen.result(f"Request {show.number} was refused by moderation, as the demo wanted; that costs nothing.")
        if show.sends > 1:
            refused = f"was refused by 429 at first, waited {show.waited:.1f} s and was paid once"
            screen.result(f"Request {show.number}, as the demo wanted, {refused}.")
    screen.result(f"Contact sheet: {sheet}")
    screen.document({"tasks": [_document(show) for show in shows], "seconds": seconds, "contact_sheet": str(sheet)})


def _document(show: Show) -> dict[str, Any]:
    return {
        "task_id": show.record and show.record.task_id,
        "prompt": show.wish.prompt,
        "model": f"flux-2/{show.wish.tier}-{'image' if show.wish.photos else 'text'}-to-image",
        "aspect_ratio": show.wish.aspect_ratio,
        "resolution": show.wish.resolution,
        "images": [PHOTOS[name].name for name in show.wish.photos],
        "sends": show.sends,
        "seconds": show.row.seconds,
        "credits_consumed": show.credits,
        "file": show.picture and str(show.picture),
        "error": show.error and error_document(show.error),
    }
