"""What a reply to createTask means for the money, row by row of the law."""

import itertools
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_async._answers import Accepted, Refused, Unclear, judge
from flux2_async._wire import Reply
from flux2_async.models import TextToImage

REQUEST = TextToImage("a red kettle")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ABSENT = object()

STATUSES = [*range(200, 600), 600, 999]
CODES = [*range(-1, 3), 100, *range(200, 209), *range(300, 310), *range(399, 452), 455, 460, 499, *range(500, 530), 599]


def meaning(status: int, body: Any) -> str:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    match judge(Reply(status, {}, content), request=REQUEST, ref="our-ref", now=NOW):
        case Accepted(task_id):
            return task_id
        case Refused(error):
            return f"refused {error.code}"
        case Unclear(error):
            assert (error.request, error.ref, error.http_status) == (REQUEST, "our-ref", status)
            return "unclear"


def expected(status: int, code: int | None, *, blames: bool = False) -> str:
    """The law, (b) to (e), written as sets of pairs and not as the code under test does."""
    failed = {408, 499, *range(500, 1000)}
    documented = {400, 401, 402, 404, 405, 413, 422, 429, 430, 433, 455, 505}
    if code is None:
        refused = {300, 301, 307, 308, *range(400, 500)} - {302, 303, 408, 409, 499}
        return f"refused {status}" if status in refused else "unclear"
    proven = {429, 455, 505} if status in failed else documented | ({status} & {*range(400, 500)})
    if status not in failed and not blames:
        proven |= {500, 501}
    return f"refused {code}" if code in proven else "unclear"


@pytest.mark.parametrize("spell", [int, str, lambda code: f" {code} "], ids=["number", "digits", "digits and blanks"])
def test_codes(spell: Any) -> None:
    """Of all pairs of HTTP status and code exactly those that the law names are refusals, however the code is spelt."""
    for status, code in itertools.product(STATUSES, CODES):
        if code >= 0 or spell is int:
            assert meaning(status, {"code": spell(code), "msg": "words", "data": None}) == expected(status, code)


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b"[]", b"null", b"{", {}, {"message": "no"}, {"code": None}])
@pytest.mark.parametrize("status", STATUSES)
def test_no_readable_code(status: int, body: Any) -> None:
    """Where no code can be read the HTTP status speaks, whether the answer is JSON or not."""
    assert meaning(status, body) == expected(status, None)


@pytest.mark.parametrize("text", ["Server exception", "Internal Error, Please try again later.", "TRY AGAIN"])
@pytest.mark.parametrize("key", ["msg", "message"])
def test_text_that_blames_the_server(text: str, key: str) -> None:
    """500 and 501 refuse a parameter, but not where the text says that the server failed; other codes do not care."""
    for status, code in itertools.product(STATUSES, CODES):
        assert meaning(status, {"code": code, key: text}) == expected(status, code, blames=True)


@given(
    st.integers(200, 599),
    st.sampled_from([ABSENT, None, "", "abc", True, 1.5, {}, *CODES]),
    st.sampled_from(["data.taskId", "data.task_id", "taskId", "task_id"]),
)
def test_an_id_is_read_before_anything_else(status: int, code: Any, place: str) -> None:
    """A task id says accepted under every HTTP status and with every code."""
    outer, _, inner = place.rpartition(".")
    body: dict[str, Any] = {outer: {inner: "t-1"}} if outer else {inner: "t-1"}
    if code is not ABSENT:
        body["code"] = code
    assert meaning(status, body) == "t-1"
