"""What a reply to createTask means for the money, row by row of the law."""

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flux2_async._protocol import answers, codec
from flux2_async.models import Request, TextToImage

REQUEST = TextToImage("a red kettle")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ABSENT = object()

STATUSES = [*range(200, 600), 600, 999]
# Of each kind that the law tells apart, and their neighbours.
TYPICAL = [200, 201, *range(299, 310), 399, 400, 402, 407, 408, 409, 422, 429, 455, *range(498, 506), 599, 600, 999]
CODES = [*range(-1, 3), 100, *range(200, 209), *range(300, 310), *range(399, 452), 455, 460, 499, *range(500, 530), 599]


@cache
def body_of(request: Request) -> bytes:
    return codec.encode_request(request, (), "https://us.example/?ref=our-ref&sig=1")


def meaning(status: int, body: Any, request: Request = REQUEST, *, broken_off: str | None = None) -> str:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply, sent = codec.Reply(status, {}, content), body_of(request)
    match answers.judge(reply, sent=sent, request=request, ref="our-ref", now=lambda: NOW, broken_off=broken_off):
        case answers.Accepted(task_id):
            return task_id
        case answers.Refused(error):
            return f"refused {error.code}"
        case answers.Unclear(error):
            assert (error.request, error.ref) == (request, "our-ref")
            assert error.http_status == (None if broken_off else status)
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


def test_codes() -> None:
    """Of all pairs of HTTP status and code exactly those that the law names are refusals."""
    for status, code in itertools.product(STATUSES, CODES):
        assert meaning(status, {"code": code, "msg": "words", "data": None}) == expected(status, code)


@pytest.mark.parametrize("spelling", ["{}", " {} "], ids=["digits", "digits and blanks"])
def test_codes_in_digits(spelling: str) -> None:
    """However a code is spelt, it means the same."""
    for status, code in itertools.product(TYPICAL, CODES):
        if code >= 0:
            body = {"code": spelling.format(code), "msg": "words", "data": None}
            assert meaning(status, body) == expected(status, code)


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b"[]", b"null", b"{", {}, {"message": "no"}, {"code": None}])
def test_no_readable_code(body: Any) -> None:
    """Where no code can be read the HTTP status speaks, whether the answer is JSON or not."""
    for status in STATUSES:
        assert meaning(status, body) == expected(status, None)


@pytest.mark.parametrize(("status", "word"), [(400, "client certificate"), (413, "a proxy on the way takes no body")])
def test_advice_about_what_a_proxy_says(status: int, word: str) -> None:
    """The page of a proxy is no reason to change the request; the API's own refusal is."""
    for body, advised in (
        (b"<html>no</html>", word),
        (json.dumps({"code": status, "msg": "no"}).encode(), "change the"),
    ):
        sent = codec.encode_request(REQUEST, ())
        answer = answers.judge(
            codec.Reply(status, {}, body), sent=sent, request=REQUEST, ref="our-ref", now=lambda: NOW
        )
        assert isinstance(answer, answers.Refused)
        assert advised in str(answer.error)


@pytest.mark.parametrize("text", ["Server exception", "Internal Error, Please try again later.", "TRY AGAIN"])
@pytest.mark.parametrize("key", ["msg", "message"])
def test_text_that_blames_the_server(text: str, key: str) -> None:
    """500 and 501 refuse a parameter, but not where the text says that the server failed; other codes do not care."""
    for status, code in itertools.product(TYPICAL, CODES):
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


@pytest.mark.parametrize("code", [402, 429])
@pytest.mark.parametrize(
    "data",
    [
        '{"taskId":"task_1"},"data":null',
        '{"taskId":"task_1","taskId":null}',
        '[{"taskId":"task_1"}]',
        '{"task":{"task_id":17}}',
    ],
)
def test_a_refusal_that_names_a_task_somewhere_proves_nothing(code: int, data: str) -> None:
    """An id that stands where none is read, such as under a field that comes twice, keeps it from being resent."""
    body = f'{{"code":{code},"msg":"words","data":{data}}}'.encode()
    assert meaning(200, body) == meaning(code, body) == meaning(code, b"[" + body + b"]") == "unclear"


def test_a_reply_that_broke_off() -> None:
    """Behind its id a reply may break off; a refusal must be whole."""
    assert meaning(200, b'{"code":200,"data":{"taskId":"t-1","pa', broken_off="cut") == "t-1"
    assert meaning(402, {"code": 402}, broken_off="cut") == "unclear"


