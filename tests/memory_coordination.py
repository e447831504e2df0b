"""A coordination in memory: the real rules, the loop's clock, and a switch that makes it unreachable."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

from flux2_async.coordination import key_state
from flux2_async.coordination.account_state import Book, Known, Reply
from flux2_async.coordination.contract import (
    Answer,
    Claim,
    Coordination,
    Coordinator,
    KeyEntry,
    Message,
    Settlement,
    Terms,
)
from flux2_async.coordination.key_state import KeyRow
from flux2_async.errors import CoordinationError


class Memory(Coordination):
    """What a server would keep. One object is the coordination of several sessions.

    Attributes:
        down: Nothing can be asked.
        mute: What one process tells the others is lost.
        lost_answers: So many of the next answers are lost on their way back.
        lost_reservations: Likewise, of answers about keys.
        rtt: Seconds that a question takes.
        asks: How many questions for permits there were.
        joins: How many tries to take part there were.
        held: What processes declared when they joined.
    """

    def __init__(self, *, on_failure: Literal["degrade", "fail"] = "degrade", rtt: float = 0.001) -> None:
        self.on_failure = on_failure
        self.rtt = rtt
        self.down = self.mute = False
        self.lost_answers = 0
        self.lost_reservations = 0
        self.asks = 0
        self.joins = 0
        self.held: list[float] = []
        self.book: Book | None = None
        self.epochs = itertools.count(1)
        self.peers = itertools.count(1)
        self.rows: dict[str, KeyRow | None] = {}
        self.keys: dict[str, str] = {}
        self.seats: list[Seat] = []

    def coordinator(self, account: str, terms: Terms, on_message: Callable[[Message], None]) -> "Seat":
        seat = Seat(self, terms, on_message)
        self.seats.append(seat)
        return seat

    def empty(self) -> None:
        """Lose everything."""
        self.book, self.rows, self.keys = None, {}, {}

    def shared(self, terms: Terms, now: float) -> Book:
        if self.book is None:
            self.book = Book(f"e{next(self.epochs)}", terms, now)
        return self.book

    def say(self, sender: "Seat", message: Message) -> None:
        for seat in self.seats:
            if seat is not sender and not self.mute:
                asyncio.get_running_loop().call_later(self.rtt, seat.on_message, message)


class Seat(Coordinator):
    def __init__(self, memory: Memory, terms: Terms, on_message: Callable[[Message], None]) -> None:
        self.memory, self.terms, self.on_message = memory, terms, on_message
        self.name = f"seat{len(memory.seats)}-{next(memory.peers)}"
        self.known, self.peer, self.closed = Known(), "", False

    async def _travel(self) -> float:
        await asyncio.sleep(self.memory.rtt)
        if self.memory.down:
            raise CoordinationError("the memory is down")
        return asyncio.get_running_loop().time()

    async def _back(self) -> None:
        await asyncio.sleep(self.memory.rtt)
        if self.memory.lost_answers:
            self.memory.lost_answers -= 1
            raise CoordinationError("the answer was lost")

    async def _answer(self, reply: Reply | None) -> Answer:
        await self._back()
        if reply is None:
            raise CoordinationError("forgotten")
        self.known = reply.known
        return reply.answer

    async def open(self) -> None:
        await self._travel()

    async def join(self, held: Sequence[float] = (), keeps: Sequence[str] = (), alone: float = 0.0) -> Answer:
        self.memory.joins += 1
        now = await self._travel()
        self.memory.held += held
        self.peer = f"{self.name}.{next(self.memory.peers)}"
        book = self.memory.shared(self.terms, now)
        reply = book.join(
            self.peer, self.known, now, terms=self.terms, held=held, replaces=f"{self.name}.", keeps=keeps, alone=alone
        )
        if reply is not None:
            self.memory.say(self, Message("peers", peers=reply.answer.peers))
        return await self._answer(reply)

    async def acquire(self, want: int, *, first: bool = False) -> Answer:
        self.memory.asks += 1
        now = await self._travel()
        book = self.memory.shared(self.terms, now)
        return await self._answer(book.acquire(self.peer, self.known, want, now, first=first))

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        now = await self._travel()
        news = [self.memory.shared(self.terms, now).settle(told, now) for told in settlements]
        if pause := max((pause for pause, _ in news), default=0.0):
            self.memory.say(self, Message("pause", seconds=pause))
        if any(wake for _, wake in news):
            self.memory.say(self, Message("wake"))
        await self._back()

    async def publish(self, message: Message) -> None:
        await self._travel()
        self.memory.say(self, message)

    async def look(self, key: str) -> KeyEntry | None:
        return key_state.view(self.memory.rows.get(key), await self._travel())

    async def reserve(self, claim: Claim) -> KeyEntry | None:
        now = await self._travel()
        rows = self.memory.rows
        rows[claim.key], entry = key_state.reserve(rows.get(claim.key), claim, now, lease=self.terms.lease)
        self.memory.keys.setdefault(claim.ref, claim.key)
        if self.memory.lost_reservations:
            self.memory.lost_reservations -= 1
            self.memory.lost_answers = 1
        await self._back()
        return entry

    async def bind(self, claim: Claim, task_id: str) -> None:
        now = await self._travel()
        self._write(claim.key, key_state.bind(self.memory.rows.get(claim.key), claim, task_id, now))

    async def doubt(self, claim: Claim) -> None:
        now = await self._travel()
        self._write(claim.key, key_state.doubt(self.memory.rows.get(claim.key), claim, now))

    async def free(self, claim: Claim) -> None:
        await self._travel()
        self._write(claim.key, key_state.free(self.memory.rows.get(claim.key), claim))

    async def unknown_in(self, ref: str) -> float | None:
        entry = await self.look(self.memory.keys.get(ref, ""))
        return entry.wait if entry and entry.state != "bound" else None

    async def resolve(self, ref: str, task_id: str) -> None:
        now = await self._travel()
        key = self.memory.keys.get(ref, "")
        self._write(key, key_state.resolve(self.memory.rows.get(key), ref, task_id, now))

    async def aclose(self) -> None:
        self.closed = True
        self.memory.seats.remove(self)
        if self.memory.book is not None and not self.memory.down:
            self.memory.book.leave(self.peer, asyncio.get_running_loop().time())

    def _write(self, key: str, row: KeyRow | None) -> None:
        self.memory.rows[key] = row
        self.memory.say(self, Message("key", key=key))
