"""`results.jsonl`: the journal as a file for other programs, one request a line; see `outcomes` for its keys."""

import json
import os
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from flux2_async._http.atomic_file import replacing
from flux2_async.batch.journal import Journal
from flux2_async.batch.outcomes import Download, Failure, Outcome, State, document
from flux2_async.models.plain_json import utf8_json

__all__ = ["RESULTS", "read_results", "write_results"]

RESULTS: Final = "results.jsonl"


async def write_results(journal: Journal, directory: str | os.PathLike[str]) -> Path:
    """Write the requests of a journal to `results.jsonl`, whole or not at all; one from before stays until then.

    Args:
        journal: Open.
        directory: An existing folder.

    Returns:
        The file.

    Raises:
        OSError: It cannot be written.
    """
    target = Path(directory) / RESULTS
    await journal.use_outcomes(partial(_write, target))
    return target


def read_results(directory: str | os.PathLike[str]) -> Iterator[Outcome]:
    """Read `results.jsonl` line by line.

    Args:
        directory: The folder of the batch.

    Yields:
        Its requests, in the order of the input.

    Raises:
        OSError: It cannot be read.
    """
    with (Path(directory) / RESULTS).open(encoding="utf-8") as file:
        for line in file:
            yield _outcome(json.loads(line))


def _outcome(line: dict[str, Any]) -> Outcome:
    fields = dict(line)
    for name in ("images", "files", "urls"):
        fields[name] = tuple(fields[name])
    for name in ("submitted_at", "finished_at", "saved_at", "create_time", "complete_time"):
        fields[name] = fields[name] and datetime.fromisoformat(fields[name])
    fields["state"] = State(fields["state"])
    fields["download"] = fields["download"] and Download(fields["download"])
    fields["error"] = fields["error"] and Failure(**fields["error"])
    return Outcome(**fields)


def _write(target: Path, outcomes: Iterator[Outcome]) -> None:
    with replacing(target) as file:
        for outcome in outcomes:
            file.write(utf8_json(document(outcome)) + b"\n")
