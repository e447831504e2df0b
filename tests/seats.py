"""Processes that share a state, as the tests drive them, and when a permit comes back to them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import attrs

from flux2_async._limiter.permit import PermitEvent
from flux2_async._limiter.window import CLOCK_MARGIN
from flux2_async.coordination.contract import Answer, Claim, Message, Settlement
from flux2_async.coordination.coordinator import Coordinator

PERIOD = 10.0
BACK = PERIOD * CLOCK_MARGIN
CLAIM = Claim("k" * 64, "f" * 64, "ref-1", "claim-1")


@attrs.define
class Seat:
    """A coordinator, the name under which it listens, what it has heard, and what it was told when it joined."""

    coordinator: Coordinator
    name: str = ""
    heard: list[Message] = attrs.field(factory=list)
    joined: Answer | None = None

    async def take(self, want: int) -> tuple[str, ...]:
        return (await self.coordinator.acquire(want)).leases

    async def settle(self, lease: str, event: PermitEvent, ago: float = 0.0, pause: float = 0.0) -> None:
        await self.coordinator.settle([Settlement(lease, event, ago, pause)])


@asynccontextmanager
async def taken(seats: Sequence[Seat]) -> AsyncIterator[Sequence[Seat]]:
    """Let all of them join, and leave in the end."""
    async with AsyncExitStack() as stack:
        for seat in seats:
            stack.push_async_callback(seat.coordinator.aclose)
            await seat.coordinator.open(seat.heard.append)
            seat.joined = await seat.coordinator.join()
        yield seats
