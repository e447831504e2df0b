"""This library, observed by its `Telemetry` under the SDK of OpenTelemetry: each span is recorded, none is sent."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchmarks.contenders import Setting, ours
from flux2_async.telemetry import Telemetry


class Counting(SpanExporter):
    """Counts spans, which go no further: what sending them costs is the exporter's matter."""

    spans = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take a batch."""
        self.spans += len(spans)
        return SpanExportResult.SUCCESS


@asynccontextmanager
async def entered(setting: Setting) -> AsyncIterator[ours.Ours]:
    """See `contenders.entered`."""
    tracers = TracerProvider(shutdown_on_exit=False)
    exporter = Counting()
    tracers.add_span_processor(BatchSpanProcessor(exporter))
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    async with ours.entered(setting) as contender:
        contender.flux.observe(Telemetry(tracer_provider=tracers, meter_provider=meters))
        yield contender
    tracers.shutdown()
    assert exporter.spans, "nothing was recorded"  # noqa: S101  a benchmark of failures is none
    meters.shutdown()
