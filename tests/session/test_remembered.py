"""What was learned, kept between sessions."""

import asyncio
import json
import logging
import sys
import threading
from pathlib import Path

import pytest
from emulated import REQUEST, emulated, error_of, logged, session_for

from flux2_async.emulator import Emulator, Plan, Script
from flux2_async.errors import SessionClosedError
from flux2_async.models import Polling
from flux2_async.session.remembered import Remembered
from flux2_async.tasks.schedule import Schedules

KIND = (REQUEST.model, REQUEST.resolution)


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.glob("*")]


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def kept(base: Path, base_url: str = "https://api.example") -> list[Path]:
    """The files there are under a folder once something was kept."""
    Remembered(base_url).keep({})
    return [path for path in base.rglob("*") if path.is_file()]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, on whatever system."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    [path] = kept(tmp_path)
    path.unlink()
    path.parent.rmdir()
    return path.parent


async def test_a_session_goes_on_where_another_ended(folder: Path) -> None:
    """With `remember` the first task of a new session costs few looks, and nothing else lies in the folder."""
    script = Script(plans=Plan(duration=12.0), credits=1e6)
    async with emulated(script, polling=Polling(remember=True), rate_limit=None) as (flux, emulator):
        for _ in range(20):
            await flux.generate(REQUEST)
        await flux.aclose()
        async with session_for(emulator, polling=Polling(remember=True)) as another:
            result = await another.generate(REQUEST)

        assert emulator.ledger.polls_of(result.task_id) <= 3
        assert len(contents(folder)) == 1


async def test_nothing_is_kept_unasked(folder: Path) -> None:
    """Without `remember` no file is written, and a session with it that learned nothing writes none either."""
    async with emulated(Script(plans=Plan(duration=3.0))) as (flux, emulator):
        await flux.generate(REQUEST)
        async with session_for(emulator, polling=Polling(remember=True)):
            pass

    assert contents(folder.parent) == []


async def test_services_are_kept_apart(folder: Path) -> None:
    """The emulator's durations say nothing about the service."""
    for _ in range(2):
        script = Script(plans=Plan(duration=1.0), render=False)
        async with Emulator(script) as emulator, session_for(emulator, polling=Polling(remember=True)) as flux:
            await flux.generate(REQUEST)

    assert len(contents(folder)) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe",
        b"{",
        b"[" * 100_000,
        b'{"version": 1, "kinds": {"a": {}}}',
        b'{"version": 99, "kinds": {}}',
        b'{"version": 1, "kinds": {}' + b" " * 1_000_000 + b"}",
    ],
    ids=["empty", "bytes", "cut", "deep", "wrong", "newer", "large"],
)
async def test_a_damaged_file_is_one_warning(content: bytes, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the file holds, the session opens, says so once, learns anew and writes a good one."""
    script = Script(plans=Plan(duration=1.0), render=False)
    async with Emulator(script) as emulator:
        flux = session_for(emulator, polling=Polling(remember=True))
        [path] = kept(folder, emulator.base_url)
        path.write_bytes(content)
        async with flux:
            await flux.generate(REQUEST)

    warnings = logged(caplog, level=logging.WARNING)
    assert [warning.partition(" and ")[0] for warning in warnings] == ["the learned durations cannot be read"]
    assert json.loads(contents(folder)[0])["kinds"].keys() == {" ".join(KIND)}


async def test_a_folder_that_hangs_does_not_hold_up_the_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`aclose` during an opening that waits for a dead disk returns at once."""
    disk = threading.Event()
    monkeypatch.setattr(Remembered, "restore", lambda *_: disk.wait(20))
    async with Emulator(Script(render=False)) as emulator:
        flux = session_for(emulator, polling=Polling(remember=True))
        opening = asyncio.create_task(error_of(flux.open()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        try:
            await asyncio.wait_for(flux.aclose(), 1)
        finally:
            disk.set()
        assert isinstance(await opening, SessionClosedError)


async def test_a_folder_that_cannot_be_used_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file in the place of the folder keeps nothing from working."""
    put(folder, b"in the way")
    async with emulated(Script(plans=Plan(duration=1.0)), polling=Polling(remember=True)) as (flux, _):
        assert (await flux.generate(REQUEST)).urls

    assert "cannot be saved" in caplog.text
    assert contents(folder.parent) == [b"in the way"]


def test_a_file_is_replaced_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where writing breaks off, the file of before stays and no piece is left."""
    remembered = Remembered("https://api.example")
    schedules = Schedules(Polling())
    schedules.of(*KIND).ended(0.0, 12.0)
    remembered.keep(schedules.knowledge())
    before = contents(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    remembered.keep({})

    assert contents(folder) == before


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "caches"}, "caches/flux2_async"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "home/me/.cache/flux2_async"),
        ("linux", {}, "home/me/.cache/flux2_async"),
        ("darwin", {"XDG_CACHE_HOME": "caches"}, "home/me/Library/Caches/flux2_async"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/flux2_async"),
        ("win32", {}, "home/me/AppData/Local/flux2_async"),
    ],
)
def test_each_system_has_its_folder(
    platform: str, environment: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is where the user's programs keep such things on that system."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value if value == "relative" else str(tmp_path / value))
    # Where a relative one would be found, were it not ignored.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home" / "me")

    [path] = kept(tmp_path)
    assert path.parent == tmp_path / expected


def test_without_a_home_nothing_is_remembered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A user without a home folder gets warnings, no errors."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(Path, "home", homeless)
    remembered = Remembered("https://api.example")
    remembered.restore(Schedules(Polling()))
    remembered.keep({})

    assert len(logged(caplog)) == 2
