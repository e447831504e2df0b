"""What a session has done and is doing."""

from datetime import datetime

import attrs

__all__ = ["SessionStatistics"]


@attrs.frozen(kw_only=True)
class SessionStatistics:
    """A snapshot of a session.

    Attributes:
        running: Tasks that are not finished.
        waiting: Submissions that wait for a slot, a permit, or a service that is away.
        submitted: Tasks the service accepted.
        refused: createTask calls answered by 429.
        ambiguous: createTask calls whose outcome is not known.
        polls: recordInfo calls made by the session itself.
        callbacks: Hints that a task is finished (`notify`, callbacks).
        repeated_settles: Final records that came after the task was settled.
        learned_limit: New tasks per period that refusals have taught, or None while the configured limit holds.
        paused_until: When submitting goes on after a 429, aware, or None when it is not paused.
    """

    running: int
    waiting: int
    submitted: int
    refused: int
    ambiguous: int
    polls: int
    callbacks: int
    repeated_settles: int
    learned_limit: int | None
    paused_until: datetime | None
