"""What the processes of an account have spent under one budget, as one text, and its rules. Pure: time is an argument.

Each process tells what it has in all: what is open, and what leaves the budget's window and when. To say it again
changes nothing, so an answer that is lost costs nothing. What is open is reserved immediately before its POST, so that
what a dead process had open falls out of a window a lease and `per` after it spoke last; without a window it stays.
"""

import json
import math
from collections.abc import Sequence

from flux2_async.errors import CoordinationError
from flux2_async.models.budget import Budget

# A budget without a window is forgotten when no session has been open for so long; those that are open tell of it.
TOLD_EVERY = 6 * 3600.0
KEPT_FOR = 24 * 3600.0 + TOLD_EVERY
_ROUNDING = 1e-6

Own = tuple[float, Sequence[tuple[float, float]]]
"""Credits that are open, and those that leave with the seconds until then."""

Told = tuple[bool, tuple[float, float]]
"""Whether what is asked for is within the budget; and what the others have spent and reserved."""


def spend(
    text: str | None, now: float, *, member: str, own: Own, price: float, budget: Budget, lease: float
) -> tuple[str, float, Told]:
    """Take what a process tells.

    Args:
        text: What was told before, or None.
        now: The time of all processes.
        member: A name that the process keeps.
        own: What it has in all.
        price: What of that is open and asked for; 0: nothing is asked.
        budget: As this process knows it.
        lease: Seconds within which what is asked for is sent.

    Returns:
        The text to be kept, for how many seconds, and what to tell the process.

    Raises:
        CoordinationError: The text is not what this writes.
    """
    entries = _read(text)
    open_, leaving = own
    entries.pop(member, None)
    per = budget.per
    window = math.inf if per is None else per
    left = {name: still for name, entry in entries.items() if (still := _left(*entry, now))}
    spent = sum(amount for _, __, paid in left.values() for _, amount in paid)
    reserved = sum(open_ for _, open_, __ in left.values())
    mine = open_ + sum(amount for _, amount in leaving)
    fits = price == 0.0 or spent + reserved + mine <= budget.credits + _ROUNDING
    left[member] = (
        now + window + lease,
        open_ if fits else open_ - price,
        [(now + seconds, amount) for seconds, amount in leaving if amount],
    )
    return json.dumps(left), KEPT_FOR if per is None else per + lease + KEPT_FOR, (fits, (spent, reserved))


_Entry = tuple[float, float, list[tuple[float, float]]]


def _left(until: float, open_: float, paid: list[tuple[float, float]], now: float) -> _Entry | None:
    """What still counts of what a process told; `until`: as long as what was open does."""
    paid = [(leaves, amount) for leaves, amount in paid if leaves > now]
    open_ = open_ if until > now else 0.0
    return (until, open_, paid) if open_ or paid else None


def _read(text: str | None) -> dict[str, _Entry]:
    try:
        entries = json.loads(text or "{}")
        return {
            name: (float(until), float(open_), [(float(leaves), float(amount)) for leaves, amount in paid])
            for name, (until, open_, paid) in entries.items()
        }
    except (ValueError, TypeError, AttributeError):
        raise CoordinationError("what was spent under a budget cannot be read from the shared state") from None
