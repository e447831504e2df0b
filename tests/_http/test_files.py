"""Uploads and downloads, as the session calls them."""

import asyncio
import hashlib
import io
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from file_host import JPEG, WEBP, names, picture, reply, result_of, serving
from service_calls import connected

from flux2_async._http.files import Files, together
from flux2_async.emulator import Emulator, Fault
from flux2_async.errors import (
    InvalidRequestError,
    NotFoundError,
    RequestRejectedError,
    TransportError,
)
from flux2_async.models import ImageSource, UploadedFile
from flux2_async.tasks.handle import ImageTask


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator() as emulator:
        yield emulator


@pytest.fixture
async def files(emulator: Emulator) -> AsyncIterator[Files]:
    async with connected(emulator) as api:
        yield Files(api)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(picture(2000, number))
    return paths


UPLOADED = UploadedFile("https://host/there.png", "there.png", 9, "image/png")
ADDRESS = "HTTPS://example.com/shelf.jpg"


async def test_good_pictures_pass_the_check(files: Files, photos: list[Path]) -> None:
    """Paths as text and as objects, bytes, addresses and uploaded files can be sent."""
    await files.check([photos[0], str(photos[1]), picture(99), ADDRESS, UPLOADED])
    await files.check([ADDRESS])


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (
            "example.com/a.jpg",
            r"neither an existing file nor an address with http:// or https:// \('example.com/a.jpg'\)",
        ),
        (Path("missing.png"), r"neither an existing file .* \('missing.png'\)$"),
        ("~/x.png", r"neither an existing .* \('~/x.png'\); ~ is not expanded, give Path\(...\).expanduser\(\)$"),
        (Path("/"), "a folder given"),
        (b"GIF89a", "GIF given, allowed are JPEG, PNG and WebP"),
        (picture(11_000_000), r"11000000 bytes given, allowed are 1 to 10000000 \(10 MB\)"),
        (b"", "0 bytes given"),
        (
            picture(999, magic=JPEG)[:-1],
            "the JPEG is not whole, its end is missing; nothing was sent: copy or download",
        ),
    ],
    ids=["name", "missing", "home", "folder", "gif", "11 MB", "empty", "cut"],
)
async def test_a_bad_picture_is_named_before_anything_is_sent(
    emulator: Emulator, files: Files, photos: list[Path], image: ImageSource, text: str
) -> None:
    """The text names its place in the request, what was given and what is allowed."""
    with pytest.raises(InvalidRequestError, match=rf"^images\[2\]: {text}"):
        await files.check([photos[0], ADDRESS, image, photos[1]])
    assert emulator.ledger.calls["upload"] == 0


async def test_gives_an_address_for_every_picture(emulator: Emulator, files: Files, photos: list[Path]) -> None:
    """In order: what is there as it was given, what is local as the file it became."""
    images: list[ImageSource] = [photos[0], ADDRESS, picture(2000, 1), UPLOADED, str(photos[2]), photos[0]]

    found = await files.urls(images)

    assert (found[1], found[3]) == (ADDRESS, UPLOADED)
    found_names = [each.file_name for each in found if isinstance(each, UploadedFile)]
    digests = [hashlib.sha256(picture(2000, seed)).hexdigest()[:32] for seed in (0, 1, 2, 0)]
    there = [f"{digest}.png" for digest in digests]
    assert found_names == [*there[:2], "there.png", *there[2:]]
    assert emulator.ledger.calls["upload"] == 3


async def test_the_pictures_of_a_request_are_sent_at_once(emulator: Emulator, files: Files) -> None:
    """Eight pictures do not take eight times as long, nor crowd the line."""
    emulator.script.latency = 1.0
    begun = asyncio.get_running_loop().time()

    await files.urls([picture(100, seed) for seed in range(8)])

    assert 2.0 <= asyncio.get_running_loop().time() - begun < 3.0
    assert emulator.ledger.max_in_flight["upload"] == 4


async def test_a_refused_picture_is_the_error_of_the_request(emulator: Emulator, files: Files) -> None:
    """The error comes out as itself, not in a group; what came through is not sent again."""
    emulator.inject(Fault("upload", "refuse", code=400, message="no"))
    images = [picture(100, seed) for seed in range(3)]
    with pytest.raises(RequestRejectedError, match="400: no"):
        await files.urls(images)

    assert len(await files.urls(images)) == 3
    assert emulator.ledger.calls["upload"] == 4


