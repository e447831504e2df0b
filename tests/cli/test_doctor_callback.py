"""`flux2 doctor --callback-url`: what it finds out about the way of callbacks, over real sockets."""

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme
from aiohttp import web
from callback_receivers import PATH, RECEIVERS, SECRET, Target, settings
from emulated import free_port

from flux2_async.cli.app import run
from flux2_async.cli.doctor import Check, callback_checks
from flux2_async.session.callback_settings import VARIABLE

pytestmark = pytest.mark.real_time

OUTSIDE = "https://api.apikley.ru"


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment has the receivers' secret."""
    monkeypatch.setenv(VARIABLE, SECRET.decode())


async def found(url: str) -> Check:
    """What the call itself tells."""
    checks = [check async for check in callback_checks(url, OUTSIDE)]
    assert checks[0].detail == "127.0.0.1 is an address of this machine alone"
    assert (checks[-1].name, checks[-1].ok, checks[-1].known) == ("outside", True, False)
    assert "only a callback proves" in checks[-1].detail
    [check] = checks[1:-1]
    assert "sig=" not in repr(check)
    return check


@asynccontextmanager
async def answering(status: int, text: str = "", tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Something else that answers there; gives its address."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers={"Location": "/flux2/callback/?sig=word"})

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}/flux2/callback"
    await runner.cleanup()


@pytest.mark.parametrize("receiver", RECEIVERS)
async def test_a_receiver_that_takes_the_signature(receiver: str) -> None:
    """Every receiver is recognised, with a service's key as well, and hears of no callback."""
    for hmac_key in (None, "a key"):
        target = Target(settings=settings(hmac_key))
        async with RECEIVERS[receiver](target) as port:
            check = await found(f"http://127.0.0.1:{port}{PATH}")

        assert check == Check("callback", "a receiver answers, and takes the signature")
        assert target.delivered == []


async def test_another_secret_and_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong secret is told; without one a refusal is what a receiver should answer."""
    async with RECEIVERS["serve"](Target()) as port:
        monkeypatch.setenv(VARIABLE, "another")
        check = await found(f"http://127.0.0.1:{port}{PATH}")
        assert (check.ok, check.detail) == (False, "a receiver answers, and refuses the signature")
        monkeypatch.delenv(VARIABLE)
        check = await found(f"http://127.0.0.1:{port}{PATH}")
        assert check.ok
        assert "refuses what is not signed" in check.detail


async def test_a_mount_that_redirects() -> None:
    """The address without its slash is told, with the one to give, and nothing is followed."""
    async with RECEIVERS["starlette"](Target()) as port:
        check = await found(f"http://127.0.0.1:{port}{PATH.rstrip('/')}")

    assert check.detail == f"it redirects to http://127.0.0.1:{port}{PATH} (HTTP 307)"
    assert "follows none" in check.advice


@pytest.mark.parametrize(
    ("status", "text", "word"),
    [
        (404, "<html>", "mount the receiver at this path"),
        (405, "", "takes no POST"),
        (403, "forbidden", "let POSTs through"),
        (401, "<html>login", "lead to the receiver"),
        (400, '{"error": "no"}', "lead to the receiver"),
        (200, "ok", "lead to the receiver"),
        (502, "<html>", "lead to the receiver"),
        (503, "", "open the session"),
    ],
)
async def test_what_is_no_receiver(status: int, text: str, word: str) -> None:
    """Whatever else answers is told by its status, with what to do."""
    async with answering(status, text) as url:
        check = await found(url)

    assert f"HTTP {status}" in check.detail
    assert word in check.advice


async def test_a_certificate_that_nobody_trusts() -> None:
    """TLS errors are told as such."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with answering(200, tls=context) as url:
        check = await found(url)

    assert "certificate is not trusted" in check.detail
    assert not check.ok


async def test_nobody_there() -> None:
    """Where nobody listens, that is said."""
    assert "the connection was refused" in (await found(f"http://127.0.0.1:{free_port()}{PATH}")).detail


@pytest.mark.parametrize("url", ["app.example/x", "https://app.example/?sig=1", "ftp://app.example/"])
async def test_what_is_no_address(url: str) -> None:
    """It is told without a call."""
    [check] = [check async for check in callback_checks(url, OUTSIDE)]

    assert not check.ok


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`flux2 doctor --callback-url` shows these checks with the others."""
    for name in ("APIKLEY_BASE_URL", "APIKLEY_UPLOAD_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert run(["doctor", "--json", "--callback-url", f"http://127.0.0.1:{free_port()}{PATH}"]) == 1
    names = [check["name"] for check in json.loads(capsys.readouterr().out)["checks"]]

    assert names[-2:] == ["clock", "callback"]


@pytest.mark.parametrize(
    ("service", "callback", "inside"),
    [
        ("http://127.0.0.1:8765", "localhost", False),
        ("http://localhost:8765", "127.0.0.1", False),
        ("http://emulator.localhost", "app.internal", False),
        ("http://10.0.0.5", "10.0.0.6", False),
        ("http://10.0.0.5", "localhost", True),
        (OUTSIDE, "10.0.0.6", True),
        (OUTSIDE, "[::1]", True),
    ],
)
async def test_an_inside_address_is_right_where_the_service_is_inside(
    service: str, callback: str, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside an emulator on this machine an address of this machine is no failure, and nothing is left to be proven."""

    async def answer(*_: object, **__: object) -> Check:
        return Check("callback", "a receiver answers")

    monkeypatch.setattr("flux2_async.cli.doctor._call", answer)
    checks = [check async for check in callback_checks(f"http://{callback}:8000{PATH}", service)]

    assert any("give one that the service reaches" in check.advice for check in checks) == inside
    outside = any(check.name == "outside" for check in checks)
    assert outside == (not service.startswith(("http://127", "http://localhost", "http://emulator")))
    assert len(checks) == 1 + inside + outside


def test_what_cannot_be_known_is_a_note(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """To people it is neither in order nor a failure."""
    for name in ("APIKLEY_BASE_URL", "APIKLEY_UPLOAD_URL"):
        monkeypatch.setenv(name, "https://service.invalid")
    run(["doctor", "--callback-url", f"http://127.0.0.1:{free_port()}{PATH}"])
    assert "note   outside  whether the service reaches it" in capsys.readouterr().out
