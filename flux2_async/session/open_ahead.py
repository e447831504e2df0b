"""Connections for submissions that wait for a permit, opened so that they are there when the permit is."""

import asyncio
import math

from flux2_async._http.transport import Transport
from flux2_async._limiter.limiter import Limiter


class OpenAhead:
    """Opens a connection for each permit that is free soon and that somebody waits for, and no other.

    It is of no use to a limiter that processes share, which does not know who has the next permit.
    """

    def __init__(self, limiter: Limiter, transport: Transport) -> None:
        self._limiter = limiter
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        limiter.on_wait = self._open_next

    def close(self) -> None:
        """Open nothing more."""
        self._limiter.on_wait = None
        self._wait(math.inf)

    def _open_next(self, now: float = -math.inf) -> None:
        # A loop may call a clock tick early; asking again for the same instant would spin.
        now = max(now, self._loop.time())
        connections = self._transport.submit_connections
        for number in range(connections.ahead, self._limiter.waiting):
            at = self._limiter.free_at(number) - connections.lead
            if at > now:
                self._wait(at)
                return
            if not connections.open_ahead():
                break
        self._wait(math.inf)

    def _wait(self, until: float) -> None:
        if until == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = until
        self._timer = self._loop.call_at(until, self._on_timer, until) if until < math.inf else None

    def _on_timer(self, when: float) -> None:
        self._timer, self._timer_at = None, math.inf
        self._open_next(when)
