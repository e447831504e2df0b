"""A store in memory: the loop's clock, a way that takes its time, and switches for what may happen to it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

from flux2_async.coordination.store import Change, Coordination, Kept, Store
from flux2_async.errors import CoordinationError

T = TypeVar("T")


class Memory(Coordination):
    """What a server would keep. One object is the coordination of several sessions.

    A change is also tried on the text before, as if somebody else had been faster: only its last try may count. Of the
    account's, after the first fifty every fifth is, since it takes as long as what a simulation is about.

    Attributes:
        down: Nothing can be asked.
        mute: What one process tells the others is lost.
        lost_answers: So many of the next answers are lost on their way back.
        lost_reservations: Likewise, of answers about keys.
        rtt: Seconds that a question takes.
        set_by: Seconds by which somebody has set the store's clock.
        asleep: Seconds that the machine of all sessions slept.
        counts: Whether `asks` is counted, for which each state is read twice more.
        asks: How often somebody took permits or a place in the queue.
        tries: How often somebody wanted to change the account's state.
        stores: Of the sessions that are open.
    """

    def __init__(self, *, on_failure: Literal["degrade", "fail"] = "degrade", rtt: float = 0.001) -> None:
        self.on_failure = on_failure
        self.rtt = rtt
        self.down = self.mute = self.counts = False
        self.lost_answers = self.lost_reservations = 0
        self.set_by = self.asleep = 0.0
        self.asks = self.tries = 0
        self.texts: dict[str, tuple[str, float]] = {}
        self.before: dict[str, str] = {}
        self.stores: list[MemoryStore] = []

    def store(self, account: str, member: str) -> "MemoryStore":
        del account, member
        made = MemoryStore(self)
        self.stores.append(made)
        return made

    def empty(self) -> None:
        """Lose everything."""
        self.texts = {}

    @property
    def account(self) -> dict[str, Any] | None:
        """The account's state, if there is one; of one account."""
        return next((json.loads(text) for name, (text, _) in self.texts.items() if name.endswith(":account")), None)

    @property
    def keys(self) -> list[str]:
        """What is kept of keys."""
        return [text for name, (text, _) in self.texts.items() if ":key:" in name]

    def change(self, name: str, change: Change[T]) -> T:
        now = asyncio.get_running_loop().time() + self.set_by
        text, until = self.texts.get(name, (None, now))
        text = text if until > now else None
        if name in self.before and (":key:" in name or self.tries <= 50 or self.tries % 5 == 0):
            change(self.before[name], now)
        kept = change(text, now)
        self._count(name, text, kept)
        if text is not None:
            self.before[name] = text
        if kept.text is None:
            self.texts.pop(name, None)
        elif kept.text != text:
            self.texts[name] = kept.text, now + kept.seconds
        return kept.result

    def _count(self, name: str, text: str | None, kept: Kept[Any]) -> None:
        if self.counts and name.endswith(":account") and text and kept.text:
            before, after = json.loads(text), json.loads(kept.text)
            self.asks += any(before[part] != after[part] for part in ("number", "_queue"))

    def say(self, sender: "MemoryStore", line: str) -> None:
        for store in self.stores:
            if store is not sender and not store.cut and not self.mute:
                asyncio.get_running_loop().call_later(self.rtt, store.on_line, line)


async def at_once(_: str) -> None:
    """Hold nothing up."""


class MemoryStore(Store):
    """One process's way to it, which may be cut, or held up: `held_up` is awaited with the name before a change."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.cut = memory, False
        self.held_up: Callable[[str], Awaitable[None]] = at_once
        self.on_line: Callable[[str], None] = lambda _: None

    async def listen(self, on_line: Callable[[str], None]) -> None:
        self.on_line = on_line
        self.memory.tries += 1
        await self._travel()

    async def update(self, name: str, change: Change[T]) -> T:
        memory = self.memory
        await self.held_up(name)
        memory.tries += name.endswith(":account")
        await self._travel()
        result = memory.change(name, change)
        if ":key:" in name and memory.lost_reservations:
            memory.lost_reservations -= 1
            memory.lost_answers = 1
        await asyncio.sleep(memory.rtt)
        if memory.lost_answers:
            memory.lost_answers -= 1
            raise CoordinationError("the answer was lost")
        return result

    async def publish(self, line: str) -> None:
        await self._travel()
        self.memory.say(self, line)

    async def aclose(self) -> None:
        if self in self.memory.stores:
            self.memory.stores.remove(self)

    def elapsed(self) -> float:
        return asyncio.get_running_loop().time() + self.memory.asleep

    async def _travel(self) -> None:
        await asyncio.sleep(self.memory.rtt)
        if self.memory.down or self.cut:
            raise CoordinationError("the memory is down")
