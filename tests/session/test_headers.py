"""Headers and words in User-Agent of the caller: where they go, what they outrank, and that nobody sees them."""

import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from emulated import REQUEST, emulated, error_of
from raw_server import answer, raw_server

from flux2_async import Flux2Session, Service
from flux2_async.errors import ConfigurationError, InvalidRequestError, RequestRejectedError

SECRET = "a-secret-of-the-gateway"
REFUSED = answer(422, {"code": 422, "msg": "words", "data": None})


async def test_which_headers_go_with_what() -> None:
    """A call's headers outrank the session's, those the service's, whatever their case; the key stays."""
    async with raw_server([REFUSED]) as server:
        service = Service(base_url=server.url, headers={"X-One": "service", "X-Two": "service", "X-Three": "service"})
        flux = Flux2Session(
            "the-key", service=service, headers={"x-two": "session", "x-three": "session"}, user_agent=" my-shop/1.4 "
        )
        async with flux:
            for call in (flux.submit(REQUEST, headers={"X-THREE": "call"}), flux.submit(REQUEST), flux.credits()):
                assert isinstance(await error_of(call), RequestRejectedError)

        names = ("X-One", "X-Two", "X-Three", "Authorization", "User-Agent")
        agent = server.header("User-Agent", 0) or ""
        assert re.fullmatch(r"flux2-async/[\d.]+ my-shop/1\.4", agent)
        ours = ("Bearer the-key", agent)
        assert [[server.header(name, number) for name in names] for number in range(3)] == [
            ["service", "session", "call", *ours],
            ["service", "session", "session", *ours],
            ["service", "session", "session", *ours],
        ]
        head = server.requests[0].partition(b"\r\n\r\n")[0].lower()
        assert head.count(b"x-three:") == head.count(b"user-agent:") == head.count(b"authorization:") == 1


async def test_hosts_of_files_see_who_asks_and_nothing_else(tmp_path: Path) -> None:
    """A download carries the words of User-Agent, and none of the headers."""
    async with raw_server([answer(404, b"gone")]) as files:
        async with emulated(headers={"X-Gateway": SECRET}, user_agent="my-shop/1.4") as (flux, _):
            result = await flux.generate(REQUEST, headers={"X-Trace": SECRET})
            await error_of(flux.download(attrs.evolve(result, urls=(files.url,)), tmp_path))
        assert re.fullmatch(r"flux2-async/[\d.]+ my-shop/1\.4", files.header("User-Agent", 0) or "")
        assert SECRET.encode() not in b"".join(files.requests)


async def test_every_way_of_submitting_takes_them() -> None:
    """`submit`, `enqueue` and `generate` send headers with the createTask of this request, and check them at once."""
    async with raw_server([REFUSED]) as server, Flux2Session("the-key", base_url=server.url) as flux:
        for number, name in enumerate(("submit", "enqueue", "generate")):
            call: Any = getattr(flux, name)
            assert isinstance(await error_of(call(REQUEST, headers={"X-Trace": name})), RequestRejectedError)
            assert server.header("X-Trace", number) == name
            for wrong in ({"Authorization": SECRET}, {"X-A": f"{SECRET}\n"}, [SECRET]):
                with pytest.raises(InvalidRequestError, match=r"^headers: ") as caught:
                    await call(REQUEST, headers=wrong)
                assert SECRET not in str(caught.value) + ours_of(caught.value)
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"headers": {"Authorization": SECRET}}, "headers: Authorization given; the key is given as api_key"),
        ({"headers": {"User-Agent": SECRET}}, "words behind ours: user_agent="),
        ({"headers": {"X-A": 7}}, "the value of X-A must be text"),
        ({"headers": SECRET}, "headers: str given"),
        ({"user_agent": "my\nshop"}, "user_agent: it must be text of printable ASCII"),
        ({"user_agent": " "}, "user_agent"),
        ({"user_agent": 7}, "user_agent"),
    ],
)
def test_unusable_settings(options: dict[str, Any], words: str) -> None:
    """What cannot be sent is refused when the session is made, and its value is not shown."""
    make: Any = Flux2Session
    with pytest.raises(ConfigurationError, match=words) as caught:
        make("the-key", **options)
    assert SECRET not in str(caught.value) + ours_of(caught.value)


async def test_no_secret_in_errors_and_reprs(caplog: pytest.LogCaptureFixture) -> None:
    """Neither what fails on the way nor the session itself shows a header's value."""
    async with raw_server([b""]) as server:
        flux = Flux2Session("the-key", base_url=server.url, headers={"X-Gateway": SECRET})
        async with flux:
            handle = flux.enqueue(REQUEST, headers={"X-Trace": SECRET})
            error = await error_of(handle)
            shown = repr(flux) + repr(handle) + repr(error) + str(vars(error)) + caplog.text
    assert SECRET not in shown + ours_of(error)


def ours_of(error: BaseException) -> str:
    """The local variables of all frames but this file's, dictionaries and lists opened."""
    found, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename != __file__:
            found += repr(trace.tb_frame.f_locals)
        trace = trace.tb_next
    return found
