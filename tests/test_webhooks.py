"""Signed addresses, the service's own signature, bodies of callbacks, and addresses that lead inside."""

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flux2_async.errors import ConfigurationError, InvalidRequestError, ProtocolError
from flux2_async.models import TaskRecord, TaskState
from flux2_async.webhooks import (
    Callback,
    parse_callback,
    public_urls,
    sign,
    signed_url,
    verify_signature,
    verify_url,
)

SAMPLES = Path(__file__).parent / "samples" / "callback"
URL = "https://app.example/flux2/callback/"
SECRET = "a long random text"
SIG = hmac.new(SECRET.encode(), b"r1", hashlib.sha256).hexdigest()

CHECK_KEY = "test-key"
CHECK_ID = "ee9c2715375b7837f8bb51d641ff5863"
CHECK_TIME = "1769670760"
CHECK_VALUE = "kaRdMyPIATX8gQVYxP8Mn46UnMuqft8BZvnk1FLpda4="


# --- addresses


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (URL, f"{URL}?ref=r1&sig={SIG}"),
        ("http://app.example", f"http://app.example?ref=r1&sig={SIG}"),
        (f"{URL}?", f"{URL}?ref=r1&sig={SIG}"),
        (f"{URL}?tenant=%41+b&x", f"{URL}?tenant=%41+b&x&ref=r1&sig={SIG}"),
        (f"{URL}?tenant=a&", f"{URL}?tenant=a&ref=r1&sig={SIG}"),
        (f"{URL}?next=/a?b", f"{URL}?next=/a?b&ref=r1&sig={SIG}"),
    ],
)
def test_an_address_carries_ref_and_last_sig(url: str, expected: str) -> None:
    """The signature is the hex HMAC-SHA256 of `ref`; the address's own query stays as it is."""
    assert signed_url(url, "r1", SECRET) == expected
    assert verify_url(expected, SECRET) == "r1"
    assert verify_url(expected.partition("?")[2], SECRET) == "r1"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "not complete"),
        ("app.example/callback", "not complete"),
        ("/callback", "not complete"),
        ("ftp://app.example/callback", "not complete"),
        ("https://", "not complete"),
        ("https:///callback", "not complete"),
        ("https://[app/callback", "not complete"),
        ("https://app.example/call back", "not complete"),
        ("https://app.example/callback\n", "not complete"),
        ("https://app.example/#/callback", "fragment"),
        ("https://app.example/callback#", "fragment"),
        ("https://app.example/callback?ref=mine", "'ref'"),
        ("https://app.example/callback?a=b&sig", "'sig'"),
        ("https://app.example/callback?%72ef=mine", "'ref'"),
    ],
)
def test_an_address_that_cannot_be_signed_is_refused(url: str, text: str) -> None:
    """What is no complete http(s) address, has a fragment or takes our parameters is a configuration error."""
    with pytest.raises(ConfigurationError, match=text):
        signed_url(url, "r1", SECRET)


def test_nothing_is_signed_or_checked_without_a_secret() -> None:
    """An empty secret is a mistake to be told, not a signature that everybody can make."""
    with pytest.raises(ConfigurationError, match="secret: empty"):
        signed_url(URL, "r1", "")
    with pytest.raises(ConfigurationError, match="secret: empty"):
        verify_url(f"ref=r1&sig={SIG}", b"")
    with pytest.raises(ConfigurationError, match="hmac_key: empty"):
        verify_signature(CHECK_ID, CHECK_TIME, CHECK_VALUE, "", float(CHECK_TIME))


@pytest.mark.parametrize("ref", ["", "line\nbreak", "\x1b[31m", "\ud800"])
def test_a_ref_is_printable(ref: str) -> None:
    """What names a submission can stand in a log."""
    with pytest.raises(InvalidRequestError, match=r"ref: .* printable"):
        signed_url(URL, ref, SECRET)


