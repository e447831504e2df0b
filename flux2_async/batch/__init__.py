"""Batches that survive a crash: a journal of requests, and what runs it.

    async with Flux2Session() as flux:
        async for outcome in run_batch(flux, requests, journal="run.db", directory="results/"):
            print(outcome.id, outcome.state, outcome.files)

Run again with the same journal, it continues where it stopped: nothing is paid twice, and no paid picture is lost.
"""

import sys

from flux2_async.batch.estimate import BatchEstimate, KindEstimate, estimate_batch
from flux2_async.batch.jobs import BadLine, InvalidInputError, Job
from flux2_async.batch.journal import Journal, JournalError, UnknownRequest
from flux2_async.batch.outcomes import Download, Failure, Outcome, State, document
from flux2_async.batch.progress import Progress
from flux2_async.batch.reading import match_jobs, read_jobs
from flux2_async.batch.results import read_results, write_results
from flux2_async.batch.run import Batch, run_batch

__all__ = [
    "BadLine",
    "Batch",
    "BatchEstimate",
    "Download",
    "Failure",
    "InvalidInputError",
    "Job",
    "Journal",
    "JournalError",
    "KindEstimate",
    "Outcome",
    "Progress",
    "State",
    "UnknownRequest",
    "document",
    "estimate_batch",
    "match_jobs",
    "read_jobs",
    "read_results",
    "run_batch",
    "write_results",
]

# The module of version 0.1.0 by which its pickles name what this one gives.
sys.modules[f"{__name__}._schema"] = sys.modules[__name__]
