"""Results on their way to a folder: whole under their name, or not at all."""

import asyncio
import errno
import gzip
import os
import re
import resource
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import aiohttp.web
import anyio
import pytest
from file_host import JPEG, WEBP, Answer, FileHost, names, picture, reply, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_server import answer, raw_server
from service_calls import api_to, connected

from flux2_async._http import partial_file
from flux2_async._http.downloads import Downloads, prepare_folder
from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.errors import (
    ApiError,
    AuthenticationError,
    Flux2Error,
    InvalidRequestError,
    NotFoundError,
    ProtocolError,
    RateLimitedError,
    ServerError,
    TaskError,
)

ETAG = '"one"'
DATE = "Sun, 22 Nov 2026 20:00:00 GMT"


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(Script(Plan(duration=0), render=False)) as emulator:
        yield emulator


@pytest.fixture
async def downloads(emulator: Emulator) -> AsyncIterator[Downloads]:
    async with connected(emulator) as api:
        yield Downloads(api)


def now() -> float:
    return asyncio.get_running_loop().time()


async def generated(emulator: Emulator) -> str:
    """A finished task's picture."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {emulator.api_key}"}) as http:
        given = {"prompt": "a can", "aspect_ratio": "1:1", "resolution": "1K"}
        body = {"model": "flux-2/flex-text-to-image", "input": given}
        async with http.post(f"{emulator.base_url}/api/v1/jobs/createTask", json=body) as response:
            answer = await response.json()
    return emulator.task(answer["data"]["taskId"]).result_urls[0]


async def test_saves_a_picture_under_the_tasks_name(emulator: Emulator, downloads: Downloads, tmp_path: Path) -> None:
    """The file holds every byte, and the host never saw the API key."""
    url = await generated(emulator)

    path = await downloads.save("t1", 1, url, tmp_path)

    assert path == tmp_path / "t1-1.png"
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        assert await response.read() == path.read_bytes()
    assert names(tmp_path) == {"t1-1.png"}
    assert "file" not in emulator.ledger.authorization_seen


async def test_the_key_does_not_follow_a_redirect(emulator: Emulator, downloads: Downloads, tmp_path: Path) -> None:
    """A host that sends us elsewhere sends us there without the key."""
    emulator.inject(Fault("file", "redirect"))

    with pytest.raises(Flux2Error):
        await downloads.save("t1", 1, f"{emulator.base_url}/results/nothing.png", tmp_path)
    assert emulator.ledger.authorization_seen <= {"download-url"}


async def test_headers_keep_no_picture_away(downloads: Downloads, tmp_path: Path) -> None:
    """More headers than aiohttp takes by itself, and a longer one, are no fault of the picture behind them."""
    more = {f"X-Cache-{number}": "hit" for number in range(200)} | {"Content-Security-Policy": "x" * 20_000}
    async with serving(JPEG) as host:
        host.validators = more
        path = await downloads.save("t1", 1, host.url, tmp_path)
    assert path.read_bytes() == JPEG


async def test_no_header_of_ours_tells_who_we_are(downloads: Downloads, tmp_path: Path) -> None:
    """A foreign host sees a User-Agent and no Authorization; nothing may be packed on the way."""
    async with serving(picture(1000)) as host:
        await downloads.save("t1", 1, host.url, tmp_path)

    (headers,) = host.seen
    assert "Authorization" not in headers
    assert headers["User-Agent"].startswith("flux2-async/")
    assert headers["Accept-Encoding"] == "identity"


async def test_replaces_an_older_file(downloads: Downloads, tmp_path: Path) -> None:
    """A second run gives the same files; until the new one is whole the old one stays."""
    target = tmp_path / "t1-1.png"
    target.write_bytes(b"older, and longer than what comes" * 100)
    async with serving(picture(1000)) as host:
        host.answers.append(reply(404))
        with pytest.raises(NotFoundError):
            await downloads.save("t1", 1, host.url, tmp_path)
        assert target.read_bytes().startswith(b"older")
        await downloads.save("t1", 1, host.url, tmp_path)

    assert target.read_bytes() == picture(1000)
    assert names(tmp_path) == {"t1-1.png"}


@pytest.mark.parametrize("validators", [{"ETag": ETAG}, {"Last_Modified": DATE}, {"ETag": ETAG, "Last_Modified": DATE}])
async def test_resumes_after_breaks(downloads: Downloads, tmp_path: Path, validators: dict[str, str]) -> None:
    """What came stays, and only the rest is asked for, as long as it is the same file."""
    async with serving(picture(1_000_000), **validators) as host:
        host.answers.extend([host.cut_after(400_000), host.cut_after(300_000), host.cut_after(0)])
        path = await downloads.save("t1", 1, host.url, tmp_path)

    assert path.read_bytes() == picture(1_000_000)
    begins = [int(headers.get("Range", "bytes=0-")[6:-1]) for headers in host.seen]
    assert begins == [0, 400_000, 700_000, 700_000]
    assert {headers["If-Range"] for headers in host.seen[1:]} == {validators.get("ETag", DATE)}


async def test_a_picture_that_is_no_http_from_its_middle_on(downloads: Downloads, tmp_path: Path) -> None:
    """Chunks that cannot be told apart are a break as any other: the picture is fetched again."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(b"4\r\n" + JPEG + b"\r\nno number\r\n")

    async with raw_server([reply, answer(200, picture(1000))]) as server:
        path = await downloads.save("t1", 1, server.url, tmp_path)

    assert path.read_bytes() == picture(1000)
    assert names(tmp_path) == {path.name}


