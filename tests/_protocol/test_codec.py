"""Every recorded or documented reply, decoded; and that no reply at all raises anything unexpected."""

import contextlib
import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flux2_async._protocol import answers, codec, lenient_json, records
from flux2_async.errors import (
    ApiError,
    AuthenticationError,
    Flux2Error,
    InsufficientCreditsError,
    InvalidRequestError,
    MaintenanceError,
    NotFoundError,
    ProtocolError,
    RateLimitedError,
    RequestRejectedError,
    ServerError,
)
from flux2_async.models import ImageToImage, TaskRecord, TaskState, TextToImage, UploadedFile

SAMPLES = Path(__file__).parent.parent / "samples"
LIVE = "558a0e58d58a6cb69e5c6a55170398da"
CREATED = datetime(2025, 10, 3, 14, 20, 32, 621000, tzinfo=UTC)


def reply(body: Any, status: int = 200, **headers: str) -> codec.Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return codec.Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw)


def sample(name: str, status: int = 200) -> codec.Reply:
    (path,) = SAMPLES.glob(f"{name}.*")
    return reply(path.read_bytes(), status)


def facts(value: Any) -> Any:
    """Everything a decoded value holds, also what its `==` leaves out."""
    return attrs.asdict(value) if attrs.has(type(value)) else value


def record(task_id: str, state: str, **fields: Any) -> TaskRecord:
    known = TaskState(state) if state in {each.value for each in TaskState} else TaskState.UNKNOWN
    return TaskRecord(task_id=task_id, state=known, state_text=state, **fields)


FLEX, PRO = "flux-2/flex-image-to-image", "flux-2/pro-text-to-image"
LIVE_SUCCESS = record(
    LIVE,
    "success",
    model=FLEX,
    result_urls=("https://tempfile.aiquickdraw.com/p/result%201.png",),
    create_time=datetime(2026, 8, 11, 1, 54, 18, tzinfo=UTC),
    complete_time=datetime(2026, 8, 11, 1, 54, 42, tzinfo=UTC),
    credits_consumed=14.0,
    param={
        "input": {"prompt": 'a "red" kettle', "resolution": "1K"},
        "callBackUrl": "<redacted>",
        "model": FLEX,
    },
    extra={"costTime": 21},
)

