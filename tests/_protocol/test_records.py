"""What of a record is essential, what may be broken, and what a finished record means."""

import copy
import json
import pickle
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from flux2_async._protocol.records import record_from_payload, task_error, unread_addresses
from flux2_async.errors import ContentModeratedError, EmptyResultError, ProtocolError, TaskFailedError
from flux2_async.models import TaskRecord, TaskState

DONE = {"taskId": "t-1", "state": "success", "resultJson": '{"resultUrls":["https://f.example/a.png"]}'}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", 3),
        ("failMsg", ["a"]),
        ("failCode", True),
        ("failCode", 4.5),
        ("createTime", "yesterday"),
        ("completeTime", 10**18),
        ("updateTime", -1),
        ("progress", "half"),
        ("progress", 101),
        ("progress", "nan"),
        ("creditsConsumed", "14"),
        ("creditsConsumed", 1e20),
        ("creditsConsumed", -5),
        ("consumeCredits", False),
    ],
)
def test_a_broken_detail_loses_no_picture(key: str, value: Any) -> None:
    """A field that cannot be read is None and stays in `extra`; the addresses come through."""
    record = record_from_payload({**DONE, key: value})
    assert record == TaskRecord(
        task_id="t-1",
        state=TaskState.SUCCESS,
        state_text="success",
        result_urls=("https://f.example/a.png",),
    )
    assert record.extra == {key: value}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"taskId": None}, "data.taskId: missing; poll again"),
        ({"taskId": " "}, "data.taskId: missing; poll again"),
        ({"state": None}, "data.state: missing; poll again"),
        ({"state": 3}, "data.state: text expected, int given; poll again"),
        ({"taskId": [], "state": {}}, "data.state: text expected, dict given, data.taskId: missing; poll again"),
        ({"resultJson": "{"}, "data.resultJson: an object as JSON text expected, str given; poll again"),
        ({"resultJson": "[]"}, "data.resultJson: an object as JSON text expected, list given; poll again"),
        ({"resultJson": 7}, "data.resultJson: an object as JSON text expected, int given; poll again"),
        (
            {"resultJson": '{"resultUrls":{"a":1}}'},
            "data.resultJson.resultUrls: a list of addresses expected, dict given; poll again",
        ),
    ],
)
def test_what_is_essential(change: dict[str, Any], text: str) -> None:
    """The id, the state and the addresses of a success are read or refused, by name."""
    with pytest.raises(ProtocolError) as caught:
        record_from_payload(DONE | change)
    assert str(caught.value) == text
    assert caught.value.__context__ is None


def test_the_record_of_another_task_is_refused() -> None:
    """A mixed-up answer settles nothing, and names the task that was asked for."""
    with pytest.raises(ProtocolError, match="another task") as caught:
        record_from_payload(DONE, "t-2")
    assert caught.value.task_id == "t-2"
    assert record_from_payload({**DONE, "taskId": None, "task_id": "t-2"}, "t-2").task_id == "t-2"
    assert record_from_payload({**DONE, "taskId": None}, "t-2").task_id == "t-2"
    assert record_from_payload({**DONE, "taskId": 7}).task_id == "7"


@pytest.mark.parametrize(
    ("result", "urls"),
    [
        ('{"resultUrls":["https://f.example/a b.png"]}', ("https://f.example/a%20b.png",)),
        (
            {"resultUrls": ["HTTP://f.example/a\tb", " https://f.example "]},
            ("HTTP://f.example/a%09b", "https://f.example"),
        ),
        ('{"resultUrls":"https://f.example/one.png"}', ("https://f.example/one.png",)),
        ('{"resultUrls":["ftp://f.example/a","javascript:x","https://",7,null,"https://[x","/a.png"]}', ()),
        (
            '{"resultUrls":[{"url":"https://f.example/a.png"},{"url":"//f.example/b"}]}',
            ("https://f.example/a.png", "https://f.example/b"),
        ),
        ('{"resultUrls":{"url":"https://f.example/a.png","width":512}}', ("https://f.example/a.png",)),
        ('{"resultUrls":["//f.example/a.png"," //f.example/b"]}', ("https://f.example/a.png", "https://f.example/b")),
        (
            '{"resultUrls":[{"url":{"url":"https://f.example/a.png"}},{"fileUrl":"https://f.example/b"}]}',
            ("https://f.example/a.png", "https://f.example/b"),
        ),
        ('{"resultUrls":["//","///a",{"url":null},{}]}', ()),
        ('{"resultUrls":[]}', ()),
        ('{"resultUrls":null}', ()),
        ('{"resultUrls":""}', ()),
        ("{}", ()),
        ("null", ()),
        ("", ()),
        (None, ()),
    ],
)
def test_addresses(result: Any, urls: tuple[str, ...]) -> None:
    """Only http(s) addresses count, blanks in them are encoded, and none at all is no error."""
    assert record_from_payload({**DONE, "resultJson": result}).result_urls == urls


