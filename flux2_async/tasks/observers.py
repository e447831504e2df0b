"""Who is told what happens in a session: its statistics, its log lines, and the user's observers.

They are told once, after the fact, and decide nothing. Nothing is made for observers that are not there.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

from flux2_async.models import Request
from flux2_async.models.submission_state import UNCLEAR, SubmissionEvent, SubmissionState

if TYPE_CHECKING:
    from flux2_async.models.events import Observer, SessionEvent
    from flux2_async.tasks.log_lines import LogLines

logger: logging.Logger = logging.getLogger("flux2_async")


_Kind = Literal[
    "Attached",
    "Downloaded",
    "LimitLearned",
    "OutageBegan",
    "OutageEnded",
    "Polled",
    "Paused",
    "Queued",
    "Settled",
    "StateChanged",
    "SubmissionChanged",
    "Uploaded",
]

# Of these, and of unclear submissions, there are lines in the log; it need not see the others, of which there are many.
LOGGED: Final = frozenset({"LimitLearned", "OutageBegan", "OutageEnded", "Paused"})


class Named(Protocol):
    """A submission or its task; the names of both stand in `ImageTask`."""

    @property
    def ref(self) -> str | None: ...  # noqa: D102  see above
    @property
    def key(self) -> str | None: ...  # noqa: D102  likewise
    @property
    def group(self) -> str | None: ...  # noqa: D102  likewise
    @property
    def metadata(self) -> Mapping[str, Any] | None: ...  # noqa: D102  likewise


class Origin(Named, Protocol):
    """What a task comes from: what was asked for, or an earlier handle of it."""

    @property
    def request(self) -> Request | None: ...  # noqa: D102  likewise


class Observers:
    """Tells of events.

    Attributes:
        steps: How often each event of the submissions' table happened since the session was opened.
        prices: The most credits that a task of each model and resolution has cost, as far as records told.
    """

    def __init__(self, observers: "Iterable[Observer]" = ()) -> None:
        self.steps: Counter[SubmissionEvent] = Counter()
        self.prices: dict[tuple[str, str], float] = {}
        self._observe(tuple(observers))
        self._log: LogLines | None = None
        self._shared = False
        self._failed: set[int] = set()

    def __bool__(self) -> bool:
        """Whether anybody is there for whom an event has to be made."""
        return bool(self._observers)

    def begin(self, *, shared: bool = False) -> None:
        """The session is opened, perhaps again: count anew; `shared`: its limit is shared by a coordination."""
        self.steps.clear()
        self._log, self._shared = None, shared

    def add(self, observer: "Observer") -> None:
        """Tell one more from now on."""
        self._observe((*self._observers, observer))

    def remove(self, observer: "Observer") -> None:
        """Tell it no more; one that is not there is ignored."""
        left = list(self._observers)
        if observer in left:
            left.remove(observer)
        self._observe(tuple(left))

    def _observe(self, observers: "tuple[Observer, ...]") -> None:
        self._observers = observers
        # What all are content without need not be made; most say nothing, and want everything.
        wishes = [wish for each in observers if isinstance(wish := getattr(each, "wants", None), frozenset)]
        self._wanted: frozenset[object] | None = (
            frozenset[object]().union(*wishes) if len(wishes) == len(observers) else None
        )

    def priced(self, request: Request, credits: float) -> None:  # noqa: A002  the API's word
        """A record told what a task cost."""
        kind = request.model, request.resolution
        self.prices[kind] = max(credits, self.prices.get(kind, 0.0))

    def queued(self, asked: Origin) -> None:
        """A submission was taken in."""
        if self._observers:
            self.tell("Queued", asked, request=asked.request)

    def stepped(
        self,
        asked: Origin,
        state: SubmissionState,
        event: SubmissionEvent,
        error: Exception | None = None,
        task_id: str | None = None,
    ) -> None:
        """A submission made a step."""
        self.steps[event] += 1
        wanted = self._observers and (self._wanted is None or event in self._wanted)
        if wanted or event is UNCLEAR:
            self.tell(
                "SubmissionChanged",
                asked,
                task_id=task_id,
                event=event,
                state=state,
                request=asked.request,
                error=error,
            )

    def tell(self, kind: _Kind, about: Named | None = None, **facts: Any) -> None:
        """Tell of an event of a kind, which is not loaded before somebody observes; `about`: whose it is, or None."""
        logged = kind in LOGGED or facts.get("event") is UNCLEAR
        if not logged and self._wanted is not None and kind not in self._wanted:
            return
        if about is not None:
            facts |= {"ref": about.ref, "key": about.key, "group": about.group, "metadata": about.metadata}
        event = _kinds()[kind](time=datetime.now(UTC), **facts)
        if logged:
            self._log = self._log or _log_lines(shared=self._shared)
            self._log(event)
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # an observer decides nothing
                if id(observer) not in self._failed:
                    self._failed.add(id(observer))
                    logger.exception("observer %r failed at %s; it is told of this once", observer, kind)


# Loading them takes a tenth of the time that loading the package does.
@cache
def _kinds() -> "dict[str, Callable[..., SessionEvent]]":
    from flux2_async.models import events  # noqa: PLC0415

    return {name: getattr(events, name) for name in get_args(_Kind)}


def _log_lines(*, shared: bool) -> "LogLines":
    from flux2_async.tasks.log_lines import LogLines  # noqa: PLC0415

    return LogLines(shared=shared)
