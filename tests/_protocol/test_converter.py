"""The converter never makes one type from another."""

import json
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

import cattrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_async._protocol.converter import (
    FIELDS,
    configure_converter,
    converter,
    make_converter,
    read_record,
    resolution_of,
)
from flux2_async.models import TaskRecord, TaskState

VALUES: list[Any] = ["12", "false", "", 12, 1.5, True, None, [], {}]


@pytest.mark.parametrize(("kind", "accepted"), [(str, str), (bool, bool), (int, int), (float, (int, float))])
def test_primitives_are_strict(kind: type, accepted: Any) -> None:
    """Text stays text, true is no number, None is nothing but None."""
    converter = make_converter()
    for value in VALUES:
        if isinstance(value, accepted) and (kind is bool or value is not True):
            assert converter.structure(value, kind) == value
            assert type(converter.structure(value, kind)) is kind
        else:
            with pytest.raises(ValueError, match=f"expected, {type(value).__name__} given"):
                converter.structure(value, kind)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(value: float) -> None:
    """NaN and the infinities are no amounts."""
    with pytest.raises(ValueError, match="a number expected"):
        make_converter().structure(value, float)


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        (1786413282001, datetime(2026, 8, 11, 1, 54, 42, 1000, tzinfo=UTC)),
        (1786413282001.0, datetime(2026, 8, 11, 1, 54, 42, 1000, tzinfo=UTC)),
        ("1786413282001", datetime(2026, 8, 11, 1, 54, 42, 1000, tzinfo=UTC)),
        (0, None),
        (-5, None),
        (10**18, None),
        ("2026-08-11", None),
        (True, None),
        ([], None),
    ],
)
def test_moments(value: Any, moment: datetime | None) -> None:
    """Unix milliseconds become aware times; what is out of range is refused."""
    if moment is None:
        with pytest.raises(ValueError, match="expected"):
            make_converter().structure(value, datetime)
    else:
        assert make_converter().structure(value, datetime) == moment
        assert make_converter().structure(value, datetime).utcoffset() is not None


def test_states() -> None:
    """The five words are known in any case, and all others are `UNKNOWN`."""
    converter = make_converter()
    words = ["waiting", "queuing", "generating", "success", "fail", "SUCCESS", " fail ", "pending", "unknown"]
    assert [converter.structure(word, TaskState).value for word in words] == [
        "waiting",
        "queuing",
        "generating",
        "success",
        "fail",
        "success",
        "fail",
        "unknown",
        "unknown",
    ]


def test_any_converter_can_be_taught() -> None:
    """A caller's own converter reads the API's names after `configure_converter`."""
    converter = cattrs.Converter()
    configure_converter(converter)
    record = converter.structure({"taskId": "t-1", "state": "fail", "failCode": 400}, TaskRecord)
    assert record == TaskRecord(task_id="t-1", state=TaskState.FAIL, state_text="fail", fail_code="400")


TEXTS = st.sampled_from(["success", "fail", "", " 1 ", "50%", "1786413282001", '{"input":"{}"}', "https://f.example/a"])
NUMBERS = st.sampled_from([0, 7, 1786413282001, 10**18, -1, 2**70, 0.5, float("nan"), True, False])
GIVEN = st.none() | TEXTS | NUMBERS | st.sampled_from([[], {}, {"resultUrls": ["https://f.example/a", 1]}])


@given(st.dictionaries(st.sampled_from(sorted({*FIELDS.values()})), GIVEN), st.booleans())
def test_straight_and_by_the_converter(told: dict[str, Any], whole: bool) -> None:
    """A record is read straight exactly when the converter can read each field, and says the same."""
    payload = {"taskId": "t-1", "state": "success"} | told if whole else told
    payload["extra"] = {"costTime": 3}
    try:
        expected = converter().structure(payload, TaskRecord)
    except cattrs.ClassValidationError:
        with pytest.raises((ValueError, KeyError, OverflowError)):
            read_record(payload)
        return

    read = read_record(payload)
    assert (read, read.param, read.extra) == (expected, expected.param, expected.extra)


TOLD = st.sampled_from(
    ["resolution", '"resolution": "4K"', '{"resolution":"4K"}', '\\"resolution\\":\\"4K\\"', " ", "a cup"]
)


@given(
    st.fixed_dictionaries(
        {"prompt": st.lists(TOLD).map("".join)},
        optional={
            "resolution": st.sampled_from(["1K", "2K", 4, None]),
            "more": st.fixed_dictionaries({}, optional={"resolution": st.just("8K")}),
        },
    ),
    st.booleans(),
    st.booleans(),
)
def test_the_resolution_alone_is_what_the_whole_echo_says(request: dict[str, Any], compact: bool, text: bool) -> None:
    """Whatever the prompt quotes, and whatever the request lacks or repeats, no other resolution is found."""
    write = partial(json.dumps, separators=(",", ":") if compact else None)
    echo = {"model": "flux-2/flex-text-to-image", "input": write(request) if text else request}
    record = read_record({"taskId": "t-1", "state": "success", "param": write(echo), "extra": {}})
    named = request.get("resolution")

    assert resolution_of(record) == (named if isinstance(named, str) else None)


def test_a_long_echo_is_read_in_one_pass() -> None:
    """An echo that repeats the resolution, and never ends, costs no more than its length."""
    echo = '{"input":"{' + ',\\"resolution\\":\\"1K\\"' * 20_000
    record = read_record({"taskId": "t-1", "state": "success", "param": echo, "extra": {}})
    begun = time.process_time()

    assert resolution_of(record) is None
    assert time.process_time() - begun < 10.0
