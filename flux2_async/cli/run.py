"""One task from the request to the file, and the look at a task that was made earlier."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from flux2_async.cli.board import Board, Row
from flux2_async.cli.options import Service, Target
from flux2_async.cli.save import save
from flux2_async.cli.screen import Screen
from flux2_async.cli.service import opened, real
from flux2_async.errors import (
    AmbiguousSubmitError,
    EmptyResultError,
    Flux2Error,
    TaskFailedError,
    TaskNotFoundError,
)
from flux2_async.models import ImageResult, RateLimit, Request, TaskRecord
from flux2_async.session import Flux2Session
from flux2_async.tasks import ImageTask

__all__ = ["CommandFailed", "followed", "look", "make", "record_document", "resume"]

INTERRUPTED = 130


class CommandFailed(Exception):
    """A command came to its end without what it was called for.

    Attributes:
        error: What went wrong, an exception or words.
        hint: What to do about it; empty for nothing beyond what the error says.
        code: The exit code.
    """

    def __init__(self, error: BaseException | str, hint: str = "", code: int = 1) -> None:
        super().__init__(str(error))
        self.error = error
        self.hint = hint
        self.code = code


@attrs.define
class Job:
    """What is known of the one task of a command, for the words at its end."""

    screen: Screen
    target: Target
    lasting: bool = True
    output: str | None = None
    task_id: str | None = None

    def how_to_go_on(self) -> str:
        """Give the command that goes on with the task."""
        if self.task_id is None or not self.lasting:
            return ""
        output = f" -o {self.output}" if self.output else ""
        return f"flux2 status {self.task_id} --wait{output}"


async def make(
    screen: Screen,
    request: Request,
    service: Service,
    limit: RateLimit | None,
    *,
    output: str | None,
    timeout: float,
) -> None:
    """Submit a request, wait for its picture and save it.

    Raises:
        CommandFailed: There is no picture.
        UsageError: It cannot be written; nothing was sent.
    """
    job = Job(screen, Target.parse(output), lasting=not service.emulate, output=output)
    row = Row("request")
    async with opened(service, limit) as flux:
        with Board(screen, [row]) as board:
            async with _ends_told(flux, job):
                task = await _submitted(flux, request, board, row, timeout)
                job.task_id = task.id
                result, files = await _finished(flux, task, board, row, job, timeout)
    _tell(screen, result, files)


async def resume(screen: Screen, task_id: str, *, output: str | None, timeout: float) -> None:
    """Wait for a task that was made earlier, and save its picture.

    Raises:
        CommandFailed: There is no picture.
        UsageError: It cannot be written.
    """
    job = Job(screen, Target.parse(output), output=output)
    row = Row(f"task {task_id}")
    async with real() as flux:
        task = flux.attach(task_id)
        job.task_id = task.id
        with Board(screen, [row]) as board:
            async with _ends_told(flux, job):
                result, files = await _finished(flux, task, board, row, job, timeout)
    _tell(screen, result, files)


async def look(screen: Screen, task_id: str) -> bool:
    """Show a task's record.

    Returns:
        Whether it has not failed.
    """
    async with real() as flux:
        record = await flux.fetch_record(task_id)
    screen.document(record_document(record))
    facts = {
        "task": record.task_id,
        "state": record.state_text,
        "model": record.model,
        "created": record.create_time and f"{record.create_time.astimezone():%Y-%m-%d %H:%M:%S}",
        "took": None if record.duration is None else f"{record.duration:.1f} s",
        "credits": None if record.credits_consumed is None else f"{record.credits_consumed:g}",
        "failure": " ".join(filter(None, (record.fail_code, record.fail_message))) or None,
    }
    lines = [f"{name:<8} {value}" for name, value in facts.items() if value is not None]
    lines += [f"{'picture':<8} {url}" for url in record.result_urls]
    screen.result("\n".join(lines))
    return record.state_text != "fail"


async def followed(task: ImageTask, board: Board, row: Row, timeout: float | None) -> ImageResult:
    """Wait for a task while its row tells its states."""

    async def follow() -> None:
        # What goes wrong is told by the result.
        with suppress(Flux2Error):
            async for record in task.updates():
                if not record.state.final:
                    board.change(row, record.state_text)

    following = asyncio.create_task(follow())
    try:
        return await task.result(timeout)
    finally:
        following.cancel()
        await asyncio.wait([following])


def record_document(record: TaskRecord) -> dict[str, Any]:
    """Give a record for machines; the request's own words are not in it."""
    return {
        "task_id": record.task_id,
        "state": record.state_text,
        "model": record.model,
        "urls": list(record.result_urls),
        "fail_code": record.fail_code,
        "fail_message": record.fail_message,
        "create_time": record.create_time and record.create_time.isoformat(),
        "complete_time": record.complete_time and record.complete_time.isoformat(),
        "duration": record.duration,
        "progress": record.progress,
        "credits_consumed": record.credits_consumed,
    }


