"""The command as a process of its own: pipes, a real terminal, a real Ctrl-C, and the demo from end to end."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from PIL import Image

from flux2_async.cli import demo, script
from flux2_async.cli.app import run
from flux2_async.emulator import Emulator, Plan, Script

# Nothing of the machine's own settings; what a test needs is added.
BARE = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("APIKLEY_")
    and not name.lower().endswith("_proxy")
    and name not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS"}
}
ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([a-zA-Z])")


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """A service whose tasks end only when they are told to."""
    endless = Script(plans=Plan(duration=float("inf")))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Emulator(endless)) as emulator:
        yield emulator


def account(emulator: Emulator) -> dict[str, str]:
    """The environment of somebody whose account is at the emulator."""
    return BARE | {"APIKLEY_API_KEY": emulator.api_key, "APIKLEY_BASE_URL": emulator.base_url}


def begin(words: Sequence[str], folder: Path, environ: dict[str, str], **streams: Any) -> "subprocess.Popen[str]":
    """Start the command; its output can be read unless `streams` lead elsewhere."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    command = [sys.executable, *words] if words[0] == "-c" else [sys.executable, "-m", "flux2_async", *words]
    return subprocess.Popen(command, cwd=folder, env=environ, text=True, **streams)  # noqa: S603  our own command


def finish(words: Sequence[str], folder: Path, environ: dict[str, str]) -> tuple[int, str, str]:
    """Run the command to its end; gives the exit code, stdout and stderr."""
    with begin(words, folder, environ) as process:
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err


def in_terminal(words: Sequence[str], folder: Path, environ: dict[str, str], *, columns: int = 80) -> tuple[int, str]:
    """Run the command in a terminal; gives the exit code and all that was written to it."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = BARE | {"TERM": "xterm-256color"} | environ
    with begin(words, folder, environ, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        written = bytearray()
        # Linux ends a terminal whose other side is gone with an error.
        with contextlib.suppress(OSError):
            while chunk := os.read(master, 65536):
                written += chunk
        code = process.wait(timeout=120)
    os.close(master)
    return code, written.decode()


@pytest.mark.parametrize("missing", ["cyclopts", "rich", "PIL"])
def test_without_the_extra_one_line_tells_how_to_install_it(tmp_path: Path, missing: str) -> None:
    """With any package of the extra missing the command prints one line to stderr and exits with 2."""
    blocker = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {missing!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from flux2_async.cli import main\n"
        "sys.exit(main())\n"
    )
    line = 'flux2: the command needs the extra "cli"; install it with: pip install "flux2-async[cli]"\n'
    assert finish(["-c", blocker], tmp_path, BARE) == (2, "", line)


@pytest.mark.parametrize("module", ["cyclopts", "rich.console", "flux2_async.cli.run", "aiohttp"])
def test_ctrl_c_while_it_starts_is_no_silence(tmp_path: Path, module: str) -> None:
    """Imports can take seconds; whoever ends the command meanwhile learns that nothing was sent."""
    interrupting = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.argv = ['flux2', 'generate', 'A lighthouse']\n"
        "from flux2_async.cli import main\n"
        "sys.exit(main())\n"
    )
    told = "flux2: interrupted while it started; nothing was sent\n"
    assert finish(["-c", interrupting], tmp_path, BARE | {"APIKLEY_API_KEY": "key"}) == (130, "", told)


def test_the_demo_runs_in_a_hostile_environment_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo ignores account and proxy settings, gives everything it promises, and a second run overwrites it."""
    hostile = BARE | {
        "APIKLEY_API_KEY": "no key",
        "APIKLEY_BASE_URL": "http://127.0.0.1:9",
        "APIKLEY_UPLOAD_URL": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "all_proxy": "http://127.0.0.1:9",
    }
    words = ["demo", "--json", "--rate-limit", "20/4"]
    # Its tasks take 8 seconds at most, and here a fifth of that.
    quick = f"import sys; from flux2_async.cli import app, script; script.PACE = 0.2; sys.exit(app.run({words}))"
    code, out, err = finish(["-c", quick], tmp_path, hostile)
    assert code == 0, err
    tasks = json.loads(out)["tasks"]
    shown = tmp_path / "flux2-demo"
    files = sorted(path.name for path in shown.iterdir())
    assert len(tasks) >= 12
    assert files == sorted([*(Path(task["file"]).name for task in tasks if task["file"]), "contact-sheet.png"])
    assert {task["model"] for task in tasks} == {
        f"flux-2/{tier}-{way}-to-image" for tier in ("flex", "pro") for way in ("image", "text")
    }
    assert {task["resolution"] for task in tasks} == {"1K", "2K"}
    assert {"auto", "1:1", "16:9", "9:16"} <= {task["aspect_ratio"] for task in tasks}
    assert {len(task["images"]) for task in tasks} == {0, 1, 2, 3, 4}
    assert [task["error"]["type"] for task in tasks if task["error"]] == ["ContentModeratedError"]
    assert sorted(task["sends"] for task in tasks) == [1] * (len(tasks) - 1) + [2]
    with Image.open(shown / "contact-sheet.png") as sheet:
        assert sheet.width > 1900
    assert "\x1b" not in err
    assert "refused by 429, waits" in err
    again(tmp_path, monkeypatch)
    assert sorted(path.name for path in shown.iterdir()) == files


