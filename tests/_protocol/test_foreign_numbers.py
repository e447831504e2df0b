"""Numbers in what others send: however long and in whatever digits, they are read, bounded or passed over."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_async._protocol import codec, lenient_json, records, refusals
from flux2_async.cli import doctor
from flux2_async.cli.batch_options import BatchOptions
from flux2_async.cli.options import parse_rate_limit
from flux2_async.cli.screen import UsageError
from flux2_async.coordination.contract import Message, decode_message, encode_message
from flux2_async.errors import Flux2Error
from flux2_async.models import RateLimit
from flux2_async.receivers._handler import declared_length
from flux2_async.webhooks import verify_signature

DIGITS = "9" * 5000
DATE = "Sun, 22 Nov 2026 20:00:00 GMT"

NUMBERS = [
    DIGITS,
    f"-{DIGITS}",
    f"0.{DIGITS}",
    "1e400",
    "inf",
    "-inf",
    "nan",
    "\u00b2",
    "\u0663",
    "1_000",
    "0x10",
    "+7",
    "",
    " ",
    f"Mon, 1 Jan {DIGITS} 00:00:00 GMT",
    f"Mon, {DIGITS} Jan 2026 00:00:00 GMT",
    f"Mon, 1 Jan 2026 {DIGITS}:00:00 GMT",
    "Mon, 1 Jan 99999999999 00:00:00 GMT",
    "Mon, 1 Jan 2026 00:00:00 +999999999",
    "Mon, 1 Jan 0001 00:00:00 +2359",
    "Fri, 31 Dec 9999 23:59:59 -2359",
    "Mon,",
]


def record(**fields: Any) -> Any:
    return records.record_from_payload({"taskId": "t1", "state": "success", **fields}, "t1")


READERS: dict[str, Callable[[str], Any]] = {
    "Retry-After": lambda text: refusals.retry_after({"Retry-After": text}),
    "Retry-After with a date": lambda text: refusals.retry_after({"Retry-After": text, "Date": DATE}),
    "Date": lambda text: refusals.retry_after({"Retry-After": DATE, "Date": text}),
    "Retry-After of a body": lambda text: refusals.retry_after({}, body=lenient_json.dumps({"retryAfter": text})),
    "a date": refusals.http_date,
    "the clock of a server": doctor.clock_skew,
    "Content-Length": declared_length,
    "a code": lambda text: codec.code_of({"code": text}),
    "a time": lambda text: record(createTime=text),
    "a progress": lambda text: record(progress=text),
    "credits": lambda text: record(creditsConsumed=text),
    "a time stamp": lambda text: verify_signature("t1", text, "x", "key", 0.0),
    "a pause of another process": lambda text: decode_message(f"a pause {text}"),
    "processes": lambda text: decode_message(f"a peers 20/10.0 {text}"),
    "limits of processes": lambda text: decode_message(f"a peers 20/10.0,{text}/{text} 3"),
    "a port": lambda text: BatchOptions(callback_url="https://a.example/", callback_listen=f"h:{text}").callbacks(),
    "a limit": lambda text: parse_rate_limit(f"{text}/{text}"),
}


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIKLEY_CALLBACK_SECRET", "a long random text")


@pytest.mark.parametrize("read", READERS.values(), ids=list(READERS))
@pytest.mark.parametrize("text", NUMBERS, ids=lambda text: f"{text:.20}")
def test_any_number_is_read_or_passed_over(read: Callable[[str], Any], text: str) -> None:
    """Nothing but an error of ours comes out."""
    with suppress(Flux2Error, UsageError):
        read(text)


@given(
    st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,5} Jan [0-9]{1,9} [0-9]{1,4}:0:0 [+-]?[0-9A-Z]{1,9}")
)
def test_any_date_is_a_moment_or_none(text: str) -> None:
    """And every moment can be held against another one."""
    moment = refusals.http_date(text)
    assert moment is None or moment.tzinfo
    assert (refusals.retry_after({"Retry-After": text, "Date": DATE}) or 0.0) >= 0.0


def test_a_pause_is_a_length_of_time() -> None:
    """What is none is not handed on to the limiter, whose clock it would break."""
    for text in ("nan", "-1", "-inf", f"-{DIGITS}"):
        assert decode_message(f"a pause {text}") is None
    assert decode_message("a pause 2.5") is not None


def test_limits_of_other_processes_are_read_as_they_were_told() -> None:
    """All of them, or none; what cannot be a limit is no message."""
    for rates in ((), (RateLimit(20, 10.0), RateLimit(100, 60))):
        told = Message("peers", rates=rates, peers=3)
        assert decode_message(encode_message("a", told)) == ("a", told)
    for text in ("0/10.0", "20/-1", "20/nan", "20", "20/10/5"):
        assert decode_message(f"a peers {text} 3") is None
