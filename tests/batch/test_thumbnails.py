"""Thumbnails, and what pictures may do to the process that makes them."""

import io
import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_outcomes import painted
from emulated import logged
from PIL import Image

from flux2_async.batch.report import thumbnailer
from flux2_async.batch.report.thumbnails import Thumbnails


@pytest.fixture
def thumbnails(tmp_path: Path) -> Iterator[Thumbnails]:
    with Thumbnails(tmp_path) as thumbnails:
        yield thumbnails


def opened(folder: Path, address: str | None) -> Image.Image:
    """The thumbnail at an address of the page."""
    assert address is not None
    assert address.startswith("./thumbnails/")
    with Image.open(folder / address) as picture:
        picture.load()
        return picture


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of the processes that were started, the newest last."""
    started: list[int] = []

    class Recorded(subprocess.Popen[Any]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self.pid)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    return started


@pytest.mark.parametrize(
    ("size", "small"), [((2048, 1024), (512, 256)), ((300, 900), (171, 512)), ((40, 30), (40, 30))], ids=str
)
def test_a_thumbnail_fits_and_keeps_its_ratio(
    thumbnails: Thumbnails, tmp_path: Path, size: tuple[int, int], small: tuple[int, int]
) -> None:
    """Its longer side has at most 512 pixels, and a small picture is not made larger."""
    picture = opened(tmp_path, thumbnails.make(painted(tmp_path / "a.png", size)))
    assert (picture.format, picture.size) == ("JPEG", small)


def test_a_photograph_stands_upright(thumbnails: Thumbnails, tmp_path: Path) -> None:
    """The orientation a camera noted is carried out, since the note itself is dropped."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (800, 400), "teal").save(tmp_path / "a.jpg", exif=exif)
    picture = opened(tmp_path, thumbnails.make(tmp_path / "a.jpg"))
    assert picture.size == (256, 512)
    assert not picture.getexif()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "1"])
def test_every_kind_of_picture_has_one(thumbnails: Thumbnails, tmp_path: Path, mode: str) -> None:
    """Palettes, transparency and the colours of printers become plain colours; transparent is white."""
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    source = Image.new("RGBA", (64, 64), (0, 0, 0, 0)) if "A" in mode else Image.new("RGB", (64, 64), "white")
    source.convert(mode).save(path)
    assert opened(tmp_path, thumbnails.make(path)).convert("RGB").getpixel((9, 9)) == (255, 255, 255)


def test_an_unchanged_picture_keeps_its_thumbnail(workers: list[int], tmp_path: Path) -> None:
    """The next report makes nothing anew, does not even start the worker; a changed picture gets a new one."""
    source = painted(tmp_path / "a.png")
    with Thumbnails(tmp_path) as first:
        before = first.make(source)
    started = list(workers)
    with Thumbnails(tmp_path) as second:
        assert second.make(source) == before
    assert workers == started != []
    # Written again within the same bytes, as an edit of one colour may be.
    os.utime(source, (1, 1))
    with Thumbnails(tmp_path) as third:
        after = third.make(source)
        third.forget_others()
    assert after != before
    assert [path.name for path in (tmp_path / "thumbnails").iterdir()] == [Path(str(after)).name]


def test_only_its_own_files_are_removed(thumbnails: Thumbnails, tmp_path: Path) -> None:
    """What somebody else put into the folder stays; what a killed worker left half written goes."""
    folder = tmp_path / "thumbnails"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / f".flux2-{'0' * 16}.part").write_text("half")
    thumbnails.forget_others()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_folder_removed_meanwhile_is_made_again(thumbnails: Thumbnails, tmp_path: Path) -> None:
    """As when a batch begins anew in the folder that a server of its report still shows."""
    source = painted(tmp_path / "a.png")
    thumbnails.make(source)
    shutil.rmtree(tmp_path / "thumbnails")
    assert opened(tmp_path, thumbnails.make(source)).format == "JPEG"


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, in less than a hundred bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_what_cannot_be_decoded_has_none(thumbnails: Thumbnails, workers: list[int], tmp_path: Path) -> None:
    """Text, half a picture, a billion pixels, a format nobody asked for: none, and the next picture has one."""
    (tmp_path / "text.jpg").write_text("<html>")
    whole = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(whole, "PNG")
    (tmp_path / "half.png").write_bytes(whole.getvalue()[:5000])
    (tmp_path / "huge.png").write_bytes(bomb(40_000, 40_000))
    painted(tmp_path / "other.bmp")
    (tmp_path / "empty.png").touch()
    for name in ("text.jpg", "half.png", "huge.png", "other.bmp", "empty.png"):
        assert thumbnails.make(tmp_path / name) is None
    assert thumbnails.make(painted(tmp_path / "a.png")) is not None
    assert len(workers) == 1


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    """The cap is on what the file says of itself."""
    (tmp_path / "huge.png").write_bytes(bomb(8_001, 8_000))
    with pytest.raises(ValueError, match="8001 x 8000 pixels"):
        thumbnailer.make(str(tmp_path / "huge.png"))


