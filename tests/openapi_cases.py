"""The contract's OpenAPI document held against the emulator, over real sockets and on the real clock.

The document stays as it is. Where it says in prose what its schema cannot carry, the test adds that to what it
generates: `x-required-in-practice` becomes `required`, and a `uri` is an http(s) address. One deviation is the
service's own and not a fault of the emulator: a missing field or a wrong type is code 500 on createTask.

emulator/test_openapi.py runs it.
"""

import asyncio
import threading
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from schemathesis import openapi
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi import checks

from flux2_async.emulator import Emulator, Script

DOCUMENT = Path(__file__).parent / "openapi.yaml"
HEADERS = {"Authorization": "Bearer emulator-key"}
CREATE = "/api/v1/jobs/createTask"
STREAM = "/api/file-stream-upload"

# Nothing listens there: a fetch ends at once, without the internet.
ADDRESSES = ("http://127.0.0.1:9/a.png", "http://127.0.0.1:9/b%20c.webp?x=1", "http://localhost:9/")

openapi.format("uri", st.sampled_from(ADDRESSES))


def document() -> dict[str, Any]:
    tree: dict[str, Any] = deepcopy(dict(openapi.from_path(DOCUMENT).raw_schema))
    for schema in tree["components"]["schemas"].values():
        schema.setdefault("required", []).extend(schema.get("x-required-in-practice", ()))
        if not schema["required"]:
            del schema["required"]
    return tree


class Service:
    """An emulator in a thread of its own."""

    def __init__(self, style: Literal["body", "http"]) -> None:
        self._script = Script(error_style=style, credits=1e9, render=False)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Emulator:
        self._thread.start()
        assert self._ready.wait(10)
        return self._emulator

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        async with Emulator(self._script) as self._emulator:
            self._ready.set()
            await self._over.wait()


@pytest.fixture(scope="module")
def honest() -> Iterator[Emulator]:
    """Answers refusals with their real HTTP status."""
    with Service("http") as emulator:
        yield emulator


@pytest.fixture(scope="module")
def upstream() -> Iterator[Emulator]:
    """Answers everything with HTTP 200."""
    with Service("body") as emulator:
        yield emulator


schema = openapi.from_dict(document())
# The border cases of every field are asked for once; here only the form of a refusal is in question.
brief = openapi.from_dict(document())
brief.config.phases.coverage.enabled = False

bounded = settings(
    max_examples=5,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)


def call(case: "schemathesis.Case[Any]", emulator: Emulator) -> schemathesis.Response:
    base = emulator.upload_url if case.path.startswith("/api/file-") else emulator.base_url
    # An expectation that no server knows is refused by aiohttp, before anything of ours sees the call.
    case.headers.pop("Expect", None)
    return case.call(base_url=base, headers=HEADERS, timeout=10)


def body_of(response: schemathesis.Response) -> dict[str, Any]:
    body = response.json()
    assert isinstance(body, dict)
    return body


@schema.parametrize()
@bounded
def test_statuses_and_bodies_are_as_documented(case: "schemathesis.Case[Any]", honest: Emulator) -> None:
    """With real statuses: every answer fits its schema, good requests are taken, bad ones are refused."""
    response = call(case, honest)
    excluded: list[CheckFunction] = [not_a_server_error]
    if case.path != CREATE:
        # A task that does not exist and an address that cannot be fetched are refused, however well formed.
        excluded.append(checks.positive_data_acceptance)
    if case.path == STREAM:
        # A field of a form is text: what was meant as `false` arrives as the word, which is a good folder name.
        excluded.append(checks.negative_data_rejection)
    case.validate_response(response, excluded_checks=excluded, headers=HEADERS)

    body = body_of(response)
    assert body["code"] == response.status_code
    if response.status_code >= 500:
        assert case.path == CREATE
        assert body["msg"] == "This field is required" or " it must be " in body["msg"]


@brief.parametrize()
@bounded
def test_refusals_under_http_200_fit_the_envelope(case: "schemathesis.Case[Any]", upstream: Emulator) -> None:
    """In upstream's style an endpoint's status is always 200, and the body fits the schema whatever it says."""
    response = call(case, upstream)
    body = body_of(response)

    assert response.status_code == (200 if case.method.upper() == case.operation.method.upper() else 405)
    assert isinstance(body["code"], int)
    if case.path.startswith("/api/file-") and body["code"] != 200:
        # The document has the envelope of a refused upload under the other statuses only.
        assert (set(body), body["success"]) == ({"success", "code", "msg"}, False)
    else:
        case.validate_response(response, checks=[checks.response_schema_conformance, checks.content_type_conformance])
