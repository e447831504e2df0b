"""The command `flux2`; needs the extra `cli`."""

import os
import sys
from pathlib import Path

__all__ = ["main"]

# What the extra brings along.
EXTRA = frozenset({"PIL", "cyclopts", "rich"})
MISSING = 'flux2: the command needs the extra "cli"; install it with: pip install "flux2-async[cli]"'
INTERRUPTED = 130


def main() -> int:
    """Run the command with the arguments of this process.

    Returns:
        0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    # Python has None for a stream that was closed before it started.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  open to the end, as any of them
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115  likewise
    try:
        from flux2_async.cli.app import run  # noqa: PLC0415  the library itself does not need these packages
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        print(MISSING, file=sys.stderr)  # noqa: T201  rich may be what is missing
        return 2
    except KeyboardInterrupt:
        # Importing takes a second, in which nothing was sent.
        return INTERRUPTED
    return run(sys.argv[1:])
