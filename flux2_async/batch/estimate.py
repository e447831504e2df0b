"""What a batch will be: requests, credits, hours; nothing is sent and nothing is written."""

import os
import tempfile
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import attrs

from flux2_async.batch.jobs import BadLine, Job
from flux2_async.batch.journal import Journal
from flux2_async.batch.journal.entry import Entry
from flux2_async.batch.journal.start import Tally
from flux2_async.batch.options import Options
from flux2_async.batch.outcomes import State
from flux2_async.batch.spending import BatchSpending
from flux2_async.models import RateLimit, Request
from flux2_async.models.budget import seconds_of
from flux2_async.models.prices import documented_price
from flux2_async.models.spending import Kind
from flux2_async.session.arguments import check_path

# What recorded tasks took.
TASK_SECONDS: Final = (8.0, 95.0)
USUAL_LIMIT: Final = RateLimit(20, 10.0)


@attrs.frozen(kw_only=True)
class KindEstimate:
    """The requests of one model and resolution.

    Attributes:
        model: The API's id.
        resolution: `1K` or `2K`.
        requests: How many will be sent.
        price: Credits of one of them.
        seen: Whether the journal has seen that price; else it is the one documented upstream (`models.prices`).
    """

    model: str
    resolution: str
    requests: int
    price: float
    seen: bool


@attrs.frozen(kw_only=True)
class BatchEstimate:
    """What a run is going to be.

    Attributes:
        requests: How many will be sent.
        credits: What they cost; a request that fails costs nothing.
        seconds: How long it takes at least and at most: by what tasks took so far, else by the range of recorded ones.
        kinds: What the credits are made of.
        done: Requests whose pictures are made.
        waiting: Requests at the service, which are waited for.
        failed: Requests that failed and are not sent again.
        unknown: Requests that may have been accepted and are not sent again.
        spent: Credits that records say were charged in earlier runs.
        least_max_credits: The least `max_credits` with which one request of each kind can be sent now: the first of a
            kind whose price the journal has not seen counts with the dearest documented price.
        invalid: What cannot be used of the input, at most a hundred lines of it.
        invalid_count: All of it.
    """

    requests: int
    credits: float
    seconds: tuple[float, float]
    kinds: tuple[KindEstimate, ...]
    done: int
    waiting: int
    failed: int
    unknown: int
    spent: float
    least_max_credits: float = 0.0
    invalid: tuple[BadLine, ...] = ()
    invalid_count: int = 0


async def estimate_batch(
    requests: Iterable[Request | Job | BadLine] | AsyncIterable[Request | Job | BadLine],
    *,
    journal: str | os.PathLike[str] | Journal | None = None,
    rate_limit: RateLimit | None = USUAL_LIMIT,
    max_running: int | None = 100,
    limit: int | None = None,
    shuffle: bool = False,
    max_tasks: int | None = None,
    retry_failed: bool = False,
    retry_unknown: bool = False,
    skip_invalid: bool = False,
) -> BatchEstimate:
    """Say what `run_batch` with the same arguments will send and cost, and how long it takes; needs no account.

    Args:
        requests: As for `run_batch`; all of it is checked, local pictures included.
        journal: The batch's journal, which is left as it is; a path where there is none, or None: a new batch.
        rate_limit: As the session has it; None: no limit.
        max_running: Tasks at once; None: no cap.
        limit: As for `run_batch`.
        shuffle: As for `run_batch`.
        max_tasks: As for `run_batch`.
        retry_failed: As for `run_batch`.
        retry_unknown: As for `run_batch`.
        skip_invalid: As for `run_batch`.

    Returns:
        Requests, credits and seconds, in all and of each model and resolution.

    Raises:
        ConfigurationError: An argument makes no sense; JournalError, the journal cannot be used.
        InvalidInputError: Some of the requests cannot be used.
    """
    options = Options(
        max_running=max_running,
        limit=limit,
        shuffle=shuffle,
        max_tasks=max_tasks,
        retry_failed=retry_failed,
        retry_unknown=retry_unknown,
        skip_invalid=skip_invalid,
    )
    async with _opened(journal) as opened:
        entry, start, taken = await opened.preview(requests, options)
    return _estimate(entry, start.tallies, taken, options, rate_limit)


@asynccontextmanager
async def _opened(journal: str | os.PathLike[str] | Journal | None) -> AsyncIterator[Journal]:
    if isinstance(journal, Journal):
        yield journal
        return
    path = None if journal is None else check_path("journal", journal)
    with tempfile.TemporaryDirectory(prefix="flux2-estimate-") as folder:
        if path is None or not await anyio.Path(path).is_file():
            path = Path(folder) / "run.db"
        async with Journal(path) as own:
            yield own


def _estimate(
    entry: Entry, tallies: Sequence[Tally], taken: float | None, options: Options, rate_limit: RateLimit | None
) -> BatchEstimate:
    states: Counter[State] = Counter()
    queued: Counter[Kind] = Counter()
    seen: dict[Kind, float] = {}
    for tally in tallies:
        kind = (tally.model, tally.resolution)
        states[tally.state] += tally.wanted
        if tally.state is State.QUEUED:
            queued[kind] += tally.wanted
        if tally.state is State.DONE and tally.price is not None:
            seen[kind] = tally.price
    kinds = tuple(
        KindEstimate(
            model=kind[0],
            resolution=kind[1],
            requests=count,
            price=seen.get(kind, documented_price(*kind)),
            seen=kind in seen,
        )
        for kind, count in sorted(_first(queued, options.max_tasks).items())
        if count
    )
    number = sum(kind.requests for kind in kinds)
    # Any cap: without one a kind counts with its documented price.
    spending = BatchSpending.of(tallies, 0.0)
    least, most = TASK_SECONDS if taken is None else (taken, taken)
    return BatchEstimate(
        requests=number,
        credits=sum(kind.requests * kind.price for kind in kinds),
        seconds=(
            seconds_of(number, least, rate_limit, options.max_running),
            seconds_of(number, most, rate_limit, options.max_running),
        ),
        kinds=kinds,
        done=states[State.DONE],
        waiting=states[State.SUBMITTED],
        failed=states[State.FAILED],
        unknown=states[State.UNKNOWN],
        spent=spending.spent,
        least_max_credits=max((spending.needed((kind.model, kind.resolution)) for kind in kinds), default=0.0),
        invalid=tuple(entry.bad),
        invalid_count=entry.bad_count,
    )


def _first(queued: Counter[Kind], most: int | None) -> Counter[Kind]:
    """Give the kinds of the requests that one run takes: of a part, in the proportion of all."""
    total = queued.total()
    if most is None or total <= most:
        return queued
    part = Counter({kind: count * most // total for kind, count in queued.items()})
    for kind, _ in queued.most_common(most - part.total()):
        part[kind] += 1
    return part
