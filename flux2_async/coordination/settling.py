"""What became of permits, and what answers told, passed to the shared state in the background until it was heard."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import Final

import attrs

from flux2_async._limiter.permit import PermitEvent
from flux2_async.coordination.contract import Hint, Settlement
from flux2_async.coordination.coordinator import Coordinator
from flux2_async.coordination.membership import Membership
from flux2_async.coordination.store import finish
from flux2_async.errors import CoordinationError

MAX_BATCH: Final = 100
# What is not told by then expires by itself.
CLOSE_TIMEOUT: Final = 1.0


class Settling:
    """Costs a submission no waiting: `report` only notes what has to be told, as soon as there is a membership.

    Attributes:
        out: Leases of which the shared state has not heard the end.
        on_paused: Called with the loop time until which there is a pause that was news to the shared state.
    """

    def __init__(self, membership: Membership, coordinator: Coordinator) -> None:
        self._membership = membership
        self._coordinator = coordinator
        self._loop = asyncio.get_running_loop()
        # Each with the loop time at which it happened.
        self._news: deque[tuple[float, Settlement | Hint]] = deque()
        self._has_news = asyncio.Event()
        self._anew = self._closing = False
        self._job: asyncio.Task[None] | None = None
        self.out: set[str] = set()
        self.on_paused: Callable[[float], None] = lambda _: None

    def begin(self) -> None:
        """Begin to tell."""
        self._job = self._loop.create_task(self._tell(), name="flux2_async settle permits")

    def report(self, news: Settlement | Hint) -> None:
        """Tell it later."""
        self._news.append((self._loop.time() - news.ago, news))
        self._has_news.set()

    def go_on(self, *, anew: bool = False) -> None:
        """Tell what could not be told; `anew`: something, if there is no news of permits, since that tells more."""
        self._anew = self._anew or anew
        self._has_news.set()

    async def aclose(self) -> None:
        """Tell the rest, but not for long."""
        self._closing = True
        self._has_news.set()
        if self._job is not None:
            await asyncio.wait([self._job], timeout=CLOSE_TIMEOUT)
        await finish(self._job)

    async def _tell(self) -> None:
        while not self._closing:
            await self._has_news.wait()
            self._has_news.clear()
            while (self._news or self._anew) and self._membership.joined:
                self._anew = False
                batch = tuple(itertools.islice(self._news, MAX_BATCH))
                now = self._loop.time()
                told = [attrs.evolve(news, ago=max(now - at, 0.0)) for at, news in batch]
                try:
                    pause = await self._membership.ask(self._coordinator.settle, told)
                except CoordinationError:
                    break
                for _, news in batch:
                    self._news.popleft()
                    if isinstance(news, Settlement) and news.event is not PermitEvent.THROTTLED:
                        self.out.discard(news.lease)
                if pause:
                    self.on_paused(now + pause)
