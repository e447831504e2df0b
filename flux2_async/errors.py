"""Every error of the library.

Flux2Error
├── InvalidRequestError (ValueError)     a request, key or argument that cannot be sent as it is
├── ConfigurationError                   a session that cannot be made or used as it is
├── BudgetExceededError                  it might cost more than a `Budget` leaves; nothing was sent
├── SessionClosedError                   used before opening or after closing, or closed meanwhile
├── SubmissionWithdrawnError             taken back before it was sent
├── TransportError                       no answer came; `never_sent` tells whether the request left
├── ProtocolError                        an answer came that cannot be understood
├── ApiError                             an answer came, and it is a refusal (`code`)
│   ├── RequestRejectedError             400, 413, 422, and 500 on createTask
│   ├── AuthenticationError              401
│   ├── InsufficientCreditsError         402
│   ├── NotFoundError                    404
│   ├── RateLimitedError                 429, 430, or a wait longer than `max_wait`
│   ├── QuotaExceededError               433
│   ├── MaintenanceError                 455
│   ├── FeatureDisabledError             505
│   └── ServerError                      other 5xx
├── AmbiguousSubmitError                 createTask may or may not have been accepted
├── CoordinationError                    the processes that share an account cannot agree
└── TaskError                            an accepted task that gives no picture
    ├── TaskFailedError                  the service says `fail`
    │   └── ContentModeratedError        … because of the content policy
    ├── EmptyResultError                 the service says `success` and names no file
    ├── TaskNotFoundError                the service does not know the task
    └── TaskTimeoutError (TimeoutError)  not finished in time; the task itself goes on

Each carries its facts as attributes, can be pickled, and holds neither a secret nor an object of aiohttp. Its nature
stands on it as well: `transient`, `meets_every_request`, `link_expired`.
"""

import math
from typing import Any

# For names in annotations: at run time this module stands at the bottom.
import flux2_async
from flux2_async._shown.text import printable

__all__ = [
    "AmbiguousSubmitError",
    "ApiError",
    "AuthenticationError",
    "BudgetExceededError",
    "ConfigurationError",
    "ContentModeratedError",
    "CoordinationError",
    "EmptyResultError",
    "FeatureDisabledError",
    "Flux2Error",
    "InsufficientCreditsError",
    "InvalidRequestError",
    "MaintenanceError",
    "NotFoundError",
    "ProtocolError",
    "QuotaExceededError",
    "RateLimitedError",
    "RequestRejectedError",
    "ServerError",
    "SessionClosedError",
    "SubmissionWithdrawnError",
    "TaskError",
    "TaskFailedError",
    "TaskNotFoundError",
    "TaskTimeoutError",
    "TransportError",
]

MAX_SERVER_TEXT = 500
"""Characters of the service's own words that an error keeps."""


class Flux2Error(Exception):
    """Base of everything this library raises on purpose.

    Attributes:
        task_id: The task it is about, or None where no task is known.
        transient: Whether the reason may be gone soon, so that what costs nothing to repeat is worth another try. Of a
            submission it does not say that it may be repeated: see `AmbiguousSubmitError`.
        meets_every_request: Whether the reason is the key, the account or the whole service, so that another request
            would meet it as well until a person has done something.
    """

    transient: bool = False
    meets_every_request: bool = False

    def __init__(self, message: str, *, task_id: str | None = None) -> None:
        # It quotes the service, file names and the caller's texts, and a traceback prints it as it is.
        super().__init__(printable(message))
        self.task_id: str | None = task_id

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException would call __init__ with the message alone and lose what is keyword-only.
        return _revive, (type(self), self.args, self._state())

    def _state(self) -> dict[str, Any]:
        return self.__dict__


def _revive(cls: type[Flux2Error], args: tuple[Any, ...], state: dict[str, Any]) -> Flux2Error:
    error = cls.__new__(cls, *args)
    # OSError, which TimeoutError is, takes no arguments from __new__ when __init__ is overridden.
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidRequestError(Flux2Error, ValueError):
    """What the caller gave cannot be sent; the text names the field, what was given and what is allowed.

    Nothing was sent and nothing was charged.
    """


class ConfigurationError(Flux2Error):
    """The session cannot be made or used this way; the text says what to change."""