def test_one_plain_address_is_read_as_any_other_result() -> None:
    """The usual result says the same whether it is taken apart by a parser or not."""
    for address in (
        "https://f.example/a.png",
        "http://f.example",
        "https://f.example/a?b=c&d=[e]",
        "https://f.example/a b",
    ):
        straight, spaced = (
            record_from_payload({**DONE, "resultJson": f'{{{space}"resultUrls":["{address}"]}}'}) for space in ("", " ")
        )
        assert (straight, straight.extra) == (spaced, spaced.extra)


def test_addresses_count_for_a_success_only() -> None:
    """What a running task names is kept apart, readable or not."""
    for result in ('{"resultUrls":["https://f.example/half.png"]}', "{broken"):
        record = record_from_payload({"taskId": "t-1", "state": "generating", "resultJson": result})
        assert (record.result_urls, record.extra) == ((), {"resultJson": result})


def test_what_a_result_says_beyond_its_addresses_is_kept() -> None:
    """Other fields of the result, and addresses that do not count, stay readable."""
    result = {"resultUrls": ["https://f.example/a.png", "ftp://f.example/b"], "firstFrameUrl": ["x"]}
    assert record_from_payload({**DONE, "resultJson": json.dumps(result)}).extra == {"resultJson": result}
    result = {"resultUrls": ["ftp://f.example/b"]}
    assert record_from_payload({**DONE, "resultJson": json.dumps(result)}).extra == {"resultJson": result}


@pytest.mark.parametrize(
    ("urls", "unread"),
    [
        (["https://f.example/a.png"], 0),
        ([{"url": "https://f.example/a.png", "width": 512}], 0),
        (["https://f.example/a.png", "ftp://f.example/b", {"href": "https://f.example/c"}, None], 3),
        ([], 0),
        ("ftp://f.example/a", 1),
        (None, 0),
    ],
)
def test_no_address_is_dropped_silently(urls: Any, unread: int) -> None:
    """How many results have an address that cannot be read is told, and what they say is kept."""
    record = record_from_payload({**DONE, "resultJson": {"resultUrls": urls}})

    assert unread_addresses(record) == unread
    if unread:
        assert record.extra["resultJson"] == {"resultUrls": urls}
        assert bool(record.result_urls) or f"names {unread} addresses that cannot be read" in str(task_error(record))


@pytest.mark.parametrize("name", ["callBackUrl", "callbackUrl", "callback_url", "CALLBACK-URL"])
@pytest.mark.parametrize("echo", ["param", "paramJson"])
def test_callback_addresses_are_redacted(name: str, echo: str) -> None:
    """No spelling and no place of the callback address survives decoding."""
    secret = "https://c.example/?ref=r&sig=0123456789abcdef"
    request = {"model": "m", name: secret, "input": json.dumps({"prompt": "p", name: secret})}
    record = record_from_payload(
        {**DONE, echo: json.dumps(request), name: secret, "response": {"list": [{name: secret}]}, "failMsg": secret}
    )
    assert record.param == {"model": "m", name: "<redacted>", "input": {"prompt": "p", name: "<redacted>"}}
    assert record.extra == {name: "<redacted>", "response": {"list": [{name: "<redacted>"}]}}
    assert record.fail_message == "https://c.example/?ref=r&sig=<redacted>"


@pytest.mark.parametrize(
    "given_on",
    [
        pytest.param(pickle.dumps, id="pickled"),
        pytest.param(lambda record: repr(attrs.asdict(record)).encode(), id="as a dictionary"),
        pytest.param(lambda record: repr(attrs.astuple(record)).encode(), id="as a tuple"),
        pytest.param(lambda record: pickle.dumps(attrs.evolve(record, fail_message="a")), id="changed"),
        pytest.param(lambda record: repr(copy.copy(record).param).encode(), id="copied"),
        pytest.param(lambda record: repr(copy.deepcopy(record).param).encode(), id="copied wholly"),
    ],
)
def test_whoever_gets_a_record_gets_its_echo_decoded(given_on: Callable[[TaskRecord], bytes]) -> None:
    """Also what nobody has asked for before is read and redacted when the record is given on."""
    secret = "https://c.example/?ref=r&sig=0123456789abcdef"
    record = record_from_payload({**DONE, "param": json.dumps({"input": '{"prompt":"a cup"}', "callBackUrl": secret})})
    given = given_on(record)
    assert secret.encode() not in given
    assert b"a cup" in given
    assert b"redacted" in given


@pytest.mark.parametrize("param", ["{", "[]", "7", 7, ["x"], None, ""])
def test_an_unreadable_echo_is_dropped(param: Any) -> None:
    """It may hold a callback address, so it is not kept either."""
    record = record_from_payload({**DONE, "param": param})
    assert (record.param, record.extra) == (None, {})


