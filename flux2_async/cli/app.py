"""The commands by name, with the words that help says of them; each is imported when it is called."""

import logging
from collections.abc import Sequence
from inspect import cleandoc

from cyclopts import App, CycloptsError

from flux2_async._version import VERSION
from flux2_async.cli.usage import GIVEN, advice, told

app: App = App(
    name="flux2",
    version=VERSION,
    help=(
        "Flux-2 pictures from the command line. Start with `flux2 demo`, which needs no account.\n\n"
        "The key is read from the environment variable APIKLEY_API_KEY. APIKLEY_BASE_URL and APIKLEY_UPLOAD_URL set "
        "other addresses, APIKLEY_CALLBACK_SECRET signs callbacks. FLUX2_SERVICE=kie uses kie.ai, with KIE_API_KEY.\n\n"
        "--verbose, anywhere, writes the session's log to stderr.\n\n"
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."
    ),
    help_format="plaintext",
)
app.register_install_completion_command(help="Install completion for this shell; it works in new terminals.")


def _register(place: str, text: str, name: str | None = None) -> None:
    """Give help the words of a command whose function is imported when it is called."""
    app.command(f"flux2_async.cli.{place}", name=name or place.partition(":")[2], help=cleandoc(text))


_register(
    "commands:demo",
    """Show the main job on the embedded emulator: no account, no charge.

    Uploads photographs, submits 16 requests, waits for them and downloads the pictures. One is refused by
    moderation and one by the rate limit, on purpose.
    """,
)
_register(
    "commands:edit",
    """Make a picture from words and pictures.

    Example: flux2 edit "Put the cat on the sofa" cat.png sofa.jpg -o out.png
    """,
)
_register(
    "commands:generate",
    """Make a picture from words.

    Example: flux2 generate "A lighthouse at dawn" --aspect-ratio 16:9 -o out.png
    """,
)
_register(
    "commands:batch",
    """Make many pictures; the same command again continues where it stopped, whatever stopped it.

    A list has one request per line: prompt, images, aspect_ratio, resolution, tier, model, id; other columns are kept.
    A model that is not Flux-2 is named by model and input, see `flux2 docs services`.
    Ctrl-C once stops sending and waits for what runs, twice stops at once. Exit code 1 when a picture is missing.

    Example: flux2 batch jobs.jsonl --out results/
    """,
)
_register(
    "commands:show",
    """Write report.html anew, or serve it while the batch runs in another terminal; Ctrl-C ends it.

    Example: flux2 report results/ --serve
    """,
    name="report",
)
_register(
    "commands:decide",
    """List the requests of a batch that may have been accepted, and say what became of each.

    On a terminal it asks about each; a script says it with --task and --never-made, which may be given several times,
    or with --decisions, a list such as `flux2 unknown results/ --json | jq -c '.unknown[]'` begins.
    What is not decided stays as it is. The next run of `flux2 batch` acts on it. Exit code 1 while some are left.

    Example: flux2 unknown results/ --task shot-5=281e5b0f9a --never-made shot-6
    """,
    name="unknown",
)
_register(
    "commands:status",
    """Show the state of a task; with --wait or -o wait for its picture and save it.

    Exit code 1 when the task failed.
    """,
)
_register("commands:balance", "Show the account's balance.", name="credits")
_register(
    "commands:doctor",
    """Check the key, the balance, the addresses, the clock and callbacks; costs nothing.

    Exit code 1 when a check fails.
    """,
)
_register(
    "commands:emulator",
    """Run the service on this machine, for trying programs without an account; Ctrl-C ends it.

    It admits 20 new tasks in any 10 seconds and answers 429 to the rest, as the real one does. A browser at its
    address shows what happens, ends tasks and cuts connections; /ledger is what it accepted and charged, as JSON.

    Example: flux2 emulator --duration 3 --moderate 0.1 --fault createTask:cut_after
    """,
)
_register(
    "commands:mcp",
    """Serve agents as tools by the Model Context Protocol, over stdin and stdout; needs the extra `mcp`.

    An agent makes, edits and fetches pictures with it; a call that is repeated is paid once. See `flux2 docs agents`.

    Example: flux2 mcp --max-credits 200
    """,
)
_register(
    "documents:docs",
    """Show a page of the guide, or what a public name does; without a name, list the pages.

    Example: flux2 docs waiting
    """,
)
_register(
    "documents:recipe",
    """Print a whole program to start from; without a name, list them.

    Example: flux2 recipe fastapi > app.py
    """,
)


def _told(arguments: Sequence[str]) -> Sequence[str]:
    """Take `--verbose` off the words, which may stand anywhere before `--`, and show the log if it is there."""
    ends = list(arguments).index("--") if "--" in arguments else len(arguments)
    options = [word for word in arguments[:ends] if word != "--verbose"]
    if len(options) < ends:
        # The last resort writes to what is `sys.stderr` then, which is the board's while there is one.
        logging.getLogger("flux2_async").setLevel(logging.DEBUG)
        (logging.lastResort or logging.NullHandler()).setLevel(logging.DEBUG)
    return [*options, *arguments[ends:]]


def run(arguments: Sequence[str]) -> int:
    """Run the command that the words after `flux2` name, and give its exit code."""
    arguments = _told(arguments)
    GIVEN.set(tuple(arguments))
    try:
        command, bound, _ = app.parse_args(arguments, print_error=False, exit_on_error=False)
        code = command(*bound.args, **bound.kwargs)
    except CycloptsError as error:
        # The words were not understood, so nobody has taken this one off them.
        from flux2_async.cli.screen import Screen, UsageError  # noqa: PLC0415  help does without

        Screen(machine="--json" in arguments).error(UsageError(told(error)), advice(error, arguments))
        return 2
    return code if isinstance(code, int) else 0
