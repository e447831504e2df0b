"""Pictures on their way to the service: every one once, whatever goes wrong."""

import asyncio
import gc
import hashlib
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import anyio
import attrs
import pytest
from file_host import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from service_calls import connected

from flux2_async._http.local_picture import Picture, read_picture
from flux2_async._http.uploads import Uploads
from flux2_async.emulator import Emulator, Fault, Script
from flux2_async.emulator.script import FaultKind
from flux2_async.errors import (
    AuthenticationError,
    InvalidRequestError,
    MaintenanceError,
    RateLimitedError,
    RequestRejectedError,
    SessionClosedError,
    TransportError,
)
from flux2_async.models import UploadedFile


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator() as emulator:
        yield emulator


@pytest.fixture
async def uploads(emulator: Emulator) -> AsyncIterator[Uploads]:
    async with connected(emulator) as api:
        yield Uploads(api)


def local(content: bytes) -> Picture:
    return read_picture("images[0]", content)


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_sends_the_whole_content_under_a_name_with_its_hash(
    emulator: Emulator, uploads: Uploads, tmp_path: Path
) -> None:
    """A file is streamed byte by byte as it is, to be found under a name that belongs to its content alone."""
    content = picture(3_000_000)
    path = tmp_path / "shelf.jpeg"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()

    file = await uploads.bring(read_picture("images[0]", path), None)

    (call,) = emulator.ledger.uploads
    assert (call.way, call.size, call.sha256) == ("stream", 3_000_000, digest)
    assert call.file_name == f"{digest[:32]}.png"
    assert (file.file_name, file.size, file.mime_type) == (call.file_name, 3_000_000, "image/png")
    assert file.url.startswith(f"{emulator.upload_url}/files/images/flux2-async/")


async def test_keeps_a_safe_part_of_the_callers_name(emulator: Emulator, uploads: Uploads) -> None:
    """A name of the caller's leads nowhere else."""
    await uploads.bring(local(picture(100)), "../../Müller's can.gif")

    (call,) = emulator.ledger.uploads
    assert call.file_name == f"M-ller-s-can-{call.sha256[:32]}.png"


async def test_the_address_is_percent_encoded(emulator: Emulator, uploads: Uploads) -> None:
    """An address with raw spaces can be used as it is given."""
    emulator.script.download_url_spaces = True

    assert " " not in (await uploads.bring(local(picture(100)), None)).url


async def test_the_same_content_is_sent_once(emulator: Emulator, uploads: Uploads, tmp_path: Path) -> None:
    """From a path or as bytes, under whatever name: what is there is used."""
    path = tmp_path / "a.png"
    path.write_bytes(picture(1000))

    files = [
        await uploads.bring(read_picture("images[0]", path), None),
        await uploads.bring(local(picture(1000)), "other"),
        await uploads.bring(local(picture(1000, seed=1)), None),
    ]
    assert files[0] == files[1] != files[2]
    assert len(emulator.ledger.uploads) == 2


async def test_the_same_content_asked_for_at_once_is_sent_once(emulator: Emulator, uploads: Uploads) -> None:
    """Who comes second waits for the first."""
    emulator.script.latency = 5.0
    files: list[UploadedFile] = []

    async def bring() -> None:
        files.append(await uploads.bring(local(picture(1000)), None))

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(bring)

    assert len(set(files)) == 1
    assert emulator.ledger.calls["upload"] == 1


@pytest.mark.parametrize("scope", [True, False], ids=["cancel scope", "task"])
async def test_a_cancelled_first_leaves_the_second_to_try(emulator: Emulator, uploads: Uploads, *, scope: bool) -> None:
    """Cancelling in the middle of an upload leaves nothing to wait for in vain."""
    emulator.inject(Fault("upload", "hang"))

    async def first() -> None:
        with anyio.move_on_after(5.0 if scope else None):
            await uploads.bring(local(picture(1000)), None)

    leader = asyncio.create_task(first())
    await asyncio.sleep(1.0)
    follower = asyncio.create_task(uploads.bring(local(picture(1000)), None))
    await asyncio.sleep(1.0)
    assert not follower.done()
    if not scope:
        leader.cancel()
    begun = now()

    assert (await follower).size == 1000
    assert now() - begun < 5.0
    await asyncio.wait([leader])
    assert scope != leader.cancelled()
    assert len(emulator.ledger.uploads) == 1


async def test_a_failed_first_leaves_the_second_to_try(emulator: Emulator, uploads: Uploads) -> None:
    """An error belongs to whom it met; the content can still be brought."""
    emulator.inject(Fault("upload", "refuse", code=400, message="no"))
    pictures = [local(picture(1000)) for _ in range(3)]

    results = await asyncio.gather(*(uploads.bring(each, None) for each in pictures), return_exceptions=True)

    assert isinstance(results[0], RequestRejectedError)
    assert isinstance(results[1], UploadedFile)
    assert results[1] == results[2]
    assert len(emulator.ledger.uploads) == 1


