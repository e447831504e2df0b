"""What a poll means for its task: when to poll again, or what it is settled with.

An outcome comes from a record; failing to poll is not a failure of the task. Exceptions by design: a refusal to poll
that lasts (`REFUSED_FOR`), a task nobody knows (`NOT_VISIBLE_FOR`), and the caller's own `give_up_after`.
"""

import logging
from typing import Any, Final

from flux2_async._protocol.codec import FailedUnderErrorError
from flux2_async._protocol.records import task_error, unread_addresses
from flux2_async.errors import (
    ApiError,
    Flux2Error,
    RateLimitedError,
    ServerError,
    TaskNotFoundError,
    TaskTimeoutError,
)
from flux2_async.models import ImageResult, TaskRecord, TaskState
from flux2_async.tasks.pace import SECOND, Pace
from flux2_async.tasks.timing import POLLS_AFTER_HINT, Timing, Watched

logger: logging.Logger = logging.getLogger("flux2_async")

# A record can be invisible right after createTask; other clients of the API give it 90 s.
NOT_VISIBLE_FOR: Final = 90.0
# A key that is rotated, or credits that are refilled, within a minute cost no task.
REFUSED_FOR: Final = 60.0
# A success can be shown a little before its addresses.
EMPTY_FOR: Final = 30.0
EMPTY_AGAIN: Final = 0.5
# A hint is worth one poll a second; the record can lag a little behind its callback.
HINTS_APART: Final = 1.0
# By this nginx refuses what is too fast unless told otherwise. It is taken for that when it meets several tasks within
# a second in which polls of others pass, and with a bound, since it may also mean what it says.
OVERLOADED: Final = 503
OVERLOADED_SLOWEST: Final = 1.0

Verdict = float | ImageResult | Exception
"""Seconds until the next poll, or what the task is settled with."""


