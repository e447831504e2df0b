"""Spans and metrics of a session, as the SDK of OpenTelemetry exports them."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from emulated import REQUEST, emulated, error_of, free_port, logged, until
from opentelemetry import context, propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from flux2_async import (
    Attached,
    Budget,
    Callbacks,
    ImageResult,
    ImageToImage,
    LimitLearned,
    Paused,
    Polled,
    Queued,
    RateLimit,
    SessionEvent,
    Settled,
    SubmissionChanged,
    SubmissionEvent,
    SubmissionState,
    TaskRecord,
    TaskState,
    TextToImage,
)
from flux2_async.emulator import Fault, Limit, Plan, Script
from flux2_async.errors import AmbiguousSubmitError, TransportError
from flux2_async.receivers import serve
from flux2_async.telemetry import SCHEMA_URL, UNCLEAR_MAX, Telemetry

MODEL = REQUEST.model


@attrs.frozen
class Exported:
    """A `Telemetry`, and what came out of it."""

    telemetry: Telemetry
    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader
    tracer: trace.Tracer

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name.partition(" ")[0] == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        assert {scope.schema_url for scope in scopes} <= {SCHEMA_URL}
        return [
            point
            for scope in scopes
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def total(self, name: str) -> float:
        return float(sum(point.value for point in self.points(name)))

    def everything(self) -> str:
        """All that is exported, as one text."""
        data = self.reader.get_metrics_data()
        return "\n".join(span.to_json() for span in self.spans) + (data.to_json() if data else "")


def exported(*, sampler: Sampler = ALWAYS_ON, **options: Any) -> Exported:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(sampler, shutdown_on_exit=False), MeterProvider([reader], shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    telemetry = Telemetry(tracer_provider=tracers, meter_provider=meters, **options)
    return Exported(telemetry, spans, reader, tracers.get_tracer("the program"))


def said(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


def contexts(span: ReadableSpan) -> list[trace.SpanContext]:
    return [link.context for link in span.links]


async def test_a_task_from_its_call_to_its_picture() -> None:
    """Both spans are in the caller's trace, the wait is linked to the submission, and polls are its events."""
    out = exported()
    async with emulated(observers=[out.telemetry]) as (flux, _):
        with out.tracer.start_as_current_span("the caller's") as caller:
            task = await flux.submit(REQUEST, ref="mine")
        await task.result()

    submission, wait = out.one("submit"), out.one("generate_content")
    assert [span.name for span in (submission, wait)] == [f"submit {MODEL}", f"generate_content {MODEL}"]
    for span in (submission, wait):
        assert span.parent is not None
        assert span.parent.span_id == caller.get_span_context().span_id
        assert span.kind is trace.SpanKind.CLIENT
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.schema_url == SCHEMA_URL
        assert span.status.status_code is trace.StatusCode.UNSET
        assert (
            said(span).items()
            >= {
                "gen_ai.provider.name": "127.0.0.1",
                "gen_ai.request.model": MODEL,
                "gen_ai.output.type": "image",
                "gen_ai.response.id": task.id,
            }.items()
        )
    assert contexts(wait) == [submission.context]
    assert said(submission)["gen_ai.operation.name"] == "submit"
    assert said(submission)["flux2.submission.ref"] == "mine"
    assert said(wait)["gen_ai.operation.name"] == "generate_content"
    assert [event.name for event in wait.events] == ["poll"] * len(wait.events)
    assert [dict(event.attributes or {}) for event in wait.events][-1] == {"flux2.task.state": "success"}
    assert len(wait.events) >= 2


async def test_metrics_of_a_task() -> None:
    """The duration is the wait's, under the conventions' name and attributes; credits and lag are told too."""
    out = exported()
    async with emulated(observers=[out.telemetry]) as (flux, _):
        task = await flux.submit(REQUEST)
        assert out.total("flux2.client.running") == 1
        consumed = (await task.result()).record.credits_consumed

    [duration] = out.points("gen_ai.client.inference.duration")
    wait = out.one("generate_content")
    assert dict(duration.attributes) == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "127.0.0.1",
        "gen_ai.request.model": MODEL,
    }
    assert wait.end_time is not None
    assert wait.start_time is not None
    assert duration.sum == pytest.approx((wait.end_time - wait.start_time) / 1e9)
    assert duration.explicit_bounds[0] == 0.01
    assert consumed
    assert out.total("flux2.client.credits") == said(wait)["flux2.credits"] == consumed
    assert [point.count for point in out.points("flux2.client.lag")] == [1]
    assert (out.total("flux2.client.running"), out.total("flux2.client.waiting")) == (0, 0)