class BudgetExceededError(Flux2Error):
    """One more picture might cost more than a `Budget` leaves. Nothing was sent and nothing was charged.

    Attributes:
        budget: The budget.
        group: The group of the request, or None.
        spent: Credits that were paid under it, as far as records have told.
        reserved: Credits that it may cost besides: what waits, runs, is unclear, or ended without `creditsConsumed`.
        price: Credits that this picture may cost.
        retry_after: Seconds until enough has left the budget's window, or None where that is not known: what is
            reserved may leave room when it ends, since a task that fails costs nothing.
        meets_every_request: Whether no other request of this price will fit either, whatever becomes of what is
            reserved.
    """

    def __init__(
        self,
        *,
        budget: "flux2_async.Budget",
        group: str | None,
        spent: float,
        reserved: float,
        price: float,
        retry_after: float | None = None,
    ) -> None:
        whose = "" if budget.group is None else f" of group {group!r}"
        window = "" if budget.per is None else f" per {budget.per:g} s"
        if retry_after is not None:
            advice = f"Enough is free again in {math.ceil(retry_after)} s"
        elif reserved > 0 and (budget.per is not None or spent + price <= budget.credits):
            advice = (
                "Room may come when those that wait or run end, since what fails costs nothing: try again then, or "
                "raise the budget"
            )
        elif budget.per is not None and price <= budget.credits:
            advice = f"Enough is free again within {budget.per:g} s"
        else:
            advice = "Raise the budget to go on"
        super().__init__(
            f"the budget{whose} is {budget.credits:g} credits{window}: {spent:g} are spent, {reserved:g} reserved, and "
            f"this picture may cost {price:g}, so nothing was sent. {advice}"
        )
        self.budget: flux2_async.Budget = budget
        self.group: str | None = group
        self.spent: float = spent
        self.reserved: float = reserved
        self.price: float = price
        self.retry_after: float | None = retry_after
        self.meets_every_request: bool = budget.group is None and budget.per is None and spent + price > budget.credits


class SessionClosedError(Flux2Error):
    """The session is not open (any more).

    Attributes:
        task_id: The task that was outstanding when the session closed; `attach` it in a new session.
    """


class SubmissionWithdrawnError(Flux2Error):
    """The submission was taken back before it was sent, by `withdraw` or by cancelling what sends it.

    Nothing was charged; where others joined its key, it goes on for them.
    """


class TransportError(Flux2Error):
    """No complete answer came.

    Attributes:
        never_sent: True when a createTask certainly did not leave, because there was no connection or not one byte
            was given to it, so that sending it again cannot pay twice. Calls that cost nothing do not say it.
        transient: False where the next try would meet the same, such as a certificate that is not trusted or a proxy
            that wants a password; then `meets_every_request` is true.
    """

    transient: bool = True

    def __init__(
        self, message: str, *, never_sent: bool = False, lasting: bool = False, task_id: str | None = None
    ) -> None:
        super().__init__(message, task_id=task_id)
        self.never_sent: bool = never_sent
        self.meets_every_request: bool = lasting
        if lasting:
            self.transient = False


class ProtocolError(Flux2Error):
    """The answer is not what the API describes; the text names the place.

    Attributes:
        http_status: The HTTP status it came with, or None when it came in a callback.
    """

    transient: bool = True

    def __init__(self, message: str, *, http_status: int | None = None, task_id: str | None = None) -> None:
        super().__init__(message, task_id=task_id)
        self.http_status: int | None = http_status


class ApiError(Flux2Error):
    """The service refused.

    Attributes:
        code: The `code` of the body, else the HTTP status.
        message: The service's own words, at most 500 characters (our choice: a log line has room for it).
        http_status: The HTTP status, or None when nothing was sent.
        link_expired: Whether a file's host refused an address as it does once that has expired, and the service gave no
            new one that works.
    """

    link_expired: bool = False

    def __init__(
        self, code: int, message: str, http_status: int | None = None, *, task_id: str | None = None, advice: str = ""
    ) -> None:
        kept = message[:MAX_SERVER_TEXT]
        super().__init__(f"{code}: {kept.rstrip('.')}. {advice}" if advice else f"{code}: {kept}", task_id=task_id)
        self.code: int = code
        self.message: str = kept
        self.http_status: int | None = http_status


class RequestRejectedError(ApiError):
    """The service does not take this request as it is (400, 413, 422, and 500 on createTask for a bad parameter)."""


class AuthenticationError(ApiError):
    """The key is missing, wrong, or not allowed from this address (401)."""

    meets_every_request = True


