# Install in a virtual environment: pip install "flux2-async[redis]" fastapi uvicorn
# Start it: PUBLIC_URL=https://app.example APIKLEY_CALLBACK_SECRET=... uvicorn app:make_app --factory --workers 4
"""FastAPI with several workers: Redis holds what they share, the limit, the pause after a 429 and the keys.

A callback reaches one worker and wakes the one that waits. `order` is the buyer's own number: whoever asks twice, at
whichever worker, pays once. On one host `HostCoordination()` does the same without a server.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request, Response

from flux2_async import Callbacks, Flux2Session, TextToImage, errors, receivers
from flux2_async.coordination import RedisCoordination

router: APIRouter = APIRouter()


@router.post("/orders/{order}")
async def create(request: Request, order: str, prompt: str) -> dict[str, object]:
    """Make the picture of an order once, whichever worker is asked."""
    task = await request.app.state.flux.submit(TextToImage(prompt, tier="pro"), key=order, max_wait=60.0)
    result = await task.result(timeout=100)
    return {"worker": os.getpid(), "id": task.id, "urls": result.urls}


async def explain(_request: Request, error: Exception) -> Response:
    """Say why an order has no picture."""
    return Response(str(error), 422 if isinstance(error, errors.InvalidRequestError) else 502)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep the session open while the worker runs."""
    async with app.state.flux:
        yield


def make_app() -> FastAPI:
    """Make the application of one worker."""
    app = FastAPI(lifespan=lifespan, exception_handlers={errors.Flux2Error: explain})
    app.state.flux = Flux2Session(
        coordination=RedisCoordination(os.environ.get("REDIS_URL", "redis://localhost:6379")),
        callbacks=Callbacks(os.environ.get("PUBLIC_URL", "http://localhost:8000") + "/flux2/callback/"),
    )
    app.include_router(router)
    app.mount("/flux2/callback", receivers.asgi_app(app.state.flux))
    return app