@given(ref=st.text(min_size=1).filter(str.isprintable), secret=st.text(min_size=1) | st.binary(min_size=1))
def test_every_ref_comes_back(ref: str, secret: str | bytes) -> None:
    """Whatever a ref holds, its address is plain ASCII and gives it back, and only under its secret."""
    url = signed_url(URL, ref, secret)
    assert url.isascii()
    assert verify_url(url, secret) == ref
    other = secret + "x" if isinstance(secret, str) else secret + b"x"
    assert verify_url(url, other) is None


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?",
        "ref=r1",
        f"sig={SIG}",
        "ref=r1&sig=",
        f"ref=&sig={hmac.new(SECRET.encode(), b'', hashlib.sha256).hexdigest()}",
        f"ref=r2&sig={SIG}",
        f"ref=R1&sig={SIG}",
        f"ref=r1%00&sig={SIG}",
        f"ref=r1&sig={SIG.upper()}",
        f"ref=r1&sig={SIG[:-1]}",
        f"ref=r1&sig={SIG[:-1]}{'0' if SIG[-1] != '0' else '1'}",
        f"ref=r1&sig={SIG}0",
        f"ref=r1&sig={SIG}&sig={SIG}",
        f"ref=r1&ref=r1&sig={SIG}",
        f"ref=r1&sig={SIG}&%73ig={SIG}",
        f"ref=r1&sig={SIG}&ref=",
        f"ref=r1;sig={SIG}",
        f"ref=r1&sig={'ä' * 64}",
        f"ref=r1&sig={'%FF' * 64}",
        f"ref=%ff&sig={SIG}",
        f"ref=%ff&sig={hmac.new(SECRET.encode(), chr(0xFFFD).encode(), hashlib.sha256).hexdigest()}",
        f"ref=\udcff&sig={SIG}",
        f"ref=r1&sig={SIG}" + "&a=1" * 100,
        f"https://app.example/?a=1#?ref=r1&sig={SIG}",
    ],
)
def test_a_wrong_address_is_nobodys(query: str) -> None:
    """Missing, wrong, cut, doubled, badly escaped or foreign: None, never an exception."""
    assert verify_url(query, SECRET) is None


def test_an_address_is_read_however_it_is_escaped() -> None:
    """A proxy may escape what needs none and add parameters of its own."""
    assert verify_url(f"utm=1&%72ef=%72%31&sig={SIG}&trace=", SECRET) == "r1"
    assert verify_url(f"HTTPS://app.example/a?ref=r1&sig={SIG}#part", SECRET) == "r1"


