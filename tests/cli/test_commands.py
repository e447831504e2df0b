"""The commands, called in this process against an emulator in a thread of its own."""

import errno
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import attrs
import pytest
from anyio.from_thread import start_blocking_portal
from emulated import free_port, look_often
from PIL import Image

from flux2_async.cli import options
from flux2_async.cli.app import _without_verbose, run
from flux2_async.cli.screen import with_options
from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.models.service import KIE
from flux2_async.session.session import Flux2Session

PHOTO = str(Path(options.__file__).parent / "photos" / "chelsea.png")
Serve = Callable[..., Emulator]


def picture(path: str) -> tuple[str | None, tuple[int, int]]:
    """The kind and the size of a picture."""
    with Image.open(path) as opened:
        return opened.format, opened.size


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("APIKLEY_API_KEY", "APIKLEY_BASE_URL", "APIKLEY_UPLOAD_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    look_often(monkeypatch)
    return tmp_path


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts an emulator and sets the environment to it, as a user with an account has it."""
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())

        def start(*faults: Fault, plan: Plan | None = None, balance: float = 1000.0, render: bool = True) -> Emulator:
            script = Script(plans=plan or Plan(duration=0.0), credits=balance, render=render)
            script.faults.extend(faults)
            emulator = stack.enter_context(portal.wrap_async_context_manager(Emulator(script)))
            monkeypatch.setenv("APIKLEY_API_KEY", emulator.api_key)
            monkeypatch.setenv("APIKLEY_BASE_URL", emulator.base_url)
            return emulator

        yield start


def test_generate_saves_one_picture_and_prints_its_path(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """`generate` gives exactly the path on stdout, and the states on stderr."""
    emulator = serve()
    assert run(["generate", "A lighthouse at dawn", "--aspect-ratio", "16:9"]) == 0
    out, err = capsys.readouterr()
    [task_id] = emulator.ledger.accepted
    assert out == f"{task_id}-1.jpg\n"
    assert picture(out.strip()) == ("JPEG", (1280, 720))
    assert f"task {task_id}: accepted" in err
    assert err.splitlines()[-1].startswith(f"task {task_id}, ")


def test_edit_sends_the_pictures_and_the_shape(serve: Serve) -> None:
    """Local files are uploaded, and every option reaches the service."""
    emulator = serve(render=False)
    words = ["edit", "Make it blue", PHOTO, PHOTO, "--resolution", "2K", "--tier", "pro", "-o", "out.png"]
    assert run(words) == 0
    [call] = emulator.ledger.requests
    assert call.body is not None
    assert call.body["model"] == "flux-2/pro-image-to-image"
    assert call.body["input"]["prompt"] == "Make it blue"
    assert call.body["input"]["aspect_ratio"] == "auto"
    assert call.body["input"]["resolution"] == "2K"
    assert len(call.body["input"]["input_urls"]) == 2
    assert len(emulator.ledger.uploads) == 1


@pytest.mark.parametrize(
    ("name", "kind"), [("out.png", "PNG"), ("out.jpg", "JPEG"), ("OUT.JPEG", "JPEG"), ("out.webp", "WEBP")]
)
def test_output_has_the_name_and_the_content_that_were_asked_for(
    serve: Serve, here: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    """The file's content is what the end of its name says, and nothing else is left in the folder."""
    serve()
    assert run(["generate", "A lighthouse", "-o", name]) == 0
    assert capsys.readouterr().out == f"{name}\n"
    assert picture(name) == (kind, (1024, 1024))
    assert [path.name for path in here.iterdir()] == [name]


def test_output_may_be_an_existing_folder(serve: Serve, here: Path) -> None:
    """A folder takes the picture under its usual name."""
    emulator = serve()
    (here / "pictures").mkdir()
    assert run(["generate", "A lighthouse", "-o", "pictures"]) == 0
    assert [path.name for path in (here / "pictures").iterdir()] == [f"{emulator.ledger.accepted[0]}-1.jpg"]


def test_wrong_words_are_a_document_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` a command line that cannot be understood gives its error as a document too."""
    assert run(["generate", "A lighthouse", "--colour", "red", "--json"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (error["type"], "--colour" in error["message"]) == ("UsageError", True)
    assert err.endswith("see flux2 generate --help\n")


def test_json_is_one_document_with_files_and_facts(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` stdout is one document and nothing else."""
    emulator = serve()
    assert run(["generate", "A lighthouse", "--json", "-o", "a.png"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["task_id"] == emulator.ledger.accepted[0]
    assert document["state"] == "success"
    assert document["files"] == ["a.png"]
    assert document["credits_consumed"] == 14.0
    assert document["urls"]


def test_emulate_needs_no_account_and_ignores_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--emulate` works with a key, addresses and proxies that would not."""
    monkeypatch.setenv("APIKLEY_API_KEY", "not a key")
    monkeypatch.setenv("APIKLEY_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("APIKLEY_UPLOAD_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert run(["edit", "Make it blue", PHOTO, "--emulate", "-o", "out.jpg"]) == 0
    assert capsys.readouterr().out == "out.jpg\n"


def test_an_upload_that_is_refused_is_told_at_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which address refuses, and that it is tried again; the last line says that nothing was paid."""
    serve()
    monkeypatch.setenv("APIKLEY_UPLOAD_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("flux2_async._http.retry.PAUSES", (0.01,))
    assert run(["edit", "Make it blue", PHOTO]) == 1
    told = capsys.readouterr().err.splitlines()
    [line] = [line for line in told if line.endswith("; trying again in 0.01 s")]
    assert re.search(r" s  the connection was refused; check the address, .* \(127\.0\.0\.1:\d+: ", line)
    assert told[-1].endswith("; no task was made, so nothing was paid")
    assert logging.getLogger("flux2_async.transfers").handlers == []


def test_a_real_command_goes_through_the_proxy_of_the_environment(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Proxy variables count for real runs, as for other commands."""
    serve()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert run(["credits"]) == 1
    assert "the proxy could not be reached" in capsys.readouterr().err


NO_KEY = (
    "flux2: no API key: set it with `export APIKLEY_API_KEY=...` (keys are made at https://app.apikley.ru/keys), "
    "or without an account "
)


@pytest.mark.parametrize("words", [["generate", "A lighthouse"], ["edit", "Make it blue", PHOTO]])
def test_without_key_the_message_tells_both_ways(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """Without a key and without `--emulate` nothing is done, and both ways on are named."""
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{NO_KEY}add --emulate, which uses the embedded emulator\n"


@pytest.mark.parametrize("words", [["credits"], ["status", "abc"], ["status", "abc", "--wait"]])
def test_account_commands_without_key_name_the_emulator(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """Where `--emulate` makes no sense, the other emulator is named."""
    assert run(words) == 2
    assert (
        capsys.readouterr().err
        == f"{NO_KEY}start `flux2 emulator` in another terminal and set the variables that it prints\n"
    )


def test_the_environment_names_the_service(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """FLUX2_SERVICE leads all commands to another service, with the key of that one alone."""
    emulator = serve()
    monkeypatch.setenv("FLUX2_SERVICE", "Kie")
    monkeypatch.delenv("KIE_API_KEY", raising=False)
    assert run(["credits"]) == 2
    assert "no API key: set KIE_API_KEY, or " in capsys.readouterr().err
    there = attrs.evolve(KIE, base_url=emulator.base_url, upload_url=emulator.upload_url)
    monkeypatch.setitem(options.SERVICES, "kie", there)
    monkeypatch.setenv("KIE_API_KEY", emulator.api_key)
    monkeypatch.setenv("APIKLEY_BASE_URL", "http://127.0.0.1:9")
    for words in (["credits"], ["doctor"], ["generate", "A lighthouse"]):
        assert run(words) == 0
    assert "KIE_API_KEY is set and well-formed" in capsys.readouterr().out
    monkeypatch.setenv("FLUX2_SERVICE", "key")
    assert run(["credits"]) == 2
    assert "FLUX2_SERVICE: 'key' given, allowed are apikley, kie" in capsys.readouterr().err


BAD = {
    "short prompt": (["generate", "A"], "prompt: 1 character given, allowed are 3 to 5000"),
    "long prompt": (["generate", "x" * 5001], "prompt: 5001 characters given, allowed are 3 to 5000"),
    "no images": (
        ["edit", "Make it blue"],
        "edit: no picture given; name one after the prompt, or use flux2 generate",
    ),
    "nine images": (["edit", "Make it blue", *[PHOTO] * 9], "images: 9 given, allowed are 1 to 8"),
    "missing file": (
        ["edit", "Make it blue", "missing.jpg"],
        "images[0]: neither an existing file nor an address with http:// or https:// ('missing.jpg')",
    ),
    "folder": (
        ["edit", "Make it blue", PHOTO, "."],
        "images[1]: a folder given, it must be a JPEG, PNG or WebP file ('.')",
    ),
    "gif": (["edit", "Make it blue", "a.gif"], "images[0]: GIF given, allowed are JPEG, PNG and WebP ('a.gif')"),
    "large": (
        ["edit", "Make it blue", "large.jpg"],
        "images[0]: 11000000 bytes given, allowed are 1 to 10000000 (10 MB) ('large.jpg')",
    ),
    "scheme": (
        ["edit", "Make it blue", "ftp://host/a.jpg"],
        "images[0]: an address with ftp:// given, allowed are http:// and https://",
    ),
    "ratio": (
        ["generate", "A lighthouse", "--aspect-ratio", "5:4"],
        "aspect_ratio: '5:4' given, allowed are '1:1', '4:3', '3:4', '16:9', '9:16', '3:2', '2:3'",
    ),
    "auto without pictures": (
        ["generate", "A lighthouse", "--aspect-ratio", "auto"],
        (
            "aspect_ratio: 'auto' takes the ratio of the first picture and there is none, "
            "allowed are '1:1', '4:3', '3:4', '16:9', '9:16', '3:2', '2:3'"
        ),
    ),
    "resolution": (
        ["generate", "A lighthouse", "--resolution", "4K"],
        "resolution: '4K' given, allowed are '1K', '2K'",
    ),
    "tier": (["generate", "A lighthouse", "--tier", "max"], "tier: 'max' given, allowed are 'flex', 'pro'"),
    "rate limit": (
        ["generate", "A lighthouse", "--rate-limit", "fast"],
        "--rate-limit: 'fast' given, it must look like 20/10 (20 new tasks in any 10 seconds), or none",
    ),
    "rate limit of nothing": (
        ["demo", "--rate-limit", "0/10"],
        "--rate-limit: '0/10' given, it must look like 20/10 (20 new tasks in any 10 seconds), or none",
    ),
    "timeout": (
        ["generate", "A lighthouse", "--timeout=-1"],
        "--timeout: -1.0 given, it must be a number of seconds of 0 or more",
    ),
    "extension": (
        ["generate", "A lighthouse", "-o", "out.gif"],
        "--output: 'out.gif' given; a file must end in one of .png, .jpg, .jpeg, .webp, and a folder must exist",
    ),
    "no extension": (
        ["generate", "A lighthouse", "-o", "out"],
        "--output: 'out' given; a file must end in one of .png, .jpg, .jpeg, .webp, and a folder must exist",
    ),
    "a folder that is not there": (
        ["generate", "A lighthouse", "-o", "pictures/"],
        "--output: there is no folder 'pictures'; make it first, or name one that exists or a file such as out.png",
    ),
    "pictures before the prompt": (
        ["edit", "a.gif", "Make it blue"],
        "edit: 'a.gif' given as the prompt; the prompt comes first, then the pictures",
    ),
    "a picture that is not there before the prompt": (
        ["edit", "hous.jpg", "Make it blue"],
        "edit: 'hous.jpg' given as the prompt; the prompt comes first, then the pictures",
    ),
    "an address before the prompt": (
        ["edit", "https://example.com/a", "Make it blue"],
        "edit: 'https://example.com/a' given as the prompt; the prompt comes first, then the pictures",
    ),
    "missing folder": (
        ["generate", "A lighthouse", "-o", "nowhere/out.png"],
        "--output: there is no folder 'nowhere'; make it first, or name one that exists or a file such as out.png",
    ),
    "empty output": (
        ["generate", "A lighthouse", "-o", ""],
        "--output: an empty name given, it must be a file such as out.png, or an existing folder",
    ),
    "task id": (
        ["status", "two words"],
        "task_id: 'two words' given, it must be the text that createTask gave, without blanks",
    ),
    "port": (["emulator", "--port", "70000"], "--port: 70000 given, it must be 0 to 65535"),
    "duration": (
        ["emulator", "--duration", "nan"],
        "--duration: nan given, it must be a number of seconds of 0 or more",
    ),
    "demo folder": (
        ["demo", "--out", "a.gif"],
        "--out: 'a.gif' cannot be written (a.gif is no folder); give another folder",
    ),
    "a link to nothing": (
        ["demo", "--out", "gone/demo"],
        "--out: 'gone/demo' cannot be written (gone is a link that leads nowhere); give another folder",
    ),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_sends_nothing(
    serve: Serve, here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    """Wrong usage gives exit code 2 and one line that tells what was given and what is allowed."""
    (here / "a.gif").write_bytes(b"GIF89a" + bytes(100))
    (here / "gone").symlink_to("nowhere")
    with (here / "large.jpg").open("wb") as large:
        large.write(b"\xff\xd8\xff")
        large.truncate(11_000_000)
    emulator = serve()
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"flux2: {message}"]
    assert emulator.ledger.calls.total() == 0


@pytest.mark.parametrize(
    ("words", "told", "where"),
    [
        (["paint"], '"paint"', "flux2"),
        (["edit"], "PROMPT", "flux2 edit"),
        (["generate", "A lighthouse", "--fast"], "--fast", "flux2 generate"),
        (["generate", "A lighthouse", "--timeout", "soon"], "soon", "flux2 generate"),
        (["generate", "A lighthouse", "-o"], "requires an argument; see", "flux2 generate"),
        (["generate", "A lighthouse", "-o", "-a.png"], "joined to its option: -oVALUE", "flux2 generate"),
        (["batch", "a.png", "--prompt", "- 5"], "joined to its option: --prompt=VALUE", "flux2 batch"),
        (["generate", "- snow"], "options before it: flux2 generate -- '- snow'", "flux2 generate"),
        (["generate", "-snow"], "options before it: flux2 generate -- -snow", "flux2 generate"),
        (["edit", "--no snow", "a.png"], "options before it: flux2 edit -- '--no snow' PICTURE", "flux2 edit"),
        (["generate", "--", "- snow", "-o"], "ehind -- there are no options, so put them before it", "flux2 generate"),
        (["generate", "a", "red", "kettle"], "a prompt of several words goes in quotes", "flux2 generate"),
    ],
)
def test_words_that_are_no_command_line_lead_to_the_help(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str, where: str
) -> None:
    """What the parser refuses is one line as well, and names the help that tells more."""
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("flux2: ")
    assert told in err
    assert re.search(rf"(; s|\? S)ee {where} --help\n$", err)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("pictures", [[], [PHOTO]], ids=["generate", "edit"])
def test_a_prompt_that_begins_with_a_dash(serve: Serve, pictures: list[str]) -> None:
    """Behind `--` no word is an option, as in other commands."""
    emulator = serve(render=False)
    assert run(["edit" if pictures else "generate", "-o", "a.jpg", "--", "--more snow", *pictures]) == 0
    [call] = emulator.ledger.requests
    assert call.body is not None
    assert call.body["input"]["prompt"] == "--more snow"


def test_an_output_folder_that_cannot_be_written_is_refused_before_sending(
    serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only folder is found out by writing, before anything is paid."""
    emulator = serve()

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("flux2_async.cli.options.tempfile.TemporaryFile", refuse)
    assert run(["generate", "A lighthouse", "-o", "out.png"]) == 2
    assert capsys.readouterr().err == (
        "flux2: --output: the folder '.' cannot be written (Permission denied); nothing was sent\n"
    )
    assert emulator.ledger.calls.total() == 0


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "APIKLEY_API_KEY",
            "secret\nkey",
            "it holds a space, a line break or a character that no key has; copy it again, as one word",
        ),
        (
            "APIKLEY_BASE_URL",
            "ftp://somewhere",
            "'ftp://somewhere' given, it must look like https://api.apikley.ru (http or https)",
        ),
    ],
)
def test_bad_settings_are_wrong_usage(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    variable: str,
    value: str,
    message: str,
) -> None:
    """A malformed key or address is exit code 2 and names its variable; the key is not repeated."""
    serve()
    monkeypatch.setenv(variable, value)
    assert run(["generate", "A lighthouse"]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == f"flux2: {variable}: {message}"
    assert "secret" not in err


def test_a_wrong_key_is_a_failure_and_not_shown(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that the service does not know: exit code 1, for people one line, for machines the code."""
    serve()
    monkeypatch.setenv("APIKLEY_API_KEY", "my-secret-key")
    assert run(["generate", "A lighthouse", "--json"]) == 1
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (error["type"], error["code"], error["task_id"]) == ("AuthenticationError", 401, None)
    assert err.splitlines()[-1].startswith("flux2: 401: ")
    assert "my-secret-key" not in out + err


def test_an_ambiguous_submission_says_what_to_do(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """A lost reply is sent once, and the user is told to look before paying again."""
    emulator = serve(Fault("createTask", "cut_after"))
    assert run(["generate", "A lighthouse", "--json"]) == 1
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["type"] == "AmbiguousSubmitError"
    assert err.splitlines()[-1].endswith(
        "check the task log of your account before you submit it again; it is at "
        f"{emulator.base_url}/ledger; submission {error['ref']}"
    )
    assert len(emulator.ledger.requests) == 1


def test_a_service_that_cannot_be_reached_is_no_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it is tried again, the progress says what is waited for."""
    monkeypatch.setattr("flux2_async.cli.run.TRY_FOR", 1.0)
    monkeypatch.setenv("APIKLEY_API_KEY", "key")
    monkeypatch.setenv("APIKLEY_BASE_URL", "http://127.0.0.1:1")
    refused = (
        "the connection was refused; check the address, and whether the service runs there "
        "(127.0.0.1:1: ClientConnectorError)"
    )
    assert run(["generate", "A lighthouse"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert [line for line in err if refused in line] == [err[1], err[-1]]
    assert err[1].endswith(f" {refused}; trying again for 1 s")
    assert err[-1] == f"flux2: {refused}; no task was made, so nothing was paid"

    assert run(["generate", "A lighthouse", "--timeout", "0"]) == 1
    assert "trying again" not in capsys.readouterr().err


def test_polls_that_are_not_answered_are_no_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who waits for a task at an address that refuses connections learns why, once."""
    monkeypatch.setenv("APIKLEY_API_KEY", "key")
    monkeypatch.setenv("APIKLEY_BASE_URL", "http://127.0.0.1:1")
    assert run(["status", "task-1", "--wait", "--timeout", "0.7"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert [line for line in err if "the connection was refused" in line] == [err[1]]
    assert err[1].endswith("; trying again")


def test_a_moderated_task_fails_with_the_services_words(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """A task that fails is exit code 1 with its reason, and no file."""
    serve(plan=Plan(duration=0.0, outcome="moderated"))
    assert run(["generate", "A lighthouse", "-o", "out.png"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "CONTENT_POLICY_BLOCKED" in err.splitlines()[-1]
    assert not Path("out.png").exists()


def test_a_429_is_told_and_waited_out(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """A refused request is sent again by itself, and the progress says so."""
    emulator = serve(Fault("createTask", "refuse", retry_after=1))
    assert run(["generate", "A lighthouse"]) == 0
    assert "request: sent again after a 429" in capsys.readouterr().err
    assert len(emulator.ledger.accepted) == 1


def test_a_connection_that_was_not_made_is_not_called_a_429(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nobody listens the progress calls nothing sent, and the error says that no connection was made."""
    monkeypatch.setenv("APIKLEY_API_KEY", "key")
    monkeypatch.setenv("APIKLEY_BASE_URL", "http://127.0.0.1:1")
    assert run(["generate", "A lighthouse", "--timeout", "1"]) == 1
    err = capsys.readouterr().err
    assert "the connection was refused; check the address, and whether the service runs there (127.0.0.1:1: " in err
    assert "429" not in err
    assert "sen" not in err


def test_a_timeout_names_the_command_that_goes_on_and_that_command_works(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """After `--timeout` the task is not lost: the printed command gets its picture."""
    emulator = serve(plan=Plan(duration=float("inf")))
    assert run(["generate", "A lighthouse", "-o", "my picture.png", "--timeout", "0.1"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    [task_id] = emulator.ledger.accepted
    assert last.endswith(f"go on with: flux2 status {task_id} --wait -o 'my picture.png'")
    emulator.finish(task_id)
    assert run(["status", task_id, "--wait", "-o", "my picture.png"]) == 0
    assert capsys.readouterr().err.splitlines()[0].endswith(f"task {task_id}: polling")
    assert picture("my picture.png") == ("PNG", (1024, 1024))
    assert len(emulator.ledger.accepted) == 1


def test_a_download_that_fails_names_the_task(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture that was paid for and cannot be fetched now can be fetched later by the printed command."""
    emulator = serve(Fault("file", "html", status=410, times=None), Fault("download-url", "refuse", code=404))
    assert run(["generate", "A lighthouse"]) == 1
    [task_id] = emulator.ledger.accepted
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(
        f"fetch the task's record again: if its addresses are refused too, the picture is gone; "
        f"go on with: flux2 status {task_id} --wait"
    )
    assert "fetch_record" not in last


def test_a_pause_longer_than_the_timeout(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """A pause that lasts longer than `--timeout` is told in words of the command line, and when to come again."""
    emulator = serve(Fault("createTask", "refuse", code=429, retry_after=30.0, times=None))
    assert run(["generate", "A lighthouse", "--timeout", "5", "--json"]) == 1
    said = capsys.readouterr()
    assert re.fullmatch(
        r"flux2: 429: all submissions pause for another [0-9.]+ s after a 429\. "
        r"Nothing was created within --timeout 5; try again in 30 s, or allow more time",
        said.err.splitlines()[-1],
    )
    error = json.loads(said.out)["error"]
    assert (error["type"], round(error["retry_after"])) == ("RateLimitedError", 30)
    assert emulator.ledger.accepted == []


def test_status_tells_a_record_and_fails_for_a_failed_task(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """`status` shows the record; a failed task is exit code 1."""
    emulator = serve(plan=Plan(duration=0.0, outcome="fail"))
    run(["generate", "A lighthouse"])
    [task_id] = emulator.ledger.accepted
    capsys.readouterr()
    assert run(["status", task_id]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"task     {task_id}"
    assert lines[1] == "state    fail"
    assert lines[-1] == "failure  500 Internal Error, Please try again later."
    assert run(["status", task_id, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["state"], document["fail_code"]) == ("fail", "500")
    assert "param" not in document


def test_status_of_an_unknown_task_is_one_line(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """An id that the service does not know is exit code 1."""
    serve()
    assert run(["status", "abc"]) == 1
    assert capsys.readouterr().err.startswith("flux2: the service does not know task abc")


def test_credits_tells_the_balance(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """`credits` gives the balance whole, for people and for machines."""
    serve(balance=1_234_567.5)
    assert run(["credits"]) == 0
    assert capsys.readouterr().out == "1234567.5 credits\n"
    assert run(["credits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"credits": 1234567.5}


def test_rate_limit_may_be_switched_off() -> None:
    """`none` and numbers with fractions of seconds are understood."""
    assert options.parse_rate_limit("none") is None
    limit = options.parse_rate_limit(" 5/2.5 ")
    assert limit is not None
    assert (limit.limit, limit.period) == (5, 2.5)


def test_doctor_finds_everything_well_and_costs_nothing(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """A working account: six lines, all ok, no task and no upload."""
    emulator = serve(balance=50.0)
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", name] for name in ("key", "API", "uploads", "clock", "account", "balance")
    ]
    assert lines[-1] == "ok     balance  50 credits"
    assert emulator.ledger.requests == []
    assert emulator.ledger.uploads == []
    assert emulator.ledger.authorization_seen == {"credit"}


def test_doctor_names_each_problem_and_its_remedy(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No key, an upload address where nobody listens: exit code 1 and an advice for each."""
    serve()
    monkeypatch.delenv("APIKLEY_API_KEY")
    monkeypatch.setenv("APIKLEY_UPLOAD_URL", "http://127.0.0.1:9")
    assert run(["doctor", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert [(check["name"], check["ok"]) for check in document["checks"]] == [
        ("key", False),
        ("API", True),
        ("uploads", False),
        ("clock", True),
    ]
    assert all(bool(check["advice"]) != check["ok"] for check in document["checks"])
    assert "without an account start `flux2 emulator`" in document["checks"][0]["advice"]


@pytest.mark.parametrize(
    ("change", "failing", "word"),
    [
        ({"APIKLEY_API_KEY": "my-secret-key"}, "account", "not accepted"),
        ({"APIKLEY_API_KEY": "my secret key"}, "key", "it holds a space"),
        ({"APIKLEY_API_KEY": '"secret"'}, "key", "it is in quotes, which are no part of it; take them away"),
        ({"APIKLEY_BASE_URL": "api.apikley.ru"}, "addresses", "APIKLEY_BASE_URL: 'api.apikley.ru' given"),
    ],
)
def test_doctor_judges_key_and_addresses_apart(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    change: dict[str, str],
    failing: str,
    word: str,
) -> None:
    """Exactly the wrong setting fails, and the key is not shown."""
    serve()
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    assert run(["doctor"]) == 1
    out = capsys.readouterr().out
    [line] = [line for line in out.splitlines() if line.startswith("failed")]
    assert line.split()[1] == failing
    assert word in line
    assert "secret" not in out


def test_doctor_sees_an_empty_account_a_broken_service_and_a_wrong_clock(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing left, HTTP 502, and a clock that is minutes off are each a failed check."""
    serve(balance=0.0)
    assert run(["doctor"]) == 1
    assert "failed balance  0 credits; top up the account" in capsys.readouterr().out
    serve(Fault("credit", "refuse", code=455, after=1))
    assert run(["doctor"]) == 1
    assert "failed account  the balance cannot be read: 455: " in capsys.readouterr().out
    serve(Fault("credit", "refuse", code=404, after=1))
    assert run(["doctor"]) == 1
    assert capsys.readouterr().out.endswith("Check that base_url names the API); correct APIKLEY_BASE_URL\n")
    serve(Fault("credit", "html", times=None))
    assert run(["doctor"]) == 1
    assert re.search(r"failed API +\S+ answers HTTP 502; ", capsys.readouterr().out)
    serve()
    monkeypatch.setattr("flux2_async.cli.doctor.http_date", _five_minutes_ago)
    assert run(["doctor"]) == 1
    assert re.search(
        r"failed clock +this clock is 300 s ahead of the server's; set this machine's clock", capsys.readouterr().out
    )


def _five_minutes_ago(_: str) -> object:
    return datetime.now(UTC) - timedelta(minutes=5)


def test_a_port_that_is_taken_is_one_line(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """`emulator` on a port in use is exit code 1 without a traceback, and says what to give instead."""
    place = serve().base_url.removeprefix("http://")
    assert run(["emulator", "--port", place.rpartition(":")[2]]) == 1
    err = capsys.readouterr().err
    reason = os.strerror(errno.EADDRINUSE)
    assert err == f"flux2: {place}: {reason}; give another --host or --port, where 0 takes a free one\n"


def test_a_host_that_nobody_knows_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What asyncio adds to the resolver's words says the address once more."""

    async def start(_: object) -> None:
        raise OSError(-2, "Name or service not known (while attempting to bind on address ('nowhere', 8765))")

    monkeypatch.setattr("flux2_async.emulator.Emulator.start", start)
    assert run(["emulator", "--host", "nowhere"]) == 1
    assert "flux2: nowhere:8765: Name or service not known; give another --host" in capsys.readouterr().err


def test_a_full_disk_is_told_in_the_words_of_the_system(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number that Python puts before them helps nobody."""
    serve()

    async def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Flux2Session, "download", full)
    assert run(["generate", "A lighthouse"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("flux2: No space left on device; go on with: flux2 ")


COMMANDS = ["demo", "edit", "generate", "batch", "report", "unknown", "status", "credits", "doctor", "emulator", "mcp"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """`--help` explains every parameter of a command and exits with 0."""
    assert run([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: flux2 {command}" in out
    # What a server of agents says is JSON anyway.
    assert ("--json" in out) is (command != "mcp")


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the version alone."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"{version('flux2-async')}\n"


@pytest.mark.parametrize("command", ["generate", "edit"])
def test_an_empty_ratio_is_not_the_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A variable of the shell that is not set does not make a picture that nobody asked for."""
    pictures = [PHOTO] if command == "edit" else []
    code = run([command, "a red kettle", *pictures, "--emulate", "--aspect-ratio", ""])

    assert code == 2
    assert "aspect_ratio: '' given" in capsys.readouterr().err


HOSTILE = "a\x1b]0;owned\x07b\x9b2Jc\u202egnp[bold]d[/bold]"


def test_what_others_write_does_not_steer_the_terminal(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure's words, and an id, are shown with their control characters as words; in JSON they are escaped."""
    emulator = serve(plan=Plan(duration=0.0, outcome="fail", fail_message=HOSTILE, fail_code=HOSTILE))
    assert run(["generate", "A lighthouse at dawn"]) == 1
    [task_id] = emulator.ledger.accepted
    for words in (["status", task_id], ["status", task_id, "--json"], ["status", f"{task_id}\x1b[2J"]):
        assert run(words) == 1
    out, err = capsys.readouterr()
    for character in "\x1b\x07\x9b\u202e":
        assert character not in out + err
    assert "a\\x1b]0;owned\\x07b\\x9b2Jc\\u202egnp[bold]d[/bold]" in out
    assert '"fail_message": "a\\u001b]0;owned\\u0007b\\u009b2Jc\\u202egnp[bold]d[/bold]"' in out


@pytest.mark.parametrize("place", [0, 1, 3])
def test_verbose_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """Wherever it stands before `--` it lets through what is logged."""
    logger = logging.getLogger("flux2_async")
    monkeypatch.setattr(logger, "level", logger.level)
    words = ["generate", "A lighthouse", "--rate-limit", "20/0.1"]
    assert _without_verbose(words) == words
    assert _without_verbose(["generate", "--", "--verbose"]) == ["generate", "--", "--verbose"]
    assert _without_verbose([*words[:place], "--verbose", *words[place:]]) == words
    assert logger.level == logging.DEBUG


def test_completion_is_written_for_the_shell(
    monkeypatch: pytest.MonkeyPatch, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`flux2 --install-completion` writes a file that knows the commands, and says where it is."""
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("SHELL", "/bin/bash")
    assert run(["--install-completion"]) == 0
    (written,) = here.rglob("completions/flux2")
    assert {"batch", "generate", "doctor"} <= set(written.read_text().replace('"', " ").split())
    assert str(written) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "https://app.apikley.ru"),
        ({"FLUX2_SERVICE": "kie"}, "https://kie.ai/logs"),
        ({"APIKLEY_BASE_URL": "http://localhost:8765/"}, "http://localhost:8765/ledger"),
        ({"APIKLEY_BASE_URL": "https://proxy.example"}, ""),
    ],
)
def test_where_the_task_log_is(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], address: str) -> None:
    """Who is to look up a task learns where, as far as that is known; of an emulator of this command there is none."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert options.log_address() == address
    assert options.task_log().endswith(f" ({address})" if address else " account")
    assert options.log_address(emulated=True) in ("", "https://kie.ai/logs")


def test_arguments_of_the_library_are_options_of_the_command() -> None:
    """Texts that name them say what can be typed."""
    text = "stopped by max_credits=40: send it again with retry_unknown; max_tasks: -1 given; my_max_tasks"
    told = "stopped by --max-credits 40: send it again with --retry-unknown; --max-tasks: -1 given; my_max_tasks"
    assert with_options(text) == told
