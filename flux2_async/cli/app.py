"""The commands by name, with the words that help says of them: docstrings, each of a function imported when called."""

import ast
import logging
from collections.abc import Sequence
from contextlib import suppress
from pkgutil import get_data

from cyclopts import App, CycloptsError

from flux2_async._shown.version import VERSION
from flux2_async.cli.usage import GIVEN, advice, misunderstood

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


def _register(module: str, *names: str) -> None:
    """Make functions of a module commands; their words are read from its text, since importing it takes its time."""
    texts: dict[str, str] = {}
    # By the loader, which may be one of archives; where it has none, as in bundles, help imports the functions.
    with suppress(OSError):
        for node in ast.parse(get_data("flux2_async.cli", f"{module}.py") or b"").body:
            if isinstance(node, ast.FunctionDef):
                # What is behind are the words that its parameters say of themselves.
                texts[node.name] = (ast.get_docstring(node) or "").partition("\n\nArgs:")[0]
    for name in names:
        app.command(f"flux2_async.cli.{module}:{name}", name=name.rstrip("_"), help=texts.get(name))


_register("commands", "demo", "edit", "generate", "batch", "report", "unknown", "status", "credits_", "doctor")
_register("commands", "emulator", "mcp")
_register("documents", "docs", "recipe")


def _without_verbose(arguments: Sequence[str]) -> Sequence[str]:
    """Take `--verbose` off the words, which may stand anywhere before `--`, and show the log if it is there."""
    ends = list(arguments).index("--") if "--" in arguments else len(arguments)
    options = [word for word in arguments[:ends] if word != "--verbose"]
    if len(options) < ends:
        logging.getLogger("flux2_async").setLevel(logging.DEBUG)
    return [*options, *arguments[ends:]]


def run(arguments: Sequence[str]) -> int:
    """Run the command that the words after `flux2` name, and give its exit code."""
    arguments = _without_verbose(arguments)
    GIVEN.set(tuple(arguments))
    try:
        command, bound, _ = app.parse_args(arguments, print_error=False, exit_on_error=False)
        code = command(*bound.args, **bound.kwargs)
    except CycloptsError as error:
        # The words were not understood, so nobody has taken this one off them.
        from flux2_async.cli.screen import Screen, UsageError  # noqa: PLC0415  help does without

        Screen(machine="--json" in arguments).error(UsageError(misunderstood(error)), advice(error, arguments))
        return 2
    return code if isinstance(code, int) else 0