@given(st.lists(st.sampled_from(["ref", "sig", "=", "&", "r1", SIG, ";", "?", "ä", "+", "%72", "%ff"])).map("".join))
@example(f"ref=r1&sig={SIG}")
@example(f"&ref=r1&&sig={SIG}&")
@example(f"ref=r1&sig={SIG}=")
@example(f"ref=r1&sig={SIG}" + "&" * 98)
@example(f"ref=r1&sig={SIG}" + "&" * 99)
def test_a_query_is_read_as_forms_are(query: str) -> None:
    """The standard library finds the same parameters, escaped or not."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:
        pairs = []
    own = sorted(pair for pair in pairs if pair[0] in {"ref", "sig"})
    assert verify_url(query, SECRET) == ("r1" if own == [("ref", "r1"), ("sig", SIG)] else None)


@given(st.text())
@example("%ED%A0%80&\ud800")
def test_no_query_raises(query: str) -> None:
    """Nothing that is not signed is accepted, and nothing raises."""
    assert verify_url(query, SECRET) is None
    assert verify_url(f"ref={query}&sig={query}", SECRET) is None


# --- the service's own signature


def test_the_check_value_of_the_contract() -> None:
    """Base64 of HMAC-SHA256 over id, full stop and timestamp."""
    assert sign(CHECK_ID, CHECK_TIME, CHECK_KEY) == CHECK_VALUE
    assert sign(CHECK_ID, int(CHECK_TIME), CHECK_KEY.encode()) == CHECK_VALUE
    assert verify_signature(CHECK_ID, CHECK_TIME, CHECK_VALUE, CHECK_KEY, float(CHECK_TIME)) is True


@pytest.mark.parametrize(
    ("age", "tolerance", "expected"),
    [
        (0.0, 0, True),
        (0.5, 0, False),
        (300.0, 300, True),
        (-300.0, 300, True),
        (300.5, 300, False),
        (-300.5, 300, False),
        (800.0, 900, True),
        (float("nan"), 300, False),
        (float("inf"), 300, False),
    ],
)
def test_a_signature_has_its_time(age: float, tolerance: float, expected: bool) -> None:
    """A timestamp may be off by the tolerance, in both directions and no more."""
    now = float(CHECK_TIME) + age
    assert verify_signature(CHECK_ID, CHECK_TIME, CHECK_VALUE, CHECK_KEY, now, tolerance) is expected


@pytest.mark.parametrize("age", [301.0, -301.0])
def test_five_minutes_are_the_tolerance(age: float) -> None:
    """Without another word 300 seconds count."""
    assert not verify_signature(CHECK_ID, CHECK_TIME, CHECK_VALUE, CHECK_KEY, float(CHECK_TIME) + age)
    assert verify_signature(CHECK_ID, CHECK_TIME, CHECK_VALUE, CHECK_KEY, float(CHECK_TIME) + age * 0.99)


@pytest.mark.parametrize(
    ("task_id", "timestamp", "signature"),
    [
        ("another", CHECK_TIME, CHECK_VALUE),
        (CHECK_ID, "1769670761", CHECK_VALUE),
        (CHECK_ID, CHECK_TIME, ""),
        (CHECK_ID, CHECK_TIME, CHECK_VALUE.rstrip("=")),
        (CHECK_ID, CHECK_TIME, CHECK_VALUE.lower()),
        (CHECK_ID, CHECK_TIME, "\udcff" * 44),
        (CHECK_ID, CHECK_TIME, "ä" * 44),
        ("\ud800", CHECK_TIME, CHECK_VALUE),
    ],
)
def test_a_wrong_signature_is_no_signature(task_id: str, timestamp: str, signature: str) -> None:
    """Another task, another time, another text: False."""
    assert verify_signature(task_id, timestamp, signature, CHECK_KEY, float(CHECK_TIME)) is False


@pytest.mark.parametrize(
    "timestamp", ["", "now", "1769670760.0", " 1769670760", "+1769670760", "1_769_670_760", "\u0661", "1" * 5000]
)
def test_what_is_no_timestamp_is_refused_even_when_signed(timestamp: str) -> None:
    """Only plain Unix seconds have an age."""
    signature = sign(CHECK_ID, timestamp, CHECK_KEY)
    assert verify_signature(CHECK_ID, timestamp, signature, CHECK_KEY, float(CHECK_TIME), float("inf")) is False


# --- bodies


def test_the_success_of_the_documentation() -> None:
    """The record says what recordInfo would, without the address of the callback."""
    callback = parse_callback((SAMPLES / "success.json").read_bytes())
    assert callback.record is not None
    assert (callback.task_id, callback.record.task_id) == ("558a0e58d58a6cb69e5c6a55170398da",) * 2
    assert callback.record.state is TaskState.SUCCESS
    assert callback.record.result_urls == ("https://tempfile.aiquickdraw.com/p/result%201.png",)
    assert callback.record.credits_consumed == 14
    assert callback.record.param is not None
    assert callback.record.param["callBackUrl"] == "<redacted>"


def test_the_failure_of_the_documentation() -> None:
    """A failure keeps its code and words."""
    record = parse_callback((SAMPLES / "failure.json").read_bytes()).record
    assert record is not None
    assert (record.state, record.fail_code) == (TaskState.FAIL, "400")
    assert record.fail_message == "The current content could not be processed"


def test_the_form_of_the_guide_is_a_hint() -> None:
    """A body without a state names the task and no more."""
    body = (SAMPLES / "guide.json").read_bytes()
    assert parse_callback(body) == Callback("ee9c2715375b7837f8bb51d641ff5863", None)


@pytest.mark.parametrize(
    ("body", "task_id"),
    [
        ({"data": {"taskId": "a", "task_id": "b"}, "taskId": "c", "task_id": "d"}, "a"),
        ({"data": {"task_id": "b"}, "taskId": "c", "task_id": "d"}, "b"),
        ({"data": {"taskId": ""}, "taskId": "c", "task_id": "d"}, "c"),
        ({"data": None, "task_id": "d"}, "d"),
        ({"data": "text", "taskId": 12}, "12"),
        ({"taskId": " c "}, "c"),
    ],
)
def test_the_id_is_found_at_every_place(body: Any, task_id: str) -> None:
    """In this order: data.taskId, data.task_id, taskId, task_id."""
    assert parse_callback(json.dumps(body).encode()) == Callback(task_id, None)


@pytest.mark.parametrize(
    ("code", "state", "expected"),
    [
        (200, "success", TaskState.SUCCESS),
        (501, "success", TaskState.SUCCESS),
        (200, "fail", TaskState.FAIL),
        (501, "generating", TaskState.GENERATING),
        (501, "polishing", TaskState.UNKNOWN),
        (400, None, TaskState.FAIL),
        (408, None, TaskState.FAIL),
        (451, "", TaskState.FAIL),
        (500, None, TaskState.FAIL),
        (501, None, TaskState.FAIL),
        ("501", None, TaskState.FAIL),
        (200, None, None),
        (429, None, None),
        (None, None, None),
        (501, 7, None),
        (501, ["fail"], None),
    ],
)
def test_the_state_decides_then_the_code(code: Any, state: Any, expected: TaskState | None) -> None:
    """A state that is there counts; without one a code of failure does; anything else is a hint."""
    data = {"taskId": "t-1", "state": state, "resultJson": '{"resultUrls":["https://f.example/a.png"]}'}
    record = parse_callback(json.dumps({"code": code, "msg": "the words", "data": data}).encode()).record
    assert (record and record.state) == expected


def test_a_failure_by_its_code_alone_has_code_and_words() -> None:
    """Code and words come from the envelope where the data has none."""
    alone = parse_callback(b'{"code":501,"msg":"Playground task failed.","taskId":"t-1"}').record
    assert alone is not None
    assert (alone.task_id, alone.fail_code, alone.fail_message) == ("t-1", "501", "Playground task failed.")
    own = parse_callback(b'{"code":501,"msg":"x","data":{"taskId":"t-1","failCode":"422","failMsg":"flagged"}}').record
    assert own is not None
    assert (own.fail_code, own.fail_message) == ("422", "flagged")


def test_a_success_that_cannot_be_read_is_a_hint() -> None:
    """A new form of the result must not cost the picture: the id is enough to look."""
    body = b'{"code":200,"data":{"taskId":"t-1","state":"success","resultJson":[1]}}'
    assert parse_callback(body) == Callback("t-1", None)


def test_a_body_broken_by_its_own_echo_is_read() -> None:
    """An unescaped prompt in `param` does not hide the rest."""
    param = r'"{"input":{"prompt":"a \"red\" kettle"},"callBackUrl":"https://app.example/?ref=r1&sig=x"}"'
    body = '{"code":501,"data":{"taskId":"t-1","param":%s,"state":"fail","failCode":"400"}}' % param  # noqa: UP031  braces
    callback = parse_callback(body.encode())
    assert callback.task_id == "t-1"
    assert callback.record is not None
    assert callback.record.fail_code == "400"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "0 bytes that are not a JSON object"),
        (b"taskId=t-1", "not a JSON object"),
        (b"<html>taskId</html>", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'"t-1"', "not a JSON object"),
        (b"null", "not a JSON object"),
        ((SAMPLES / "success.json").read_bytes().rstrip()[:-1], "not a JSON object"),
        ((SAMPLES / "success.json").read_bytes()[:200], "not a JSON object"),
        (b'{"taskId":"t-1","data":' + b"[" * 100_000, "not a JSON object"),
        (b'{"taskId":"t-1","data":' + b"[" * 100 + b"]" * 100 + b"}", "not a JSON object"),
        (b"\xff\xfe\x00", "not a JSON object"),
        (b"{}", "no task id"),
        (b'{"data":{"state":"success"}}', "no task id"),
        (b'{"taskId":null}', "no task id"),
        (b'{"taskId":true}', "no task id"),
        (b'{"taskId":["t-1"]}', "no task id"),
        (b'{"taskId":"two words"}', "no task id"),
        (b'{"taskId":"line\\nbreak"}', "no task id"),
        (b'{"taskId":"\\u001b[31m"}', "no task id"),
        (json.dumps({"taskId": "t" * 257}).encode(), "no task id"),
    ],
)
def test_a_body_without_json_or_id_is_a_protocol_error(body: bytes, text: str) -> None:
    """The error says what is missing and holds nothing of the body."""
    with pytest.raises(ProtocolError, match=text) as caught:
        parse_callback(body)
    assert caught.value.http_status is None
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert len(str(caught.value)) < 100


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
FIELDS = (
    "taskId",
    "task_id",
    "state",
    "resultJson",
    "param",
    "paramJson",
    "failCode",
    "failMsg",
    "createTime",
    "model",
)
DATA = st.dictionaries(st.sampled_from(FIELDS), JSON | st.sampled_from(["success", "fail", "t-1"]))


@given(
    st.binary()
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {"taskId": st.just("t-1")}, optional={"code": JSON | st.just(501), "msg": JSON, "data": DATA}
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_body_raises_anything_else(body: bytes) -> None:
    """A callback or a `ProtocolError`; the record is always the named task's."""
    try:
        callback = parse_callback(body)
    except ProtocolError:
        return
    assert callback.task_id
    assert callback.record is None or callback.record.task_id == callback.task_id


