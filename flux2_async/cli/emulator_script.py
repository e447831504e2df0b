"""What the options of `flux2 emulator` become: the `Script` that it follows."""

import math
import random
import re
from collections.abc import Mapping
from typing import Any, Final

import attrs

from flux2_async.cli.emulator_options import EmulatorOptions
from flux2_async.cli.options import parse_rate_limit
from flux2_async.cli.screen import UsageError
from flux2_async.emulator import Fault, Limit, Plan, Script

PLANNED: Final = ("early", "twice", "late", "lost")
FAULT: Final = re.compile(r"([A-Za-z-]+):([a-z_]+)(?::([1-9][0-9]{0,8}))?")
# What `Fault` calls an endpoint.
ENDPOINT: Final = re.compile(r"^on:")
MODEL: Final = re.compile(r"(\S+):([0-9]{1,9}(?:\.[0-9]+)?)")
OUTAGE: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]+)?)-([0-9]{1,9}(?:\.[0-9]+)?)")
# Options that give shares of the tasks, and how those tasks end.
SHARES: Final[Mapping[str, Any]] = {"moderate": "moderated", "fail": "fail", "empty": "empty"}
# A task without an end waits for the button of the page.
ENDLESS: Final = ("duration",)


def script_of(options: EmulatorOptions) -> Script:
    """Give what the emulator is to follow; UsageError: a value makes no sense."""
    _check(options)
    models = [_read(MODEL, "--model", text, "google/nano-banana:4") for text in options.model]
    example = "10-30 (seconds after the start)"
    outage = None if options.outage is None else _read(OUTAGE, "--outage", options.outage, example)
    return Script(
        **_alike(options, Script)
        | {
            "models": {each[1]: float(each[2]) for each in models},
            "limit": _limit(options),
            "outage": outage and (float(outage[1]), float(outage[2])),
            "faults": _faults(options),
            "plans": _plan(options),
        }
    )


def _read(pattern: re.Pattern[str], option: str, text: str, example: str) -> re.Match[str]:
    if (match := pattern.fullmatch(text)) is None:
        raise UsageError(f"{option}: {text!r} given, it must look like {example}")
    return match


def _alike(options: EmulatorOptions, kind: type[Plan | Script]) -> dict[str, Any]:
    """Give what is called alike in both."""
    return {field.name: getattr(options, field.name) for field in attrs.fields(kind) if hasattr(options, field.name)}


def _check(options: EmulatorOptions) -> None:
    for name, value in attrs.asdict(options, recurse=False).items():
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if not isinstance(number, int | float) or isinstance(number, bool):
                continue
            option = f"--{name.replace('_', '-')}"
            if name in SHARES and not 0 <= number <= 1:
                raise UsageError(f"{option}: {number} given, it must be a share of 0 to 1, such as 0.1")
            if not (number >= 0 and (math.isfinite(number) or name in ENDLESS)):
                raise UsageError(f"{option}: {number} given, it must be a number of seconds of 0 or more")
    if sum(getattr(options, name) for name in SHARES) > 1:
        raise UsageError("--moderate, --fail and --empty: together they are more than all tasks, which is 1")
    if options.pictures < 1:
        raise UsageError(f"--pictures: {options.pictures} given, it must be 1 or more")


def _limit(options: EmulatorOptions) -> Limit | None:
    limit = parse_rate_limit(options.limit, "--limit")
    if limit is None:
        return None
    retry_after = None if options.retry_after == "none" else options.retry_after
    return Limit(limit.limit, limit.period, options.policy, retry_after)


def _faults(options: EmulatorOptions) -> list[Fault]:
    # Any: `Fault` itself looks which words there are.
    kind: Any = options.callback_fault
    faults = [] if kind is None or kind in PLANNED else [Fault("callback", kind, times=None)]
    for text in options.fault:
        match: Any = _read(FAULT, "--fault", text, "createTask:cut_after:2")
        try:
            faults.append(Fault(match[1], match[2], int(match[3] or 1)))
        except ValueError as error:
            raise UsageError(f"--fault: {text!r} given; {ENDPOINT.sub('endpoint:', str(error))}") from None
    return faults


def _plan(options: EmulatorOptions) -> Any:
    """Give one plan, or where shares of the tasks differ a function that gives each task the same in every run."""
    callback: Any = options.callback_fault if options.callback_fault in PLANNED else "once"
    plan = Plan(**_alike(options, Plan) | {"credits": options.price, "callback": callback})
    shares = {outcome: getattr(options, name) for name, outcome in SHARES.items()}
    if not any(shares.values()):
        return plan

    def plan_of(index: int, _: Mapping[str, Any]) -> Plan:
        left = random.Random(index).random()  # noqa: S311  a lot, no secret
        for outcome, share in shares.items():
            if left < share:
                return attrs.evolve(plan, outcome=outcome)
            left -= share
        return plan

    return plan_of