RECORDS: dict[str, tuple[str, TaskRecord | None]] = {
    "waiting": (
        "fe6e6add500b346c876ac6e800ec3a22",
        record(
            "fe6e6add500b346c876ac6e800ec3a22",
            "waiting",
            model=FLEX,
            create_time=CREATED,
            param={"model": FLEX, "input": {}},
            extra={"costTime": None},
        ),
    ),
    "queuing": ("t-1", record("t-1", "queuing", model=PRO, create_time=CREATED)),
    "generating": ("t-1", record("t-1", "generating", model=PRO, create_time=CREATED)),
    "unknown_state": (
        "t-1",
        record("t-1", "upscaling", model=PRO, create_time=CREATED, param={}, extra={"queuePosition": 3}),
    ),
    "progress_text": ("t-1", record("t-1", "generating", progress=45.0)),
    "success_documented": (
        "task_12345678",
        record(
            "task_12345678",
            "success",
            model=FLEX,
            result_urls=("https://files.example/result.png",),
            create_time=datetime(2023, 10, 31, 15, 16, 40, tzinfo=UTC),
            complete_time=datetime(2023, 10, 31, 15, 17, 12, tzinfo=UTC),
            update_time=datetime(2023, 10, 31, 15, 17, 12, tzinfo=UTC),
            param={"model": FLEX, "input": {"prompt": "..."}},
        ),
    ),
    "success_live": (LIVE, LIVE_SUCCESS),
    "success_object": (
        LIVE,
        attrs.evolve(
            LIVE_SUCCESS,
            result_urls=("https://files.example/a.png", "https://files.example/b.png"),
            credits_consumed=2.5,
            extra={"costTime": 21, "remainedCredits": 812.5},
        ),
    ),
    "success_no_urls": ("t-1", record("t-1", "success", extra={"resultJson": {"resultObject": {}}})),
    "success_no_result": ("t-1", record("t-1", "success")),
    "failed_moderated": (
        "t-1",
        record(
            "t-1",
            "fail",
            model=FLEX,
            fail_code="422",
            fail_message="CONTENT_POLICY_BLOCKED: the input or output was flagged as sensitive",
            credits_consumed=0.0,
            param={},
        ),
    ),
    "failed_internal": (
        "t-1",
        record(
            "t-1",
            "fail",
            fail_code="500",
            fail_message="Internal Error, Please try again later.",
            credits_consumed=0.0,
        ),
    ),
    "final_408": ("t-1", record("t-1", "fail", fail_code="408", fail_message="Upstream gave no result")),
    "final_451": ("t-1", record("t-1", "fail", fail_code="451", fail_message="Failed to fetch the image")),
    "final_501": (
        "t-1",
        record(
            "t-1",
            "fail",
            fail_code="400",
            fail_message="The current content could not be processed",
            create_time=CREATED,
        ),
    ),
    "not_visible": ("t-1", None),
    "null_data": ("t-1", None),
    "not_found": ("t-1", None),
    "under_escaped_live": (
        LIVE,
        attrs.evolve(LIVE_SUCCESS, param=None, extra={"costTime": 21, "operationType": "flux-2"}),
    ),
    "under_escaped_raw": (
        LIVE,
        attrs.evolve(LIVE_SUCCESS, param=None, extra={"costTime": 21, "operationType": "flux-2"}),
    ),
    "under_escaped_prompt": (LIVE, attrs.evolve(LIVE_SUCCESS, param=None)),
}

IDS = {
    "accepted": "task_flux-2_1765175331507",
    "accepted_hex": LIVE,
    "accepted_code_text": LIVE,
    "accepted_id_at_root": "ee9c2715375b7837f8bb51d641ff5863",
    "accepted_cut": LIVE,
    "no_credits": None,
    "field_missing": None,
    "not_boolean": None,
    "server_exception": None,
    "unknown_model": None,
    "record_result_error": None,
    "no_permission": None,
    "rate_limited": None,
    "no_envelope": None,
}

CREATE_CODES = {
    "accepted": (200, "success"),
    "accepted_code_text": (200, "success"),
    "accepted_id_at_root": (200, "Success"),
    "no_credits": (402, "Credits insufficient"),
    "field_missing": (500, "This field is required"),
    "not_boolean": (500, "enable_safety_checker it must be a boolean"),
    "server_exception": (500, "Server exception"),
    "unknown_model": (422, "The page does not exist or is not published"),
    "record_result_error": (422, "record result error"),
    "no_permission": (401, "You do not have access permissions"),
    "rate_limited": (429, "Rate limit exceeded"),
}

ACCOUNT: dict[str, Any] = {
    "credit/whole": 100.0,
    "credit/decimal": 812.5,
    "download-url/link": "https://files.example/signed",
    "download-url/spaces": "https://files.example/my%20file.png",
    "upload/stored": UploadedFile("https://files.example/images/user-uploads/a.png", "a.png", 7, "image/png"),
    "upload/quickstart": UploadedFile(
        "https://files.example/images/my%20photo.png",
        "my photo.png",
        7,
        "image/png",
        datetime(2026, 1, 4, 12, tzinfo=UTC),
    ),
    "upload/bare": UploadedFile("https://files.example/images/my%20photo.png", "my photo.png", 7, "image/png"),
}

