"""Brings callbacks and tasks together.

The address of a callback names the submission (`ref`), its body the task. Usually both are known here and the callback
is a hint to look now. It may also come before the createTask reply, or for a submission whose reply was lost: then it
is parked, or tells which task the lost reply was about. It may come twice, late, for another process, or never.
"""

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeVar

import attrs

from flux2_async._outcome import Outcome, Waiters
from flux2_async._schedule import Schedule
from flux2_async._submission import Submission
from flux2_async._watcher import Watcher
from flux2_async.errors import SessionClosedError
from flux2_async.models import Callbacks
from flux2_async.tasks import ImageTask
from flux2_async.webhooks import Callback, public_urls, signed_url

__all__ = ["CallbackDesk", "CallbackSettings", "Insurance", "Trust"]

T = TypeVar("T")

logger = logging.getLogger("flux2_async")

# A callback that beats its createTask reply is early by seconds; one for a lost reply waits for somebody to `recover`.
MAX_PARKED: Final = 4096
PARKED_FOR: Final = 3600.0
MAX_AMBIGUOUS: Final = 4096
MAX_SETTLED: Final = 4096

# Where the documentation lets the polling slow down; a task whose callback is lost is found there.
LOOKS_OF_INSURANCE: Final = (30.0, 120.0)


@attrs.frozen
class CallbackSettings:
    """What the receivers need to know.

    Attributes:
        url: The public address, without signature.
        secret: Signs addresses.
        hmac_key: Checks the service's own signature, or None.
        confirm: Whether a record is read before a task is settled.
    """

    url: str
    secret: bytes = attrs.field(repr=False)
    hmac_key: str | None = attrs.field(repr=False)
    confirm: bool

    @classmethod
    def of(cls, callbacks: Callbacks) -> "CallbackSettings":
        """Fill up what the user left open."""
        secret = callbacks.secret.encode() if callbacks.secret is not None else secrets.token_bytes(32)
        settings = cls(callbacks.url, secret, callbacks.hmac_key, callbacks.confirm)
        # An address that cannot be signed is told when the session is made.
        signed_url(settings.url, "check", settings.secret)
        return settings


class Trust:
    """Whether callbacks prove to arrive: the share of the last tasks, about five, that a callback finished first."""

    NEWS: Final = 0.2

    def __init__(self) -> None:
        self._share = 1.0

    def __bool__(self) -> bool:
        return self._share >= 0.5  # noqa: PLR2004  more often than not

    def learn(self, *, arrived: bool) -> None:
        """Count a task."""
        self._share += self.NEWS * (arrived - self._share)


@attrs.frozen
class Insurance:
    """While callbacks can be trusted, a look at each age limit of the documentation; else the usual schedule."""

    usual: Schedule
    trust: Trust

    def wait(self, age: float, spread: float) -> float:
        """See `Schedule`."""
        if self.trust:
            for limit in LOOKS_OF_INSURANCE:
                # The spread keeps tasks of one burst apart, as it does in the usual schedule.
                if age < limit:
                    return limit * (1 + 0.1 * spread) - age
        return self.usual.wait(age, spread)

    def wait_max(self, wait: float) -> float:
        """See `Schedule`."""
        return self.usual.wait_max(wait)


