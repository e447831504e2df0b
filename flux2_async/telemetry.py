"""OpenTelemetry for sessions: spans and metrics after its conventions for generative AI; needs the extra `otel`.

    telemetry = Telemetry()
    flux = Flux2Session(observers=[telemetry])

One `Telemetry` may observe any number of sessions. It uses the API of OpenTelemetry alone; SDK and exporters are the
program's matter.

`flux2 docs telemetry` has the spans and metrics, and how a trace goes on in another process. A task that a callback
tells of is linked to its unclear submission in the process that made that.
"""

import json
from collections.abc import Callable
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, Final
from weakref import WeakSet

import attrs

from flux2_async._shown.version import VERSION
from flux2_async.errors import Flux2Error
from flux2_async.models.events import Attached, Paused, Polled, Queued, SessionEvent, Settled, SubmissionChanged
from flux2_async.models.records import TaskRecord, TaskState
from flux2_async.models.requests import Request
from flux2_async.models.submission_state import SubmissionEvent, SubmissionState

MISSING: Final = 'flux2_async.telemetry needs the extra "otel"; install it with: pip install "flux2-async[otel]"'

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context, get_current
except ModuleNotFoundError as _missing:
    if (_missing.name or "").partition(".")[0] != "opentelemetry":
        raise
    raise ImportError(MISSING, name=_missing.name) from None

__all__ = ["Telemetry"]

# The names below as they stand in open-telemetry/semantic-conventions-genai since 2026-10-06 (v0.1.0), which is in
# development; the address is the one that its registry declares.
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev"
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
OUTPUT_TYPE: Final = "gen_ai.output.type"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
ERROR_TYPE: Final = "error.type"
DURATION: Final = "gen_ai.client.inference.duration"
DURATION_BUCKETS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
# Of the conventions' operations, what comes nearest; they have none for a submission, and allow others.
UNKNOWN_MODEL: Final = "unknown"
GENERATE: Final = "generate_content"
SUBMIT: Final = "submit"

# Our own.
REF: Final = "flux2.submission.ref"
SUBMISSION_STATE: Final = "flux2.submission.state"
TASK_STATE: Final = "flux2.task.state"
CREDITS_CONSUMED: Final = "flux2.credits"
REFUSALS: Final = "flux2.client.refusals"
PAUSES: Final = "flux2.client.pause.duration"
RUNNING: Final = "flux2.client.running"
WAITING: Final = "flux2.client.waiting"
LAG: Final = "flux2.client.lag"
CREDITS: Final = "flux2.client.credits"
SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 300.0)

POLLED: Final = {state: {TASK_STATE: state.value} for state in TaskState}
NOT_VISIBLE: Final = {TASK_STATE: "not visible"}
WAITING_STATES: Final = frozenset({SubmissionState.QUEUED, SubmissionState.ARMED, SubmissionState.ANNOUNCED})
# Submissions of unknown outcome that are remembered for the callback that tells of them.
UNCLEAR_MAX: Final = 1000

# Members that are asked for with every task; Python 3.11 takes as long to find one in its class as to call a function.
CLIENT: Final = trace.SpanKind.CLIENT
SENT: Final = SubmissionState.SENT

_Attributes = dict[str, str | float]


class _Kind:
    """What the spans of a model's tasks begin with; made once, of all spans' attributes these are most."""

    def __init__(self, model: str, service: str) -> None:
        self.model = model
        self.submit = f"{SUBMIT} {model}"
        self.generate = f"{GENERATE} {model}"
        common = {REQUEST_MODEL: model, PROVIDER: service, OUTPUT_TYPE: "image"}
        self.submitted: _Attributes = {OPERATION: SUBMIT, **common}
        self.generated: _Attributes = {OPERATION: GENERATE, **common}


_kind = lru_cache(_Kind)


@attrs.define(eq=False)
class _Submission:
    """One that was called for; `posted`: when its createTask left, in ns since 1970, or None while it waits."""

    span: trace.Span
    parent: Context
    request: Request
    kind: _Kind
    posted: int | None = None


