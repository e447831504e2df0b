"""One request, one answer, and what each means for the money, over real sockets."""

import asyncio
import gc
import gzip
import inspect
import logging
import socket
import ssl
import struct
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from emulated import REQUEST
from raw_server import HANG, RawServer, answer, raw_server
from service_calls import BODY, KEY, create, transport_to, upload_url_of

from flux2_async._http import borrowed, credentials, exchange, failures
from flux2_async.errors import (
    AmbiguousSubmitError,
    ApiError,
    AuthenticationError,
    ConfigurationError,
    FeatureDisabledError,
    Flux2Error,
    InsufficientCreditsError,
    MaintenanceError,
    NotFoundError,
    RateLimitedError,
    RequestRejectedError,
    TransportError,
)
from flux2_async.models import Timeouts

TASK_ID = "task_flux-2_1765175331507"
ACCEPTED = answer(200, {"code": 200, "msg": "success", "data": {"taskId": TASK_ID}})


async def outcome_of(answer_bytes: bytes) -> tuple[str | Flux2Error, RawServer]:
    async with raw_server([answer_bytes]) as server, transport_to(server.url) as transport:
        try:
            return await create(transport), server
        except Flux2Error as error:
            return error, server


def envelope(code: object, message: str = "words", data: object = None) -> dict[str, Any]:
    return {"code": code, "msg": message, "data": data}


async def test_accepted() -> None:
    """An accepted task gives its id; the request carries key, type and body."""
    outcome, server = await outcome_of(ACCEPTED)

    assert outcome == TASK_ID
    assert server.requests[0].startswith(b"POST /api/v1/jobs/createTask HTTP/1.1\r\n")
    assert server.header("Authorization") == f"Bearer {KEY}"
    assert server.header("Content-Type") == "application/json"
    assert str(server.header("User-Agent")).startswith("flux2-async/")
    assert server.requests[0].endswith(BODY)


@pytest.mark.parametrize(
    "reply",
    [
        answer(500, envelope(500, data={"taskId": TASK_ID})),
        answer(429, envelope(429, data={"taskId": TASK_ID})),
        answer(200, envelope("200", data={"taskId": TASK_ID})),
        answer(200, b'{"code":200,"data":{"taskId":"' + TASK_ID.encode() + b'"},"msg":"su', length=500),
    ],
    ids=["http 500", "http 429", "code as text", "cut behind the id"],
)
async def test_a_task_id_wins(reply: bytes) -> None:
    """Wherever a task id is in the answer, the task was accepted."""
    assert (await outcome_of(reply))[0] == TASK_ID


@pytest.mark.parametrize(
    ("reply", "kind", "code"),
    [
        (answer(200, envelope(401)), AuthenticationError, 401),
        (answer(200, envelope(402)), InsufficientCreditsError, 402),
        (answer(402, envelope(402)), InsufficientCreditsError, 402),
        (answer(200, envelope(500)), RequestRejectedError, 500),
        (answer(422, envelope(500)), RequestRejectedError, 500),
        (answer(409, envelope(402)), InsufficientCreditsError, 402),
        (answer(503, envelope(455)), MaintenanceError, 455),
        (answer(500, envelope(505)), FeatureDisabledError, 505),
        (answer(500, envelope(429)), RateLimitedError, 429),
        (answer(200, envelope("429")), RateLimitedError, 429),
        (answer(429, b"<html>slow down</html>"), RateLimitedError, 429),
        (answer(430, b""), RateLimitedError, 430),
        (answer(401, b"no"), AuthenticationError, 401),
        (answer(404, b"<html>nothing here</html>"), NotFoundError, 404),
        (answer(308, b"", "Location: https://elsewhere.example/\r\n"), ApiError, 308),
        (answer(403, {"message": "Forbidden"}), ApiError, 403),
    ],
)
async def test_refused(reply: bytes, kind: type[ApiError], code: int) -> None:
    """A refusal is certain where the answer's code, or a 3xx or 4xx without one, says so."""
    outcome, server = await outcome_of(reply)

    assert type(outcome) is kind
    assert isinstance(outcome, ApiError)
    assert outcome.code == code
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "http_status"),
    [
        (answer(200, envelope(200)), 200),
        (answer(200, envelope(200, data={"taskId": ""})), 200),
        (answer(200, envelope(202)), 200),
        (answer(200, b"<html>welcome</html>"), 200),
        (answer(200, b""), 200),
        (answer(204, b""), 204),
        (answer(200, envelope(0)), 200),
        (answer(200, envelope(504)), 200),
        (answer(200, envelope(500, "Server exception")), 200),
        (answer(302, b""), 302),
        (answer(408, b"time-out"), 408),
        (answer(408, envelope(408)), 408),
        (answer(408, envelope(422)), 408),
        (answer(500, envelope(402)), 500),
        (answer(524, envelope(524)), 524),
        (answer(499, b"closed"), 499),
        (answer(500, b"<html>oops</html>"), 500),
        (answer(502, b"<html>bad gateway</html>"), 502),
        (answer(500, envelope(500)), 500),
        (answer(503, envelope(501)), 503),
        (answer(502, envelope("504")), 502),
        (answer(599, b""), 599),
        (answer(200, b'{"code":200,"data":{"taskId":"task_fl', length=500), None),
        (answer(500, b'{"code":402,', length=500), None),
        (b"", None),
        (b"HTTP/1.1 200 O", None),
        (b"what is this\r\n\r\n", None),
        (HANG, None),
        (answer(200, b"x" * (exchange.MAX_REPLY + 1)), None),
    ],
)
async def test_ambiguous(reply: bytes, http_status: int | None) -> None:
    """Everything else may have made a task: the error names request and ref, and nothing is sent again."""
    outcome, server = await outcome_of(reply)

    assert isinstance(outcome, AmbiguousSubmitError)
    assert (outcome.request, outcome.ref, outcome.http_status) == (REQUEST, "our-ref", http_status)
    assert len(server.requests) == 1