async def test_resumes_without_knowing_the_length(downloads: Downloads, tmp_path: Path) -> None:
    """A chunked answer that breaks off is noticed and continued."""
    async with serving(picture(500_000), ETag=ETAG) as host:
        host.answers.append(host.cut_after(200_000, chunked=True))
        path = await downloads.save("t1", 1, host.url, tmp_path)

    assert path.read_bytes() == picture(500_000)
    assert "Range" in host.seen[1]


async def test_starts_anew_where_resuming_is_not_safe(downloads: Downloads, tmp_path: Path) -> None:
    """Without a strong validator two halves could be of two files."""
    async with serving(picture(500_000), ETag=f"W/{ETAG}") as host:
        host.answers.append(host.cut_after(200_000))
        path = await downloads.save("t1", 1, host.url, tmp_path)

    assert path.read_bytes() == picture(500_000)
    assert "Range" not in host.seen[1]


async def test_starts_anew_when_the_file_is_another(downloads: Downloads, tmp_path: Path) -> None:
    """A 200 to a request for the rest replaces what came, also by something shorter."""
    async with serving(picture(500_000), ETag=ETAG) as host:
        host.answers.append(host.cut_after(400_000))

        async def changed(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
            host.content, host.validators = picture(200_000, seed=1), {"ETag": '"two"'}
            return await host.serve(request)

        host.answers.append(changed)
        path = await downloads.save("t1", 1, host.url, tmp_path)

    assert path.read_bytes() == picture(200_000, seed=1)


async def test_starts_anew_after_a_part_that_does_not_fit(downloads: Downloads, tmp_path: Path) -> None:
    """A host that answers with another part than asked for spoils nothing."""
    content = picture(500_000)
    async with serving(content, ETag=ETAG) as host:
        wrong = reply(206, content[:100], Content_Range="bytes 0-99/500000")
        host.answers.extend([host.cut_after(400_000), wrong])
        path = await downloads.save("t1", 1, host.url, tmp_path)

    assert path.read_bytes() == content
    assert ["Range" in headers for headers in host.seen] == [False, True, False]


async def test_a_range_behind_the_end_means_whole(downloads: Downloads, tmp_path: Path) -> None:
    """A break right at the end of a file of unknown length is answered by 416, and nothing is missing."""
    content = picture(50_000)
    async with serving(content, ETag=ETAG) as host:
        host.answers.append(host.cut_after(50_000, chunked=True))
        path = await downloads.save("t1", 1, host.url, tmp_path)

    assert path.read_bytes() == content
    assert len(host.seen) == 2


async def test_a_range_that_is_refused_starts_anew(downloads: Downloads, tmp_path: Path) -> None:
    """A 416 that does not tell the length we have says that the file is another one."""
    async with serving(picture(500_000), ETag=ETAG) as host:
        host.answers.extend([host.cut_after(400_000), reply(416, Content_Range="bytes */300")])
        path = await downloads.save("t1", 1, host.url, tmp_path)

    assert path.read_bytes() == picture(500_000)
    assert "Range" not in host.seen[2]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 408])
