"""Files from any host: as their addresses were given, and not out of a private network that a public host points at."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from emulated import session_for
from file_host import names, picture, result_of
from raw_server import RawServer, answer, raw_server

from flux2_async._http.file_transport import FileTransport
from flux2_async.emulator import Emulator
from flux2_async.errors import ConfigurationError, Flux2Error, TransportError
from flux2_async.models import Timeouts

OK = answer(200, b"picture")


class Rerouted(socket.socket):
    """A socket that thinks it has reached the address it was given, and has reached this machine."""

    def connect(self, address: Any) -> None:
        super().connect(("127.0.0.1", address[1]))


class Names(AbstractResolver):
    """Knows two hosts."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        numbers = {"public.example": ["8.8.8.8"], "inner.example": ["10.0.0.1", "192.168.0.1"]}[host]
        return [
            {"hostname": host, "host": number, "port": port, "family": family, "proto": 0, "flags": 0}
            for number in numbers
        ]

    async def close(self) -> None:
        pass


def in_the_internet(**options: Any) -> aiohttp.ClientSession:
    """A session for which every address leads to this machine."""
    connector = aiohttp.TCPConnector(
        resolver=Names(), socket_factory=lambda info: Rerouted(info[0], info[1], info[2]), family=socket.AF_INET
    )
    return aiohttp.ClientSession(connector=connector, **options)


@asynccontextmanager
async def transport(
    http: aiohttp.ClientSession | None = None, *, makes_own_way: bool = False, **options: Any
) -> AsyncIterator[FileTransport]:
    async with http or aiohttp.ClientSession() as session:
        files = FileTransport(Timeouts(), **options)
        files.open(session, makes_own_way=makes_own_way)
        try:
            yield files
        finally:
            await files.aclose()


