"""`flux2 unknown`: what may have been accepted and nobody knows; a person says what became of it."""

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final

import anyio
import attrs

from flux2_async.batch import Failure, Journal, Outcome, UnknownRequest, document
from flux2_async.batch.lists import rows_of
from flux2_async.cli.options import key_variable, task_log
from flux2_async.cli.screen import INTERRUPTED, CommandError, Screen, UsageError, counted, one_line, with_options
from flux2_async.cli.service import opened
from flux2_async.errors import ApiError, InvalidRequestError, TaskNotFoundError, TransportError
from flux2_async.models import TaskRecord

# What machines are told of each.
FIELDS: Final = ("id", "line", "sent_at", "prompt", "images", "model", "resolution", "ref", "error")
# What only a decision fills in, so that a list which begins as this decides nothing that nobody wrote into it.
UNDECIDED: Final = {"task_id": None}
NEVER_MADE: Final = "never made"
NEVERTHELESS: Final = "nothing was changed; --no-check takes it nevertheless"
WAYS: Final = "t TASK_ID: it is this task   n: it was never made, send it again   l: ask me later   q: stop asking"


@attrs.frozen
class Decisions:
    """What was decided: `ID=TASK_ID` each, ids of requests, and a file of both; `check` as of the command."""

    tasks: tuple[str, ...] = ()
    never_made: tuple[str, ...] = ()
    file: Path | None = None
    check: bool = True

    def taken(self) -> tuple[dict[str, str], list[str], dict[str, str]]:
        """Give the tasks by the ids of their requests, the ids of those that were never made, and where each stands."""
        found: dict[str, str] = {}
        never_made = list(self.never_made)
        places: dict[str, str] = {}
        owners: dict[str, str] = {}
        for where, name, task_id in chain(self._said(), self._read()):
            if task_id == NEVER_MADE:
                never_made.append(name)
            elif name in found:
                raise UsageError(
                    f"{where}: {name!r} is given two tasks, the other one by {places[name]}; a request became one of "
                    "them at most"
                )
            elif (other := owners.setdefault(task_id, name)) != name:
                raise UsageError(
                    f"{where}: task {task_id} is given to {name!r}, and by {places[other]} to {other!r}; a task was "
                    "made of one request"
                )
            else:
                found[name], places[name] = task_id, where
        return found, never_made, places

    def _said(self) -> Iterator[tuple[str, str, str]]:
        for text in self.tasks:
            # Ids of requests may have any sign in them, those of tasks have none.
            name, _, task_id = text.rpartition("=")
            if not name or not task_id:
                raise UsageError(f"--task: {text!r} given, it must look like ID=TASK_ID")
            yield "--task", name, task_id

    def _read(self) -> Iterator[tuple[str, str, str]]:
        if self.file and not self.file.exists():
            raise UsageError(f"--decisions: there is no file {str(self.file)!r}")
        for line, row in rows_of(self.file, "task_id") if self.file else ():
            where = f"--decisions: line {line}"
            if isinstance(row, InvalidRequestError):
                raise UsageError(f"{where}: {row}")
            fields: Mapping[str, Any] = row if isinstance(row, Mapping) else {}
            name, task_id = fields.get("id"), fields.get("task_id") or ""
            if not name or not isinstance(name, str) or not isinstance(task_id, str):
                raise UsageError(f'{where}: it must have an id, and as task_id a task, "{NEVER_MADE}" or nothing')
            if task_id := task_id.strip():
                yield where, name, task_id


async def unknown(screen: Screen, path: Path, decisions: Decisions, *, ask: bool) -> int:
    """Tell of them, write down what is decided, and give 0, or 1 while some are left.

    InvalidRequestError: a decision does not fit, and nothing was changed. CommandError: interrupted; what was decided
    until then is kept.
    """
    if not await anyio.Path(path).is_file():
        raise UsageError(f"there is no journal {str(path)!r}; name the folder that flux2 batch was given as --out")
    found, never_made, places = decisions.taken()
    async with Journal(path) as journal:
        decided = []
        if found or never_made:
            if decisions.check:
                await _check(screen, journal, found, places)
            decided = await journal.resolve_unknown(found=found, never_made=never_made)
        elif ask:
            await _ask_all(screen, journal, check=decisions.check)
        left = await journal.unknown()
    if not ask or decided:
        for text in _lines_about(left):
            screen.result(text)
    _tell_end(screen, len(decided), len(left), ask=ask)
    rows = [document(each.outcome) for each in left]
    screen.document(
        {
            "unknown": [
                {name: row[name] for name in FIELDS} | UNDECIDED | {"task_not_found": row["task_id"]} for row in rows
            ],
            "decided": [outcome.id for outcome in decided],
        }
    )
    return int(bool(left))


