"""`run_batch`: requests through a session and a journal into a folder."""

import asyncio
import logging
import math
import os
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

import anyio.to_thread

from flux2_async._http.downloads import prepare_folder
from flux2_async._limiter.window import CLOCK_MARGIN
from flux2_async.batch.ended import SharedGenerator, ended
from flux2_async.batch.jobs import BadLine, Job
from flux2_async.batch.journal import Journal, JournalError
from flux2_async.batch.journal.start import IMAGES, Start
from flux2_async.batch.names import seconds_left
from flux2_async.batch.options import Options
from flux2_async.batch.outcomes import Outcome
from flux2_async.batch.progress import Progress
from flux2_async.batch.results import RESULTS, Changes, write_results
from flux2_async.batch.scheduler import Scheduler
from flux2_async.errors import ConfigurationError, SessionClosedError
from flux2_async.models import Request
from flux2_async.session.arguments import check_path
from flux2_async.session.session import Flux2Session

logger: logging.Logger = logging.getLogger("flux2_async")

# Seconds between two forecasts for onlookers; each costs as much as a few requests.
ASKED_EVERY: Final = 10.0


class Batch:
    """A batch on its way, made by `run_batch`; iterate it once.

    Attributes:
        invalid: What was skipped of the input, at most a hundred lines of it.
        invalid_count: All that was skipped.
        ready: Awaited when all of the input was checked and nothing is kept of it yet; what it raises ends the batch.
            None: nobody is asked.
    """

    def __init__(
        self,
        flux: Flux2Session,
        requests: Iterable[Request | Job | BadLine] | AsyncIterable[Request | Job | BadLine],
        journal: str | os.PathLike[str] | Journal,
        directory: str | os.PathLike[str],
        options: Options,
    ) -> None:
        self.invalid: tuple[BadLine, ...] = ()
        self.invalid_count: int = 0
        self.ready: Callable[[], Awaitable[object]] | None = None
        self._flux = flux
        if not isinstance(requests, Iterable | AsyncIterable):
            raise ConfigurationError(
                f"requests: {type(requests).__name__} given, it must be a list or another iterable"
            )
        self._requests = requests
        self._journal = journal if isinstance(journal, Journal) else check_path("journal", journal)
        self._directory = Path(os.path.abspath(check_path("directory", directory)))  # noqa: PTH100  resolve() would replace links
        self._options = options
        self._scheduler: Scheduler | None = None
        self._stopped = False
        self._asked_at = -math.inf
        self._preparing: asyncio.Task[Scheduler] | None = None
        self._running: weakref.ref[SharedGenerator[Outcome]] | None = None

    def __aiter__(self) -> AsyncGenerator[Outcome, None]:
        """Give outcomes as requests come to their end; see `run_batch`."""
        if self._running is not None:
            raise ConfigurationError("a batch is iterated once; call run_batch again to go on")
        running = SharedGenerator(self._run())
        # Only the loop that iterates keeps it alive, so that leaving the loop ends the batch.
        self._running = weakref.ref(running)
        return running

    @property
    def progress(self) -> Progress | None:
        """How far it is; None until the input is taken."""
        return self._scheduler.state.progress() if self._scheduler is not None else None

    def remaining(self) -> float | None:
        """Tell how many seconds it takes until all requests have ended, see `Flux2Session.remaining`; None: unknown."""
        progress = self.progress
        if progress is None:
            return None
        figures = self._flux.statistics()
        left = progress.queued + progress.sending + progress.running - figures.running - figures.waiting
        return self._flux.remaining(max(left, 0), max_running=self._options.max_running)

    def stop(self, *, now: bool = False) -> None:
        """Send nothing more; the iteration ends when what is at the service has come to its end.

        Args:
            now: Wait for nothing but createTask calls under way, for at most 5 seconds (our choice). The next run
                goes on.
        """
        self._stopped = True
        if self._scheduler is not None:
            self._scheduler.stop(now=now)
        elif self._preparing is not None:
            self._preparing.cancel()

    async def aclose(self) -> None:
        """Stop now, and wait until the journal is consistent and `results.jsonl` written."""
        self.stop(now=True)
        running = self._running() if self._running is not None else None
        if running is not None:
            # Who waits for the next outcome gets one that is ready, or sees the end.
            await running.aclose()

    async def _run(self) -> AsyncGenerator[Outcome, None]:
        async with _opened(self._journal) as journal:
            scheduler = await self._prepared(journal)
            if scheduler is None:
                return
            changes = Changes(self._directory, scheduler.state.progress().total)
            journal.tell(changes.add)
            try:
                async with aclosing(scheduler.run()) as outcomes:
                    async for outcome in outcomes:
                        if (now := time.monotonic()) >= self._asked_at + ASKED_EVERY:
                            self._asked_at, changes.ends_at = now, self._ends_at()
                        yield outcome
            finally:
                written = False
                try:
                    written = await self._write_results(journal, scheduler)
                finally:
                    journal.tell(None)
                    changes.end(remove=written)
        if scheduler.state.failure is not None:
            raise scheduler.state.failure.with_traceback(None)

    def _ends_at(self) -> float | None:
        # What waits is not sent any more once it was stopped, or has no session.
        with suppress(SessionClosedError):
            if not self._stopped and (seconds := self.remaining()) is not None:
                return round(time.time() + seconds, 1)
        return None

    async def _prepared(self, journal: Journal) -> Scheduler | None:
        """Get ready; None when that was stopped, which leaves the journal as it was."""
        if self._stopped:
            return None
        self._preparing = asyncio.create_task(self._prepare(journal))
        try:
            await asyncio.wait([self._preparing])
        finally:
            # Who leaves here takes the journal along.
            self._preparing.cancel()
            await ended(self._preparing)
        if self._preparing.cancelled():
            return None
        self._scheduler = scheduler = self._preparing.result()
        if self._stopped:
            # It came too late to stop the preparing.
            scheduler.stop()
        return scheduler

    async def _prepare(self, journal: Journal) -> Scheduler:
        options, flux = self._options, self._flux
        settings = flux.callback_settings
        if settings is not None and not settings.lasting:
            raise ConfigurationError(
                "callbacks: the next run must be able to check the callbacks of this one, so set the "
                "environment variable APIKLEY_CALLBACK_SECRET, or give Callbacks(url, secret=...)"
            )
        # Nothing is to be paid for that cannot be saved.
        await anyio.to_thread.run_sync(prepare_folder, self._directory / IMAGES)
        entered = await journal.enter(self._requests, options, flux.service.max_image_bytes, self.ready)
        self.invalid, self.invalid_count = tuple(entered.bad), entered.bad_count
        start = await journal.begin(
            options, lambda name: seconds_left(name, flux.service, time.time()) > 0, self._directory
        )
        _hold(flux, start)
        return Scheduler(flux, journal, self._directory, start, options)

    async def _write_results(self, journal: Journal, scheduler: Scheduler) -> bool:
        state = scheduler.state
        try:
            await journal.check_place()
        except JournalError as error:
            # What a folder that is gone leads to first says less.
            if not isinstance(state.failure, JournalError):
                state.failure = error
        try:
            await write_results(journal, self._directory)
        except (OSError, JournalError) as error:
            state.failure = state.failure or error
            logger.warning("%s was not written: %s", RESULTS, error)
            return False
        return True