def again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo once more, in this process, with few tasks that are quick."""
    before = (folder / "flux2-demo" / "contact-sheet.png").stat().st_mtime_ns
    monkeypatch.chdir(folder)
    few = script.WISHES[:3]
    monkeypatch.setattr(script, "WISHES", few)
    monkeypatch.setattr(demo, "WISHES", few)
    monkeypatch.setattr(script, "PACE", 0.1)
    assert run(["demo", "--rate-limit", "none"]) == 0
    assert (folder / "flux2-demo" / "contact-sheet.png").stat().st_mtime_ns > before


def test_progress_is_live_on_a_terminal(tmp_path: Path) -> None:
    """A terminal sees one line redrawn, cleared at the end, and then the path; no line is wider than it."""
    code, written = in_terminal(["generate", "A lighthouse", "--emulate", "-o", "out.png"], tmp_path, {})
    assert code == 0
    assert "generating" in written
    assert ("2", "K") in ESCAPE.findall(written)
    lines = [line for line in re.split(r"[\r\n]+", ESCAPE.sub("", written)) if line.strip()]
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "out.png"


LONG = "Stopped by --max-credits 40: 28 are spent, 0 may be for what is running or unknown, and one more costs 14."
AGAIN = "flux2 batch 'my jobs.jsonl' --out results --rate-limit none --max-credits 60"
PLACE = f"results/{'a long name ' * 5}/report.html"
TALK = f"""
from flux2_async.cli.screen import Screen
screen = Screen()
screen.result({LONG!r} + "\\nReport: " + {PLACE!r})
screen.note({LONG!r})
screen.complain("interrupted", "go on with: " + {AGAIN!r})
"""


def test_lines_are_broken_between_words(tmp_path: Path) -> None:
    """In a narrow terminal no word is broken; what people copy from it, a command and a path, is one line."""
    code, written = in_terminal(["-c", TALK], tmp_path, {}, columns=60)
    assert code == 0
    lines = ESCAPE.sub("", written).splitlines()
    told = [
        "Stopped by --max-credits 40: 28 are spent, 0 may be for what",
        "is running or unknown, and one more costs 14.",
    ]
    assert lines == [*told, "Report:", PLACE, *told, "flux2: interrupted; go on with:", AGAIN]


def test_no_color_is_respected(tmp_path: Path) -> None:
    """With NO_COLOR no colour is written, on a terminal as well."""
    words = ["--foo"]
    code, coloured = in_terminal(words, tmp_path, {})
    assert code == 2
    assert any("31" in codes.split(";") for codes, kind in ESCAPE.findall(coloured) if kind == "m")
    code, plain = in_terminal(words, tmp_path, {"NO_COLOR": "1"})
    assert code == 2
    assert not any("31" in codes.split(";") for codes, kind in ESCAPE.findall(plain) if kind == "m")


def test_ctrl_c_leaves_the_command_that_goes_on(emulator: Emulator, tmp_path: Path) -> None:
    """After Ctrl-C the exit code is 130, the last line names the task and how to go on, and nothing is paid twice."""
    words = ["generate", "A lighthouse", "-o", "out.png"]
    with begin(words, tmp_path, account(emulator)) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "accepted" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=120) == 130
    [task_id] = emulator.ledger.accepted
    # A look may have told its state meanwhile.
    assert rest.splitlines()[-1] == (
        f"flux2: interrupted; the task goes on at the service, go on with: flux2 status {task_id} --wait -o out.png"
    )
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_emulator_in_peace(tmp_path: Path) -> None:
    """`emulator` prints lines that a shell can run, serves, and takes Ctrl-C as its usual end."""
    with begin(["emulator", "--port", "0"], tmp_path, BARE) as process:
        assert process.stdout is not None
        settings = dict(process.stdout.readline().removeprefix("export ").rstrip("\n").split("=", 1) for _ in range(3))
        there = finish(["credits"], tmp_path, BARE | settings)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0
    assert set(settings) == {"APIKLEY_API_KEY", "APIKLEY_BASE_URL", "APIKLEY_UPLOAD_URL"}
    assert there == (0, "1000000 credits\n", "")
    assert err.endswith("stopped; 0 tasks were accepted\n")


def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    """Writing to a closed pipe ends quietly."""
    with begin(["--help"], tmp_path, BARE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=120) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has such a file")
@pytest.mark.parametrize("words", [["--help"], ["docs"], ["recipe"], ["generate", "A kettle", "--emulate", "--json"]])
def test_a_full_disk_is_no_traceback(tmp_path: Path, words: list[str]) -> None:
    """What cannot be written to a file is told in one line, whatever it is."""
    with Path("/dev/full").open("w") as full, begin(words, tmp_path, BARE, stdout=full) as process:
        assert process.stderr is not None
        told = process.stderr.read().splitlines()
        assert process.wait(timeout=120) == 1
    assert told[-1] == "flux2: stdout cannot be written (No space left on device)"
    assert not any("Traceback" in line or "Exception ignored" in line for line in told)


@pytest.mark.parametrize(("closed", "seen"), [("stdout", ""), ("stderr", "1000 credits\r\n")])
def test_a_closed_stream_is_no_traceback(emulator: Emulator, tmp_path: Path, closed: str, seen: str) -> None:
    """A command that was started without stdout or stderr, as `>&-` does it, does its job."""
    without = f"import sys; sys.{closed} = None; from flux2_async.cli import main; sys.exit(main())"
    assert in_terminal(["-c", without, "credits"], tmp_path, account(emulator)) == (0, seen)


def test_commands_work_where_modules_have_no_text(tmp_path: Path) -> None:
    """In a bundle of compiled modules alone a command, and its help, are as ever."""
    lines = (
        "import pkgutil, sys",
        "def missing(package, name): raise FileNotFoundError(2, 'No such file or directory', name)",
        "pkgutil.get_data, sys.argv = missing, ['flux2', 'credits', '--help']",
        "from flux2_async.cli import main",
        "sys.exit(main())",
    )
    code, out, err = finish(["-c", "\n".join(lines)], tmp_path, BARE)

    assert (code, err) == (0, "")
    assert "Show the account's balance." in out