def test_inputs_of_an_echo_may_be_objects_or_broken() -> None:
    """`input` is decoded where it is JSON text and left as it is otherwise."""
    assert record_from_payload({**DONE, "param": {"input": {"a": 1}}}).param == {"input": {"a": 1}}
    assert record_from_payload({**DONE, "param": '{"input":"{"}'}).param == {"input": "{"}


def test_credits_come_under_two_names() -> None:
    """`creditsConsumed` counts before `consumeCredits`, and zero is an amount."""
    assert record_from_payload({**DONE, "creditsConsumed": 0, "consumeCredits": 9}).credits_consumed == 0.0
    assert record_from_payload({**DONE, "consumeCredits": 2.5}).credits_consumed == 2.5
    assert record_from_payload({**DONE, "creditsConsumed": None}).credits_consumed is None


@pytest.mark.parametrize(("value", "progress"), [("45", 45.0), ("45.5 %", 45.5), (7, 7.0), (0, 0.0), ("100%", 100.0)])
def test_progress(value: Any, progress: float) -> None:
    """Progress is a number or text."""
    assert record_from_payload({"taskId": "t", "state": "generating", "progress": value}).progress == progress


def test_times_and_duration() -> None:
    """Stamps become aware times, and the duration comes from them."""
    record = record_from_payload({**DONE, "createTime": 1786413258000, "completeTime": "1786413282500", "costTime": 8})
    assert record.create_time == datetime(2026, 8, 11, 1, 54, 18, tzinfo=UTC)
    assert record.duration == 24.5
    assert record.extra == {"costTime": 8}


def fail(code: Any, message: Any) -> TaskRecord:
    return record_from_payload({"taskId": "t-1", "state": "fail", "failCode": code, "failMsg": message})


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("400", "The current content could not be processed"),
        ("422", "CONTENT_POLICY_BLOCKED: the input or output was flagged as sensitive"),
        ("400", "Sorry, but the image we created may violate OpenAI's content policies"),
        ("501", "Your prompt was flagged by the website as violating content policies."),
        ("500", "The request violates our usage guidelines"),
        (None, "Rejected by the safety system"),
        ("CONTENT_MODERATED", None),
        ("content-policy", ""),
        ("400", "NSFW content detected"),
    ],
)
def test_moderation_is_told_by_its_words(code: str | None, message: str | None) -> None:
    """Whatever the code, words of moderation make a `ContentModeratedError`."""
    assert type(task_error(fail(code, message))) is ContentModeratedError


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("400", "Image could not be processed"),
        ("400", "The image format is not supported"),
        ("422", "duration out of range"),
        ("500", "Internal Error, Please try again later."),
        ("500", "nsfw_checker must be a boolean"),
        ("500", "enable_safety_checker it must be a boolean"),
        ("400", "the file name is case sensitive"),
        (None, None),
    ],
)
def test_other_failures_are_no_moderation(code: str | None, message: str | None) -> None:
    """400 and 422 stand for bad input as well."""
    assert type(task_error(fail(code, message))) is TaskFailedError


def test_words_of_any_length_are_read_at_once() -> None:
    """Words that nearly speak of moderation, over and over, as an echoed prompt may, do not hold up the event loop."""
    begun = time.process_time()
    assert type(task_error(fail("500", "violat" * 500_000))) is TaskFailedError
    assert time.process_time() - begun < 0.5


def test_what_a_failure_says() -> None:
    """Code, words, cut at 500 characters, and what to do."""
    error = task_error(fail(500, "x" * 9000))
    assert isinstance(error, TaskFailedError)
    assert (error.task_id, error.fail_code, error.fail_message) == ("t-1", "500", "x" * 500)
    assert str(error) == f"task t-1 failed: 500: {'x' * 500}. It costs nothing; submit it again if you like"
    assert str(task_error(fail("451", "x"))).endswith(
        "nothing; check the pictures' addresses, or pass local files, which are uploaded"
    )
    paid = attrs.evolve(fail(500, "x"), credits_consumed=14.0)
    assert str(task_error(paid)).endswith("It cost 14 credits; submit it again if you like")
    assert str(task_error(fail(None, None))).startswith("task t-1 failed: no code: no reason given.")


def test_only_a_final_record_without_a_picture_is_an_error() -> None:
    """Success with addresses and a task that runs mean no error; success without is its own."""
    empty = record_from_payload({"taskId": "t-1", "state": "success"})
    error = task_error(empty)
    assert isinstance(error, EmptyResultError)
    assert error.record is empty
    assert task_error(record_from_payload(DONE)) is None
    for state in ("waiting", "queuing", "generating", "half-done"):
        assert task_error(record_from_payload({"taskId": "t-1", "state": state, "failCode": "500"})) is None
