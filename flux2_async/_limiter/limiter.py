"""Gate (paused until) and window (starts per period): who may send now. Knows no HTTP.

Why the window is never refused, and what it learns when it is nevertheless, stands in `window`; how tasks queue in
`queue`. All times are those of the running loop, nothing runs in the background but one timer each.
"""

import asyncio
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Unpack

from flux2_async._limiter.permit import DROPPED, THROTTLED, Permit, PermitEvent
from flux2_async._limiter.queue import Waiter, Wish
from flux2_async._limiter.slots import Slots
from flux2_async._limiter.turnstile import Turnstile
from flux2_async._limiter.window import MAX_PAUSE, Supply
from flux2_async._limiter.windows import Tickets, Windows, rates_of, tightest
from flux2_async.errors import RateLimitedError
from flux2_async.models import RateLimit
from flux2_async.models.settings import Told


class Gate(Turnstile[Permit]):
    """The queue for permits, whoever gives them, and the pause that a 429 asks of all who wait.

    Attributes:
        waiting: Tasks that wait for a permit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._until = -math.inf
        self._slots: Slots | None = None

    def follow(self, slots: Slots) -> None:
        """Tell it who has a permit, and let nobody through whom it has no room for."""
        self._slots = slots
        slots.on_room = self._on_room

    @property
    @abstractmethod
    def learned_limit(self) -> int | None:
        """Starts per period that 429s have taught, or None while the configured limit holds."""

    @abstractmethod
    def pause(self, seconds: float) -> None:
        """Close the gate for at least so long from now (at most an hour); a longer pause stays. Call it in the loop."""

    @property
    def paused_until(self) -> float | None:
        """Loop time at which the gate opens, or None when it is open."""
        return self._until if self._loop and self._until > self._loop.time() else None

    def believe(self, told: Iterable[Told]) -> None:
        """Keep to what the service tells of its limits, where that is less."""

    def supply(self) -> Supply | None:
        """When there will be permits, as far as is known; None: it is not."""
        return None

    @property
    def places(self) -> float:
        """How many tasks may run in this session; infinity where that is its own affair."""
        return math.inf

    def take(self, group: str | None) -> Permit | None:  # noqa: ARG002  of use to who need not ask others
        """Give a permit where one is free and nobody waits, as `acquire` does then, for less; else None."""
        return None

    async def acquire(self, *, first: bool = False, **wish: Unpack[Wish]) -> Permit:
        """Wait for a permit. Does not yield to the loop when one is free and nobody waits.

        Args:
            first: Before everybody else: a submission that was refused by 429.
            **wish: See `Wish`.

        Returns:
            The permit, to be settled when the request has been answered.

        Raises:
            RateLimitedError: `max_wait` ran out, or the gate stays closed for longer, which is told at once.
                `retry_after` is the seconds until a permit may be free, None where that is not known.
            SessionClosedError: Closed before or meanwhile.
        """
        patience = self._announce(wish.get("group"), first=first)
        return await self._pass(first=first, patience=patience, **wish)

    def _announce(self, group: str | None, *, first: bool) -> float:  # noqa: ARG002  of use to who asks others for permits
        """Hear that somebody wants a permit; give the seconds that even a shorter `max_wait` allows."""
        return 0.0

    def _settle_soon(self, settle: Callable[[PermitEvent, None], None]) -> None:
        """Settle a permit that was dropped as an unclear one."""
        # The garbage collector may run in any thread.
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle, PermitEvent.UNCLEAR, None)

    @abstractmethod
    def _next_at(self, now: float, /) -> float:
        """When the next permit may be free; infinity or a time in the past if that is not known."""

    @abstractmethod
    def _used_up(self) -> str:
        """Why there is no permit."""

    def _room(self) -> float:
        """How many may pass as far as slots are concerned."""
        return math.inf if self._slots is None else self._slots.room

    def _on_room(self) -> None:
        self._wake()

    def _close_gate(self, until: float) -> None:
        self._until = max(self._until, until)
        self._wake()

    def _blocked_until(self) -> float:
        return self._until

    def _grant(self, now: float, group: str | None, /) -> Permit:
        permit = self._permit(now)
        if self._slots is not None:
            # At once: of what is given out in one moment each takes room from the next.
            self._slots.begin(group)
        return permit

    @abstractmethod
    def _permit(self, now: float, /) -> Permit:
        """Give a permit, which is there."""

    def _take_back(self, grant: Permit, group: str | None, /) -> None:
        if self._slots is not None:
            self._slots.wait_again(group)
        grant.never_sent()

    def _too_late(self, waiter: Waiter[Permit], now: float, /) -> RateLimitedError:
        what, ready_at = self._used_up() if self._room() else "no slot is free", self._next_at(now)
        if self._until > now:
            what = f"all submissions pause for another {round(self._until - now, 3):g} s after a 429"
            ready_at = max(self._until, ready_at) if ready_at < math.inf else self._until
        return RateLimitedError(
            429,
            what,
            retry_after=ready_at - now if now < ready_at < math.inf else None,
            advice=f"max_wait={waiter.max_wait:g} s is shorter than the wait for a permit, so nothing was "
            "sent; try again after retry_after seconds, or allow a longer max_wait",
        )


class Limiter(Gate):
    """Window and gate: who may send now.

    Args:
        rate: The account's limit, or several that all hold, or None for no window; a 429 pauses everybody all the same.

    Attributes:
        waiting: Tasks that wait for a permit.
    """

    def __init__(self, rate: RateLimit | Iterable[RateLimit] | None) -> None:
        super().__init__()
        rates = rates_of(rate)
        self._rate = tightest(rates)
        self._windows = Windows(rates)

    @property
    def learned_limit(self) -> int | None:
        """See `Gate`."""
        return self._windows.learned_limit

    def pause(self, seconds: float) -> None:
        """See `Gate`."""
        self._loop = asyncio.get_running_loop()
        self._close_gate(self._loop.time() + min(seconds, MAX_PAUSE))

    def take(self, group: str | None) -> Permit | None:
        """See `Gate`."""
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        return self._grant(now, group) if not self._closed and self._is_free(now, group) else None

    def take_over(self, before: "Limiter") -> None:
        """Know what one of the same limit let through, and what it learned; that one must not be used any more."""
        self._windows, self._until = before._windows, before._until  # noqa: SLF001  of the same kind
        if before._loop is not None and before._loop.is_closed():  # noqa: SLF001  the same
            self._windows.abandon(asyncio.get_running_loop().time())

    def believe(self, told: Iterable[Told]) -> None:
        """See `Gate`."""
        for each in told:
            self._windows.believe(each, asyncio.get_running_loop().time())
        self._wake()

    def supply(self) -> Supply:
        """See `Gate`."""
        return self._windows.supply(asyncio.get_running_loop().time(), self._until)

    def free_at(self, ahead: int) -> float:
        """Loop time of the permit that comes after so many others, as far as is known; infinity where it is not."""
        if ahead >= self._room():
            return math.inf
        return max(self._until, self._windows.ready_at(asyncio.get_running_loop().time(), ahead))

    def _ready_at(self, now: float, /) -> float:
        return max(self._until, self._windows.ready_at(now)) if self._room() else math.inf

    def _permit(self, now: float, /) -> Permit:
        return Permit(partial(self._settle, self._windows.take(now)))

    def _next_at(self, now: float, /) -> float:
        return self._windows.ready_at(now)

    def _used_up(self) -> str:
        if self._rate is None:
            return f"{self.waiting} others wait"
        return f"the limit of {self.learned_limit or self._rate.limit} per {self._rate.period:g} s is used up"

    def _settle(self, ticket: Tickets, event: PermitEvent, retry_after: float | None) -> None:
        if event is DROPPED:
            self._settle_soon(partial(self._settle, ticket))
            return
        now = asyncio.get_running_loop().time()
        pause = self._windows.pause_of(retry_after, now) if event is THROTTLED else 0.0
        self._windows.settle(ticket, event, now, pause)
        if pause:
            self._close_gate(now + pause)
        self._wake()