REFUSED: dict[str, tuple[type[Flux2Error], str]] = {
    "recordInfo/missing_id": (RequestRejectedError, "400: taskId is required"),
    "recordInfo/rate_limited": (RateLimitedError, "429: Rate limit exceeded"),
    "recordInfo/maintenance": (MaintenanceError, "455: Service under maintenance"),
    "recordInfo/success_broken_result": (ProtocolError, "data.resultJson: an object as JSON text expected, str given"),
    "recordInfo/cut": (ProtocolError, "HTTP 200 with 300 bytes that are no JSON object"),
    "recordInfo/html": (ProtocolError, "HTTP 200 with 42 bytes that are no JSON object"),
    "credit/text": (ProtocolError, "data: a number expected, str given"),
    "credit/no_key": (AuthenticationError, "401: Authentication failed: Invalid API Key. Check the key"),
    "download-url/foreign": (RequestRejectedError, "422: The url was not generated by this service"),
    "download-url/empty": (ProtocolError, "data: an http(s) address expected, NoneType given"),
    "upload/no_path": (RequestRejectedError, "400: Missing required parameter: uploadPath"),
    "upload/bad_key": (AuthenticationError, "401: Authentication failed: Invalid API Key"),
    "upload/bad_base64": (ServerError, "500: Base64 decoding failed: Invalid Base64 format"),
    "upload/not_success": (ApiError, "200: stored nothing"),
    "upload/no_address": (ProtocolError, "data.downloadUrl: no http(s) address"),
}

CALLBACKS: dict[str, TaskRecord | str] = {
    "success": attrs.evolve(LIVE_SUCCESS, update_time=datetime(2026, 8, 11, 1, 54, 42, tzinfo=UTC)),
    "failure": record(
        "bd8f4b1a52048d0f17a38b49591abfa1",
        "fail",
        model=FLEX,
        fail_code="400",
        fail_message="The current content could not be processed",
        credits_consumed=0.0,
        param={"input": {}, "model": FLEX},
        extra={"costTime": 89},
    ),
    "guide": "data.state: missing",
}


def created(answer: codec.Reply) -> str | None:
    """The id in an answer to createTask, or None."""
    meant = answers.judge(
        answer, sent=b"{}", request=TextToImage("a red kettle"), ref="r", now=lambda: datetime.now(UTC)
    )
    return meant.task_id if isinstance(meant, answers.Accepted) else None


DECODERS: dict[str, Callable[[codec.Reply], Any]] = {
    "createTask": created,
    "recordInfo": lambda answer: codec.decode_record(answer, "t-1"),
    "credit": codec.decode_credits,
    "download-url": codec.decode_download_url,
    "upload": lambda answer: codec.decode_upload(answer, size=7, mime_type="image/png"),
}


