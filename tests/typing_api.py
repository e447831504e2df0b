"""The public signatures, for five type checkers to read; nobody runs it."""

from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from pathlib import Path
from typing import assert_type

import flux2_async as f
from flux2_async.batch import Batch, Job, Outcome, Progress, run_batch
from flux2_async.coordination import HostCoordination
from flux2_async.emulator import Emulator, Plan, Script
from flux2_async.receivers import aiohttp_routes, asgi_app
from flux2_async.testing import RunningEmulator
from flux2_async.webhooks import Callback, parse_callback, sign, signed_url, verify_url


def requests() -> list[f.Request]:
    """What may be asked for; what must not be is told by each checker."""
    kettle = f.TextToImage("a red kettle", aspect_ratio="16:9", resolution="2K", tier="pro")
    assert_type(kettle.aspect_ratio, f.FixedAspectRatio)
    assert_type(kettle.tier, f.Tier)
    f.TextToImage("a red kettle", aspect_ratio="auto")  # type: ignore[arg-type]  # ty: ignore[invalid-argument-type]  # nothing to take it from
    f.TextToImage("a red kettle", tier="cheap")  # type: ignore[arg-type]  # ty: ignore[invalid-argument-type]  # no such one
    f.TextToImage("a red kettle", resolution="4K")  # type: ignore[arg-type]  # ty: ignore[invalid-argument-type]  # no such one
    f.ImageToImage("make it winter")  # type: ignore[call-arg]  # ty: ignore[missing-argument]  # of what
    winter = f.ImageToImage("make it winter", images=["a.jpg", Path("b.png"), b"\xff\xd8"], aspect_ratio="auto")
    assert_type(winter.images, tuple[f.ImageSource, ...])
    assert_type(winter.aspect_ratio, f.AspectRatio)
    assert_type(winter.resolution, f.Resolution)
    return [kettle, winter, f.JobRequest("google/nano-banana", {"prompt": "a kettle"})]


async def session(request: f.Request) -> None:
    """What a session gives."""
    settings = f.Callbacks("https://example.com/flux2/callback/")
    async with f.Flux2Session(callbacks=settings, budget=f.Budget(30.0), coordination=HostCoordination()) as flux:
        task = await flux.submit(request, key="order-1", max_wait=1.0, priority=1, group="ada", metadata={"a": 1})
        assert_type(task, f.ImageTask)
        assert_type(task.id, str)
        assert_type(task.state, f.TaskState)
        assert_type(task.error, Exception | None)
        assert_type(task.expectation(), f.Expectation)
        assert_type(await task, f.ImageResult)
        assert_type(await task.result(timeout=300), f.ImageResult)
        assert_type(await task.wait(), bool)
        async for record in task.updates(every=1.0):
            assert_type(record, f.TaskRecord)
            assert_type(record.credits_consumed, float | None)

        handle = flux.enqueue(request)
        assert_type(handle, f.SubmissionHandle)
        assert_type(await handle, f.ImageTask)
        assert_type(handle.state, f.SubmissionState)
        assert_type(handle.position, int | None)
        assert_type(handle.expected_start, datetime | None)
        assert_type(handle.withdraw(), bool)

        result = await flux.generate(request, timeout=300.0)
        assert_type(result.urls, tuple[str, ...])
        assert_type(await flux.download(result, "out"), list[Path])
        assert_type(await flux.upload("a.jpg"), f.UploadedFile)
        assert_type(await flux.fetch_record("id"), f.TaskRecord)
        assert_type(await flux.recover("ref"), f.ImageTask)
        assert_type(await flux.credits(), float)
        assert_type(flux.attach("id"), f.ImageTask)
        assert_type(flux.tasks(), tuple[f.ImageTask, ...])
        assert_type(flux.estimate([request]), f.Estimate)
        assert_type(flux.remaining(), float | None)
        assert_type(flux.statistics(), f.SessionStatistics)
        assert_type(flux.service, f.Service)
        assert_type(flux.rate_limit, f.RateLimit | None)
        assert_type(flux.observe(print), Callable[[], None])
        assert_type(await flux.aclose(), f.Unsettled)


async def many(flux: f.Flux2Session) -> None:
    """The loop of the README, where `result` is a picture in the branch without an error."""
    completions = flux.as_completed(requests())
    assert_type(completions, AsyncGenerator[f.Completion, None])
    async for done in completions:
        assert_type(done.request, f.Request)
        if done.error:
            failed: Exception = done.error
            assert str(failed)
        else:
            await flux.download(done.result, "out")


async def batches(flux: f.Flux2Session) -> None:
    """What a batch gives."""
    jobs = [Job(request, id=str(number)) for number, request in enumerate(requests())]
    batch = run_batch(flux, jobs, journal="out/journal.db", directory="out")
    assert_type(batch, Batch)
    assert_type(batch.progress, Progress | None)
    async for outcome in batch:
        assert_type(outcome, Outcome)
        assert_type(outcome.files, tuple[str, ...])
        assert_type(outcome.credits, float | None)


def callbacks(flux: f.Flux2Session) -> None:
    """What a receiver of one's own is made of, and ours."""
    assert_type(signed_url("https://example.com/", "ref", "secret"), str)
    assert_type(verify_url("ref=a&sig=b", "secret"), str | None)
    assert_type(sign("id", "1764460800", "secret"), str)
    assert_type(parse_callback(b"{}"), Callback)
    aiohttp_routes(flux, "/flux2/callback")
    asgi_app(flux)


async def emulated(flux2_emulator: RunningEmulator) -> None:
    """What tests are given."""
    assert_type(flux2_emulator.script, Script)
    assert_type(flux2_emulator.base_url, str)
    async with Emulator(Script(plans=Plan(duration=1.0))) as emulator:
        assert_type(emulator.base_url, str)
