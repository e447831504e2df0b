"""What an exchange of createTask means for the money: one of four answers, judged in one place. Pure.

Accepted, refused and never sent are said on positive proof only; everything else is unclear, and an unclear createTask
is never sent again by itself.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from enum import Enum
from functools import cached_property
from typing import Final
from urllib.parse import unquote

import attrs

from flux2_async._protocol import lenient_json
from flux2_async._protocol.codec import Reply, code_of, message_of
from flux2_async._protocol.framing import behind_reply
from flux2_async._protocol.records import task_id_of
from flux2_async._protocol.refusals import Proof, meaning_of, refusal, retry_after
from flux2_async._protocol.told_limits import told_limits
from flux2_async.errors import AmbiguousSubmitError, ApiError, RateLimitedError, TransportError
from flux2_async.models import Request
from flux2_async.models.settings import Told

UNCLEAR: Final = (
    "the task may exist and cost money, so it was not sent again; check the task log of your account before you "
    "submit it again"
)

_BLAMES_THE_SERVER: Final = re.compile(r"server exception|internal|try again", re.IGNORECASE)
_REFUSING_REDIRECTS: Final = frozenset({300, 301, 307, 308})
_CLIENT_ERRORS: Final = range(400, 500)
_CONFLICT: Final = 409
_TASK_ID: Final = re.compile(r'(?<!\\)"task_?[iI]d"\s*:\s*(?:"([^"\\]+)"|([0-9]+)(?=\s*[,}]))')

_ESCAPE: Final = re.compile(r"\\u([0-9a-fA-F]{4})")
_NAME: Final = re.compile(r"[a-z0-9_-]{1,128}")
_ID_IN_ECHO: Final = b"task", re.compile(r"""task_?id["']\s*:\s*["']?([a-z0-9_-]*)""")
_CODE_IN_ECHO: Final = b"code", re.compile(r"""code["']\s*:\s*["']?([0-9]*)""")

_SUCCESS: Final = re.compile(rb"HTTP/1\.[01] {1,9}2")
_GIVEN_UP: Final = frozenset({408, 499})
"""Statuses of a gateway that waited in vain: what is behind it may have got the request."""


# Made twice as fast as a frozen one.
@attrs.define(eq=False, repr=False)
class Accepted:
    """The service made a task; nobody changes it.

    Attributes:
        task_id: Its id.
        headers: Of the reply.
        told: What it says of the account's limits.
    """

    task_id: str
    headers: Mapping[str, str] = attrs.field(repr=False)
    told: tuple[Told, ...] = ()


@attrs.frozen(eq=False, repr=False)
class Refused:
    """The service made no task, and said so.

    Attributes:
        error: Its words.
        headers: Of the reply.
        told: What it says of the account's limits.
    """

    error: ApiError
    headers: Mapping[str, str] = attrs.field(repr=False)
    told: tuple[Told, ...] = ()


class Obstacle(Enum):
    """What kept a request from leaving."""

    PASSING = "passing"
    """The network, or a proxy: may be gone at the next try."""
    LASTING = "lasting"
    """It would be there at every try, or is nothing that anybody knows of: told at once."""
    LEASE = "lease"
    """The permit's lease had ended: asked for anew, and sent then."""


@attrs.frozen(eq=False, repr=False)
class NeverSent:
    """Nothing of the request left.

    Attributes:
        error: What was in the way; its `never_sent` is true.
        obstacle: Of which kind that is.
    """

    error: TransportError
    obstacle: Obstacle = Obstacle.PASSING


@attrs.frozen(eq=False, repr=False)
class Unclear:
    """The task may exist.

    Attributes:
        error: Why that is not known.
    """

    error: AmbiguousSubmitError


Answer = Accepted | Refused | NeverSent | Unclear


def judge(
    reply: Reply, *, sent: bytes, request: Request, ref: str, now: Callable[[], datetime], broken_off: str | None = None
) -> Accepted | Refused | Unclear:
    """Say what a reply to createTask means.

    Args:
        reply: The reply.
        sent: The body that it answers: what only echoes it says nothing.
        request: What the body stands for, for the error.
        ref: The name of the submission, for the error.
        now: Gives the present, aware: for a Retry-After that is a date, where the reply has no `Date` of its own.
        broken_off: Why the reply is not whole, or None when it is.

    Returns:
        The first that holds: a task id, wherever the service names one, also in a reply that broke off behind it;
        a whole refusal that is known to be one; unclear.
    """
    echo = _Echo(sent)
    if task_id := find_task_id(reply.body, echo):
        return Accepted(task_id, reply.headers, told_limits(reply.headers, now))
    if broken_off is not None:
        return unclear(broken_off, request=request, ref=ref)
    code, message = _read(reply, echo)
    if not _is_refusal(reply.status, code, message):
        with_code = "" if code is None else f" with code {code}"
        told = f"createTask was answered by HTTP {reply.status}{with_code} without a task id"
        return unclear(told, request=request, ref=ref, http_status=reply.status)
    if named := _named(reply.body, echo):
        # Twice in one object, too deep or in a list: not where an id is read, and no proof that there is no task.
        told = f"createTask was refused by HTTP {reply.status} in an answer that names task {named[0]}"
        return unclear(told, request=request, ref=ref, http_status=reply.status)
    wait = retry_after(reply.headers, body=reply.body)
    if wait is None:
        # A date without the service's own one beside it can only be held against our clock.
        wait = retry_after(reply.headers, now())
    words = message or "refused without a reason"
    known, foreign = (reply.status, True) if code is None else (code, False)
    error = refusal(known, words, reply.status, creating=True, foreign=foreign, retry_after=wait)
    body = reply.body if isinstance(error, RateLimitedError) else b""
    return Refused(error, reply.headers, told_limits(reply.headers, now, body))


def confirm(
    answer: Accepted | Refused, heard: bytes, *, sent: bytes, request: Request, ref: str
) -> Accepted | Refused | Unclear:
    """Say what an answer means, by all that came over its connection, itself and what is behind it; see `judge`.

    One of the two may be nobody's: behind a refusal whatever it is, behind a task only another one.
    """
    # Another reply would begin as the first one does, and nothing else counts behind a task.
    alone = isinstance(answer, Accepted) and heard.count(b"HTTP/1.") == 1
    if alone or not (behind := behind_reply(heard)):
        return answer
    task_ids = _named(behind, _Echo(sent))
    if isinstance(answer, Accepted):
        task_ids = [each for each in task_ids if each != answer.task_id]
        if not task_ids or not _SUCCESS.match(behind):
            return answer
        first, status = f"with task {answer.task_id}", None
    else:
        first, status = f"by HTTP {answer.error.http_status}", answer.error.http_status
    named_task = f", naming task {task_ids[0]}" if task_ids else ""
    told = f"createTask was answered {first}, and more came behind that answer{named_task}"
    return unclear(told, request=request, ref=ref, http_status=status)


def unclear(what: str, *, request: Request, ref: str, http_status: int | None = None) -> Unclear:
    """The answer for everything that proves nothing; `what` says what happened."""
    return Unclear(AmbiguousSubmitError(f"{what}; {UNCLEAR}", request=request, ref=ref, http_status=http_status))


def _is_refusal(status: int, code: int | None, message: str) -> bool:
    """Whether an answer without a task id is known to be a refusal; the order of these rows is the money law's."""
    proof = Proof.NOTHING if code is None else meaning_of(code).proof
    if status in _GIVEN_UP or status >= 500:  # noqa: PLR2004  HTTP's own class
        return proof is Proof.REFUSED_IN_ANY_STATE
    if proof is Proof.PARAMETER_OR_FAULT:
        return not _BLAMES_THE_SERVER.search(message)
    if proof is not Proof.NOTHING:
        return True
    if code is not None:
        return code == status and code in _CLIENT_ERRORS
    return status in _REFUSING_REDIRECTS or (status in _CLIENT_ERRORS and status != _CONFLICT)


class _Echo:
    """What a reply may repeat of the request, with quotes escaped, half escaped or not at all.

    A prompt may spell out fields of a reply. Unescaped in a reply they look like the service's own, in JSON that is
    broken by them and in JSON that is not. So what is named by the request under the same key proves nothing.
    """

    def __init__(self, sent: bytes) -> None:
        self._sent = sent

    @cached_property
    def _text(self) -> str:
        import html  # noqa: PLC0415  its long table is loaded at first need

        text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), self._sent.decode("utf-8", "replace"))
        return html.unescape(unquote(text.replace("\\", ""))).lower()

    def may_be(self, value: str, key: tuple[bytes, re.Pattern[str]]) -> bool:
        """Whether a value under a key may come from the request."""
        word, told = key
        # Without the word of the key, or what may be an escape of it, the request does not name it. `in` takes three
        # times as long: it tries first whether it was asked for a number.
        find = self._sent.find
        if self._sent.lower().find(word) < 0 and find(b"\\") < 0 and find(b"%") < 0 and find(b"&") < 0:
            return False
        begun = [match[1] for match in told.finditer(self._text)]
        value = value.lower()
        # A key at the end of an echo takes its value from what follows there.
        return bool(begun) and (value in self._text or any(map(value.startswith, begun)) or not _NAME.fullmatch(value))