EVIL = TextToImage('a sign that says {"taskId":"evil"}')
REAL = "558a0e58d58a6cb69e5c6a55170398da"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        # The live defect: quotes escaped once in JSON within JSON, so that the text ends early.
        (200, '{"code":200,"data":{"param":"{"prompt":"%s"}","taskId":"' + REAL + '"}}', REAL),
        (200, '{"code":200,"data":{"taskId":"' + REAL + '","param":"{"prompt":"%s"}"}}', REAL),
        (200, '{"code":200,"data":{"param":"{"prompt":"%s"}","taskId":"' + REAL + '", "more', REAL),
        (200, '{"code":200,"msg":"%s","data":{"taskId":"' + REAL + '"}}', REAL),
        (200, '{"code":200,"data":{"param":"{"prompt":"%s"}"}}', "unclear"),
        (200, '{"code":200,"msg":"%s","data":null}', "unclear"),
        (500, '{"code":500,"msg":"cannot parse: %s"}', "unclear"),
        (422, '{"code":422,"msg":"bad prompt: %s"}', "refused 422"),
    ],
)
def test_an_echo_is_not_an_answer(status: int, body: str, expected: str) -> None:
    """An id that stands in the prompt is never taken, wherever the reply repeats it; the service's own is found."""
    assert meaning(status, (body % EVIL.prompt).encode(), EVIL) == expected


@pytest.mark.parametrize(
    ("extra_input", "body", "expected"),
    [
        ({"taskId": "evil"}, {"code": 422, "data": {"taskId": "evil"}}, "refused 422"),
        ({"taskId": "evil"}, {"code": 200, "data": {"taskId": "evil", "task_id": REAL}}, "unclear"),
        ({"note": 'x","taskId":"evil'}, b'{"code":200,"note":"x","taskId":"evil"}', "unclear"),
        ({"note": 'x","taskId":"evil'}, b'{"code":200,"note":"x","taskId":"evi"}', "unclear"),
        ({"note": 'x","taskId":"evil'}, b'{"code":200,"note":"x","taskId":"evil more"}', "unclear"),
        ({"note": 'x","taskId":"'}, b'{"code":200,"note":"x","taskId":"more"}', "unclear"),
        ({"note": r'x","task\u0049d":"evil'}, rb'{"code":200,"note":"x","task\u0049d":"evil"}', "unclear"),
        ({"note": "x%22,%22taskId%22:%22evil"}, b'{"code":200,"note":"x","taskId":"evil"}', "unclear"),
        ({"note": "x&quot;,&quot;taskId&quot;:&quot;evil"}, b'{"code":200,"note":"x","taskId":"evil"}', "unclear"),
        ({"note": 'x","code":402,"y":"'}, b'{"code":200,"msg":"x","code":402,"y":""}', "unclear"),
        ({"note": 'x","code":429,"y":"'}, b'{"msg":"x","code":429,"y":""}', "unclear"),
        ({"code": 402}, {"code": 402, "data": None}, "unclear"),
        ({"code": 7}, {"code": 402, "data": None}, "refused 402"),
        ({"note": "taskId"}, {"code": 200, "data": {"taskId": "t"}}, "t"),
    ],
)
def test_fields_that_the_request_spells_out(extra_input: dict[str, Any], body: Any, expected: str) -> None:
    """What the request itself names under the same key proves nothing, also in JSON that its echo leaves valid."""
    assert meaning(200, body, TextToImage("a red kettle", extra_input=extra_input)) == expected


pieces = st.sampled_from(
    [
        *(
            '"taskId":"evil"',
            '","taskId":"evil","x":"',
            '"},"data":{"taskId":"evil"},"y":{"',
            '"task_id": "evil"',
            "evil",
        ),
        *(
            '","taskId":"',
            '"code":402',
            '","code":429,"x":"',
            '"code":',
            '"',
            "\\",
            '\\"',
            "{",
            "}",
            ",",
            "kettle",
            " ",
            "é",
        ),
    ]
)
ECHOES: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "escaped": lambda text: json.dumps(text)[1:-1],
    "quotes alone": lambda text: text.replace('"', '\\"'),
    "twice": lambda text: json.dumps(json.dumps(text))[3:-3],
}
PLACES = [
    '"param":"{"prompt":"%s"}"',
    '"param":"%s"',
    '"msg":"about %s and more"',
    '"input":{"prompt":"%s"}',
    '"x":{"y":"%s"}',
]


@settings(max_examples=500)
@given(
    st.lists(pieces, min_size=1, max_size=8).map("".join),
    st.sampled_from(sorted(ECHOES)),
    st.sampled_from(PLACES),
    st.sampled_from(["before", "after", "absent"]),
    st.none() | st.integers(0, 300),
)
def test_no_echo_is_ever_an_answer(prompt: str, how: str, place: str, where: str, cut: int | None) -> None:
    """However a reply of HTTP 200 repeats a prompt of fields, it gives the task that was made, or is unclear."""
    echo, task = place % ECHOES[how](prompt), f'"data":{{"taskId":"{REAL}"}}'
    fields = {"before": [task, echo], "after": [echo, task], "absent": [echo]}[where]
    body = f'{{"code":200,{",".join(fields)}}}'.encode()[:cut]

    found = meaning(200, body, TextToImage(f"{prompt} and more"), broken_off=None if cut is None else "cut")
    assert found in {REAL, "unclear"}
    # A key whose value is open may take any.
    open_key = '"taskId"' in prompt.replace('"taskId":"evil"', "")
    if how == "escaped" and where != "absent" and place != PLACES[0] and cut is None and not open_key:
        assert found == REAL
    if where == "absent":
        assert found == "unclear"
