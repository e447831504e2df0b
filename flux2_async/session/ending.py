"""How a submission ends, or that its end is another one, told in one order to all who keep it."""

from typing import TYPE_CHECKING, Final

import attrs

from flux2_async.models.submission_state import SubmissionEvent, SubmissionState
from flux2_async.session.keys import Keys
from flux2_async.session.submission import Submission
from flux2_async.session.task_ids import TaskIds
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.observers import Observers

if TYPE_CHECKING:
    from flux2_async.session.budgets import Budgets

KEPT: Final = frozenset({SubmissionState.ACCEPTED, SubmissionState.UNKNOWN})


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Keepers:
    """Those who keep submissions that have ended."""

    keys: Keys
    task_ids: TaskIds
    observers: Observers
    budgets: "Budgets | None" = None

    def end(
        self,
        submission: Submission,
        event: SubmissionEvent,
        *,
        task: ImageTask | None = None,
        error: Exception | None = None,
        named: str | None = None,
    ) -> None:
        """An event that ends it; `named`: the id of the task that it is about, where it has no task after it."""
        submission.end(event, task=task, error=error)
        if self.budgets is not None:
            self.budgets.ended(submission, event, task)
        if submission.state in KEPT:
            # It was accepted, or may have been, so it keeps its key.
            self.keys.ended(submission)
        else:
            # After the budgets: who has the key next is to find room.
            if submission.claim is not None:
                submission.claim.freed()
            if submission.key is not None:
                self.keys.free(submission.key, submission)
        self.observers.stepped(submission.asked, submission.state, event, error, task.id if task is not None else named)
