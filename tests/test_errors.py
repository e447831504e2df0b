"""The tree of errors: what each is, carries and survives."""

import ast
import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flux2_async import errors
from flux2_async.models import ImageToImage, TaskRecord, TaskState
from flux2_async.models.budget import Budget

RECORD = TaskRecord(
    task_id="t-1",
    state=TaskState.FAIL,
    state_text="fail",
    fail_code="400",
    fail_message="m" * 900,
    param={"input": {"prompt": "sunset-over-the-sea"}},
)
REQUEST = ImageToImage("sunset-over-the-sea", images=["a.png"])
HANDLE: Any = SimpleNamespace(id="t-1", lock=object())

EXAMPLES: dict[type[errors.Flux2Error], errors.Flux2Error] = {
    type(error): error
    for error in (
        errors.Flux2Error("text", task_id="t-1"),
        errors.InvalidRequestError("text"),
        errors.ConfigurationError("text"),
        errors.SessionClosedError("text", task_id="t-1"),
        errors.SubmissionWithdrawnError("text"),
        errors.TransportError("text", never_sent=True, task_id="t-1"),
        errors.ProtocolError("text", http_status=502, task_id="t-1"),
        errors.ApiError(418, "text", 200, task_id="t-1", advice="Do this"),
        errors.RequestRejectedError(422, "text", 200),
        errors.AuthenticationError(401, "text", 401),
        errors.InsufficientCreditsError(402, "text", 200),
        errors.NotFoundError(404, "text", 404),
        errors.RateLimitedError(429, "text", None, retry_after=2.5, task_id="t-1", advice="Wait"),
        errors.QuotaExceededError(433, "text", 200),
        errors.MaintenanceError(455, "text", 200),
        errors.FeatureDisabledError(505, "text", 200),
        errors.ServerError(503, "text", 503),
        errors.AmbiguousSubmitError("text", request=REQUEST, ref="r-1", http_status=504),
        errors.CoordinationError("text"),
        errors.BudgetExceededError(
            budget=Budget(30, per=60.0), group="alice", spent=10.0, reserved=14.0, price=14.0, retry_after=2.5
        ),
        errors.TaskError("text", task_id="t-1"),
        errors.TaskFailedError("text", record=RECORD),
        errors.ContentModeratedError("text", record=RECORD),
        errors.EmptyResultError("text", record=RECORD),
        errors.TaskNotFoundError("text", task_id="t-1"),
        errors.TaskTimeoutError("text", task=HANDLE),
    )
}


def tree(kind: type[BaseException]) -> list[tuple[str, str]]:
    pairs = [(each.__name__, kind.__name__) for each in kind.__subclasses__() if each.__module__ == errors.__name__]
    return sorted(pairs + [pair for each in kind.__subclasses__() for pair in tree(each)])


def drawn_tree() -> list[tuple[str, str]]:
    """Child and parent, read from the drawing at the top of the module."""
    path: list[str] = ["Flux2Error"]
    pairs = []
    drawing = ast.get_docstring(ast.parse(Path(errors.__file__).read_text(encoding="utf-8"))) or ""
    for line in drawing.splitlines():
        if "── " not in line:
            continue
        before, _, after = line.partition("── ")
        depth = len(before) // 4 + 1
        path[depth:] = [after.split()[0]]
        pairs.append((path[depth], path[depth - 1]))
    return sorted(pairs)


def test_the_tree_is_as_drawn() -> None:
    """The drawing and the classes say the same."""
    assert drawn_tree() == tree(errors.Flux2Error)
    assert len(drawn_tree()) == len(EXAMPLES) - 1