@pytest.mark.parametrize("prompts", [False, True])
async def test_no_prompt_unless_asked_for(prompts: bool) -> None:
    """No prompt, key, address, signature or text of an error is exported; the prompt when it is asked for."""
    out, request = exported(prompts=prompts), ImageToImage(
        'the "secret" garden', images=["https://files.example/a.png?signature=hidden-in-here"]
    )  # fmt: skip
    script = Script(plans=Plan(duration=1.0), faults=[Fault("createTask", "refuse", code=402, after=1)])
    async with emulated(script, observers=[out.telemetry]) as (flux, emulator):
        await (await flux.submit(request, key="an order of somebody")).result()
        await error_of(flux.submit(request))
        secret = emulator.api_key

    text = out.everything()
    for hidden in ("hidden-in-here", secret, "https://files", "an order of somebody"):
        assert hidden not in text
    assert ("garden" in text) is prompts
    if prompts:
        [message] = json.loads(said(out.one("generate_content"))["gen_ai.input.messages"])
        assert message == {"role": "user", "parts": [{"type": "text", "content": 'the "secret" garden'}]}


@pytest.mark.parametrize(
    ("fault", "error", "refusals"),
    [
        (Fault("createTask", "refuse", code=402), "InsufficientCreditsError", 1),
        (Fault("createTask", "cut_after"), "AmbiguousSubmitError", 0),
    ],
    ids=["refused", "unclear"],
)
async def test_what_does_not_become_a_task(fault: Fault, error: str, refusals: int) -> None:
    """The submission ends with the error's class as `error.type`, the call is timed, and a refusal is counted."""
    out = exported()
    async with emulated(Script(faults=[fault]), observers=[out.telemetry]) as (flux, _):
        await error_of(flux.submit(REQUEST))

    submission = out.one("submit")
    assert submission.status.status_code is trace.StatusCode.ERROR
    assert submission.status.description is None
    assert said(submission)["error.type"] == error
    assert out.named("generate_content") == []
    assert [point.attributes["error.type"] for point in out.points("gen_ai.client.inference.duration")] == [error]
    assert out.total("flux2.client.refusals") == refusals
    assert out.total("flux2.client.waiting") == 0


async def test_what_a_budget_refuses() -> None:
    """Its submission ended as refused, and is no refusal of the service: nothing was sent that could be timed."""
    out = exported()
    async with emulated(budget=Budget(1), observers=[out.telemetry]) as (flux, _):
        await error_of(flux.submit(REQUEST))

    submission = said(out.one("submit"))
    assert (submission["error.type"], submission["flux2.submission.state"]) == ("BudgetExceededError", "refused")
    assert out.points("flux2.client.refusals") == out.points("gen_ai.client.inference.duration") == []
    assert out.total("flux2.client.waiting") == 0


async def test_a_task_that_fails() -> None:
    """Its wait ends with `error.type`, which the duration carries too."""
    out = exported()
    async with emulated(Script(plans=Plan(outcome="moderated", duration=1.0)), observers=[out.telemetry]) as (flux, _):
        error = type(await error_of((await flux.submit(REQUEST)).result())).__name__

    assert said(out.one("generate_content"))["error.type"] == error == "ContentModeratedError"
    assert [point.attributes["error.type"] for point in out.points("gen_ai.client.inference.duration")] == [error]
    assert "error.type" not in said(out.one("submit"))


async def test_429s() -> None:
    """Each is an event of the submission, a refusal and a pause; who waits is counted while it waits."""
    out, rate = exported(), RateLimit(8, 10.0)
    script = Script(plans=Plan(duration=1.0), limit=Limit(4, 10.0), render=False)
    async with emulated(script, rate_limit=rate, observers=[out.telemetry]) as (flux, _):
        submitting = [asyncio.create_task(flux.submit(TextToImage(f"number {number}"))) for number in range(10)]
        await until(lambda: flux.statistics().refused)
        assert out.total("flux2.client.waiting") == 10 - flux.statistics().submitted > 0
        await asyncio.gather(*submitting)
        refused = flux.statistics().refused

    throttled = [event for span in out.named("submit") for event in span.events]
    assert [event.name for event in throttled] == ["throttled"] * refused
    assert out.total("flux2.client.refusals") == refused
    assert [dict(point.attributes) for point in out.points("flux2.client.refusals")] == [
        {"gen_ai.request.model": MODEL, "error.type": "RateLimitedError"}
    ]
    assert [point.count for point in out.points("flux2.client.pause.duration")] == [refused]
    assert out.total("flux2.client.waiting") == 0
    assert len(out.named("generate_content")) == 10


