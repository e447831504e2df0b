"""Checks of what a session and its methods are given, before anything is sent.

What cannot be used is a `ConfigurationError` of a session and an `InvalidRequestError` of a call, whose text names it,
what was given and what is allowed.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from inspect import iscoroutinefunction
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from flux2_async.errors import ConfigurationError, InvalidRequestError, RateLimitedError
from flux2_async.models.plain import is_number, is_whole, plain
from flux2_async.models.plain_json import check_text

if TYPE_CHECKING:
    from flux2_async.models.service import Service

# Seconds: a century, which every store can count to.
FOR_EVER: Final = 3_155_760_000.0


def check_observer(value: Any) -> Any:
    """Give back what can be told of events."""
    calls = getattr(value, "__call__", None)  # noqa: B004  its own kind is asked for
    if not callable(value) or iscoroutinefunction(value) or iscoroutinefunction(calls):
        given = "an asynchronous function" if callable(value) else type(value).__name__
        raise ConfigurationError(f"observers: {given} given, it must be a plain function that takes an event")
    from flux2_async.models.submission_state import SubmissionEvent  # noqa: PLC0415  only an open session has need of it

    wants = getattr(value, "wants", None)
    if isinstance(wants, list | tuple | set | frozenset) and not (
        isinstance(wants, set | frozenset) and all(isinstance(each, type | SubmissionEvent) for each in wants)
    ):
        raise ConfigurationError(
            f"observers: {wants!r} given as wants, it must be a set of classes of events and of members of "
            "SubmissionEvent"
        )
    return value


def check_observers(values: Any) -> Iterator[Any]:
    """Give back several of them."""
    if not isinstance(values, Iterable):
        raise ConfigurationError(f"observers: {type(values).__name__} given, it must be a list of functions")
    return map(check_observer, values)


def check_count(name: str, value: object) -> int | None:
    """Give the bound back when it can be one."""
    if value is None or (is_whole(value) and value >= 1):
        return plain(value)
    raise ConfigurationError(f"{name}: {value!r} given, it must be a whole number of 1 or more, or None")


def check_key_ttl(value: object) -> float:
    """Give the seconds for which keys are kept."""
    if value is None:
        return FOR_EVER
    if not (is_number(value) and value > 0):
        raise ConfigurationError(f"key_ttl: {value!r} given, it must be a number of seconds above 0, or None")
    return min(float(value), FOR_EVER)


def check_path(name: str, value: Any) -> Path:
    """Give a path as such."""
    try:
        path = os.fsencode(value)
    except TypeError:
        raise ConfigurationError(f"{name}: {type(value).__name__} given, it must be a path") from None
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name}: {value!r} given, it must be valid Unicode") from None
    if b"\0" in path:
        raise ConfigurationError(f"{name}: {os.fsdecode(path)!r} given, no path holds a null character")
    return Path(os.fsdecode(path))


def unrecovered(ref: str, seconds: float | None) -> TimeoutError:
    """Give the error of a submission of which nothing told in time which task it became."""
    return TimeoutError(
        f"nothing told within {seconds:g} s which task submission {ref!r} became, nor whether it was accepted: ask "
        "again, or check the task log of your account"
    )


def too_late(error: RateLimitedError, bound: str) -> RateLimitedError:
    """Give the error of a submission that found no slot or permit in time, where its caller set the time by this."""
    if error.http_status is not None:
        return error
    when = "later" if error.retry_after is None else f"in {math.ceil(error.retry_after)} s"
    advice = f"Nothing was created within {bound}; try again {when}, or allow more time"
    return RateLimitedError(error.code, error.message, retry_after=error.retry_after, advice=advice)


def new_ref() -> str:
    """Make up the name of a submission."""
    # Written as a UUID is, in a fifth of its time.
    return os.urandom(16).hex()


def checked_ref(value: object) -> str:
    """Give back what can be the name of a submission, or make one up for None."""
    if value is None:
        return new_ref()
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.~-]{1,128}", value):
        raise InvalidRequestError(
            f"ref: {value!r} given, it must be 1 to 128 letters, digits, '-', '_', '.' or '~', or None"
        )
    return plain(value)


def check_priority(value: object) -> None:
    """Check a priority."""
    if not is_whole(value):
        raise InvalidRequestError(f"priority: {value!r} given, it must be a whole number")


def check_name(name: str, value: object) -> str | None:
    """Give back what can be the caller's name for something, a `key` or a `group`, or None."""
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"{name}: {value!r} given, it must be text of at least one character, or None")
    check_text(name, value)
    return plain(value)


def check_metadata(value: Any) -> Mapping[str, Any] | None:
    """Give a copy of the caller's mapping, read-only, or None; what it holds is neither read nor copied."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"metadata: {type(value).__name__} given, it must be a mapping, or None")
    return MappingProxyType(dict(value))


def check_resend(seconds: object, ref: object, service: "Service") -> None:
    """Check a wish to send again what was sent under a name before."""
    check_seconds("resend_within", seconds)
    if ref is None or service.idempotency_header is None:
        raise InvalidRequestError(
            "resend_within: it needs the ref of the earlier submission, and a service with idempotency_header"
        )


def check_seconds(name: str, value: object) -> None:
    """Check a time to wait that may be None."""
    if value is not None and not (is_number(value) and value >= 0):
        raise InvalidRequestError(f"{name}: {value!r} given, it must be a number of seconds of 0 or more, or None")


def check_task_id(value: object) -> str:
    """Give back what can be a task id."""
    if not isinstance(value, str) or not re.fullmatch(r"\S{1,256}", value):
        raise InvalidRequestError(f"task_id: {value!r} given, it must be the text that createTask gave, without blanks")
    check_text("task_id", value)
    return plain(value)
