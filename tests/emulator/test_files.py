"""Uploads and results of the emulator: what is kept, where it is found, how long, and in which parts."""

import asyncio
import base64
import hashlib
import io
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from emulated import logged
from emulator_client import DOWNLOAD_URL, emulated, image_to_image
from PIL import Image

from flux2_async.emulator import Plan, Script

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
JPEG = b"\xff\xd8\xff" + bytes(range(200))
DAY = 86400.0


def picture(colour: str = "orange", size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


async def test_a_streamed_file_is_kept_and_served() -> None:
    """The reply has the documented shape, and the address gives the same bytes without a key."""
    async with emulated() as raw:
        answer = await raw.upload(PNG, "a b.png", "pictures/of mine")
        data = answer.data
        uploaded_at = data.pop("uploadedAt")
        served = await raw.get(data["downloadUrl"])

        assert (answer.status, answer.json["success"], answer.code) == (200, True, 200)
        assert data == {
            "fileName": "a b.png",
            "filePath": "pictures/of mine/a b.png",
            "downloadUrl": raw.emulator.upload_url + "/files/pictures/of%20mine/a%20b.png",
            "fileSize": len(PNG),
            "mimeType": "image/png",
        }
        assert uploaded_at.endswith("Z")
        assert (served.status, served.body, served.headers["Content-Type"]) == (200, PNG, "image/png")
        assert "file" not in raw.emulator.ledger.authorization_seen


async def test_a_key_sent_to_a_file_is_noticed() -> None:
    """The ledger tells when the key reaches a file host, in a header or in the address."""
    async with emulated() as raw:
        url = (await raw.upload(PNG)).data["downloadUrl"]
        async with raw.http.get(url, headers={"Authorization": "Bearer emulator-key"}) as response:
            assert response.status == 200

        assert "file" in raw.emulator.ledger.authorization_seen


@pytest.mark.parametrize(
    "text", [base64.b64encode(JPEG).decode(), "data:image/png;base64," + base64.b64encode(JPEG).decode()]
)
async def test_base64_and_data_urls_are_taken(text: str) -> None:
    """The content decides the type, whatever a data URL says."""
    async with emulated() as raw:
        data = (await raw.upload_json("base64", base64Data=text, uploadPath="p", fileName="x.jpg")).data

        assert (data["fileName"], data["mimeType"], data["fileSize"]) == ("x.jpg", "image/jpeg", len(JPEG))
        assert (await raw.get(data["downloadUrl"])).body == JPEG


async def test_a_data_url_may_be_percent_encoded() -> None:
    """Without `base64` the text after the comma is percent-encoded."""
    async with emulated() as raw:
        data = (await raw.upload_json("base64", base64Data="data:text/plain,a%20b", uploadPath="p")).data

        assert (await raw.get(data["downloadUrl"])).body == b"a b"
        assert data["fileName"].endswith(".txt")


async def test_the_service_fetches_from_an_address() -> None:
    """file-url-upload gets its own files from the store and others over HTTP."""
    app = web.Application()

    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=JPEG)

    app.router.add_get("/some picture.jpg", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with emulated() as raw:
            outside = await raw.upload_json(
                "url", fileUrl=f"http://127.0.0.1:{port}/some%20picture.jpg", uploadPath="p", fileName="o.jpg"
            )
            own = await raw.upload_json("url", fileUrl=outside.data["downloadUrl"], uploadPath="q")
            missing = await raw.upload_json("url", fileUrl=f"http://127.0.0.1:{port}/none", uploadPath="p")
            gone = await raw.upload_json("url", fileUrl=outside.data["downloadUrl"] + "x", uploadPath="p")

            assert outside.data["mimeType"] == "image/jpeg"
            assert (await raw.get(own.data["downloadUrl"])).body == JPEG
            assert own.data["fileName"].endswith(".jpg")
            assert missing.json == {"success": False, "code": 400, "msg": "Failed to download the file: HTTP 404"}
            assert gone.json == missing.json
            assert [upload.way for upload in raw.emulator.ledger.uploads] == ["url", "url"]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("way", "body", "words"),
    [
        ("base64", {"base64Data": "aGVsbG8="}, "Missing required parameter: uploadPath"),
        ("base64", {"uploadPath": "p"}, "Missing required parameter: base64Data"),
        ("base64", {"base64Data": "not base64!", "uploadPath": "p"}, "Base64 decoding failed: Invalid Base64 format"),
        ("base64", {"base64Data": "aGVsbG8=", "uploadPath": "/p"}, "Invalid uploadPath"),
        ("base64", {"base64Data": "aGVsbG8=", "uploadPath": "p/"}, "Invalid uploadPath"),
        ("base64", {"base64Data": "aGVsbG8=", "uploadPath": "p/../q"}, "Invalid uploadPath"),
        ("base64", {"base64Data": "aGVsbG8=", "uploadPath": "p", "fileName": "../x"}, "Invalid fileName"),
        ("base64", {"base64Data": "aGVsbG8=", "uploadPath": "p", "fileName": 7}, "Invalid fileName"),
        ("url", {"uploadPath": "p"}, "Missing required parameter: fileUrl"),
        ("url", {"fileUrl": "file:///etc/passwd", "uploadPath": "p"}, "use an http or https address"),
        ("url", {"fileUrl": "http://127.0.0.1:1/x"}, "Missing required parameter: uploadPath"),
        ("url", {"fileUrl": "http://127.0.0.1:1/x", "uploadPath": "p"}, "Failed to download the file"),
    ],
)
async def test_a_bad_upload_is_refused_in_the_services_words(way: str, body: dict[str, Any], words: str) -> None:
    """Code 400 in the upload envelope, and nothing is kept."""
    async with emulated(Script(error_style="http")) as raw:
        answer = await raw.upload_json(way, **body)

        assert (answer.status, answer.json["success"], answer.code) == (400, False, 400)
        assert words in answer.json["msg"]
        assert raw.emulator.ledger.uploads == []


