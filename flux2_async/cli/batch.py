"""`flux2 batch`: a list of requests, run until all of it is done, however often it is interrupted."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import attrs

from flux2_async.batch import BadLine, Batch, InvalidInputError, Job, Journal, run_batch
from flux2_async.batch.options import Options
from flux2_async.batch.results import RESULTS, read_results
from flux2_async.cli.batch_board import BatchBoard
from flux2_async.cli.batch_end import End, report, tell_end
from flux2_async.cli.batch_estimate import dry_run, grouped, unusable
from flux2_async.cli.batch_options import BatchOptions
from flux2_async.cli.options import Service, check_writable, task_log
from flux2_async.cli.screen import INTERRUPTED, CommandError, Screen, UsageError
from flux2_async.cli.serve import listening_failure
from flux2_async.cli.service import opened, shared_place
from flux2_async.cli.signals import ending_signals
from flux2_async.errors import AuthenticationError, Flux2Error, TransportError
from flux2_async.models import Polling
from flux2_async.receivers import serve
from flux2_async.session.session import Flux2Session

# Seconds for what runs. A task takes 8 to 95; what takes longer is found again by the next run.
STOPPING_MAX: Final = 120


async def batch(
    screen: Screen, wanted: Iterator[Job | BadLine], options: BatchOptions, service: Service, again: str
) -> int:
    """Run a batch, see `jobs` for what it makes; `again` is the command that goes on with it.

    It gives 0: all done, 1: some are not, 130: interrupted. An error means that nothing was sent.
    """
    path = _journal_path(options, emulated=service.emulate)
    if not service.emulate:
        _check_not_lost(options, path)
        shared_place(service)
    # By a dry run as well: what it takes, the run is to take.
    Options(**options.as_taken_by(Options))
    callbacks = options.callbacks()
    if options.out.exists() and not options.out.is_dir():
        raise UsageError(f"--out: {str(options.out)!r} is a file, it must be a folder")
    if options.dry_run:
        return await dry_run(screen, wanted, options, service, path)
    service.check()
    if options.retry_unknown:
        screen.note("--retry-unknown: what was accepted unseen is paid a second time", "yellow")
    async with AsyncExitStack() as stack:
        flux = await stack.enter_async_context(opened(service, callbacks=callbacks and callbacks[0], polling=Polling()))
        if callbacks:
            try:
                await stack.enter_async_context(serve(flux, *callbacks[1:]))
            except OSError as error:
                raise UsageError(f"--callback-listen: {listening_failure(error)}; give another HOST:PORT") from None
        journal = await stack.enter_async_context(_journal(options, emulated=service.emulate))
        end = await _run(screen, flux, journal, wanted, options)
        end.again, end.log = again, task_log(emulated=service.emulate)
        end.balance_after = await _balance(flux)
        if options.report and end.results is None:
            screen.complain(f"the report was not written, since {RESULTS} was not")
        elif options.report:
            end.report = await _report(screen, options.out)
        await tell_end(screen, journal, end)
    return INTERRUPTED if end.interrupted else int(not end.complete)


@asynccontextmanager
async def _journal(options: BatchOptions, *, emulated: bool) -> AsyncIterator[Journal]:
    path = _journal_path(options, emulated=emulated)
    new, empty = not path.exists(), False
    made = [folder for folder in (options.out / "images", options.out, path.parent) if not folder.exists()]
    check_writable(options.out, "--out: the folder {!r} cannot be written ({}); nothing was sent", make=True)
    try:
        async with Journal(path) as journal:
            if emulated:
                await journal.forget_unfinished(options.out)
            try:
                yield journal
            finally:
                empty = new and not await journal.use_lines(any)
    finally:
        # A list that was refused leaves nothing behind.
        if empty:
            path.unlink(missing_ok=True)
            for folder in made:
                # One that is not empty stays, as does one that is gone already.
                with suppress(OSError):
                    folder.rmdir()


def _check_not_lost(options: BatchOptions, path: Path) -> None:
    """Refuse to pay again for a folder whose journal was moved; `emulated.db` has made what cost nothing."""
    results, paid = options.out / RESULTS, False
    theirs = options.journal or path.exists() or (options.out / "emulated.db").exists()
    if results.exists() and not theirs:
        # Another file of that name is none of ours.
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            paid = any(outcome.task_id for outcome in read_results(options.out))
    if paid:
        raise UsageError(
            f"{str(results)!r} lists what an earlier batch has paid for, and its journal {str(path)!r} is gone; put it "
            f"back, or, to pay for everything again, remove {RESULTS} or name another --out"
        )


def _journal_path(options: BatchOptions, *, emulated: bool) -> Path:
    # What the emulated service made is worth nothing to the real one, and its tasks end with it.
    return options.journal or options.out / ("emulated.db" if emulated else "run.db")


async def _run(
    screen: Screen, flux: Flux2Session, journal: Journal, wanted: Iterator[Job | BadLine], options: BatchOptions
) -> End:
    before: float | None = None

    async def ask() -> None:
        nonlocal before
        before = await _balance(flux, needed=True)

    own = {"journal": journal, "directory": options.out}
    running = run_batch(flux, wanted, **options.as_taken_by(run_batch) | own)
    # What is wrong with the list is told without the network.
    running.ready = ask
    failure: Exception | None = None
    with BatchBoard(screen, running, flux) as board, _interrupts(running, board) as interrupts:
        try:
            async for outcome in running:
                board.tell(outcome)
        except InvalidInputError as error:
            raise unusable(screen, error) from None
        except (Flux2Error, OSError) as error:
            if running.progress is None:
                raise
            failure = error
    if running.progress is None:
        raise CommandError("interrupted; nothing was sent", code=INTERRUPTED)
    for _, text in grouped(running.invalid):
        screen.note(f"skipped: {text}", "yellow")
    return End(
        progress=running.progress,
        folder=options.out,
        failure=failure,
        interrupted=interrupts.count > 0,
        skipped=running.invalid_count,
        downloading=options.download,
        balance_before=before,
    )


async def _report(screen: Screen, folder: Path) -> Path | None:
    """Write the report; it is no failure when there is none, since all that was paid for is here."""
    screen.note("writing the report; Ctrl-C leaves it out", "dim")
    writing = asyncio.create_task(report(folder))
    with _on_interrupt(writing.cancel):
        await asyncio.wait([writing])
    if writing.cancelled():
        return None
    try:
        return writing.result()
    except OSError as error:
        screen.complain(f"the report was not written ({error.strerror or error})")
        return None


async def _balance(flux: Flux2Session, *, needed: bool = False) -> float | None:
    """Ask for the balance; a service that will not tell is no reason to make no pictures, a wrong key is."""
    try:
        return await flux.credits()
    except (AuthenticationError, TransportError):
        if needed:
            raise
    except Flux2Error:
        pass
    return None


@attrs.define
class _Interrupts:
    """Ctrl-C: once ends the sending, twice, or so many seconds later, all of it."""

    batch: Batch
    board: BatchBoard
    left: int
    count: int = 0

    def strike(self) -> None:
        """Take one."""
        self.count += 1
        self.batch.stop(now=self.count > 1)
        if self.count == 1:
            self._count_down()
        else:
            self.board.say("stopping now; what runs at the service is found by the next run")

    async def tick(self) -> None:
        """Tell every second how far it is, and for how long it still waits."""
        while True:
            await asyncio.sleep(1)
            # A terminal that is gone cannot be told.
            with suppress(OSError):
                self.board.tick()
            if self.count and self.left >= 0:
                self._count_down()

    def _count_down(self) -> None:
        progress = self.batch.progress
        running = 0 if progress is None else progress.running + progress.sending
        self.board.stopping = (
            f"nothing more is sent; {running} tasks are waited for, at most {self.left} s more; "
            "Ctrl-C again stops at once"
        )
        if self.left % 10 == 0:
            with suppress(OSError):
                self.board.log(self.board.stopping)
        if self.left == 0:
            self.batch.stop(now=True)
        self.left -= 1


@contextmanager
def _interrupts(batch: Batch, board: BatchBoard) -> Iterator[_Interrupts]:
    interrupts = _Interrupts(batch, board, STOPPING_MAX)
    ticking = asyncio.create_task(interrupts.tick())
    try:
        with _on_interrupt(interrupts.strike):
            yield interrupts
    finally:
        ticking.cancel()


@contextmanager
def _on_interrupt(act: Callable[[], object]) -> Iterator[None]:
    """Do something on Ctrl-C and `ending_signals`, which otherwise cancel the command."""
    loop, command = asyncio.get_running_loop(), asyncio.current_task()
    others = ending_signals()
    try:
        for number in (signal.SIGINT, *others):
            loop.add_signal_handler(number, act)
    except NotImplementedError:
        # Windows: the command is cancelled, which stops a batch at once.
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        if command is not None:
            for number in others:
                loop.add_signal_handler(number, command.cancel)
