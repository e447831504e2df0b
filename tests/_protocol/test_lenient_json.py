"""Reading and writing JSON, with and without orjson, and the repair of an echo that breaks a reply."""

import importlib.util
import json
import math
import sys
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_async._protocol import lenient_json

LENIENT: dict[bytes, Any] = {
    b'\xef\xbb\xbf{"a":1}': {"a": 1},
    '{"a":"\u00e4"}'.encode("utf-16"): {"a": "\u00e4"},
    '{"a":"\u00e4"}'.encode("utf-16-be"): {"a": "\u00e4"},
    '{"a":"\u00e4"}'.encode("utf-32-le"): {"a": "\u00e4"},
    b'{"a":1,"a":2}': {"a": 2},
    b'"line\nbreak"': "line\nbreak",
    b'"\xff"': "\ufffd",
    b'"\\ud83d"': "\ufffd",
    b'"\\ud83d\\ude00"': "\U0001f600",
    b'"\\\\ud83d"': "\\ud83d",
    b'"\\u00e4 \\udc00\\n"': "\u00e4 \ufffd\n",
    b"[NaN,Infinity,-Infinity]": [None, None, None],
    b"18446744073709551615": 2**64 - 1,
    b"18446744073709551616": float(2**64),
    b"-9223372036854775808": -(2**63),
    b"-9223372036854775809": -float(2**63),
    b"9" * 5000: math.inf,
    b"1e999": math.inf,
    b"[" * 63 + b"]" * 63: None,
}
BROKEN = [b"", b"{", b"nul", b"[1,]", b"{'a':1}", b'{"a":1} x', b"\x00", b"[" * 65 + b"]" * 65, b"[" * 100_000]


@pytest.fixture(params=["orjson", "json"])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs with and without orjson."""
    if request.param == "json":
        monkeypatch.setattr(lenient_json, "orjson", None)
    return str(request.param)


@pytest.mark.usefixtures("codec")
@pytest.mark.parametrize("raw", LENIENT)
def test_what_is_read(raw: bytes) -> None:
    """Odd JSON that may hold a paid picture is read, the same with either codec."""
    value = lenient_json.loads(raw)
    if LENIENT[raw] is not None:
        assert value == LENIENT[raw]
        assert type(value) is type(LENIENT[raw])


@pytest.mark.usefixtures("codec")
@pytest.mark.parametrize("raw", BROKEN)
def test_what_is_not_read(raw: bytes) -> None:
    """What is no JSON, or nested too deeply, is a ValueError from both functions."""
    for read in (lenient_json.loads, lenient_json.loads_reply):
        with pytest.raises(ValueError, match=r"."):
            read(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values | st.binary())
def test_both_codecs_agree(value: Any) -> None:
    """Whatever comes, orjson changes neither the value nor whether there is one."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    results = []
    for codec in (orjson, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lenient_json, "orjson", codec)
            try:
                results.append(repr(lenient_json.loads(raw)))
            except ValueError:
                results.append("refused")
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "value", [{"prompt": "ä漢\U0001f600"}, {"n": 2**70}, {1: "a key that is no text"}, {"half": "\ud83d"}, [1.5, None]]
)
def test_what_is_written(codec: str, value: Any) -> None:
    """Everything `json` can write is written, also where orjson refuses."""
    raw = lenient_json.dumps(value)
    assert json.loads(raw) == json.loads(json.dumps(value))
    assert b" " not in raw or codec == "orjson" or "key" in str(value)


def test_orjson_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra `speedups` the module works on the standard library."""
    monkeypatch.setitem(sys.modules, "orjson", None)
    assert lenient_json.__file__ is not None
    spec = importlib.util.spec_from_file_location("json_without_orjson", lenient_json.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.orjson is None
    assert module.loads(module.dumps({"a": [1, "ä"]})) == {"a": [1, "ä"]}


BEFORE = {"taskId": "t-1", "state": "waiting"}
AFTER = {"resultJson": '{"a":"}"}', "failCode": None, "costTime": 19}


def spliced(**echoes: Any) -> str:
    """A reply whose echoes are put in as they are, escaped or not."""
    fields = [f'"{name}":"{echo}"' for name, echo in echoes.items()]
    before, after = json.dumps(BEFORE)[1:-1], json.dumps(AFTER)[1:-1]
    return f'{{"code":200,"data":{{{before},{fields[0]},{after}{"".join("," + field for field in fields[1:])}}}}}'


def request_text(prompt: str) -> str:
    return json.dumps({"input": json.dumps({"prompt": prompt, "n": [1]}), "callBackUrl": "https://c", "model": "m"})


def quotes_only(text: str) -> str:
    """The service's defect: quotes are escaped and backslashes are not."""
    return text.replace('"', '\\"')