# --- where addresses lead


def record_with(*urls: str) -> TaskRecord:
    return TaskRecord(task_id="t-1", state=TaskState.SUCCESS, state_text="success", result_urls=urls)


@pytest.mark.parametrize(
    "url",
    [
        "https://tempfile.aiquickdraw.com/p/result%201.png",
        "HTTP://Files.Example.COM./a.png?x=@y#z",
        "https://cdn-1.my_host.example:8443/a",
        "https://files.example",
        "https://files.example?a",
        "http://93.184.216.34/a.png",
        "http://[2606:4700:4700::1111]/a.png",
        "https://localhost.example/a.png",
        "https://internal.example/a.png",
        "https://mylocal.example/a.png",
        "https://127.0.0.1.example/a.png",
    ],
)
def test_public_addresses_are_public(url: str) -> None:
    """Names with a domain and global numbers pass."""
    assert public_urls(record_with(url)) is True


@pytest.mark.parametrize(
    "url",
    [
        "ftp://files.example/a.png",
        "file:///etc/passwd",
        "//files.example/a.png",
        "https:/files.example/a.png",
        "https://",
        "https:///a.png",
        "http://localhost/a.png",
        "http://localhost.:8080/a.png",
        "http://app.localhost/a.png",
        "http://app.localho\u017ft/a.png",
        "http://LOCALHOST/a.png",
        "http://printer.local/a.png",
        "http://metadata.google.internal/a.png",
        "http://router.lan/a.png",
        "http://nas.home.arpa/a.png",
        "http://intranet/a.png",
        "http://printer/a.png",
        "http://files..example/a.png",
        "http://127.0.0.1/a.png",
        "http://127.0.0.1./a.png",
        "http://10.1.2.3/a.png",
        "http://172.16.0.1/a.png",
        "http://192.168.1.1/a.png",
        "http://100.64.0.1/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://0.0.0.0/a.png",
        "http://0/a.png",
        "http://224.0.0.1/a.png",
        "http://239.1.1.1/a.png",
        "http://255.255.255.255/a.png",
        "http://240.0.0.1/a.png",
        "http://2130706433/a.png",
        "http://0x7f000001/a.png",
        "http://0x7f.0.0.1/a.png",
        "http://127.0.0.0x1/a.png",
        "http://127.1/a.png",
        "http://0177.0.0.1/a.png",
        "http://93.184.216.034/a.png",
        "http://[::1]/a.png",
        "http://[::]/a.png",
        "http://[fe80::1]/a.png",
        "http://[fe80::1%25eth0]/a.png",
        "http://[fc00::1]/a.png",
        "http://[ff02::1]/a.png",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://[::ffff:93.184.216.34]/a.png",
        "http://[64:ff9b::7f00:1]/a.png",
        "http://[2002:7f00:1::]/a.png",
        "http://[2001:0:7f00:1::]/a.png",
        "http://[2001:db8::1]/a.png",
        "http://[nonsense]/a.png",
        "http://[:::1]/a.png",
        "http://user@files.example/a.png",
        "http://files.example@127.0.0.1/a.png",
        "http://files.example\\@127.0.0.1/a.png",
        "http://127.0.0.1\\.files.example/a.png",
        "http://%31%32%37.0.0.1/a.png",
        "http://①②⑦.0.0.1/a.png",
        "http://127。0。0。1/a.png",
        "http\u017f://files.example/a.png",
        "http://files.example:port/a.png",
        "http://files.example\n.local/a.png",
        " http://files.example/a.png",
    ],
)
def test_addresses_that_lead_inside_are_not_public(url: str) -> None:
    """Private, reserved, local, oddly written or ambiguous: refused, also beside a public one."""
    assert public_urls(record_with(url)) is False
    assert public_urls(record_with("https://files.example/a.png", url)) is False


def test_no_address_leads_nowhere() -> None:
    """A failure has no addresses to refuse."""
    assert public_urls(record_with()) is True


@given(st.ip_addresses())
def test_no_private_number_is_public(number: Any) -> None:
    """Of all numbers only global ones pass."""
    host = f"[{number}]" if number.version == 6 else str(number)
    assert number.is_global or not public_urls(record_with(f"http://{host}/a.png"))