async def test_a_host_in_trouble_is_asked_again(downloads: Downloads, tmp_path: Path, status: int) -> None:
    """What may pass is waited for."""
    async with serving(picture(1000)) as host:
        host.answers.extend([reply(status), reply(status)])
        begun = now()
        await downloads.save("t1", 1, host.url, tmp_path)

    assert 2.0 <= now() - begun < 3.0


async def test_waits_as_long_as_the_host_asks(downloads: Downloads, tmp_path: Path) -> None:
    """Retry-After of a 429 is kept."""
    async with serving(picture(1000)) as host:
        host.answers.append(reply(429, Retry_After="20"))
        begun = now()
        await downloads.save("t1", 1, host.url, tmp_path)

    assert 20.0 <= now() - begun < 21.0


@pytest.mark.parametrize(
    ("status", "error"), [(429, RateLimitedError), (503, ServerError), (418, ApiError), (204, ApiError)]
)
async def test_a_refusal_names_task_and_status(
    downloads: Downloads, tmp_path: Path, status: int, error: type[ApiError]
) -> None:
    """The error tells which picture it is about, and never the address, which may hold a signature."""
    async with serving(b"") as host:
        host.answers.extend([reply(status)] * 5)
        with pytest.raises(error, match=r"picture 2 of task t1 was refused by 127\.0\.0\.1") as caught:
            await downloads.save("t1", 2, host.url, tmp_path)

    assert (caught.value.task_id, caught.value.http_status) == ("t1", status)
    assert host.url not in str(caught.value)
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"<!DOCTYPE html><html>gone</html>", "a web page or a message"),
        (b'{"code":500,"msg":"x"}', "a web page or a message"),
        (b"", "an empty file"),
    ],
    ids=["html", "json", "empty"],
)
async def test_an_error_page_is_not_saved(downloads: Downloads, tmp_path: Path, content: bytes, text: str) -> None:
    """A page that comes with status 200 is an error, after it came five times."""
    async with serving(content, ETag=ETAG) as host:
        with pytest.raises(ProtocolError, match=f"picture 1 of task t1: {text}") as caught:
            await downloads.save("t1", 1, host.url, tmp_path)

    assert caught.value.task_id == "t1"
    assert len(host.seen) == 5
    assert names(tmp_path) == set()


async def test_an_error_page_that_passes(downloads: Downloads, tmp_path: Path) -> None:
    """A page that is gone at the next try leaves nothing of itself in the picture."""
    async with serving(picture(1000), ETag=ETAG) as host:
        host.answers.append(reply(200, b"<html>" + bytes(5000), ETag=ETAG))
        path = await downloads.save("t1", 1, host.url, tmp_path)

    assert path.read_bytes() == picture(1000)


def answered(head: str, body: bytes) -> bytes:
    """A reply as it stands, which ends with the connection where nothing in it says otherwise."""
    return f"HTTP/1.1 200 OK\r\nConnection: close\r\n{head}\r\n".encode() + body


HALF = picture(50_000, magic=JPEG)[:25_000]
CUT_STREAM = gzip.compress(picture(50_000, magic=JPEG))[:20_000]