async def test_attached_in_another_process() -> None:
    """The trace goes on where a task is attached under the context that was carried over, and is linked to it."""
    first, second = exported(), exported()
    carrier: dict[str, str] = {}
    async with emulated(Script(plans=Plan(duration=30.0))) as (flux, _):
        end = flux.observe(first.telemetry)
        task = await flux.submit(REQUEST)
        propagate.inject(carrier, first.telemetry.context(task.id))
        await flux.aclose()
        end()
        assert first.telemetry.context(task.id) is None

        flux.observe(second.telemetry)
        async with flux:
            token = context.attach(propagate.extract(carrier))
            again = flux.attach(task.id)
            context.detach(token)
            assert second.total("flux2.client.running") == 1
            await again.result()

    left, wait = first.one("generate_content"), second.one("generate_content")
    assert said(left)["error.type"] == "SessionClosedError"
    assert wait.parent is not None
    assert wait.parent.is_remote
    assert left.context is not None
    assert (wait.parent.trace_id, wait.parent.span_id) == (left.context.trace_id, left.context.span_id)
    assert contexts(wait) == [wait.parent]
    assert said(wait)["gen_ai.response.id"] == task.id
    assert said(wait)["gen_ai.response.model"] == MODEL
    # Its duration is what the service says; its lag is none of ours.
    assert [point.sum for point in second.points("gen_ai.client.inference.duration")] == [pytest.approx(30, abs=1)]
    assert second.points("flux2.client.lag") == []


async def test_attached_without_a_context() -> None:
    """A task that comes from nowhere begins a trace of its own."""
    out = exported()
    async with emulated() as (flux, _):
        task = await flux.submit(REQUEST)
        await flux.aclose()
        flux.observe(out.telemetry)
        async with flux:
            await flux.attach(task.id).result()

    wait = out.one("generate_content")
    assert wait.parent is None
    assert contexts(wait) == []


async def test_the_trace_goes_on_over_a_callback() -> None:
    """A task that only its callback tells of is waited for in the trace of its unclear submission, linked to it."""
    out, port = exported(), free_port()
    script = Script(plans=Plan(duration=2.0), faults=[Fault("createTask", "cut_after")])
    callbacks = Callbacks(f"http://127.0.0.1:{port}/flux2/callback/", secret="a secret")
    async with emulated(script, callbacks=callbacks, observers=[out.telemetry]) as (flux, _):
        async with serve(flux, "127.0.0.1", port):
            with out.tracer.start_as_current_span("the caller's") as caller:
                error = await error_of(flux.submit(REQUEST))
            assert isinstance(error, AmbiguousSubmitError)
            await (await flux.recover(error.ref, timeout=60)).result()

    submission, wait = out.one("submit"), out.one("generate_content")
    assert said(submission)["flux2.submission.state"] == "unknown"
    assert contexts(wait) == [submission.context]
    assert wait.parent is not None
    assert wait.parent.span_id == caller.get_span_context().span_id


async def test_nothing_is_left_when_the_session_closes() -> None:
    """A task that never settles and a submission that never leaves end with the session, and are counted no more."""
    out, script = exported(), Script(plans=Plan(duration=1e9))
    async with emulated(script, rate_limit=RateLimit(1, 60.0), observers=[out.telemetry]) as (flux, _):
        await flux.submit(REQUEST)
        waiting = asyncio.create_task(flux.submit(REQUEST))
        await asyncio.sleep(30)
        assert (out.total("flux2.client.running"), out.total("flux2.client.waiting")) == (1, 1)
        await flux.aclose()
        await error_of(waiting)

    assert {said(span).get("error.type") for span in out.spans} == {None, "SessionClosedError"}
    assert len(out.spans) == 3
    assert (out.total("flux2.client.running"), out.total("flux2.client.waiting")) == (0, 0)


