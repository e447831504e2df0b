"""What a key stands for, as one row of the shared state, and its rules. Pure: time comes in as an argument.

A key is reserved immediately before its POST, for as long as a POST lives, and again while its owner lives. It is never
free by itself: who dies in between leaves `unknown`, since the service may have been reached. Only its owner frees it,
when certainly nothing was created, and only its owner, or a callback at the owner's address, tells the task. A row that
was lost meanwhile is written anew. All is forgotten `ttl` seconds after the reservation.
"""

import json
from typing import Literal

import attrs

from flux2_async.coordination.contract import Claim, KeyEntry
from flux2_async.errors import CoordinationError


@attrs.frozen
class KeyRow:
    """One key as it is kept, see `KeyEntry`.

    Attributes:
        owner: The claim that reserved it.
        lapses_at: When an owner that is still sending has died.
        expires_at: When the row is forgotten.
    """

    fingerprint: str
    ref: str
    owner: str
    state: Literal["sending", "unknown", "bound"]
    task_id: str
    lapses_at: float
    expires_at: float

    def dump(self) -> str:
        """Give the row as text."""
        return json.dumps(attrs.astuple(self))

    @classmethod
    def load(cls, text: str) -> "KeyRow":
        """Read what `dump` gave.

        Raises:
            CoordinationError: It is something else.
        """
        try:
            return cls(*json.loads(text))
        except (ValueError, TypeError) as error:
            raise CoordinationError("a key of the shared state cannot be read") from error


def view(row: KeyRow | None, now: float) -> KeyEntry | None:
    """Give what a row means now; None: the key is free."""
    if row is None or row.expires_at <= now:
        return None
    if row.state == "sending" and row.lapses_at > now:
        return KeyEntry(row.fingerprint, row.ref, "sending", wait=row.lapses_at - now)
    state: Literal["unknown", "bound"] = "bound" if row.state == "bound" else "unknown"
    return KeyEntry(row.fingerprint, row.ref, state, row.task_id)


def reserve(
    row: KeyRow | None, claim: Claim, now: float, *, lease: float, ttl: float
) -> tuple[KeyRow | None, KeyEntry | None]:
    """Reserve a free key; give the row to be kept, and what the key stands for already if it is not free."""
    entry = view(row, now)
    again = row is not None and row.owner == claim.owner and row.state == "sending"
    if entry is not None and not again:
        return row, entry
    return KeyRow(claim.fingerprint, claim.ref, claim.owner, "sending", "", now + lease, now + ttl), None


def bind(row: KeyRow | None, claim: Claim, task_id: str | None, now: float, *, ttl: float) -> KeyRow | None:
    """Let the key stand for a task, or say that nobody knows whether there is one (None).

    What somebody else's claim made of it stays.
    """
    state: Literal["unknown", "bound"] = "unknown" if task_id is None else "bound"
    if view(row, now) is None:
        return KeyRow(claim.fingerprint, claim.ref, claim.owner, state, task_id or "", now, now + ttl)
    if row is None or row.owner != claim.owner:
        return row
    return attrs.evolve(row, state=state, task_id=task_id or "")


def free(row: KeyRow | None, claim: Claim) -> KeyRow | None:
    """Free the key, if the claim holds it and no task is known."""
    return None if row is not None and row.owner == claim.owner and row.state != "bound" else row


def resolve(row: KeyRow | None, ref: str, task_id: str, now: float) -> KeyRow | None:
    """Use what a callback told, unless the owner knows better or will in a moment."""
    entry = view(row, now)
    if row is None or entry is None or row.ref != ref or entry.state != "unknown":
        return row
    return attrs.evolve(row, state="bound", task_id=task_id)