def find_task_id(body: bytes, echo: _Echo) -> str | None:
    """The id of a created task, before anything else about the reply is judged.

    Args:
        body: Of a reply to createTask; whole, broken or cut short.
        echo: Of the request.

    Returns:
        The id from `data.taskId`, `data.task_id`, `taskId` or `task_id`, or the first complete one in the text of a
        JSON object that is broken; None where there is none but in an echo.
    """
    for task_id in _task_ids(body):
        if task_id and not echo.may_be(task_id, _ID_IN_ECHO):
            return task_id
    return None


def _named(raw: bytes, echo: _Echo) -> list[str]:
    """What is named like the id of a task anywhere in what came, but in an echo."""
    named = (match[1] or match[2] for match in _TASK_ID.finditer(lenient_json.as_text(raw)))
    return [each for each in named if _NAME.fullmatch(each.lower()) and not echo.may_be(each, _ID_IN_ECHO)]


def _task_ids(body: bytes) -> Iterable[str | None]:
    try:
        answer = lenient_json.loads_reply(body)
    except ValueError:
        text = lenient_json.as_text(body).lstrip()
        # A page of a proxy is no answer of the API, whatever its text mentions.
        found = _TASK_ID.finditer(text) if text.startswith("{") else ()
        return ((match[1] or match[2]).strip() for match in found)
    places = (answer.get("data"), answer) if isinstance(answer, dict) else ()
    return map(task_id_of, (place for place in places if isinstance(place, dict)))


def _read(reply: Reply, echo: _Echo) -> tuple[int | None, str]:
    """The `code` and the text of a reply, where it has them."""
    try:
        body = lenient_json.loads_reply(reply.body)
    except ValueError:
        return None, ""
    if not isinstance(body, dict):
        return None, ""
    code = code_of(body)
    if code is not None and echo.may_be(str(code), _CODE_IN_ECHO):
        code = None
    return code, message_of(body, reply.redact)