@pytest.mark.parametrize(
    ("head", "body", "text"),
    [
        ("Content-Type: image/jpeg\r\n", HALF, "the JPEG that came lacks its end"),
        (
            f"Content-Encoding: gzip\r\nContent-Length: {len(CUT_STREAM)}\r\n",
            CUT_STREAM,
            "the JPEG that came lacks its end",
        ),
        ("Content-Type: text/plain\r\nContent-Length: 19\r\n", b"Service unavailable", "a web page or a message"),
        ("Content-Type: image/gif\r\n", b"GIF89a" + bytes(500), "nothing tells whether the GIF that came is whole"),
    ],
    ids=["cut, no length", "a cut stream of gzip", "plain text", "a GIF without a length"],
)
async def test_what_only_looks_whole_is_not_saved(
    downloads: Downloads, tmp_path: Path, head: str, body: bytes, text: str
) -> None:
    """A 200 that ends as HTTP allows is no proof; the file itself decides, after five tries."""
    async with raw_server([answered(head, body)]) as host:
        with pytest.raises(ProtocolError, match=f"picture 1 of task t1: {text}"):
            await downloads.save("t1", 1, f"{host.url}/a", tmp_path)

    assert len(host.requests) == 5
    assert names(tmp_path) == set()


async def test_a_cut_that_passes(downloads: Downloads, tmp_path: Path) -> None:
    """A picture that came cut once, with the length of the cut, is fetched again and saved whole."""
    content = picture(50_000, magic=JPEG)
    async with serving(content, ETag=ETAG) as host:
        host.answers.append(reply(200, HALF, ETag=ETAG))
        path = await downloads.save("t1", 1, host.url, tmp_path)

    assert (path.name, path.read_bytes()) == ("t1-1.jpg", content)
    assert len(host.seen) == 2


