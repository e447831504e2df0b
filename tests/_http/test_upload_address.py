"""`upload` of an address: the service fetches the picture, and keeps it for the model."""

import json
from typing import Any

import pytest
from emulated import emulated, error_of
from file_host import picture, reply, serving
from raw_server import answer, raw_server

from flux2_async import Flux2Session, ImageToImage, Uploaded, UploadedFile
from flux2_async.emulator import Fault, Plan, Script
from flux2_async.errors import InvalidRequestError, ProtocolError, RequestRejectedError


async def test_the_service_fetches_it() -> None:
    """One call with the address; the copy is an `UploadedFile` for requests, and its own each time."""
    content = picture(3000)
    async with serving(content) as host, emulated(Script(plans=Plan(duration=1.0))) as (flux, emulator):
        told: list[Any] = []
        flux.observe(told.append)
        file = await flux.upload(f"{host.url}.png?token=1", file_name="can.png")
        again = await flux.upload(f"{host.url}.png?token=1", file_name="can.png")
        assert (file.size, file.mime_type) == (3000, "image/png")
        assert file.file_name.startswith("can-")
        assert file.file_name.endswith(".png")
        assert again.url != file.url
        assert [each.file for each in told if isinstance(each, Uploaded)] == [file, again]
        assert (await flux.generate(ImageToImage("make it winter", images=[file]))).urls
        [call] = emulator.ledger.requests
        assert call.body is not None
        assert call.body["input"]["input_urls"] == [file.url]
        assert [each.way for each in emulator.ledger.uploads] == ["url", "url"]
        assert len(host.seen) == 2


async def test_an_address_without_a_name() -> None:
    """Where neither the address nor the caller names a picture, the service makes a name up."""
    async with serving(picture(300)) as host, emulated() as (flux, emulator):
        file = await flux.upload(host.url)
        assert file.file_name
        assert file.url.startswith(emulator.base_url)


async def test_a_lost_answer_is_asked_for_again() -> None:
    """Fetching again costs nothing, so that what passes is tried several times."""
    faults = [Fault("upload", "html", times=2), Fault("upload", "cut_after")]
    async with serving(picture(300)) as host, emulated(Script(faults=faults)) as (flux, _):
        assert (await flux.upload(f"{host.url}.png")).size == 300


async def test_what_cannot_be_fetched() -> None:
    """A host that refuses the service is a refusal of the service, told as it says; nothing is tried here."""
    async with serving(b"") as host, emulated() as (flux, emulator):
        host.answers.extend([reply(403)] * 9)
        error = await error_of(flux.upload(f"{host.url}.png"))
        assert isinstance(error, RequestRejectedError)
        assert "Failed to download the file: HTTP 403" in str(error)
        assert emulator.ledger.calls["upload"] == 1


@pytest.mark.parametrize("address", ["https://", "http://[x/a.png", "HTTPS://?"])
async def test_no_address(address: str) -> None:
    """What begins like an address and is none is no path either."""
    async with emulated() as (flux, emulator):
        error = await error_of(flux.upload(address))
        assert isinstance(error, InvalidRequestError)
        assert "source: not a complete address" in str(error)
        assert emulator.ledger.calls["upload"] == 0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"downloadUrl": "https://f.example/a b.png"}, UploadedFile("https://f.example/a%20b.png", "a b.png", 0, "")),
        ({"fileUrl": "https://a.example/x.png"}, None),
        ({}, None),
    ],
)
async def test_what_the_service_says(data: dict[str, Any], expected: UploadedFile | None) -> None:
    """What it leaves out is not made up, and the address that was given is no copy."""
    async with raw_server([answer(200, {"code": 200, "success": True, "data": data})]) as server:
        async with Flux2Session("k", base_url=server.url) as flux:
            if expected is None:
                assert isinstance(await error_of(flux.upload("https://a.example/x.png")), ProtocolError)
            else:
                assert await flux.upload("https://a.example/x.png") == expected
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /file-upload/api/file-url-upload ")
        sent = json.loads(body)
        assert sent.pop("fileName").endswith(".png")
        assert sent == {"fileUrl": "https://a.example/x.png", "uploadPath": "images/flux2-async"}
