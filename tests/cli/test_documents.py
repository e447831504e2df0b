"""`flux2 docs`, `flux2 recipe` and `flux2 --version`: what is shown, and what is not imported for it."""

import inspect
import re
import subprocess
import sys
from enum import Enum

import pytest
from documents import PAGES, README, RECIPES

import flux2_async.coordination
from flux2_async.cli import main
from flux2_async.cli.app import run
from flux2_async.cli.documents import public_modules

HEAVY = ("aiohttp", "PIL", "cyclopts", "rich", "attrs", "cattrs", "anyio")


def flux2(*words: str) -> int:
    """The command as its entry point has it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["flux2", *words])
        return main()


def imported_by(*words: str, code: int = 0) -> set[str]:
    """The modules in a fresh interpreter after a command that must end so."""
    program = f"""
import sys
before = {{*sys.modules}}
sys.argv = {["flux2", *words]}
from flux2_async.cli import main
code = main()
print(*{{*sys.modules}} - before, file=sys.stderr)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603  our own
    assert done.returncode == code
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("words", [["--version"], ["recipe"], ["recipe", "fastapi"], ["docs"]])
def test_papers_need_neither_extra_nor_library(words: list[str]) -> None:
    """A version, a recipe and the guide are shown where nothing is installed, and at once."""
    assert not {*HEAVY} & imported_by(*words)


