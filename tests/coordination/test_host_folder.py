"""Where the shared file lives, and what is not trusted."""

import os
import tempfile
from pathlib import Path

import pytest

from flux2_async.coordination.host.folder import check_file, private_folder, runtime_folder
from flux2_async.errors import ConfigurationError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of the test's own, and no runtime directory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """What exists belongs to somebody else."""
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)


def test_runtime_directory_is_used(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is in XDG_RUNTIME_DIR, with a mode that lets nobody else in."""
    runtime = temporary / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))

    folder = runtime_folder()
    assert folder == runtime / "flux2_async"
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["missing", "relative", "open", "link"])
def test_unsuitable_runtime_directory_is_ignored(temporary: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A runtime directory that is missing, relative, a link or open to others is not used."""
    runtime = temporary / "run"
    if kind == "open":
        runtime.mkdir()
        runtime.chmod(0o755)
    elif kind == "link":
        (temporary / "real").mkdir(mode=0o700)
        runtime.symlink_to(temporary / "real")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "run" if kind == "relative" else str(runtime))

    assert runtime_folder() == temporary / f"flux2_async-{os.geteuid()}"


def test_runtime_directory_of_another_user_is_ignored(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`su` hands on the variable of the user before; what it names is not ours."""
    runtime = temporary / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    if os.geteuid() == 0:
        os.chown(runtime, 12345, -1)
        assert runtime_folder() == temporary / "flux2_async-0"
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(ConfigurationError, match="flux2_async-12345"):
            runtime_folder()
        assert not list(runtime.iterdir())


def test_folder_in_the_temporary_directory_is_found_again(temporary: Path) -> None:
    """The second process finds what the first one made."""
    assert runtime_folder() == runtime_folder()
    assert [path.name for path in temporary.iterdir()] == [f"flux2_async-{os.geteuid()}"]


@pytest.mark.parametrize("planted", ["link", "file", "readable", "writable"])
def test_planted_folder_is_refused(temporary: Path, planted: str) -> None:
    """A link, a file or a folder that others may enter stands where ours should: an error that says what to do."""
    path = temporary / f"flux2_async-{os.geteuid()}"
    match planted:
        case "link":
            (temporary / "elsewhere").mkdir(mode=0o700)
            path.symlink_to(temporary / "elsewhere")
        case "file":
            path.touch()
        case "readable" | "writable":
            path.mkdir()
            path.chmod(0o755 if planted == "readable" else 0o770)

    with pytest.raises(ConfigurationError, match=str(path)):
        runtime_folder()


@pytest.mark.usefixtures("foreign")
def test_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    """Somebody else made the folder, so he can change what is in it."""
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match="mode 0700"):
        private_folder(tmp_path / "folder")


@pytest.mark.parametrize("planted", ["link", "dangling", "folder", "writable"])
def test_planted_file_is_refused(tmp_path: Path, planted: str) -> None:
    """A link, also one to nothing, a folder, or a file that others may write is not used."""
    path = tmp_path / "state.sqlite"
    match planted:
        case "link" | "dangling":
            path.symlink_to(tmp_path / "elsewhere")
            if planted == "link":
                (tmp_path / "elsewhere").touch(mode=0o600)
        case "folder":
            path.mkdir(mode=0o700)
        case "writable":
            path.touch()
            path.chmod(0o620)

    with pytest.raises(ConfigurationError, match=str(path)):
        check_file(path)


def test_own_file_and_none_are_fine(tmp_path: Path) -> None:
    """A missing file will be made, one that others may read holds nothing for them to learn."""
    path = tmp_path / "state.sqlite"
    check_file(path)
    path.touch()
    path.chmod(0o644)
    check_file(path)


@pytest.mark.usefixtures("foreign")
def test_file_of_another_user_is_refused(tmp_path: Path) -> None:
    """Somebody else owns the file."""
    (tmp_path / "state.sqlite").touch(mode=0o600)
    with pytest.raises(ConfigurationError, match="this user's"):
        check_file(tmp_path / "state.sqlite")
