"""Where a submission stands, what can happen to it, and what becomes of it then; all of it is said here.

    queued --granted--> armed --announced--> announced --posted--> sent --accepted--> accepted

Every pair that is possible (a test holds these rows to the table; any other is an `IllegalTransitionError`):

    queued     granted      -> armed       it has a permit
    queued     found        -> accepted    its key stands for a task that another process submitted
    queued     failed       -> withdrawn   a file of the caller's cannot be read
    queued     expired      -> withdrawn   `max_wait` ran out
    queued     refused      -> refused     a budget leaves too little for it, or the service refused an upload
    queued     withdrawn    -> withdrawn   nobody waits, the session closes, an upload or the service is out of reach
    armed      held         -> queued      it is another submission's turn to try whether the service is there
    armed      never_sent   -> queued      no connection could be opened
    armed      announced    -> announced   there is a connection; key, `on_send` and journal are told before it leaves
    armed      failed       -> withdrawn   something nobody knows of
    armed      withdrawn    -> withdrawn   nobody waits for it, the session closes
    announced  key_taken    -> queued      another process was faster under this key
    announced  lease_ended  -> queued      the permit was out for too long, so it is asked for anew
    announced  never_sent   -> queued      the connection was lost, and no other could be opened
    announced  failed       -> withdrawn   `on_send` or the journal raised
    announced  refused      -> refused     a budget leaves too little, with what other processes have spent
    announced  withdrawn    -> withdrawn   the session closes, the caller left before anybody was told
    announced  posted       -> sent        the first byte is leaving: it is finished now whatever its callers do
    sent       throttled    -> queued      429: all wait for the pause, and this one goes first
    sent       accepted     -> accepted    the service named a task
    sent       refused      -> refused     the service made no task, and said so
    sent       unclear      -> unknown     no answer, or one that proves nothing
    unknown    repeated     -> unknown     the service honours its name, so it is sent again under it
    unknown    accepted     -> accepted    sent again so, and the service named the task
    unknown    found        -> accepted    a callback named the task
    unknown    disowned     -> refused     a person looked: there is no such task
    accepted   disproved    -> unknown     the service does not know the task that a callback had named

The money law is to be seen in it: what was sent goes back to the queue by `throttled` alone, the one answer that is
proof of not having been accepted and asks for another try. What was never sent was never in `sent`. What is unclear is
sent again only under a name that the service honours, and stays unknown until the service or a callback names its task:
a refusal of the repetition says nothing of the first.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

__all__ = ["TRANSITIONS", "IllegalTransitionError", "SubmissionEvent", "SubmissionState", "after"]


class SubmissionState(StrEnum):
    """Where a submission stands."""

    # That of an enumeration is a function of Python's, called for every look into a table.
    __hash__ = str.__hash__

    QUEUED = "queued"
    """It waits: for a slot, its uploads, a permit, or a service that is away."""
    ARMED = "armed"
    """It has a permit, and its connection is being opened."""
    ANNOUNCED = "announced"
    """Key, `on_send` and journal are told that it is about to leave."""
    SENT = "sent"
    """A byte of it has left, and no answer is known."""
    ACCEPTED = "accepted"
    """It is a task."""
    REFUSED = "refused"
    """The service made no task of it, or a budget leaves too little for one; it is not sent again."""
    UNKNOWN = "unknown"
    """Nobody knows whether there is a task."""
    WITHDRAWN = "withdrawn"
    """It ended before anything was sent, or after a refusal that asked for another try."""


class SubmissionEvent(StrEnum):
    """What happens to a submission; see the table of `flux2_async.models.submission_state`."""

    __hash__ = str.__hash__

    GRANTED = "granted"
    HELD = "held"
    ANNOUNCED = "announced"
    KEY_TAKEN = "key_taken"
    LEASE_ENDED = "lease_ended"
    POSTED = "posted"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    THROTTLED = "throttled"
    NEVER_SENT = "never_sent"
    UNCLEAR = "unclear"
    REPEATED = "repeated"
    FOUND = "found"
    DISPROVED = "disproved"
    DISOWNED = "disowned"
    FAILED = "failed"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


class IllegalTransitionError(RuntimeError):
    """Something happened to a submission that cannot happen to it where it stands: a bug of this library."""


_S, _E = SubmissionState, SubmissionEvent

# The way of nearly every submission. Python 3.11 takes as long to find a member in its class as to call a function.
GRANTED: Final = _E.GRANTED
ANNOUNCED: Final = _E.ANNOUNCED
POSTED: Final = _E.POSTED
ACCEPTED: Final = _E.ACCEPTED
UNCLEAR: Final = _E.UNCLEAR

TRANSITIONS: Final[Mapping[tuple[SubmissionState, SubmissionEvent], SubmissionState]] = MappingProxyType(
    {
        (_S.QUEUED, _E.GRANTED): _S.ARMED,
        (_S.QUEUED, _E.FOUND): _S.ACCEPTED,
        (_S.QUEUED, _E.FAILED): _S.WITHDRAWN,
        (_S.QUEUED, _E.EXPIRED): _S.WITHDRAWN,
        (_S.QUEUED, _E.REFUSED): _S.REFUSED,
        (_S.QUEUED, _E.WITHDRAWN): _S.WITHDRAWN,
        (_S.ARMED, _E.HELD): _S.QUEUED,
        (_S.ARMED, _E.NEVER_SENT): _S.QUEUED,
        (_S.ARMED, _E.ANNOUNCED): _S.ANNOUNCED,
        (_S.ARMED, _E.FAILED): _S.WITHDRAWN,
        (_S.ARMED, _E.WITHDRAWN): _S.WITHDRAWN,
        (_S.ANNOUNCED, _E.KEY_TAKEN): _S.QUEUED,
        (_S.ANNOUNCED, _E.LEASE_ENDED): _S.QUEUED,
        (_S.ANNOUNCED, _E.NEVER_SENT): _S.QUEUED,
        (_S.ANNOUNCED, _E.FAILED): _S.WITHDRAWN,
        (_S.ANNOUNCED, _E.REFUSED): _S.REFUSED,
        (_S.ANNOUNCED, _E.WITHDRAWN): _S.WITHDRAWN,
        (_S.ANNOUNCED, _E.POSTED): _S.SENT,
        (_S.SENT, _E.THROTTLED): _S.QUEUED,
        (_S.SENT, _E.ACCEPTED): _S.ACCEPTED,
        (_S.SENT, _E.REFUSED): _S.REFUSED,
        (_S.SENT, _E.UNCLEAR): _S.UNKNOWN,
        (_S.UNKNOWN, _E.REPEATED): _S.UNKNOWN,
        (_S.UNKNOWN, _E.ACCEPTED): _S.ACCEPTED,
        (_S.UNKNOWN, _E.FOUND): _S.ACCEPTED,
        (_S.UNKNOWN, _E.DISOWNED): _S.REFUSED,
        (_S.ACCEPTED, _E.DISPROVED): _S.UNKNOWN,
    }
)


def after(state: SubmissionState, event: SubmissionEvent) -> SubmissionState:
    """Give the state of a submission after an event.

    Raises:
        IllegalTransitionError: That cannot happen to it there; the text names both.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransitionError(f"a submission that is {state} cannot be {event}") from None
