"""How old tasks are, when they are polled next, and what the schedules learn from what a poll sees.

A task's age counts on the loop's clock, from the reply to its createTask. Of an attached task only the service knows
when it was created: its age is unknown until a task that was created here tells how the two clocks lie to each other.
The wall clock is not asked, since it may be wrong.
"""

import math
import random
from typing import TYPE_CHECKING, Final

import attrs

from flux2_async.models import Request, TaskRecord
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.schedule import Schedule, Schedules, wait_after_failure

if TYPE_CHECKING:
    from flux2_async.models.expectation import Expectation
    from flux2_async.tasks.durations import Durations

POLLS_AFTER_HINT: Final = (0.5, 1.0, 2.0)
# Seconds; a task that runs is news when it is as old, and so many times as old as any was that ended.
OLD: Final = 120.0
OLDER: Final = 1.5
# Seconds between the moments at which a few polls leave together: a process that wakes up for one alone finds its
# caches cold, and takes twice as long for it. Not more of them, since a service may mind bursts.
BEAT: Final = 0.1
ON_A_BEAT: Final = 5
# Of so many tasks the average lag is known.
REMEMBERED_LAGS: Final = 10


# Nothing refers weakly to it, and there may be many.
@attrs.define(eq=False, repr=False, weakref_slot=False)
class Watched:
    """What a watcher knows of an outstanding task; all times are the loop's.

    Attributes:
        task: Its handle.
        schedule: When to poll it.
        since: When it was handed over.
        until: When it is given up; never, where that is infinite.
        created: When the service took it; None while that is not known.
        visible: When the last poll left that saw it.
        due: When to poll next.
        unanswered_since: When the first poll left that was not answered, of those in a row; or None.
        failures: Failures to poll in a row, without those of all polls (429).
        hidden_since: When the first poll left that did not see it, of those in a row; or None.
        refused_since: Since when polls are refused, or None.
        failed_since: When a refused poll said first that the task failed, of those without an answer between; or None.
        empty_since: When the first poll left that saw a success without an address, or None.
        polling: Whether a poll is in flight.
        polled: When the last poll left.
        hinted: Whether a hint came during the poll in flight.
        called: Whether a hint came at all.
        polls_after_hint: Polls since the last hint.
        old: Whether it was told that it is older than anything seen.
        group: Whose slot it has, or None.
    """

    task: ImageTask
    schedule: Schedule
    since: float
    created: float | None
    visible: float
    due: float
    until: float = math.inf
    unanswered_since: float | None = None
    failures: int = 0
    hidden_since: float | None = None
    refused_since: float | None = None
    failed_since: float | None = None
    empty_since: float | None = None
    polling: bool = False
    polled: float = -1e9
    hinted: bool = False
    called: bool = False
    polls_after_hint: int = len(POLLS_AFTER_HINT)
    old: bool = False
    group: str | None = None