async def test_nobody_listens() -> None:
    """A refused connection is certainly not sent."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with transport_to(f"http://127.0.0.1:{unused.getsockname()[1]}") as transport:
            with pytest.raises(TransportError) as caught:
                await create(transport)

    assert caught.value.never_sent


async def test_no_connection_in_time() -> None:
    """A connection that is not made in time is certainly not sent."""
    with socket.socket() as busy, socket.socket() as first, socket.socket() as second:
        busy.bind(("127.0.0.1", 0))
        # A full queue of connections lets the next one hang.
        busy.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(busy.getsockname())
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with transport_to(f"http://127.0.0.1:{busy.getsockname()[1]}") as transport:
            with pytest.raises(TransportError) as caught:
                await create(transport)

    assert caught.value.never_sent
    assert "within 10 s" in str(caught.value)
    assert loop.time() - begun == pytest.approx(Timeouts().connect, abs=1)


async def test_certificate_not_trusted() -> None:
    """A server whose certificate is not trusted gets no request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with raw_server([ACCEPTED], tls=context) as server, transport_to(server.url) as transport:
        with pytest.raises(TransportError, match="certificate") as caught:
            await create(transport)

    assert caught.value.never_sent
    assert server.requests == []


async def test_borrowed_tls_settings_hold_for_create_task() -> None:
    """A session that trusts a private authority is followed by createTask's own connections."""
    authority = trustme.CA()
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    authority.configure_trust(client_side)
    async with (
        raw_server([ACCEPTED], tls=server_side) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_side)) as http,
        transport_to(server.url, http) as transport,
    ):
        assert await create(transport) == TASK_ID


class Hosts(AbstractResolver):
    """Knows one host, as a company's resolver knows those that public ones do not."""

    closed = False

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        assert (host, family) == ("api.inside", socket.AF_INET)
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": family, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        self.closed = True


async def test_the_way_of_a_borrowed_session_holds_for_create_task() -> None:
    """Resolver, local address, address family and socket factory of a borrowed session lead createTask as well."""
    hosts, made = Hosts(), []

    def make(address: tuple[Any, ...]) -> socket.socket:
        made.append(socket.socket(*address[:3]))
        return made[-1]

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        local = probe.getsockname()
    async with raw_server([ACCEPTED]) as server:
        connector = aiohttp.TCPConnector(
            resolver=hosts, local_addr=local, family=socket.AF_INET, socket_factory=make, use_dns_cache=False
        )
        async with aiohttp.ClientSession(connector=connector) as http:
            async with transport_to(f"http://api.inside:{server.port}", http) as transport:
                assert await create(transport) == TASK_ID

    assert ([each.family for each in made], server.clients) == ([socket.AF_INET], [local])
    assert not hosts.closed


