"""What `flux2 emulator` can be told: the knobs of `Script`, and what becomes of them."""

import math
import random
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

import attrs
from cyclopts import Parameter

from flux2_async.cli.options import parse_rate_limit
from flux2_async.cli.screen import UsageError
from flux2_async.cli.service import CREDITS
from flux2_async.emulator import Fault, Limit, Plan, Script

__all__ = ["EmulatorOptions"]

CallbackFault: TypeAlias = Literal["early", "twice", "late", "lost", "cut_before", "cut_after", "html", "broken_json"]
PLANNED: Final = ("early", "twice", "late", "lost")
FAULT: Final = re.compile(r"([A-Za-z-]+):([a-z_]+)(?::([1-9][0-9]{0,8}))?")
OUTAGE: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]+)?)-([0-9]{1,9}(?:\.[0-9]+)?)")
SHARES: Final = ("moderate", "fail", "empty")
# A task without an end waits for the button of the page.
ENDLESS: Final = ("duration",)


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class EmulatorOptions:
    """What the emulated service does."""

    limit: Annotated[
        str,
        Parameter(help="Admit N new tasks in any so many seconds, written N/SECONDS, or none: all of them."),
    ] = "20/10"
    policy: Annotated[Literal["sliding", "fixed", "bucket", "counter"], Parameter(help="How --limit is counted.")] = (
        "sliding"
    )
    retry_after: Annotated[Literal["seconds", "date", "none"], Parameter(help="What a 429 says in Retry-After.")] = (
        "seconds"
    )
    duration: Annotated[float, Parameter(help="Seconds that a task takes; inf waits for the button of the page.")] = 8.0
    moderate: Annotated[float, Parameter(help="The share of tasks that moderation ends, 0 to 1.")] = 0.0
    fail: Annotated[float, Parameter(help="The share of tasks that fail, 0 to 1.")] = 0.0
    empty: Annotated[float, Parameter(help="The share of tasks that succeed without a picture, 0 to 1.")] = 0.0
    fail_code: Annotated[str | None, Parameter(help="failCode of a task that fails.")] = None
    fail_message: Annotated[str | None, Parameter(help="failMsg of a task that fails.")] = None
    callback_fault: Annotated[
        CallbackFault | None,
        Parameter(
            help="What goes wrong with callbacks: early, twice, late or lost; or with each attempt to send one: cut "
            "before or after it is delivered, or a body that cannot be read."
        ),
    ] = None
    callback_delay: Annotated[float | None, Parameter(help="Seconds from a task's end to its callback.")] = None
    callback_shape: Annotated[
        Literal["market", "guide"], Parameter(help="A callback's body: the record, or the short form of the guide.")
    ] = "market"
    callback_timeout: Annotated[float, Parameter(help="Seconds that a receiver has to answer.")] = 15.0
    callback_retries: Annotated[
        tuple[float, ...], Parameter(negative="", help="Seconds before each repetition of a callback.")
    ] = (60.0, 300.0, 900.0)
    hmac_key: Annotated[str | None, Parameter(help="Signs callbacks with X-Webhook-Signature.")] = None
    fault: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            help="What goes wrong with the first calls of an endpoint, written ENDPOINT:KIND or ENDPOINT:KIND:TIMES, "
            "such as createTask:cut_after:2; may be given several times.",
        ),
    ] = ()
    states: Annotated[
        tuple[str, ...], Parameter(negative="", help="The states on the way, each for an equal part of --duration.")
    ] = ("waiting", "queuing", "generating")
    price: Annotated[
        float | None, Parameter(help="Credits that a task costs; without it upstream's price of its model.")
    ] = None
    credits: Annotated[float, Parameter(help="The balance at the start.")] = CREDITS
    pictures: Annotated[int, Parameter(help="Pictures of a task.")] = 1
    hidden_for: Annotated[float, Parameter(help="Seconds in which recordInfo does not know a new task.")] = 0.0
    hidden_style: Annotated[Literal["422", "null", "404"], Parameter(help="What recordInfo answers then.")] = "422"
    record_lag: Annotated[float, Parameter(help="Seconds for which recordInfo does not show a task's end.")] = 0.0
    record_text: Annotated[Literal["msg", "message"], Parameter(help="The name of the text field in recordInfo.")] = (
        "msg"
    )
    latency: Annotated[float, Parameter(help="Seconds between doing and answering.")] = 0.0
    arrival: Annotated[float, Parameter(help="Seconds between receiving and doing.")] = 0.0
    error_style: Annotated[
        Literal["body", "http"], Parameter(help="Refusals under HTTP 200, as upstream does it, or under their status.")
    ] = "body"
    outage: Annotated[
        str | None, Parameter(help="When the service is away, in seconds after the start, written FROM-TO.")
    ] = None
    outage_kind: Annotated[Literal["455", "502"], Parameter(help="A refusal in JSON, or a page of HTML.")] = "455"
    outage_on: Annotated[
        tuple[Literal["createTask", "recordInfo", "credit", "download-url", "upload", "file"], ...],
        Parameter(negative="", help="The endpoints that are away; all without it."),
    ] = ("createTask", "recordInfo", "credit", "download-url", "upload", "file")
    upload_life: Annotated[float, Parameter(help="Seconds that an uploaded file is kept.")] = 3 * 86400.0
    result_life: Annotated[float, Parameter(help="Seconds that the address of a result is good for.")] = 86400.0
    file_life: Annotated[float, Parameter(help="Seconds that a result can be had through download-url.")] = 14 * 86400.0
    link_life: Annotated[float, Parameter(help="Seconds that a link of download-url is good for.")] = 1200.0
    download_url_spaces: Annotated[
        bool, Parameter(negative="", help="Addresses of uploads have raw spaces, as seen upstream.")
    ] = False
    render: Annotated[bool, Parameter(help="Draw the pictures; without, each is a tiny PNG.")] = True
    picture_format: Annotated[Literal["jpeg", "png"], Parameter(help="Of the drawn pictures.")] = "jpeg"

    def script(self) -> Script:
        """Give what the emulator is to follow.

        Raises:
            UsageError: A value makes no sense.
        """
        self._check()
        same = [field.name for field in attrs.fields(Script) if hasattr(self, field.name)]
        given: dict[str, Any] = {name: getattr(self, name) for name in same}
        given |= {"limit": self._limit(), "outage": self._outage(), "faults": self._faults()}
        return Script(plans=self._plan(), **given)

    def _check(self) -> None:
        for name, value in attrs.asdict(self, recurse=False).items():
            numbers = value if isinstance(value, tuple) else (value,)
            for number in numbers:
                if not isinstance(number, int | float) or isinstance(number, bool):
                    continue
                option = f"--{name.replace('_', '-')}"
                if name in SHARES and not 0 <= number <= 1:
                    raise UsageError(f"{option}: {number} given, it must be a share of 0 to 1, such as 0.1")
                if not (number >= 0 and (math.isfinite(number) or name in ENDLESS)):
                    raise UsageError(f"{option}: {number} given, it must be a number of seconds of 0 or more")
        if sum(getattr(self, name) for name in SHARES) > 1:
            raise UsageError("--moderate, --fail and --empty: together they are more than all tasks, which is 1")
        if self.pictures < 1:
            raise UsageError(f"--pictures: {self.pictures} given, it must be 1 or more")

    def _limit(self) -> Limit | None:
        limit = parse_rate_limit(self.limit, "--limit")
        if limit is None:
            return None
        retry_after = None if self.retry_after == "none" else self.retry_after
        return Limit(limit.limit, limit.period, self.policy, retry_after)

    def _outage(self) -> tuple[float, float] | None:
        if self.outage is None:
            return None
        match = OUTAGE.fullmatch(self.outage)
        if match is None:
            raise UsageError(f"--outage: {self.outage!r} given, it must look like 10-30 (seconds after the start)")
        return float(match[1]), float(match[2])

    def _faults(self) -> list[Fault]:
        # Any: `Fault` itself looks which words there are.
        kind: Any = self.callback_fault
        faults = [] if kind is None or kind in PLANNED else [Fault("callback", kind, times=None)]
        for text in self.fault:
            match: Any = FAULT.fullmatch(text)
            if match is None:
                raise UsageError(f"--fault: {text!r} given, it must look like createTask:cut_after:2")
            try:
                faults.append(Fault(match[1], match[2], int(match[3] or 1)))
            except ValueError as error:
                raise UsageError(f"--fault: {text!r} given; {error.args[0]}") from None
        return faults

    def _plan(self) -> Any:
        """Give one plan, or where shares of the tasks differ a function that gives each task the same in every run."""
        callback: Any = self.callback_fault if self.callback_fault in PLANNED else "once"
        plan = Plan(
            duration=self.duration,
            states=self.states,
            credits=self.price,
            hidden_for=self.hidden_for,
            hidden_style=self.hidden_style,
            callback=callback,
            callback_delay=self.callback_delay,
            pictures=self.pictures,
            record_lag=self.record_lag,
        )
        shares: list[tuple[Any, float]] = [("moderated", self.moderate), ("fail", self.fail), ("empty", self.empty)]
        if not any(share for _, share in shares):
            return plan

        def plan_of(index: int, _: Mapping[str, Any]) -> Plan:
            left = random.Random(index).random()  # noqa: S311  a lot, no secret
            for outcome, share in shares:
                if left < share:
                    code, text = (None, None) if outcome == "empty" else (self.fail_code, self.fail_message)
                    return attrs.evolve(plan, outcome=outcome, fail_code=code, fail_message=text)
                left -= share
            return plan

        return plan_of