@pytest.mark.parametrize("words", [["--help"], [], ["batch", "--help"], ["emulator", "--help"], ["nothing"]])
def test_help_imports_neither_network_nor_pictures(words: list[str]) -> None:
    """Help, and what is wrong with the words, are said before anything is loaded that a command works with."""
    loaded = imported_by(*words, code=2 * (words == ["nothing"]))

    assert "cyclopts" in loaded
    assert not {"aiohttp", "PIL", "anyio", "cattrs", "sqlite3", "ssl"} & loaded
    # The overview does without the options of the commands as well.
    assert words not in ([], ["--help"]) or "flux2_async.models" not in loaded


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version alone, by both ways to it."""
    assert flux2("--version") == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("start", [flux2, lambda *words: run(words)])
def test_recipes_are_printed_as_they_are(start: object, capsys: pytest.CaptureFixture[str]) -> None:
    """The list names each with what it is; a name prints the file and nothing else; a wrong one is told."""
    assert callable(start)
    assert start("recipe") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == sorted(RECIPES)
    assert min(len(line.split()) for line in listed) > 5
    for name, path in RECIPES.items():
        assert start("recipe", name) == 0
        assert capsys.readouterr().out == path.read_text()
    assert start("recipe", "fastap") == 2
    assert capsys.readouterr().err == "flux2: recipe: none is called 'fastap'; do you mean fastapi?\n"


def test_docs_of_public_names(capsys: pytest.CaptureFixture[str]) -> None:
    """Every public name has its text, with or without its module, and methods have theirs."""
    for name in flux2_async.__all__:
        assert flux2("docs", name) == 0
        assert name in capsys.readouterr().out
    for name, word in {
        "Flux2Session.submit": "max_wait",
        "flux2_async.Flux2Session.submit": "max_wait",
        "batch.run_batch": "journal",
        "run_batch": "journal",
        "emulator.Script": "plans",
        "BlockingSession.submit": "max_wait",
        "errors": "AmbiguousSubmitError",
        "ImageTask.id": "id",
        "Tier": "flux2_async.Tier = Literal['flex', 'pro']\n",
        "Observer": "flux2_async.Observer = Callable[[SessionEvent], object]\n",
        "ImageSource": "flux2_async.ImageSource = str | PathLike[str] | bytes | UploadedFile\n",
        "models": "  Resolution           Literal['1K', '2K']\n",
        "": "\nflux2 docs PAGE shows a page",
    }.items():
        assert flux2("docs", name) == 0
        assert word in capsys.readouterr().out


def test_docs_of_a_class_list_all_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    """Methods, properties and fields are told, inherited ones too, and how to make one only where programs do."""
    for home, module in public_modules():
        for name in module.__all__:
            kind = getattr(module, name)
            if not inspect.isclass(kind) or issubclass(kind, Enum | BaseException):
                continue
            assert flux2("docs", f"{home}.{name}".lstrip(".")) == 0
            told = set(re.findall(r"^ +(\w+)(?::| {2,}|$)", capsys.readouterr().out, re.MULTILINE))
            properties = {each for each in dir(kind) if isinstance(inspect.getattr_static(kind, each), property)}
            fields = {each.name for each in getattr(kind, "__attrs_attrs__", ())}
            assert {each for each in properties | fields if not each.startswith("_")} <= told, name

    for name, makes in {"SubmissionHandle": False, "BlockingHandle": False, "Settled": True, "Timeouts": True}.items():
        assert flux2("docs", name) == 0
        shown = capsys.readouterr().out
        assert (f"{name}(" in shown) == makes
    assert flux2("docs", "Settled") == 0
    assert "  group                The `group` of the submission" in capsys.readouterr().out
    assert flux2("docs", "Expectation") == 0
    assert "  remaining            Seconds that it still takes" in capsys.readouterr().out


def test_docs_of_what_needs_an_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs an extra is explained without it too, and its module lists it with the others."""
    monkeypatch.delitem(vars(flux2_async.coordination), "PostgresCoordination", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for module in [each for each in sys.modules if each.startswith("flux2_async.coordination.postgres.")]:
        monkeypatch.delitem(sys.modules, module)

    assert flux2("docs", "PostgresCoordination") == 0
    assert "Each session keeps one connection" in capsys.readouterr().out
    assert flux2("docs", "coordination") == 0
    listed = capsys.readouterr().out
    assert "PostgresCoordination Many processes" in listed
    assert "HostCoordination" in listed


@pytest.mark.parametrize("name", ["Flux2Sesion", "Flux2Session.__init__", "sys", "Flux2Session.nothing"])
def test_docs_of_what_is_not_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no page and no public name is told in a line, with what may be meant."""
    assert flux2("docs", name) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith(f"flux2: docs: no page and no public name {name!r}; ")
    assert ("do you mean Flux2Session" in said.err) == name.startswith("Flux2Ses")


def test_docs_of_a_misspelt_method(capsys: pytest.CaptureFixture[str]) -> None:
    """The method is advised that is meant, and not its class."""
    assert flux2("docs", "Flux2Session.sumbit") == 2
    told = "flux2: docs: no page and no public name 'Flux2Session.sumbit'; do you mean Flux2Session.submit?\n"
    assert capsys.readouterr().err == told


def test_pages_fit_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal paragraphs are broken for its width and nothing is lost; in a pipe a page is as it is written."""
    monkeypatch.setenv("COLUMNS", "60")
    for page in PAGES:
        if page == README:
            continue
        monkeypatch.setattr("sys.stdout.isatty", bool)
        assert flux2("docs", page.stem) == 0
        assert capsys.readouterr().out == page.read_text()
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        assert flux2("docs", page.stem) == 0
        shown = capsys.readouterr().out
        assert shown.split() == page.read_text().split()
        prose = re.sub(r"^```.*?^```$|^\|.*?$|^<!--.*?$", "", shown, flags=re.DOTALL | re.MULTILINE)
        assert [line for line in prose.splitlines() if len(line) > 60 and " " in line.strip("- ")] == []


def test_help_knows_them(capsys: pytest.CaptureFixture[str]) -> None:
    """The help of the whole command and of the two says what they do."""
    for words, said in {("--help",): "recipe", ("docs", "--help"): "guide", ("recipe", "--help"): "app.py"}.items():
        assert flux2(*words) == 0
        assert said in capsys.readouterr().out


def test_a_reader_who_has_seen_enough() -> None:
    """A pipe that is closed early is no error to talk about."""
    closed = "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1)"
    code = f"{closed}; from flux2_async.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "recipe"], capture_output=True, text=True, check=False)  # noqa: S603  our own
    assert (done.returncode, done.stderr) == (1, "")