# How many connections there are and how long they live, and what is an older word for `ssl`.
NO_WAY = {
    *("keepalive_timeout", "force_close", "limit", "limit_per_host", "enable_cleanup_closed", "timeout_ceil_threshold"),
    *(
        "loop",
        "ttl_dns_cache",
        "dns_cache_max_size",
        "ssl_shutdown_timeout",
        "verify_ssl",
        "fingerprint",
        "ssl_context",
    ),
}


@pytest.mark.parametrize("local", [None, ("127.0.0.1", 0), ("::1", 0, 0, 1)])
async def test_every_setting_of_a_way_is_taken_over(local: Any) -> None:
    """What aiohttp lets a connector decide of its connections' way is the same for createTask; and it has no more."""
    way: dict[str, Any] = {
        "ssl": False,
        "family": socket.AF_INET6,
        "resolver": Hosts(),
        "use_dns_cache": False,
        "happy_eyeballs_delay": None,
        "interleave": 3,
        "socket_factory": lambda address: socket.socket(*address[:3]),
    }
    assert way.keys() == set(borrowed.ROUTE)
    assert set(inspect.signature(aiohttp.TCPConnector).parameters) - NO_WAY == {*way, "local_addr"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(**way, local_addr=local)) as http:
        async with borrowed.make_connector(http, None) as connector:
            ours, theirs = vars(connector), vars(http.connector)
            names = [*(f"_{name}" for name in borrowed.ROUTE), "_local_addr_infos"]
            assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}


@pytest.mark.parametrize("refusal", [answer(407, b""), answer(502, b"")])
async def test_proxy_refuses(refusal: bytes) -> None:
    """A proxy that refuses CONNECT got no request of ours, so it is certainly not sent."""
    async with (
        raw_server([refusal]) as proxy,
        aiohttp.ClientSession(proxy=proxy.url) as http,
        transport_to("https://api.example", http) as transport,
    ):
        with pytest.raises(TransportError, match=r"the proxy refused the connection with HTTP [45]0[27]") as caught:
            await create(transport)

    assert caught.value.never_sent
    assert ("password" in str(caught.value)) == (b"407" in refusal)
    assert proxy.requests[0].startswith(b"CONNECT api.example:443")
    assert proxy.header("Authorization") is None


async def test_borrowed_proxy_holds_for_create_task() -> None:
    """The proxy of a borrowed session carries createTask as well."""
    async with (
        raw_server([ACCEPTED]) as proxy,
        aiohttp.ClientSession(proxy=proxy.url) as http,
        transport_to("http://api.example", http) as transport,
    ):
        assert await create(transport) == TASK_ID
    assert proxy.requests[0].startswith(b"POST http://api.example/api/v1/jobs/createTask")


