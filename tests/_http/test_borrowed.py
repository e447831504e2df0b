"""Other people's aiohttp sessions and connectors: taken, imitated, replaced by a factory, or refused with a reason."""

import asyncio
import socket
import tempfile
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from emulated import REQUEST, emulated, error_of

from flux2_async import ConfigurationError, Flux2Session, TransportError
from flux2_async.emulator import Emulator, Plan, Script


class Wrapper:
    """What a tracing tool puts around a connector: it passes for the connector, and is called instead of it."""

    def __init__(self, wrapped: aiohttp.BaseConnector, calls: list[str]) -> None:
        self._wrapped = wrapped
        self._calls = calls

    @property  # type: ignore[misc]  # as proxies do
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self._wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    async def connect(self, req: aiohttp.ClientRequest, *args: Any, **options: Any) -> Any:
        self._calls.append(f"{req.method} {req.url.name}")
        return await self._wrapped.connect(req, *args, **options)


def wrap_connectors(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Wrap the connector of every session that is made, and note what is connected for."""
    calls: list[str] = []
    make = aiohttp.ClientSession.__init__

    def wrapping(self: aiohttp.ClientSession, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        assert self._connector is not None
        self._connector = Wrapper(self._connector, calls)  # type: ignore[assignment]

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", wrapping)
    return calls


def test_a_session_of_another_event_loop() -> None:
    """It is refused before anything is paid: every look over it would fail, and tasks would never be seen to finish."""

    async def made() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def opened(http: aiohttp.ClientSession) -> Exception:
        return await error_of(Flux2Session("key", base_url="http://127.0.0.1:1", http=http).open())

    with asyncio.Runner() as runner:
        http = runner.run(made())
        told = asyncio.run(opened(http))
        runner.run(http.close())

    assert isinstance(told, ConfigurationError)
    assert "another event loop" in str(told)


@pytest.mark.parametrize("borrowed", [False, True])
async def test_connectors_that_a_tracing_tool_has_wrapped(borrowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapped connector is taken, its way is imitated, and each createTask is seen once."""
    calls = wrap_connectors(monkeypatch)
    async with aiohttp.ClientSession() as http, emulated(http=http if borrowed else None) as (flux, emulator):
        await asyncio.gather(*(flux.generate(REQUEST) for _ in range(3)))

        assert len(emulator.ledger.accepted) == 3
    assert Counter(calls)["POST createTask"] == 3


def counting_trace(seen: Counter[str]) -> aiohttp.TraceConfig:
    async def start(_: object, __: object, params: aiohttp.TraceRequestStartParams) -> None:
        assert "Authorization" not in params.headers
        seen[f"{params.method} {params.url.name}"] += 1

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(start)
    return trace


async def test_traces_of_a_session_see_the_other_calls_alone() -> None:
    """The caller's own traces see looks and the like, without the key; they are not copied to createTask."""
    seen: Counter[str] = Counter()
    async with (
        aiohttp.ClientSession(trace_configs=[counting_trace(seen)]) as http,
        emulated(http=http) as (flux, _),
    ):
        await flux.generate(REQUEST)

    assert seen["GET recordInfo"] >= 1
    assert seen["POST createTask"] == 0


async def test_traces_installed_everywhere_see_each_call_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that instruments every session, the caller's as well, counts each createTask once."""
    seen: Counter[str] = Counter()
    trace, make = counting_trace(seen), aiohttp.ClientSession.__init__

    def instrumented(self: aiohttp.ClientSession, *args: Any, **options: Any) -> None:
        make(self, *args, trace_configs=[*(options.pop("trace_configs", None) or ()), trace], **options)

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", instrumented)
    async with aiohttp.ClientSession() as http, emulated(http=http) as (flux, _):
        await asyncio.gather(*(flux.submit(REQUEST) for _ in range(4)))

    assert seen["POST createTask"] == 4


async def test_a_tool_that_adds_headers_adds_them_to_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tool writes into the headers it is given stays with that request."""
    request, given = aiohttp.ClientSession._request, []

    async def traced(self: aiohttp.ClientSession, *args: Any, **options: Any) -> aiohttp.ClientResponse:
        headers = options.get("headers")
        headers = dict(headers or {}) if not isinstance(headers, dict) else headers
        given.append(dict(headers))
        headers["X-Trace"] = "1"
        return await request(self, *args, **options | {"headers": headers})

    monkeypatch.setattr(aiohttp.ClientSession, "_request", traced)
    async with emulated() as (flux, _):
        for _ in range(2):
            await flux.submit(REQUEST)
            await flux.credits()

    assert not any("X-Trace" in headers or "Authorization" in headers for headers in given)


class ClosesDifferently(aiohttp.TCPConnector):
    """As Home Assistant's: it has connections of the common kind."""

    _cleanup_closed_period = 60.0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def note(self) -> None:
        """Something of its own."""


async def test_a_connector_of_another_class_that_connects_as_usual() -> None:
    """A subclass that changes nothing of how connections are made is taken, and its settings are imitated."""
    made: list[socket.socket] = []

    def factory(info: Any) -> socket.socket:
        made.append(socket.socket(*info[:3]))
        return made[-1]

    connector = ClosesDifferently(socket_factory=factory)
    async with aiohttp.ClientSession(connector=connector) as http, emulated(http=http) as (flux, _):
        await flux.submit(REQUEST)
        # The one of createTask; nothing has been looked at yet.
        assert len(made) == 1
        await flux.drain()


@pytest.mark.parametrize(
    "method",
    ["connect", "_create_connection", "_get", "_release", "_wrap_create_connection", "_resolve_host"],
)
async def test_a_connector_that_goes_a_way_of_its_own(method: str) -> None:
    """A subclass that makes its connections itself is refused, since createTask would go another way."""
    kind: Any = type("Detour", (aiohttp.TCPConnector,), {method: lambda *_: None})
    async with aiohttp.ClientSession(connector=kind()) as http:
        caught = await error_of(Flux2Session("key", http=http).open())
        flux = Flux2Session("key", http=http, connector=aiohttp.TCPConnector)
        await flux.open()
        await flux.aclose()

    assert isinstance(caught, ConfigurationError)
    assert "Detour" in str(caught)
    assert f"`{method}`" in str(caught)
    assert "connector=" in str(caught)


@asynccontextmanager
async def detour_to(port: int) -> AsyncIterator[tuple[Callable[[], aiohttp.BaseConnector], Counter[str]]]:
    """A way to a server that no TCPConnector finds; what goes over it is counted."""
    passed: Counter[str] = Counter()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if data.startswith((b"GET /", b"POST /")):
                passed[data.split(b"?")[0].split(b" HTTP")[0].decode().rpartition("/")[2]] += 1
            writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

    # A socket's path must be short, which those of a test are not.
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "way")
        async with await asyncio.start_unix_server(relay, path):
            yield lambda: aiohttp.UnixConnector(path), passed


