"""Requests to bytes, replies to values or errors: the API's words end here.

Pure: status, headers and body go in; a value or an error comes out. No reply, however broken, raises anything but a
`Flux2Error`, and no error holds the body, a prompt or a callback address.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import attrs

from flux2_async._protocol import lenient_json
from flux2_async._protocol.converter import http_address, read_number
from flux2_async._protocol.records import record_from_payload, task_id_of
from flux2_async._protocol.refusals import ENDS_TASK, refusal, retry_after, without_signature
from flux2_async._shown.text import Redactor
from flux2_async.errors import ApiError, InvalidRequestError, ProtocolError, RateLimitedError, ServerError
from flux2_async.models import Request, TaskRecord, TaskState, UploadedFile
from flux2_async.models.plain import is_whole
from flux2_async.models.requests import images_of, input_of

SUCCESS: Final = 200
NOT_FOUND: Final = 404
NOT_VISIBLE: Final = 422

_CODE: Final = re.compile(r"[0-9]{1,9}")
_LOST_RECORD: Final = re.compile(r"record\s*info\b.*\bnull", re.IGNORECASE | re.DOTALL)


# Made twice as fast as a frozen one, for each call.
@attrs.define(eq=False, repr=False)
class Reply:
    """One HTTP answer, which nobody changes.

    Attributes:
        status: The HTTP status.
        headers: As they came; look them up with `header`, which ignores case.
        body: The whole body.
        redact: Takes the key out of a text that is shown: a server may quote what it was sent.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=lambda value: f"<{len(value)} bytes>")
    redact: Redactor = attrs.field(factory=Redactor, repr=False)


@attrs.define(eq=False, repr=False)
class Envelope:
    """What every JSON answer has in common.

    Attributes:
        code: The service's verdict; 200 is success.
    """

    code: int
    _body: Mapping[str, Any] = attrs.field(repr=False)
    _redact: Redactor = attrs.field(repr=False)

    @property
    def message(self) -> str:
        """The service's own words, `msg` or `message`; empty when there are none."""
        return message_of(self._body, self._redact)

    @property
    def data(self) -> Any:
        """The rest, not looked at yet; None when there is none."""
        return self._body.get("data")

    @property
    def success(self) -> bool:
        """False when an upload says `success: false`, else True."""
        return self._body.get("success") is not False


class FailedUnderErrorError(ServerError):
    """A call that was refused and yet shows a record of the task, which says that it failed.

    Attributes:
        record: Of the task.
    """

    record: TaskRecord

    def __init__(self, refused: ApiError, record: TaskRecord) -> None:
        super().__init__(refused.code, refused.message, refused.http_status, task_id=record.task_id)
        self.record = record


def encode_request(request: Request, input_urls: Sequence[str] = (), callback_url: str | None = None) -> bytes:
    """The body of createTask, in JSON.

    Args:
        request: What to make.
        input_urls: The addresses of its pictures, in order, after uploading.
        callback_url: Where the service reports the end, or None for no callback.

    Raises:
        InvalidRequestError: There are not as many addresses as the request has pictures.
    """
    pictures = len(images_of(request))
    if len(input_urls) != pictures:
        raise InvalidRequestError(f"images: {len(input_urls)} addresses for {pictures} pictures, each needs one")
    body: dict[str, Any] = {"model": request.model, "input": input_of(request, input_urls)}
    if callback_url is not None:
        body["callBackUrl"] = callback_url
    return lenient_json.dumps(body)


def code_of(body: Mapping[str, Any]) -> int | None:
    """The `code` of a JSON answer, a whole number or its digits, or None."""
    value = body.get("code")
    if is_whole(value):
        return value
    return int(value) if isinstance(value, str) and _CODE.fullmatch(value.strip()) else None


def message_of(body: Mapping[str, Any], redact: Redactor) -> str:
    """The service's own words in a JSON answer, `msg` or `message`, as they may be shown; empty when there are none."""
    words = body.get("msg")
    if not (isinstance(words, str) and words):
        words = body.get("message")
    return redact(without_signature(words)) if isinstance(words, str) and words else ""


def decode_record(reply: Reply, task_id: str) -> TaskRecord | None:
    """Read the answer of recordInfo to the question for a task.

    Returns:
        The record, or None when the service does not show it (yet). Under HTTP 2xx the codes 408, 451 and 501 are a
        record of a failure.

    Raises:
        FailedUnderErrorError: The call was refused, and yet shows a record of this task that says that it failed.
        ApiError: Any other refusal, by its class.
        ProtocolError: It cannot be understood.
    """
    try:
        envelope = _accepted(reply, task_id, ends_task=True)
    except ApiError as error:
        if _is_hidden(error):
            return None
        refused = error
    else:
        return _record_of(envelope, reply, task_id)
    record = None if isinstance(refused, RateLimitedError) else _record_of_failure(reply, task_id)
    raise refused if record is None else FailedUnderErrorError(refused, record)


def _record_of(envelope: Envelope, reply: Reply, task_id: str) -> TaskRecord | None:
    if envelope.code in ENDS_TASK:
        record = _failure(envelope, task_id)
    elif not (data := envelope.data):
        return None
    elif isinstance(data, dict):
        record = record_from_payload(data, task_id)
    else:
        raise _unexpected("an object", data, reply, task_id)
    if record.fail_message:
        # As it may be shown.
        return attrs.evolve(record, fail_message=reply.redact(record.fail_message))
    return record


