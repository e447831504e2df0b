# Install in a virtual environment: pip install "flux2-async[otel]" fastapi uvicorn opentelemetry-exporter-prometheus
# Start it: uvicorn app:app
"""A backend that shows Prometheus at /metrics/ how long pictures take, what they cost, what waits, what is refused."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, make_asgi_app

from flux2_async import Flux2Session, TextToImage
from flux2_async.telemetry import Telemetry

registry: CollectorRegistry = CollectorRegistry()
meters: MeterProvider = MeterProvider([PrometheusMetricReader(registry=registry)])
flux: Flux2Session = Flux2Session(observers=[Telemetry(meter_provider=meters)])


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Keep the session open while the application runs."""
    async with flux:
        yield


app: FastAPI = FastAPI(lifespan=lifespan)
app.mount("/metrics", make_asgi_app(registry))


@app.post("/pictures")
async def create(prompt: str) -> dict[str, object]:
    """Ask for a picture and wait for it."""
    result = await flux.generate(TextToImage(prompt, tier="pro"), timeout=300)
    return {"id": result.task_id, "urls": result.urls}