def test_what_is_no_file_is_not_opened(thumbnails: Thumbnails, workers: list[int], tmp_path: Path) -> None:
    """A missing file, a folder, a pipe and impossible names have none, and nothing waits for the pipe."""
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("missing.jpg", ".", "pipe.jpg", "a\0b.jpg", "\ud800.jpg", "x" * 5000):
        assert thumbnails.make(tmp_path / name) is None
    assert workers == []


def test_a_killed_worker_is_replaced(thumbnails: Thumbnails, workers: list[int], tmp_path: Path) -> None:
    """Whoever ends it, at most one picture goes without."""
    assert thumbnails.make(painted(tmp_path / "a.png")) is not None
    os.kill(workers[-1], signal.SIGKILL)
    made = [thumbnails.make(painted(tmp_path / f"{number}.png")) for number in range(3)]
    assert [address is not None for address in made] == [False, True, True]
    assert len(workers) == 2


def test_a_picture_that_takes_forever_ends_the_worker(
    thumbnails: Thumbnails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that does not come back loses its picture, not the report."""
    stuck = tmp_path / "stuck.py"
    source = Path(thumbnailer.__file__).read_text("utf-8")
    # Only the one that is stuck is short of time; the machine may be busy.
    for old, new in (
        ("later(DECODING_MAX,", "later(0.2 if 'stuck' in source else DECODING_MAX,"),
        ("    with Image.open(source,", "    while 'stuck' in source:\n        pass\n    with Image.open(source,"),
    ):
        assert source.count(old) == 1
        source = source.replace(old, new)
    stuck.write_text(source)
    monkeypatch.setattr(thumbnailer, "__file__", str(stuck))
    assert thumbnails.make(painted(tmp_path / "stuck.png")) is None
    assert thumbnails.make(painted(tmp_path / "a.png")) is not None


def test_ctrl_c_in_the_terminal_does_not_end_the_worker(
    thumbnails: Thumbnails, workers: list[int], tmp_path: Path
) -> None:
    """The interrupt goes to both processes; who is asked decides."""
    thumbnails.make(painted(tmp_path / "a.png"))
    os.kill(workers[-1], signal.SIGINT)
    assert thumbnails.make(painted(tmp_path / "b.png")) is not None
    assert len(workers) == 1


def test_without_a_worker_there_are_no_thumbnails(
    thumbnails: Thumbnails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no process can be started, that is logged once and costs the thumbnails only."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with caplog.at_level(logging.WARNING, "flux2_async"):
        assert thumbnails.make(painted(tmp_path / "a.png")) is None
        assert thumbnails.make(painted(tmp_path / "b.png")) is None
    assert [line[:36] for line in logged(caplog)] == ["the report has no new thumbnails: [E"]


def test_a_frozen_application_does_not_start_itself(
    thumbnails: Thumbnails, workers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the interpreter is the application."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert thumbnails.make(painted(tmp_path / "a.png")) is None
    assert workers == []


def test_the_worker_ends_with_the_report(workers: list[int], tmp_path: Path) -> None:
    """No process is left behind."""
    with Thumbnails(tmp_path) as thumbnails:
        thumbnails.make(painted(tmp_path / "a.png"))
    [worker] = workers
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
