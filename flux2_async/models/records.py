"""What the service tells of a task: frozen, without I/O."""

import enum
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

import attrs

__all__ = ["ImageResult", "TaskRecord", "TaskState"]


class TaskState(enum.StrEnum):
    """The API's words for where a task is."""

    WAITING = "waiting"
    QUEUING = "queuing"
    GENERATING = "generating"
    SUCCESS = "success"
    FAIL = "fail"
    UNKNOWN = "unknown"
    """A word this version does not know: the task still runs, the word is in `TaskRecord.state_text`."""

    @property
    def final(self) -> bool:
        """Whether nothing more will come."""
        return self in _FINAL


# Python 3.11 takes as long to find a member in its class as to call a function.
SUCCESS: Final = TaskState.SUCCESS
_FINAL: Final = (SUCCESS, TaskState.FAIL)


@attrs.define(eq=False, repr=False)
class Echo:
    """A request as the service echoes it, not read yet: it is half of a record, and few ask for it.

    Attributes:
        raw: As it came.
        read: Reads that.
    """

    raw: str | Mapping[str, Any] = attrs.field(repr=False)
    read: Callable[[Any], Mapping[str, Any] | None] = attrs.field(repr=False)


def _counted(urls: tuple[str, ...]) -> str:
    # They may hold private words, and whoever prints a result looks for them.
    return f"<{len(urls)} address{'es' * (len(urls) != 1)}, not shown here; print them>" if urls else "()"


@attrs.frozen(kw_only=True)
class TaskRecord:
    """What the service knows of a task.

    Attributes:
        task_id: Its id.
        state: Where it is.
        state_text: The API's own word for that.
        model: The API's id of the model, or None when the answer named none.
        result_urls: Addresses of the pictures; empty until `SUCCESS`. They are valid for about 24 hours (documented).
        fail_code: The API's `failCode` as text, or None.
        fail_message: The API's `failMsg`, or None.
        create_time: When the service took the task, aware, or None.
        complete_time: When it finished, aware, or None.
        update_time: When it last changed, aware, or None (live answers often lack it).
        progress: 0 to 100, or None (flux-2 sends none).
        credits_consumed: Credits charged, or None when the answer named none, or no 0 to 1e6; 0.0 for a failed task.
        param: The request as the service echoes it, decoded, its `callBackUrl` redacted; None when it could
            not be read.
        extra: All other fields of the answer, untouched.
    """

    task_id: str
    state: TaskState
    state_text: str
    model: str | None = None
    result_urls: tuple[str, ...] = attrs.field(default=(), repr=_counted)
    fail_code: str | None = None
    fail_message: str | None = attrs.field(default=None, repr=False)
    create_time: datetime | None = None
    complete_time: datetime | None = None
    update_time: datetime | None = attrs.field(default=None, repr=False)
    progress: float | None = None
    credits_consumed: float | None = None
    param: Mapping[str, Any] | None = attrs.field(default=None, repr=False, eq=False)
    extra: Mapping[str, Any] = attrs.field(factory=dict, repr=False, eq=False)

    @property
    def duration(self) -> float | None:
        """Seconds from creation to completion by the service's clock, or None until both are known."""
        if self.create_time is None or self.complete_time is None:
            return None
        return (self.complete_time - self.create_time).total_seconds()


class _ReadWhenAsked:
    """The attribute of a field that may be given an `Echo`, which is read when the attribute is asked for."""

    def __init__(self, slot: Any) -> None:
        self._slot = slot

    def __get__(self, record: TaskRecord | None, owner: type[TaskRecord]) -> Any:
        if record is None:
            return self
        value = self.held(record)
        if isinstance(value, Echo):
            value = value.read(value.raw)
            self._slot.__set__(record, value)
        return value

    def __set__(self, record: TaskRecord, value: object) -> None:
        self._slot.__set__(record, value)

    def held(self, record: TaskRecord) -> Mapping[str, Any] | Echo | None:
        """What is there, read or not."""
        held: Mapping[str, Any] | Echo | None = self._slot.__get__(record)
        return held


PARAM: Final = _ReadWhenAsked(TaskRecord.param)
TaskRecord.param = PARAM  # type: ignore[assignment]  # the class is finished here


@attrs.frozen(kw_only=True)
class ImageResult:
    """A finished picture.

    Attributes:
        task_id: The task.
        urls: Addresses of the pictures, at least one; download them soon: valid for about 24 hours (documented).
        record: The final record.
    """

    task_id: str
    urls: tuple[str, ...] = attrs.field(repr=_counted)
    record: TaskRecord
