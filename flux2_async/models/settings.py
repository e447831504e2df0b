"""Settings of every session: frozen, checked when made."""

import math
from typing import Any, NamedTuple

import attrs

from flux2_async.errors import ConfigurationError
from flux2_async.models.plain import is_number, is_whole, plain

__all__ = ["Polling", "RateLimit", "Timeouts"]


def _whole_number(value: int) -> int:
    return plain(value)


def _number(value: float) -> float:
    return plain(value)


def _number_or_none(value: float | None) -> float | None:
    return plain(value)


def finite(*, zero: bool = False, none: bool = False) -> Any:
    """Give a validator of numbers of seconds and the like."""
    allowed = ("a number of 0 or more" if zero else "a number above 0") + (", or None" if none else "")

    def check(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if (none and value is None) or (is_number(value) and math.isfinite(value) and value >= 0 and (zero or value)):
            return
        raise ConfigurationError(f"{type(instance).__name__}.{attribute.name}: {value!r} given, it must be {allowed}")

    return check


def _whole(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if not is_whole(value) or value < 1:
        raise ConfigurationError(
            f"{type(instance).__name__}.{attribute.name}: {value!r} given, it must be a whole number of 1 or more"
        )


def yes_or_no(instance: object, attribute: "attrs.Attribute[bool]", value: object) -> None:
    """Check that a field is True or False; see `attrs.field`'s `validator`."""
    if not isinstance(value, bool):
        raise ConfigurationError(
            f"{type(instance).__name__}.{attribute.name}: {value!r} given, it must be True or False"
        )


@attrs.frozen
class RateLimit:
    """At most `limit` new tasks in any `period` seconds.

    Attributes:
        limit: Tasks, 1 or more. Documented upstream: 20.
        period: Seconds. Documented upstream: 10.

    Raises:
        ConfigurationError: A value is out of bounds.
    """

    limit: int = attrs.field(converter=_whole_number, validator=_whole)
    period: float = attrs.field(converter=_number, validator=finite())


class Told(NamedTuple):
    """One limit as the service tells it.

    Attributes:
        limit: New tasks per window, or None.
        seconds: Of the window; None: not told.
        remaining: How many more it takes before `reset`, or None.
        reset: Seconds until it takes all again; None: not told.
    """

    limit: int | None = None
    seconds: float | None = None
    remaining: int | None = None
    reset: float | None = None


@attrs.frozen(kw_only=True)
class Polling:
    """How often to poll whether a task is finished.

    A session learns from its tasks how long tasks take, for each model and resolution, and polls when they usually
    end. Until it has seen some, and at ages at which it has seen none, it polls as the API's documentation advises.

    Attributes:
        price: Seconds of lag between "finished" and "known" that one poll is worth. Less polls more often: 0.03 where
            a person waits, 1 for a batch.
        wait_min: Shortest wait between two polls of one task, seconds.
        wait_max: Longest wait, seconds.
        interval: A fixed interval in seconds; the first poll comes after one interval. 0 polls at once and then
            as fast as replies come. None: learned.
        max_concurrency: Polls in flight at once, for all tasks of the session.
        give_up_after: Seconds after which an unfinished task settles as `TaskTimeoutError` (`given_up`), since a task
            that never ends would hold its place for ever; awaiting its handle again polls it again. Counted while
            polls are answered, from when the session began to poll the task. Tasks take 8 to 95 s (seen in
            records of 2025 and 2026). None: never.
        remember: Keep what was learned in the user's cache folder for the next session with the same service.

    Raises:
        ConfigurationError: A value is out of bounds.
    """

    price: float = attrs.field(converter=_number, default=0.3, validator=finite())
    wait_min: float = attrs.field(converter=_number, default=0.25, validator=finite())
    wait_max: float = attrs.field(converter=_number, default=30.0, validator=finite())
    interval: float | None = attrs.field(
        converter=_number_or_none, default=None, validator=finite(zero=True, none=True)
    )
    max_concurrency: int = attrs.field(converter=_whole_number, default=32, validator=_whole)
    give_up_after: float | None = attrs.field(converter=_number_or_none, default=1200.0, validator=finite(none=True))
    remember: bool = attrs.field(default=False, validator=yes_or_no)

    def __attrs_post_init__(self) -> None:
        if self.wait_min > self.wait_max:
            raise ConfigurationError(
                f"Polling: wait_min is {self.wait_min!r} and wait_max {self.wait_max!r}; give both, the smaller first"
            )


@attrs.frozen(kw_only=True)
class Timeouts:
    """Seconds that each kind of call may take.

    Attributes:
        connect: Making a connection, for every call.
        submit: createTask; seen in 2026 to take more than 30 s under load, so shorter than 60 makes unclear sends.
        record: recordInfo and the account calls.
        upload: One file.
        download: One file.

    Raises:
        ConfigurationError: A value is out of bounds.
    """

    connect: float = attrs.field(converter=_number, default=10.0, validator=finite())
    submit: float = attrs.field(converter=_number, default=60.0, validator=finite())
    record: float = attrs.field(converter=_number, default=30.0, validator=finite())
    upload: float = attrs.field(converter=_number, default=120.0, validator=finite())
    download: float = attrs.field(converter=_number, default=300.0, validator=finite())
