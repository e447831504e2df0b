"""Whether callbacks arrive: waits for those of finished tasks, and has tasks polled by what it finds."""

import asyncio
import logging
from typing import Final

from flux2_async.tasks.callback_trust import Insurance, Trust
from flux2_async.tasks.schedule import FixedInterval, Schedule
from flux2_async.tasks.watcher import Watcher

logger: logging.Logger = logging.getLogger("flux2_async")

# A callback that comes later after its task was seen to have ended came too late to be waited for.
MISSED_AFTER: Final = 10.0


class CallbackArrivals:
    """Earns the trust in callbacks and loses it.

    Attributes:
        trust: Whether they prove to arrive.
    """

    def __init__(self, watcher: Watcher, address: str) -> None:
        self.trust: Trust = Trust()
        self._watcher = watcher
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._insured: dict[Schedule, Schedule] = {}
        # Of tasks that a poll found finished, by the ref at whose address the callback may still come.
        self._awaited: dict[str, asyncio.TimerHandle] = {}
        self._warned = False

    def insured(self, usual: Schedule) -> Schedule:
        """Give the schedule of a task with a callback, where `usual` is that of one without."""
        # Who fixes an interval has decided how much insurance there is.
        if isinstance(usual, FixedInterval):
            return usual
        if usual not in self._insured:
            self._insured[usual] = Insurance(usual, self.trust)
        return self._insured[usual]

    def came(self, ref: str) -> None:
        """A callback came."""
        self.trust.earn()
        if (awaited := self._awaited.pop(ref, None)) is not None:
            awaited.cancel()

    def expect(self, ref: str, task_id: str) -> None:
        """A poll found a task finished before its callback came."""
        if ref not in self._awaited:
            self._awaited[ref] = self._loop.call_later(MISSED_AFTER, self._missed, ref, task_id)

    def close(self) -> None:
        """Expect nothing more."""
        for awaited in self._awaited.values():
            awaited.cancel()
        self._awaited.clear()

    def _missed(self, ref: str, task_id: str) -> None:
        """Poll as without callbacks from now on, because one did not come."""
        del self._awaited[ref]
        if not self._warned:
            self._warned = True
            logger.warning(
                "task %s is finished and its callback did not come within %.0f s; until one comes the session polls as "
                "without callbacks. Check that the service can reach %s from outside (flux2 doctor --callback-url)",
                task_id,
                MISSED_AFTER,
                self._address,
            )
        if self.trust.lose():
            self._watcher.come_back()
