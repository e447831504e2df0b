"""What the emulated service will do: plans for its tasks, a limit, faults, an outage.

All durations are seconds of the event loop's clock.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import attrs

Endpoint = Literal["createTask", "recordInfo", "credit", "download-url", "upload", "file", "callback"]
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)

Outcome = Literal["success", "fail", "moderated", "empty"]
HiddenStyle = Literal["422", "null", "404"]
CallbackPlan = Literal["once", "early", "twice", "late", "lost"]
Policy = Literal["sliding", "fixed", "bucket", "counter"]
FaultKind = Literal[
    "refuse", "html", "broken_json", "cut_before", "cut_after", "cut_body", "hang", "under_escaped", "redirect"
]

# A callback is sent, not answered: only what can go wrong with a sent message makes sense there.
CALLBACK_FAULTS: frozenset[FaultKind] = frozenset({"broken_json", "html", "cut_before", "cut_after"})

LATE = 30.0
"""Seconds that a `late` callback waits when its plan names no delay."""


_Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _is(right: Callable[[Any], bool], words: str) -> _Validator:
    def check(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
        if not right(value):
            raise ValueError(f"{field.name}: {value!r} given, use {words}")

    return check


def _one_of(allowed: tuple[object, ...]) -> _Validator:
    return _is(allowed.__contains__, f"one of {', '.join(map(str, allowed))}")


def _number(least: int, *, optional: bool = False) -> _Validator:
    return _is(
        lambda value: value >= least if isinstance(value, int | float) else optional and value is None,
        f"a number of {least} or more{', or None' * optional}",
    )


def _words(values: Iterable[str]) -> tuple[str, ...]:
    # Of one text each character would be a state or an address.
    return (values,) if isinstance(values, str) else tuple(values)


@attrs.frozen
class Plan:
    """What one task will do.

    Attributes:
        duration: Seconds from acceptance to the end; `math.inf` waits for `Emulator.finish`.
        outcome: `success` gives pictures, `fail` and `moderated` a failed task that costs nothing, `empty` a
            success that names no file (and is charged).
        states: The states on the way, each shown for an equal part of `duration`.
        credits: What the task costs unless it fails; None takes the upstream price of its model and resolution.
        fail_code: `failCode` of a failed task; None takes the usual one of the outcome (`500`, moderated: `422`).
        fail_message: `failMsg` likewise.
        hidden_for: Seconds after acceptance in which recordInfo does not know the task.
        hidden_style: What it answers then: `422` "recordInfo is null", `null` code 200 with null data, `404`.
        callback: When a `callBackUrl` was given: `once` at the end; `early` before the createTask reply (the task
            ends at once); `twice`; `late` (`callback_delay`, else 30 s after the end, our choice); `lost`: never sent.
        callback_delay: Seconds from the end of the task to the callback; None: none, or 30 for `late`.
        pictures: Number of result addresses of a success.
        result_urls: Result addresses of a success at other hosts, instead of those of pictures made here.
        record_lag: Seconds for which recordInfo still shows the last pending state after the end.
    """

    duration: float = attrs.field(default=2.0, validator=_number(0))
    outcome: Outcome = attrs.field(default="success", validator=_one_of(get_args(Outcome)))
    states: tuple[str, ...] = attrs.field(default=("waiting", "queuing", "generating"), converter=_words)
    credits: float | None = attrs.field(default=None, validator=_number(0, optional=True))
    fail_code: str | None = None
    fail_message: str | None = None
    hidden_for: float = attrs.field(default=0.0, validator=_number(0))
    hidden_style: HiddenStyle = attrs.field(default="422", validator=_one_of(get_args(HiddenStyle)))
    callback: CallbackPlan = attrs.field(default="once", validator=_one_of(get_args(CallbackPlan)))
    callback_delay: float | None = attrs.field(default=None, validator=_number(0, optional=True))
    pictures: int = attrs.field(default=1, validator=_number(1))
    result_urls: tuple[str, ...] = attrs.field(default=(), converter=_words)
    record_lag: float = attrs.field(default=0.0, validator=_number(0))

    @property
    def failing(self) -> bool:
        """Whether the task ends in the state `fail`."""
        return self.outcome in {"fail", "moderated"}

    def delay(self) -> float:
        """Seconds from the end of the task to its callback."""
        if self.callback_delay is not None:
            return self.callback_delay
        return LATE if self.callback == "late" else 0.0


@attrs.frozen
class Limit:
    """How many new tasks the service admits; what it refuses (429) is not queued and does not count.

    Attributes:
        limit: Number of tasks.
        period: Seconds.
        policy: `sliding` is a log of the last `period` seconds; `fixed` counts in windows from the start on;
            `bucket` holds `limit` tokens and refills `limit` per `period`; `counter` is the two-window
            approximation that weights the previous window's count.
        retry_after: Whether a refusal carries Retry-After, as whole `seconds` or as a `date`; None: no header.
    """

    limit: int = attrs.field(validator=_number(1))
    period: float = attrs.field(
        validator=_is(lambda value: isinstance(value, int | float) and value > 0, "a number above 0")
    )
    policy: Policy = attrs.field(default="sliding", validator=_one_of(get_args(Policy)))
    retry_after: Literal["seconds", "date"] | None = attrs.field(
        default=None, validator=_one_of(("seconds", "date", None))
    )


@attrs.frozen
class Fault:
    """Something that goes wrong with matching calls.

    Attributes:
        on: The endpoint: `createTask`, `recordInfo`, `credit`, `download-url`, `upload` (all three), `file` (a GET
            of a result or an uploaded file) or `callback`.
        kind: What happens.

            * `refuse`: `code`, `message` and `retry_after`, in the script's error style;
            * `html`: HTTP `status` with a page instead of JSON;
            * `broken_json`: the reply without its closing braces;
            * `cut_before`: the connection is cut and nothing was done; `cut_after`: done, then cut;
              `cut_body`: done, and the reply is cut in its middle;
            * `hang`: no answer until the emulator stops;
            * `under_escaped`: recordInfo whose `param` lacks one level of escaping, so that it is no JSON;
            * `redirect`: 307 to `location`.

            A callback knows `cut_before` (this attempt is lost), `cut_after` (delivered, its answer is lost), `html`
            and `broken_json` (a bad body); an attempt that failed is repeated like any other.
        times: How many matching calls it meets; None: all.
        after: Matching calls that it lets pass first.
        task: Only the n-th createTask call (from 0); elsewhere only calls about the n-th accepted task. None: any.
        code: For `refuse`.
        message: For `refuse`; None takes the usual words.
        retry_after: For `refuse`: seconds, or the header's text as it is; None: no header.
        status: For `html`.
        accepted: Whether createTask accepted the task and an upload kept the file although the answer is `html`,
            `broken_json`, `hang` or `redirect`.
        location: For `redirect`; None: an address of the emulator that only watches for the key, and for a file
            its own address once more.
    """

    on: Endpoint = attrs.field(validator=_one_of(ENDPOINTS))
    kind: FaultKind = attrs.field(validator=_one_of(get_args(FaultKind)))
    times: int | None = 1
    after: int = attrs.field(default=0, validator=_number(0))
    task: int | None = attrs.field(default=None, validator=_number(0, optional=True))
    code: int = 429
    message: str | None = None
    retry_after: float | str | None = None
    status: int = 502
    accepted: bool = False
    location: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.times is not None and self.times < 1:
            raise ValueError(f"times: {self.times!r} given, use 1 or more, or None for all calls")
        if self.on == "callback" and self.kind not in CALLBACK_FAULTS:
            raise ValueError(f"kind of a callback fault: {self.kind!r} given, use one of {sorted(CALLBACK_FAULTS)}")
        if self.kind == "under_escaped" and self.on != "recordInfo":
            raise ValueError(f"on: {self.on!r} given, an under_escaped param is known from 'recordInfo' only")

    @property
    def done(self) -> bool:
        """Whether the call is carried out although its answer does not come through."""
        if self.kind in {"cut_after", "cut_body", "under_escaped"}:
            return True
        # Breaking the real reply of a call that changes nothing is more telling than an invented one.
        return self.accepted or (self.kind == "broken_json" and self.on not in {"createTask", "upload"})


def _listed(faults: Iterable[Fault]) -> list[Fault]:
    return list(faults)


def _are_all(kind: type, values: object) -> bool:
    return isinstance(values, Sequence) and all(isinstance(value, kind) for value in values)


def _are_plans(value: object) -> bool:
    return isinstance(value, Plan) or callable(value) or (bool(value) and _are_all(Plan, value))


@attrs.define
class Script:
    """What the service does; it may be changed while the emulator runs.

    Attributes:
        plans: One plan for all tasks; a sequence used in order, its last one for the rest; or a function of the
            number of the accepted task (from 0) and its request body.
        limit: None: never refuses.
        error_style: `body`: HTTP 200 with the reason in `code`, as upstream does it; `http`: the same JSON under the
            real HTTP status.
        credits: The balance at the start. A task is charged when it is accepted, one that will fail costs nothing;
            who cannot pay the price is refused with 402.
        models: Models that are taken besides the four of Flux-2, each with what a task of it costs in credits; their
            input is not looked into.
        idempotency_header: The header whose value names a createTask: the same name and request give the task that it
            made, which is neither counted nor charged again. None: none is looked at.
        idempotency_life: Seconds for which such a name is kept.
        faults: What goes wrong; the first that matches a call is used. `Emulator.inject` adds more.
        latency: Seconds between doing and answering, or a function of the endpoint's name.
        arrival: Seconds between receiving and doing, likewise.
        outage: From and to, in seconds after the start; None: none.
        outage_kind: `455` is a JSON refusal, `502` a page of HTML.
        outage_on: The endpoints that are out.
        upload_life: Seconds that an uploaded file is kept (documented: 3 days).
        result_life: Seconds that a result address is good for (documented: 24 hours).
        file_life: Seconds that a result is kept, to be had through download-url (documented upstream: 14 days).
        link_life: Seconds that a link of download-url is good for (documented: 20 minutes).
        private_images: Whether pictures at addresses of this machine or a private network, which the service cannot
            reach, are taken; else their task fails with `failCode` 451. Other addresses are taken, and not fetched.
        download_url_spaces: Uploads get an address with raw spaces, as seen upstream.
        render: Whether pictures are drawn (Pillow); without, a result is a tiny PNG.
        picture_format: `jpeg` or `png`, of drawn pictures.
        record_text: Name of the text field in recordInfo: `msg`, or `message` as Apikley prints it.
        hmac_key: Signs callbacks with X-Webhook-Timestamp and X-Webhook-Signature; None: unsigned.
        callback_shape: `market`: the record; `guide`: the short form of upstream's signature guide.
        callback_timeout: Seconds that a receiver has to answer.
        callback_retries: Seconds before each repetition of a callback that was not answered with 2xx.
    """

    plans: Plan | Sequence[Plan] | Callable[[int, Mapping[str, Any]], Plan] = attrs.field(
        factory=Plan, validator=_is(_are_plans, "a Plan, a sequence of at least one, or a function")
    )
    limit: Limit | None = attrs.field(
        default=None, validator=_is(lambda value: value is None or isinstance(value, Limit), "a Limit, or None")
    )
    error_style: Literal["body", "http"] = attrs.field(default="body", validator=_one_of(("body", "http")))
    credits: float = 1000.0
    models: Mapping[str, float] = attrs.field(factory=dict)
    idempotency_header: str | None = None
    idempotency_life: float = 86400.0
    faults: list[Fault] = attrs.field(
        factory=list, converter=_listed, validator=_is(partial(_are_all, Fault), "Faults alone")
    )
    latency: float | Callable[[str], float] = 0.0
    arrival: float | Callable[[str], float] = 0.0
    outage: tuple[float, float] | None = None
    outage_kind: Literal["455", "502"] = attrs.field(default="455", validator=_one_of(("455", "502")))
    outage_on: Sequence[Endpoint] = ("createTask", "recordInfo", "credit", "download-url", "upload", "file")
    upload_life: float = 3 * 86400.0
    result_life: float = 86400.0
    file_life: float = 14 * 86400.0
    link_life: float = 1200.0
    private_images: bool = False
    download_url_spaces: bool = False
    render: bool = True
    picture_format: Literal["jpeg", "png"] = attrs.field(default="jpeg", validator=_one_of(("jpeg", "png")))
    record_text: Literal["msg", "message"] = attrs.field(default="msg", validator=_one_of(("msg", "message")))
    hmac_key: str | None = None
    callback_shape: Literal["market", "guide"] = attrs.field(default="market", validator=_one_of(("market", "guide")))
    callback_timeout: float = 15.0
    callback_retries: tuple[float, ...] = (60.0, 300.0, 900.0)

    def plan_for(self, index: int, body: Mapping[str, Any]) -> Plan:
        """The plan of a task.

        Args:
            index: Which of the accepted tasks it is, from 0.
            body: The JSON of its createTask.

        Returns:
            What becomes of it.
        """
        if isinstance(self.plans, Plan):
            return self.plans
        if callable(self.plans):
            return self.plans(index, body)
        return self.plans[min(index, len(self.plans) - 1)]
