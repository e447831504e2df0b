"""The commands: what they take, and what becomes of how they end."""

import os
import shlex
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from flux2_async.cli.batch_options import BatchOptions, jobs
from flux2_async.cli.emulator_options import EmulatorOptions
from flux2_async.cli.options import (
    EXTENSIONS,
    FOLDER,
    RATE_LIMIT,
    TIMEOUT,
    TITLE,
    Json,
    Output,
    RateLimitText,
    Service,
    Shape,
    Timeout,
    check_key,
    check_timeout,
    flag,
    parse_rate_limit,
    told,
)
from flux2_async.cli.screen import INTERRUPTED, CommandError, Screen, UsageError
from flux2_async.cli.signals import ending_signals
from flux2_async.cli.usage import GIVEN
from flux2_async.errors import ConfigurationError, Flux2Error, InvalidRequestError
from flux2_async.models import ImageToImage, Request, TextToImage
from flux2_async.models.image_sources import is_url
from flux2_async.session.callback_settings import VARIABLE as SECRET

Prompt = Annotated[str, told("3 to 5000 characters.")]
ONCE = ("--retry-failed", "--retry-unknown")
TaskId = Annotated[str, told("The id that was printed when the task was accepted.")]


def demo(
    *,
    out: Annotated[Path, told("The folder for the pictures and the contact sheet.")] = Path("flux2-demo"),
    rate_limit: RateLimitText = RATE_LIMIT,
    json: Json = False,
) -> int:
    """Show the main job on the embedded emulator: no account, no charge.

    Uploads photographs, submits 16 requests, waits for them and downloads the pictures. One is refused by
    moderation and one by the rate limit, on purpose.
    """
    from flux2_async.cli.demo import demo as run_demo

    return _done(lambda screen: run_demo(screen, out, parse_rate_limit(rate_limit)), machine=json)


def edit(
    prompt: Prompt,
    /,
    *images: Annotated[str, told("1 to 8 reference pictures: files or http(s) addresses.")],
    output: Output = None,
    shape: Shape = Shape(),  # noqa: B008  frozen
    timeout: Timeout = TIMEOUT,
    service: Service = Service(),  # noqa: B008  frozen
    json: Json = False,
) -> int:
    """Make a picture from words and pictures.

    Example: flux2 edit "Put the cat on the sofa" cat.png sofa.jpg -o out.png
    """
    from flux2_async.batch.jobs import check_files

    def request() -> ImageToImage:
        # One word that looks like a picture is no prompt, nor is the name of a file.
        word = len(prompt.split()) == 1 and (is_url(prompt) or prompt.lower().endswith(tuple(EXTENSIONS)))
        if word or os.path.isfile(prompt):  # noqa: PTH113  a Path raises for long ones
            raise UsageError(f"edit: {prompt!r:.80} given as the prompt; the prompt comes first, then the pictures")
        if not images:
            raise UsageError("edit: no picture given; name one after the prompt, or use flux2 generate")
        made = ImageToImage(prompt, images=images, **shape.fields("auto"))
        # A missing one is told before the account is asked for and anything is started.
        check_files(made, list(images))
        return made

    return _make(request, service, output, timeout, machine=json)


def generate(
    prompt: Prompt,
    /,
    *,
    output: Output = None,
    shape: Shape = Shape(),  # noqa: B008  frozen
    timeout: Timeout = TIMEOUT,
    service: Service = Service(),  # noqa: B008  frozen
    json: Json = False,
) -> int:
    """Make a picture from words.

    Example: flux2 generate "A lighthouse at dawn" --aspect-ratio 16:9 -o out.png
    """
    return _make(lambda: TextToImage(prompt, **shape.fields("1:1")), service, output, timeout, machine=json)


def batch(
    *sources: Annotated[
        str,
        told("A list of requests (.jsonl, .json, .csv or .tsv); or with --prompt pictures, such as 'photos/*.jpg'."),
    ],
    options: BatchOptions = BatchOptions(),  # noqa: B008  frozen
    shape: Shape = Shape(),  # noqa: B008  frozen
    service: Service = Service(),  # noqa: B008  frozen
    json: Json = False,
) -> int:
    """Make many pictures; the same command again continues where it stopped, whatever stopped it.

    A list has one request per line: prompt, images, aspect_ratio, resolution, tier, model, id; other columns are kept.
    A model that is not Flux-2 is named by model and input, see `flux2 docs services`.
    Ctrl-C once stops sending and waits for what runs, twice stops at once. Exit code 1 when a picture is missing.

    Example: flux2 batch jobs.jsonl --out results/
    """
    from flux2_async.cli.batch import batch as run_batch

    # The command to go on with, without what is meant to be done once.
    again = shlex.join(["flux2", *(word for word in GIVEN.get() if word not in ONCE)])
    return _done(lambda screen: run_batch(screen, jobs(sources, options, shape), options, service, again), machine=json)