async def _submitted(
    flux: Flux2Session, request: Request, board: Board, row: Row, timeout: float
) -> ImageTask:
    async def on_send(_: str) -> None:
        board.change(row, "refused by 429, sent again" if row.state == "sending" else "sending")

    board.change(row, "preparing")
    task = await flux.submit(request, max_wait=_bound(timeout), on_send=on_send)
    row.title = f"task {task.id}"
    board.change(row, "accepted")
    return task


async def _finished(
    flux: Flux2Session, task: ImageTask, board: Board, row: Row, job: Job, timeout: float
) -> tuple[ImageResult, list[Path]]:
    result = await followed(task, board, row, _bound(timeout))
    board.change(row, "downloading")
    files = await save(flux, result, job.target)
    board.change(row, "done", ended=True)
    return result, files


def _bound(timeout: float) -> float | None:
    return None if math.isinf(timeout) else timeout


@asynccontextmanager
async def _ends_told(flux: Flux2Session, job: Job) -> AsyncIterator[None]:
    """Turn what goes wrong into words that leave nothing paid behind unnamed."""
    try:
        yield
    except asyncio.CancelledError:
        raise CommandFailed(await _interrupted(flux, job), code=INTERRUPTED) from None
    except AmbiguousSubmitError as error:
        hint = (
            f"submission {error.ref}: look into the task log of your account before you run this again, "
            "or you may pay twice"
        )
        raise CommandFailed(error, hint) from None
    except (TaskFailedError, EmptyResultError, TaskNotFoundError) as error:
        raise CommandFailed(error) from None
    except (Flux2Error, OSError) as error:
        if job.task_id is None:
            raise
        command = job.how_to_go_on()
        raise CommandFailed(error, f"go on with: {command}" if command else "") from None


async def _interrupted(flux: Flux2Session, job: Job) -> str:
    """Say what an interrupted command leaves behind; a request under way is given some seconds to be answered."""
    left = await flux.aclose()
    if not job.lasting:
        return "interrupted; the emulated service ended with this command"
    job.task_id = job.task_id or next(iter(left.task_ids), None)
    if job.task_id:
        return f"interrupted; the task goes on at the service, go on with: {job.how_to_go_on()}"
    if left.refs:
        return (
            f"interrupted while submission {left.refs[0]} was under way; it may have been accepted: look into the "
            "task log of your account before you run this again, or you may pay twice"
        )
    return "interrupted; nothing was sent"


def _tell(screen: Screen, result: ImageResult, files: list[Path]) -> None:
    record = result.record
    facts = [f"task {result.task_id}"]
    if record.duration is not None:
        facts.append(f"{record.duration:.1f} s")
    if record.credits_consumed is not None:
        facts.append(f"{record.credits_consumed:g} credits")
    screen.note(", ".join(facts), "dim")
    screen.result("\n".join(map(str, files)))
    screen.document(record_document(record) | {"files": [str(file) for file in files]})
