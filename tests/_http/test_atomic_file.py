"""Files that appear whole or not at all, in a folder that others may write to as well."""

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest
from batch_outcomes import done, painted
from emulated import REQUEST, emulated
from file_host import names
from PIL import Image

from flux2_async._http.atomic_file import UNFINISHED, AtomicFile, replacing
from flux2_async.batch.journal import Journal
from flux2_async.batch.report import write_report
from flux2_async.batch.results import write_results
from flux2_async.cli.demo import draw_result
from flux2_async.cli.save import publish
from flux2_async.emulator import Plan, Script
from flux2_async.session import remembered as remembered_module
from flux2_async.session.remembered import Remembered

Writer = Callable[[Path], Awaitable[object]]


async def results(folder: Path) -> None:
    async with Journal(folder / "run.db") as journal:
        await write_results(journal, folder)


async def report(folder: Path) -> None:
    picture = painted(folder / "a.png")
    os.utime(picture, (1, 1))
    write_report([done(1, files=("a.png",))], folder)


async def contact_sheet(folder: Path) -> None:
    draw_result([], folder / "contact-sheet.png", 1.0)


async def converted(folder: Path) -> None:
    (folder / "scratch").mkdir(exist_ok=True)
    publish(painted(folder / "scratch" / "id-1.png"), folder / "out.jpg")


async def downloaded(folder: Path) -> None:
    async with emulated(Script(Plan(duration=0))) as (flux, _):
        await flux.download(attrs.evolve(await flux.generate(REQUEST), task_id="t1"), folder)


async def remembered(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(remembered_module, "_cache_folder", lambda: folder)
        Remembered("https://api.example").keep({"kinds": {}})


@pytest.mark.parametrize("write", [results, report, contact_sheet, converted, downloaded, remembered])
async def test_follows_no_planted_link(write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever watches one run and plants links under every name it used has no file overwritten by the next one."""
    folder = tmp_path / "folder"
    folder.mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    used: set[Path] = set()
    replace = Path.replace

    def watched(source: Path, target: Path) -> Path:
        used.update({source, target})
        return replace(source, target)

    with monkeypatch.context() as watching:
        watching.setattr(Path, "replace", watched)
        await write(folder)
    # The worker of the thumbnails is a process of its own, which is not watched.
    used |= {path.with_name(f"{path.name}.part") for path in folder.glob("*/*.jpg")}
    assert used
    for path in used:
        path.unlink(missing_ok=True)
        path.symlink_to(victim)
    await write(folder)

    assert victim.read_bytes() == b"precious"


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    """It can be read by whom the user's umask lets, as any other file of the user, and nothing lies beside it."""
    for mask in (0o022, 0o077):
        before = os.umask(mask)
        try:
            with replacing(tmp_path / "file") as file:
                file.write(b"content")
        finally:
            os.umask(before)

        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
        assert names(tmp_path) == {"file"}


def test_appears_at_the_end(tmp_path: Path) -> None:
    """Until then there is the older one, and a hidden name that can be told from all others."""
    (tmp_path / "file").write_bytes(b"older")
    with replacing(tmp_path / "file", durable=False) as file:
        file.write(b"newer")
        (unfinished,) = names(tmp_path) - {"file"}

        assert UNFINISHED.fullmatch(unfinished)
        assert (tmp_path / "file").read_bytes() == b"older"
    assert (tmp_path / "file").read_bytes() == b"newer"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_breaks_off_leaves_the_older_file(tmp_path: Path, error: BaseException) -> None:
    """Whatever goes wrong while it is written comes out as it is, and no piece stays."""
    (tmp_path / "file").write_bytes(b"older")
    with pytest.raises(type(error)) as caught, replacing(tmp_path / "file") as file:
        file.write(b"newer")
        raise error

    assert caught.value is error
    assert names(tmp_path) == {"file"}
    assert (tmp_path / "file").read_bytes() == b"older"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """The system's error comes out, and removing the file does not fail for the same reason."""
    (tmp_path / ".part").touch()
    unfinished = AtomicFile(tmp_path / ".part", Path("/dev/full").open("wb"))  # noqa: SIM115  discard() closes it
    unfinished.file.write(b"content")
    with pytest.raises(OSError, match="No space left") as caught:
        unfinished.publish(tmp_path / "file")
    unfinished.discard()

    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == set()


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    """The hidden name is no longer than the one that was asked for may be."""
    with replacing(tmp_path / ("x" * 255)) as file:
        file.write(b"content")

    assert names(tmp_path) == {"x" * 255}


def test_converts_over_an_older_picture(tmp_path: Path) -> None:
    """A conversion that fails half-way leaves the older picture of that name."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out.jpg").write_bytes(b"older")
    source = tmp_path / "scratch" / "id-1.png"
    Image.effect_noise((200, 200), 90).save(source)
    source.write_bytes(source.read_bytes()[:5000])
    with pytest.raises(OSError, match="cannot be made a JPEG"):
        publish(source, tmp_path / "out.jpg")

    assert (tmp_path / "out.jpg").read_bytes() == b"older"
    assert names(tmp_path) == {"id-1.png", "out.jpg", "scratch"}
