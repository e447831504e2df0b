"""`run_batch`: requests through a session and a journal into a folder."""

import asyncio
import logging
import os
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import anyio.to_thread
import attrs

from flux2_async._http.downloads import prepare_folder
from flux2_async.batch.ended import ended
from flux2_async.batch.jobs import BadLine, Job
from flux2_async.batch.journal import Journal, JournalError
from flux2_async.batch.journal.start import Start
from flux2_async.batch.outcomes import Outcome, State
from flux2_async.batch.progress import Progress
from flux2_async.batch.results import RESULTS, write_results
from flux2_async.batch.scheduler import Crew, Limits
from flux2_async.batch.shared_generator import SharedGenerator
from flux2_async.errors import ConfigurationError
from flux2_async.models import Request
from flux2_async.session.arguments import check_max_running, check_path
from flux2_async.session.session import Flux2Session

__all__ = ["Batch", "run_batch"]

logger = logging.getLogger("flux2_async")

# Requests in hand beyond the tasks that may run: some wait for a permit, some are being downloaded.
SPARE: Final = 32


@attrs.frozen(kw_only=True)
class _Options:
    max_running: int | None
    limit: int | None
    shuffle: bool
    max_tasks: int | None
    max_credits: float | None
    retry_failed: bool
    retry_unknown: bool
    download: bool
    skip_invalid: bool
    recover_timeout: float
    task_timeout: float | None

    def __attrs_post_init__(self) -> None:
        check_max_running(self.max_running)
        for name in ("limit", "max_tasks"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"{name}: {value!r} given, it must be a whole number of 1 or more, or None")
        for name in ("max_credits", "recover_timeout"):
            value = getattr(self, name)
            none = value is None and name == "max_credits"
            if not none and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
                raise ConfigurationError(f"{name}: {value!r} given, it must be a number of 0 or more")
        timeout: object = self.task_timeout
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0
        ):
            raise ConfigurationError(f"task_timeout: {timeout!r} given, it must be a number above 0, or None")

    def sendable(self) -> set[State]:
        """States whose requests may be sent by this run."""
        states = {State.QUEUED}
        if self.retry_failed:
            states.add(State.FAILED)
        if self.retry_unknown:
            states |= {State.UNKNOWN, State.SUBMITTING}
        return states


