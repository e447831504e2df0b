"""Pictures in the shapes in which applications have them."""

import io
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import anyio
import pytest
import starlette.datastructures
from aiohttp import web
from emulated import emulated
from file_host import picture
from multidict import CIMultiDict, CIMultiDictProxy
from PIL import Image

from flux2_async.emulator import Emulator
from flux2_async.errors import InvalidRequestError
from flux2_async.models import ImageToImage
from flux2_async.session.session import Flux2Session

CONTENT = picture(700_000)


@pytest.fixture
async def service() -> AsyncIterator[tuple[Flux2Session, Emulator]]:
    async with emulated() as service:
        yield service


OPEN: list[tempfile.SpooledTemporaryFile[bytes]] = []


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def spool() -> Any:
    OPEN.append(tempfile.SpooledTemporaryFile())  # noqa: SIM115  the fixture closes it
    return standing_at(OPEN[-1], 6)


def standing_at(stream: Any, place: int) -> Any:
    stream.write(b"before" + CONTENT)
    stream.seek(place)
    return stream


def closed(stream: Any) -> Any:
    stream.close()
    return stream


class Awaited:
    """A file as an ASGI framework hands it on."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    async def read(self, size: int = -1, /) -> bytes:
        return self._file.read(size)


class Wrapped:
    """A file as a WSGI framework hands it on: whatever is asked of it is asked of the file in it."""

    def __init__(self, content: bytes) -> None:
        self.stream = io.BytesIO(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def uploaded(content: bytes) -> starlette.datastructures.UploadFile:
    return starlette.datastructures.UploadFile(io.BytesIO(content), filename="a.png")


def form_field(content: bytes) -> web.FileField:
    headers = CIMultiDictProxy(CIMultiDict[str]())
    return web.FileField("photo", "a.png", io.BytesIO(content), "image/png", headers)


TAKEN: dict[str, Callable[[], Any]] = {
    "bytes": lambda: CONTENT,
    "bytearray": lambda: bytearray(CONTENT),
    "memoryview": lambda: memoryview(b"before" + CONTENT)[6:],
    "BytesIO": lambda: io.BytesIO(CONTENT),
    "a BytesIO that was read from": lambda: standing_at(io.BytesIO(), 6),
}

FILES: dict[str, Callable[[], Any]] = {
    "SpooledTemporaryFile": spool,
    "starlette": lambda: uploaded(CONTENT),
    "aiohttp": lambda: form_field(CONTENT),
    "a file of a WSGI framework": lambda: Wrapped(CONTENT),
    "a file to be awaited": lambda: Awaited(CONTENT),
}


@pytest.mark.parametrize("make", [*TAKEN.values(), *FILES.values()], ids=[*TAKEN, *FILES])
async def test_what_can_be_uploaded(service: tuple[Flux2Session, Emulator], make: Callable[[], Any]) -> None:
    """Content in memory, open files, and the uploaded files of web frameworks arrive byte for byte."""
    flux, emulator = service
    file = await flux.upload(make())

    assert file.size == len(CONTENT)
    assert [upload.size for upload in emulator.ledger.uploads] == [len(CONTENT)]
    assert await flux.upload(CONTENT) == file


async def test_an_anyio_file_can_be_uploaded(service: tuple[Flux2Session, Emulator], tmp_path: Path) -> None:
    """It is read to its end and stays open."""
    await anyio.Path(tmp_path / "a.png").write_bytes(CONTENT)
    async with await anyio.open_file(tmp_path / "a.png", "rb") as file:
        assert (await service[0].upload(file)).size == len(CONTENT)
        assert not file.wrapped.closed


@pytest.mark.parametrize("make", TAKEN.values(), ids=list(TAKEN))
async def test_what_a_request_takes(service: tuple[Flux2Session, Emulator], make: Callable[[], Any]) -> None:
    """Content in memory, whatever holds it; what is done to that later does not change the request."""
    flux, emulator = service
    source = make()
    request = ImageToImage("make it winter", images=[source])
    if isinstance(source, bytearray):
        source.clear()
    await flux.generate(request)

    assert request.images == (CONTENT,)
    assert request == ImageToImage("make it winter", images=[CONTENT])
    assert [upload.size for upload in emulator.ledger.uploads] == [len(CONTENT)]


ARRAY = SimpleNamespace(__array_interface__={}, tobytes=bytes)

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "SpooledTemporaryFile": (
        FILES["SpooledTemporaryFile"],
        "SpooledTemporaryFile given, pass its content: file.",
    ),
    "starlette": (FILES["starlette"], "UploadFile given, pass its content: await file.read()"),
    "aiohttp": (FILES["aiohttp"], "FileField given, pass its content: field.file.read()"),
    "a file of a WSGI framework": (FILES["a file of a WSGI framework"], "Wrapped given, pass its content: file.read()"),
    "a text file": (lambda: io.StringIO("x"), "StringIO given, it gives text; open it with 'rb'"),
    "Pillow": (lambda: Image.new("RGB", (1, 1)), "Image given, encode it, as by image.save"),
    "an array": (lambda: ARRAY, "SimpleNamespace given, encode the array, as by Image.fromarray"),
    "a BytesIO at its end": (lambda: standing_at(io.BytesIO(), 700_006), "the BytesIO stands at its end, call seek"),
    "a closed BytesIO": (lambda: closed(io.BytesIO(CONTENT)), "the BytesIO cannot be read (I/O operation on closed"),
    "an empty bytearray": (bytearray, "0 bytes given"),
    "a number": (lambda: 5, "int given, allowed are an http(s) address, a path, bytes or an UploadedFile"),
}


@pytest.mark.parametrize(("make", "text"), REFUSED.values(), ids=list(REFUSED))
def test_what_a_request_refuses(make: Callable[[], Any], text: str) -> None:
    """A request reads no files; the text says how to give it what they hold."""
    with pytest.raises(InvalidRequestError) as caught:
        ImageToImage("make it winter", images=[make()])
    assert str(caught.value).startswith(f"images[0]: {text}")


@pytest.mark.parametrize("make", [*TAKEN.values(), *FILES.values(), REFUSED["Pillow"][0], REFUSED["an array"][0]])
def test_one_picture_is_no_list(make: Callable[[], Any]) -> None:
    """What can be iterated over besides, line by line or byte by byte, is told to belong into a list."""
    with pytest.raises(InvalidRequestError, match=r"put a single one into a list: images=\[picture\]"):
        ImageToImage("make it winter", images=make())


def closed_spool() -> Any:
    with tempfile.SpooledTemporaryFile() as file:
        return file


class Odd:
    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read

    def read(self, *_: Any) -> Any:
        return self._read()


def wrong() -> bytes:
    raise TypeError("read() takes no arguments")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: standing_at(io.BytesIO(), 700_006),
            "0 bytes given; if the file object stands at its end",
        ),
        (lambda: uploaded(b""), "0 bytes given; if the file object stands at its end, call seek(0) first"),
        (lambda: closed(io.BytesIO(CONTENT)), "the file object cannot be read (I/O operation on closed file.)"),
        (closed_spool, "the file object cannot be read (I/O operation on closed"),
        (lambda: Odd(wrong), "the file object cannot be read (read() takes no arguments); pass its content as bytes"),
        (
            lambda: Odd(lambda: Awaited(CONTENT).read()),
            "an asynchronous file object given; pass its content: await",
        ),
        (lambda: io.StringIO("x"), "a file object that gives str; open it with 'rb'"),
        (lambda: Odd(lambda: 5), "a file object that gives int; open it with 'rb'"),
        (lambda: Image.new("RGB", (1, 1)), "Image given, encode it, as by image.save(buffer, 'PNG')"),
        (lambda: ARRAY, "SimpleNamespace given, encode the array"),
        (lambda: 5, "int given, allowed are a path, an address, bytes and a binary file object"),
        (lambda: Path(__file__).parent.parent, "a folder given, it must be a JPEG, PNG or WebP file"),
        (lambda: bytearray(b"text"), "text given, allowed are JPEG, PNG and WebP"),
    ],
)
async def test_what_cannot_be_uploaded(
    service: tuple[Flux2Session, Emulator], make: Callable[[], Any], text: str
) -> None:
    """Whatever a foreign object does, an error of ours says how to give the picture; nothing is sent."""
    flux, emulator = service
    with pytest.raises(InvalidRequestError) as caught:
        await flux.upload(make())

    assert str(caught.value).startswith(f"source: {text}")
    assert emulator.ledger.uploads == []


async def test_an_upload_of_a_form(service: tuple[Flux2Session, Emulator]) -> None:
    """A field of a real multipart form, parsed by aiohttp, is taken as it comes."""
    flux, emulator = service

    async def handle(request: web.Request) -> web.Response:
        form = await request.post()
        await flux.upload(form["photo"])  # type: ignore[arg-type]
        return web.Response()

    app = web.Application()
    app.router.add_post("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        async with aiohttp.ClientSession() as http, http.post(url, data={"photo": io.BytesIO(CONTENT)}) as response:
            assert response.status == 200
    finally:
        await runner.cleanup()

    assert [upload.size for upload in emulator.ledger.uploads] == [len(CONTENT)]