@attrs.define(eq=False)
class _Wait:
    """A task that is not settled; `begun` in ns since 1970; model and begun are None for one not submitted here."""

    span: trace.Span
    model: str | None = None
    begun: int | None = None


class _Instruments:
    """The metrics of one provider, which reads from here what is outstanding: telling it each time would cost more."""

    def __init__(self, provider: metrics.MeterProvider | None) -> None:
        self.telemetries: WeakSet[Telemetry] = WeakSet()
        self.credits: dict[str, float] = {}
        meter = metrics.get_meter("flux2_async", VERSION, provider, SCHEMA_URL)

        def histogram(name: str, description: str, buckets: tuple[float, ...]) -> metrics.Histogram:
            return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=buckets)

        self.duration = histogram(DURATION, "GenAI client inference operation duration.", DURATION_BUCKETS)
        self.lag = histogram(LAG, "From a task's end by the service's clock until it is known here.", SECONDS)
        self.pauses = histogram(PAUSES, "How long 429s let all submissions wait.", SECONDS)
        self.refusals = meter.create_counter(REFUSALS, "{refusal}", "createTask calls that the service refused.")
        meter.create_observable_counter(CREDITS, [self._consumed], "{credit}", "Credits that tasks have consumed.")
        meter.create_observable_up_down_counter(RUNNING, [self._running], "{task}", "Tasks that are not settled.")
        meter.create_observable_up_down_counter(
            WAITING, [self._waiting], "{submission}", "Submissions that wait to be sent."
        )

    def _consumed(self, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        return [metrics.Observation(total, {REQUEST_MODEL: model}) for model, total in list(self.credits.items())]

    def _running(self, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        return [metrics.Observation(sum(telemetry.running for telemetry in list(self.telemetries)))]

    def _waiting(self, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        return [metrics.Observation(sum(telemetry.waiting for telemetry in list(self.telemetries)))]


class Telemetry:
    """An observer of sessions that makes spans and metrics of what happens, see the module.

    Args:
        prompts: Whether the spans hold the prompts, as `gen_ai.input.messages`.
        tracer_provider: What makes the spans. None: OpenTelemetry's global one.
        meter_provider: What makes the metrics. None: OpenTelemetry's global one.

    Attributes:
        wants: The events that are of use to it.

    Raises:
        ImportError: On import of the module, without the extra `otel`.
    """

    wants: Final = frozenset({Queued, Attached, Polled, Settled, Paused}) | (
        frozenset(SubmissionEvent) - {SubmissionEvent.GRANTED, SubmissionEvent.ANNOUNCED}
    )

    def __init__(
        self,
        *,
        prompts: bool = False,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._prompts = prompts
        self._tracer = trace.get_tracer("flux2_async", VERSION, tracer_provider, SCHEMA_URL)
        self._instruments = _instruments(meter_provider)
        self._instruments.telemetries.add(self)
        self._submissions: dict[str, _Submission] = {}
        self._unclear: dict[str, _Submission] = {}
        self._waits: dict[str, _Wait] = {}
        self._handlers: dict[type[SessionEvent], Callable[[Any], object]] = {
            Queued: self._begin,
            SubmissionChanged: self._changed,
            Attached: self._attached,
            Polled: self._polled,
            Settled: self._settled,
            Paused: lambda event: self._instruments.pauses.record(event.seconds),
        }

    def __call__(self, event: SessionEvent) -> None:
        """Take an event of a session."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def context(self, task_id: str) -> Context | None:
        """Give the context of a task's span, to be carried elsewhere.

        Example:
            telemetry = Telemetry()
            flux.observe(telemetry)
            task = await flux.submit(request)
            carrier: dict[str, str] = {}
            propagate.inject(carrier, telemetry.context(task.id))

        Args:
            task_id: The task.

        Returns:
            The context, or None for a task that is not outstanding.
        """
        wait = self._waits.get(task_id)
        return None if wait is None else trace.set_span_in_context(wait.span)

    @property
    def running(self) -> int:
        """Tasks that are not settled."""
        return len(self._waits)

    @property
    def waiting(self) -> int:
        """Submissions that wait to be sent."""
        return sum(submission.posted is None for submission in list(self._submissions.values()))

    def close(self) -> None:
        """End the spans of everything outstanding: for a session that goes on without being observed."""
        for submission in self._submissions.values():
            submission.span.end()
        for wait in self._waits.values():
            wait.span.end()
        self._submissions.clear()
        self._unclear.clear()
        self._waits.clear()

    def _begin(self, event: Queued | SubmissionChanged) -> _Submission:
        assert event.ref is not None  # noqa: S101  each submission has one
        request, parent = event.request, get_current()
        kind = _kind(request.model, event.service)
        attributes = self._attributes(kind.submitted, request)
        attributes[REF] = event.ref
        span = self._tracer.start_span(kind.submit, parent, CLIENT, attributes, start_time=_nanoseconds(event.time))
        submission = self._submissions[event.ref] = _Submission(span, parent, request, kind)
        return submission

    def _attributes(self, attributes: _Attributes, request: Request) -> _Attributes:
        if not self._prompts:
            return attributes.copy()
        part = {"type": "text", "content": request.prompt}
        return {**attributes, INPUT_MESSAGES: json.dumps([{"role": "user", "parts": [part]}])}

    def _changed(self, event: SubmissionChanged) -> None:
        ref, state = event.ref, event.state
        assert ref is not None  # noqa: S101  each submission has one
        if state is SENT or state in WAITING_STATES:
            # The function may observe since this moment.
            self._step(self._submissions.get(ref) or self._begin(event), event)
        elif (submission := self._submissions.pop(ref, None)) is not None:
            self._end(ref, submission, event)
        elif (submission := self._unclear.get(ref)) is None:
            pass
        elif event.event is SubmissionEvent.REPEATED:
            submission.posted = _nanoseconds(event.time)
        else:
            del self._unclear[ref]
            # Otherwise a person looked, and there is no such task.
            if event.task_id is not None:
                self._wait(event.task_id, event, submission)

    def _step(self, submission: _Submission, event: SubmissionChanged) -> None:
        submission.posted = _nanoseconds(event.time) if event.state is SENT else None
        if event.event is SubmissionEvent.THROTTLED:
            self._refused(submission, event.error)
            submission.span.add_event("throttled", _error(event.error), _nanoseconds(event.time))

    def _refused(self, submission: _Submission, error: Exception | None) -> None:
        self._instruments.refusals.add(1, {REQUEST_MODEL: submission.kind.model, **_error(error)})

    def _end(self, ref: str, submission: _Submission, event: SubmissionChanged) -> None:
        now, span = _nanoseconds(event.time), submission.span
        if event.task_id is not None:
            self._wait(event.task_id, event, submission)
            span.set_attribute(RESPONSE_ID, event.task_id)
        else:
            span.set_attribute(SUBMISSION_STATE, event.state.value)
            _fail(span, event.error)
            # A budget refuses before anything is sent.
            if submission.posted is not None:
                self._took(event, submission.kind.model, now - submission.posted)
                if event.event is SubmissionEvent.REFUSED:
                    self._refused(submission, event.error)
            if event.state is SubmissionState.UNKNOWN:
                self._unclear[ref] = submission
                if len(self._unclear) > UNCLEAR_MAX:
                    del self._unclear[next(iter(self._unclear))]
        span.end(now)

    def _wait(self, task_id: str, event: SubmissionChanged, submission: _Submission) -> None:
        link = submission.span.get_span_context()
        if (known := self._waits.get(task_id)) is not None:
            # Attached before, or the task of another submission as well.
            known.span.add_link(link)
            return
        kind = submission.kind
        attributes = self._attributes(kind.generated, submission.request)
        attributes[RESPONSE_ID] = task_id
        begun = submission.posted or _nanoseconds(event.time)
        span = self._start(kind.generate, submission.parent, link, attributes, begun)
        self._waits[task_id] = _Wait(span, kind.model, submission.posted)

    def _attached(self, event: SessionEvent) -> _Wait:
        assert event.task_id is not None  # noqa: S101  each task has one
        # Polls are made in the context of whoever happened to bring them about.
        parent = get_current() if isinstance(event, Attached) else Context()
        link = trace.get_current_span(parent).get_span_context()
        attributes: _Attributes = {OPERATION: GENERATE, RESPONSE_ID: event.task_id, OUTPUT_TYPE: "image"}
        attributes[PROVIDER] = event.service
        span = self._start(GENERATE, parent, link, attributes, _nanoseconds(event.time))
        wait = self._waits[event.task_id] = _Wait(span)
        return wait

    def _start(
        self, name: str, parent: Context, link: trace.SpanContext, attributes: _Attributes, begun: int
    ) -> trace.Span:
        links = [trace.Link(link)] if link.is_valid else None
        return self._tracer.start_span(name, parent, CLIENT, attributes, links, begun)

    def _polled(self, event: Polled) -> None:
        assert event.task_id is not None  # noqa: S101  each task has one
        # The function may observe since this moment.
        span = (self._waits.get(event.task_id) or self._attached(event)).span
        if span.is_recording():
            if event.error is not None:
                seen = _error(event.error)
            else:
                seen = NOT_VISIBLE if event.record is None else POLLED[event.record.state]
            span.add_event("poll", seen, _nanoseconds(event.time))

    def _settled(self, event: Settled) -> None:
        assert event.task_id is not None  # noqa: S101  each task has one
        wait = self._waits.get(event.task_id) or self._attached(event)
        del self._waits[event.task_id]
        now, span, record = _nanoseconds(event.time), wait.span, _record_of(event)
        if record is not None:
            self._finished(event, wait, record)
        _fail(span, event.error)
        if wait.begun is not None:
            self._took(event, wait.model, now - wait.begun)
        elif record is not None and record.duration is not None:
            self._took(event, record.model, int(record.duration * 1e9))
        span.end(now)

    def _finished(self, event: Settled, wait: _Wait, record: TaskRecord) -> None:
        model = wait.model or record.model or UNKNOWN_MODEL
        if record.model is not None:
            wait.span.set_attribute(RESPONSE_MODEL, record.model)
        if record.credits_consumed is not None:
            wait.span.set_attribute(CREDITS_CONSUMED, record.credits_consumed)
            consumed = self._instruments.credits
            consumed[model] = consumed.get(model, 0.0) + record.credits_consumed
        # One that was attached may have ended long before.
        if record.complete_time is not None and wait.begun is not None:
            lag = max((event.time - record.complete_time).total_seconds(), 0.0)
            self._instruments.lag.record(lag, {REQUEST_MODEL: model})

    def _took(self, event: SubmissionChanged | Settled, model: str | None, nanoseconds: int) -> None:
        kind = None if event.error is None else type(event.error).__name__
        self._instruments.duration.record(max(nanoseconds, 0) / 1e9, _of_duration(event.service, model, kind))


@cache
def _instruments(provider: metrics.MeterProvider | None) -> _Instruments:
    """Give those of a provider, of which OpenTelemetry makes each once; None: of the global one."""
    return _Instruments(provider)


@lru_cache
def _of_duration(service: str, model: str | None, error: str | None) -> dict[str, str]:
    told = {OPERATION: GENERATE, PROVIDER: service, ERROR_TYPE: error, REQUEST_MODEL: model}
    return {name: value for name, value in told.items() if value is not None}


def _nanoseconds(time: datetime) -> int:
    return int(time.timestamp() * 1e6) * 1000


def _error(error: Exception | None) -> dict[str, str]:
    return {} if error is None else {ERROR_TYPE: type(error).__name__}


def _fail(span: trace.Span, error: Exception | None) -> None:
    if error is not None:
        # Without its text, which may name what the caller gave.
        span.set_attribute(ERROR_TYPE, type(error).__name__)
        span.set_status(trace.StatusCode.ERROR)


def _record_of(event: Settled) -> TaskRecord | None:
    if event.result is not None:
        return event.result.record
    record = getattr(event.error, "record", None) if isinstance(event.error, Flux2Error) else None
    return record if isinstance(record, TaskRecord) else None
