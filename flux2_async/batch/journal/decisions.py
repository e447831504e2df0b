"""What a person knows of requests that may have been accepted. Runs in the journal's thread."""

import sqlite3
import time
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
from flux2_async.models.plain import plain
from flux2_async.models.plain_json import shown
from flux2_async.session.arguments import check_task_id

# One that was being sent when its process died becomes `unknown` in the next run.
UNKNOWN: Final = "state IN ('unknown', 'submitting')"
FOUND: Final = update(
    {"state": "'submitted'", "task_id": ":task_id", "submitted_at": "coalesce(sent_at, :now)", "error": "NULL"},
    "id = :id",
)


BY_ID: Final = f"SELECT {SHOWN} FROM requests WHERE id = ?"  # noqa: S608  a constant
MAX_SHOWN: Final = 5


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
        decided = dict.fromkeys((*found, *never_made))
        if faults := [fault for name in decided if (fault := _fault(connection, name, found, never_made))]:
            more = f"; and {len(faults) - MAX_SHOWN} more" if len(faults) > MAX_SHOWN else ""
            raise InvalidRequestError(f"{'; '.join(faults[:MAX_SHOWN])}{more}; nothing was changed")
        # When it was accepted nobody knows; it was not before it was sent.
        connection.executemany(
            FOUND, [{"id": name, "task_id": plain(task_id), "now": time.time()} for name, task_id in found.items()]
        )
        # Nothing was paid for it, so that it counts as no lost send.
        connection.executemany(update(ANEW, "id = ?"), [(name,) for name in never_made])
        return [outcome_of(row) for name in decided for row in connection.execute(BY_ID, (name,))]


def _fault(
    connection: sqlite3.Connection, name: str, found: Mapping[str, str], never_made: Collection[str]
) -> str | None:
    """Say what is wrong with the decision for one request, or give None."""
    row = connection.execute(BY_ID, (name,)).fetchone()
    if row is None:
        return f"no request of the journal has the id {shown(name)}"
    what = f"request {shown(name)} (line {row['line']})"
    if row["state"] not in ("unknown", "submitting"):
        return f"{what} is {row['state']}, and only unknown ones are decided"
    if name not in found:
        return None
    if name in never_made:
        return f"{what} is given a task and said to be never made; decide for one"
    try:
        task_id = check_task_id(found[name])
    except InvalidRequestError as error:
        return f"{what}: {error}"
    taken = connection.execute("SELECT id FROM requests WHERE task_id = ?", (task_id,))
    others = [*(other for other, given in found.items() if given == task_id), *(other["id"] for other in taken)]
    theirs = ", ".join(dict.fromkeys(shown(other) for other in others if other != name))
    return f"{what} is given task {shown(task_id)}, as is {theirs}; a task is that of one request" if theirs else None
