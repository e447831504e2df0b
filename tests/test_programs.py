"""What the suite does on a machine that lacks a program."""

import subprocess
import sys
from pathlib import Path

import programs
import pytest
from programs import PACKAGES, program


@pytest.mark.parametrize(("name", "package"), PACKAGES.items())
def test_missing_program_skips_and_says_what_to_install(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that is on the path is found there; without it the reason names the package."""
    there = tmp_path / name
    there.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "FOLDERS", {})
    assert program(name) == str(there)

    there.unlink()
    with pytest.raises(pytest.skip.Exception, match=f"{name} is not on the path: apt-get install {package}$"):
        program(name)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("without", ["chromium redis-server", "redis-server"])
def test_in_ci_only_programs_that_are_to_be_missing_may_be(
    without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests of Redis and of the page are skipped and nothing else happens; in CI an unexpected skip is a failure."""
    monkeypatch.delenv("FLUX2_TEST_REDIS_SERVER", raising=False)
    for name, value in {"CI": "true", "FLUX2_TEST_WITHOUT": without, "PATH": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    here = Path(__file__).parent
    names = ("coordination/test_redis_servers", "batch/test_report_page", "test_programs")
    files = (str(here / f"{name}.py") for name in names)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-rap",
        "-k",
        "not in_ci and not never_work",
        *files,
    ]
    done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=False)  # noqa: S603  our own

    words = done.stdout.splitlines()[-1]
    # Those of the same files that need no program pass as well, however many there are.
    for name in PACKAGES:
        assert (
            f"PASSED tests/test_programs.py::test_missing_program_skips_and_says_what_to_install[{name}-" in done.stdout
        )
    assert done.stdout.count("redis-server is not on the path: apt-get install redis-server") >= 1
    assert done.stdout.count("chromium is not on the path: apt-get install chromium") >= 1
    assert ("failed" in words or "error" in words) == ("chromium" not in without), done.stdout