@pytest.mark.parametrize("borrowed", [False, True])
async def test_a_connector_from_a_factory(borrowed: bool) -> None:
    """The way that the factory's connector knows is taken by createTask, and without `http` by the other calls."""
    script = Script(plans=Plan(duration=2.0))
    script.render = False
    async with Emulator(script) as emulator, detour_to(int(emulator.base_url.rpartition(":")[2])) as (factory, passed):
        way: dict[str, Any] = {"base_url": "http://somewhere", "connector": factory}
        http = aiohttp.ClientSession(connector=factory()) if borrowed else None
        async with Flux2Session(emulator.api_key, http=http, **way) as flux:
            await asyncio.gather(*(flux.generate(REQUEST) for _ in range(5)))
        if http is not None:
            await http.close()

    assert len(emulator.ledger.accepted) == 5
    assert passed["createTask"] == 5
    assert passed["recordInfo"] >= 5


async def test_a_way_that_is_closed_was_never_taken() -> None:
    """Where the factory's connector cannot connect, nothing was sent."""
    async with detour_to(1) as (factory, _):
        pass
    async with Flux2Session("key", base_url="http://somewhere", connector=factory) as flux:
        caught = await error_of(flux.submit(REQUEST))

    assert isinstance(caught, TransportError)
    assert caught.never_sent


@pytest.mark.parametrize("factory", [lambda: None, aiohttp.ClientSession, "shared", "closed"])
async def test_a_factory_that_makes_no_new_connector(factory: Any) -> None:
    """A factory that gives something else, a closed connector or the caller's own one is refused."""
    async with aiohttp.ClientSession() as http:
        made: list[Any] = []
        closed = aiohttp.TCPConnector()
        await closed.close()

        def make() -> Any:
            if factory == "shared":
                return http.connector
            if factory == "closed":
                return closed
            made.append(factory())
            return made[-1]

        caught = await error_of(Flux2Session("key", http=http, connector=make).open())
        for each in made:
            if each is not None:
                await each.close()

    assert isinstance(caught, ConfigurationError)
    assert "new aiohttp connector" in str(caught)


async def test_a_connector_is_no_factory() -> None:
    """A connector instead of a function that makes one is refused when the session is made."""
    async with aiohttp.TCPConnector() as connector:
        with pytest.raises(ConfigurationError, match=r"connector: TCPConnector given"):
            Flux2Session("key", connector=connector)  # type: ignore[arg-type]


async def test_a_session_that_remembers_answers() -> None:
    """A caching session would give the same look for ever, so it is refused with that reason."""
    with warnings.catch_warnings():
        # aiohttp discourages subclasses, and caching ones exist all the same.
        warnings.simplefilter("ignore", DeprecationWarning)

        class CachedSession(aiohttp.ClientSession):
            pass

        http = CachedSession()
    async with http:
        caught = await error_of(Flux2Session("key", http=http).open())

    assert isinstance(caught, ConfigurationError)
    assert "CachedSession remembers" in str(caught)
