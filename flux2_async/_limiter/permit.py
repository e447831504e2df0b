"""Leave to send one request."""

import enum
import warnings
from collections.abc import Callable
from typing import Final, Self


class PermitEvent(enum.Enum):
    """What became of a request that had a permit; `THROTTLED` is not the end: a 429 came, and whose it is is open."""

    NEVER_SENT = "never_sent"
    THROTTLED = "throttled"
    ANSWERED = "answered"
    UNCLEAR = "unclear"
    REFUSED = "refused"
    DROPPED = "dropped"


# Asked for at every request; Python 3.11 takes as long to find a member in its class as to call a function.
ANSWERED: Final = PermitEvent.ANSWERED
THROTTLED: Final = PermitEvent.THROTTLED
DROPPED: Final = PermitEvent.DROPPED


class Permit:
    """Leave to send one request. The first way of settling it counts, later ones do nothing.

    As a context manager it settles itself on leaving, as `unclear()`, and so it does, with a `ResourceWarning`, when
    it is dropped: a permit may come back late, but is never lost.
    """

    __slots__ = ("_lease_ended", "_paused", "_settle", "_settled")

    def __init__(
        self, settle: Callable[[PermitEvent, float | None], None], lease_ended: Callable[[], bool] | None = None
    ) -> None:
        self._settle = settle
        self._lease_ended = lease_ended
        self._paused = False
        self._settled = False

    @property
    def settled(self) -> bool:
        """Whether the request's end was told already."""
        return self._settled

    def lease_ended(self) -> bool:
        """Whether it is too late to send by this permit, since others may have it by the time of the answer.

        To be asked immediately before the request's first byte, with nothing awaited in between: a process that was
        stopped, or a machine that slept, had no chance to hear of it. A permit that is too late is given back by
        `never_sent` and asked for anew. Always False for the limiter of one process, whose permits wait.
        """
        return self._lease_ended is not None and self._lease_ended()

    def never_sent(self) -> None:
        """The request certainly did not leave: back at once."""
        self._once(PermitEvent.NEVER_SENT)

    def answered(self) -> None:
        """An answer came, success or not, other than 429: back `period` (and 0.1 %) from now."""
        self._once(ANSWERED)

    def unclear(self) -> None:
        """Given up or broken off, so it may be counted later: back two periods from now."""
        self._once(PermitEvent.UNCLEAR)

    def pause(self, retry_after: float | None) -> None:
        """A 429 has come: close the gate for everybody, and learn, once. Whose it is may be open: the permit stays out.

        Args:
            retry_after: Seconds the service named. None, 0, negative or not a number: it named none, so the period
                (10 s where there is no limit). At least a second and `period / limit`, at most an hour is believed.
        """
        if not self._settled and not self._paused:
            self._paused = True
            self._settle(PermitEvent.THROTTLED, retry_after)

    def throttled(self, retry_after: float | None) -> None:
        """Certainly refused by a 429, so it was not counted: `pause` unless that was done, and back at once."""
        self.pause(retry_after)
        self._once(PermitEvent.REFUSED)

    def abandon(self) -> None:
        """Its event loop is gone: who goes on with the limit knows what was out (`Limiter.take_over`)."""
        self._settled = True

    def _once(self, event: PermitEvent) -> None:
        if not self._settled:
            self._settled = True
            self._settle(event, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unclear()

    def __del__(self) -> None:
        if not self._settled:
            self._once(PermitEvent.DROPPED)
            warnings.warn("a permit was dropped without being settled; held for two periods", ResourceWarning, 2)
