"""Where words go: results to stdout, progress and errors to stderr, one JSON document for machines."""

import io
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from flux2_async._shown.text import json_escaped, printable
from flux2_async.errors import ApiError, Flux2Error

INTERRUPTED: Final = 130
PIPE_WIDTH: Final = 120
ERRNO: Final = re.compile(r"\[Errno -?[0-9]+\] ")
# What people copy from a terminal, such as commands and paths, is not broken; all else is between words.
WORD: Final = re.compile(
    r"( *)((?:`[^`]*`|(?<=: )flux2 (?:(?!\. ).)+|^export .+|(?<=^Results: ).+|(?<=^Report: ).+|(?<=^Contact sheet: ).+"
    r"|[^ ])+)"
)
# Of `run_batch`, whose errors and reasons name them.
ARGUMENT: Final = re.compile(
    r"\b(max_(?:tasks|credits|failed|running)|task_timeout|retry_(?:failed|unknown)|skip_invalid|^limit(?=: ))\b(=?)"
)

# Whose warnings the commands tell by themselves: what is unclear, refused, or left when a session is closed; and that
# nothing can be kept in the cache of a user without one.
TOLD: Final = ("log_lines", "lifecycle", "submitter", "remembered", "retry")


class _Log(logging.Handler):
    """Shows warnings that no command tells in words of its own, and all that is logged where the level lets it pass."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`; what is `sys.stderr` at that moment is the board's while there is one."""
        if record.module not in TOLD or logging.getLogger("flux2_async").level == logging.DEBUG:
            with suppress(OSError, ValueError):
                print(printable(self.format(record)), file=sys.stderr)  # noqa: T201  rich would break it where no line ends


LOG: Final = _Log(logging.DEBUG)


class CommandError(Exception):
    """A command came to its end without what it was called for.

    The advice is what to do besides what the error says, `code` the exit code, `task_id` the task that goes on, for
    machines.
    """

    def __init__(self, error: BaseException | str, advice: str = "", code: int = 1, task_id: str | None = None) -> None:
        super().__init__(str(error))
        self.task_id = task_id
        self.error = error
        self.advice = advice
        self.code = code


class UsageError(Exception):
    """The command was called in a way that it cannot follow; the text says what to do. Nothing was sent."""


class _Console(Console):
    """A console of rich that gives what steers a terminal as words, unless it is rich that steers."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Give what rich would write, printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


class Screen:
    """The terminal, the pipe or the machine on the other side.

    For a machine only JSON goes to stdout, and the progress is plain; `live` is whether it may be redrawn in place.
    """

    def __init__(self, *, machine: bool = False) -> None:
        for stream in (sys.stdout, sys.stderr):
            # An old terminal shows "?" for what it has no letter for; that is no reason to lose a paid picture.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        logging.getLogger("flux2_async").addHandler(LOG)
        self.machine = machine
        # A pipe has no width; cutting a table to 80 columns would lose words.
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        self.out: Console = _Console(highlight=False, markup=False, emoji=False, width=width)
        self.err: Console = _Console(stderr=True, highlight=False, markup=False, emoji=False)
        terminals = sys.stdout.isatty() and sys.stderr.isatty()
        self.live: bool = terminals and not machine and not self.err.is_dumb_terminal

    def result(self, renderable: RenderableType, *, whole: bool = False) -> None:
        """Show a result to people; nothing for machines.

        `whole` lines are paths, which nobody could copy from a terminal when they were broken.
        """
        if self.machine:
            return
        if isinstance(renderable, str):
            # rich itself would leave some characters out.
            renderable = Text(printable(renderable))
        if isinstance(renderable, Text) and not whole:
            print_words(self.out, renderable)
        else:
            self.out.print(renderable, soft_wrap=isinstance(renderable, Text))

    def document(self, document: object) -> None:
        """Give a result to machines; nothing to people."""
        if self.machine:
            print(json_escaped(json.dumps(document, ensure_ascii=False, indent=2)))  # noqa: T201  rich would break long lines

    def note(self, text: str, style: str = "") -> None:
        """Say something about the progress."""
        print_words(self.err, Text(printable(text), style=style))

    def complain(self, error: BaseException | str, advice: str = "") -> str:
        """Say in one line what went wrong and what to do; give the line."""
        text = with_options(one_line(str(error)))
        if advice and text.endswith("?"):
            text = f"{text} {advice[0].upper()}{advice[1:]}"
        elif advice:
            # A list that goes on keeps its dots.
            text = f"{text if text.endswith('...') else text.rstrip('.;')}; {advice}"
        print_words(self.err, Text.assemble(("flux2: ", "bold red"), text))
        return text

    def error(self, error: BaseException | str, advice: str = "", task_id: str | None = None) -> None:
        """Say in one line what went wrong and what to do, and give it to machines as well."""
        text = self.complain(error, advice)
        if isinstance(error, BaseException):
            self.document({"error": error_document(error)})
        else:
            self.document({"error": {"type": "Interrupted", "message": text, "task_id": task_id}})


def print_words(console: Console, text: Text) -> None:
    """Write text; on a terminal its lines are broken between words, and commands and paths not at all."""
    for line in text.split("\n", allow_blank=True):
        # What is piped is cut into lines by its reader, not by us.
        for part in line.divide(_breaks(line.plain, console.width)) if console.file.isatty() else [line]:
            part.rstrip()
            console.print(part, soft_wrap=True)


def _breaks(line: str, width: int) -> Iterator[int]:
    """Give where further lines begin."""
    used = 0
    for word in WORD.finditer(line):
        size = cell_len(word[2])
        if used and used + len(word[1]) + size > width:
            yield word.start(2)
            used = size
        else:
            used += len(word[1]) + size


def counted(count: int, thing: str) -> str:
    """Give a number of things in words."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def one_line(text: str) -> str:
    """Give text without line breaks, control characters and the numbers that Python puts before a system's words."""
    return " ".join("".join(c if c.isprintable() else " " for c in ERRNO.sub("", text)).split())


def with_options(text: str) -> str:
    """Give a text of the library's with the names of this command's options for those of its arguments."""
    return ARGUMENT.sub(lambda found: f"--{found[1].replace('_', '-')}{' ' * bool(found[2])}", text)


def error_document(error: BaseException) -> dict[str, Any]:
    """Give an error for machines: its kind, its text, and the facts it carries."""
    document: dict[str, Any] = {"type": type(error).__name__, "message": one_line(str(error))}
    if isinstance(error, Flux2Error):
        document["task_id"] = error.task_id
    if isinstance(error, ApiError):
        document["code"] = error.code
    for name in ("fail_code", "fail_message", "ref", "retry_after"):
        if hasattr(error, name):
            document[name] = getattr(error, name)
    return document