@pytest.mark.parametrize(
    "make",
    [Path, str, Path.read_bytes, lambda path: io.BytesIO(path.read_bytes()), lambda path: path.open("rb")],
    ids=["path", "text", "bytes", "memory", "file"],
)
async def test_uploads_from_any_source(
    emulator: Emulator, files: Files, photos: list[Path], make: Callable[[Path], Any]
) -> None:
    """A path, the content or a binary file object, which stays open."""
    source = make(photos[0])
    file = await files.upload(source, file_name="can.png")

    digest = hashlib.sha256(picture(2000)).hexdigest()
    assert file.file_name == f"can-{digest[:32]}.png"
    assert [call.sha256 for call in emulator.ledger.uploads] == [digest]
    if isinstance(source, io.IOBase):
        assert not source.closed
        source.close()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("https://", "source: not a complete address"),
        (UPLOADED, "source: UploadedFile given, allowed are a path, an address, bytes and a binary file"),
        (None, "source: NoneType given"),
        (io.StringIO("text"), "source: a file object that gives str"),
        (io.BytesIO(b""), "source: 0 bytes given"),
        (io.BytesIO(bytes(11_000_000)), "source: 1[0-9]{7} bytes given, allowed are 1 to 10000000"),
        ("missing", "source: neither an existing file"),
    ],
    ids=["address", "uploaded", "none", "text file", "empty", "large", "missing"],
)
async def test_refuses_to_upload_anything_else(emulator: Emulator, files: Files, source: Any, text: str) -> None:
    """The text says what is allowed, and nothing is sent."""
    with pytest.raises(InvalidRequestError, match=text):
        await files.upload(source)
    assert emulator.ledger.calls["upload"] == 0


