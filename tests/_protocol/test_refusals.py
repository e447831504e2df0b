"""Every code of the API and its error class; Retry-After."""

import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_async import errors
from flux2_async._protocol.refusals import header, refusal, retry_after

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)

CODES = {
    400: errors.RequestRejectedError,
    401: errors.AuthenticationError,
    402: errors.InsufficientCreditsError,
    404: errors.NotFoundError,
    405: errors.ApiError,
    408: errors.ApiError,
    413: errors.RequestRejectedError,
    422: errors.RequestRejectedError,
    429: errors.RateLimitedError,
    430: errors.RateLimitedError,
    433: errors.QuotaExceededError,
    451: errors.ApiError,
    455: errors.MaintenanceError,
    500: errors.ServerError,
    501: errors.ServerError,
    505: errors.FeatureDisabledError,
    # not in any list, seen from proxies or made up
    302: errors.ApiError,
    418: errors.ApiError,
    502: errors.ServerError,
    503: errors.ServerError,
    599: errors.ServerError,
    600: errors.ApiError,
    10007: errors.ApiError,
    -1: errors.ApiError,
}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("creating", [False, True])
def test_every_code_has_its_class(code: int, creating: bool) -> None:
    """The class follows from the code; only 500 means something else on createTask."""
    expected = errors.RequestRejectedError if creating and code == 500 else CODES[code]
    error = refusal(code, "the words", 200, creating=creating, task_id="t-1")
    assert type(error) is expected
    assert (error.code, error.message, error.http_status, error.task_id) == (code, "the words", 200, "t-1")


def test_a_gateway_that_got_no_answer_is_transient() -> None:
    """Of 408, 425 and nginx's 499 the class says nothing: the table does; of all other codes the class alone."""
    unlike = {code for code in range(-1, 1000) if (error := refusal(code, "m", 200)).transient != type(error).transient}
    assert unlike == {408, 425, 499}


def test_refusals_say_what_to_do() -> None:
    """The text of a refusal ends in advice, also when the service says nothing."""
    assert str(refusal(401, "", 401)) == (
        "401: no reason given. Check the key and its list of allowed addresses "
        "(Apikley: APIKLEY_API_KEY, https://app.apikley.ru/keys)"
    )
    for code in CODES.keys() & set(range(300, 600)) - {418}:
        assert len(str(refusal(code, "m", 200))) > len(f"{code}: m. ")


def test_advice_fits_the_call() -> None:
    """Only who named a task is to check its id, and only createTask is bound by `rate_limit`."""
    assert "task id" not in str(refusal(404, "m", 404))
    assert "Check the task id" in str(refusal(404, "m", 404, task_id="t-1"))
    assert "rate_limit" not in str(refusal(429, "m", 429))
    assert "lower rate_limit" in str(refusal(429, "m", 429, creating=True))


def test_advice_fits_whose_answer_it_is() -> None:
    """What a proxy says is no fault of the request: a missing client certificate, or its own bound on sizes."""
    assert "client certificate" in str(refusal(400, "refused without a reason", 400, creating=True, foreign=True))
    assert "change the request" in str(refusal(400, "prompt is required", 400, creating=True))
    assert "a proxy on the way takes no body of this size" in str(refusal(413, "m", 413, foreign=True))
    assert "MB" not in str(refusal(413, "m", 413, foreign=True))
    # A file of more bytes than the documented limit was not sent, so that limit is not the one that it met.
    assert "send a smaller one" in str(refusal(413, "m", 200))
    assert "file" not in str(refusal(413, "m", 200, creating=True))
    assert "Check the key" in str(refusal(401, "m", 401, foreign=True))
    assert "gateway" in str(refusal(401, "m", 401, foreign=True))
    assert "gateway" not in str(refusal(401, "m", 401))


@pytest.mark.parametrize("code", [400, 408, 422, 501])
def test_advice_about_calls_that_make_nothing(code: int) -> None:
    """Of the balance, a record or a link nothing was going to be made, and there is no request to change or repeat."""
    assert not re.search("created|request|generation|submit|model", str(refusal(code, "m", 200)))