async def test_a_picture_without_an_end(downloads: Downloads, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that comes twice the same and as long as announced is all there is: saved, and told of."""
    async with serving(HALF) as host:
        path = await downloads.save("t1", 1, host.url, tmp_path)

    assert path.read_bytes() == HALF
    assert len(host.seen) == 2
    assert [record.levelname for record in caplog.records if "lacks the end" in record.getMessage()] == ["WARNING"]


async def test_a_picture_whose_length_is_told_wrong(
    downloads: Downloads, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """More was announced than there ever comes: a picture that reaches its own end is saved, and that is told."""
    content = picture(5000, magic=WEBP)
    async with serving(content + bytes(1000)) as host:
        host.answers.extend([host.cut_after(5000)] * 5)
        path = await downloads.save("t1", 1, host.url, tmp_path)

    assert (path.name, path.read_bytes()) == ("t1-1.webp", content)
    assert len(host.seen) == 5
    assert "nothing of the picture itself is missing" in caplog.text


async def test_other_files_have_their_extension(downloads: Downloads, tmp_path: Path) -> None:
    """What a model makes besides pictures is saved as what it is."""
    for number, (head, extension) in enumerate(
        [(b"GIF89a", "gif"), (b"\0\0\0\x20ftypisom", "mp4"), (b"ID3\4\0", "mp3"), (b"\0\0\0\x20ftypavif", "avif")]
    ):
        async with serving(head + bytes(500)) as host:
            path = await downloads.save("t1", number, host.url, tmp_path)
        assert path.name == f"t1-{number}.{extension}"


async def test_a_part_of_another_file_is_not_glued_on(downloads: Downloads, tmp_path: Path) -> None:
    """A 206 whose ETag is another one begins anew."""
    content, other = picture(500_000, magic=JPEG), picture(500_000, seed=1, magic=JPEG)
    async with serving(content, ETag=ETAG) as host:
        wrong = reply(206, other[400_000:], Content_Range="bytes 400000-499999/500000", ETag='"two"')
        host.answers.extend([host.cut_after(400_000), wrong])
        path = await downloads.save("t1", 1, host.url, tmp_path)

    assert path.read_bytes() == content
    assert ["Range" in headers for headers in host.seen] == [False, True, False]


@pytest.mark.parametrize("name", ["Content-Range", "Content-Length"])
async def test_numbers_without_bounds(downloads: Downloads, tmp_path: Path, name: str) -> None:
    """A header with more digits than int() takes is an answer like another bad one."""
    content = picture(500_000)
    async with serving(content, ETag=ETAG) as host:
        digits = "4" * 4400
        if name == "Content-Range":
            host.answers.append(host.cut_after(400_000))
            host.answers.append(reply(206, b"", Content_Range=f"bytes 400000-{digits}/{digits}", ETag=ETAG))
        else:
            host.answers.append(raw(f"HTTP/1.1 200 OK\r\nContent-Length: {digits}\r\n\r\n".encode()))
        path = await downloads.save("t1", 1, host.url, tmp_path)

    assert path.read_bytes() == content


def raw(content: bytes) -> Answer:
    """Answer with these bytes as they are."""

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        assert request.transport is not None
        request.transport.write(content)
        request.transport.close()
        return aiohttp.web.Response()

    return answer


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
async def test_more_than_200_mb_are_not_saved(
    downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, told: bool
) -> None:
    """It is refused as soon as it is known, and not tried again."""
    if told:
        size = 200_000_001
    else:
        monkeypatch.setattr(partial_file, "MAX_DOWNLOAD", 100_000)
        size = 200_000

    async with serving(b"") as host:

        async def large(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
            response = aiohttp.web.StreamResponse(headers={"Content-Length": str(size)} if told else {})
            await response.prepare(request)
            await response.write(picture(150_000))
            return response

        host.answers.append(large)
        with pytest.raises(TaskError, match="picture 1 of task t1: larger than") as caught:
            await downloads.save("t1", 1, host.url, tmp_path)

    assert caught.value.task_id == "t1"
    assert len(host.seen) == 1
    assert names(tmp_path) == set()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.png", "/etc/passwd", "", "http://"])
async def test_fetches_http_addresses_only(downloads: Downloads, tmp_path: Path, url: str) -> None:
    """No address makes us read anything but a web host's file."""
    with pytest.raises(ProtocolError, match=r"picture 1 of task t1: its address is not http\(s\)"):
        await downloads.save("t1", 1, url, tmp_path)
    assert names(tmp_path) == set()


async def test_an_address_with_blanks_is_fetched(downloads: Downloads, tmp_path: Path) -> None:
    """Blanks that the service left in an address are encoded."""
    async with serving(picture(1000)) as host:
        await downloads.save("t1", 1, f"{host.url} 1.png", tmp_path)

    assert names(tmp_path) == {"t1-1.png"}


async def test_an_expired_link_is_refreshed(emulator: Emulator, downloads: Downloads, tmp_path: Path) -> None:
    """Where the service still has the file, its new link is used, once per picture."""
    url = await generated(emulator)
    await asyncio.sleep(25 * 3600)

    path = await downloads.save("t1", 1, url, tmp_path)

    assert path.read_bytes().startswith(b"\x89PNG")
    assert (emulator.ledger.calls["file"], emulator.ledger.calls["download-url"]) == (2, 1)
    assert "file" not in emulator.ledger.authorization_seen


async def test_a_fresh_link_is_fetched_as_the_service_wrote_it(tmp_path: Path) -> None:
    """The link is signed, so that not even an escape in it is written another way."""
    async with raw_server([answer(403, b""), answer(200, picture(500))]) as host:
        link = "/a%2fb%28c%29~'//d?sig=%2b%20=="
        async with raw_server([answer(200, {"code": 200, "data": f"{host.url}{link}"})]) as service:
            async with api_to(service.url) as api:
                path = await Downloads(api).save("t1", 1, f"{host.url}/old%2f.png", tmp_path)

    assert path.read_bytes() == picture(500)
    assert [request.partition(b"\r\n")[0].decode() for request in host.requests] == [
        "GET /old%2f.png HTTP/1.1",
        f"GET {link} HTTP/1.1",
    ]


async def test_refreshing_survives_a_busy_service(emulator: Emulator, downloads: Downloads, tmp_path: Path) -> None:
    """The new link is asked for again when the service is busy."""
    url = await generated(emulator)
    await asyncio.sleep(25 * 3600)
    emulator.inject(Fault("download-url", "refuse", times=2))

    await downloads.save("t1", 1, url, tmp_path)
    assert emulator.ledger.calls["download-url"] == 3


async def test_a_fresh_link_is_kept_after_a_break(emulator: Emulator, downloads: Downloads, tmp_path: Path) -> None:
    """A break on the new link goes on with the new link."""
    url = await generated(emulator)
    await asyncio.sleep(25 * 3600)
    emulator.inject(Fault("file", "cut_body", after=1))

    await downloads.save("t1", 1, url, tmp_path)
    assert (emulator.ledger.calls["file"], emulator.ledger.calls["download-url"]) == (3, 1)


@pytest.mark.parametrize(
    ("status", "error"), [(401, ApiError), (403, ApiError), (404, NotFoundError), (410, NotFoundError)]
)
async def test_an_expired_link_that_stays_expired(
    emulator: Emulator, downloads: Downloads, tmp_path: Path, status: int, error: type[ApiError]
) -> None:
    """The service refuses foreign addresses (422); then the host's own refusal comes out, with what to do."""
    async with serving(picture(1000)) as host:
        host.answers.append(reply(status))
        with pytest.raises(
            error, match=rf"^{status}: picture 1 of task t1 was refused.*fetch the task's record again"
        ) as caught:
            await downloads.save("t1", 1, host.url, tmp_path)

    # It is the link and not the API key that is refused.
    assert not isinstance(caught.value, AuthenticationError)
    assert (caught.value.task_id, caught.value.code, emulator.ledger.calls["download-url"]) == ("t1", status, 1)
    assert names(tmp_path) == set()


async def test_a_fresh_link_that_is_refused_as_well(emulator: Emulator, downloads: Downloads, tmp_path: Path) -> None:
    """The service is asked for a new link once, not for ever."""
    url = await generated(emulator)
    await asyncio.sleep(25 * 3600)
    emulator.inject(Fault("file", "html", status=403, times=None))

    with pytest.raises(ApiError, match=r"^403"):
        await downloads.save("t1", 1, url, tmp_path)
    assert (emulator.ledger.calls["file"], emulator.ledger.calls["download-url"]) == (2, 1)


async def test_a_fresh_link_is_asked_for_once_in_all_tries(
    emulator: Emulator, downloads: Downloads, tmp_path: Path
) -> None:
    """Also when the fresh link breaks off first and is refused then."""
    url = await generated(emulator)
    await asyncio.sleep(25 * 3600)
    emulator.inject(Fault("file", "cut_body", after=1))
    emulator.inject(Fault("file", "html", status=403, after=1, times=None))

    with pytest.raises(ApiError, match=r"^403"):
        await downloads.save("t1", 1, url, tmp_path)
    assert (emulator.ledger.calls["file"], emulator.ledger.calls["download-url"]) == (3, 1)


@pytest.mark.parametrize("scope", [True, False], ids=["cancel scope", "task"])
async def test_cancelled_in_the_middle(downloads: Downloads, tmp_path: Path, *, scope: bool) -> None:
    """No temporary file is left, nothing has the final name, and the next try works."""
    reached = asyncio.Event()
    async with serving(picture(500_000), ETag=ETAG) as host:
        host.answers.append(host.stall_after(200_000, reached))

        async def download() -> None:
            with anyio.move_on_after(5.0 if scope else None):
                async with anyio.create_task_group() as group:
                    group.start_soon(downloads.save, "t1", 1, host.url, tmp_path)

        task = asyncio.create_task(download())
        await reached.wait()
        await asyncio.sleep(1.0)
        (partial,) = names(tmp_path)
        assert re.fullmatch(r"\.flux2-[0-9a-f]{16}\.part", partial)
        if not scope:
            task.cancel()
        await asyncio.wait([task])
        assert scope != task.cancelled()
        assert names(tmp_path) == set()
        await downloads.save("t1", 1, host.url, tmp_path)

    assert names(tmp_path) == {"t1-1.png"}


async def test_a_full_disk(downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's error comes out at once, and the temporary file is removed."""

    def full(part: partial_file.Part, chunk: bytes) -> None:
        with Path("/dev/full").open("wb", buffering=0) as device:
            device.write(chunk)

    monkeypatch.setattr(partial_file.Part, "write", full)
    async with serving(picture(1000)) as host:
        with pytest.raises(OSError, match="No space left") as caught:
            await downloads.save("t1", 1, host.url, tmp_path)

    assert caught.value.errno == errno.ENOSPC
    assert len(host.seen) == 1
    assert names(tmp_path) == set()


async def test_a_target_that_cannot_be_replaced(downloads: Downloads, tmp_path: Path) -> None:
    """A folder that has the picture's name stays, and the temporary file does not."""
    (tmp_path / "t1-1.png").mkdir()
    async with serving(picture(1000)) as host:
        with pytest.raises(IsADirectoryError):
            await downloads.save("t1", 1, host.url, tmp_path)

    assert names(tmp_path) == {"t1-1.png"}


async def test_at_most_eight_at_once(downloads: Downloads, tmp_path: Path) -> None:
    """A result of many pictures, and many results, share the line."""
    async with serving(picture(1000)) as host:

        async def slow(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
            await asyncio.sleep(1.0)
            return await host.serve(request)

        host.answers.extend([slow] * 20)
        await asyncio.gather(*(downloads.save("t1", number, host.url, tmp_path) for number in range(1, 21)))

    assert host.most_running == 8
    assert len(names(tmp_path)) == 20


def changing(host: FileHost, count: int) -> Answer:
    """Have another file from now on, and break off within it."""

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        host.content = picture(count + 20_000, seed=count)
        host.validators = dict.fromkeys(host.validators, f'"{count}"')
        return await host.cut_after(count)(request)

    return answer


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["cut", "chunked", "status", "page", "change", "wrong", "416"]), st.integers(0, 80_000)
        ),
        max_size=4,
    ),
    st.sampled_from([{"ETag": ETAG}, {"Last_Modified": DATE}, {}]),
)
async def test_any_misfortune_gives_the_whole_file(
    tmp_path: Path, misfortunes: list[tuple[str, int]], validators: dict[str, str]
) -> None:
    """Up to four misfortunes in any order, and the file is byte for byte one that the host had."""
    async with Emulator() as emulator, connected(emulator) as api, serving(picture(80_000), **validators) as host:
        for kind, count in misfortunes:
            match kind:
                case "cut" | "chunked":
                    host.answers.append(host.cut_after(count, chunked=kind == "chunked"))
                case "status":
                    host.answers.append(reply(503))
                case "page":
                    host.answers.append(reply(200, b"<p>" + bytes(count), ETag=ETAG))
                case "wrong":
                    host.answers.append(
                        reply(206, bytes(count), Content_Range=f"bytes {count + 200_000}-399999/400000")
                    )
                case "416":
                    host.answers.append(reply(416, Content_Range=f"bytes */{count + 200_000}"))
                case _:
                    host.answers.append(changing(host, count))
        path = await Downloads(api).save("t1", 1, host.url, tmp_path)

        assert path.read_bytes() == host.content
        assert names(tmp_path) == {path.name}


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    """All of its parents as well, and nothing is left in it."""
    prepare_folder(tmp_path / "a" / "b")
    prepare_folder(tmp_path / "a" / "b")

    assert names(tmp_path / "a" / "b") == set()


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/self", "/proc/self/below", "x" * 300, "nul\0"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, folder: str) -> None:
    """The text tells which and why, for root as well."""
    (tmp_path / "file").touch()

    with pytest.raises(InvalidRequestError, match=r"directory: .* cannot be written \([^)]+\), give a folder that can"):
        prepare_folder(tmp_path / folder)


def test_a_machine_in_trouble_is_not_the_folders_fault(tmp_path: Path) -> None:
    """When no more files can be opened, the system's error comes out as itself."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with tempfile.TemporaryFile() as highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno() + 1, limits[1]))
        taken = []
        try:
            with pytest.raises(OSError, match="Too many open files") as caught:
                # Numbers that are free below the highest are used up first.
                while True:
                    taken.append(os.dup(0))
            with pytest.raises(OSError, match="Too many open files") as caught:
                prepare_folder(tmp_path / "new")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for number in taken:
                os.close(number)

    assert not isinstance(caught.value, InvalidRequestError)
    assert caught.value.errno == errno.EMFILE
