"""What an exchange of createTask means for the money: one of four answers, judged in one place. Pure.

Accepted, refused and never sent are said on positive proof only; everything else is unclear, and an unclear createTask
is never sent again by itself.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import attrs

from flux2_async import _json
from flux2_async._refusal import refusal, retry_after
from flux2_async._wire import Reply, code_of, find_task_id, message_of
from flux2_async.errors import AmbiguousSubmitError, ApiError, TransportError
from flux2_async.models import Request

__all__ = ["Accepted", "Answer", "NeverSent", "Refused", "Unclear", "judge", "unclear"]

UNCLEAR: Final = "the task may exist and cost money, so it was not sent again"

_REFUSED: Final = frozenset({400, 401, 402, 404, 405, 413, 422, 429, 430, 433, 455, 505})
"""Codes that are documented as refusals, or seen as such."""
_REFUSED_IN_ANY_STATE: Final = frozenset({429, 455, 505})
"""Those of them that a server which fails says on purpose."""
_PARAMETER_OR_FAULT: Final = frozenset({500, 501})
"""Codes by which createTask refuses a parameter, unless the text says that the server failed."""
_BLAMES_THE_SERVER: Final = re.compile(r"server exception|internal|try again", re.IGNORECASE)
_REFUSING_REDIRECTS: Final = frozenset({300, 301, 307, 308})
_CLIENT_ERRORS: Final = range(400, 500)
_CONFLICT: Final = 409
_GIVEN_UP: Final = frozenset({408, 499})
"""Statuses of a gateway that waited in vain: what is behind it may have got the request."""


@attrs.frozen
class Accepted:
    """The service made a task.

    Attributes:
        task_id: Its id.
        headers: Of the reply.
    """

    task_id: str
    headers: Mapping[str, str] = attrs.field(repr=False)


@attrs.frozen
class Refused:
    """The service made no task, and said so.

    Attributes:
        error: Its words.
        headers: Of the reply.
    """

    error: ApiError
    headers: Mapping[str, str] = attrs.field(repr=False)


@attrs.frozen
class NeverSent:
    """Nothing of the request left.

    Attributes:
        error: What was in the way; its `never_sent` is true.
    """

    error: TransportError


@attrs.frozen
class Unclear:
    """The task may exist.

    Attributes:
        error: Why that is not known.
    """

    error: AmbiguousSubmitError


Answer = Accepted | Refused | NeverSent | Unclear


def judge(reply: Reply, *, request: Request, ref: str, now: datetime) -> Accepted | Refused | Unclear:
    """Say what a whole reply to createTask means.

    Args:
        reply: The reply.
        request: What was sent, for the error.
        ref: The name of the submission, for the error.
        now: The present, aware: for a Retry-After that is a date, where the reply has no `Date` of its own.

    Returns:
        The first that holds: a task id, wherever the service names one; a refusal that is known to be one; unclear.
    """
    if task_id := find_task_id(reply):
        return Accepted(task_id, reply.headers)
    code, message = _read(reply)
    if not _is_refusal(reply.status, code, message):
        told = f"createTask was answered by HTTP {reply.status}{_code_told(code)} without a task id"
        return unclear(told, request=request, ref=ref, http_status=reply.status)
    wait = retry_after(reply.headers, body=reply.body)
    if wait is None:
        # A date without the service's own one beside it can only be held against our clock.
        wait = retry_after(reply.headers, now)
    words = message or "refused without a reason"
    error = refusal(reply.status if code is None else code, words, reply.status, creating=True, retry_after=wait)
    return Refused(error, reply.headers)


def unclear(what: str, *, request: Request, ref: str, http_status: int | None = None) -> Unclear:
    """The answer for everything that proves nothing; `what` says what happened."""
    return Unclear(AmbiguousSubmitError(f"{what}; {UNCLEAR}", request=request, ref=ref, http_status=http_status))


def _is_refusal(status: int, code: int | None, message: str) -> bool:
    """Whether an answer without a task id is known to be a refusal; the order of these rows is the money law's."""
    if status in _GIVEN_UP or status >= 500:  # noqa: PLR2004  HTTP's own class
        return code in _REFUSED_IN_ANY_STATE
    if code in _REFUSED:
        return True
    if code in _PARAMETER_OR_FAULT:
        return not _BLAMES_THE_SERVER.search(message)
    if code is not None:
        return code == status and code in _CLIENT_ERRORS
    return status in _REFUSING_REDIRECTS or (status in _CLIENT_ERRORS and status != _CONFLICT)


def _read(reply: Reply) -> tuple[int | None, str]:
    """The `code` and the text of a reply, where it has them."""
    try:
        body = _json.loads_reply(reply.body)
    except ValueError:
        return None, ""
    return (code_of(body), message_of(body)) if isinstance(body, dict) else (None, "")


def _code_told(code: int | None) -> str:
    return "" if code is None else f" with code {code}"