class InsufficientCreditsError(ApiError):
    """The account has not enough credits (402)."""

    meets_every_request = True


class NotFoundError(ApiError):
    """No such task or endpoint (404)."""


class RateLimitedError(ApiError):
    """Too many new tasks (429), or `max_wait` is shorter than the wait for a slot and a permit.

    Nothing was created and nothing was charged.

    Attributes:
        retry_after: Seconds until another try makes sense, or None where that is not known.
        http_status: None when the session itself refused, without asking the service.
    """

    transient: bool = True

    def __init__(
        self,
        code: int,
        message: str,
        http_status: int | None = None,
        *,
        retry_after: float | None = None,
        task_id: str | None = None,
        advice: str = "",
    ) -> None:
        super().__init__(code, message, http_status, task_id=task_id, advice=advice)
        self.retry_after: float | None = retry_after


class QuotaExceededError(ApiError):
    """The usage cap of this key is reached (433)."""

    meets_every_request = True


class MaintenanceError(ApiError):
    """The service is under maintenance (455)."""

    transient: bool = True


class FeatureDisabledError(ApiError):
    """The service has switched this feature off (505)."""

    meets_every_request = True


class ServerError(ApiError):
    """The service failed (5xx)."""

    transient: bool = True


class AmbiguousSubmitError(Flux2Error):
    """createTask left, and nothing tells whether the service accepted it.

    It is never sent again by itself: the task may exist and cost money. `recover(ref)` finds it where
    callbacks are used; otherwise check the account's task log before you submit again.

    Attributes:
        request: What was submitted.
        ref: The name of this submission.
        http_status: The HTTP status of the unclear answer, or None when none came.
    """

    def __init__(
        self, message: str, *, request: "flux2_async.Request", ref: str, http_status: int | None = None
    ) -> None:
        super().__init__(message)
        self.request: flux2_async.Request = request
        self.ref: str = ref
        self.http_status: int | None = http_status


class CoordinationError(Flux2Error):
    """The shared state of this account cannot be reached, so going on might pay twice."""


class TaskError(Flux2Error):
    """A task that was accepted and gave no picture.

    Attributes:
        task_id: The task.
    """

    task_id: str  # pyright: ignore[reportIncompatibleVariableOverride]  # nobody assigns it, so narrowing is safe

    def __init__(self, message: str, *, task_id: str) -> None:
        super().__init__(message, task_id=task_id)


class TaskFailedError(TaskError):
    """The service says that the task failed.

    Attributes:
        fail_code: The API's `failCode`, text, or None when it named none.
        fail_message: The API's `failMsg`, at most 500 characters (our choice); empty when it gave none.
        record: The final record.
    """

    def __init__(self, message: str, *, record: "flux2_async.TaskRecord") -> None:
        super().__init__(message, task_id=record.task_id)
        self.fail_code: str | None = record.fail_code
        self.fail_message: str = (record.fail_message or "")[:MAX_SERVER_TEXT]
        self.record: flux2_async.TaskRecord = record


class ContentModeratedError(TaskFailedError):
    """The service refused the prompt or a picture for its content; sending the same again fails again."""


class EmptyResultError(TaskError):
    """The service says `success` and names no file.

    Attributes:
        record: The final record.
    """

    def __init__(self, message: str, *, record: "flux2_async.TaskRecord") -> None:
        super().__init__(message, task_id=record.task_id)
        self.record: flux2_async.TaskRecord = record


class TaskNotFoundError(TaskError):
    """The service does not know the task: wrong id, another account, or deleted."""


class TaskTimeoutError(TaskError, TimeoutError):
    """Not finished in time. The task goes on at the service, and waiting again costs nothing.

    Attributes:
        task: The handle, to be awaited again; None once the error went through pickle.
        given_up: Whether the session no longer polls the task (`Polling.give_up_after`), until the handle is awaited
            again or the task attached; False where only the caller's own wait ended and the session goes on polling.
    """

    def __init__(self, message: str, *, task: "flux2_async.ImageTask", given_up: bool = False) -> None:
        super().__init__(message, task_id=task.id)
        self.task: flux2_async.ImageTask | None = task
        self.given_up: bool = given_up

    def _state(self) -> dict[str, Any]:
        # A handle belongs to the loop it waits on.
        return {**super()._state(), "task": None}