async def fetched(files: FileTransport, url: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    async with files.get(url, headers or {}) as reply:
        return reply.status, b"".join([chunk async for chunk in reply.chunks()])


async def failure_of(files: FileTransport, url: str) -> Flux2Error:
    with pytest.raises(Flux2Error) as caught:
        await fetched(files, url)
    assert caught.value.__context__ is None
    return caught.value


def line(server: RawServer, number: int = -1) -> str:
    """The request line that came."""
    return server.requests[number].partition(b"\r\n")[0].decode()


def to(location: str) -> bytes:
    return answer(302, b"", f"Location: {location}\r\n")


GIVEN = [
    "/a%2Fb%28c%29%7E%27.png",
    "/a%2fb%c3%a9?sig=a%2fb%2Bc",
    "//a///b//",
    "/a(b)~'c!*$,;:@&=+.png?X-Sig=(a)~'b!*$,;:@&=+/?",
    "/a/../b/./c",
    "/a?",
    "/?a=b&&c",
    "/%41%zz%",
    '/a|b"c<d>e\\f^g`h{i}',
]


@pytest.mark.parametrize("target", GIVEN)
async def test_an_address_is_requested_as_it_was_given(target: str) -> None:
    """Byte for byte, since signatures are made over how it is written; a fragment is for the reader only."""
    async with raw_server([OK]) as server, transport() as files:
        assert await fetched(files, f"{server.url}{target}#part") == (200, b"picture")

    assert line(server) == f"GET {target} HTTP/1.1"
    assert server.header("Host") == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize("target", GIVEN)
async def test_a_redirect_is_followed_as_it_was_given(target: str) -> None:
    """A Location is followed byte for byte as well, with the headers of the request."""
    answers = [b"", OK]
    async with raw_server(answers) as server, transport() as files:
        answers[0] = to(f"{server.url}{target}")
        await fetched(files, f"{server.url}/first", {"Range": "bytes=5-"})

    assert line(server) == f"GET {target} HTTP/1.1"
    assert server.header("Range") == "bytes=5-"
    assert (server.header("User-Agent") or "").startswith("flux2-async/")
    assert server.header("Accept-Encoding") == "identity"


async def test_an_address_goes_through_a_proxy_as_it_was_given() -> None:
    """A proxy is told the whole address, and byte for byte."""
    async with raw_server([OK]) as proxy, transport(aiohttp.ClientSession(proxy=proxy.url)) as files:
        for target in GIVEN:
            await fetched(files, f"http://host.example{target}")
            assert line(proxy) == f"GET http://host.example{target} HTTP/1.1"


async def test_what_may_not_stand_in_a_request_line_is_escaped() -> None:
    """Spaces and letters of other scripts, in addresses and in the bytes of a Location."""
    location = "/кот 2".encode() + b"\xe9"
    redirect = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"
    async with raw_server([redirect, OK]) as server, transport() as files:
        await fetched(files, f"{server.url}/bild ü%20")

    assert line(server, 0) == "GET /bild%20%C3%BC%20 HTTP/1.1"
    assert line(server, 1) == "GET /%D0%BA%D0%BE%D1%82%202%E9 HTTP/1.1"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed_five_times(status: int) -> None:
    """A sixth one is an error, and so is an answer that is no redirect for the want of a Location."""
    redirect = answer(status, b"", "Location: b\r\n")
    async with raw_server([redirect] * 5 + [OK]) as server, transport() as files:
        assert (await fetched(files, f"{server.url}/a"))[0] == 200
    async with raw_server([redirect]) as server, transport() as files:
        assert "too many redirects (127.0.0.1)" in str(await failure_of(files, f"{server.url}/a"))
        assert len(server.requests) == 6
    async with raw_server([answer(status, b"")]) as server, transport() as files:
        assert (await fetched(files, server.url))[0] == status


@pytest.mark.parametrize(
    "location", ["ftp://host/a", "javascript:alert(1)", "http:///a", "http://[::1/a", "http://h:x/"]
)
async def test_a_redirect_to_nowhere(location: str) -> None:
    """What leads to no web host is an error that says so."""
    async with raw_server([to(location)]) as server, transport() as files:
        error = await failure_of(files, server.url)

    assert isinstance(error, TransportError)
    assert len(server.requests) == 1


async def test_all_redirects_share_the_time_of_a_download() -> None:
    """A host that redirects slowly has no more time than one that sends slowly."""
    loop = asyncio.get_running_loop()

    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(100.0)
        writer.write(answer(302, b"", "Connection: close\r\nLocation: /\r\n"))
        await writer.drain()

    async with raw_server([slow]) as server, transport() as files:
        begun = loop.time()
        assert "within 300 s" in str(await failure_of(files, server.url))

    assert loop.time() - begun == pytest.approx(Timeouts().download, abs=1.0)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.0.0.1", "169.254.169.254", "inner.example", "0.0.0.0"],  # noqa: S104  as a target
)
async def test_a_public_host_leads_into_no_private_network(host: str) -> None:
    """By number or by name: nothing is even connected, and the error says how to allow it."""
    async with raw_server([OK]) as inner:
        location = f"http://{host}:{inner.port}/secret"
        async with raw_server([to(location)]) as outer, transport(in_the_internet()) as files:
            error = await failure_of(files, f"http://8.8.8.8:{outer.port}/")

    assert isinstance(error, ConfigurationError)
    assert f"a public host redirected to {host}, which is in a private network" in str(error)
    assert "private_downloads=True" in str(error)
    assert len(outer.requests) == 1
    assert (inner.connections, inner.requests) == (0, [])


async def test_not_even_on_a_way_round() -> None:
    """A private address at the end of several public ones is as private."""
    async with raw_server([OK]) as inner, AsyncExitStack() as stack:
        last = await stack.enter_async_context(raw_server([to(f"http://10.0.0.1:{inner.port}/")]))
        middle = await stack.enter_async_context(raw_server([to(f"http://public.example:{last.port}/")]))
        first = await stack.enter_async_context(raw_server([to(f"http://9.9.9.9:{middle.port}/")]))
        files = await stack.enter_async_context(transport(in_the_internet()))
        assert isinstance(await failure_of(files, f"http://127.0.0.1:{first.port}/"), ConfigurationError)

    assert [len(each.requests) for each in (first, middle, last, inner)] == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("given", "location"),
    [
        ("8.8.8.8", "9.9.9.9"),
        ("8.8.8.8", "public.example"),
        ("127.0.0.1", "10.0.0.1"),
        ("127.0.0.1", "9.9.9.9"),
        ("10.0.0.1", "inner.example"),
    ],
)
async def test_other_redirects_are_followed(given: str, location: str) -> None:
    """From public to public, and from a private host that the service itself named to wherever it leads."""
    async with raw_server([OK]) as target:
        redirect = to(f"http://{location}:{target.port}/a%2Fb")
        async with raw_server([redirect]) as first, transport(in_the_internet()) as files:
            assert await fetched(files, f"http://{given}:{first.port}/") == (200, b"picture")

    assert line(target) == "GET /a%2Fb HTTP/1.1"