async def test_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`trust_env` of a borrowed session holds for createTask; without one the environment is not read."""
    async with raw_server([ACCEPTED]) as proxy, raw_server([ACCEPTED]) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        async with transport_to(server.url) as transport:
            await create(transport)
        async with aiohttp.ClientSession(trust_env=True) as http, transport_to(server.url, http) as transport:
            await create(transport)

        assert (len(server.requests), len(proxy.requests)) == (1, 1)


async def test_create_task_has_connections_of_its_own() -> None:
    """A borrowed session carries the other calls and never createTask; it stays open."""
    ok = answer(200, envelope(200, data=5))
    async with raw_server([ok, ACCEPTED, ok]) as server, aiohttp.ClientSession() as http:
        async with transport_to(server.url, http) as transport:
            await transport.call("GET", "/api/v1/chat/credit")
            await create(transport)
            await transport.call("GET", "/api/v1/chat/credit")

        assert server.connections == 2
        assert not http.closed


async def test_borrowed_session_closed_meanwhile() -> None:
    """A borrowed session that its owner closed is a clear error."""
    http = aiohttp.ClientSession()
    async with transport_to("http://127.0.0.1:1", http) as transport:
        await http.close()
        with pytest.raises(TransportError, match="was closed"):
            await transport.call("GET", "/api/v1/chat/credit")


async def test_interfering_session_options_are_overruled() -> None:
    """Middlewares and `raise_for_status` of a borrowed session reach none of our calls."""

    async def resend(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        await handler(request)
        return await handler(request)

    async with (
        raw_server([answer(402, envelope(402))]) as server,
        aiohttp.ClientSession(middlewares=(resend,), raise_for_status=True) as http,
        transport_to(server.url, http) as transport,
    ):
        reply = await transport.call("GET", "/api/v1/chat/credit")
        with pytest.raises(InsufficientCreditsError):
            await create(transport)

    assert reply.status == 402
    assert len(server.requests) == 2


async def test_a_trace_that_raises_spoils_a_look_and_no_createtask() -> None:
    """A failing trace of a borrowed session makes a look fail; createTask is none of its business."""

    async def fail(*_: object) -> None:
        raise RuntimeError(KEY)

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(fail)
    async with (
        raw_server([ACCEPTED]) as server,
        aiohttp.ClientSession(trace_configs=[trace]) as http,
        transport_to(server.url, http) as transport,
    ):
        assert await create(transport) == TASK_ID
        with pytest.raises(TransportError, match="RuntimeError") as looked:
            await transport.call("GET", "/api/v1/chat/credit")

    assert not looked.value.never_sent
    assert KEY not in str(looked.value)


async def test_no_call_follows_a_redirect() -> None:
    """The key follows no redirect."""
    async with raw_server([ACCEPTED]) as elsewhere:
        redirect = answer(307, b"", f"Location: {elsewhere.url}/\r\n")
        async with raw_server([redirect]) as server, transport_to(server.url) as transport:
            with pytest.raises(ApiError):
                await create(transport)
            assert (await transport.call("GET", "/api/v1/chat/credit")).status == 307

        assert elsewhere.requests == []


async def test_download_without_the_key() -> None:
    """A file is fetched, over redirects, without the key and as it is stored."""
    async with raw_server([answer(200, b"picture")]) as files:
        redirect = answer(302, b"", f"Location: {files.url}/a.png\r\n")
        async with raw_server([redirect]) as server, transport_to(server.url) as transport:
            async with transport.files.get(f"{server.url}/x", {"Range": "bytes=0-"}) as reply:
                content = b"".join([chunk async for chunk in reply.chunks()])

    assert (reply.status, content) == (200, b"picture")
    for each in (server, files):
        assert each.header("Authorization") is None
        assert each.header("Accept-Encoding") == "identity"
        assert each.header("Range") == "bytes=0-"


@pytest.mark.parametrize("reply", [b"", answer(200, b"pict", length=7)])
async def test_download_that_breaks(reply: bytes) -> None:
    """A file that does not arrive whole is a transport error."""
    async with raw_server([reply]) as server, transport_to(server.url) as transport:
        with pytest.raises(TransportError):
            async with transport.files.get(f"{server.url}/x", {}) as file:
                async for _ in file.chunks():
                    pass


async def test_calls_end_in_time() -> None:
    """A service that never answers costs `record` seconds for a look and `submit` for createTask."""
    loop = asyncio.get_running_loop()
    async with raw_server([HANG]) as server, transport_to(server.url) as transport:
        begun = loop.time()
        with pytest.raises(TransportError, match="no complete answer came within 30 s"):
            await transport.call("GET", "/api/v1/chat/credit")
        looked = loop.time()
        with pytest.raises(AmbiguousSubmitError, match="no complete answer came within 60 s"):
            await create(transport)

    assert looked - begun == pytest.approx(30, abs=1)
    assert loop.time() - looked == pytest.approx(60, abs=1)


def all_client_errors() -> list[type[BaseException]]:
    classes = {value for _, value in inspect.getmembers(aiohttp.client_exceptions, inspect.isclass)}
    classes |= {value for _, value in inspect.getmembers(aiohttp, inspect.isclass)}
    return sorted((each for each in classes if issubclass(each, aiohttp.ClientError)), key=lambda each: each.__name__)


@pytest.mark.parametrize("kind", [*all_client_errors(), TimeoutError, OSError, ConnectionResetError, ValueError])
def test_every_error_is_mapped(kind: type[BaseException]) -> None:
    """Each error of aiohttp has a row of its own or of its nearest base."""
    error = kind.__new__(kind)
    assert isinstance(error, Exception)

    assert "host.example" in failures.failure_text(error, "host.example")
    if kind is not aiohttp.ClientError:
        assert any(issubclass(kind, row) for row in failures.FAILURES if row is not aiohttp.ClientError) or kind in {
            aiohttp.RedirectClientError,
            getattr(aiohttp, "UploadAbortedError", None),
        }


def test_rows_are_reachable() -> None:
    """No row of the table stands behind a base that would win first."""
    rows = list(failures.FAILURES)
    for number, row in enumerate(rows):
        assert not [base for base in rows[:number] if issubclass(row, base)]


async def test_a_server_that_quotes_the_key() -> None:
    """A key that the server repeats in its text does not come out in an error."""
    outcome, _ = await outcome_of(answer(401, envelope(401, f"wrong key {KEY}")))

    assert isinstance(outcome, AuthenticationError)
    assert KEY not in str(outcome) + outcome.message
    assert "wrong key <redacted>" in outcome.message


async def test_nothing_of_aiohttp_and_no_secret_leaves(caplog: pytest.LogCaptureFixture) -> None:
    """No error has one of aiohttp as cause or context, and none shows the key or the prompt."""
    caplog.set_level(logging.DEBUG)
    for reply in (b"", HANG, answer(401, envelope(401)), answer(500, b"<html>"), answer(200, b"x", length=9)):
        error, _ = await outcome_of(reply)
        assert isinstance(error, Flux2Error)
        assert error.__cause__ is None
        assert not isinstance(error.__context__, aiohttp.ClientError | TimeoutError)
        assert KEY not in repr(error) + str(vars(error)) + caplog.text
        assert "kettle" not in repr(error) + caplog.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("", "https://a.example", "https://a.example/u"), "APIKLEY_API_KEY"),
        ((None, "https://a.example", "https://a.example/u"), "APIKLEY_API_KEY"),
        (("two words", "https://a.example", "https://a.example/u"), "api_key"),
        (("two\nlines", "https://a.example", "https://a.example/u"), "line break"),
        (("key", "a.example", "https://a.example/u"), "base_url"),
        (("key", "ftp://a.example", "https://a.example/u"), "base_url"),
        (("key", "https://", "https://a.example/u"), "base_url"),
        (("key", "https://a.example:x", "https://a.example/u"), "base_url"),
        (("key", "https://me:pass@a.example", "https://a.example/u"), "user name"),
        (("key", "me:pass@a.example", "https://a.example/u"), "user name"),
        (("key", "https://a.example?x=1", "https://a.example/u"), "base_url"),
        (("key", 7, "https://a.example/u"), "base_url"),
        (("key", "https://a.example", "nowhere"), "upload_url"),
    ],
)
def test_unusable_credentials(given: tuple[Any, Any, Any], words: str) -> None:
    """A key or an address that cannot work is refused when it is given, and never shown."""
    with pytest.raises(ConfigurationError, match=words) as caught:
        credentials.Credentials(*given)
    assert "two" not in str(caught.value)
    assert "pass@" not in str(caught.value)


async def test_a_borrowed_session_that_does_not_unpack() -> None:
    """Answers are unpacked, whatever the borrowed session does for its owner."""
    packed = answer(200, gzip.compress(b"content"), "Content-Encoding: gzip\r\n")
    async with (
        raw_server([packed]) as server,
        aiohttp.ClientSession(auto_decompress=False) as http,
        transport_to(server.url, http) as transport,
    ):
        reply = await transport.call("GET", "/api/v1/chat/credit")
        async with transport.files.get(f"{server.url}/x", {}) as file:
            content = b"".join([chunk async for chunk in file.chunks()])

    assert reply.body == content == b"content"


async def test_download_after_the_borrowed_session_was_closed() -> None:
    """A borrowed session that its owner closed is a clear error for downloads as well."""
    http = aiohttp.ClientSession()
    async with transport_to("http://127.0.0.1:1", http) as transport:
        await http.close()
        with pytest.raises(TransportError, match="was closed"):
            async with transport.files.get("http://127.0.0.1:1/x", {}):
                pass


async def test_interfering_session_options_do_not_reach_downloads() -> None:
    """Middlewares and `raise_for_status` of a borrowed session leave downloads alone."""
    seen = []

    async def watch(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        seen.append(request)
        return await handler(request)

    async with (
        raw_server([answer(404, b"gone")]) as server,
        aiohttp.ClientSession(middlewares=(watch,), raise_for_status=True) as http,
        transport_to(server.url, http) as transport,
        transport.files.get(f"{server.url}/x", {}) as file,
    ):
        assert file.status == 404
    assert seen == []


@pytest.mark.parametrize(
    "reply",
    [
        answer(200, envelope(429), "Retry-After: 7\r\n"),
        answer(429, b"", "Retry-After: 7\r\n"),
        answer(429, envelope(429, data={"retryAfter": 7})),
        answer(429, b'{"retry_after": "7"}'),
    ],
    ids=["header", "header without JSON", "body", "body without a code"],
)
async def test_retry_after_of_a_refusal(reply: bytes) -> None:
    """A 429 hands on how long the service asks to wait, by the header or in its JSON."""
    outcome, _ = await outcome_of(reply)

    assert isinstance(outcome, RateLimitedError)
    assert outcome.retry_after == 7


async def test_retry_after_as_a_date_without_the_services_clock() -> None:
    """A date alone is held against our clock, rather than ignored."""
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    outcome, _ = await outcome_of(answer(429, envelope(429), f"Retry-After: {until}\r\n"))

    assert isinstance(outcome, RateLimitedError)
    assert outcome.retry_after is not None
    assert 500 < outcome.retry_after < 601


async def test_downloads_show_nothing_of_aiohttp() -> None:
    """What breaks a download, at its head or in its middle, is chained to no error of aiohttp."""
    for reply in (b"", answer(200, b"pict", length=7)):
        async with raw_server([reply]) as server, transport_to(server.url) as transport:
            with pytest.raises(TransportError) as caught:
                async with transport.files.get(f"{server.url}/x", {}) as file:
                    async for _ in file.chunks():
                        pass

        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


async def test_create_task_carries_no_cookies() -> None:
    """What a server or a proxy sets as a cookie is not sent back with the next createTask."""
    set_cookie = answer(200, {"code": 200, "data": {"taskId": TASK_ID}}, "Set-Cookie: a=b\r\n")
    async with raw_server([set_cookie]) as server:
        async with transport_to(server.url.replace("127.0.0.1", "localhost")) as transport:
            await create(transport)
            await create(transport)

        assert server.header("Cookie") is None


def test_upload_address_goes_with_the_base_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base URL that is given takes its own upload URL along, whatever the environment says."""
    monkeypatch.setenv("APIKLEY_BASE_URL", "https://api.example/")
    assert upload_url_of(None) == "https://api.example/file-upload"
    monkeypatch.setenv("APIKLEY_UPLOAD_URL", "https://up.example")
    assert upload_url_of(None) == "https://up.example"
    assert upload_url_of("http://127.0.0.1:8080") == "http://127.0.0.1:8080/file-upload"


