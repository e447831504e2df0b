"""This library, observed by its `Telemetry` under the SDK of OpenTelemetry, whose spans go no further."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NoOpTracerProvider

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
    tracers = TracerProvider(ParentBased(TraceIdRatioBased(setting.recorded)), shutdown_on_exit=False)
    exporter = Counting()
    tracers.add_span_processor(BatchSpanProcessor(exporter))
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    telemetry = Telemetry(tracer_provider=tracers if setting.recorded else NoOpTracerProvider(), meter_provider=meters)
    async with ours.entered(setting) as contender:
        contender.flux.observe(telemetry)
        yield contender
    tracers.shutdown()
    # A benchmark of failures is none.
    assert exporter.spans or setting.recorded < 1, "nothing was recorded"  # noqa: S101  see above
    meters.shutdown()