async def test_a_bad_stream_upload_is_refused() -> None:
    """Without file, without uploadPath, or without multipart at all: 400."""
    async with emulated() as raw:
        path = "/file-upload/api/file-stream-upload"
        texts = [
            (await raw.upload(PNG, folder=None)).json["msg"],
            (await raw.call("POST", path, json={})).json["msg"],
            (await raw.call("POST", path, data=b"x", headers={"Content-Type": "multipart/form-data"})).json["msg"],
            (
                await raw.call(
                    "POST", path, data=b"--b\r\n\r\nno end", headers={"Content-Type": "multipart/form-data; boundary=b"}
                )
            ).json["msg"],
            (
                await raw.call(
                    "POST",
                    path,
                    data=b'--b\r\nContent-Disposition: form-data; name="uploadPath"\r\n\r\np\r\n--b--\r\n',
                    headers={"Content-Type": "multipart/form-data; boundary=b"},
                )
            ).json["msg"],
        ]

        assert texts[0] == "Missing required parameter: uploadPath"
        assert texts[1] == "Missing required parameter: file"
        assert texts[2] == "Malformed multipart body"
        assert texts[3] in {"Malformed multipart body", "Missing required parameter: file"}
        assert texts[4] == "Missing required parameter: file"


async def test_without_a_name_one_is_made_up_and_a_name_again_overwrites() -> None:
    """Random names never meet; the same name gives the new bytes."""
    async with emulated() as raw:
        one, two = await raw.upload(PNG, None), await raw.upload(PNG, None)
        first, second = await raw.upload(PNG, "x"), await raw.upload(JPEG, "x")

        assert one.data["fileName"] != two.data["fileName"]
        assert one.data["fileName"].endswith(".png")
        assert first.data["downloadUrl"] == second.data["downloadUrl"]
        assert (await raw.get(first.data["downloadUrl"])).body == JPEG
        assert [upload.sha256 for upload in raw.emulator.ledger.uploads][2:] == [
            hashlib.sha256(PNG).hexdigest(),
            hashlib.sha256(JPEG).hexdigest(),
        ]


async def test_a_file_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """413, whether the file or already the request is over the limit."""
    monkeypatch.setattr("flux2_async.emulator.uploads.MOST_BYTES", 100)
    monkeypatch.setattr("flux2_async.emulator.api.MOST_BODY_BYTES", 1000)
    async with emulated() as raw:
        answers = [
            await raw.upload(PNG),
            await raw.upload_json("base64", base64Data="A" * 2000, uploadPath="p"),
            await raw.create(prompt="p" * 2000),
        ]

        assert [answer.code for answer in answers] == [413, 413, 413]
        assert raw.emulator.ledger.uploads == []