def report(
    folder: Annotated[Path, told("The folder that flux2 batch was given as --out.")] = FOLDER,
    /,
    *,
    serve: Annotated[bool, flag("Serve the page; rows appear while the batch runs.")] = False,
    host: Annotated[str, told("The address to listen on, with --serve.")] = "127.0.0.1",
    port: Annotated[int, told("0 takes a free one; with --serve.")] = 8766,
    title: Annotated[str, told("The page's headline.")] = TITLE,
    json: Json = False,
) -> int:
    """Write report.html anew, or serve it while the batch runs in another terminal; Ctrl-C ends it.

    Example: flux2 report results/ --serve
    """
    from flux2_async.cli.report import report as write_report
    from flux2_async.cli.report import serve as serve_report

    if serve:
        return _done(lambda screen: serve_report(screen, folder, title, host, port), machine=json)
    return _done(lambda screen: write_report(screen, folder, title), machine=json)


def unknown(
    folder: Annotated[Path, told("The folder that flux2 batch was given as --out.")] = FOLDER,
    /,
    *,
    task: Annotated[tuple[str, ...], flag("ID=TASK_ID: the request became this task, which is waited for.")] = (),
    never_made: Annotated[
        tuple[str, ...], flag("ID: the request was certainly not accepted, so that it is sent again.")
    ] = (),
    decisions: Annotated[
        Path | None,
        told("A list, CSV or JSON, with the columns id and task_id: the task's, or `never made`; empty: asked later."),
    ] = None,
    check: Annotated[
        bool, told("Where there is a key, check that the service knows the task and made it from that prompt.")
    ] = True,
    journal: Annotated[Path | None, told("The journal's file; run.db in the folder without it.")] = None,
    json: Json = False,
) -> int:
    """List the requests of a batch that may have been accepted, and say what became of each.

    On a terminal it asks about each; a script says it with --task and --never-made, which may be given several times,
    or with --decisions, a list such as `flux2 unknown results/ --json | jq -c '.unknown[]'` begins.
    What is not decided stays as it is. The next run of `flux2 batch` acts on it. Exit code 1 while some are left.

    Example: flux2 unknown results/ --task shot-5=281e5b0f9a --never-made shot-6
    """
    from flux2_async.cli.unknown import Decisions
    from flux2_async.cli.unknown import unknown as decide

    decided = Decisions(task, never_made, decisions, check)
    ask = not (json or task or never_made or decisions) and sys.stdin.isatty() and sys.stderr.isatty()
    path = journal or folder / "run.db"
    return _done(lambda screen: decide(screen, path, decided, ask=ask), machine=json)


def status(
    task_id: TaskId,
    /,
    *,
    wait: Annotated[bool, flag("Wait for the picture and save it.")] = False,
    output: Output = None,
    timeout: Timeout = TIMEOUT,
    json: Json = False,
) -> int:
    """Show the state of a task; with --wait or -o wait for its picture and save it.

    Exit code 1 when the task failed.
    """
    from flux2_async.cli.run import fetch, show

    async def go(screen: Screen) -> int:
        check_key()
        if not wait and output is None:
            return int(not await show(screen, task_id))
        await fetch(screen, task_id, output=output, timeout=check_timeout(timeout))
        return 0

    return _done(go, machine=json)


def credits_(*, json: Json = False) -> int:
    """Show the account's balance."""
    from flux2_async.cli.service import opened

    async def go(screen: Screen) -> None:
        check_key()
        async with opened() as flux:
            amount = await flux.credits()
        screen.result(f"{amount:.10g} credits")
        screen.document({"credits": amount})

    return _done(go, machine=json)