def test_every_error_is_public_and_has_an_example_here() -> None:
    """`__all__` is sorted and complete, and this file covers it."""
    assert errors.__all__ == sorted(errors.__all__)
    assert set(errors.__all__) == {kind.__name__ for kind in EXAMPLES}


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickling(kind: type[errors.Flux2Error], protocol: int) -> None:
    """Type, text and every attribute come back, but for the handle of a time-out."""
    error = EXAMPLES[kind]
    revived = pickle.loads(pickle.dumps(error, protocol))
    assert type(revived) is kind
    assert (str(revived), revived.args) == (str(error), error.args)
    assert revived.__dict__ == error.__dict__ | ({"task": None} if kind is errors.TaskTimeoutError else {})


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_errors_can_be_copied(kind: type[errors.Flux2Error]) -> None:
    """A copy is an error of its own that says the same."""
    revived = copy.copy(EXAMPLES[kind])
    assert revived is not EXAMPLES[kind]
    assert (type(revived), str(revived), revived.task_id) == (kind, str(EXAMPLES[kind]), EXAMPLES[kind].task_id)


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_every_error_has_a_task_id(kind: type[errors.Flux2Error]) -> None:
    """The task it is about, or None."""
    expected = "t-1" if issubclass(kind, errors.TaskError) else EXAMPLES[kind].task_id
    assert EXAMPLES[kind].task_id == expected
    assert EXAMPLES[kind].task_id in ("t-1", None)


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_no_error_tells_a_prompt(kind: type[errors.Flux2Error]) -> None:
    """Neither text nor repr holds what the user wrote."""
    assert "sunset-over-the-sea" not in repr(EXAMPLES[kind]) + str(EXAMPLES[kind])


def test_errors_are_what_python_users_expect() -> None:
    """A bad request is a ValueError, a time-out a TimeoutError."""
    assert issubclass(errors.InvalidRequestError, ValueError)
    assert issubclass(errors.TaskTimeoutError, TimeoutError)


def test_facts() -> None:
    """Each error carries what a handler needs."""
    assert errors.TransportError("text").never_sent is False
    assert errors.ApiError(418, "text", 200, advice="Do this").args == ("418: text. Do this",)
    limited = errors.RateLimitedError(429, "text")
    assert (limited.code, limited.http_status, limited.retry_after) == (429, None, None)
    ambiguous = EXAMPLES[errors.AmbiguousSubmitError]
    assert isinstance(ambiguous, errors.AmbiguousSubmitError)
    assert (ambiguous.request, ambiguous.ref, ambiguous.http_status) == (REQUEST, "r-1", 504)
    failed = errors.ContentModeratedError("text", record=RECORD)
    assert (failed.fail_code, failed.record) == ("400", RECORD)
    timeout = EXAMPLES[errors.TaskTimeoutError]
    assert isinstance(timeout, errors.TaskTimeoutError)
    assert timeout.task is HANDLE


def test_natures() -> None:
    """What is tried again, and what stops all requests, follows from these alone."""
    assert {kind for kind in EXAMPLES if kind.transient} == {
        errors.TransportError,
        errors.ProtocolError,
        errors.RateLimitedError,
        errors.MaintenanceError,
        errors.ServerError,
    }
    assert {kind for kind in EXAMPLES if kind.meets_every_request} == {
        errors.AuthenticationError,
        errors.InsufficientCreditsError,
        errors.QuotaExceededError,
        errors.FeatureDisabledError,
    }
    assert not errors.ApiError.link_expired


def test_a_nature_of_one_error_survives_pickling() -> None:
    """What is true of this error alone comes back with it, and of no other."""
    error = errors.NotFoundError(404, "text", 404)
    error.link_expired = error.transient = True
    revived = pickle.loads(pickle.dumps(error))
    assert (revived.link_expired, revived.transient) == (True, True)
    assert not errors.NotFoundError(404, "text", 404).link_expired


def test_server_text_is_cut() -> None:
    """At most 500 characters of the service's words are kept."""
    assert errors.ApiError(500, "x" * 9000).message == "x" * 500
    assert str(errors.ApiError(500, "x" * 9000)) == "500: " + "x" * 500
    assert errors.TaskFailedError("text", record=RECORD).fail_message == "m" * 500