async def test_a_cancelled_second_does_not_disturb_the_first(emulator: Emulator, uploads: Uploads) -> None:
    """Who waits for somebody else's upload may leave."""
    emulator.script.latency = 5.0
    first = asyncio.create_task(uploads.bring(local(picture(1000)), None))
    await asyncio.sleep(1.0)
    with anyio.move_on_after(1.0) as waited:
        await uploads.bring(local(picture(1000)), None)

    assert waited.cancelled_caught
    assert (await first).size == 1000


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("refuse", 429),
        ("refuse", 455),
        ("refuse", 500),
        ("html", 502),
        ("broken_json", 200),
        ("cut_before", 0),
        ("cut_after", 0),
        ("cut_body", 0),
    ],
)
@pytest.mark.parametrize("as_file", [True, False], ids=["path", "bytes"])
async def test_what_may_pass_is_tried_again(
    emulator: Emulator, uploads: Uploads, tmp_path: Path, kind: FaultKind, code: int, *, as_file: bool
) -> None:
    """An upload costs nothing, and the same name with the same content overwrites: it is simply sent again, whole."""
    content = picture(500_000)
    (tmp_path / "a").write_bytes(content)
    fault = Fault("upload", kind, times=2, code=code or 429, status=code or 502)
    emulator.inject(fault)

    await uploads.bring(read_picture("images[0]", tmp_path / "a") if as_file else local(content), None)

    assert emulator.ledger.calls["upload"] == 3
    assert {call.sha256 for call in emulator.ledger.uploads} == {hashlib.sha256(content).hexdigest()}
    assert len({call.file_name for call in emulator.ledger.uploads}) == 1


async def test_waits_as_long_as_it_is_told(emulator: Emulator, uploads: Uploads) -> None:
    """Retry-After of a 429 is kept."""
    emulator.inject(Fault("upload", "refuse", retry_after=20))
    begun = now()
    await uploads.bring(local(picture(100)), None)

    assert 20.0 <= now() - begun < 21.0


@pytest.mark.parametrize(("code", "error"), [(429, RateLimitedError), (455, MaintenanceError)])
async def test_gives_up_after_five_tries(
    emulator: Emulator, uploads: Uploads, code: int, error: type[Exception]
) -> None:
    """An outage is told to the caller after twenty seconds; once it is over, the upload works."""
    emulator.inject(Fault("upload", "refuse", code=code, times=5))
    begun = now()
    with pytest.raises(error):
        await uploads.bring(local(picture(100)), None)

    assert 20.0 <= now() - begun < 21.0
    assert (await uploads.bring(local(picture(100)), None)).size == 100


async def test_a_proxy_that_takes_no_file_of_this_size(emulator: Emulator, uploads: Uploads) -> None:
    """Its 413 is not told as the service's own bound, which the file keeps."""
    emulator.inject(Fault("upload", "html", status=413, times=None))

    with pytest.raises(RequestRejectedError, match="a proxy on the way takes no body of this size"):
        await uploads.bring(local(picture(2_000_000)), None)


@pytest.mark.parametrize(("code", "error"), [(401, AuthenticationError), (400, RequestRejectedError)])
async def test_a_final_refusal_is_not_repeated(
    emulator: Emulator, uploads: Uploads, code: int, error: type[Exception]
) -> None:
    """What would be refused again is asked once."""
    emulator.inject(Fault("upload", "refuse", code=code, times=None))
    with pytest.raises(error):
        await uploads.bring(local(picture(100)), None)

    assert emulator.ledger.calls["upload"] == 1


async def test_no_service_at_all(emulator: Emulator, uploads: Uploads) -> None:
    """Refused connections end in an error that says so."""
    await emulator.stop()

    with pytest.raises(TransportError, match="the connection was refused"):
        await uploads.bring(local(picture(100)), None)


async def test_a_closed_session_leaves_no_file_open(emulator: Emulator, tmp_path: Path) -> None:
    """The file is closed, which Python would warn of otherwise, also when nothing could be sent."""
    (tmp_path / "a").write_bytes(picture(100))
    async with connected(emulator) as api:
        uploads = Uploads(api)
    with pytest.raises(SessionClosedError):
        await uploads.bring(read_picture("images[0]", tmp_path / "a"), None)


async def test_at_most_four_are_sent_at_once(emulator: Emulator, uploads: Uploads) -> None:
    """Many pictures share the line instead of crowding each other out; those who only pause hold no place."""
    emulator.script.latency = 1.0
    emulator.inject(Fault("upload", "refuse", retry_after=30, times=4))
    begun = now()

    await asyncio.gather(*(uploads.bring(local(picture(100, seed)), None) for seed in range(12)))

    assert emulator.ledger.max_in_flight["upload"] == 4
    assert len(emulator.ledger.uploads) == 12
    assert sum(call.time - begun < 10.0 for call in emulator.ledger.uploads) == 8