async def test_observing_for_a_while() -> None:
    """What is outstanding when it begins is taken up where it is, and `close` ends what is outstanding then."""
    out = exported()
    async with emulated(Script(plans=Plan(duration=20.0)), rate_limit=RateLimit(1, 5.0)) as (flux, _):
        task = await flux.submit(REQUEST)
        second = asyncio.create_task(flux.submit(REQUEST))
        await asyncio.sleep(1)
        end = flux.observe(out.telemetry)
        other = await second
        await asyncio.sleep(3)
        end()
        out.telemetry.close()
        await asyncio.gather(task.result(), other.result())

    assert {said(span)["gen_ai.response.id"] for span in out.named("generate_content")} == {task.id, other.id}
    assert said(out.one("submit"))["gen_ai.response.id"] == other.id
    assert (out.total("flux2.client.running"), out.total("flux2.client.waiting")) == (0, 0)


NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


def changed(event: SubmissionEvent, state: SubmissionState, after: float, **facts: Any) -> SubmissionChanged:
    time = NOON + timedelta(seconds=after)
    return SubmissionChanged(event=event, state=state, request=REQUEST, time=time, **{"ref": "mine", **facts})


def test_times() -> None:
    """Spans, duration and lag are of the events' times: the wait from the createTask that was accepted."""
    out = exported()
    record = TaskRecord(
        task_id="t1",
        state=TaskState.SUCCESS,
        state_text="success",
        result_urls=("https://files.example/1.png",),
        complete_time=NOON + timedelta(seconds=47),
    )
    told: list[SessionEvent] = [
        Queued(time=NOON, ref="mine", request=REQUEST),
        changed(SubmissionEvent.GRANTED, SubmissionState.ARMED, 10),
        changed(SubmissionEvent.POSTED, SubmissionState.SENT, 11),
        changed(SubmissionEvent.THROTTLED, SubmissionState.QUEUED, 12, error=TransportError("")),
        changed(SubmissionEvent.POSTED, SubmissionState.SENT, 30),
        changed(SubmissionEvent.ACCEPTED, SubmissionState.ACCEPTED, 31, task_id="t1"),
        Polled(time=NOON + timedelta(seconds=40), task_id="t1", seconds=0.1),
        Polled(time=NOON + timedelta(seconds=41), task_id="t1", seconds=0.1, error=TransportError("down")),
        Settled(
            time=NOON + timedelta(seconds=50),
            task_id="t1",
            result=ImageResult(task_id="t1", urls=record.result_urls, record=record),
        ),
        Paused(time=NOON, seconds=3.5, rate_limit=None),
        LimitLearned(time=NOON, limit=None, rate_limit=RateLimit(1, 1)),
    ]
    for event in told:
        out.telemetry(event)

    base = int(NOON.timestamp()) * 10**9
    submission, wait = out.one("submit"), out.one("generate_content")
    assert [(span.start_time, span.end_time) for span in (submission, wait)] == [
        (base, base + 31 * 10**9),
        (base + 30 * 10**9, base + 50 * 10**9),
    ]
    assert [(event.timestamp - base) // 10**9 for event in wait.events] == [40, 41]
    assert [dict(event.attributes or {}) for event in wait.events] == [
        {"flux2.task.state": "not visible"},
        {"error.type": "TransportError"},
    ]
    assert [point.sum for point in out.points("gen_ai.client.inference.duration")] == [20]
    assert [point.sum for point in out.points("flux2.client.lag")] == [3]
    assert [point.sum for point in out.points("flux2.client.pause.duration")] == [3.5]


def test_one_task_of_two_submissions() -> None:
    """A task that is waited for already gets a link to the submission that turns out to be its own."""
    out = exported()
    out.telemetry(Attached(time=NOON, task_id="t1"))
    out.telemetry(Queued(time=NOON, ref="mine", request=REQUEST))
    out.telemetry(changed(SubmissionEvent.FOUND, SubmissionState.ACCEPTED, 1, task_id="t1"))
    out.telemetry(Settled(time=NOON + timedelta(seconds=2), task_id="t1", error=TransportError("")))

    assert contexts(out.one("generate_content")) == [out.one("submit").context]
    assert out.total("flux2.client.running") == 0


@pytest.mark.parametrize("recorded", [True, False])
def test_sent_again_under_its_name(recorded: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The task of a submission that was unclear, and was repeated, is waited for in its trace, linked to it."""
    out = exported(sampler=ALWAYS_ON if recorded else ALWAYS_OFF)
    out.telemetry(Queued(time=NOON, ref="mine", request=REQUEST))
    out.telemetry(changed(SubmissionEvent.POSTED, SubmissionState.SENT, 1))
    out.telemetry(changed(SubmissionEvent.UNCLEAR, SubmissionState.UNKNOWN, 61))
    out.telemetry(changed(SubmissionEvent.REPEATED, SubmissionState.UNKNOWN, 62))
    out.telemetry(changed(SubmissionEvent.ACCEPTED, SubmissionState.ACCEPTED, 63, task_id="t1"))
    out.telemetry(Settled(time=NOON + timedelta(seconds=70), task_id="t1", error=TransportError("")))

    if recorded:
        assert contexts(out.one("generate_content")) == [out.one("submit").context]
    assert {(point.count, point.sum) for point in out.points("gen_ai.client.inference.duration")} == {(1, 60), (1, 8)}
    assert logged(caplog, "opentelemetry") == []


def test_never_made() -> None:
    """An unclear submission of which a person finds that there is no task is no refusal, and is not timed again."""
    out = exported()
    out.telemetry(Queued(time=NOON, ref="mine", request=REQUEST))
    out.telemetry(changed(SubmissionEvent.POSTED, SubmissionState.SENT, 1))
    out.telemetry(changed(SubmissionEvent.UNCLEAR, SubmissionState.UNKNOWN, 61, error=TransportError("")))
    out.telemetry(changed(SubmissionEvent.DISOWNED, SubmissionState.REFUSED, 90))

    assert said(out.one("submit"))["flux2.submission.state"] == "unknown"
    assert [point.count for point in out.points("gen_ai.client.inference.duration")] == [1]
    assert out.points("flux2.client.refusals") == []


def test_memory_is_bounded() -> None:
    """Unclear submissions that nobody ever clears up are not kept for ever; the newest still lead to their span."""
    out = exported()
    for number in range(UNCLEAR_MAX + 1):
        ref = str(number)
        out.telemetry(Queued(time=NOON, ref=ref, request=REQUEST))
        out.telemetry(changed(SubmissionEvent.UNCLEAR, SubmissionState.UNKNOWN, 1, ref=ref))
    for number in (0, UNCLEAR_MAX):
        out.telemetry(
            changed(SubmissionEvent.FOUND, SubmissionState.ACCEPTED, 2, ref=str(number), task_id=f"task {number}")
        )
    out.telemetry.close()

    assert [said(span)["gen_ai.response.id"] for span in out.named("generate_content")] == [f"task {UNCLEAR_MAX}"]


def test_two_of_one_provider() -> None:
    """What two observers with the same metrics see is added up, since OpenTelemetry makes an instrument once."""
    reader = InMemoryMetricReader()
    meters, tracers = MeterProvider([reader], shutdown_on_exit=False), TracerProvider(shutdown_on_exit=False)
    both = [Telemetry(tracer_provider=tracers, meter_provider=meters) for _ in range(2)]
    out = Exported(both[0], InMemorySpanExporter(), reader, tracers.get_tracer("the program"))
    for number, telemetry in enumerate(both):
        telemetry(Attached(time=NOON, task_id=f"task {number}"))
        telemetry(Queued(time=NOON, ref=str(number), request=REQUEST))

    assert (out.total("flux2.client.running"), out.total("flux2.client.waiting")) == (2, 2)
    both[0].close()
    assert (out.total("flux2.client.running"), out.total("flux2.client.waiting")) == (1, 1)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout  # noqa: S603  our own words


def test_nothing_of_it_is_loaded_without_it() -> None:
    """Who does not observe by it does not load OpenTelemetry, whatever else is used."""
    names = "import flux2_async\nfor name in flux2_async.__all__: getattr(flux2_async, name)"
    assert run(f"{names}\nimport sys; print('opentelemetry' in sys.modules)") == "False\n"


def test_without_the_extra() -> None:
    """The error says what to install."""
    hide = "import sys; sys.modules['opentelemetry'] = None\n"
    code = f"{hide}try:\n    import flux2_async.telemetry\nexcept ImportError as error:\n    print(error)"
    assert run(code) == (
        'flux2_async.telemetry needs the extra "otel"; install it with: pip install "flux2-async[otel]"\n'
    )