async def test_a_multipart_in_a_multipart_is_malformed() -> None:
    """The upload wants a flat form."""
    inner = b"--i\r\n\r\nx\r\n--i--\r\n"
    body = b"--b\r\nContent-Type: multipart/mixed; boundary=i\r\n\r\n" + inner + b"\r\n--b--\r\n"
    async with emulated() as raw:
        answer = await raw.call(
            "POST",
            "/file-upload/api/file-stream-upload",
            data=body,
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )

        assert answer.json == {"success": False, "code": 400, "msg": "Malformed multipart body"}


async def test_uploads_expire() -> None:
    """After three days an upload is gone, and a task that needs it fails because the picture cannot be fetched."""
    async with emulated() as raw:
        url = (await raw.upload(picture())).data["downloadUrl"]
        await asyncio.sleep(3 * DAY - 1)
        there = await raw.get(url)
        good = await raw.submit(image_to_image(url))
        await asyncio.sleep(2)
        gone = await raw.get(url)
        bad = await raw.submit(image_to_image(url))
        await asyncio.sleep(2)
        record = (await raw.record(bad)).data

        assert (there.status, gone.status) == (200, 404)
        assert (await raw.record(good)).data["state"] == "success"
        assert (record["state"], record["failCode"]) == ("fail", "451")
        assert url in record["failMsg"]


@pytest.mark.parametrize(
    ("url", "there"),
    [
        ("http://localhost:8000/a.png", False),
        ("http://127.0.0.1:9/a.png", False),
        ("http://192.168.1.5/a.png", False),
        ("http://[fd00::1]/a.png", False),
        ("http://[::ffff:127.0.0.1]/a.png", False),
        ("http://127.1/a.png", False),
        ("http://0x7f.0.0.1/a.png", False),
        ("http://0177.0.0.1/a.png", False),
        ("http://2130706433/a.png", False),
        ("http://localhost./a.png", False),
        ("http://minio:9000/a.png", False),
        ("http://printer.local/a.png", False),
        ("https://no-such-shop.invalid/a.png", False),
        ("https://files.example.com/a.png", True),
        ("http://8.8.8.8/a.png", True),
    ],
)
async def test_pictures_that_the_service_cannot_reach(url: str, there: bool) -> None:
    """Their task is accepted, fails because the picture cannot be fetched, and costs nothing."""
    for private_images in (False, True):
        async with emulated(Script(private_images=private_images, render=False)) as raw:
            task_id = await raw.submit(image_to_image(url))
            await asyncio.sleep(2)
            record = (await raw.record(task_id)).data
            assert record["state"] == ("success" if there or private_images else "fail")
            if record["state"] == "fail":
                assert (record["failCode"], record["creditsConsumed"]) == ("451", 0)
                assert url in record["failMsg"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GIF89a" + bytes(50), "Unsupported image format"),
        (b"hello", "Unsupported image format"),
        (PNG + bytes(10 * 1024 * 1024), "Image larger than 10MB"),
    ],
    ids=["gif", "text", "too large"],
)
async def test_a_task_fails_on_what_is_no_acceptable_picture(content: bytes, words: str) -> None:
    """The upload takes any file; the model does not."""
    async with emulated(Script(plans=Plan(duration=0))) as raw:
        url = (await raw.upload(content)).data["downloadUrl"]
        record = (await raw.record(await raw.submit(image_to_image(url)))).data

        assert (record["state"], record["failCode"], record["failMsg"]) == ("fail", "400", words)


async def test_addresses_with_raw_spaces_work_once_encoded() -> None:
    """With `download_url_spaces` an address is no good as it stands, in createTask and elsewhere, until encoded."""
    async with emulated(Script(download_url_spaces=True, plans=Plan(duration=0))) as raw:
        url = (await raw.upload(picture())).data["downloadUrl"]
        encoded = quote(url, safe=":/")
        task_id = await raw.submit(image_to_image(encoded))

        assert url.endswith("/files/user uploads/pictures/a.png")
        assert (await raw.create(image_to_image(url))).code == 422
        assert (await raw.get(encoded)).status == 200
        assert (await raw.record(task_id)).data["state"] == "success"


