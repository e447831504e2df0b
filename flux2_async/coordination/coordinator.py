"""One session's seat at the state that all processes of its account share: the rules, carried out on a `Store`.

The state of an account is one text, and each key is another, so that one change of it is one step of the rules. A
change that fails is not repeated here, since nobody knows whether it was made; who asks joins anew instead, which sets
that right: by then the text is another one, so that what arrives late compares with nothing.

Versions. All names begin with `FORMAT`, so processes of versions that keep another one do not meet these, and each of
both groups uses the whole limit. Where a store can tell that others are there, `listen` refuses to begin.
"""

import asyncio
import json
import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from flux2_async.coordination.account_state import PEER_SEEN_FOR, AccountState
from flux2_async.coordination.contract import Answer, Hint, Known, Message, Settlement, Terms, decode_message
from flux2_async.coordination.permit_queue import Asked
from flux2_async.coordination.shared_texts import SharedTexts
from flux2_async.coordination.store import Coordination, Kept, Life, finish
from flux2_async.errors import ConfigurationError, CoordinationError

T = TypeVar("T")

HEARTBEAT: Final = 20.0
# Settling is the most frequent of all, and need not look each time who has died.
SEARCH_EVERY: Final = 0.25


class Coordinator(SharedTexts):
    """What a session asks and tells; every method may raise `CoordinationError`.

    Attributes:
        running: Gives how many tasks run here of which groups.
        on_loss: Called when the shared state has forgotten what this session told.
    """

    def __init__(self, coordination: Coordination, account: str, terms: Terms) -> None:
        member = secrets.token_hex(6)
        super().__init__(coordination.store(account, member), member, terms)
        self.running: Callable[[], Mapping[str, int]] = dict
        self.on_loss: Callable[[], None] = lambda: None
        self._joins = 0
        self._known = Known()
        # When that was asked for, and when it was known.
        self._asked_at = self._known_at = 0.0
        # Lent by a question whose asker has not heard the answer yet, and may have left.
        self._unheard: tuple[str, ...] = ()
        self._search_at = -math.inf
        # A session's own questions would only be in each other's way.
        self._turn = asyncio.Lock()
        self._beating: asyncio.Task[None] | None = None
        self._beat_now = asyncio.Event()
        self._peers = 1
        self._on_message: Callable[[Message], None] = lambda _: None

    async def open(self, on_message: Callable[[Message], None]) -> None:
        """Start to listen for what others publish, see `Store.listen`; `on_message` is called in the event loop."""
        self._on_message = on_message
        await self._store.listen(self._hear)

    def elapsed(self) -> float:
        """See `Store.elapsed`."""
        return self._store.elapsed()

    async def join(self, held: Sequence[Settlement] = (), keeps: Sequence[str] = (), alone: float = 0.0) -> Answer:
        """Take part, see `AccountState.join`: at first, and again after every `CoordinationError`."""
        self._joins += 1

        def enter(state: AccountState, now: float) -> Answer | None:
            self._search(state, now)
            return self._enter(state, now, held=held, replaces=f"{self._member}.", keeps=keeps, alone=alone)

        answer = await self._ask(enter)
        if self._beating is None:
            self._beating = asyncio.get_running_loop().create_task(self._beat(), name="flux2_async heartbeat")
        return answer

    async def acquire(self, want: int, groups: Mapping[str, int] | None = None, first: Collection[str] = ()) -> Answer:
        """Ask for as many permits as can be used at once; see `AccountState.acquire`."""
        terms = self._terms
        asked: Asked = {"groups": groups, "first": first, "bound": terms.per_group, "most": terms.max_running}

        def lend(state: AccountState, now: float) -> Answer | None:
            self._search(state, now)
            answer = state.acquire(self._peer, self._known, want, now, **asked)
            if answer is None and self._joins:
                # The state was lost meanwhile, or the others thought this one gone.
                self._enter(state, now)
                answer = state.acquire(self._peer, self._known, want, now, **asked)
            self._unheard = answer.leases if answer else ()
            return answer

        answer = await self._ask(lend)
        self._unheard = ()
        return answer

    async def settle(self, news: Sequence[Settlement | Hint]) -> float:
        """Give permits back, and pass on what answers told of the limits.

        The other processes are told of a pause, and of permits that came back early.

        Returns:
            The seconds of a pause that was news, else 0.
        """

        def settle(state: AccountState, now: float) -> list[tuple[float, bool]]:
            if now >= self._search_at:
                self._search(state, now)
            return [state.believe(each, now) if isinstance(each, Hint) else state.settle(each, now) for each in news]

        answers = await self._change(settle)
        if pause := max((pause for pause, _ in answers), default=0.0):
            await self.tell(Message("pause", seconds=pause))
        if any(wakes for _, wakes in answers):
            # Not within the turn, where it would hold up questions.
            await self.tell(Message("wake"))
        return pause

    async def aclose(self) -> None:
        """Leave; never raises and never takes long."""
        try:
            await finish(self._beating)
            if self._joins:
                # Else it is forgotten in a while.
                with suppress(CoordinationError):
                    await self._change(lambda state, now: state.leave(self._peer, now, self._unheard))
        finally:
            await self._store.aclose()

    @property
    def _peer(self) -> str:
        return f"{self._member}.{self._joins}"

    @property
    def _must_say_so(self) -> bool:
        """Whether nobody can tell that this member lives."""
        return self._store.life_of(self._member) is Life.UNKNOWN

    async def _change(self, act: Callable[[AccountState, float], T]) -> T:
        """Carry out a step of the rules; give its result, of which an answer is kept in mind."""
        wakes = is_lost = False
        async with self._turn:
            asked_at = self._store.elapsed()
            # What is lent by one question is counted here before the next one begins.
            running = self.running()

            def change(text: str | None, now: float) -> Kept[tuple[T, float]]:
                nonlocal asked_at, wakes, is_lost
                # Another try begins here, if somebody else was faster.
                begun, asked_at = asked_at, self._store.elapsed()
                state = self._load(text, now)
                time = state.tell_time(now, self._known, begun - self._asked_at, begun - self._known_at)
                is_lost = state.forgot(self._known)
                state.run(self._peer, running)
                result = act(state, time)
                wakes = state.wakes
                return Kept(json.dumps(state.dump()), state.lives_for, (result, begun))

            result, begun = await self._update("account", change)
            if isinstance(result, Answer):
                self._known, self._asked_at, self._known_at = result.known, begun, asked_at
                self._peers = result.peers
                if is_lost:
                    self.on_loss()
                    # Who asks for nothing has to tell anew what runs there, and what it has spent.
                    await self.tell(Message("peers", rates=result.rates, peers=result.peers))
            if wakes:
                # Within the turn: what was lent is used, and counted as running, before the next one begins.
                await self.tell(Message("wake"))
        return result

    async def _ask(self, question: Callable[[AccountState, float], Answer | None]) -> Answer:
        if (answer := await self._change(question)) is None:
            raise CoordinationError("this session has not joined the others of its account")
        return answer

    def _load(self, text: str | None, now: float) -> AccountState:
        if text is None:
            return AccountState(secrets.token_hex(8), self._terms, now)
        try:
            return AccountState.load(json.loads(text))
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, ConfigurationError) as error:
            raise CoordinationError(
                "the shared state of this account cannot be read; remove it when no process uses it"
            ) from error

    def _enter(self, state: AccountState, now: float, **options: Any) -> Answer | None:
        # Who can be asked whether it lives need not say so.
        seen_for = PEER_SEEN_FOR if self._must_say_so else math.inf
        return state.join(self._peer, self._known, now, terms=self._terms, seen_for=seen_for, **options)

    def _search(self, state: AccountState, now: float) -> None:
        """Find out who has died."""
        self._search_at = now + SEARCH_EVERY
        for peer in state.peers():
            match self._life_of(peer):
                case Life.DEAD:
                    state.died(peer, now)
                case Life.GONE:
                    # It may live, so what it has borrowed is left to expire.
                    state.leave(peer, now)

    async def _beat(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT if self._must_say_so else None):
                    await self._beat_now.wait()
            self._beat_now.clear()
            # Whoever asks next finds out what is wrong, and joins again.
            with suppress(CoordinationError):
                answer = await self._ask(
                    lambda state, now: state.touch(self._peer, self._known, now) or self._enter(state, now)
                )
                # Who asks for nothing would else not know how many there are when it has to do without the others.
                self._on_message(Message("peers", rates=answer.rates, peers=answer.peers))

    def _hear(self, line: str) -> None:
        if not line:
            # The server may be another one by now. Whoever waits should ask.
            self._beat_now.set()
            self._on_message(Message("wake"))
        elif (told := decode_message(line)) is not None and told[0] != self._member:
            if told[1].kind == "peers" and told[1].peers < self._peers:
                # This one may not be among them.
                self._beat_now.set()
            self._on_message(told[1])
