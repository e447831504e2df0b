"""Sessions with other services of the same shape: where the calls go, with what, and what is refused before."""

import io
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from aiohttp import web
from emulated import REQUEST, error_of
from PIL import Image

from flux2_async import APIKLEY, KIE, Flux2Session, ImageToImage, Polling, RateLimit, Service
from flux2_async.batch import InvalidInputError, run_batch
from flux2_async.emulator import Emulator, Plan, Script
from flux2_async.errors import ConfigurationError, InvalidRequestError

SECRET = "a-secret-of-the-gateway"


def picture(size: int) -> bytes:
    """A PNG of so many bytes, most of them behind its end."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "navy").save(file, "PNG")
    return file.getvalue().ljust(size, b"\0")


@attrs.define
class Gateway:
    """The emulator behind other paths; notes what came."""

    url: str
    seen: list[tuple[str, dict[str, str]]] = attrs.field(factory=list)


@asynccontextmanager
async def gateway(emulator: Emulator) -> AsyncIterator[Gateway]:
    """Lead `/v9` to the API's paths, `/files` to the uploads', and show nothing else of the emulator."""

    async def forward(request: web.Request) -> web.Response:
        gate.seen.append((request.path, dict(request.headers)))
        rest = request.path_qs.removeprefix("/v9")
        path = f"/api/v1{rest}" if rest != request.path_qs else f"/file-upload{rest.removeprefix('/files')}"
        kept = {name: request.headers[name] for name in ("Authorization", "Content-Type") if name in request.headers}
        async with http.request(
            request.method, f"{emulator.base_url}{path}", data=io.BytesIO(await request.read()), headers=kept
        ) as response:
            return web.Response(status=response.status, body=await response.read(), content_type=response.content_type)

    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", forward)
    async with aiohttp.ClientSession() as http:
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        gate = Gateway(f"http://127.0.0.1:{runner.addresses[0][1]}")
        try:
            yield gate
        finally:
            await runner.cleanup()


async def test_another_service(tmp_path: Path) -> None:
    """Each call goes to the service's own path with its headers; its files' hosts get none of them."""
    async with Emulator(Script(plans=Plan(duration=1.0), render=False)) as emulator, gateway(emulator) as gate:
        service = Service(
            base_url=f"{gate.url}/", upload_url=f"{gate.url}/files", api_path="/v9/", headers={"X-Gateway": SECRET}
        )
        async with Flux2Session(emulator.api_key, service=service, polling=Polling(interval=1.0)) as flux:
            assert flux.service is service
            result = await flux.generate(ImageToImage("make it winter", images=[picture(100)]))
            await flux.download(result, tmp_path)
            await flux.download_url(result.urls[0])
            assert await flux.credits() > 0

        assert {path for path, _ in gate.seen} == {
            "/files/api/file-stream-upload",
            "/v9/jobs/createTask",
            "/v9/jobs/recordInfo",
            "/v9/common/download-url",
            "/v9/chat/credit",
        }
        assert {headers["X-Gateway"] for _, headers in gate.seen} == {SECRET}
        assert "file" not in emulator.ledger.authorization_seen


async def test_the_key_belongs_to_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of Apikley's in the environment goes to no other service, and its addresses are not another one's."""
    monkeypatch.setenv("APIKLEY_API_KEY", "key-of-apikley")
    monkeypatch.setenv("APIKLEY_BASE_URL", "https://elsewhere.example")
    monkeypatch.delenv("KIE_API_KEY", raising=False)
    assert "KIE_API_KEY" in str(await error_of(Flux2Session(service=KIE).open()))
    nameless = Service(base_url="https://other.example")
    assert "names no variable" in str(await error_of(Flux2Session(service=nameless).open()))

    monkeypatch.setenv("KIE_API_KEY", "key-of-kie")
    for service, address in ((KIE, "https://api.kie.ai"), (APIKLEY, "https://api.apikley.ru")):
        async with Flux2Session(service=service) as flux:
            assert repr(flux) == f"<Flux2Session {address} open>"
    async with Flux2Session() as flux:
        assert repr(flux) == "<Flux2Session https://elsewhere.example open>"


def test_limits_of_the_service() -> None:
    """A session keeps to what the service allows, unless it is told otherwise."""
    slow = attrs.evolve(KIE, limits=RateLimit(2, 60.0), max_running=3)
    free = attrs.evolve(KIE, limits=(), max_running=None)
    limit = RateLimit(5, 5.0)

    assert [(flux.rate_limit, flux.max_running) for flux in (Flux2Session("k"), Flux2Session("k", service=slow))] == [
        (RateLimit(20, 10.0), 100),
        (RateLimit(2, 60.0), 3),
    ]
    assert Flux2Session("k", service=free).rate_limit is None
    assert Flux2Session("k", service=free).max_running is None
    assert Flux2Session("k", service=slow, rate_limit=None, max_running=None).rate_limit is None
    assert Flux2Session("k", service=slow, rate_limit=limit, max_running=7).rate_limit == limit
    assert Flux2Session("k", service=slow, rate_limit=limit, max_running=7).max_running == 7


