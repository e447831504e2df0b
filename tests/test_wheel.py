"""What is installed: the files that are no Python are in the wheel as well."""

import zipfile
from pathlib import Path

import pytest

import flux2_async

ROOT = Path(__file__).parent.parent
PACKAGE = Path(flux2_async.__file__).parent


def test_the_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    """Pages, scripts, style sheets and photographs: what is missing is missed at run time only."""
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed; uv sync installs it")
    [built] = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
    expected = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - names == set()
    pages = {f"flux2_async/emulator/page/{name}" for name in ("index.html", "page.css", "page.js", "icon.svg")}
    pages |= {f"flux2_async/batch/report/page/{name}" for name in ("report.html", "report.css", "rows.js")}
    assert pages <= names
