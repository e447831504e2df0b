"""What a run finds in its journal, and what it makes of what the last run left. Runs in the journal's thread."""

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from flux2_async.batch.journal.checksums import update
from flux2_async.batch.journal.rows import CHANGING, stored
from flux2_async.batch.options import Options
from flux2_async.batch.outcomes import Failure, State

IMAGES: Final = "images"
"""The folder of the pictures, within that of the batch."""

ASKED_FOR: Final = "run = (SELECT max(number) FROM runs)"
# What the input asks for now, and whatever else was ever sent.
WANTED: Final = f"({ASKED_FOR} OR state <> 'queued')"

# Of what became of it before it is only known when it was sent.
ANEW: Final = {name: "NULL" for name in CHANGING if name != "sent_at"}
ANEW.update(state="'queued'", urls="'[]'", files="'[]'")
# A success without a picture, which was charged; a failed task costs nothing unless its record says so.
CHARGED_UNTOLD: Final = "(credits IS NULL AND state = 'failed' AND json_extract(error, '$.type') = 'EmptyResultError')"
RETRY_FAILED: Final = update(
    ANEW | {"earlier_credits": "earlier_credits + coalesce(credits, 0)", "lost": f"lost + {CHARGED_UNTOLD}"},
    f"state = 'failed' AND {ASKED_FOR}",
)
RETRY_UNKNOWN: Final = update(
    ANEW | {"lost": "lost + 1"}, f"state = 'unknown' AND {ASKED_FOR} AND NOT (task_id IS NULL AND resendable(ref))"
)
# Saved, and its file is not there any more; needs `_look_for`.
MISSING: Final = "(download = 'saved' AND NOT here(files))"
CRASHED: Final = Failure(
    type="AmbiguousSubmitError",
    message="the process ended while createTask was under way; the task may exist and cost money: check the "
    "task log of your account, or send it again with retry_unknown, which may pay twice",
)


class Work:
    """Which rows there are to work on, as conditions of SQL."""

    SUBMITTED: Final = "state = 'submitted'"
    NOT_DOWNLOADED: Final = "state = 'done' AND download IN ('pending', 'off')"
    UNCLEAR: Final = "state = 'unknown' AND task_id IS NULL AND ref IS NOT NULL"
    UNCLEAR_ASKED_FOR: Final = f"{UNCLEAR} AND {ASKED_FOR}"
    QUEUED: Final = f"state = 'queued' AND {ASKED_FOR}"


@attrs.frozen
class Tally:
    """All requests of one kind and state together.

    Attributes:
        wanted: How many of them the input asks for or were ever sent.
        unpriced: How many of them have no figure of what they cost; failed ones that cost nothing do not count.
        credits: What the others cost.
        price: The most that one of them cost, or None.
        lost: Sends that may have been paid and were given up.
        not_downloaded: How many are done, and their pictures not here.
        expired: How many are done, and their pictures cannot be had any more.
    """

    model: str
    resolution: str
    state: State
    wanted: int
    count: int
    unpriced: int
    credits: float
    price: float | None
    lost: int
    not_downloaded: int
    expired: int


@attrs.frozen
class Start:
    """What a run finds when it begins; times in seconds since 1970, None where there was no such POST.

    `answered_at` is when the last POST left or was answered, `unclear_at` when the last one left that had no answer, or
    was given up.
    """

    tallies: tuple[Tally, ...]
    answered_at: float | None
    unclear_at: float | None


def begin(
    connection: sqlite3.Connection,
    options: Options,
    resendable: Callable[[str | None], bool] | None = None,
    directory: Path | None = None,
) -> Start:
    """Settle what the last run left, and make requests sendable again where asked for; see `Journal.begin`."""
    connection.create_function("resendable", 1, resendable or (lambda _: False))
    answered_at, unclear_at = connection.execute(
        "SELECT max(max(coalesce(sent_at, 0), coalesce(submitted_at, 0))), "
        # What was lost may have been accepted late, also when it is to be sent again.
        "max(iif(state IN ('submitting', 'unknown') OR lost > 0, sent_at, NULL)) FROM requests"
    ).fetchone()
    crash = update({"state": "'unknown'", "error": ":error"}, "state = 'submitting'")
    connection.execute(crash, {"error": stored(CRASHED)})
    if options.retry_failed:
        connection.execute(RETRY_FAILED)
    if options.retry_unknown:
        connection.execute(RETRY_UNKNOWN)
    # Tasks that the service did not know may have been asked for with the wrong key; polling them again costs nothing.
    connection.execute(update({"state": "'submitted'"}, "state = 'unknown' AND task_id IS NOT NULL"))
    if directory is not None and options.download:
        _look_for(connection, directory)
        connection.execute(update({"download": "'pending'", "files": "'[]'"}, f"{MISSING} AND {ASKED_FOR}"))
    tallies = connection.execute(
        f"SELECT model, resolution, state, sum({WANTED}), count(*), "  # noqa: S608  a constant
        f"sum(credits IS NULL AND (state <> 'failed' OR {CHARGED_UNTOLD})), "
        "total(credits) + total(earlier_credits), max(credits), sum(lost), "
        f"sum({Work.NOT_DOWNLOADED}), sum(coalesce(download, '') IN ('expired', 'failed')) "
        "FROM requests GROUP BY 1, 2, 3"
    )
    found = tuple(Tally(model, resolution, State(state), *rest) for model, resolution, state, *rest in tallies)
    return Start(found, answered_at or None, unclear_at)


def seconds_taken(connection: sqlite3.Connection) -> float | None:
    """Give the seconds that a finished task has taken, on average by the service's clock; None when none has told."""
    seconds: float | None = connection.execute(
        "SELECT avg(max(0, complete_time - create_time)) FROM requests WHERE state = 'done'"
    ).fetchone()[0]
    return seconds


def forget_unfinished(connection: sqlite3.Connection, directory: Path) -> None:
    """Put back everything that has no file; see `Journal.forget_unfinished`."""
    _look_for(connection, directory)
    connection.execute(update(ANEW, f"(files = '[]' AND state <> 'failed') OR {MISSING}"))


def _look_for(connection: sqlite3.Connection, directory: Path) -> None:
    """Let `MISSING` look into a folder, which is read once: on a network each look takes its time."""
    try:
        there = {f"{IMAGES}/{name}" for name in os.listdir(directory / IMAGES)}  # noqa: PTH208  a Path each is slow
    except OSError:
        there = set()
    connection.create_function("here", 1, lambda files: there.issuperset(json.loads(files)))