@pytest.fixture(params=["orjson", "json"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs with and without orjson."""
    if request.param == "json":
        monkeypatch.setattr(lenient_json, "orjson", None)


def test_every_sample_is_in_a_table() -> None:
    """A recorded reply that nobody decodes fails the suite."""
    tables = {f"recordInfo/{name}" for name in RECORDS} | {f"createTask/{name}" for name in IDS}
    tables |= ACCOUNT.keys() | REFUSED.keys() | {f"callback/{name}" for name in CALLBACKS}
    assert tables == {path.relative_to(SAMPLES).with_suffix("").as_posix() for path in SAMPLES.rglob("*.*")}


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("name", RECORDS)
def test_records(name: str) -> None:
    """Each recordInfo answer becomes exactly this record, or none."""
    task_id, expected = RECORDS[name]
    assert facts(codec.decode_record(sample(f"recordInfo/{name}"), task_id)) == facts(expected)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("status", [200, 402, 500])
def test_task_ids(name: str, status: int) -> None:
    """The id of a created task is found at any HTTP status, also in a reply that was cut."""
    assert created(sample(f"createTask/{name}", status)) == IDS[name]


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("name", CREATE_CODES)
def test_envelopes(name: str) -> None:
    """`code` comes as a number or digits, the text as `msg` or `message`."""
    envelope = codec.decode_envelope(sample(f"createTask/{name}", 500))
    assert (envelope.code, envelope.message) == CREATE_CODES[name]


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("name", ACCOUNT)
def test_account_and_uploads(name: str) -> None:
    """Credits, download links and uploads give exactly these values."""
    assert DECODERS[name.partition("/")[0]](sample(name)) == ACCOUNT[name]


def test_an_end_of_life_without_a_zone_is_utc() -> None:
    """All times are aware, also that of a file whose end the service names without its zone."""
    stored = {"downloadUrl": "https://files.example/a.png", "expiresAt": "2026-01-04T12:00:00"}
    file = codec.decode_upload(reply({"code": 200, "data": stored}), size=7, mime_type="image/png")

    assert file.expires_at == datetime(2026, 1, 4, 12, tzinfo=UTC)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    """Each refusal is an error of its class that says what came."""
    kind, text = REFUSED[name]
    with pytest.raises(kind) as caught:
        DECODERS[name.partition("/")[0]](sample(name))
    assert type(caught.value) is kind
    assert str(caught.value).startswith(text)
    assert caught.value.task_id == ("t-1" if name.startswith("recordInfo") else None)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks(name: str) -> None:
    """The data of a callback reads like a record; the guide's short form has no state."""
    expected = CALLBACKS[name]
    data = codec.decode_envelope(sample(f"callback/{name}")).data
    if isinstance(expected, str):
        with pytest.raises(ProtocolError, match=expected):
            records.record_from_payload(data)
    else:
        assert facts(records.record_from_payload(data)) == facts(expected)


def test_the_body_of_create_task() -> None:
    """All fields are sent, defaults too, with the extra ones untouched and the callback only when given."""
    request = ImageToImage("swap the can", images=["a.png", "b.png"], extra_input={"nsfw_checker": False, "n": 2**70})
    body = codec.encode_request(request, ["https://f.example/a", "https://f.example/b"], "https://c.example/?ref=1")
    assert json.loads(body) == {
        "model": "flux-2/flex-image-to-image",
        "callBackUrl": "https://c.example/?ref=1",
        "input": {
            "prompt": "swap the can",
            "aspect_ratio": "1:1",
            "resolution": "1K",
            "input_urls": ["https://f.example/a", "https://f.example/b"],
            "nsfw_checker": False,
            "n": 2**70,
        },
    }
    assert json.loads(codec.encode_request(TextToImage("ein roter Krug: ä漢", tier="pro"))) == {
        "model": "flux-2/pro-text-to-image",
        "input": {"prompt": "ein roter Krug: ä漢", "aspect_ratio": "1:1", "resolution": "1K"},
    }


def test_every_picture_needs_an_address() -> None:
    """A request is not sent with fewer or more pictures than it has."""
    with pytest.raises(InvalidRequestError, match="images: 1 addresses for 2 pictures"):
        codec.encode_request(ImageToImage("swap the can", images=["a.png", "b.png"]), ["https://f.example/a"])


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b"<html>", None),
        (404, b'{"status":404,"error":"Not Found"}', None),
        (401, b"denied", AuthenticationError),
        (402, b'{"code":402,"msg":"x"}', InsufficientCreditsError),
        (429, b"", RateLimitedError),
        (502, b"<html>", ServerError),
        (503, b'{"code":200,"msg":"success","data":{"taskId":"t-1","state":"waiting"}}', ServerError),
        (408, b"<html>", ApiError),
        (302, b"", ApiError),
        (200, b'{"code":404,"msg":"page not found"}', None),
        (200, b'{"code":422,"msg":"RECORDINFO IS NULL"}', None),
        (200, b'{"code":422,"message":"Record info is null","data":{}}', None),
        (200, b'{"code":422,"msg":"bad taskId"}', RequestRejectedError),
        (200, b'{"code":200,"data":{}}', None),
        (200, b'{"code":200,"data":[]}', None),
        (200, b'{"code":200,"data":""}', None),
        (200, b'{"code":200,"data":"text"}', ProtocolError),
        (200, b'{"code":true,"data":{}}', ProtocolError),
        (200, b'{"code":"2x","data":{}}', ProtocolError),
        (200, b'{"data":{}}', ProtocolError),
        (200, b'{"code":200,"data":{"taskId":"t-1"}}', ProtocolError),
        (200, b'{"code":200,"data":{"taskId":"t-1","state":3}}', ProtocolError),
        (200, b'{"code":200,"data":{"taskId":"another","state":"success"}}', ProtocolError),
        (200, b"[200]", ProtocolError),
        (200, b"", ProtocolError),
        (200, b'{"a":' * 100_000, ProtocolError),
        (200, b"[" * 300 + b"]" * 300, ProtocolError),
    ],
)
@pytest.mark.usefixtures("parser")
def test_what_decides_about_a_record(status: int, body: bytes, kind: type[Flux2Error] | None) -> None:
    """The body's code decides, else the HTTP status; every error knows the task."""
    if kind is None:
        assert codec.decode_record(reply(body, status), "t-1") is None
        return
    with pytest.raises(kind) as caught:
        codec.decode_record(reply(body, status), "t-1")
    assert type(caught.value) is kind
    assert caught.value.task_id == "t-1"
    # The parser's error holds the whole body.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or isinstance(caught.value.__context__, Flux2Error)


