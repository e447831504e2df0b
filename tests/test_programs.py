"""What the suite does on a machine that lacks a program."""

import re
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
        "not in_ci and not never_work and not not_installed",
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


HIDING = """
import sys

class Hiding:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hiding())
"""


@pytest.mark.parametrize("expected", [False, True])
def test_tests_of_packages_that_are_not_installed_skip(
    expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a fixture, a recipe or the head of a module imports them; in CI if they are to be missing."""
    names = ["celery", "django", "flask", "starlette", "werkzeug"]
    (tmp_path / "hiding.py").write_text(HIDING.format(names=names))
    without = " ".join(names if expected else names[:2])
    for name, value in {"CI": "true", "FLUX2_TEST_WITHOUT": without, "PYTHONPATH": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    here = Path(__file__).parent
    picked = "flask_answers or (are_imported and (celery or django or flask))"
    options = ["-n", "0", "-p", "no:cacheprovider", "-p", "hiding", "--continue-on-collection-errors", "-k", picked]
    files = [str(here / "test_recipes.py"), str(here / "receivers" / "test_answers.py")]
    command = [sys.executable, "-m", "pytest", *options, *files]
    done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=False)  # noqa: S603  our own

    last = done.stdout.splitlines()[-1]
    found = {word: int(count) for count, word in re.findall(r"(\d+) (failed|skipped|passed|error)", last)}
    assert found == ({"skipped": 5} if expected else {"failed": 1, "skipped": 2, "error": 2}), done.stdout
    for name in names if expected else names[:2]:
        assert f"{name} is not on the path: `uv sync` installs it where it has a release" in done.stdout