async def test_result_addresses_expire_and_can_be_refreshed() -> None:
    """403 after 24 hours; download-url gives a link for 20 minutes, until the file goes after 14 days."""
    async with emulated(Script(render=False, plans=Plan(duration=10.0))) as raw:
        url = raw.emulator.task(await raw.submit()).result_urls[0]
        unfinished = await raw.get(url)
        await asyncio.sleep(10 + DAY - 1)
        fresh = await raw.get(url)
        await asyncio.sleep(2)
        expired = await raw.get(url)
        link = (await raw.call("POST", DOWNLOAD_URL, json={"url": url})).data
        renewed = await raw.get(link)
        await asyncio.sleep(1199)
        still = await raw.get(link)
        await asyncio.sleep(2)
        over = await raw.get(link)
        await asyncio.sleep(14 * DAY)
        gone = await raw.call("POST", DOWNLOAD_URL, json={"url": url})

        statuses = [answer.status for answer in (unfinished, fresh, expired, renewed, still, over)]
        assert statuses == [404, 200, 403, 200, 200, 403]
        assert fresh.body == renewed.body
        assert gone.code == 404
        assert (await raw.get(url)).status == 404


async def test_a_link_cannot_be_forged() -> None:
    """A link whose time or path was changed is refused, and so is one made up."""
    async with emulated(Script(render=False, plans=Plan(duration=0, pictures=2))) as raw:
        urls = await raw.urls(await raw.submit())
        link = (await raw.call("POST", DOWNLOAD_URL, json={"url": urls[0]})).data
        forged = [
            link.replace("expires=1", "expires=2"),
            link.replace("/0.png", "/1.png"),
            urls[0] + "?expires=x&signature=y",
        ]

        assert [(await raw.get(url)).status for url in forged] == [403, 403, 403]
        assert (await raw.get(link)).status == 200


@pytest.mark.parametrize(
    "url", ["https://files.example/x.png", "{base}/file-upload/files/p/a.png", "{base}/results/no", 7]
)
async def test_download_url_refuses_what_was_not_generated_here(url: Any) -> None:
    """422 for foreign addresses, uploads, and what is no address."""
    async with emulated() as raw:
        await raw.upload(PNG, "a.png", "p")
        given = url.format(base=raw.emulator.base_url) if isinstance(url, str) else url
        answer = await raw.call("POST", DOWNLOAD_URL, json={"url": given})

        assert (answer.code, answer.data) == (422, None)


async def test_what_was_not_made_is_not_found() -> None:
    """404 for another number, another task, a failed task, another path."""
    async with emulated(Script(render=False, plans=[Plan(duration=0), Plan(duration=0, outcome="fail")])) as raw:
        good, failed = await raw.submit(), await raw.submit()
        base = raw.emulator.base_url
        paths = [f"/results/{good}/1.png", f"/results/{'0' * 32}/0.png", f"/results/{failed}/0.png", "/results/x"]

        assert [(await raw.get(base + path)).status for path in paths] == [404] * 4
        assert (await raw.get(base + f"/results/{good}/0.png")).status == 200


async def test_head_tells_the_size_without_the_content() -> None:
    """HEAD has the headers of GET and no body."""
    async with emulated() as raw:
        url = (await raw.upload(PNG)).data["downloadUrl"]
        answer = await raw.call("HEAD", url)

        assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", str(len(PNG)))


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=10-", 206, slice(10, None)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=200-99999", 206, slice(200, None)),
        ("bytes=-99999", 206, slice(0, None)),
        ("bytes=99999-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=9-3", 200, slice(None)),
        ("bytes=0-1,5-6", 200, slice(None)),
        ("bytes=-", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
    ],
)
async def test_ranges(asked: str, status: int, part: slice | None) -> None:
    """One range gives 206, one beyond the end 416, a malformed or multiple one the whole file."""
    async with emulated() as raw:
        url = (await raw.upload(PNG)).data["downloadUrl"]
        answer = await raw.get(url, Range=asked)

        assert answer.status == status
        if part is None:
            assert answer.headers["Content-Range"] == f"bytes */{len(PNG)}"
        else:
            assert answer.body == PNG[part]
        if status == 206 and part is not None:
            start, stop, _ = part.indices(len(PNG))
            assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(PNG)}"


async def test_if_range_guards_against_another_version() -> None:
    """A range is given only while ETag or Last-Modified still match; else the whole new file."""
    async with emulated() as raw:
        url = (await raw.upload(PNG, "x")).data["downloadUrl"]
        head = await raw.call("HEAD", url)
        etag, modified = head.headers["ETag"], head.headers["Last-Modified"]
        same = [await raw.get(url, Range="bytes=5-", If_Range=value) for value in (etag, modified)]
        await asyncio.sleep(5)
        await raw.upload(JPEG, "x")
        other = [await raw.get(url, Range="bytes=5-", If_Range=value) for value in (etag, modified)]

        assert [answer.status for answer in same] == [206, 206]
        assert [(answer.status, answer.body) for answer in other] == [(200, JPEG)] * 2
        assert abs(parsedate_to_datetime(modified).timestamp() - time.time()) < 60


