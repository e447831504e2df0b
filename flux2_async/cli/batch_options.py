"""What `flux2 batch` can be told."""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
from cyclopts import Parameter

from flux2_async.cli.options import FOLDER, Shape, flag, told
from flux2_async.cli.screen import UsageError
from flux2_async.models import Callbacks
from flux2_async.session.callback_settings import VARIABLE as SECRET
from flux2_async.session.callback_settings import environment_secret

if TYPE_CHECKING:
    from flux2_async.batch import BadLine, Job

MAX_PORT: Final = 65535
# int() refuses the longest numbers, and the digits of other alphabets are digits to Python.
PORT: Final = re.compile(r"[0-9]{1,5}")


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class BatchOptions:
    """What to send, what it may cost, where it goes."""

    out: Annotated[Path, told("The folder for the pictures, results.jsonl, report.html and the journal.")] = FOLDER
    prompt: Annotated[str | None, told("What to do with each picture, where pictures are given.")] = None
    journal: Annotated[Path | None, told("The journal's file; run.db in the folder without it.")] = None
    limit: Annotated[int | None, told("Only the first N requests.")] = None
    shuffle: Annotated[bool, flag("Send in a random order, the same in every run; with --limit a sample.")] = False
    max_tasks: Annotated[int | None, told("Start at most N tasks in this run; the next run goes on.")] = None
    max_credits: Annotated[
        float | None, told("Credits that the whole batch may cost; what is running or unknown counts as well.")
    ] = None
    max_failed: Annotated[
        float | None, told("Stop sending when more than this share of 20 or more requests has failed, such as 0.2.")
    ] = None
    dry_run: Annotated[bool, flag("Send nothing and change nothing; show the requests, the credits and the hours.")] = (
        False
    )
    max_running: Annotated[int | None, told("Requests worked on at once.")] = None
    task_timeout: Annotated[
        float | None, told("Seconds after which a task that is not finished is left to the next run (1200 without it).")
    ] = None
    retry_failed: Annotated[bool, flag("Send again what failed in an earlier run.")] = False
    retry_unknown: Annotated[bool, flag("Send again what may have been accepted unseen. This may pay twice.")] = False
    skip_invalid: Annotated[bool, flag("Go on without lines that cannot be used.")] = False
    download: Annotated[bool, told("Save the pictures.")] = True
    report: Annotated[bool, told("Write report.html.")] = True
    callback_url: Annotated[
        str | None, told(f"The public address that leads to --callback-listen; the secret is taken from {SECRET}.")
    ] = None
    callback_listen: Annotated[str | None, told("HOST:PORT to listen on for callbacks.")] = None

    def as_taken_by(self, function: Callable[..., object]) -> dict[str, Any]:
        """Give the options that a function has under the same names."""
        return {name: getattr(self, name) for name in inspect.signature(function).parameters if hasattr(self, name)}

    def callbacks(self) -> tuple[Callbacks, str, int] | None:
        """Give where callbacks come in, and the host and port to listen at."""
        if self.callback_url is None and self.callback_listen is None:
            return None
        if self.callback_url is None or self.callback_listen is None:
            raise UsageError("--callback-url: it needs --callback-listen HOST:PORT, and the other way round")
        if not environment_secret():
            raise UsageError(
                f"--callback-url: no secret; set one that all runs of this batch share: export {SECRET}=..."
            )
        host, _, port = self.callback_listen.rpartition(":")
        if not host or not PORT.fullmatch(port) or int(port) > MAX_PORT:
            raise UsageError(f"--callback-listen: {self.callback_listen!r} given, it must look like 0.0.0.0:8080")
        return Callbacks(self.callback_url), host.strip("[]"), int(port)


def jobs(sources: Sequence[str], options: BatchOptions, shape: Shape) -> "Iterator[Job | BadLine]":
    """Read what is to be made: one list that is not empty, or pictures with a prompt."""
    # Help needs no batch.
    from flux2_async.batch import match_jobs, read_jobs  # noqa: PLC0415
    from flux2_async.batch.lists import FILES  # noqa: PLC0415

    if options.prompt is not None:
        if not sources:
            raise UsageError("--prompt: it says what to do with pictures; name them, such as 'photos/*.jpg'")
        if lists := [source for source in sources if source.lower().endswith(FILES)]:
            raise UsageError(
                f"--prompt: {lists[0]!r} is a list, whose requests have prompts of their own; leave one out"
            )
        return match_jobs(sources, options.prompt, shape.fields("auto"))
    if len(sources) != 1 or not sources[0].lower().endswith(FILES):
        raise UsageError(
            f"one list of requests must be named (its name ends in one of {', '.join(FILES)}; a spreadsheet is saved "
            "as CSV UTF-8), or pictures, such as 'photos/*.jpg', with --prompt 'what to do with each'"
        )
    if shape != Shape():
        told = "in a list they stand in each line, as aspect_ratio, resolution and tier"
        raise UsageError(f"--aspect-ratio, --resolution and --tier go with --prompt; {told}")
    path = Path(sources[0])
    if not path.is_file():
        what = f"{sources[0]!r} is no regular file, which the next run could read as well; write the list to one"
        raise UsageError(what if path.exists() else f"there is no file {sources[0]!r}")
    wanted = read_jobs(path)
    first = next(wanted, None)
    if first is None:
        raise UsageError(f"there is no request in {sources[0]!r}; it must hold one a line, with a prompt at least")
    return chain([first], wanted)