async def test_reads_no_file_in_the_loop(files: Files, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk or a slow pipe stops nobody else."""
    threads: list[int] = []

    class Source(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            threads.append(threading.get_ident())
            return super().read(size)

    def record(name: str) -> None:
        real = getattr(Path, name)

        def recorded(path: Path, *args: Any, **options: Any) -> Any:
            threads.append(threading.get_ident())
            return real(path, *args, **options)

        monkeypatch.setattr(Path, name, recorded)

    async with serving(picture(2000)) as host:
        # What is loaded at first need is there from now on.
        await files.upload(picture(50))
        await files.download(result_of(host.url), photos[0].parent)
        for name in ("open", "stat", "mkdir", "replace", "unlink"):
            record(name)
        await files.upload(Source(picture(100)))
        await files.check(photos)
        await files.urls(photos)
        await files.download(result_of(host.url), photos[0].parent)

        monkeypatch.undo()

    # The source is read twice, a check looks and opens, an upload does so three times; then folder, file and its name.
    assert len(threads) >= 2 + 3 * 2 + 3 * 6 + 3
    assert threading.get_ident() not in threads


async def test_cancelled_in_the_middle_of_an_upload(emulator: Emulator, files: Files, photos: list[Path]) -> None:
    """A cancelled caller leaves at once, no file stays open, and the next upload works."""
    emulator.inject(Fault("upload", "hang", times=3))
    upload = asyncio.create_task(files.urls([*photos]))
    await eventually(lambda: set(map(str, photos)) <= open_files())
    upload.cancel()
    begun = asyncio.get_running_loop().time()
    await asyncio.wait([upload])

    assert upload.cancelled()
    assert asyncio.get_running_loop().time() - begun < 0.5
    assert set(map(str, photos)) & open_files() == set()
    assert len(await files.urls(photos)) == 3


def open_files() -> set[str]:
    links = Path("/proc/self/fd")
    return {str(link.readlink()) for link in links.iterdir() if link.is_symlink()}


async def test_cancelled_at_any_moment_of_an_upload(files: Files, photos: list[Path]) -> None:
    """Whatever is going on just then, no file stays open, which Python would warn of."""
    for turns in range(60):
        upload = asyncio.create_task(files.upload(photos[turns % 3]))
        for _ in range(turns):
            await asyncio.sleep(0)
        upload.cancel()
        await asyncio.wait([upload])
        assert set(map(str, photos)) & open_files() == set()


async def test_a_pipe_that_never_ends_can_be_cancelled(files: Files) -> None:
    """Who waits for a file object of the caller's own can be cancelled."""
    loop, reading, end = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    class Pipe(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            loop.call_soon_threadsafe(reading.set)
            end.wait()
            return b""

    upload = asyncio.create_task(files.upload(Pipe()))
    await reading.wait()
    upload.cancel()
    await asyncio.wait([upload])
    assert not end.is_set()
    end.set()

    assert upload.cancelled()


async def test_saves_every_picture_of_a_result(files: Files, tmp_path: Path) -> None:
    """In the order of the addresses, named by number and content, into a folder that is made."""
    contents = [picture(100, 0, JPEG), picture(100, 0, WEBP), b"\x93unknown\0", picture(5000)]
    async with serving(b"") as host:
        # Whichever comes first gets the first content.
        host.answers.extend(reply(200, content) for content in contents)
        folder = tmp_path / "new" / "out"
        paths = await files.download(result_of(*[host.url] * 4), folder)

    assert [path.stem for path in paths] == ["t1-1", "t1-2", "t1-3", "t1-4"]
    assert {path.suffix: path.read_bytes() for path in paths} == dict(
        zip([".jpg", ".webp", ".bin", ".png"], contents, strict=True)
    )
    assert names(folder) == {path.name for path in paths}


async def test_a_strange_task_id_stays_in_the_folder(files: Files, tmp_path: Path) -> None:
    """An id from outside is no path."""
    async with serving(picture(50)) as host:
        (path,) = await files.download(result_of(host.url, task_id="../../evil"), tmp_path / "out")

    assert path.parent == tmp_path / "out"
    assert path.name == f"{hashlib.sha256(b'../../evil').hexdigest()[:32]}-1.png"
    assert names(tmp_path) == {"out"}


async def test_those_that_are_done_stay(files: Files, tmp_path: Path) -> None:
    """One picture that is gone keeps none of the others from being saved, and its error comes out as itself."""
    async with serving(picture(50)) as host:
        host.answers.append(reply(404))
        with pytest.raises(NotFoundError) as caught:
            await files.download(result_of(*[host.url] * 5), tmp_path)

    assert caught.value.task_id == "t1"
    assert len(names(tmp_path)) == 4


async def test_a_folder_that_cannot_be_written_costs_no_download(files: Files, tmp_path: Path) -> None:
    """It is found out before anything is fetched, and the text says why."""
    (tmp_path / "file").touch()
    async with serving(picture(50)) as host:
        with pytest.raises(
            InvalidRequestError, match=r"directory: '.*/file/below' cannot be written \(Not a directory\)"
        ):
            await files.download(result_of(host.url), tmp_path / "file" / "below")

    assert host.seen == []


async def test_a_task_is_no_result(files: Files, tmp_path: Path) -> None:
    """Who passes the handle instead of what it gives is told to await it."""
    with pytest.raises(InvalidRequestError, match=r"result: ImageTask given, it must be what `await task` gave"):
        await files.download(ImageTask("t1"), tmp_path)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_a_cancelled_download_leaves_nothing(files: Files, tmp_path: Path) -> None:
    """No temporary file is left of any of its pictures; one that was whole stays."""
    async with serving(picture(500_000)) as host:

        async def answer(request: web.Request) -> web.StreamResponse:
            whole = request.path.endswith("1")
            return await (host.serve if whole else host.stall_after(200_000, asyncio.Event()))(request)

        host.answers.extend([answer] * 3)
        urls = [f"{host.url}/{number}" for number in (1, 2, 3)]
        download = asyncio.create_task(files.download(result_of(*urls), tmp_path))
        await eventually(lambda: "t1-1.png" in names(tmp_path) and len(names(tmp_path)) == 3)
        download.cancel()
        # Twice, as an impatient framework does it.
        await asyncio.sleep(0)
        download.cancel()
        await asyncio.wait([download])

    assert download.cancelled()
    assert names(tmp_path) == {"t1-1.png"}
    assert (tmp_path / "t1-1.png").read_bytes() == picture(500_000)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what the other side of a real socket does."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    assert condition()


async def test_download_with_a_deadline(files: Files, tmp_path: Path) -> None:
    """A deadline around it cleans up just so."""
    async with serving(picture(500_000)) as host:
        host.answers.append(host.stall_after(200_000, asyncio.Event()))
        with pytest.raises(TimeoutError), anyio.fail_after(5.0):
            await files.download(result_of(host.url), tmp_path)

    assert names(tmp_path) == set()


async def test_download_url_checks_what_it_is_given(emulator: Emulator, files: Files) -> None:
    """Anything but a web address is refused before it is sent; a foreign one by the service."""
    with pytest.raises(InvalidRequestError, match=r"url: 'out/a\.png' given, it must look like https://"):
        await files.download_url("out/a.png")
    assert emulator.ledger.calls["download-url"] == 0
    with pytest.raises(RequestRejectedError):
        await files.download_url("https://example.com/a.png")


async def test_together_gives_values_in_order() -> None:
    """However long each takes."""

    async def later(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    assert await together([lambda: later(3.0), lambda: later(1.0), lambda: later(2.0)]) == [3.0, 1.0, 2.0]
    assert await together([]) == []


async def test_together_finishes_the_others_before_it_raises() -> None:
    """The first error in order comes out plain, when all have come to their ends."""
    done: list[float] = []

    async def later(seconds: float, *, fails: bool) -> None:
        await asyncio.sleep(seconds)
        done.append(seconds)
        if fails:
            raise TransportError(str(seconds))

    with pytest.raises(TransportError, match=r"2\.0"):
        await together(
            [lambda: later(3.0, fails=False), lambda: later(2.0, fails=True), lambda: later(1.0, fails=True)]
        )
    assert done == [1.0, 2.0, 3.0]
