# Install in a virtual environment: pip install flux2-async fastapi uvicorn
# Start it: PUBLIC_URL=https://app.example APIKLEY_CALLBACK_SECRET=... uvicorn app:app
"""A backend on FastAPI: waits for the picture for 20 s, then answers 202 with an id to ask again under."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from flux2_async import Callbacks, Flux2Session, TextToImage, errors, receivers

PATIENCE = 20.0  # seconds; less than your proxy's
flux: Flux2Session = Flux2Session(
    callbacks=Callbacks(os.environ.get("PUBLIC_URL", "http://localhost:8000") + "/flux2/callback/")
)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Keep the session open while the application runs."""
    async with flux:
        yield


app: FastAPI = FastAPI(lifespan=lifespan)
app.mount("/flux2/callback", receivers.asgi_app(flux))


@app.post("/pictures")
async def create(prompt: str) -> dict[str, object]:
    """Ask for a picture, which is paid for from here on."""
    task = await flux.submit(TextToImage(prompt, tier="pro"), max_wait=2.0)
    return {"id": task.id, "urls": (await task.result(PATIENCE)).urls}


@app.get("/pictures/{task_id}")
async def read(task_id: str) -> dict[str, object]:
    """Ask again for one that took longer (your database knows whose it is); an unknown id is told at once."""
    outstanding = task_id in {task.id for task in flux.tasks()}
    urls = () if outstanding else (await flux.fetch_record(task_id)).result_urls
    return {"id": task_id, "urls": urls or (await flux.attach(task_id).result(PATIENCE)).urls}


@app.exception_handler(errors.Flux2Error)
async def explain(_request: Request, error: errors.Flux2Error) -> Response:
    """Say what became of a request that has no picture."""
    if isinstance(error, errors.TaskTimeoutError):
        return Response(error.task_id, 202, {"Location": f"/pictures/{error.task_id}"})
    if isinstance(error, errors.RateLimitedError):
        return Response("busy", 429, {"Retry-After": str(int(error.retry_after or 9) + 1)})
    statuses: dict[type, int] = {errors.TaskNotFoundError: 404, errors.InvalidRequestError: 422}
    return Response(str(error), statuses.get(type(error), 502))
