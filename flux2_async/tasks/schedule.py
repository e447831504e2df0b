"""When to poll again. Pure: ages, the time and a random number come in, seconds go out."""

import math
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from flux2_async._protocol.converter import resolution_of
from flux2_async.models import Polling, TaskRecord
from flux2_async.models.plain import is_number
from flux2_async.tasks.hazard import BINS, EDGES, KEEP, Hazard

if TYPE_CHECKING:
    from flux2_async.tasks.durations import Durations

# Apikley's advice: every 2-3 s for 30 s, 5-10 s after, 15-30 s after two minutes; the middle of each.
ADVICE: Final = ((30.0, 2.5), (120.0, 7.5), (float("inf"), 22.5))
# What a poll is worth where the advice is just right.
ADVISED_PRICE: Final = 0.3
SPREAD: Final = 0.1
MAX_SLOWDOWN_OF_FIXED: Final = 10.0
# Without a floor, polling "as fast as replies come" would become a busy loop when no reply comes.
SLOWED_MIN: Final = 0.1
# Seconds until the second try of a poll.
SOON: Final = 0.5

# The service's own records name the kinds of attached tasks, so their number is bounded.
MAX_KINDS: Final = 32
# What an earlier run knew weighs less than what this one sees.
REMEMBERED: Final = 20.0
# Of the bins and of what is counted in them.
VERSION: Final = 1


class Schedule(Protocol):
    """Knows how long to wait for the next poll of a task."""

    @property
    def without_callback(self) -> "Schedule":
        """The schedule of a task whose callback will not come any more."""
        ...

    def waits(self, age: float) -> tuple[float, float]:
        """Give the fewest and the most seconds until the next poll; any of them will do, which keeps a burst apart.

        Args:
            age: Seconds since the task was created; since it was attached, where that is not known.
        """
        ...

    def wait_max(self, wait: float) -> float:
        """Give the longest wait, in seconds, after failures to poll, where `wait` is the usual one."""
        ...

    def ran(self, begin: float, end: float) -> None:
        """Learn that a task ran from one age to another, seconds."""
        ...

    def ended(self, begin: float, end: float) -> None:
        """Learn that a task ran at one age and had ended, well or badly, at another, seconds."""
        ...

    def durations(self) -> "Durations":
        """Give how long such tasks take, as far as is known."""
        ...


@attrs.frozen(eq=False, repr=False)
class DocumentedAdvice:
    """The intervals that the API's documentation advises, for tasks whose age is not known."""

    polling: Polling

    @property
    def without_callback(self) -> Schedule:
        """See `Schedule`."""
        return self

    def waits(self, age: float) -> tuple[float, float]:
        """See `Schedule`."""
        gap = _advised_gap(age, self.polling.price)
        # A task that comes from elsewhere may have ended long ago, and many may come at once.
        return _within(self.polling, 0.0, gap) if age == 0 else _spread(self.polling, gap)

    def wait_max(self, wait: float) -> float:
        """See `Schedule`."""
        return max(wait, self.polling.wait_max)

    def ran(self, begin: float, end: float) -> None:
        """Learn nothing."""

    def ended(self, begin: float, end: float) -> None:
        """Learn nothing."""

    def durations(self) -> "Durations":
        """Give what is documented."""
        return _documented()


@attrs.frozen(eq=False, repr=False)
class FixedInterval:
    """The same interval at any age, exactly; what tasks teach is for those who ask how long they take."""

    interval: float
    hazard: Hazard = attrs.field(factory=lambda: Hazard(_PRIOR))

    def __attrs_post_init__(self) -> None:
        # It takes as long as half a poll, and nobody asks for plans.
        self.hazard.plan_seldom()

    @property
    def without_callback(self) -> Schedule:
        """See `Schedule`."""
        return self

    def waits(self, age: float) -> tuple[float, float]:  # noqa: ARG002  it is what was asked for
        """See `Schedule`."""
        return self.interval, self.interval

    def wait_max(self, wait: float) -> float:
        """See `Schedule`."""
        return MAX_SLOWDOWN_OF_FIXED * max(wait, SLOWED_MIN)

    def ran(self, begin: float, end: float) -> None:
        """See `Schedule`."""
        self.hazard.ran(begin, end)

    def ended(self, begin: float, end: float) -> None:
        """See `Schedule`."""
        self.hazard.ran(begin, end, ended=True)

    def durations(self) -> "Durations":
        """See `Schedule`."""
        return self.hazard.durations()


@attrs.frozen(eq=False, repr=False)
class LearnedSchedule:
    """Polls when tasks of one kind use to end; before any was seen, and at ages never seen, as the API advises.

    A task that fails teaches like one that succeeds. Moderation is quicker than drawing, but who waits wants to know
    of either end, and as long as a task runs nobody knows which one it will be.
    """

    polling: Polling
    hazard: Hazard

    @property
    def without_callback(self) -> Schedule:
        """See `Schedule`."""
        return self

    def waits(self, age: float) -> tuple[float, float]:
        """See `Schedule`."""
        price = self.polling.price
        due = self.hazard.wait(age, price)
        return _spread(self.polling, due if due < math.inf else _advised_gap(age, price))

    def wait_max(self, wait: float) -> float:
        """See `Schedule`."""
        return max(wait, self.polling.wait_max)

    def ran(self, begin: float, end: float) -> None:
        """See `Schedule`."""
        self.hazard.ran(begin, end)

    def ended(self, begin: float, end: float) -> None:
        """See `Schedule`."""
        self.hazard.ran(begin, end, ended=True)

    def durations(self) -> "Durations":
        """See `Schedule`."""
        return self.hazard.durations()


