"""A field of the API is never made from another type."""

import json
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_async._protocol.converter import (
    FIELDS,
    read_moment,
    read_number,
    read_state,
    read_text,
    resolution_of,
)
from flux2_async._protocol.records import record_from_payload

VALUES: list[Any] = ["12", "false", "", 12, 1.5, True, None, [], {}]


@pytest.mark.parametrize(("read", "accepted", "kept"), [(read_text, str, str), (read_number, (int, float), float)])
def test_primitives_are_strict(read: Any, accepted: Any, kept: type) -> None:
    """Text stays text, true is no number, None is nothing but None."""
    for value in VALUES:
        if isinstance(value, accepted) and value is not True:
            assert read(value) == value
            assert type(read(value)) is kept
        else:
            with pytest.raises(ValueError, match=f"expected, {type(value).__name__} given"):
                read(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(value: float) -> None:
    """NaN and the infinities are no amounts."""
    with pytest.raises(ValueError, match="a number expected"):
        read_number(value)


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
            read_moment(value)
    else:
        assert read_moment(value) == moment
        assert read_moment(value).utcoffset() is not None


def test_states() -> None:
    """The five words are known in any case, and all others are `UNKNOWN`."""
    words = ["waiting", "queuing", "generating", "success", "fail", "SUCCESS", " fail ", "pending", "unknown"]
    assert [read_state(word).value for word in words] == [
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


TEXTS = st.sampled_from(["success", "fail", "", " 1 ", "50%", "1786413282001", '{"input":"{}"}', "https://f.example/a"])
NUMBERS = st.sampled_from([0, 7, 1786413282001, 10**18, -1, 2**70, 0.5, float("nan"), True, False])
GIVEN = st.none() | TEXTS | NUMBERS | st.sampled_from([[], {}, {"resultUrls": ["https://f.example/a", 1]}])


@given(st.dictionaries(st.sampled_from(sorted({*FIELDS} - {"state"})), GIVEN))
def test_each_field_is_read_or_kept_apart(told: dict[str, Any]) -> None:
    """What a field says is in the record where it can be read, alone as well as among others, and else in `extra`."""
    record = record_from_payload({"taskId": "t-1", "state": "waiting"} | told)
    for key, value in told.items():
        name, read = FIELDS[key]
        if value is None or value == "":
            assert key not in record.extra
            continue
        try:
            kept = read(value)
        except (ValueError, OverflowError):
            assert repr(record.extra[key]) == repr(value)
            continue
        assert key not in record.extra
        others = [each for each, (named, _) in FIELDS.items() if named == name and each != key]
        if not any(told.get(each) for each in others) and name != "param":
            assert getattr(record, name) == kept


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
    record = record_from_payload({"taskId": "t-1", "state": "success", "param": write(echo)})
    named = request.get("resolution")

    assert resolution_of(record) == (named if isinstance(named, str) else None)


def test_a_long_echo_is_read_in_one_pass() -> None:
    """An echo that repeats the resolution, and never ends, costs no more than its length."""
    echo = '{"input":"{' + ',\\"resolution\\":\\"1K\\"' * 20_000
    record = record_from_payload({"taskId": "t-1", "state": "success", "param": echo})
    begun = time.process_time()

    assert resolution_of(record) is None
    assert time.process_time() - begun < 10.0
