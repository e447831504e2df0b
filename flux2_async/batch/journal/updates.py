"""What may become of a row while it is worked on: each change as SQL, and what its commit has to hold to."""

from collections.abc import Mapping
from typing import Final

import attrs

from flux2_async.batch.journal.checksums import update
from flux2_async.batch.journal.rows import SHOWN


@attrs.frozen(eq=False)
class Update:
    """A change of the row `:number`.

    Attributes:
        sql: The change; where `told`, it gives what an outcome shows of the changed row.
        durable: Whether it survives a power failure once it is awaited.
        answer: Whether it is the answer of a POST, which has its room on a full disk.
        told: Whether it has come to an end, or was accepted, so that those who look on are told.
    """

    sql: str
    durable: bool
    answer: bool
    told: bool


def _update(changes: Mapping[str, str], *, durable: bool = False, answer: bool = False, told: bool = True) -> Update:
    returning = f" RETURNING {SHOWN}" if told else ""
    return Update(update(changes, "number = :number") + returning, durable, answer, told)


_SENDING: Final = {"state": "'submitting'", "ref": ":ref", "sent_at": ":now"}
_ACCEPTED: Final = {"state": "'submitted'", "task_id": ":task_id", "submitted_at": ":now", "error": "NULL"}
# Given up now, it may have been accepted just before; see `Outcome.sent_at`.
_UNCLEAR: Final = {"state": "'unknown'", "error": ":error", "sent_at": ":now"}
_ENDED: Final = {name: f":{name}" for name in ("credits", "create_time", "complete_time")} | {"finished_at": ":now"}
_DONE: Final = _ENDED | {"state": "'done'", "task_id": ":task_id", "urls": ":urls", "error": "NULL"}
_SAVED: Final = {"download": "'saved'", "files": ":files", "saved_at": ":now", "error": "NULL"}

SENDING: Final = _update(_SENDING, durable=True, told=False)
REFUSED: Final = _update({"state": "'queued'"}, answer=True, told=False)
ACCEPTED: Final = _update(_ACCEPTED, durable=True, answer=True)
UNCLEAR: Final = _update(_UNCLEAR)
FAILED: Final = _update(_ENDED | {"state": "'failed'", "error": ":error"})
MADE: Final = _update(_DONE | {"download": "'pending'"}, told=False)
FINISHED: Final = _update(_DONE | {"download": "'off'"})
SAVED: Final = _update(_SAVED)
NOT_SAVED: Final = _update({"download": ":download", "error": ":error"})
WAITING: Final = _update({"error": ":error"})