class Timing:
    """Brings tasks and schedules together.

    Attributes:
        lag: Seconds from the end of a task until it was seen, on average of the last ones.
    """

    def __init__(self, schedules: Schedules) -> None:
        self._schedules = schedules
        self._random = random.Random()  # noqa: S311  it spreads polls in time, it guards nothing
        # Loop time at the epoch of the service's clock, or None before a task that was created here was seen.
        self._epoch: float | None = None
        self._longest = 0.0
        # Polls that were planned on each beat to come. Processes of a host share its clock, but no beats.
        self._beats: dict[int, int] = {}
        self._first_beat = self._random.random() * BEAT
        self.lag: float = 0.0

    def begin(self, task: ImageTask, schedule: Schedule | None, now: float) -> Watched:
        """Give the state of a task that was created just now, or, without a schedule, nobody knows when."""
        created = None if schedule is None else now
        return Watched(task, schedule or self._schedules.unknown, now, created, visible=now, due=now)

    def wait(self, watched: Watched, at: float) -> float:
        """Give the usual seconds from a time to the next poll: any that the schedule allows, if it can be on a beat."""
        soonest, latest = self._waits(watched, at)
        wait = soonest + (latest - soonest) * self._random.random()
        since = at - self._first_beat
        beat = round((since + wait) / BEAT)
        polls, on_beat = self._beats.get(beat, 0), beat * BEAT - since
        if polls == ON_A_BEAT or not soonest <= on_beat <= latest:
            return wait
        if not polls:
            self._beats = {each: count for each, count in self._beats.items() if each * BEAT > since}
        self._beats[beat] = polls + 1
        return on_beat

    def followed(self, watched: Watched, wait: float) -> float:
        """Shorten a wait from one poll to the next to what those who follow the task want."""
        every = watched.task._every  # noqa: SLF001  the handle is written by those who follow it, and read here
        return min(wait, max(min(every), self._schedules.wait_min)) if every else wait

    def wait_midway(self, watched: Watched, at: float) -> float | None:
        """Give the seconds to the next poll for a time that is any between two: of many tasks, none meet there.

        None where the next one is no farther away than usual; else polls would come closer with every call.
        """
        _, longest = self._waits(watched, at)
        return longest * self._random.random() if at + longest < watched.due else None

    def wait_after_failure(self, watched: Watched, at: float) -> float:
        """Give the seconds until a poll that failed is tried again."""
        usual = sum(self._waits(watched, at)) / 2
        return wait_after_failure(watched.schedule, usual, watched.failures, self._random.random())

    def again(self, watched: Watched, now: float) -> Watched:
        """Give the state of a task that is watched again."""
        again = self.begin(watched.task, watched.schedule.without_callback, now)
        again.created, again.old = watched.created, watched.old
        return again

    def durations(self, request: Request) -> "Durations":
        """Give how long tasks of a kind take, as far as is known."""
        return self._schedules.of(request.model, request.resolution).durations()

    def all_durations(self) -> "list[Durations]":
        """Give that of all kinds of which something is known, else what is documented."""
        return self._schedules.durations() or [self._schedules.unknown.durations()]

    def running(self, watched: Watched, now: float) -> "tuple[Durations, float]":
        """Give how long tasks of one's kind take, and its age; where that is not known, for how long it is watched."""
        return watched.schedule.durations(), self._age(watched, now)

    def expectation(self, watched: Watched | None, now: float) -> "Expectation":
        """Give how long a task still takes, as far as is known; None: one that is not watched."""
        from flux2_async.tasks.durations import expected  # noqa: PLC0415  few ask

        if watched is None or watched.created is None:
            return expected(None, 0.0)
        return expected(watched.schedule.durations(), now - watched.created)

    def is_news(self, watched: Watched, now: float) -> bool:
        """Whether a task that runs is older than any that was seen to end, by far; once for each task."""
        if watched.old or self._age(watched, now) < max(OLD, OLDER * self._longest):
            return False
        watched.old = True
        return True

    def learn(self, watched: Watched, record: TaskRecord, now: float) -> None:
        """Learn from what a poll, or a callback, has seen."""
        if record.state.final:
            self._learn_end(watched, record, now)
            return
        before = watched.visible
        # What the record says may have changed since; it was true when the poll left.
        watched.visible = max(watched.polled, before)
        created = watched.created
        if created is None:
            created = watched.created = self._date(watched, record)
            before = before if created is None else created
        elif record.create_time is not None:
            self._epoch = created - record.create_time.timestamp()
        if created is not None:
            watched.schedule.ran(before - created, watched.visible - created)

    def _waits(self, watched: Watched, at: float) -> tuple[float, float]:
        return watched.schedule.waits(self._age(watched, at))

    def _age(self, watched: Watched, at: float) -> float:
        return at - (watched.since if watched.created is None else watched.created)

    def _learn_end(self, watched: Watched, record: TaskRecord, now: float) -> None:
        duration = record.duration
        if watched.created is None:
            if duration is not None:
                self._longest = max(self._longest, duration)
                self._schedules.of_record(record).ended(0.0, max(duration, 0.0))
            return
        before, seen = watched.visible - watched.created, now - watched.created
        # Its stamps are exact, but by another clock; by ours it ended between two polls.
        ended = (before + seen) / 2 if duration is None else min(max(duration, before), seen)
        self._longest = max(self._longest, ended)
        self.lag += (seen - ended - self.lag) / REMEMBERED_LAGS
        watched.schedule.ended(before, ended)

    def _date(self, watched: Watched, record: TaskRecord) -> float | None:
        """Find out when an attached task was created, and of which kind it is, if that can be known."""
        schedule = self._schedules.of_record(record)
        if self._epoch is None or record.create_time is None or schedule is self._schedules.unknown:
            return None
        watched.schedule = schedule
        return min(self._epoch + record.create_time.timestamp(), watched.since)
