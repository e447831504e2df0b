"""`flux2 mcp` with a real MCP client: over the pipes of a process of its own where time-outs and restarts count."""

import asyncio
import base64
import errno
import mimetypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from emulated import session_for

from flux2_async.cli.app import run
from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.models import Polling
from flux2_async.models.requests import ASPECT_RATIOS, RATIOS, RESOLUTIONS, TIERS

if TYPE_CHECKING:
    # It takes seconds, and few of the processes that collect this module need it.
    from fastmcp import Client
    from mcp.client.extension import ClientExtension

pytestmark = pytest.mark.real_time
PHOTO = Path(__file__).parents[2] / "flux2_async" / "cli" / "photos" / "coffee.png"
KETTLE = {"prompt": "a red kettle on a slate worktop"}
OTHERS = ("APIKLEY_", "FLUX2_", "FASTMCP_")


def environ_of(emulator: Emulator, folder: Path) -> dict[str, str]:
    """The environment of somebody whose account is at the emulator, and whose keys are in a folder of the test."""
    bare = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(OTHERS) and not name.lower().endswith("_proxy")
    }
    account = {"APIKLEY_API_KEY": emulator.api_key, "APIKLEY_BASE_URL": emulator.base_url}
    return bare | account | {"XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)}


def started(
    emulator: Emulator, folder: Path, *options: str, extension: "ClientExtension | None" = None
) -> "Client[Any]":
    """A client that starts a server for itself, as an agent's program does, with an extension where one is given."""
    from fastmcp import Client  # noqa: PLC0415  see above
    from fastmcp.client.transports import StdioTransport  # noqa: PLC0415  likewise

    words = ["-m", "flux2_async.cli", "mcp", *options]
    environ = environ_of(emulator, folder)
    transport = StdioTransport(sys.executable, words, env=environ, cwd=str(folder), keep_alive=False)
    return Client(transport, extensions=None if extension is None else [extension])


@asynccontextmanager
async def connected(
    script: Script, folder: Path, *extensions: "ClientExtension"
) -> AsyncIterator[tuple["Client[Any]", Emulator]]:
    """A client of the same tools within this process, and the emulator behind them."""
    from fastmcp import Client  # noqa: PLC0415  see above

    from flux2_async.cli.mcp import Agent  # noqa: PLC0415  likewise

    async with (
        Emulator(script) as emulator,
        session_for(emulator, polling=Polling(interval=0.05)) as flux,
        Client(Agent(flux, folder).server(), extensions=extensions or None) as client,
    ):
        yield client, emulator


async def called(client: "Client[Any]", tool: str, arguments: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """What an agent is given: contents, and data."""
    result = await client.call_tool(tool, arguments, **options)
    return result.content, result.structured_content


async def error_of(client: "Client[Any]", tool: str, arguments: dict[str, Any]) -> str:
    """What an agent is told of a call that fails."""
    result: Any = await client.call_tool(tool, arguments, raise_on_error=False)
    assert result.is_error
    return str(result.content[0].text)


async def test_a_time_out_and_a_new_server_pay_once(tmp_path: Path) -> None:
    """The call that is repeated on a new server gives the picture of the first, which a ceiling of one allows.

    Over the ceiling nothing is sent, and the refusal tells what is spent; looking stays free.
    """
    from fastmcp.exceptions import McpError  # noqa: PLC0415  see above

    async with Emulator(Script(plans=Plan(duration=4.0), render=False, credits=300.0)) as emulator:
        async with started(emulator, tmp_path, "--max-credits", "14") as client:
            call = asyncio.create_task(client.call_tool("generate", KETTLE, timeout=60))
            async with asyncio.timeout(60):
                while not emulator.ledger.accepted:  # noqa: ASYNC110  the emulator tells nobody
                    await asyncio.sleep(0.01)
            # The client does not wait for the answer.
            call.cancel()
            await asyncio.wait([call])
            with pytest.raises(McpError, match="timed out"):
                await client.call_tool("generate", KETTLE, timeout=0.2)
        async with started(emulator, tmp_path, "--max-credits", "14") as client:
            _, data = await called(client, "generate", KETTLE)
            refused = [
                await error_of(client, "generate", KETTLE | {"request_id": "another"}),
                await error_of(client, "edit", KETTLE | {"images": ["https://example.org/kettle.png"]}),
            ]
            _, balance = await called(client, "credits", {})
            _, estimate = await called(client, "estimate", {"pictures": 3, "tier": "pro", "resolution": "2K"})

        (task_id,) = emulator.ledger.accepted
        assert emulator.ledger.calls["createTask"] == 1
    assert (data["task_id"], data["state"], data["credits"]) == (task_id, "success", 14.0)
    assert [Path(file).parent for file in data["files"]] == [tmp_path / "flux2-pictures"]
    for error in refused:
        assert "the budget is 14 credits per 86400 s: 14 are spent, 0 reserved, and this picture may cost 14" in error
        assert error.endswith("the budget is --max-credits of this server, and only the user can raise it")
    assert balance == {"credits": 286.0}
    assert (estimate["requests"], estimate["credits"]) == (3, 21.0)


async def test_a_client_that_speaks_tasks_polls_instead_of_waiting(tmp_path: Path) -> None:
    """It is given the id at once, sees the stages, and gets in the end what the call would have given."""
    from fastmcp import Client  # noqa: PLC0415  see above
    from mcp_tasks_client import SpeaksTasks  # noqa: PLC0415  likewise

    extension = SpeaksTasks()
    async with connected(Script(plans=Plan(duration=3.0), render=False), tmp_path, extension) as (client, emulator):
        _, data = await called(client, "generate", KETTLE)
        _, again = await called(client, "generate", KETTLE)
        async with Client(client.transport) as other:
            _, plain = await called(other, "wait", {"task_id": data["task_id"]})
        assert emulator.ledger.calls["createTask"] == 1

    assert extension.given[0].task_id == data["task_id"]
    assert (extension.given[0].ttl_ms, extension.given[0].poll_interval_ms) == (86_400_000, 2_000)
    states = [seen["statusMessage"].rpartition(" ")[2] for seen in extension.seen]
    assert len({*states}) > 2
    assert [seen["status"] for seen in extension.seen] == ["working"] * (len(states) - 1) + ["completed"]
    assert all(seen["resultType"] == "complete" for seen in extension.seen)
    assert not any("result" in seen for seen in extension.seen[:-1])
    assert data == again == plain
    assert [Path(file).parent for file in data["files"]] == [tmp_path]


async def test_a_client_that_reconnects_polls_the_same_task(tmp_path: Path) -> None:
    """A task is known to a server that was started since; the same call gives its id again, and it is paid once."""
    from mcp_tasks_client import SpeaksTasks, speaking  # noqa: PLC0415  see above

    async with Emulator(Script(plans=Plan(duration=4.0), render=False)) as emulator:
        async with started(emulator, tmp_path, extension=SpeaksTasks(polls=False)) as client:
            _, first = await called(client, "generate", KETTLE)
        async with started(emulator, tmp_path, extension=SpeaksTasks(polls=False)) as client:
            ask, task_id = speaking(client), first["task_id"]
            while (seen := await ask("get", task_id))["status"] == "working":  # noqa: ASYNC110  that is how it is done
                await asyncio.sleep(0.2)
            _, again = await called(client, "generate", KETTLE)
        assert emulator.ledger.accepted == [task_id]
        assert emulator.ledger.calls["createTask"] == 1

    assert seen["status"] == "completed"
    assert seen["result"]["structuredContent"]["task_id"] == task_id == again["task_id"]


async def test_what_a_client_may_ask_of_tasks(tmp_path: Path) -> None:
    """A task that is cancelled goes on and is told so; what is no task, and who does not speak of them, is an error."""
    from fastmcp import Client  # noqa: PLC0415  see above
    from fastmcp.exceptions import McpError  # noqa: PLC0415  likewise
    from mcp_tasks_client import SpeaksTasks, speaking  # noqa: PLC0415  likewise

    from flux2_async.cli.mcp import Agent  # noqa: PLC0415  likewise

    plans = [Plan(duration=2.0), Plan(duration=0.5, outcome="moderated")]
    async with (
        Emulator(Script(plans=plans, render=False)) as emulator,
        session_for(emulator, polling=Polling(interval=0.05)) as flux,
    ):
        server = Agent(flux, tmp_path).server()
        async with Client(server, extensions=[SpeaksTasks(polls=False)]) as client:
            ask = speaking(client)
            _, given = await called(client, "generate", KETTLE)
            await ask("update", given["task_id"])
            await ask("cancel", given["task_id"])
            cancelled = await ask("get", given["task_id"])
            _, failing = await called(client, "generate", KETTLE | {"request_id": "another"})
            while (failed := await ask("get", failing["task_id"]))["status"] == "working":  # noqa: ASYNC110  as above
                await asyncio.sleep(0.1)
            for unknown in ("0" * 32, "../etc"):
                with pytest.raises(McpError) as caught:
                    await ask("get", unknown)
                assert caught.value.error.code == -32602
        async with Client(server) as client:
            with pytest.raises(McpError) as caught:
                await speaking(client)("get", given["task_id"])
            _, picture = await called(client, "wait", {"task_id": given["task_id"]})

        assert emulator.ledger.calls["createTask"] == 2
    assert cancelled["status"] == "cancelled"
    assert "charges it, and wait with this task_id gives the picture" in cancelled["statusMessage"]
    assert caught.value.error.code == -32021
    assert len(picture["files"]) == 1
    assert (failed["status"], failed["result"]["isError"]) == ("completed", True)
    assert "CONTENT_POLICY_BLOCKED" in failed["result"]["content"][0]["text"]


@pytest.mark.parametrize(("ends", "kind"), [("png", "image/png"), ("jpg", "image/jpeg"), ("webp", "image/webp")])
async def test_a_saved_file_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, kind: str
) -> None:
    """Whatever the machine knows of the names of files."""
    monkeypatch.setattr(mimetypes, "knownfiles", [])
    monkeypatch.setattr(mimetypes, "_db", None)
    (tmp_path / f"t1-1.{ends}").write_bytes(b"content")
    async with connected(Script(), tmp_path) as (client, _):
        [content] = await client.read_resource("flux2://pictures/t1/1")
    assert content.mime_type == kind


async def test_a_picture_comes_as_a_resource(tmp_path: Path) -> None:
    """What generate gives names the saved file, its address and a resource of its bytes, also when the file is gone."""
    told: list[tuple[float, float | None, str | None]] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        told.append((done, total, message))

    async with connected(Script(plans=Plan(duration=0.5)), tmp_path) as (client, emulator):
        (_, link), data = await called(client, "generate", KETTLE | {"wait_seconds": 30}, progress_handler=progress)
        (file,) = map(Path, data["files"])
        read: Any = await client.read_resource(link.uri)
        content = file.read_bytes()
        file.unlink()
        again: Any = await client.read_resource(link.uri)
        _, record = await called(client, "get_task", {"task_id": data["task_id"]})

        assert emulator.ledger.calls["createTask"] == 1
    assert link.uri == f"flux2://pictures/{data['task_id']}/1"
    assert (link.mime_type, link.size) == ("image/jpeg", len(content))
    assert base64.b64decode(read[0].blob) == base64.b64decode(again[0].blob) == content
    assert content.startswith(b"\xff\xd8")
    assert told[0] == (0.0, 30.0, "not sent yet")
    assert record == {
        "task_id": data["task_id"],
        "state": "success",
        "urls": data["urls"],
        "failure": None,
        "credits": 14.0,
    }


async def test_what_is_not_finished_is_waited_for(tmp_path: Path) -> None:
    """A call that waits no longer gives the task's id, and the tool `wait` its picture."""
    async with connected(Script(plans=Plan(duration=1.0), render=False), tmp_path) as (client, emulator):
        (words,), begun = await called(client, "generate", KETTLE | {"wait_seconds": 0})
        _, ended = await called(client, "wait", {"task_id": begun["task_id"]})

        assert emulator.ledger.calls["createTask"] == 1
    assert begun["files"] == []
    assert words.text == (
        f"task {begun['task_id']} is not finished; it goes on, so wait again at no cost: call wait with this task_id"
    )
    assert ended["task_id"] == begun["task_id"]
    assert [Path(file).parent for file in ended["files"]] == [tmp_path]


async def test_a_task_that_nobody_knows_is_no_unfinished_one(tmp_path: Path) -> None:
    """Who waits for a wrong id is told to check it."""
    async with connected(Script(render=False), tmp_path) as (client, _):
        (words,), data = await called(client, "wait", {"task_id": "nobody", "wait_seconds": 0.5})

    assert words.text.startswith("the service does not know task nobody after 0.5 s: check the id")
    assert (data["task_id"], data["files"]) == ("nobody", [])


async def test_what_is_another_picture(tmp_path: Path) -> None:
    """The same call is the same task; another name makes another, a changed file as well, and a name is one picture."""
    photo = tmp_path / "photo.png"
    shutil.copy(PHOTO, photo)
    edit = KETTLE | {"images": [str(photo)]}
    async with connected(Script(plans=Plan(duration=0.0), render=False), tmp_path) as (client, emulator):

        async def task_of(tool: str, arguments: dict[str, Any]) -> str:
            _, data = await called(client, tool, arguments | {"wait_seconds": 0})
            return str(data["task_id"])

        first, same = await task_of("edit", edit), await task_of("edit", edit)
        named = await task_of("edit", edit | {"request_id": "blue"})
        os.utime(photo, (1.0, 1.0))
        changed = await task_of("edit", edit)
        refused = await error_of(client, "generate", KETTLE | {"request_id": "blue"})

        assert first == same
        assert len({first, named, changed}) == emulator.ledger.calls["createTask"] == 3
    assert refused.endswith("The key is the request_id: choose another")


async def test_what_is_unclear_is_not_sent_again(tmp_path: Path) -> None:
    """A call whose createTask lost its answer says that it may be paid for, also when it is repeated."""
    script = Script(render=False, faults=[Fault(on="createTask", kind="cut_after")])
    async with connected(script, tmp_path) as (client, emulator):
        errors = [await error_of(client, "generate", KETTLE) for _ in range(2)]

        assert emulator.ledger.calls["createTask"] == 1
    for error in errors:
        assert error.endswith("it may be paid for. The same call gives this error and is not sent again")


async def test_what_fails_is_told_in_words(tmp_path: Path) -> None:
    """A failed task, an unusable argument and a name that leads out of the folder are errors that say what to do."""
    from fastmcp.exceptions import McpError  # noqa: PLC0415  see above

    script = Script(plans=Plan(duration=0.0, outcome="moderated"), render=False)
    async with connected(script, tmp_path) as (client, _):
        failed = await error_of(client, "generate", KETTLE)
        short = await error_of(client, "generate", {"prompt": "x"})
        many = await error_of(client, "estimate", {"pictures": 10**9})
        with pytest.raises(McpError):
            await client.read_resource("flux2://pictures/..%2F..%2Fetc/1")

    assert "CONTENT_POLICY_BLOCKED" in failed
    assert failed.endswith("Change the prompt, or try again with a new request_id")
    assert short == "prompt: 1 character given, allowed are 3 to 5000"
    assert many == "pictures: 1000000000 given, allowed are 1 to 10000"


async def test_too_little_time_is_named_as_it_was_given(tmp_path: Path) -> None:
    """What is not sent in time is told by the name and number that the agent gave."""
    script = Script(render=False, faults=[Fault("createTask", "refuse", code=429, retry_after=60.0, times=None)])
    async with connected(script, tmp_path) as (client, _):
        told = await error_of(client, "generate", KETTLE | {"wait_seconds": 1.5})

    assert "within wait_seconds=1.5; try again in " in told
    assert "max_wait" not in told


def _words(schema: dict[str, Any]) -> set[str]:
    """What a text may be, by its schema."""
    return {*schema.get("enum", ()), *filter(None, [schema.get("const")])}.union(*map(_words, schema.get("anyOf", ())))


async def test_agents_are_told_what_can_be_asked_for(tmp_path: Path) -> None:
    """Every tool and every argument is described, and what an argument may be is what a request may have."""
    async with connected(Script(), tmp_path) as (client, _):
        tools = {tool.name: tool for tool in await client.list_tools()}

    assert tools.keys() == {"generate", "edit", "wait", "get_task", "credits", "estimate"}
    assert all(tool.description for tool in tools.values())
    for name, ratios in (("generate", RATIOS), ("edit", ASPECT_RATIOS)):
        properties = tools[name].input_schema["properties"]
        for field, allowed in (("aspect_ratio", ratios), ("resolution", RESOLUTIONS), ("tier", TIERS)):
            assert _words(properties[field]) == {*allowed}
    assert tools["generate"].input_schema["required"] == ["prompt"]
    assert tools["edit"].input_schema["required"] == ["prompt", "images"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_while_the_client_listens(number: signal.Signals, tmp_path: Path) -> None:
    """It ends like every command, though a thread of it reads what the client might say; stdout is the protocol's."""
    words = [sys.executable, "-m", "flux2_async.cli", "mcp", "--emulate", "--out", str(tmp_path / "pictures")]
    environ = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    hello = (
        b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},'
        b'"clientInfo":{"name":"test","version":"1"}}}\n'
    )
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(words, env=environ, bufsize=0, **pipes) as process:  # noqa: S603  our own
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(hello)
        assert b'"serverInfo":{"name":"flux2"' in process.stdout.readline()
        process.send_signal(number)

        assert process.wait(60) == 130
        assert process.stdout.read() == b""
        assert process.stderr.read() == b"flux2: interrupted\n"


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that lacks fastmcp names the extra."""
    monkeypatch.setitem(sys.modules, "fastmcp", None)

    assert run(["mcp"]) == 2
    assert 'pip install "flux2-async[mcp]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-credits", "-1"], "flux2: --max-credits: -1.0 given, it must be a number of 0 or more"),
        (["--out", "file/below"], "cannot be written (Not a directory)"),
    ],
)
def test_unusable_options_are_told_before_it_serves(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ceiling that is none and a folder that cannot be are wrong usage; stdout stays empty."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")

    assert run(["mcp", "--emulate", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


def test_a_folder_that_cannot_be_written_is_named_by_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever reads the error knows which option of this command to give."""

    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert run(["mcp", "--emulate", "--out", str(tmp_path)]) == 2
    told = f"flux2: --out: the folder {str(tmp_path)!r} cannot be written (Permission denied); nothing was sent"
    assert " ".join(capsys.readouterr().err.split()) == told


def test_others_do_without_what_it_needs() -> None:
    """Help and the other commands do not import the seconds of fastmcp."""
    code = (
        "import sys; from flux2_async.cli.app import run; run(['--help']); run(['mcp', '--help']); "
        "import flux2_async.cli.commands; print(*({'fastmcp', 'mcp', 'pydantic'} & {*sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  our own

    assert "flux2 mcp" in done.stdout
    assert done.stderr == "\n"