class Batch:
    """A batch on its way, made by `run_batch`; iterate it once.

    Attributes:
        invalid: What was skipped of the input, at most a hundred lines of it.
        invalid_count: All that was skipped.
    """

    def __init__(
        self,
        flux: Flux2Session,
        requests: Iterable[Request | Job | BadLine] | AsyncIterable[Request | Job | BadLine],
        journal: str | os.PathLike[str] | Journal,
        directory: str | os.PathLike[str],
        options: _Options,
    ) -> None:
        self.invalid: tuple[BadLine, ...] = ()
        self.invalid_count = 0
        self._flux = flux
        if not isinstance(requests, Iterable | AsyncIterable):
            raise ConfigurationError(
                f"requests: {type(requests).__name__} given, it must be a list or another iterable"
            )
        self._requests = requests
        self._journal = journal if isinstance(journal, Journal) else check_path("journal", journal)
        self._directory = Path(os.path.abspath(check_path("directory", directory)))  # noqa: PTH100  resolve() would replace links
        self._options = options
        self._crew: Crew | None = None
        self._stopped = False
        self._preparing: asyncio.Task[Crew] | None = None
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
        return self._crew.books.progress(self._crew.stopped) if self._crew is not None else None

    def stop(self, *, now: bool = False) -> None:
        """Send nothing more; the iteration ends when what is at the service has come to its end.

        Args:
            now: Wait for nothing but createTask calls under way, for at most 5 seconds. The next run goes on.
        """
        self._stopped = True
        if self._crew is not None:
            self._crew.stop(now=now)
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
            crew = await self._prepared(journal)
            if crew is None:
                return
            try:
                async with aclosing(crew.run()) as outcomes:
                    async for outcome in outcomes:
                        yield outcome
            finally:
                await self._write_results(journal, crew)
        if crew.failure is not None:
            raise crew.failure.with_traceback(None)

    async def _prepared(self, journal: Journal) -> Crew | None:
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
        self._crew = crew = self._preparing.result()
        if self._stopped:
            # It came too late to stop the preparing.
            crew.stop()
        return crew

    async def _prepare(self, journal: Journal) -> Crew:
        options, flux = self._options, self._flux
        settings = flux._callback_settings()  # noqa: SLF001  made for this
        if settings is not None and not settings.lasting:
            raise ConfigurationError(
                "callbacks: a batch outlives its process, so that the next one must be able to check the addresses of "
                "this one; give a secret: Callbacks(url, secret=...)"
            )
        # Nothing is to be paid for that cannot be saved.
        await anyio.to_thread.run_sync(prepare_folder, self._directory / "images")
        entered = await journal.enter(
            self._requests,
            sendable=options.sendable(),
            skip_invalid=options.skip_invalid,
            shuffled=options.shuffle,
            limit=options.limit,
        )
        self.invalid, self.invalid_count = entered.bad, entered.bad_count
        start = await journal.begin(retry_failed=options.retry_failed, retry_unknown=options.retry_unknown)
        _hold(flux, start)
        limits = Limits(
            in_hand=options.max_running or flux._room() + SPARE,  # noqa: SLF001  made for this
            max_tasks=options.max_tasks,
            max_credits=options.max_credits,
            recover_timeout=options.recover_timeout,
            task_timeout=options.task_timeout,
        )
        return Crew(flux, journal, self._directory, start, limits, download=options.download)

    async def _write_results(self, journal: Journal, crew: Crew) -> None:
        try:
            await write_results(journal, self._directory)
        except (OSError, JournalError) as error:
            if crew.failure is None:
                crew.failure = error
            logger.warning("%s was not written: %s", RESULTS, error)


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
    retry_failed: bool = False,
    retry_unknown: bool = False,
    download: bool = True,
    skip_invalid: bool = False,
    recover_timeout: float = 300.0,
    task_timeout: float | None = None,
) -> Batch:
    """Make many pictures, in a way that a crash at any moment loses none and pays for none twice.

    All requests are entered into the journal first, then sent from there. Called again with the same journal it goes
    on: tasks at the service are waited for, missing files downloaded, the rest sent. A request whose createTask may
    have been accepted unseen is `unknown` and not sent again; while answers are lost one at a time is risked.

    Args:
        flux: An open session; everything goes through it. Its callbacks, if it has any, need a `secret`.
        requests: Any finite iterable, also asynchronous: requests, or a `Job` around one that gives it an `id`.
            Pictures by path or address, not as bytes.
        journal: The file, made when it is missing, or an open `Journal`.
        directory: The folder of the results, made when it is missing: pictures in `images/`, and `results.jsonl`.
        max_running: Requests worked on at once. None: as many as the session runs tasks, and 32 to wait and download.
        limit: Only the first so many requests. None: all.
        shuffle: Send in a random order, the same one in every run; with `limit` a random choice.
        max_tasks: Take at most so many requests from the queue in this run. None: all.
        max_credits: Credits that the whole batch may cost, in all its runs. What is running or unknown counts with the
            most that such a picture has cost so far (24 before one has told), and until the first of a kind has told,
            the others wait. None: no cap.
        retry_failed: Send requests again that failed in an earlier run.
        retry_unknown: Send requests again that may have been accepted. This may pay twice.
        download: Save the pictures.
        skip_invalid: Go on without requests that cannot be used instead of refusing all of them.
        recover_timeout: Seconds for which, at the end, callbacks of lost submissions are waited for.
        task_timeout: Seconds for which a task is watched in this run; then it makes room for the next one and is
            `submitted`, for the next run to wait for. None: as long as the session's `Polling.give_up_after`.

    Returns:
        A `Batch`, to be used with `async for`: outcomes of what was worked on, as it comes to its end. A slow reader
        slows the batch down; leaving the loop stops it, while the tasks go on at the service.

    Raises:
        ConfigurationError: An argument makes no sense. While iterating also: JournalError, the journal cannot be used,
            and `callbacks` without a secret.
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
    options = _Options(
        max_running=max_running,
        limit=limit,
        shuffle=shuffle,
        max_tasks=max_tasks,
        max_credits=max_credits,
        retry_failed=retry_failed,
        retry_unknown=retry_unknown,
        download=download,
        skip_invalid=skip_invalid,
        recover_timeout=recover_timeout,
        task_timeout=task_timeout,
    )
    return Batch(flux, requests, journal, directory, options)


@asynccontextmanager
async def _opened(journal: str | os.PathLike[str] | Journal) -> AsyncIterator[Journal]:
    if isinstance(journal, Journal):
        yield journal
    else:
        async with Journal(journal) as own:
            yield own


def _hold(flux: Flux2Session, start: Start) -> None:
    """Keep the last run's requests and this one's from meeting in one window of the service's limit."""
    now = time.time()
    # A permit comes back a period after the answer, and two after a send that had none.
    for periods, moment in ((1, start.answered_at), (2, start.unclear_at)):
        if moment is not None:
            flux._hold(periods, max(0.0, now - moment))  # noqa: SLF001  made for this
