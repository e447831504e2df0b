"""What a refusal means: one table from `code` to error class, advice and nature, and Retry-After. Pure."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from http import HTTPStatus
from typing import Final, NamedTuple

from flux2_async._protocol import lenient_json
from flux2_async.errors import (
    ApiError,
    AuthenticationError,
    FeatureDisabledError,
    InsufficientCreditsError,
    MaintenanceError,
    NotFoundError,
    QuotaExceededError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
)
from flux2_async.models.plain import is_number

_CHANGE_REQUEST: Final = "Nothing was created; change the request as the text says"
_CHANGE_CALL: Final = "Correct what the call was given, as the text says"
_LATER: Final = "Try again later"
_FOREIGN: Final = (
    "The answer has no `code` of the API: check base_url, and what is on the way there, such as a gateway that wants a "
    "client certificate"
)
_FOREIGN_SIZE: Final = (
    "The answer has no `code` of the API: a proxy on the way takes no body of this size; raise its limit"
)
_FOREIGN_LOGIN: Final = "The answer has no `code` of the API, so a gateway on the way may want a login of its own"
_LOWER_RATE: Final = "Nothing was created; lower rate_limit if this comes often"
_REDIRECT: Final = "Set base_url, or upload_url for uploads, to the address to which this one redirects"


class Proof(Enum):
    """What a code in an answer to createTask proves."""

    NOTHING = 0
    """The task may exist."""
    REFUSED = 1
    """No task was made, where the HTTP status is none of a server that fails."""
    REFUSED_IN_ANY_STATE = 2
    """No task was made: a server that fails says it on purpose."""
    PARAMETER_OR_FAULT = 3
    """A parameter was refused, unless the text says that the server failed."""


class Meaning(NamedTuple):
    """One row: what a code means.

    Attributes:
        kind: The class of its error, whose nature it has.
        advice: What to do.
        proof: What it proves of a createTask.
        transient: Its nature where that is not the one of its class: a gateway that says so got no answer.
        ends_task: Whether recordInfo says by it, under HTTP 2xx, that the task itself is over; a gateway has other
            uses for it.
    """

    kind: type[ApiError]
    advice: str = ""
    proof: Proof = Proof.NOTHING
    transient: bool = False
    ends_task: bool = False


_MEANINGS: Final[Mapping[int, Meaning]] = {
    400: Meaning(RequestRejectedError, _CHANGE_CALL, Proof.REFUSED),
    401: Meaning(
        AuthenticationError,
        "Check the key and its list of allowed addresses (Apikley: APIKLEY_API_KEY, https://app.apikley.ru/keys)",
        Proof.REFUSED,
    ),
    402: Meaning(InsufficientCreditsError, "Top up the account, then try again", Proof.REFUSED),
    403: Meaning(ApiError, "Check that base_url names the API; a firewall or proxy on the way may have refused it"),
    404: Meaning(NotFoundError, "Check that base_url names the API", Proof.REFUSED),
    405: Meaning(ApiError, "Check that base_url and upload_url name the API", Proof.REFUSED),
    408: Meaning(ApiError, _LATER, transient=True, ends_task=True),
    413: Meaning(RequestRejectedError, "The service takes no file of this size; send a smaller one", Proof.REFUSED),
    422: Meaning(RequestRejectedError, _CHANGE_CALL, Proof.REFUSED),
    425: Meaning(ApiError, transient=True),
    429: Meaning(RateLimitedError, _LOWER_RATE, Proof.REFUSED_IN_ANY_STATE),
    430: Meaning(RateLimitedError, _LOWER_RATE, Proof.REFUSED),
    433: Meaning(
        QuotaExceededError,
        "Raise the usage cap of this key (Apikley: https://app.apikley.ru/keys), or use another key",
        Proof.REFUSED,
    ),
    451: Meaning(
        ApiError,
        "The service could not fetch a picture; check its address, or pass a local file so that it is uploaded",
        ends_task=True,
    ),
    455: Meaning(MaintenanceError, _LATER, Proof.REFUSED_IN_ANY_STATE),
    499: Meaning(ApiError, transient=True),
    500: Meaning(ServerError, _LATER, Proof.PARAMETER_OR_FAULT),
    501: Meaning(ServerError, _LATER, Proof.PARAMETER_OR_FAULT, ends_task=True),
    505: Meaning(
        FeatureDisabledError, "Use another model, or ask the service when it comes back", Proof.REFUSED_IN_ANY_STATE
    ),
}
ENDS_TASK: Final = frozenset(code for code, meaning in _MEANINGS.items() if meaning.ends_task)
_ANY: Final = Meaning(ApiError)
_BY_CLASS: Final[Mapping[int, Meaning]] = {3: Meaning(ApiError, _REDIRECT), 5: Meaning(ServerError, _LATER)}
"""By the class of HTTP."""

_SIGNATURE: Final = re.compile(r"(?<=[?&]sig=)[^&\s\"'<>]+")
# What the nine digits below can say.
MAX_HINT: Final = 1e9
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]+)?")


def refusal(
    code: int,
    message: str,
    http_status: int | None,
    *,
    creating: bool = False,
    foreign: bool = False,
    retry_after: float | None = None,
    task_id: str | None = None,
) -> ApiError:
    """The error for a refusal.

    Args:
        code: The `code` of the body, else the HTTP status; numbers that are not known are kept.
        message: The service's own words.
        http_status: The HTTP status, or None when nothing was sent.
        creating: Whether it answers createTask, where 500 means a bad parameter.
        foreign: Whether there is no `code` of the API in it, as in the page of a proxy.
        retry_after: Seconds the service asked to wait, or None when it did not say.
        task_id: The task it is about, or None.

    Returns:
        An error of the class that the code maps to, `ApiError` or for 5xx `ServerError` where none does.
    """
    # The one code that means something else on createTask.
    meaning = _MEANINGS[400] if creating and code == 500 else meaning_of(code)  # noqa: PLR2004  as the table spells it
    advice = meaning.advice
    if meaning.kind is NotFoundError and task_id is not None:
        advice = f"Check the task id and the account. {advice}"
    elif meaning.kind is RateLimitedError and not creating:
        advice = _LATER
    elif foreign and meaning.kind is AuthenticationError:
        advice = f"{advice}. {_FOREIGN_LOGIN}"
    elif foreign and meaning.kind is RequestRejectedError:
        advice = _FOREIGN_SIZE if code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else _FOREIGN
    elif meaning.kind is RequestRejectedError and creating:
        # No file is sent with createTask.
        advice = _CHANGE_REQUEST
    text = without_signature(message) or "no reason given"
    more = {"retry_after": retry_after} if issubclass(meaning.kind, RateLimitedError) else {}
    error = meaning.kind(code, text, http_status, task_id=task_id, advice=advice, **more)
    if meaning.transient:
        error.transient = True
    return error


def meaning_of(code: int) -> Meaning:
    """The row of a code; of one that stands in none, all that its class of HTTP says."""
    return _MEANINGS.get(code) or _BY_CLASS.get(code // 100, _ANY)


def without_signature(text: str) -> str:
    """The text with the signature of any callback address taken out."""
    return _SIGNATURE.sub("<redacted>", text) if "sig=" in text else text


def retry_after(headers: Mapping[str, str], now: datetime | None = None, *, body: bytes = b"") -> float | None:
    """How long the service asks to wait.

    The header wins over the body where both say something: its unit is a standard, the body's is a guess, and what
    means milliseconds there would stop everybody for an hour.

    Args:
        headers: Of the answer; the case of their names does not matter.
        now: The present, aware. None: what the answer's own `Date` says.
        body: Of the answer; in JSON `retryAfter` or `retry_after`, at the top or in `data`, are seconds.

    Returns:
        Seconds, at least 0.0, from a number, an HTTP date or the body; None where none is there.
    """
    told = _header_seconds(headers, now)
    return _body_seconds(body) if told is None else told


def _header_seconds(headers: Mapping[str, str], now: datetime | None) -> float | None:
    value = header(headers, "retry-after").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    until = http_date(value)
    present = now or http_date(header(headers, "date"))
    if until is None or present is None:
        return None
    return max(0.0, (until - present).total_seconds())


def _body_seconds(body: bytes) -> float | None:
    try:
        value = lenient_json.loads(body)
    except ValueError:
        return None
    places = (value, value.get("data")) if isinstance(value, dict) else ()
    names = ("retryAfter", "retry_after")
    hints = (_seconds(place.get(name)) for place in places if isinstance(place, dict) for name in names)
    return next((hint for hint in hints if hint is not None), None)


def _seconds(value: object) -> float | None:
    if isinstance(value, str):
        return float(value) if _SECONDS.fullmatch(value.strip()) else None
    # As much as a text may say; NaN is in no range.
    return float(value) if is_number(value) and 0 <= value < MAX_HINT else None


def header(headers: Mapping[str, str], name: str) -> str:
    """A header whatever the case of its name (`name` in lower case), empty when it is not there."""
    return next((value for key, value in headers.items() if key.lower() == name), "")


def http_date(value: str) -> datetime | None:
    """The moment that a date of HTTP names, aware; None for what is none."""
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