async def test_without_rendering_every_result_is_a_tiny_picture_of_its_own() -> None:
    """`render=False` serves valid PNGs of one pixel, no two of them alike."""
    async with emulated(Script(render=False, plans=Plan(duration=0, pictures=2))) as raw:
        bodies = [(await raw.get(url)).body for url in await raw.urls(await raw.submit())]

        assert bodies[0] != bodies[1]
        assert [Image.open(io.BytesIO(body)).size for body in bodies] == [(1, 1), (1, 1)]


async def test_a_rendered_result_has_the_ratio_the_size_and_the_colours_of_its_reference() -> None:
    """A result of an orange picture in ratio 16:9 at 1K is a mostly orange JPEG of 1280 x 720."""
    async with emulated(Script(plans=Plan(duration=0))) as raw:
        url = (await raw.upload(picture("orange"))).data["downloadUrl"]
        result = (await raw.urls(await raw.submit(image_to_image(url, aspect_ratio="16:9"))))[0]
        answer = await raw.get(result)
        drawn = Image.open(io.BytesIO(answer.body))
        red, green, blue = drawn.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # type: ignore[misc]  # RGB

        assert (answer.headers["Content-Type"], drawn.format, drawn.size) == ("image/jpeg", "JPEG", (1280, 720))
        assert red > green > blue


async def test_a_picture_of_another_host_is_not_fetched() -> None:
    """A result with a reference on the internet is drawn without the internet."""
    async with emulated(Script(plans=Plan(duration=0))) as raw:
        task_id = await raw.submit(image_to_image("https://files.example/shelf.jpg"))
        answer = await raw.get((await raw.urls(task_id))[0])

        assert (answer.status, Image.open(io.BytesIO(answer.body)).size) == (200, (1024, 1024))


async def test_a_result_can_be_the_reference_of_another_task() -> None:
    """The emulator's own results are loaded, so that edits can be chained; PNG on demand."""
    async with emulated(Script(plans=Plan(duration=0), picture_format="png")) as raw:
        url = (await raw.upload(picture("blue", (100, 200)))).data["downloadUrl"]
        first = (await raw.urls(await raw.submit(image_to_image(url, aspect_ratio="auto"))))[0]
        second = (await raw.urls(await raw.submit(image_to_image(first, aspect_ratio="auto"))))[0]
        drawn = Image.open(io.BytesIO((await raw.get(second)).body))

        assert (drawn.format, drawn.size) == ("PNG", (720, 1456))


async def test_a_picture_is_drawn_once_for_many_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Concurrent and later GETs share one drawing, so a Range after a break fits to what came before."""
    drawn: list[str] = []

    def draw(prompt: str, *_: object, **__: object) -> bytes:
        drawn.append(prompt)
        return JPEG

    monkeypatch.setattr("flux2_async.emulator.files.draw", draw)
    async with emulated(Script(plans=Plan(duration=0))) as raw:
        url = (await raw.urls(await raw.submit()))[0]
        answers = await asyncio.gather(*(raw.get(url) for _ in range(5)))
        answers.append(await raw.get(url))

        assert [answer.body for answer in answers] == [JPEG] * 6
        assert drawn == ["a red kettle"]


async def test_old_drawings_are_forgotten_and_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is bounded by bytes; what fell out of it is the same when drawn again."""
    monkeypatch.setattr("flux2_async.emulator.files.CACHE_BYTES", 1)
    async with emulated(Script(plans=Plan(duration=0))) as raw:
        url = (await raw.urls(await raw.submit()))[0]

        assert (await raw.get(url)).body == (await raw.get(url)).body


async def test_without_pillow_a_picture_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """HTTP 500 with the command, which is logged for users of a client; everything else of the emulator works."""
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    for name in ("lettering", "painting"):
        monkeypatch.delitem(__import__("sys").modules, f"flux2_async.emulator.{name}", raising=False)
        monkeypatch.delattr(f"flux2_async.emulator.{name}", raising=False)
    async with emulated(Script(plans=Plan(duration=0))) as raw:
        answer = await raw.get((await raw.urls(await raw.submit()))[0])

        assert answer.status == 500
        assert b'pip install "flux2-async[emulator]"' in answer.body
        assert [line.encode() for line in logged(caplog)] == [answer.body]
