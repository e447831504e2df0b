"""A session's membership among the processes that share an account: joined, or away and on the way back.

Every failure to reach the shared state ends here. The first one makes the session a non-member at once; from then on
it tries to join, first without delay, since a connection that broke is no outage, then ever less often.
"""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, ParamSpec, Protocol, TypeVar

from flux2_async.coordination.contract import Answer, Message, Settlement
from flux2_async.coordination.coordinator import Coordinator
from flux2_async.coordination.store import HopelessError, finish
from flux2_async.errors import ConfigurationError, CoordinationError, Flux2Error

P = ParamSpec("P")
T = TypeVar("T")

logger: logging.Logger = logging.getLogger("flux2_async")

FIRST_RETRY: Final = 0.05
LAST_RETRY: Final = 2.0
# More questions at once would only queue elsewhere.
MAX_QUESTIONS: Final = 8
# When a session that could not join at first heard of the others last.
NEVER: Final = -1e9


class Member(Protocol):
    """Who is to be a member: what it has, and what it is told."""

    def possessions(self) -> tuple[Sequence[Settlement], Sequence[str]]:
        """Give what `Coordinator.join` has to be told: `held` and `keeps`."""
        ...

    def on_joined(self, answer: Answer, /) -> None:
        """Hear the answer with which it became a member."""

    def on_lost(self) -> None:
        """Hear that it is none any more."""


class Membership:
    """Asks a coordinator and keeps the session a member; `patience`: seconds between two tries to join at most.

    Attributes:
        joined: Whether the session is a member.
        term: Counts memberships; an answer to a question of an earlier one must not be used.
    """

    def __init__(self, coordinator: Coordinator, member: Member, *, patience: float = LAST_RETRY) -> None:
        self._coordinator = coordinator
        self._member = member
        self._patience = min(patience, LAST_RETRY)
        self._loop = asyncio.get_running_loop()
        # Infinity before it tries to join for the first time.
        self._heard_at = math.inf
        self._rejoining: asyncio.Task[None] | None = None
        self._questions = asyncio.Semaphore(MAX_QUESTIONS)
        # What `open` does, until it was done.
        self._begin: Callable[[], Awaitable[None]] | None = None
        self._warned = ""
        self._closed = False
        self.joined: bool = False
        self.term: int = 0

    async def open(self, on_message: Callable[[Message], None]) -> None:
        """Join, or begin to try; see `Coordinator.open`.

        Raises:
            ConfigurationError: It can never work.
        """
        self._begin = partial(self._coordinator.open, on_message)
        try:
            await self._join()
        except CoordinationError as error:
            self._warn(error)
            self._heard_at = NEVER
            self._rejoin_soon()

    async def ask(self, question: Callable[P, Awaitable[T]], *args: P.args, **options: P.kwargs) -> T:
        """Ask the shared state something, by a method of the coordinator.

        Raises:
            CoordinationError: It cannot be asked, or the session was no member any more when the answer came.
        """
        async with self._questions:
            if not self.joined:
                raise CoordinationError(
                    "the shared state of this account cannot be asked at the moment; nothing was sent, try again later"
                )
            term, begun = self.term, self._loop.time()
            try:
                answer = await question(*args, **options)
            except CoordinationError:
                if term == self.term:
                    self.joined = False
                    self.term += 1
                    self._member.on_lost()
                    self._rejoin_soon()
                raise
        if term != self.term:
            raise CoordinationError("the connection to the shared state was lost while it was asked; try again")
        self._heard_at = max(self._heard_at, begun)
        return answer

    async def aclose(self) -> None:
        """Leave for good."""
        self._closed = True
        self.joined = False
        await finish(self._rejoining)
        await self._coordinator.aclose()

    def _rejoin_soon(self) -> None:
        if not self._closed and (self._rejoining is None or self._rejoining.done()):
            self._rejoining = self._loop.create_task(self._rejoin(), name="flux2_async rejoin")

    async def _rejoin(self) -> None:
        wait = FIRST_RETRY
        while not self.joined:
            try:
                await self._join()
            except (CoordinationError, ConfigurationError) as error:
                self._warn(error)
                # All processes lost it at the same moment and need not come back at the same.
                await asyncio.sleep(wait * (0.5 + random.random()))  # noqa: S311  it spreads in time, it guards nothing
                wait = min(2 * wait, self._patience)

    async def _join(self) -> None:
        if self._begin is not None:
            await self._begin()
            self._begin = None
        held, keeps = self._member.possessions()
        now = self._loop.time()
        # Others may have noticed earlier than this session, but none before it heard the last answer.
        answer = await self._coordinator.join(held, keeps, alone=max(now - self._heard_at, 0.0))
        self.joined, self._heard_at = True, now
        if self._warned:
            self._warned = ""
            logger.info("the shared state of this account is back")
        self._member.on_joined(answer)
        await self._coordinator.tell(Message("peers", rates=answer.rates, peers=answer.peers))

    def _warn(self, error: Flux2Error) -> None:
        # An outage that has passed must not hide what waiting does not help.
        hopeless = isinstance(error, ConfigurationError | HopelessError)
        if not self._warned or (hopeless and self._warned != str(error)):
            self._warned = str(error)
            logger.warning("%s; until it is back submissions keep to a safe share, and those with a key fail", error)