@pytest.mark.parametrize("status", [301, 408, 451, 500, 501, 503])
@pytest.mark.parametrize("code", [408, 451, 501])
def test_a_gateways_code_ends_no_task(code: int, status: int) -> None:
    """Under another status than 2xx these codes are a gateway's own, unless this task's failure comes with them."""
    others: list[Any] = [None, [], "text", {"state": "fail"}, {"taskId": "t-2", "state": "fail"}]
    for data in others:
        with pytest.raises(ApiError) as caught:
            codec.decode_record(reply({"code": code, "message": "gone", "data": data}, status), "t-1")
        assert (caught.value.code, caught.value.http_status) == (code, status)
        assert not isinstance(caught.value, codec.FailedUnderErrorError)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"code": 501, "data": {"taskId": "t-1", "state": "fail", "failMsg": "broken"}}, 501),
        ({"code": 200, "data": {"taskId": "t-1", "state": "fail", "failMsg": "broken"}}, 500),
        ({"code": 500, "data": {"task_id": "t-1", "state": "fail", "failMsg": "broken"}}, 200),
        ({"code": 408, "message": "broken", "data": {"taskId": "t-1"}}, 408),
    ],
)
def test_a_failure_under_an_error_is_shown_with_it(body: dict[str, Any], status: int) -> None:
    """A record that names this task and says that it failed comes with the refusal, and both go through pickle."""
    with pytest.raises(codec.FailedUnderErrorError) as caught:
        codec.decode_record(reply(body, status), "t-1")
    record = caught.value.record

    assert (record.task_id, record.state, record.fail_message) == ("t-1", TaskState.FAIL, "broken")
    assert caught.value.task_id == "t-1"
    assert pickle.loads(pickle.dumps(caught.value)).record == record


@pytest.mark.parametrize("status", [302, 429, 500])
def test_no_success_comes_under_an_error(status: int) -> None:
    """A finished record under another status than 2xx is looked at again."""
    data = {"taskId": "t-1", "state": "success", "resultJson": '{"resultUrls":["https://f.example/a.png"]}'}
    with pytest.raises(ApiError) as caught:
        codec.decode_record(reply({"code": 200, "data": data}, status), "t-1")
    assert not isinstance(caught.value, codec.FailedUnderErrorError)


@pytest.mark.parametrize("code", [408, 451, 501])
def test_a_final_code_is_a_failure_whatever_else_comes(code: int) -> None:
    """The task is over even when the data says otherwise or is nonsense."""
    nonsense: list[Any] = [None, [], "text", {"state": "generating"}, {"state": "success", "failMsg": 3}]
    for data in nonsense:
        answer = codec.decode_record(reply({"code": str(code), "message": "gone", "data": data}), "t-1")
        assert answer is not None
        assert (answer.state, answer.fail_code) == (TaskState.FAIL, str(code))