class Schedules:
    """The schedules of one session: one for each model and resolution, since these take different times.

    Args:
        polling: The settings.

    Attributes:
        unknown: For tasks of which neither the kind nor the age is known.
        wait_min: Seconds between two polls of one task, at least, whoever follows it.
    """

    def __init__(self, polling: Polling) -> None:
        self.wait_min: float = polling.wait_min
        self._polling = polling
        self._learned: dict[str, LearnedSchedule | FixedInterval] = {}
        self.unknown: Schedule = (
            DocumentedAdvice(polling) if polling.interval is None else FixedInterval(polling.interval)
        )

    def of(self, model: str, resolution: str) -> Schedule:
        """Give the schedule of one kind of tasks."""
        kind = f"{model} {resolution}"
        schedule = self._learned.get(kind)
        if schedule is None:
            if len(self._learned) >= MAX_KINDS:
                return self.unknown
            schedule = self._learned[kind] = self._new(Hazard(_PRIOR))
        return schedule

    def _new(self, hazard: Hazard) -> LearnedSchedule | FixedInterval:
        interval = self._polling.interval
        return LearnedSchedule(self._polling, hazard) if interval is None else FixedInterval(interval, hazard)

    def of_record(self, record: TaskRecord) -> Schedule:
        """Give the schedule of a task's kind, as far as its record names it; else `unknown`."""
        resolution = resolution_of(record)
        if record.model is None or resolution is None:
            return self.unknown
        return self.of(record.model, resolution)

    def durations(self) -> "list[Durations]":
        """Give how long tasks of each kind take of which something is known."""
        return [schedule.durations() for schedule in self._learned.values()]

    def knowledge(self) -> dict[str, Any]:
        """Give what was learned, to be kept for another session; no kinds if no task has ended."""
        kinds = {}
        for kind, schedule in self._learned.items():
            ends, at_risk = schedule.hazard.knowledge(REMEMBERED)
            if any(ends):
                kinds[kind] = {"ends": [round(n, 3) for n in ends], "at_risk": [round(n, 3) for n in at_risk]}
        return {"version": VERSION, "kinds": kinds}

    def remember(self, knowledge: Any) -> None:
        """Go on from what an earlier session has learned; call it before any task is watched.

        Raises:
            ValueError: It cannot be used; nothing is taken over.
        """
        kinds = knowledge.get("kinds") if isinstance(knowledge, dict) else None
        if not isinstance(kinds, dict) or knowledge.get("version") != VERSION or len(kinds) > MAX_KINDS:
            raise ValueError("not what this version writes")
        self._learned |= {
            kind: self._new(Hazard(_PRIOR, _counts(each, "ends"), _counts(each, "at_risk")))
            for kind, each in kinds.items()
        }


def wait_after_failure(schedule: Schedule, wait: float, failures: int, spread: float) -> float:
    """Slow down after failures to poll one task.

    Args:
        schedule: The schedule in force.
        wait: What it says without failures, seconds.
        failures: Failures in a row, 1 or more.
        spread: A random number, 0 to 1, that keeps tasks apart that failed together.

    Returns:
        Seconds: half a second at first, since there may be something to see, and twice as long with each failure, up
        to the schedule's bound; of that between half and all.
    """
    # The exponent is bounded because an outage of hours would overflow a float.
    slowed = min(SOON * 2.0 ** min(failures - 1, 16), schedule.wait_max(wait))
    return slowed * (1.0 - spread / 2.0)


def _advised_gap(age: float, price: float = ADVISED_PRICE) -> float:
    return next(gap for until, gap in ADVICE if age < until) * math.sqrt(price / ADVISED_PRICE)


def _spread(polling: Polling, wait: float) -> tuple[float, float]:
    return _within(polling, wait * (1 - SPREAD / 2), wait * (1 + SPREAD / 2))


def _within(polling: Polling, soonest: float, latest: float) -> tuple[float, float]:
    least, most = polling.wait_min, polling.wait_max
    return min(max(soonest, least), most), min(max(latest, least), most)


# Under these the advised intervals are what is best.
_PRIOR: Final[tuple[float, ...]] = tuple(2.0 * ADVISED_PRICE / _advised_gap(edge) ** 2 for edge in EDGES[:-1])


@cache
def _documented() -> "Durations":
    return Hazard(_PRIOR).durations()


def _counts(kind: Any, name: str) -> list[float]:
    counts = kind.get(name) if isinstance(kind, dict) else None
    if not isinstance(counts, list) or len(counts) != BINS:
        raise ValueError(f"{name}: not {BINS} numbers")
    for count in counts:
        if not is_number(count) or not 0 <= count <= KEEP * EDGES[-1]:
            raise ValueError(f"{name}: {count!r}")
    return counts