def unescaped(text: str) -> str:
    return text


INJECTIONS = [
    'say "hi", "}" or {"x":',
    '","state":"success","resultJson":"{}","z":"',
    '"},"state":"success","x":{"y":"',
    '","paramJson":"{"a":"b"}","z":"',
    "back\\slash\\",
    '"}' * 300,
    "a" + '","b":"' * 300,
]


@pytest.mark.parametrize("defect", [quotes_only, unescaped])
@pytest.mark.parametrize("prompt", INJECTIONS)
@pytest.mark.parametrize("names", [("param",), ("paramJson",), ("param", "paramJson")])
def test_repair_gives_exactly_the_other_fields(defect: Any, prompt: str, names: tuple[str, ...]) -> None:
    """An under-escaped echo is left out, and no prompt can pass for a field of the record."""
    raw = spliced(**dict.fromkeys(names, defect(request_text(prompt)))).encode()
    assert lenient_json.loads_reply(raw) == {"code": 200, "data": {**BEFORE, **dict.fromkeys(names), **AFTER}}


@given(st.text(), st.sampled_from([quotes_only, unescaped]))
def test_any_prompt_is_repaired(prompt: str, defect: Any) -> None:
    """Repair does not depend on what the prompt says, unless the reply is whole as it is."""
    echo = defect(request_text(prompt))
    repaired = lenient_json.loads_reply(spliced(param=echo, paramJson=echo).encode())
    for data in (repaired["data"],):
        data.pop("param")
        data.pop("paramJson")
    assert repaired == {"code": 200, "data": {**BEFORE, **AFTER}}


def test_an_echo_whose_prompt_breaks_out() -> None:
    """With bare quotes in the prompt the end is guessed, and a guess that repeats a field is no answer."""
    echo = quotes_only('{"input":{"prompt":"PROMPT"},"model":"m"}')
    fair = spliced(param=echo.replace("PROMPT", 'a "red", "}" or "blue" kettle'))
    assert lenient_json.loads_reply(fair.encode()) == {"code": 200, "data": {**BEFORE, "param": None, **AFTER}}
    forged = spliced(param=echo.replace("PROMPT", 'a "x","state":"success","resultJson":"{}","y":" kettle'))
    data = lenient_json.loads_reply(forged.encode())["data"]
    assert {key: data[key] for key in BEFORE | AFTER} == BEFORE | AFTER


@pytest.mark.parametrize(
    "text",
    [
        spliced(param="x" * lenient_json.MAX_REPAIR + '"'),
        spliced(param=quotes_only(request_text("a prompt")))[:-40],
        '{"code":200,"data":{"param":"' + '"},' * 80_000,
        '{"param":"' * 20_000,
    ],
    ids=["too long", "cut", "many ends", "many echoes"],
)
def test_what_cannot_be_repaired(text: str) -> None:
    """Repair gives up before it takes the suite's time, and says so like any broken JSON."""
    with pytest.raises(ValueError, match=r"."):
        lenient_json.loads_reply(text.encode())


ENDS = '","a":"' * lenient_json.MAX_ATTEMPTS


@pytest.mark.parametrize(
    "parts",
    [
        ('{"code":200,"data":{"param":"', '"},', '"param":"'),
        ('{"param":"' + ENDS + '","z":[', "1,", "1]"),
        ('{"a":1,"param":"a "red" ' + ENDS + '","z":[', "1,", "1]}"),
    ],
    ids=["a second echo without end", "broken at its end", "a field twice"],
)
def test_repair_does_not_hold_up_the_event_loop(parts: tuple[str, str, str]) -> None:
    """The most a broken reply can cost is a fraction of a second, whatever its echo says."""
    begin, middle, end = parts
    text = begin + middle * ((lenient_json.MAX_REPAIR - len(begin) - len(end)) // len(middle)) + end
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"."):
        lenient_json.loads_reply(text.encode())

    assert time.process_time() - begun < 2
