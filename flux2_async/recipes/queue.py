# Install in a virtual environment: pip install "flux2-async[otel]" fastapi uvicorn opentelemetry-exporter-prometheus
# Start it: uvicorn app:app
"""A backend whose users see position, stages, expected end and price, may cancel, and take turns; with /metrics/."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

from fastapi import FastAPI, HTTPException, responses
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import make_asgi_app

from flux2_async import Flux2Session, SubmissionHandle, TextToImage, errors
from flux2_async.telemetry import Telemetry

flux: Flux2Session = Flux2Session(observers=[Telemetry(meter_provider=MeterProvider([PrometheusMetricReader()]))])
pictures: dict[str, SubmissionHandle] = {}  # of this process; what is to outlive it belongs into your database


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Keep the session open while the application runs."""
    async with flux:
        yield


app: FastAPI = FastAPI(lifespan=lifespan)
app.add_exception_handler(errors.InvalidRequestError, lambda _, error: responses.PlainTextResponse(str(error), 422))
app.mount("/metrics", make_asgi_app())


@app.post("/pictures")
async def create(prompt: str, user: str) -> dict[str, str]:
    """Put a picture into the queue, in which users take turns."""
    handle = flux.enqueue(TextToImage(prompt, tier="pro"), group=user)
    return {"id": pictures.setdefault(handle.ref, handle).ref}


@app.delete("/pictures/{ref}")
async def cancel(ref: str) -> dict[str, bool]:
    """Take it back, if that is still possible: then nothing is paid for it."""
    return {"cancelled": found(ref).withdraw()}


@app.get("/pictures/{ref}")
async def follow(ref: str) -> responses.StreamingResponse:
    """Show where it is as server-sent events, until it has ended."""
    return responses.StreamingResponse(events(found(ref)), media_type="text/event-stream")


async def events(handle: SubmissionHandle) -> AsyncIterator[str]:
    """Tell where it is: each second while it waits, then at each stage."""
    stages, ended = None, False
    while not ended:
        task, left = handle.task, handle.expectation().remaining
        ended = bool(handle.error or (task and task.done()))
        facts = {
            "state": handle.state if task is None else task.state,
            "position": handle.position,
            "expected_end": None if left is None else str(datetime.now(UTC) + timedelta(seconds=left)),
            "credits": flux.estimate(handle.request).credits,
            "urls": task.record.result_urls if task and task.record else [],
            "error": handle.error and str(handle.error),
        }
        yield f"data: {json.dumps(facts)}\n\n"
        stages = stages or (task and task.updates(every=1.0))
        with suppress(errors.Flux2Error):  # told by the next event
            await (anext(stages, None) if stages else asyncio.sleep(0.0 if ended else 1.0))


def found(ref: str) -> SubmissionHandle:
    """Give a picture by its id."""
    if ref not in pictures:
        raise HTTPException(404, "there is no such picture")
    return pictures[ref]
