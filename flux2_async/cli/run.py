"""One task from the request to the file, and where a task is that was made earlier."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import Any, Final

import attrs

from flux2_async import errors
from flux2_async._http.retry import logger as transfers
from flux2_async.cli.board import Board, Row
from flux2_async.cli.options import Service, Target, log_address, task_log
from flux2_async.cli.save import save
from flux2_async.cli.screen import INTERRUPTED, CommandError, Screen
from flux2_async.cli.service import opened
from flux2_async.models import ImageResult, Request, TaskRecord, TaskState
from flux2_async.models.events import Polled, SessionEvent, SubmissionChanged
from flux2_async.models.submission_state import SubmissionEvent
from flux2_async.session.arguments import too_late
from flux2_async.session.enqueued import SubmissionHandle
from flux2_async.session.session import Flux2Session
from flux2_async.session.submission import TRY_FOR
from flux2_async.tasks.handle import ImageTask

SLOW: Final = 3.0
ENDED: Final = "the emulated service ended with this command"


@contextmanager
def retries_told(board: Board) -> Iterator[None]:
    """Say on the board which upload or download is tried again; that may go on for twenty seconds."""

    def tell(record: logging.LogRecord) -> bool:
        board.say(record.getMessage(), "yellow")
        return True

    transfers.addFilter(tell)
    transfers.setLevel(logging.INFO)
    try:
        yield
    finally:
        transfers.removeFilter(tell)
        transfers.setLevel(logging.NOTSET)


@attrs.define
class Fetch:
    """One task of a command on its way, told in a row of the board.

    Attributes:
        timeout: Seconds for waiting, or None.
        lasting: Whether the task outlives the command.
        unreached: What keeps the service from being reached, as last seen; None while it answers.
        since: The loop's time from which on that is so.
    """

    flux: Flux2Session
    board: Board
    row: Row
    target: Target
    timeout: float | None
    lasting: bool = True
    task_id: str | None = None
    handle: SubmissionHandle | None = None
    unreached: Exception | None = None
    since: float = 0.0

    def hear(self, event: SessionEvent) -> None:
        """Say once what is waited for while the service cannot be reached; what is not sent is soon taken back."""
        match event:
            case SubmissionChanged(
                event=SubmissionEvent.NEVER_SENT, error=errors.TransportError(transient=True) as error
            ):
                bound = min(TRY_FOR, math.inf if self.timeout is None else self.timeout)
            case Polled(error=error) if not isinstance(error, errors.RateLimitedError):
                bound = math.inf
            case _:
                return
        loop = asyncio.get_running_loop()
        if error and not self.unreached:
            self.since = loop.time()
            if bound:
                again = "" if math.isinf(bound) else f" for {bound:g} s"
                self.board.say(f"{error}; trying again{again}", "yellow")
        elif self.handle and loop.time() - self.since >= bound:
            # Not in the middle of the step that is told.
            loop.call_soon(self.handle.withdraw)
        self.unreached = error

    async def submit(self, request: Request) -> ImageTask:
        """Get the request accepted; a service that cannot be reached is tried for a minute, or until the time-out."""
        refused: int | None = None

        async def on_send(_: str) -> None:
            nonlocal refused
            slow.cancel()
            before, refused = refused, self.flux.statistics().refused
            again = "sent again after a 429" if refused != before else "sent again, no connection was made"
            self.board.change(self.row, "sending" if before is None else again)

        self.board.change(self.row, "preparing")
        slow = asyncio.get_running_loop().call_later(
            SLOW, self.board.change, self.row, "waiting for upload, connection or limit"
        )
        try:
            self.handle = self.flux.enqueue(request, max_wait=self.timeout, on_send=on_send)
            task = await self.handle
        except errors.SubmissionWithdrawnError as error:
            raise self.unreached or error from None
        except errors.RateLimitedError as error:
            raise too_late(error, f"--timeout {self.timeout:g}") from None
        finally:
            slow.cancel()
        self.task_id, self.unreached = task.id, None
        self.row.title = f"task {task.id}"
        self.board.change(self.row, "accepted")
        return task

    async def finish(self, task: ImageTask) -> tuple[ImageResult, list[Path]]:
        """Wait for the pictures and save them."""
        self.task_id = task.id
        result = await followed(task, self.board, self.row, self.timeout)
        self.board.change(self.row, "downloading")
        files = await save(self.flux, result, self.target)
        self.board.change(self.row, "done", ended=True)
        return result, files

    def go_on(self, task_id: str) -> str:
        """Give the words that tell how to go on with the task."""
        if not self.lasting:
            return ENDED
        return f"go on with: flux2 status {quote(task_id)} --wait" + (
            f" -o {quote(self.target.given)}" if self.target.given else ""
        )

    @asynccontextmanager
    async def ends_told(self) -> AsyncIterator[None]:
        """Turn what goes wrong into words of a `CommandError` that leave nothing paid behind unnamed."""
        try:
            yield
        except asyncio.CancelledError:
            words = await self._interrupted()
            raise CommandError(words, code=INTERRUPTED, task_id=self.task_id) from None
        except errors.AmbiguousSubmitError as error:
            address = log_address(emulated=not self.lasting)
            raise CommandError(error, f"it is at {address}; " * bool(address) + f"submission {error.ref}") from None
        except (errors.TaskFailedError, errors.EmptyResultError, errors.TaskNotFoundError) as error:
            raise CommandError(error) from None
        except (errors.Flux2Error, OSError) as error:
            if self.task_id is None and isinstance(error, errors.TransportError):
                raise CommandError(error, "no task was made, so nothing was paid") from None
            if self.task_id is None:
                raise
            raise CommandError(error, self.go_on(self.task_id)) from None

    async def _interrupted(self) -> str:
        # A request that is being sent is given some seconds, so that its task has a name.
        left = await self.flux.aclose()
        if not self.lasting:
            return f"interrupted; {ENDED}"
        self.task_id = self.task_id or next(iter(left.task_ids), None)
        if self.task_id:
            return f"interrupted; the task goes on at the service, {self.go_on(self.task_id)}"
        if left.refs:
            first = f"check {task_log()} before you run this again, or you may pay twice"
            return f"interrupted; submission {left.refs[0]} may have been accepted: {first}"
        return "interrupted; nothing was sent"


async def fetch(
    screen: Screen, wanted: Request | str, service: Service | None = None, *, output: str | None, timeout: float
) -> None:
    """Submit a request, or take up a task by its id, wait for its picture and save it.

    UsageError: it cannot be written, and nothing was sent.
    """
    target = Target.parse(output)
    row = Row("request" if isinstance(wanted, Request) else f"task {wanted}")
    async with opened(service) as flux:
        with Board(screen, [row]) as board, retries_told(board):
            patience = None if math.isinf(timeout) else timeout
            job = Fetch(flux, board, row, target, patience, lasting=not (service and service.emulate))
            flux.observe(job.hear)
            async with job.ends_told():
                if isinstance(wanted, Request):
                    task = await job.submit(wanted)
                else:
                    task = flux.attach(wanted)
                    board.change(row, "polling")
                result, files = await job.finish(task)
    record = result.record
    facts = [f"task {result.task_id}"]
    if record.duration is not None:
        facts.append(f"{record.duration:.1f} s")
    if record.credits_consumed is not None:
        facts.append(f"{record.credits_consumed:g} credits")
    screen.note(", ".join(facts), "dim")
    screen.result("\n".join(map(str, files)), whole=True)
    screen.document(_document(record) | {"files": [str(file) for file in files]})


async def show(screen: Screen, task_id: str) -> bool:
    """Show a task's record; give whether it has not failed."""
    async with opened() as flux:
        record = await flux.fetch_record(task_id)
    screen.document(_document(record))
    facts = {
        "task": record.task_id,
        "state": record.state_text,
        "model": record.model,
        "created": record.create_time and f"{record.create_time.astimezone():%Y-%m-%d %H:%M:%S %Z}",
        "took": None if record.duration is None else f"{record.duration:.1f} s",
        "credits": None if record.credits_consumed is None else f"{record.credits_consumed:g}",
        "failure": " ".join(filter(None, (record.fail_code, record.fail_message))) or None,
    }
    lines = [f"{name:<8} {value}" for name, value in facts.items() if value is not None]
    lines += [f"{'picture':<8} {url}" for url in record.result_urls]
    screen.result("\n".join(lines))
    return record.state is not TaskState.FAIL


async def followed(task: ImageTask, board: Board, row: Row, timeout: float | None) -> ImageResult:
    """Wait for a task while its row tells its states."""

    async def follow() -> None:
        # What goes wrong is told by the result.
        with suppress(errors.Flux2Error):
            async for record in task.updates(every=1.0):
                if not record.state.final:
                    board.change(row, record.state_text)

    following = asyncio.create_task(follow())
    row.left = lambda: task.expectation().remaining
    try:
        return await task.result(timeout)
    finally:
        row.left = None
        following.cancel()
        await asyncio.wait([following])


def _document(record: TaskRecord) -> dict[str, Any]:
    """Give a record for machines; the request's own words are not in it."""
    names = ("task_id", "model", "fail_code", "fail_message", "duration", "progress", "credits_consumed")
    return {name: getattr(record, name) for name in names} | {
        "state": record.state_text,
        "urls": list(record.result_urls),
        "create_time": record.create_time and record.create_time.isoformat(),
        "complete_time": record.complete_time and record.complete_time.isoformat(),
    }
