"""What submissions may cost: reserved before a POST, settled by the record of the task.

It is told in the loop, by the sender before a POST and by the transitions after it, and as an observer when a task has
ended. With other processes every amount is told as what this one has in all, so that to say it twice changes nothing.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from flux2_async.coordination.budget_state import TOLD_EVERY
from flux2_async.errors import (
    BudgetExceededError,
    ConfigurationError,
    CoordinationError,
    EmptyResultError,
    TaskFailedError,
)
from flux2_async.models.budget import Budget
from flux2_async.models.events import SessionEvent, Settled
from flux2_async.models.records import TaskRecord, TaskState
from flux2_async.models.spending import Kind, Ledger, Reservation
from flux2_async.models.submission_state import SubmissionEvent, SubmissionState
from flux2_async.session.submission import Submission
from flux2_async.tasks.handle import ImageTask

if TYPE_CHECKING:
    from flux2_async.coordination.client import Sharing

# Ledgers of groups that have nothing to tell are looked for when there are twice as many as the last time.
FEW: Final = 64
# Of more that are unclear or were given up the oldest stay reserved, whatever is told of them.
MAX_UNCLEAR: Final = 4096

Held = tuple[Reservation, ...]


class Budgets:
    """The budgets of a session.

    Args:
        budgets: All of them; a request has to be within each that it falls under.
    """

    def __init__(self, budgets: Iterable[Budget]) -> None:
        self._budgets = tuple(budgets)
        self._member = secrets.token_hex(6)
        self._prices: dict[Kind, float] = {}
        self._ledgers: dict[tuple[int, str | None], Ledger] = {}
        self._many = FEW
        # Until it is known what they cost.
        self._held: dict[Submission, Held] = {}
        self._tasks: dict[str, Submission] = {}
        # The oldest first, with the task that was given up.
        self._unclear: dict[Submission, str | None] = {}
        self._sharing: Sharing | None = None
        self._turn = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._to_tell: set[Ledger] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, sharing: "Sharing | None") -> None:
        """Go on in the running event loop, with these others."""
        self._sharing, self._turn, self._loop = sharing, asyncio.Lock(), asyncio.get_running_loop()
        self._to_tell.clear()
        if sharing is not None:
            sharing.coordinator.on_loss = self._tell_all

    def go_on_telling(self) -> None:
        """Tell of all budgets again and again: what this session spent counts as long as it is open."""
        assert self._loop is not None  # noqa: S101  it has begun
        self._tell_all()
        self._timer = self._loop.call_later(TOLD_EVERY, self.go_on_telling)

    def end_telling(self) -> None:
        """Leave the others."""
        if self._timer is not None:
            self._timer.cancel()

    async def reserve(self, submission: Submission) -> bool:
        """Count a submission that is to be sent; one with a claim not before `confirm`.

        Returns:
            Whether to go on; False: another process sends it, which may be what leaves too little.

        Raises:
            BudgetExceededError: It might exceed a budget.
            CoordinationError: What the others have spent may be too much, and they cannot be asked.
        """
        claim = submission.claim
        if claim is None or submission.doubt is not None:
            await self._reserve(submission)
            return True
        for is_last in (False, True):
            try:
                await self._with_room(submission)
                break
            except BudgetExceededError:
                # Whoever counts it has its key, and may have given back both meanwhile.
                if await claim.is_taken():
                    return False
                if is_last:
                    raise
        return True

    async def _reserve(self, submission: Submission) -> None:
        found = () if submission in self._held else await self._with_room(submission)
        # A callback may have named its task meanwhile.
        if found and not submission.known:
            held = self._held[submission] = tuple(ledger.reserve(_kind(submission)) for ledger in found)
            if submission.state is SubmissionState.UNKNOWN:
                self._mark_unclear(submission, held)

    async def _with_room(self, submission: Submission) -> list[Ledger]:
        """Give its ledgers where all have room for it; raises as `reserve` does."""
        kind, group = _kind(submission), submission.group
        found = [self._ledger(number, group) for number in self._of(group)]
        for ledger in found if self._sharing is not None else ():
            # Nothing was heard of the others, or it may be out of date: what they leave no room for would be reserved
            # until its turn, and keep out what fits.
            if not (fits := ledger.fits(kind, _now())) or not ledger.heard:
                await self._share(ledger, again=not fits)
        for ledger in found:
            if not ledger.fits(kind, _now()):
                raise _exceeded(ledger, kind, group)
        return found

    async def confirm(self, submission: Submission) -> None:
        """Count it if it is not counted yet, and let the other processes know, immediately before the POST.

        Raises:
            BudgetExceededError: With what they have spent it might exceed a budget.
            CoordinationError: They cannot be asked.
        """
        await self._reserve(submission)
        for each in self._held.get(submission, ()) if self._sharing is not None else ():
            if not await self._share(each.ledger, each.ledger.price(each.kind)):
                # At once: what others of this process tell next would count it again.
                self._release(submission)
                raise _exceeded(each.ledger, each.kind, submission.group)

    async def give_back(self, submission: Submission) -> None:
        """Count it no more, and let the other processes know before its key is free: one of them may send it."""
        for each in self._release(submission):
            with suppress(CoordinationError):
                await self._share(each.ledger)

    def ended(self, submission: Submission, event: SubmissionEvent, task: ImageTask | None) -> None:
        """Hear how a submission ended, or that its end is another one."""
        held = self._held.get(submission)
        if held is None:
            return
        self._unclear.pop(submission, None)
        if submission.state is SubmissionState.UNKNOWN:
            self._tasks = {task_id: each for task_id, each in self._tasks.items() if each is not submission}
            self._mark_unclear(submission, held)
        elif task is not None and (event is SubmissionEvent.ACCEPTED or held[0].state == "unclear"):
            self._tasks[task.id] = submission
            if task.done():
                # Its callback was faster than the answer.
                self._settled(task.id, task.record)
        else:
            # Nothing was sent, or it was refused.
            self._release(submission)

    def __call__(self, event: SessionEvent) -> None:
        """Hear that a task was settled."""
        if isinstance(event, Settled):
            record = event.result.record if event.result is not None else None
            if isinstance(event.error, TaskFailedError | EmptyResultError):
                record = event.error.record
            self._settled(event.task_id or "", record)

    def _release(self, submission: Submission) -> Held:
        held = self._held.pop(submission, ())
        for each in held:
            each.ledger.release(each)
            self._tell(each.ledger)
        return held

    def _settled(self, task_id: str, record: TaskRecord | None) -> None:
        submission = self._tasks.get(task_id)
        if submission is None:
            return
        held = self._held[submission]
        if record is None or not record.state.final:
            # It goes on at the service, or nobody knows; it may be watched again.
            self._mark_unclear(submission, held, task_id)
            return
        del self._tasks[task_id], self._held[submission]
        self._unclear.pop(submission, None)
        for each in held:
            each.ledger.pay(each, record.credits_consumed, _now(), failed=record.state is TaskState.FAIL)
            self._tell(each.ledger)

    def _mark_unclear(self, submission: Submission, held: Held, task_id: str | None = None) -> None:
        self._unclear.pop(submission, None)
        self._unclear[submission] = task_id
        for each in held:
            if each.state != "unclear":
                each.ledger.mark_unclear(each, _now())
                self._tell(each.ledger)
        if len(self._unclear) > MAX_UNCLEAR:
            oldest = next(iter(self._unclear))
            self._tasks.pop(self._unclear.pop(oldest) or "", None)
            del self._held[oldest]

    def _of(self, group: str | None) -> list[int]:
        return [number for number, budget in enumerate(self._budgets) if budget.group in (None, True, group)]

    def _ledger(self, number: int, group: str | None) -> Ledger:
        budget = self._budgets[number]
        key = number, group if budget.group is True else None
        if (ledger := self._ledgers.get(key)) is None:
            if len(self._ledgers) >= 2 * self._many:
                now = _now()
                # What was given up may still be told of, to the ledger that the others know.
                needed = {reservation.ledger for held in self._held.values() for reservation in held}
                self._ledgers = {
                    each: found for each, found in self._ledgers.items() if found in needed or not found.is_empty(now)
                }
                self._many = max(len(self._ledgers), FEW)
            whose = "all" if budget.group is None else f"group {group if budget.group is True else budget.group}"
            name = hashlib.sha256(f"{budget.per} {whose}".encode()).hexdigest()[:32]
            ledger = self._ledgers[key] = Ledger(budget, self._prices, name)
        return ledger

    # --- Other processes ---

    async def _share(self, ledger: Ledger, price: float = 0.0, *, again: bool = True) -> bool:
        """Tell what this process has spent and reserved, and hear of the others; whether `price` of it is within.

        `again`: also where they were heard meanwhile.
        """
        assert self._sharing is not None  # noqa: S101  both callers have looked
        # One at a time: what was seen before something was reserved must not be told after it.
        async with self._turn:
            if ledger.heard and not again:
                return True
            told = ledger.name, self._member, ledger.snapshot(_now())
            fits, ledger.elsewhere = await self._sharing.membership.ask(
                self._sharing.coordinator.spend, *told, ledger.budget, price
            )
            ledger.heard = True
        return fits

    def _tell_all(self) -> None:
        for ledger in self._ledgers.values():
            if not ledger.is_empty(_now()):
                self._tell(ledger)

    def _tell(self, ledger: Ledger) -> None:
        # What an event loop that was closed has left behind is told by what is told next.
        if self._sharing is not None and ledger not in self._to_tell and asyncio.get_running_loop() is self._loop:
            self._to_tell.add(ledger)
            self._sharing.tell_later(partial(self._tell_now, ledger))

    async def _tell_now(self, ledger: Ledger) -> None:
        self._to_tell.discard(ledger)
        await self._share(ledger)


def checked_budgets(value: Any) -> tuple[Budget, ...]:
    """Give one budget, or several, as several.

    Raises:
        ConfigurationError: They are none; the text names what was given and what is allowed.
    """
    given = tuple(value) if isinstance(value, Iterable) else (value,)
    for each in given:
        if not isinstance(each, Budget):
            raise ConfigurationError(f"budget: {type(each).__name__} given, it must be Budget(...), or a list of them")
    return given


def _now() -> float:
    return asyncio.get_running_loop().time()


def _kind(submission: Submission) -> Kind:
    return submission.request.model, submission.request.resolution


def _exceeded(ledger: Ledger, kind: Kind, group: str | None) -> BudgetExceededError:
    return BudgetExceededError(
        budget=ledger.budget,
        group=group,
        spent=ledger.spent,
        reserved=ledger.reserved,
        price=ledger.price(kind),
        retry_after=None if ledger.budget.per is None else ledger.fits_after(kind, _now()),
    )
