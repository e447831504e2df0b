"""How much may be spent, and what requests are going to cost."""

import math

import attrs

from flux2_async.models.settings import RateLimit, by_type, is_amount, must_be

__all__ = ["Budget", "Estimate", "seconds_of"]


def _is_group(value: object) -> bool:
    return value is True or (isinstance(value, str) and value != "")


@attrs.frozen(field_transformer=by_type)
class Budget:
    """How many credits a session may spend, as `Flux2Session(budget=...)` takes it, or a list of such.

    A picture is reserved before it is sent, at the most that one of its kind has cost in the session, until one has
    at the documented price; `creditsConsumed` of its record says later what it cost. What is unclear, given up or
    without a `creditsConsumed` of 0 to 1e6 stays reserved; a task that fails costs nothing unless its record says so.

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

    credits: float = attrs.field(validator=must_be("a number of 0 or more", is_amount))
    per: float | None = None
    group: str | bool | None = attrs.field(
        default=None, validator=must_be("True (each group its own), the name of one group", _is_group, none=True)
    )


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