def doctor(
    *,
    callback_url: Annotated[
        str | None, told(f"Also call this address as the service would; {SECRET} signs it.")
    ] = None,
    json: Json = False,
) -> int:
    """Check the key, the balance, the addresses, the clock and callbacks; costs nothing.

    Exit code 1 when a check fails.
    """
    from rich.text import Text

    from flux2_async.cli.doctor import checks

    async def go(screen: Screen) -> int:
        found = []
        async for check in checks(callback_url):
            found.append(check)
            word, style = ("ok    ", "green") if check.ok else ("failed", "bold red")
            if not check.known:
                word, style = "note  ", "dim"
            advice = f"; {check.advice}" if check.advice else ""
            screen.result(Text.assemble((word, style), f" {check.name:<8} {check.detail}{advice}"))
        ok = all(check.ok for check in found)
        fields = ("name", "ok", "known", "detail", "advice")
        screen.document({"ok": ok, "checks": [{name: getattr(check, name) for name in fields} for check in found]})
        return int(not ok)

    return _done(go, machine=json)


def emulator(
    *,
    port: Annotated[int, told("0 takes a free one.")] = 8765,
    host: Annotated[str, told("The address to listen on.")] = "127.0.0.1",
    options: EmulatorOptions = EmulatorOptions(),  # noqa: B008  frozen
    log: Annotated[bool, told("Write a line on stderr for each request.")] = True,
    json: Json = False,
) -> int:
    """Run the service on this machine, for trying programs without an account; Ctrl-C ends it.

    It admits 20 new tasks in any 10 seconds and answers 429 to the rest, as the real one does. A browser at its
    address shows what happens, ends tasks and cuts connections; /ledger is what it accepted and charged, as JSON.

    Example: flux2 emulator --duration 3 --moderate 0.1 --fault createTask:cut_after
    """
    from flux2_async.cli.serve import serve

    return _done(lambda screen: serve(screen, host, port, options, log=log), machine=json)


def mcp(
    *,
    out: Annotated[Path, told("The folder for the pictures.")] = Path("~/flux2-pictures"),
    max_credits: Annotated[float | None, told("Credits to spend at most in any 24 hours, restarts included.")] = None,
    service: Service = Service(),  # noqa: B008  frozen
) -> int:
    """Serve agents as tools by the Model Context Protocol, over stdin and stdout; needs the extra `mcp`.

    An agent makes, edits and fetches pictures with it; a call that is repeated is paid once. See `flux2 docs agents`.

    Example: flux2 mcp --max-credits 200
    """
    from importlib.util import find_spec

    folder = out.expanduser().absolute()

    async def go(screen: Screen) -> None:
        if find_spec("fastmcp") is None:
            raise UsageError('mcp: it needs the extra "mcp"; install it with: pip install "flux2-async[mcp]"')
        from flux2_async.cli.mcp import serve

        await serve(screen, service, folder, max_credits)

    return _done(go, machine=False)


def _make(
    request: Callable[[], Request], service: Service, output: str | None, timeout: float, *, machine: bool
) -> int:
    """Make one picture; what cannot be asked for is said before the account is looked at."""
    from flux2_async.cli.run import fetch

    async def go(screen: Screen) -> None:
        wanted = request()
        service.check()
        await fetch(screen, wanted, service, output=output, timeout=check_timeout(timeout))

    return _done(go, machine=machine)


def _done(go: Callable[[Screen], Coroutine[Any, Any, int | None]], *, machine: bool) -> int:
    """Run a command to its end and give its exit code, whatever the end."""
    import asyncio

    from flux2_async import cli

    screen = Screen(machine=machine)
    cli.begun = True
    try:
        return asyncio.run(_interruptible(go(screen))) or 0
    except (UsageError, InvalidRequestError, ConfigurationError) as error:
        screen.error(error)
        return 2
    except CommandError as failed:
        screen.error(failed.error, failed.advice, task_id=failed.task_id)
        return failed.code
    except BrokenPipeError:
        raise
    except (Flux2Error, OSError) as error:
        screen.error(error)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.error("interrupted")
        return INTERRUPTED


async def _interruptible(command: Coroutine[Any, Any, int | None]) -> int | None:
    """Take `ending_signals` as Ctrl-C, so that whoever stops the process learns the task ids as well."""
    import asyncio

    task = asyncio.current_task()
    assert task is not None  # noqa: S101  a coroutine runs in one
    # A handler in the loop also lets every signal wake it; without one, a Ctrl-C in the instant in which the loop goes
    # to sleep is noticed only when something else wakes it. Windows has no handlers, and wakes by itself.
    with suppress(NotImplementedError):
        for number in ending_signals():
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await command
