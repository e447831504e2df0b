"""Who is told what happens in a session: its statistics, its log lines, and the user's observers.

They are told once, after the fact, and decide nothing. Nothing is made for observers that are not there.
"""

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from flux2_async.models import Request, TaskRecord
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

# What there are lines of in the log.
LOGGED: Final = frozenset({"LimitLearned", "OutageBegan", "OutageEnded", "Paused", UNCLEAR})


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
        self.steps: dict[SubmissionEvent, int] = dict.fromkeys(SubmissionEvent, 0)
        self.prices: dict[tuple[str, str], float] = {}
        self._observers = tuple(observers)
        # By a kind's name, or a step: its class, and who wants to be told.
        self._told: dict[str, tuple[type[SessionEvent], tuple[Observer, ...]]] = {}
        self._log: LogLines | None = None
        self._shared, self._service = False, ""
        self._failed: set[int] = set()
        self._mispriced = False

    def __bool__(self) -> bool:
        """Whether anybody is there for whom an event has to be made."""
        return bool(self._observers)

    def begin(self, *, service: str, shared: bool = False) -> None:
        """A session with this service is opened, perhaps again; `shared`: its limit is shared by a coordination."""
        self.steps = dict.fromkeys(SubmissionEvent, 0)
        self._told.clear()
        self._log, self._shared, self._service = None, shared, service

    def add(self, observer: "Observer") -> None:
        """Tell one more from now on."""
        self._observers = (*self._observers, observer)
        self._told.clear()

    def remove(self, observer: "Observer") -> None:
        """Tell it no more; one that is not there is ignored."""
        if observer in (left := list(self._observers)):
            left.remove(observer)
        self._observers = tuple(left)
        self._told.clear()

    def priced(self, request: Request, record: TaskRecord) -> None:
        """A record told what a task cost, or nothing that it can have cost."""
        if record.credits_consumed is not None:
            kind = request.model, request.resolution
            self.prices[kind] = max(record.credits_consumed, self.prices.get(kind, 0.0))
        elif "creditsConsumed" in record.extra and not self._mispriced:
            self._mispriced = True
            logger.warning(
                "task %s: creditsConsumed is no amount that a task costs; budgets keep it reserved", record.task_id
            )

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
        if self._observers or event is UNCLEAR:
            facts = {"task_id": task_id, "event": event, "state": state, "request": asked.request, "error": error}
            self._tell("SubmissionChanged", event, asked, facts)

    def tell(self, kind: _Kind, about: Named | None = None, **facts: Any) -> None:
        """Tell of an event of a kind, which is not loaded before somebody observes; `about`: whose it is, or None."""
        self._tell(kind, kind, about, facts)

    def _tell(self, kind: _Kind, what: str, about: Named | None, facts: dict[str, Any]) -> None:
        of_kind, observers = self._told.get(what) or self._find(kind, what)
        if not observers:
            return
        now = datetime.now(UTC)
        if about is not None:
            facts |= {"ref": about.ref, "key": about.key, "group": about.group, "metadata": about.metadata}
        event = of_kind(time=now, service=self._service, **facts)
        for observer in observers:
            try:
                observer(event)
            except Exception:  # an observer decides nothing
                if id(observer) not in self._failed:
                    self._failed.add(id(observer))
                    logger.exception("observer %r failed at %s; it is told of this once", observer, kind)

    def _find(self, kind: _Kind, what: str) -> "tuple[type[SessionEvent], tuple[Observer, ...]]":
        # Loading them takes a tenth of the time that loading the package does.
        from flux2_async.models import events  # noqa: PLC0415

        of_kind: type[SessionEvent] = getattr(events, kind)
        observers = [each for each in self._observers if _wants(each, of_kind, what)]
        if what in LOGGED:
            from flux2_async.tasks.log_lines import LogLines  # noqa: PLC0415  likewise

            self._log = self._log or LogLines(shared=self._shared)
            observers.insert(0, self._log)
        self._told[what] = found = of_kind, tuple(observers)
        return found


def _wants(observer: "Observer", of_kind: type, what: str) -> bool:
    wants = getattr(observer, "wants", None)
    return not isinstance(wants, set | frozenset) or of_kind in wants or what in wants
