"""How much may be spent, and what requests are going to cost."""

import math
from typing import Any

import attrs

from flux2_async.errors import ConfigurationError
from flux2_async.models.plain import is_number, plain
from flux2_async.models.settings import RateLimit

__all__ = ["Budget", "Estimate", "seconds_of"]


def _credits(value: float) -> float:
    return plain(value)


def _per(value: float | None) -> float | None:
    return plain(value)


def _check_credits(_: object, __: "attrs.Attribute[Any]", value: object) -> None:
    if not is_number(value) or not math.isfinite(value) or value < 0:
        raise ConfigurationError(f"Budget.credits: {value!r} given, it must be a number of 0 or more")


def _check_per(_: object, __: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None and (not is_number(value) or not math.isfinite(value) or value <= 0):
        raise ConfigurationError(f"Budget.per: {value!r} given, it must be a number of seconds above 0, or None")


def _check_group(_: object, __: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None and value is not True and not (isinstance(value, str) and value):
        raise ConfigurationError(
            f"Budget.group: {value!r} given, it must be True (each group its own), the name of one group, or None"
        )


@attrs.frozen
class Budget:
    """How many credits a session may spend, as `Flux2Session(budget=...)` takes it, or a list of such.

    A picture is reserved before it is sent, at the most that one of its kind has cost in the session, until one has
    at the documented price; `creditsConsumed` of its record says later what it cost. What is unclear, given up or
    without `creditsConsumed` stays reserved; a task that fails costs nothing unless its record says so.

    Example:
        day = 86400.0
        flux = Flux2Session(budget=[Budget(500, per=day), Budget(30, per=day, group=True)])

    Attributes:
        credits: Credits, 0 or more.
        per: Seconds of a moving window, such as 86400.0 for a day. None: for the session's life; opening it again goes
            on with the same count.
        group: True: each group of `submit(group=...)` has this budget for itself, and requests without a group have it
            together. A name: this group alone. None: all requests together.

    Raises:
        ConfigurationError: A value cannot be used.
    """

    credits: float = attrs.field(converter=_credits, validator=_check_credits)
    per: float | None = attrs.field(default=None, converter=_per, validator=_check_per)
    group: str | bool | None = attrs.field(default=None, validator=_check_group)


@attrs.frozen(kw_only=True)
class Estimate:
    """What requests will cost, and how long they will take.

    Attributes:
        requests: How many.
        credits: What they cost together: by the most that one of their kind has cost in this session, else by the
            documented price (`flux2_async.models.prices`). One that fails costs nothing.
        seconds: From now until the last is finished: behind what waits already, within the limit, each in the median
            time of its kind in this session, before any was seen in the documented one.
        seconds_at_most: Likewise, each in the time within which nine in ten end.
        seen: Whether all prices were seen in this session; False: some are the documented ones.
    """

    requests: int
    credits: float
    seconds: float
    seconds_at_most: float
    seen: bool


def seconds_of(number: int, task: float, rate_limit: RateLimit | None, max_running: int | None) -> float:
    """Give the time of so many tasks that take so long each: the limit lets them in, and places become free."""
    if number == 0:
        return 0.0
    by_limit = 0.0 if rate_limit is None else (math.ceil(number / rate_limit.limit) - 1) * rate_limit.period
    by_places = 0.0 if max_running is None else (math.ceil(number / max_running) - 1) * task
    return max(by_limit, by_places) + task