async def test_a_private_network_can_be_allowed() -> None:
    """For those whose files lie behind a public gateway of their own."""
    async with raw_server([OK]) as inner, raw_server([to(f"http://10.0.0.1:{inner.port}/")]) as outer:
        async with transport(in_the_internet(), private=True) as files:
            assert (await fetched(files, f"http://8.8.8.8:{outer.port}/"))[0] == 200


@pytest.mark.parametrize("way", ["proxy", "environment", "connector"])
@pytest.mark.parametrize(
    ("location", "refused"),
    [
        ("10.0.0.1", True),
        ("localhost", True),
        ("2130706433", True),
        ("router.lan", True),
        ("9.9.9.9", False),
        ("public.example", False),
    ],
)
async def test_behind_a_proxy_what_is_written_counts(
    way: str,
    location: str,
    refused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it connects to is not seen from here: what is written as private is refused, and nothing else."""
    answers = [b"", OK]
    async with raw_server(answers) as server:
        answers[0] = to(f"http://{location}:{server.port}/b")
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.setenv("no_proxy", "")
        ways: dict[str, dict[str, Any]] = {"proxy": {"proxy": server.url}, "environment": {"trust_env": True}}
        async with transport(in_the_internet(**ways.get(way, {})), makes_own_way=way == "connector") as files:
            url = f"http://8.8.8.8:{server.port}/a"
            if refused:
                assert isinstance(await failure_of(files, url), ConfigurationError)
            else:
                assert (await fetched(files, url))[0] == 200

    assert len(server.requests) == (1 if refused else 2)


async def test_nothing_is_left_open(recwarn: pytest.WarningsRecorder) -> None:
    """Closing closes the connections of redirects as well; afterwards nothing is fetched."""
    # What earlier tests left may be warned of when it is collected.
    gc.collect()
    recwarn.clear()
    async with raw_server([OK]) as target, raw_server([to(f"http://9.9.9.9:{target.port}/")]) as first:
        async with in_the_internet() as http:
            files = FileTransport(Timeouts())
            files.open(http)
            await fetched(files, f"http://8.8.8.8:{first.port}/")
            await files.aclose()
            assert not http.closed
            assert "the session was closed" in str(await failure_of(files, f"http://8.8.8.8:{first.port}/"))

    # aiohttp warns of a session that nobody closed when it is forgotten.
    del files
    gc.collect()
    assert len(target.requests) == 1
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("allowed", [True, False])
async def test_downloads_of_a_session(tmp_path: Path, *, allowed: bool) -> None:
    """`private_downloads` says it for the whole session; a refusal is told at once, and nothing is saved."""
    content = answer(200, picture(500))
    async with raw_server([content]) as inner, raw_server([to(f"http://10.0.0.1:{inner.port}/")]) as outer:
        result = result_of(f"http://8.8.8.8:{outer.port}/")
        async with (
            Emulator() as emulator,
            in_the_internet() as http,
            session_for(emulator, http=http, private_downloads=allowed) as flux,
        ):
            if allowed:
                (path,) = await flux.download(result, tmp_path)
                assert path.read_bytes() == picture(500)
            else:
                with pytest.raises(ConfigurationError, match="private_downloads=True"):
                    await flux.download(result, tmp_path)
                assert names(tmp_path) == set()

    assert (len(outer.requests), len(inner.requests)) == (1, int(allowed))