def test_the_wait_is_kept_by_rate_refusals_only() -> None:
    """429 and 430 carry the seconds; nothing else has the attribute."""
    for code in (429, 430):
        error = refusal(code, "m", 429, retry_after=2.5)
        assert isinstance(error, errors.RateLimitedError)
        assert error.retry_after == 2.5
    assert not hasattr(refusal(455, "m", 455, retry_after=2.5), "retry_after")


def test_long_words_are_cut_and_signatures_taken_out() -> None:
    """At most 500 characters of the service's words are kept, and no signed callback address."""
    error = refusal(422, 'https://c.example/?ref=r&sig=0123456789abcdef" failed ' + "x" * 9000, 200)
    assert len(error.message) == 500
    assert error.message.startswith('https://c.example/?ref=r&sig=<redacted>" failed xxx')


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("1.5", 1.5),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 15:00:30 +0300", 30.0),
        ("Sun, 22 Nov 2026 12:00:30 -0000", 30.0),
        ("Sunday, 22-Nov-26 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("9" * 400, None),
        ("Sun, 99 Nov 2026 12:00:30 GMT", None),
        ("²", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    """Seconds or an HTTP date, never below zero; nonsense is None."""
    assert retry_after({"RETRY-after": value}, NOW) == seconds


def test_retry_after_without_a_clock() -> None:
    """Without a present the answer's own Date is taken; a date alone tells nothing."""
    later = format_datetime(NOW + timedelta(seconds=7), usegmt=True)
    assert retry_after({"Retry-After": later, "date": format_datetime(NOW, usegmt=True)}) == 7.0
    assert retry_after({"Retry-After": later}) is None
    assert retry_after({}) is None


@given(st.text() | st.dates().map(str) | st.from_regex(r"Mon, \d\d Jan \d{1,6} \d\d:\d\d:\d\d [+-]\d{1,9}"))
def test_any_retry_after(value: str) -> None:
    """No header raises, and no wait is negative."""
    wait = retry_after({"Retry-After": value}, NOW)
    assert wait is None or wait >= 0.0


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (b'{"code":429,"data":{"retryAfter":2}}', 2.0),
        (b'{"code":429,"data":{"retry_after":"2.5"}}', 2.5),
        (b'{"code":429,"retryAfter":" 3 ","data":null}', 3.0),
        (b'{"retry_after":0.25}', 0.25),
        (b'{"data":{"retryAfter":"soon","retry_after":4}}', 4.0),
        (b'{"data":{"retryAfter":NaN}}', None),
        (b'{"data":{"retryAfter":Infinity}}', None),
        (b'{"data":{"retryAfter":-1}}', None),
        (b'{"data":{"retryAfter":1' + b"0" * 400 + b"}}", None),
        (b'{"data":{"retryAfter":"' + b"9" * 5000 + b'"}}', None),
        (b'{"data":{"retryAfter":true}}', None),
        (b'{"data":{"retryAfter":{"retryAfter":2}}}', None),
        (b'{"data":[{"retryAfter":2}]}', None),
        (b'[{"retryAfter":2}]', None),
        (b"<html>slow down</html>", None),
        (b"[" * 100_000, None),
        (b"", None),
    ],
)
def test_retry_after_in_the_body(body: bytes, seconds: float | None) -> None:
    """Seconds under either name, at the top or in `data`; what is no number of seconds is no hint."""
    assert retry_after({}, NOW, body=body) == seconds


def test_the_header_wins_over_the_body() -> None:
    """Its unit is a standard; a header that says nothing leaves it to the body."""
    body = b'{"code":429,"data":{"retryAfter":2000}}'

    assert retry_after({"Retry-After": "2"}, NOW, body=body) == 2.0
    assert retry_after({"Retry-After": "soon"}, NOW, body=body) == 2000.0


def test_headers_ignore_case() -> None:
    """A header is found however it is spelt, and is empty when it is not there."""
    assert header({"X-A": "1", "ReTry-AFTER": "2"}, "retry-after") == "2"
    assert header({"X-A": "1"}, "retry-after") == ""
