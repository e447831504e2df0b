"""The command `flux2`; all but `--version`, `docs` and `recipe` needs the extra `cli`."""

import os
import sys
from contextlib import suppress

from flux2_async._shown.version import VERSION

__all__ = ["main"]

# What the extra brings along.
EXTRA = frozenset({"PIL", "cyclopts", "rich"})
MISSING = 'flux2: the command needs the extra "cli"; install it with: pip install "flux2-async[cli]"'
INTERRUPTED = 130
# Whether a command was given to the event loop.
begun = False
# docs or recipe, and a name.
MOST = 2


def main() -> int:
    """Run the command with the arguments of this process.

    Returns:
        0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    # Python has None for a stream that was closed before it started.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115  pathlib takes longer; open to the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115  likewise
    words = sys.argv[1:]
    try:
        # The few that need no parser; their own --help does.
        plain = len(words) <= MOST and not any(word.startswith("-") for word in words[1:])
        alone = words == ["--version"] or (plain and words[:1] in (["docs"], ["recipe"]))
        code = _without_extra(words) if alone else _with_extra(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        # What a command does once it has begun is told by itself; until then imports take their time.
        if not begun:
            print("flux2: interrupted while it started; nothing was sent", file=sys.stderr)  # noqa: T201  as below
        return INTERRUPTED
    except OSError as error:
        # Of stdout; all else is told by the commands. Who reads a pipe has seen enough when it closes it.
        if not isinstance(error, BrokenPipeError):
            with suppress(OSError):
                print(f"flux2: stdout cannot be written ({error.strerror or error})", file=sys.stderr)  # noqa: T201  as below
        # Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _without_extra(words: list[str]) -> int:
    if words == ["--version"]:
        print(VERSION)  # noqa: T201  rich may be what is missing
        return 0
    from flux2_async.cli import documents  # noqa: PLC0415  a version is asked for by scripts, often

    code: int = getattr(documents, words[0])(*words[1:])
    return code


def _with_extra(words: list[str]) -> int:
    from importlib.util import find_spec  # noqa: PLC0415  a version is asked for by scripts, often

    try:
        # Before the work begins, since each command imports what it needs.
        complete = all(map(find_spec, EXTRA))
        from flux2_async.cli.app import run  # noqa: PLC0415  the library itself does not need these packages
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
    else:
        if complete:
            return run(words)
    print(MISSING, file=sys.stderr)  # noqa: T201  rich may be what is missing
    return 2