def test_a_429_on_a_look_carries_its_wait() -> None:
    """Retry-After reaches the error, a date counted from the answer's own Date."""
    dated = reply(b"", 429, retry_after="Mon, 23 Nov 2026 00:00:09 GMT", DATE="Mon, 23 Nov 2026 00:00:00 GMT")
    with pytest.raises(RateLimitedError) as caught:
        codec.decode_record(dated, "t-1")
    assert caught.value.retry_after == 9.0


def test_errors_hold_no_body() -> None:
    """Neither text nor arguments of an error repeat a reply, a prompt or the signature of an address."""
    secret = "sunset-over-the-sea"
    address = f"https://c.example/hook?ref=r1&sig={secret}"
    bodies: list[Any] = [
        secret.encode() * 9,
        {"note": secret},
        {"code": 200, "data": secret},
        {"code": 200, "data": {"taskId": secret, "state": "waiting"}},
        {"code": 200, "data": {"taskId": "t-1", "state": [secret], "param": secret}},
        {"code": 200, "data": {"taskId": "t-1", "state": "success", "resultJson": secret}},
        {"code": 422, "msg": f"callBackUrl {address} is not reachable"},
    ]
    for body in bodies:
        with pytest.raises(Flux2Error) as caught:
            codec.decode_record(reply(body), "t-1")
        assert secret.encode() not in pickle.dumps(caught.value)
        assert secret not in repr(caught.value)
    assert secret not in repr(reply(bodies[0], 200, link=address))
    assert secret not in repr(codec.decode_envelope(reply({"code": 200, "msg": secret, "data": secret})))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
codes = st.sampled_from([200, "200", 404, 408, 422, 429, 451, 455, 500, 501, None, True, 2.5])
data_like = st.fixed_dictionaries(
    {},
    optional={
        key: json_values | st.sampled_from(["t-1", "success", "fail", "{}", '{"resultUrls":["https://[x"]}', 10**15])
        for key in [
            "taskId",
            "state",
            "resultJson",
            "param",
            "paramJson",
            "failCode",
            "failMsg",
            "createTime",
            "completeTime",
            "progress",
            "creditsConsumed",
            "consumeCredits",
            "downloadUrl",
            "fileUrl",
            "fileName",
            "expiresAt",
            "callBackUrl",
        ]
    },
)
envelopes = st.builds(
    lambda code, data, success: json.dumps({"code": code, "msg": "m", "data": data, "success": success}).encode(),
    codes,
    data_like | json_values,
    st.sampled_from([True, False, None]),
)
bodies = st.binary() | envelopes | json_values.map(lambda value: json.dumps(value).encode())


@given(bodies, st.sampled_from([200, 204, 302, 404, 408, 429, 500, 503]), st.dictionaries(st.text(), st.text()))
@example(b'{"code":200,"data":"https://[x"}', 200, {"retry-after": "Mon, 01 Jan 2026 00:00:00 +9999999999"})
@example(b'{"param":"' * 2000, 200, {})
def test_no_reply_raises_anything_else(body: bytes, status: int, headers: dict[str, str]) -> None:
    """Whatever comes, decoding gives a value or a `Flux2Error`."""
    answer = codec.Reply(status, headers, body)
    for decode in (*DECODERS.values(), codec.decode_envelope):
        with contextlib.suppress(Flux2Error):
            decode(answer)


@given(st.from_regex(r"[A-Za-z0-9_\-]{1,40}", fullmatch=True), st.sampled_from(["taskId", "task_id"]), st.data())
def test_an_id_survives_any_cut(task_id: str, key: str, data: st.DataObject) -> None:
    """A reply cut anywhere behind the id still gives the id, one cut before gives none."""
    whole = json.dumps({"code": 200, "msg": "success", "data": {key: task_id, "more": "x"}}).encode()
    complete = whole.index(b'", "more"') + 1
    cut = data.draw(st.integers(0, len(whole)))
    assert created(reply(whole[:cut])) == (task_id if cut >= complete else None)