def test_credentials_show_no_key() -> None:
    """The key is in no repr."""
    assert KEY not in repr(credentials.Credentials(KEY, "https://a.example", "https://a.example/u"))


@pytest.mark.parametrize("what", ["poll", "upload", "download"])
@pytest.mark.parametrize(
    ("headers", "pieces"),
    [
        ("Transfer-Encoding: chunked", [b"5\r\n[1, 2\r\n", b"no number\r\n"]),
        ("Content-Encoding: deflate\r\nContent-Length: 2", [b"x", b"\x9c"]),
    ],
    ids=["chunks", "packed"],
)
async def test_a_body_that_is_no_http_from_its_middle_on(what: str, headers: str, pieces: list[bytes]) -> None:
    """Whoever reads it, of a server that keeps its end open, hears at once that it broke off."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n".encode())
        for piece in pieces:
            await asyncio.sleep(0.1)
            writer.write(piece)
        await over.wait()

    async def read(transport: Any, url: str) -> None:
        match what:
            case "poll":
                await transport.call("GET", "/jobs/recordInfo")
            case "upload":
                await transport.upload("/api/file-url-upload", b"{}")
            case _:
                async with transport.files.get(url, {}) as file:
                    async for _ in file.chunks():
                        pass

    over = asyncio.Event()
    async with raw_server([reply]) as server, transport_to(server.url) as transport, asyncio.timeout(5):
        with pytest.raises(TransportError, match="broke off"):
            await read(transport, server.url)
        over.set()


async def test_a_kept_connection_that_is_reset_is_nobodys_error(caplog: pytest.LogCaptureFixture) -> None:
    """A connection whose answers came whole may be reset later, and nothing is logged."""
    # What earlier tests left may be told of when it is collected.
    gc.collect()
    caplog.clear()

    async def reply(writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            await asyncio.sleep(0.1)
            writer.write(b"{}")
            await writer.drain()
            await asked.wait()
            asked.clear()
        # Closed so, the system resets it.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    asked = asyncio.Event()
    async with raw_server([reply, answer(200, {})]) as server, transport_to(server.url) as transport:
        for _ in range(3):
            assert (await transport.call("GET", "/chat/credit")).body == b"{}"
            asked.set()
        await asyncio.sleep(1.0)
        await transport.call("GET", "/chat/credit")
        gc.collect()

    assert server.connections == 2
    assert not caplog.records
