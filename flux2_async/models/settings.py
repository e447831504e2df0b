"""Settings of every session: frozen, checked when made."""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeGuard

import attrs

from flux2_async.errors import ConfigurationError
from flux2_async.models.plain import is_number, is_whole, taking

__all__ = ["Polling", "RateLimit", "Timeouts"]


def must_be(allowed: str, fits: Callable[[Any], bool], *, none: bool = False) -> Any:
    """Give a validator of settings; `none`: None is allowed as well."""

    def check(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not (none and value is None) and not fits(value):
            given = f"{type(instance).__name__}.{attribute.name}: {value!r} given"
            raise ConfigurationError(f"{given}, it must be {allowed}{', or None' * none}")

    return check


def is_amount(value: object) -> TypeGuard[float]:
    """Whether a value is a number of 0 or more, and not infinite."""
    return is_number(value) and math.isfinite(value) and value >= 0


_ABOVE_0: Final = ("a number above 0", lambda value: is_amount(value) and value > 0)
_COUNT: Final = ("a whole number of 1 or more", lambda value: is_whole(value) and value >= 1)
_BY_TYPE: Final[dict[Any, Any]] = {
    bool: must_be("True or False", lambda value: isinstance(value, bool)),
    int: must_be(*_COUNT),
    int | None: must_be(*_COUNT, none=True),
    float: must_be(*_ABOVE_0),
    float | None: must_be(*_ABOVE_0, none=True),
}


def by_type(_: type, fields: list["attrs.Attribute[Any]"]) -> list["attrs.Attribute[Any]"]:
    """Do what `plain_fields` does, and check by their types where nothing else is said, as it does."""
    return [
        field.evolve(
            converter=field.converter or taking(field.type),  # type: ignore[arg-type]  # types have a hash
            validator=field.validator or _BY_TYPE.get(field.type),
        )
        for field in fields
    ]


@attrs.frozen(field_transformer=by_type)
class RateLimit:
    """At most `limit` new tasks in any `period` seconds.

    Attributes:
        limit: Tasks, 1 or more. Documented upstream: 20.
        period: Seconds. Documented upstream: 10.

    Raises:
        ConfigurationError: A value is out of bounds.
    """

    limit: int
    period: float


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


@attrs.frozen(kw_only=True, field_transformer=by_type)
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

    price: float = 0.3
    wait_min: float = 0.25
    wait_max: float = 30.0
    interval: float | None = attrs.field(default=None, validator=must_be("a number of 0 or more", is_amount, none=True))
    max_concurrency: int = 32
    give_up_after: float | None = 1200.0
    remember: bool = False

    def __attrs_post_init__(self) -> None:
        if self.wait_min > self.wait_max:
            raise ConfigurationError(
                f"Polling: wait_min is {self.wait_min!r} and wait_max {self.wait_max!r}; give both, the smaller first"
            )


@attrs.frozen(kw_only=True, field_transformer=by_type)
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

    connect: float = 10.0
    submit: float = 60.0
    record: float = 30.0
    upload: float = 120.0
    download: float = 300.0