class Judge:
    """Says what polls mean; all times are the loop's."""

    def __init__(self, timing: Timing, pace: Pace) -> None:
        self._timing = timing
        self._pace = pace
        # When a poll was answered by 503 last, and at which task.
        self._overloaded: tuple[float, Watched] | None = None

    def of_record(self, watched: Watched, record: TaskRecord | None, now: float) -> Verdict:
        """A poll was answered, or a record came by itself; None: the service does not know the task."""
        watched.failures, watched.refused_since, watched.failed_since = 0, None, None
        if watched.unanswered_since is not None:
            watched.until += max(watched.polled - watched.unanswered_since, 0.0)
            watched.unanswered_since = None
        if record is None:
            return self._not_visible(watched, now)
        watched.hidden_since = None
        if watched.empty_since is None:
            # Else its end is known already.
            self._timing.learn(watched, record, now)
        if not record.result_urls and record.state is TaskState.SUCCESS:
            if watched.empty_since is None:
                watched.empty_since = watched.polled
            if (left := watched.empty_since + EMPTY_FOR - now) > 0:
                # Each time twice as long, since most are filled soon.
                return min(max(now - watched.empty_since, EMPTY_AGAIN), left)
        watched.task._saw(record)  # noqa: SLF001  the handle is written by its watcher alone
        if record.state.final:
            return _outcome_of(watched.task.id, record)
        watched.empty_since = None
        return self._again(watched, self._wait_unfinished(watched, now), now)

    def of_failure(self, watched: Watched, error: Flux2Error, now: float) -> Verdict:
        """A poll was not answered, or by a refusal."""
        # Nobody knows what was to be seen meanwhile.
        watched.hidden_since = None
        if watched.unanswered_since is None:
            watched.unanswered_since = watched.polled
        logger.info("cannot poll task %s: %s", watched.task.id, type(error).__name__)
        if isinstance(error, FailedUnderErrorError):
            if watched.failed_since is None:
                watched.failed_since = now
            if now >= watched.failed_since + REFUSED_FOR:
                watched.task._saw(error.record)  # noqa: SLF001  the handle is written by its watcher alone
                return _outcome_of(watched.task.id, error.record)
        if isinstance(error, ApiError) and not error.transient:
            if watched.refused_since is None:
                watched.refused_since = now
            # Compared as it is planned below: rounded in another way, polls would follow each other without a pause.
            if now >= watched.refused_since + REFUSED_FOR:
                return error
        wait = self._wait_after(watched, error, now)
        if watched.refused_since is not None and (left := watched.refused_since + REFUSED_FOR - now) > 0:
            # Nothing is known to have failed that trying again soon could mend.
            wait = min(max(wait, self._timing.wait(watched, now)), left)
        if watched.failed_since is not None and (left := watched.failed_since + REFUSED_FOR - now) > 0:
            wait = min(wait, left)
        return wait

    def _not_visible(self, watched: Watched, now: float) -> Verdict:
        # Counted from the first such poll: one answer after an outage, or between two rare polls, proves nothing.
        if watched.hidden_since is None:
            watched.hidden_since = watched.polled
        until = watched.hidden_since + NOT_VISIBLE_FOR
        if now < until:
            return self._again(watched, min(self._wait_unfinished(watched, now), until - now), now)
        hidden, task_id = now - watched.hidden_since, watched.task.id
        text = f"the service does not know task {task_id} after {hidden:.0f} s: wrong id, another account, or deleted"
        return TaskNotFoundError(text, task_id=task_id)

    def _wait_unfinished(self, watched: Watched, now: float) -> float:
        # Intervals count from poll to poll, so what a reply takes comes off.
        took = now - watched.polled
        if watched.hinted:
            watched.hinted, watched.polls_after_hint = False, 0
            return HINTS_APART - took
        wait = self._timing.followed(watched, self._timing.wait(watched, watched.polled)) - took
        if watched.polls_after_hint >= len(POLLS_AFTER_HINT):
            return wait
        # A hint said that there is something to see, and it was not seen yet.
        watched.polls_after_hint += 1
        return min(wait, POLLS_AFTER_HINT[watched.polls_after_hint - 1])

    def _again(self, watched: Watched, wait: float, now: float) -> Verdict:
        """The next poll of a task that was seen and is not finished, unless it is given up."""
        task = watched.task
        if watched.polled >= watched.until:
            hidden = watched.hidden_since is not None
            state = "not known to the service" if hidden else "not finished"
            told = "check the id and the account, or" if hidden else "it goes on at the service:"
            return TaskTimeoutError(
                f"task {task.id} is {state} after {round(watched.polled - watched.since, 1):g} s, so the session no "
                f"longer polls it (give_up_after); {told} await it again, or attach it",
                task=task,
                given_up=True,
            )
        if self._timing.is_news(watched, now):
            logger.warning("task %s is not finished and older than anything seen in this session", task.id)
        return min(wait, watched.until - now)

    def _wait_after(self, watched: Watched, error: Flux2Error, now: float) -> float:
        if isinstance(error, RateLimitedError):
            # It was refused for what all polls together did: it is due, and the pace says when its turn is.
            self._refused(watched, now, retry_after=error.retry_after)
            return 0.0
        if isinstance(error, ServerError) and error.http_status == OVERLOADED:
            before, self._overloaded = self._overloaded, (now, watched)
            several = before is not None and before[1] is not watched and now - before[0] < SECOND
            if self._pace.rate is not None or (several and self._pace.passing(now)):
                self._refused(watched, now, slowest=OVERLOADED_SLOWEST)
        watched.failures += 1
        return self._timing.wait_after_failure(watched, now)

    def _refused(self, watched: Watched, now: float, **how: Any) -> None:
        before = self._pace.rate
        self._pace.refused(watched.polled, now, **how)
        if (rate := self._pace.rate) != before:
            wait = self._pace.opens(now) - now
            logger.info("polls are refused; from now on %.3g are sent a second, the next one in %.3g s", rate, wait)


def _outcome_of(task_id: str, record: TaskRecord) -> ImageResult | Exception:
    error = task_error(record)
    if error is None and (unread := unread_addresses(record)):
        text = "task %s names %d more results whose addresses cannot be read; see record.extra['resultJson']"
        logger.warning(text, task_id, unread)
    return error or ImageResult(task_id=task_id, urls=record.result_urls, record=record)