@pytest.mark.parametrize("argument", ["base_url", "upload_url"])
def test_one_address(argument: str) -> None:
    """An address besides a service is refused rather than guessed about: the key goes there."""
    make: Any = Flux2Session
    with pytest.raises(ConfigurationError, match=rf"{argument}: given besides .*attrs.evolve\(service, {argument}="):
        make("key", service=KIE, **{argument: "https://proxy.example"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "base_url"),
        ({"base_url": "api.kie.ai"}, r"Service\.base_url: 'api.kie.ai' given"),
        ({"base_url": None}, r"Service\.base_url"),
        ({"upload_url": "ftp://up.example"}, r"Service\.upload_url"),
        ({"api_path": "v1"}, r"Service\.api_path: it must be a path such as /api/v1"),
        ({"api_path": "/v1?x=1"}, r"Service\.api_path"),
        ({"api_path": 1}, r"Service\.api_path"),
        ({"headers": {"Authorization": f"Bearer {SECRET}"}}, "headers: Authorization given; the key is given as"),
        ({"headers": {"content-type": "text/plain"}}, "headers: content-type given; the library sets it"),
        ({"headers": {"X Y": SECRET}}, "headers: a name given that no header can have"),
        ({"headers": {"X-A": f"{SECRET}\r\nX-B: 1"}}, "the value of X-A must be text of Latin letters"),
        ({"headers": {"X-A": SECRET, "x-a": SECRET}}, "headers: x-a given twice"),
        ({"headers": [SECRET]}, "headers: list given"),
        ({"limits": (20, 10.0)}, r"Service\.limits: it must be RateLimit"),
        ({"limits": 20}, r"Service\.limits"),
        ({"max_running": 0}, r"Service\.max_running: 0 given, it must be a whole number of 1 or more, or None"),
        ({"max_image_bytes": None}, r"Service\.max_image_bytes: None given, it must be a whole number of 1 or more$"),
        ({"key_variable": "A KEY"}, r"Service\.key_variable"),
    ],
)
def test_unusable_services(options: dict[str, Any], words: str) -> None:
    """What cannot work is refused when the service is made, and no value of a header is shown."""
    make: Any = Service
    with pytest.raises((ConfigurationError, TypeError), match=words) as caught:
        make(**({"base_url": "https://api.example"} if options else {}) | options)

    frames, trace = "", caught.value.__traceback__
    while trace is not None:
        frames += repr(trace.tb_frame.f_locals) if trace.tb_frame.f_code.co_filename != __file__ else ""
        trace = trace.tb_next
    assert SECRET not in frames + str(caught.value)


def test_a_service_is_a_value() -> None:
    """It equals one of the same fields, is hashed, pickled and shown, without what its headers say."""
    service = Service(base_url="https://api.example/", headers={"X-Gateway": SECRET})

    assert service == pickle.loads(pickle.dumps(service)) == attrs.evolve(service)
    assert hash(service) == hash(attrs.evolve(service))
    assert service != KIE
    assert "headers=<X-Gateway>" in repr(service)
    assert SECRET not in repr(service)
    assert service.uploads_at == "https://api.example/file-upload"


async def test_size_of_pictures(tmp_path: Path) -> None:
    """A service says how large pictures may be, for submitting, uploading and batches alike."""
    (tmp_path / "large.png").write_bytes(picture(10_000_001))
    async with Emulator(Script(plans=Plan(duration=1.0), render=False)) as emulator, gateway(emulator) as gate:
        small = Service(base_url=gate.url, upload_url=f"{gate.url}/files", api_path="/v9", max_image_bytes=500)
        large = attrs.evolve(small, max_image_bytes=30_000_000)
        async with Flux2Session(emulator.api_key, service=small) as flux:
            request = ImageToImage("make it winter", images=[picture(501)])
            for call in (flux.submit(request), flux.upload(picture(501)), flux.upload(io.BytesIO(picture(501)))):
                error = await error_of(call)
                assert isinstance(error, InvalidRequestError)
                assert "501 bytes given, allowed are 1 to 500" in str(error)
            jobs = [ImageToImage("make it winter", images=[tmp_path / "large.png"])]
            with pytest.raises(InvalidInputError, match="allowed are 1 to 500"):
                async for _ in run_batch(flux, jobs, journal=tmp_path / "a.db", directory=tmp_path / "a"):
                    raise AssertionError
        async with Flux2Session(emulator.api_key, service=large, polling=Polling(interval=1.0)) as flux:
            assert (await flux.upload(tmp_path / "large.png")).size == 10_000_001
            assert (await flux.submit(REQUEST)).id
        assert [each.size for each in emulator.ledger.uploads] == [10_000_001]