def run_batch(
    flux: Flux2Session,
    requests: Iterable[Request | Job | BadLine] | AsyncIterable[Request | Job | BadLine],
    *,
    journal: str | os.PathLike[str] | Journal,
    directory: str | os.PathLike[str],
    max_running: int | None = None,
    limit: int | None = None,
    shuffle: bool = False,
    max_tasks: int | None = None,
    max_credits: float | None = None,
    max_failed: float | None = None,
    retry_failed: bool = False,
    retry_unknown: bool = False,
    download: bool = True,
    skip_invalid: bool = False,
    recover_timeout: float = 300.0,
    task_timeout: float | None = None,
    group: str | None = None,
) -> Batch:
    """Make many pictures, in a way that a crash at any moment loses none and pays for none twice.

    All requests are entered into the journal first, then sent from there. Called again with the same journal it goes
    on: tasks at the service are waited for, missing files downloaded, the rest sent. A request whose createTask may
    have been accepted unseen is `unknown` and not sent again; while answers are lost one at a time is risked.

    Example:
        async for outcome in run_batch(flux, [request], journal="run.db", directory="results"):
            print(outcome.id, outcome.state, outcome.files)

    Args:
        flux: An open session; everything goes through it. Its callbacks, if it has any, need a `secret`.
        requests: Any finite iterable, also asynchronous: requests, or a `Job` around one that gives it an `id`.
            Pictures by path or address, not as bytes.
        journal: The file, made when it is missing, or an open `Journal`.
        directory: The folder of the results, made when it is missing: pictures in `images/`, and `results.jsonl`.
        max_running: Requests worked on at once. None: as many as the session runs tasks, and 32 to wait and download.
        limit: Only the first `limit` requests. None: all.
        shuffle: Send in a random order, the same one in every run; with `limit` a random choice.
        max_tasks: Take at most this many requests from the queue in this run. None: all.
        max_credits: Credits that the whole batch may cost, in all its runs. What is running or unknown counts with the
            most that such a picture has cost so far (24 before one has told), and until the first of a kind has told,
            the others wait. None: no cap.
        max_failed: Send nothing more when a larger share of the requests that have ended in this run, 20 or more of
            them, has failed: the prompts are likely to be wrong. What was sent goes on to its end. None: never.
        retry_failed: Send requests again that failed in an earlier run.
        retry_unknown: Send requests again that may have been accepted. This may pay twice, but for those of a service
            that honours names, which are sent again under theirs in any case.
        download: Save the pictures.
        skip_invalid: Go on without requests that cannot be used instead of refusing all of them.
        recover_timeout: Seconds for which, at the end, callbacks of lost submissions are waited for.
        task_timeout: Seconds for which a task is watched in this run; then it makes room for the next one and is
            `submitted`, for the next run to wait for. None: as long as the session's `Polling.give_up_after`.
        group: Whose requests are that name no `group` of their own, see `Flux2Session.submit`: it takes turns with
            other groups of the session. None: nobody's.

    Returns:
        A `Batch`, to be used with `async for`: outcomes of what was worked on, as it comes to its end. A slow reader
        slows the batch down; leaving the loop stops it, while the tasks go on at the service.

    Raises:
        ConfigurationError: An argument makes no sense. While iterating also: JournalError, the journal cannot be used,
            and `callbacks` without a secret of their own or of the environment.
        InvalidInputError: While iterating: some of the requests cannot be used; nothing was sent.
        InvalidRequestError: While iterating: the folder cannot be written.
        ApiError: While iterating, after everything at the service has come to its end: a refusal that would meet every
            request, such as 401, 402, 433 and 505.
        TransportError: Likewise: the service could not be reached for an hour; AmbiguousSubmitError when its answers
            were lost.
        OSError: Likewise: the disk is full or broken.
        CancelledError: Whoever iterates was cancelled, as Ctrl-C does: as after leaving the loop.
        SessionClosedError: Likewise: the session is not open (any more).
    """
    options = Options(
        max_running=max_running,
        limit=limit,
        shuffle=shuffle,
        max_tasks=max_tasks,
        max_credits=max_credits,
        max_failed=max_failed,
        retry_failed=retry_failed,
        retry_unknown=retry_unknown,
        download=download,
        skip_invalid=skip_invalid,
        recover_timeout=recover_timeout,
        task_timeout=task_timeout,
        group=group,
    )
    return Batch(flux, requests, journal, directory, options)


@asynccontextmanager
async def _opened(journal: str | os.PathLike[str] | Journal) -> AsyncIterator[Journal]:
    async with nullcontext(journal) if isinstance(journal, Journal) else Journal(journal) as opened:
        with opened.running():
            yield opened


def _hold(flux: Flux2Session, start: Start) -> None:
    """Keep the last run's requests and this one's from meeting in one window of the service's limit."""
    if not flux.rate_limits:
        return
    longest = max(rate.period for rate in flux.rate_limits)
    now = time.time()
    # A permit comes back a period after the answer, and two after a send that had none.
    for periods, moment in ((1, start.answered_at), (2, start.unclear_at)):
        if moment is not None:
            whole = periods * longest * CLOCK_MARGIN
            flux.pause(max(0.0, whole - max(0.0, now - moment)))
