"""What `flux2 emulator` can be told: the knobs of `Script`."""

from typing import Annotated, Literal, TypeAlias, get_args

import attrs
from cyclopts import Parameter

from flux2_async.cli.options import CREDITS, flag, told

CallbackFault: TypeAlias = Literal["early", "twice", "late", "lost", "cut_before", "cut_after", "html", "broken_json"]

Endpoint: TypeAlias = Literal["createTask", "recordInfo", "credit", "download-url", "upload", "file"]
RETRIES = (60.0, 300.0, 900.0)
STATES = ("waiting", "queuing", "generating")


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class EmulatorOptions:
    """What the emulated service does."""

    limit: Annotated[str, told("Admit N new tasks in any SECONDS seconds, written N/SECONDS; none: all of them.")] = (
        "20/10"
    )
    policy: Annotated[Literal["sliding", "fixed", "bucket", "counter"], told("How --limit is counted.")] = "sliding"
    retry_after: Annotated[Literal["seconds", "date", "none"], told("What a 429 says in Retry-After.")] = "seconds"
    duration: Annotated[float, told("Seconds that a task takes; inf waits for the button of the page.")] = 8.0
    moderate: Annotated[float, told("The share of tasks that moderation refuses, 0 to 1.")] = 0.0
    fail: Annotated[float, told("The share of tasks that fail, 0 to 1.")] = 0.0
    empty: Annotated[float, told("The share of tasks that succeed without a picture, 0 to 1.")] = 0.0
    fail_code: Annotated[str | None, told("failCode of a task that fails.")] = None
    fail_message: Annotated[str | None, told("failMsg of a task that fails.")] = None
    callback_fault: Annotated[
        CallbackFault | None,
        told(
            "What goes wrong with callbacks: early, twice, late or lost; or with each attempt to send one: cut "
            "before or after it is delivered, or a body that cannot be read."
        ),
    ] = None
    callback_delay: Annotated[float | None, told("Seconds from a task's end to its callback.")] = None
    callback_shape: Annotated[
        Literal["market", "guide"], told("A callback's body: the record, or the short form of the guide.")
    ] = "market"
    callback_timeout: Annotated[float, told("Seconds that a receiver has to answer.")] = 15.0
    callback_retries: Annotated[tuple[float, ...], flag("Seconds before each repetition of a callback.")] = RETRIES
    hmac_key: Annotated[str | None, told("Signs callbacks with X-Webhook-Signature.")] = None
    fault: Annotated[
        tuple[str, ...],
        flag(
            "What goes wrong with the first calls of an endpoint, written ENDPOINT:KIND or ENDPOINT:KIND:TIMES, "
            "such as createTask:cut_after:2; may be given several times."
        ),
    ] = ()
    states: Annotated[tuple[str, ...], flag("The states on the way, each for an equal part of --duration.")] = STATES
    price: Annotated[float | None, told("Credits that a task costs; without it upstream's price of its model.")] = None
    credits: Annotated[float, told("The balance at the start.")] = CREDITS
    pictures: Annotated[int, told("Pictures per task.")] = 1
    hidden_for: Annotated[float, told("Seconds in which recordInfo does not know a new task.")] = 0.0
    hidden_style: Annotated[Literal["422", "null", "404"], told("What recordInfo answers then.")] = "422"
    record_lag: Annotated[float, told("Seconds for which recordInfo does not show a task's end.")] = 0.0
    record_text: Annotated[Literal["msg", "message"], told("The name of the text field in recordInfo.")] = "msg"
    idempotency_header: Annotated[
        str | None, told("The header that names a createTask; the same name gives the same task.")
    ] = None
    idempotency_life: Annotated[float, told("Seconds for which such a name is kept.")] = 86400.0
    model: Annotated[
        tuple[str, ...],
        flag(
            "A model accepted besides those of Flux-2, and the price of its tasks, written ID:CREDITS; its "
            "input is not looked into. May be given several times."
        ),
    ] = ()
    result_urls: Annotated[
        tuple[str, ...],
        Parameter(name="--result-url", negative="", help="Give this address instead of those of pictures made here."),
    ] = ()
    latency: Annotated[float, told("Seconds between doing and answering.")] = 0.0
    arrival: Annotated[float, told("Seconds between receiving and doing.")] = 0.0
    error_style: Annotated[
        Literal["body", "http"], told("Refusals under HTTP 200, as upstream does it, or under their status.")
    ] = "body"
    outage: Annotated[str | None, told("When the service is away, in seconds after the start, written FROM-TO.")] = None
    outage_kind: Annotated[Literal["455", "502"], told("A refusal in JSON, or a page of HTML.")] = "455"
    outage_on: Annotated[tuple[Endpoint, ...], flag("The endpoints that are away; all without it.")] = get_args(
        Endpoint
    )
    upload_life: Annotated[float, told("Seconds that an uploaded file is kept.")] = 3 * 86400.0
    result_life: Annotated[float, told("Seconds that the address of a result is good for.")] = 86400.0
    file_life: Annotated[float, told("Seconds for which download-url gives a link to a result.")] = 14 * 86400.0
    link_life: Annotated[float, told("Seconds that a link of download-url is good for.")] = 1200.0
    private_images: Annotated[
        bool, flag("Take pictures at addresses of this machine or a private network, which the service cannot reach.")
    ] = False
    download_url_spaces: Annotated[bool, flag("Addresses of uploads have raw spaces, as seen upstream.")] = False
    render: Annotated[bool, told("Draw the pictures; without, each is a tiny PNG.")] = True
    picture_format: Annotated[Literal["jpeg", "png"], told("Of the drawn pictures.")] = "jpeg"
