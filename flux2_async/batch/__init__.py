"""Batches that survive a crash: a journal of requests, and what runs it.

    async with Flux2Session() as flux:
        async for outcome in run_batch(flux, requests, journal="run.db", directory="results/"):
            print(outcome.id, outcome.state, outcome.files)

Run again with the same journal it goes on where it stopped: nothing is paid twice, and no paid picture is lost.
"""

from flux2_async.batch.outcomes import Download, Failure, Outcome, State

__all__ = ["Download", "Failure", "Outcome", "State"]
