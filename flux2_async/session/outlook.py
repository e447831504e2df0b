"""What is expected of submissions: whose turn comes when, and when all has ended. Loaded when somebody asks."""

import math
from collections import Counter
from collections.abc import Collection
from typing import Final

import attrs

from flux2_async._limiter.queue import IMPATIENT_AFTER
from flux2_async.models import Request
from flux2_async.models.expectation import Expectation
from flux2_async.models.submission_state import SubmissionEvent, SubmissionState
from flux2_async.session.forecast import Forecast
from flux2_async.session.sender import Sender
from flux2_async.session.shared import Shared
from flux2_async.session.submission import Asked, Submission
from flux2_async.tasks.durations import expected

# The turn of a group of which nobody waits in a queue yet.
LAST: Final = (2, 0)


@attrs.frozen(eq=False, repr=False)
class Outlook:
    """What is expected as things are at one moment.

    Args:
        submissions: Those that have not ended, in order.
        coming: What was enqueued and is no submission yet, in order.
        sender: Who sends them.
        shared: What they share.
        now: The loop's time.
    """

    _submissions: Collection[Submission]
    _coming: Collection[Asked]
    _sender: Sender
    _shared: Shared
    _now: float

    def position(self, submission: Submission | None, asked: Asked) -> int:
        """Count the submissions that wait and go before one as things are now, or before one that is yet to be.

        Exact while all have one priority, or are of one group; else by the turns as they stand.
        """
        waiting = [each for each in self._submissions if each.state is SubmissionState.QUEUED]
        ranks = {each.asked: _rank(each, number, self._now) for number, each in enumerate(waiting)}
        for number, coming in enumerate(self._coming, len(waiting)):
            ranks[coming] = True, 2, -coming.priority, number
            if coming is asked:
                # A slot that is free is taken by who comes first.
                break
        if submission is not None and submission in self._submissions:
            asked = submission.asked
        own = ranks.get(asked, (True, 2, -asked.priority, len(ranks)))
        highest = max([asked.priority, *(each.priority for each in ranks)])
        own_level = _level(own, asked.priority, highest)
        ahead = before = 0
        others: Counter[str | None] = Counter()
        for each, rank in ranks.items():
            level = _level(rank, each.priority, highest)
            if each.group != asked.group and level == own_level:
                others[each.group] += 1
            elif rank < own if each.group == asked.group else level < own_level:
                ahead += 1
                before += level == own_level
        turns = {each: (2, turn) for turn, each in enumerate(dict.fromkeys(each.group for each in self._coming))}
        turns |= self._sender.turns()
        own_turn = turns.get(asked.group, LAST)
        return ahead + sum(min(count, before + (turns.get(name, LAST) < own_turn)) for name, count in others.items())

    def starts_in(self, position: int) -> float | None:
        """Give the seconds until a submission is sent that has so many before it; None: not known."""
        forecast = self._forecast(position + 1)
        return None if forecast is None else forecast.start

    def remaining(self, more: int, most: float) -> float | None:
        """Give the seconds until all has ended, and `more` of the same kinds; at most `most` of them run at once."""
        waiting = sum(each.state is SubmissionState.QUEUED for each in self._submissions)
        forecast = self._forecast(waiting + more, most)
        return None if forecast is None else forecast.end

    def expectation(self, request: Request, position: int | None, waited: float) -> Expectation:
        """Give what is expected of a submission that is no task yet: None, it does not wait for its turn."""
        wait = 0.0 if position is None else self.starts_in(position)
        if wait is None:
            return Expectation(elapsed=waited)
        whole = expected(self._shared.watcher.durations(request), 0.0).after(waited + wait)
        return attrs.evolve(whole, elapsed=waited, fraction=waited / whole.median if whole.median else None)

    def _forecast(self, count: int, most: float = math.inf) -> Forecast | None:
        if (known := self._sender.supply()) is None:
            return None
        supply, places = known
        durations, running = [], self._shared.watcher.running()
        for each in self._submissions:
            if each.state is SubmissionState.QUEUED:
                durations.append(self._shared.watcher.durations(each.request))
            elif not each.ended:
                running.append((self._shared.watcher.durations(each.request), 0.0))
        return Forecast(
            count,
            supply,
            now=self._now,
            running=running,
            places=min(places, most),
            lag=self._shared.watcher.lag,
            durations=durations or [kind for kind, _ in running] or self._shared.watcher.all_durations(),
        )


def _rank(submission: Submission, number: int, now: float) -> tuple[bool, int, float, int]:
    """Where one stands among those of its group that wait: the order of `WaitQueue`, those with a slot first."""
    if submission.last in (SubmissionEvent.THROTTLED, SubmissionEvent.LEASE_ENDED):
        return False, 0, -submission.asked.priority, number
    started = submission.patience.started
    if started + IMPATIENT_AFTER <= now:
        return not submission.has_slot, 1, started, number
    return not submission.has_slot, 2, -submission.asked.priority, number


def _level(rank: tuple[bool, int, float, int], priority: int, highest: int) -> int:
    """Within which others it takes turns: those that go first, all of top priority, or of a lower one."""
    return min(rank[1], 1) if rank[1] < 2 else 1 + highest - priority  # noqa: PLR2004  see `_rank`