async def _check(screen: Screen, journal: Journal, found: Mapping[str, str], places: Mapping[str, str]) -> None:
    """Look at tasks where there is a key: the picture of a wrong one would be saved as that of the request.

    `places`: where each was given, by the ids of the requests; empty where a person has just typed it.
    """
    wanted = {request.outcome.id: request.outcome for request in await journal.unknown()}
    looked_at = {name: task_id for name, task_id in found.items() if name in wanted}
    if not looked_at or not os.environ.get(key_variable(), "").strip():
        return
    async with opened() as flux:
        for name, task_id in looked_at.items():
            where = f"{places[name]}: " if name in places else ""
            try:
                record = await flux.fetch_record(task_id)
            except TaskNotFoundError as error:
                raise InvalidRequestError(f"{where}{name!r}: {error}; {NEVERTHELESS}") from None
            except (ApiError, TransportError) as error:
                screen.note(
                    f"task {task_id} could not be checked ({one_line(str(error))}); it is taken as given", "yellow"
                )
                continue
            if (prompt := _other_prompt(record, wanted[name])) is not None:
                same = [repr(other) for other, outcome in wanted.items() if one_line(outcome.prompt) == prompt]
                meant = f", the prompt of {' or '.join(same[:3])}: give it to that one" if same else ""
                raise InvalidRequestError(
                    f"{where}task {task_id} is not that of {name!r}; it was made of {prompt!r:.80}{meant}; "
                    f"{NEVERTHELESS}"
                )


def _other_prompt(record: TaskRecord, outcome: Outcome) -> str | None:
    """Give what a task was made of where that is not the request; None also where the service does not tell."""
    given = (record.param or {}).get("input")
    prompt = given.get("prompt") if isinstance(given, Mapping) else None
    if not isinstance(prompt, str) or one_line(prompt) == one_line(outcome.prompt):
        return None
    return one_line(prompt)


async def _ask_all(screen: Screen, journal: Journal, *, check: bool) -> None:
    if requests := await journal.unknown():
        screen.note(
            f"{_may_have_been(len(requests))}. Look for each in {task_log()}: is there a task of that time and prompt?"
        )
    for request, text in zip(requests, _lines_about(requests), strict=True):
        screen.result(text)
        if not await _ask(screen, journal, request.outcome.id, check=check):
            return


async def _ask(screen: Screen, journal: Journal, name: str, *, check: bool) -> bool:
    """Ask until there is an answer that can be followed; give whether to go on."""
    while True:
        screen.note(WAYS, "dim")
        word, _, rest = (await _answer(screen)).partition(" ")
        try:
            match word.lower(), rest.strip():
                case "t", task_id if task_id:
                    if check:
                        await _check(screen, journal, {name: task_id}, {})
                    await journal.resolve_unknown(found={name: task_id})
                    screen.note("kept: the next run waits for this task", "green")
                case "n", "":
                    await journal.resolve_unknown(never_made=[name])
                    screen.note("kept: the next run sends it again", "green")
                case (("l" | ""), ""):
                    screen.note("it stays unknown")
                case "q", "":
                    return False
                case _:
                    continue
        except InvalidRequestError as error:
            screen.complain(error)
            continue
        return True


async def _answer(screen: Screen) -> str:
    """Read a line; CommandError: Ctrl-C."""
    screen.err.print("> ", end="")
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(sys.stdin, readable.set)
    except NotImplementedError:
        # Windows: Ctrl-C is noticed at the end of the line.
        readable.set()
    try:
        # Not in `input`: a Ctrl-C in the instant in which it begins to read would be noticed at the end of the line.
        await readable.wait()
    except asyncio.CancelledError:
        raise CommandError("interrupted; what was decided is kept", code=INTERRUPTED) from None
    finally:
        with suppress(NotImplementedError):
            loop.remove_reader(sys.stdin)
    line = sys.stdin.readline()
    return line.strip() if line else "q"


def _lines_about(requests: Sequence[UnknownRequest]) -> Iterator[str]:
    """Give the lines about each; why nobody knows is left out where it was told of the one before."""
    before: Failure | None = None
    for number, request in enumerate(requests, 1):
        outcome = request.outcome
        sent = f"{request.sent_at.astimezone():%d %b %Y %H:%M:%S %Z}" if request.sent_at else "at an unknown time"
        what = f"{outcome.id} (line {outcome.line}), sent {sent}, {outcome.model} {outcome.resolution}"
        lines = [f"{number} of {len(requests)}: {what}", f"    {one_line(outcome.prompt)}"]
        lines += [f"    picture: {image}" for image in outcome.images]
        lines += [f"    submission: {outcome.ref}"] if outcome.ref else []
        lines += [f"    task: {outcome.task_id}, which the service did not know"] if outcome.task_id else []
        if outcome.error and outcome.error != before:
            lines.append(f"    {with_options(one_line(outcome.error.message))}")
        before = outcome.error
        yield "\n".join(lines)


def _tell_end(screen: Screen, decided: int, left: int, *, ask: bool) -> None:
    if decided:
        screen.note(f"{counted(decided, 'request')} decided; the next run of flux2 batch acts on it")
    if not left:
        screen.note("no request is unknown")
    elif not ask:
        screen.note(
            f"{_may_have_been(left)}: check {task_log()}, and say what became of each with --task ID=TASK_ID or "
            "--never-made ID, or of many with --decisions FILE"
        )


def _may_have_been(count: int) -> str:
    return f"{counted(count, 'request')} may have been accepted and paid for, which nobody knows"