@pytest.mark.parametrize(("hours", "calls"), [(22.9, 1), (23.1, 2)])
async def test_is_forgotten_before_the_service_deletes_it(
    emulator: Emulator, uploads: Uploads, hours: float, calls: int
) -> None:
    """When nothing is said, a file is trusted to live a day, and no longer used an hour before."""
    await uploads.bring(local(picture(100)), None)
    await asyncio.sleep(hours * 3600)
    await uploads.bring(local(picture(100)), None)

    assert emulator.ledger.calls["upload"] == calls


@pytest.mark.parametrize(
    ("life", "age", "known"),
    [(3.0, 1.9, True), (3.0, 2.1, False), (0.5, 0.0, False), (-1.0, 0.0, False), (72.0, 70.9, True)],
)
async def test_believes_the_service_about_its_life(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, life: float, age: float, *, known: bool
) -> None:
    """A file whose end was told is used until an hour before, also when that is already over (hours)."""
    async with connected(emulator) as api:
        upload = api.upload

        async def told(form: aiohttp.FormData, *, size: int, mime_type: str) -> UploadedFile:
            uploaded = await upload(form, size=size, mime_type=mime_type)
            return attrs.evolve(uploaded, expires_at=datetime.now(UTC) + timedelta(hours=life))

        monkeypatch.setattr(api, "upload", told)
        uploads = Uploads(api)
        await uploads.bring(local(picture(100)), None)
        await asyncio.sleep(age * 3600)
        await uploads.bring(local(picture(100)), None)

    assert emulator.ledger.calls["upload"] == (1 if known else 2)


async def test_remembers_a_bounded_number(
    emulator: Emulator, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night of different pictures does not fill the memory; what was sent last is what is known."""
    monkeypatch.setattr(sys.modules[Uploads.__module__], "MAX_REMEMBERED", 3)

    async def bring(seeds: str) -> int:
        before = len(emulator.ledger.uploads)
        for seed in seeds:
            await uploads.bring(local(picture(100, ord(seed))), None)
        return len(emulator.ledger.uploads) - before

    assert await bring("abc") == 3
    # Two of them are sent again when their time is over, and so are newer than the third.
    await asyncio.sleep(86400.0)
    assert await bring("abd") == 3
    assert await bring("abd") == 0
    assert await bring("c") == 1


def locks() -> int:
    """How many there are; those of earlier tests become fewer at any time."""
    gc.collect()
    return sum(isinstance(each, anyio.Lock) for each in gc.get_objects())


async def test_no_lock_outlives_its_upload(uploads: Uploads) -> None:
    """What serialises uploads of one content is gone with them."""
    before = locks()
    await uploads.bring(local(picture(100)), None)

    assert locks() <= before


async def test_a_file_that_changes_meanwhile_is_not_passed_off(
    emulator: Emulator, uploads: Uploads, tmp_path: Path
) -> None:
    """A file written to during its upload gives an error, not a wrong picture, and is not remembered."""
    path = tmp_path / "a.png"
    path.write_bytes(picture(1000))
    emulator.script.latency = 5.0
    upload = asyncio.create_task(uploads.bring(read_picture("images[2]", path), None))
    await asyncio.sleep(1.0)
    path.write_bytes(picture(1000, seed=1) + b"more")

    with pytest.raises(InvalidRequestError, match=r"images\[2\]: it changed while it was uploaded"):
        await upload
    emulator.script.latency = 0.0
    assert (await uploads.bring(read_picture("images[2]", path), None)).size == 1004


@settings(max_examples=12)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 10), st.none() | st.floats(0, 20)), min_size=1, max_size=12),
    # With a fifth one somebody's five tries could be used up.
    st.lists(st.sampled_from(["refuse", "cut_before", "cut_after", "html"]), max_size=4),
)
async def test_any_mix_of_callers_and_failures(
    callers: list[tuple[int, float, float | None]], faults: list[FaultKind]
) -> None:
    """Whoever is not cancelled gets the file, and only lost answers and cancelled uploads are sent again."""
    got: dict[int, set[str]] = {}
    cancelled = 0

    async def caller(uploads: Uploads, seed: int, delay: float, patience: float | None) -> None:
        nonlocal cancelled
        await asyncio.sleep(delay)
        with anyio.move_on_after(patience) as scope:
            file = await uploads.bring(local(picture(64, seed)), None)
            got.setdefault(seed, set()).add(file.url)
        cancelled += scope.cancelled_caught

    async with Emulator(Script(latency=1.0)) as emulator, connected(emulator) as api:
        uploads = Uploads(api)
        before = locks()
        for kind in faults:
            emulator.inject(Fault("upload", kind))
        await asyncio.gather(*(caller(uploads, *each) for each in callers))

        assert all(len(urls) == 1 for urls in got.values())
        assert {seed for seed, _, patience in callers if patience is None} <= got.keys()
        seeds = {seed for seed, _, _ in callers}
        assert len(emulator.ledger.uploads) <= len(seeds) + faults.count("cut_after") + cancelled
        # What failed keeps its lock until the cycle of its traceback is collected.
        assert locks() <= before