def decode_credits(reply: Reply) -> float:
    """Read the balance.

    Raises:
        ApiError: The service refused.
        ProtocolError: It is not a number.
    """
    data = _accepted(reply).data
    try:
        return read_number(data)
    except (ValueError, OverflowError):
        pass
    raise _unexpected("a number", data, reply)


def decode_download_url(reply: Reply) -> str:
    """Read the link to a generated file, percent-encoded.

    Raises:
        ApiError: The service refused.
        ProtocolError: It is not an http(s) address.
    """
    data = _accepted(reply).data
    address = http_address(data)
    if address is None:
        raise _unexpected("an http(s) address", data, reply)
    return address


def decode_upload(reply: Reply, *, size: int | None = None, mime_type: str | None = None) -> UploadedFile:
    """Read the answer to an upload; the file's address is percent-encoded.

    Args:
        reply: The answer.
        size: Bytes that were sent; None: what the service says, 0 where it says nothing.
        mime_type: Their type; None: what the service says, empty where it says nothing.

    Raises:
        ApiError: The service refused.
        ProtocolError: The answer names no http(s) address.
    """
    data = _accepted(reply).data
    if not isinstance(data, dict):
        raise _unexpected("an object", data, reply)
    url = http_address(data.get("downloadUrl")) or http_address(data.get("fileUrl"))
    if url is None:
        raise ProtocolError("data.downloadUrl: no http(s) address; upload it again", http_status=reply.status)
    names = (data.get("fileName"), data.get("originalName"), unquote(urlsplit(url).path.rpartition("/")[2]))
    file_name = next(name for name in names if isinstance(name, str))
    if size is None:
        size = data["fileSize"] if is_whole(data.get("fileSize")) else 0
    if mime_type is None:
        mime_type = data["mimeType"] if isinstance(data.get("mimeType"), str) else ""
    return UploadedFile(url, file_name, size, mime_type, _expiry(data.get("expiresAt")))


def decode_envelope(reply: Reply, task_id: str | None = None) -> Envelope:
    """Read what every JSON answer has in common.

    Raises:
        ProtocolError: It is not a JSON object with a readable `code`; `task_id` is what it is about, if that is known.
    """
    try:
        body = lenient_json.loads_reply(reply.body)
    except ValueError:
        body = None
    # Raised out here, so that no error carries the parser's, which holds the whole body.
    if not isinstance(body, dict):
        size = len(reply.body)
        text = (
            f"HTTP {reply.status} with {size} bytes that are no JSON object; try again, or check that base_url is right"
        )
        raise ProtocolError(text, http_status=reply.status, task_id=task_id)
    code = code_of(body)
    if code is None:
        text = f"HTTP {reply.status} with JSON that has no readable `code`; check that base_url names the API"
        raise ProtocolError(text, http_status=reply.status, task_id=task_id)
    return Envelope(code, body, reply.redact)


def _accepted(reply: Reply, task_id: str | None = None, *, ends_task: bool = False) -> Envelope:
    """The envelope of a success, or of a code that ends a task where that is asked for, else the error it means."""
    answered = 200 <= reply.status < 300  # noqa: PLR2004  HTTP's own class
    try:
        envelope = decode_envelope(reply, task_id)
    except ProtocolError:
        if answered:
            raise
        envelope = Envelope(SUCCESS, {}, reply.redact)
    code = envelope.code
    if answered and ((code == SUCCESS and envelope.success) or (ends_task and code in ENDS_TASK)):
        return envelope
    message = envelope.message
    foreign = code == SUCCESS and not answered
    if foreign:
        code, message = reply.status, f"HTTP {reply.status} without an answer of the API"
    wait = retry_after(reply.headers, body=reply.body)
    raise refusal(code, message, reply.status, foreign=foreign, retry_after=wait, task_id=task_id)


def _record_of_failure(reply: Reply, task_id: str) -> TaskRecord | None:
    """What a refusal says of this task, by its name, where that is that it failed; else None."""
    try:
        envelope = decode_envelope(reply, task_id)
        data = envelope.data
        if not isinstance(data, dict) or task_id_of(data) != task_id:
            return None
        record = _failure(envelope, task_id) if envelope.code in ENDS_TASK else record_from_payload(data)
    except ProtocolError:
        return None
    return record if record.state is TaskState.FAIL else None


def _is_hidden(error: ApiError) -> bool:
    lost = error.code == NOT_VISIBLE and _LOST_RECORD.search(error.message)
    return error.code == NOT_FOUND or bool(lost)


def _failure(envelope: Envelope, task_id: str) -> TaskRecord:
    data = envelope.data if isinstance(envelope.data, dict) else {}
    told = {"failCode": data.get("failCode") or envelope.code, "failMsg": data.get("failMsg") or envelope.message}
    return record_from_payload({**data, "state": TaskState.FAIL.value, **told}, task_id)


def _expiry(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _unexpected(expected: str, data: object, reply: Reply, task_id: str | None = None) -> ProtocolError:
    text = f"data: {expected} expected, {type(data).__name__} given; try again"
    return ProtocolError(text, http_status=reply.status, task_id=task_id)
