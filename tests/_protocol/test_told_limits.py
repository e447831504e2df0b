"""What services tell of their limits, in the forms that are documented; what is none is passed over."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_async._protocol.told_limits import told_limits
from flux2_async.models.settings import Told

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
MOMENT = int(NOW.timestamp())


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, []),
        ({"X-RateLimit-Limit": "20"}, [Told(20)]),
        (
            {"x-ratelimit-limit": "20", "X-RATELIMIT-REMAINING": "3", "X-RateLimit-Reset": "7"},
            [Told(20, None, 3, 7.0)],
        ),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(MOMENT + 9)}, [Told(None, None, 0, 9.0)]),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str((MOMENT + 9) * 1000)}, [Told(None, None, 0, 9.0)]),
        (
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(MOMENT), "Date": "Sun, 29 Nov 2026 11:59:00 GMT"},
            [Told(None, None, 0, 60.0)],
        ),
        ({"RateLimit-Limit": "10, 10;w=1", "RateLimit-Remaining": "4", "RateLimit-Reset": "1"}, [Told(10, None, 4, 1)]),
        ({"RateLimit": "limit=100, remaining=50, reset=30"}, [Told(100, None, 50, 30)]),
        (
            {"RateLimit-Policy": '"burst";q=5;w=1, "sustained";q=100;w=60', "RateLimit": '"burst";r=2;t=1'},
            [Told(5, 1.0, 2, 1.0), Told(100, 60.0)],
        ),
        ({"RateLimit": '"default";r=50;t=30'}, [Told(None, None, 50, 30.0)]),
        ({"X-RateLimit-Limit": "many", "RateLimit": "?", "RateLimit-Policy": ";;q=", "X-RateLimit-Reset": "x"}, []),
    ],
)
def test_headers(headers: dict[str, str], told: list[Told]) -> None:
    """Each form of header is read, whatever the case of its name."""
    assert list(told_limits(headers, lambda: NOW)) == told


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"code": 429, "data": {"retryAfter": 2, "limit": 60, "tier": "pro", "windowSeconds": 60}}, [Told(60, 60.0)]),
        ({"limit": 5, "windowSeconds": 1}, [Told(5, 1.0)]),
        ({"data": {"limit": 0, "windowSeconds": 60}}, []),
        ({"data": {"limit": True, "windowSeconds": 60}}, []),
        ({"data": {"limit": 5, "windowSeconds": "60"}}, []),
        ({"data": {"limit": 5}}, []),
        ({"data": None}, []),
        ([], []),
    ],
)
def test_bodies(body: Any, told: list[Told]) -> None:
    """A refusal's body may name limit and window."""
    assert list(told_limits({}, lambda: NOW, json.dumps(body).encode())) == told


@given(
    st.dictionaries(
        st.sampled_from(["RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "X-RateLimit-Reset", "Date"]),
        st.text(st.sampled_from('0129.,;=wqrt" limitremaining'), max_size=30),
    ),
    st.binary(max_size=20),
)
def test_nonsense_is_passed_over(headers: dict[str, str], body: bytes) -> None:
    """No header and no body, however broken, raises anything."""
    for told in told_limits(headers, lambda: NOW, body):
        assert told.reset is None or told.reset >= 0