@pytest.mark.parametrize(
    ("body", "task_id"),
    [
        (b'{"code":200,"data":{"taskId":12345}}', "12345"),
        (b'{"code":200,"data":{"taskId":12345},', "12345"),
        (b'{"code":200,"data":{"taskId":123', None),
        (b'{"code":200,"data":{"taskId":" "},"taskId":"root"}', "root"),
        (b'{"code":200,"data":null,"task_id":"root"}', "root"),
        (b'{"code":200,"data":{"taskId":null,"task_id":"second"}}', "second"),
        (b'\xef\xbb\xbf {"data":{"taskId":"abc"', "abc"),
        (b'{"data":{"taskId":"abc","name":"\xff"', "abc"),
        (b'{"msg":"no \\"taskId\\":\\"abc\\" given', None),
        (b'["taskId":"abc"', None),
        (b"[]", None),
    ],
)
def test_where_an_id_may_be(body: bytes, task_id: str | None) -> None:
    """Numbers, other spellings, a byte order mark and broken UTF-8 do not hide an id; quoted text is none."""
    assert created(reply(body)) == task_id


moments = st.integers(1, 4_000_000_000_000).map(
    lambda milliseconds: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
)
words = st.text(min_size=1).map(str.strip).filter(bool)
drawn_records = st.builds(
    TaskRecord,
    task_id=st.from_regex(r"[A-Za-z0-9_\-]{1,40}", fullmatch=True),
    state=st.sampled_from(TaskState),
    state_text=st.none(),
    model=st.none() | words,
    result_urls=st.lists(st.from_regex(r"https://[a-z]{1,9}\.example/[a-z0-9]{0,9}", fullmatch=True)).map(tuple),
    fail_code=st.none() | words,
    fail_message=st.none() | words.filter(lambda text: "sig=" not in text),
    create_time=st.none() | moments,
    complete_time=st.none() | moments,
    update_time=st.none() | moments,
    progress=st.none() | st.floats(0, 100),
    credits_consumed=st.none() | st.floats(0, 1e6),
    param=st.none() | st.fixed_dictionaries({"model": words, "input": st.fixed_dictionaries({"prompt": words})}),
    extra=st.dictionaries(words.map(lambda text: "x" + text), st.none() | words | st.integers(0, 2**53)),
)


def as_payload(given_record: TaskRecord) -> dict[str, Any]:
    """What the service would send, written without the code under test."""

    def stamp(moment: datetime | None) -> int | None:
        return None if moment is None else round(moment.timestamp() * 1000)

    echo = given_record.param
    param = None if echo is None else json.dumps({**echo, "input": json.dumps(echo["input"])})
    return {
        "taskId": given_record.task_id,
        "state": given_record.state_text,
        "model": given_record.model,
        "resultJson": json.dumps({"resultUrls": given_record.result_urls}) if given_record.result_urls else "",
        "failCode": given_record.fail_code,
        "failMsg": given_record.fail_message or "",
        "createTime": stamp(given_record.create_time),
        "completeTime": stamp(given_record.complete_time),
        "updateTime": stamp(given_record.update_time),
        "progress": given_record.progress,
        "creditsConsumed": given_record.credits_consumed,
        "param": param,
        **given_record.extra,
    }


@settings(max_examples=50)
@given(drawn_records)
def test_records_round_trip(drawn: TaskRecord) -> None:
    """What the service encodes comes back field by field."""
    urls = drawn.result_urls if drawn.state is TaskState.SUCCESS else ()
    expected = attrs.evolve(drawn, result_urls=urls, state_text=drawn.state.value)
    decoded = codec.decode_record(reply({"code": 200, "data": as_payload(expected)}), drawn.task_id)
    assert facts(decoded) == facts(expected)


def test_not_found_keeps_its_class_elsewhere() -> None:
    """Only a record that is not there is no error; 404 on another call is one."""
    with pytest.raises(NotFoundError):
        codec.decode_credits(reply(b"<html>", 404))
