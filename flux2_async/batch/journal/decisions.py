"""What a person knows of requests that may have been accepted. Runs in the journal's thread."""

import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Final

import attrs

from flux2_async.batch.journal.checksums import update
from flux2_async.batch.journal.rows import SHOWN, outcome_of
from flux2_async.batch.journal.schema import transaction
from flux2_async.batch.journal.start import ANEW
from flux2_async.batch.outcomes import Outcome
from flux2_async.errors import InvalidRequestError
from flux2_async.models.plain_json import shown

# One that was being sent when its process died becomes `unknown` in the next run.
UNKNOWN: Final = "state IN ('unknown', 'submitting')"
FOUND: Final = update(
    {"state": "'submitted'", "task_id": ":task_id", "submitted_at": "coalesce(sent_at, :now)", "error": "NULL"},
    "id = :id",
)


@attrs.frozen
class UnknownRequest:
    """A request that may have been accepted.

    Attributes:
        outcome: The request as its journal knows it; `task_id` of a task that the service did not know when it was
            asked for, else None.
    """

    outcome: Outcome

    @property
    def sent_at(self) -> datetime | None:
        """When its last createTask left, or was given up, aware; None when that is not known."""
        return self.outcome.sent_at


def unknown_requests(connection: sqlite3.Connection) -> list[UnknownRequest]:
    """Read them, in the order of the input."""
    rows = connection.execute(f"SELECT {SHOWN} FROM requests WHERE {UNKNOWN} ORDER BY line, number")  # noqa: S608  a constant
    return [UnknownRequest(outcome_of(row)) for row in rows]


def decide(connection: sqlite3.Connection, found: Mapping[str, str], never_made: Collection[str]) -> list[Outcome]:
    """Write down what was decided, all of it or nothing; see `Journal.resolve_unknown`."""
    with transaction(connection, "FULL"):
        _check(connection, found, never_made)
        # When it was accepted nobody knows; it was not before it was sent.
        connection.executemany(
            FOUND, [{"id": name, "task_id": task_id, "now": time.time()} for name, task_id in found.items()]
        )
        # Nothing was paid for it, so that it counts as no lost send.
        connection.executemany(update(ANEW, "id = ?"), [(name,) for name in never_made])
        decided = [_row(connection, name) for name in (*found, *never_made)]
    return [outcome_of(row) for row in decided if row is not None]


def _check(connection: sqlite3.Connection, found: Mapping[str, str], never_made: Collection[str]) -> None:
    for name in (*found, *never_made):
        row = _row(connection, name)
        if row is None:
            raise InvalidRequestError(f"no request of the journal has the id {shown(name)}; nothing was changed")
        if row["state"] not in ("unknown", "submitting"):
            raise InvalidRequestError(
                f"request {shown(name)} is {row['state']}, and only unknown ones are decided; nothing was changed"
            )
    if both := sorted(set(found) & set(never_made)):
        raise InvalidRequestError(f"request {shown(both[0])} is given a task and said to be never made; decide for one")
    task_id, times = Counter(found.values()).most_common(1)[0] if found else ("", 0)
    if times > 1:
        raise InvalidRequestError(f"task {shown(task_id)} is given to {times} requests; a task is one of them")
    for name, task_id in found.items():
        other = connection.execute("SELECT id FROM requests WHERE task_id = ? AND id <> ?", (task_id, name)).fetchone()
        if other is not None:
            raise InvalidRequestError(
                f"task {shown(task_id)} is that of request {shown(other['id'])}, so it is not that of {shown(name)}; "
                "nothing was changed"
            )


def _row(connection: sqlite3.Connection, name: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = connection.execute(f"SELECT {SHOWN} FROM requests WHERE id = ?", (name,)).fetchone()  # noqa: S608  a constant
    return row
