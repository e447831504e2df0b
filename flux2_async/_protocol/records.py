"""A record of a task: from the API's fields to `TaskRecord`, and what a finished one means. Pure.

What is essential for a paid picture (the id, the state, the addresses of a success) raises when it cannot be read, so
that it is polled again. Everything else that cannot be read becomes None and stays in `extra` as it came.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, Final

from flux2_async._protocol.converter import (
    FIELDS,
    OUTRANKED,
    UnreadableError,
    decoded,
    http_address,
    read_addresses,
    redacted,
    result_address,
)
from flux2_async.errors import (
    MAX_SERVER_TEXT,
    ContentModeratedError,
    EmptyResultError,
    ProtocolError,
    TaskError,
    TaskFailedError,
)
from flux2_async.models import TaskRecord, TaskState
from flux2_async.models.plain import is_whole
from flux2_async.models.records import PARAM, SUCCESS, Echo

_REQUIRED: Final = {"task_id": "taskId", "state": "state"}
_ESSENTIAL: Final = {*_REQUIRED.values(), "resultJson"}
_NO_EXTRA: Final = {*_ESSENTIAL, "task_id"}

# What nearly every result is, for which there is no need of a parser.
_ONE_RESULT: Final = re.compile(r'\{"resultUrls":\["(https?://[A-Za-z0-9.-]*[A-Za-z0-9](?:/[!#-\[\]-~]*)?)"\]\}')

# Bytes of a number, of a moment, and of a text besides its characters.
SIZE_OF_A_VALUE: Final = 76
# Characters; no reason is longer, and a text of a megabyte would hold up the event loop.
MAX_SEARCHED: Final = 8192

# Words of the service and of the vendors behind it. Not the code: 400 and 422 stand for bad input as well.
_MODERATION: Final = re.compile(
    r"content[ _-]?polic|usage polic|violat[^.]{0,70}(polic|guideline|terms)|prohibited (content|use)"
    r"|moderat(ed|ion|or)|flagged|current content could not be processed|inappropriate|\bnsfw\b|sexual|nudity"
    r"|sensitive (content|information|word|material)|safety (system|filter|polic|guideline)",
    re.IGNORECASE,
)


NOT_FETCHED: Final = "451"
"""`failCode` of a task whose pictures the service could not get."""


def record_from_payload(data: Mapping[str, Any], task_id: str | None = None) -> TaskRecord:
    """Read the `data` of a recordInfo answer or of a callback.

    Args:
        data: The API's fields.
        task_id: The task that was asked for; None takes the id that `data` names.

    Returns:
        The record. A success that names no file has no `result_urls`.

    Raises:
        ProtocolError: The id, the state or the addresses of a success cannot be read, or it is another task's record;
            the text names the field.
    """
    named = task_id_of(data)
    if task_id is not None and named not in (None, task_id):
        raise ProtocolError("data.taskId: the record of another task came; poll again", task_id=task_id)
    return record_of(data, task_id or named)


def record_of(data: Mapping[str, Any], task_id: str | None) -> TaskRecord:
    """Read a record of which it is known whose it is; see `record_from_payload`."""
    told: dict[str, Any] = {"task_id": task_id} if task_id else {}
    unread: dict[str, str] = {}
    extra: dict[str, Any] = {}
    # What is outranked is read first; most records have none of it.
    fields = data if data.keys().isdisjoint(OUTRANKED) else {**OUTRANKED, **data}
    # Else Python makes the method anew for each, as of all that is imported.
    find = FIELDS.get
    for key, value in fields.items():
        if (field := find(key)) is None:
            if key not in _NO_EXTRA:
                extra[key] = value
        elif value or value not in (None, ""):
            name, read = field
            try:
                told[name] = read(value)
            except (ValueError, OverflowError) as error:
                unread[key] = str(error)
    state = told.get("state")
    if (result := data.get("resultJson")) is not None and result != "":
        if state is SUCCESS:
            try:
                told["result_urls"] = _addresses(result, extra)
            except UnreadableError as error:
                unread["resultJson"] = str(error)
        else:
            extra["resultJson"] = result
    if unread or state is None or "task_id" not in told:
        _check_essential({key: ": missing" for name, key in _REQUIRED.items() if name not in told} | unread, task_id)
        extra |= {key: data[key] for key in unread}
    told["state_text"], told["extra"] = data["state"], redacted(extra) if extra else extra
    return TaskRecord(**told)


def _check_essential(unread: Mapping[str, str], task_id: str | None) -> None:
    essential = [f"data.{key}{unread[key]}" for key in sorted(unread.keys() & _ESSENTIAL)]
    if essential:
        raise ProtocolError(f"{', '.join(essential)}; poll again", task_id=task_id)


def task_id_of(data: Mapping[str, Any]) -> str | None:
    """The task id in an object of the API, `taskId` or `task_id`, or None."""
    for key in ("taskId", "task_id"):
        value = data.get(key)
        if isinstance(value, str):
            if value := value.strip():
                return value
        elif is_whole(value):
            return str(value)
    return None


def task_error(record: TaskRecord) -> TaskError | None:
    """What a record, final or not, means for the one who waits for a picture.

    Returns:
        None for a success with addresses and for a task that still runs; `EmptyResultError` for a success without;
        for a failure `ContentModeratedError` where its words speak of moderation, else `TaskFailedError`.
    """
    if record.state is SUCCESS:
        if record.result_urls:
            return None
        unread = unread_addresses(record)
        names = f"names {unread} addresses that cannot be read" if unread else "names no file"
        text = f"task {record.task_id} succeeded and {names}; see error.record and the task log of your account"
        return EmptyResultError(text, record=record)
    if record.state is not TaskState.FAIL:
        return None
    words = (record.fail_message or "no reason given")[:MAX_SERVER_TEXT]
    text = f"task {record.task_id} failed: {record.fail_code or 'no code'}: {words.rstrip('.')}"
    if _MODERATION.search(f"{record.fail_code} {record.fail_message}"[:MAX_SEARCHED]):
        return ContentModeratedError(f"{text}. Change the prompt or the pictures", record=record)
    cost = f"It cost {record.credits_consumed:g} credits" if record.credits_consumed else "It costs nothing"
    again = "check the pictures' addresses, or pass local files, which are uploaded"
    advice = again if record.fail_code == NOT_FETCHED else "submit it again if you like"
    return TaskFailedError(f"{text}. {cost}; {advice}", record=record)


def unread_addresses(record: TaskRecord) -> int:
    """How many results a record names whose address cannot be read; they are in its `extra["resultJson"]`."""
    if (result := record.extra.get("resultJson")) is None:
        return 0
    urls = result.get("resultUrls") if isinstance(result, dict) else None
    listed = urls if isinstance(urls, list) else [urls] if urls else []
    return sum(result_address(each) is None for each in listed)


def _addresses(told: object, extra: dict[str, Any]) -> tuple[str, ...]:
    """Open the result of a success; what it says beyond addresses is kept apart."""
    if isinstance(told, str) and (one := _ONE_RESULT.fullmatch(told)):
        return one.groups()
    result = decoded(told)
    if result and not _is_plain(result):
        extra["resultJson"] = result
    return read_addresses(result)


def _is_plain(result: object) -> bool:
    """Whether the addresses say all that the result says."""
    if not isinstance(result, dict) or result.keys() != {"resultUrls"}:
        return False
    urls = result["resultUrls"] or []
    return isinstance(urls, list) and all(map(http_address, urls))


def memory_of(record: TaskRecord | None, most: int) -> int:
    """Give the bytes that a record keeps in memory at most, counted until they are more than `most`."""
    if record is None:
        return 0
    # Every callback asks, so the texts are counted together.
    texts = "".join(filter(None, (*_texts_of(record), *record.result_urls)))
    total = SIZE_OF_A_VALUE * (len(FIELDS) + len(record.result_urls)) + (1 if texts.isascii() else 4) * len(texts)
    left: list[Iterable[Any]] = [(PARAM.held(record), record.extra)]
    while left and total <= most:
        for value in left.pop():
            # Asking each for its size takes longer than to read it.
            total += SIZE_OF_A_VALUE
            if isinstance(value, str):
                total += len(value) if value.isascii() else 4 * len(value)
            elif isinstance(value, Echo):
                left.append((value.raw,))
            elif isinstance(value, _COLLECTIONS):
                total += sys.getsizeof(value)
                left += (value, value.values()) if isinstance(value, dict) else (value,)
    return total


# All that a record holds was made by a reader of JSON.
_COLLECTIONS: Final = (dict, list, tuple)
_texts_of: Final = attrgetter("task_id", "state_text", "model", "fail_code", "fail_message")