class CallbackDesk:
    """Receives callbacks and brings them to their tasks.

    Args:
        settings: As the receivers know them.
        watcher: Looks at tasks, and settles them.
        usual: The schedule of tasks without a callback.
        attach: Makes a handle for a task whose createTask reply was lost.
    """

    def __init__(
        self,
        settings: CallbackSettings,
        watcher: Watcher,
        usual: Schedule,
        attach: Callable[[str], ImageTask],
    ) -> None:
        self._settings = settings
        self._watcher = watcher
        self._attach = attach
        self._loop = asyncio.get_running_loop()
        self._trust = Trust()
        self.schedule = Insurance(usual, self._trust)
        self._tasks: dict[str, ImageTask] = {}
        self._refs: dict[str, str] = {}
        self._settled: OrderedDict[str, ImageTask] = OrderedDict()
        self._ambiguous: OrderedDict[str, Submission] = OrderedDict()
        self._parked: OrderedDict[str, tuple[float, Callback]] = OrderedDict()
        self._news = Waiters()
        self._closed = False
        self.received = 0

    def address(self, ref: str) -> str:
        """Give the signed address of a submission's callback."""
        return signed_url(self._settings.url, ref, self._settings.secret)

    def accepted(self, ref: str, task: ImageTask) -> None:
        """Remember which task a submission became, and use a callback that came before."""
        self._tasks[ref] = task
        self._refs[task.id] = ref
        self._news.wake()
        until, callback = self._parked.pop(ref, (0.0, None))
        if callback is not None and until > self._loop.time():
            self._bring(task, callback)

    def ambiguous(self, submission: Submission) -> None:
        """Remember a submission whose reply was lost, and use a callback that came before."""
        self._ambiguous[submission.ref] = submission
        _shorten(self._ambiguous, MAX_AMBIGUOUS)
        _, callback = self._parked.pop(submission.ref, (0.0, None))
        if callback is not None:
            self._found(submission, callback)

    def settled(self, task: ImageTask, *, called: bool) -> None:
        """Forget an outstanding task; `called` tells whether a callback came before it was settled."""
        ref = self._refs.pop(task.id, None)
        if ref is None:
            return
        self._tasks.pop(ref, None)
        self._settled[ref] = task
        _shorten(self._settled, MAX_SETTLED)
        self._trust.learn(arrived=called)

    def deliver(self, ref: str, callback: Callback) -> None:
        """Use an authenticated callback."""
        self.received += 1
        logger.debug("callback for task %s (submission %s)", callback.task_id, ref)
        task = self._tasks.get(ref)
        if task is not None:
            self._bring(task, callback)
        elif ref in self._ambiguous:
            self._found(self._ambiguous[ref], callback)
        elif ref in self._settled:
            # A poll was faster, or this one is repeated: callbacks do arrive.
            self._trust.learn(arrived=True)
        else:
            self._park(ref, callback)
            self._watcher.hint(callback.task_id)

    async def recover(self, ref: str) -> ImageTask:
        """Wait until it is known which task a submission became.

        Raises:
            SessionClosedError: The session was closed meanwhile.
        """
        while True:
            if self._closed:
                raise SessionClosedError("the session was closed before the callback came; recover it in a new session")
            task = self._tasks.get(ref) or self._settled.get(ref)
            if task is not None:
                return task
            until, callback = self._parked.pop(ref, (0.0, None))
            if callback is not None and until > self._loop.time():
                task = self._attach(callback.task_id)
                self.accepted(ref, task)
                self._bring(task, callback)
                return task
            await self._news.wait()

    def close(self) -> None:
        """End all `recover`."""
        self._closed = True
        self._news.wake()

    def _bring(self, task: ImageTask, callback: Callback) -> None:
        record = callback.record
        own = callback.task_id == task.id
        if own and not self._settings.confirm and record is not None and record.state.final and public_urls(record):
            self._watcher.offer(task.id, record)
            return
        self._watcher.hint(task.id)
        if not own:
            logger.warning("a callback for task %s came at the address of task %s", callback.task_id, task.id)
            self._watcher.hint(callback.task_id)

    def _found(self, submission: Submission, callback: Callback) -> None:
        """Give a submission whose reply was lost its task, at once: nobody may ever ask for it."""
        del self._ambiguous[submission.ref]
        logger.info("submission %s was accepted as task %s", submission.ref, callback.task_id)
        task = self._attach(callback.task_id)
        if task.request is None:
            task.request = submission.request
        # Its key, if it has one, stands for the task from now on.
        submission.outcome = Outcome()
        submission.outcome.settle(task)
        self.accepted(submission.ref, task)
        self._bring(task, callback)

    def _park(self, ref: str, callback: Callback) -> None:
        self._parked[ref] = (self._loop.time() + PARKED_FOR, callback)
        self._parked.move_to_end(ref)
        _shorten(self._parked, MAX_PARKED)
        self._news.wake()


def _shorten(book: OrderedDict[str, T], most: int) -> None:
    while len(book) > most:
        book.popitem(last=False)
