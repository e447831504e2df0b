"""What a process asks of the shared file: the book of its account and the rows of its keys, one transaction each.

The book is kept as JSON in one row, which costs less than rows of its own would. A killed process is found out by its
socket, on which nobody listens any more: the next who asks anything buries it, so that its leases count as ambiguous
from then on, and what it was sending under a key is unknown at once.
"""

import json
import math
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import attrs

from flux2_async._limiter.window import Fate
from flux2_async.coordination import key_state
from flux2_async.coordination.account_state import FORMAT, PEER_SEEN_FOR, Book, Known, Reply
from flux2_async.coordination.contract import Answer, Claim, KeyEntry, Message, Settlement, Terms
from flux2_async.coordination.host.file import HostFile
from flux2_async.coordination.host.sockets import HostSockets, Life
from flux2_async.coordination.key_state import KeyRow
from flux2_async.errors import CoordinationError

__all__ = ["HostState", "Told"]

# Settling is the most frequent of all, and need not look each time.
BURIAL_EVERY: Final = 0.25
KEY_COLUMNS: Final = "fingerprint, ref, owner, state, task_id, lapses_at, expires_at"

Told = tuple[Message, ...]
"""What the other processes are to be told, once it is written."""


@attrs.frozen
class _Page:
    """The account's book while a transaction has it, and the time."""

    book: Book
    now: float


class HostState:
    """One process's view of the shared state; from one thread.

    Args:
        file: Where it is.
        account: Whose it is.
        terms: On what terms permits are lent.
        seat: The name under which the process listens.
        sockets: Tell who lives.
    """

    def __init__(self, file: HostFile, account: str, terms: Terms, seat: str, sockets: HostSockets) -> None:
        self._file = file
        self._account = account
        self._page_name = f"{account}:{FORMAT}"
        self._terms = terms
        self._seat = seat
        self._sockets = sockets
        self._known = Known()
        # A process joins anew under another name each time.
        self._joined = 0
        self._burial_at = -math.inf
        # Lent by a question whose asker has not heard the answer yet, and may have left.
        self.undelivered: tuple[str, ...] = ()

    @property
    def _peer(self) -> str:
        return f"{self._seat}.{self._joined}" if self._joined else ""

    def join(self, held: Sequence[float], keeps: Sequence[str], alone: float) -> Answer:
        """Take part, at first or again, see `Coordinator.join`."""
        number = self._joined + 1
        with self._page() as page:
            self._bury(page)
            reply = page.book.join(
                f"{self._seat}.{number}",
                self._known,
                page.now,
                terms=self._terms,
                held=held,
                replaces=f"{self._seat}.",
                keeps=keeps,
                alone=alone,
                seen_for=self._seen_for,
            )
        return self._noted(reply, number)

    def acquire(self, want: int, *, first: bool) -> Answer:
        """Ask for permits, see `Coordinator.acquire`."""
        with self._page() as page:
            self._bury(page)
            reply = page.book.acquire(self._peer, self._known, want, page.now, first=first)
            if reply is None and self._joined:
                # The file was removed meanwhile, or the socket, so that the others thought the process gone.
                page.book.join(self._peer, self._known, page.now, terms=self._terms, seen_for=self._seen_for)
                reply = page.book.acquire(self._peer, self._known, want, page.now, first=first)
        answer = self._noted(reply, self._joined)
        self.undelivered = answer.leases
        return answer

    def settle(self, settlements: Sequence[Settlement]) -> Told:
        """Give permits back."""
        with self._page() as page:
            if page.now >= self._burial_at:
                self._bury(page)
            answers = [page.book.settle(settlement, page.now) for settlement in settlements]
        pause = max((pause for pause, _ in answers), default=0.0)
        told = (Message("pause", seconds=pause),) if pause else ()
        return (*told, Message("wake")) if any(wakes for _, wakes in answers) else told

    def leave(self) -> None:
        """Take part no more."""
        if not self._joined:
            return
        with self._page() as page:
            for lease in self.undelivered:
                page.book.settle(Settlement(lease, Fate.NEVER_SENT, 0.0), page.now)
            page.book.leave(self._peer, page.now)

    def look(self, key: str) -> KeyEntry | None:
        """Give what a key stands for."""
        with self._file.transaction() as (connection, now):
            return key_state.view(self._row(connection, key, now), now)

    def reserve(self, claim: Claim) -> KeyEntry | None:
        """Reserve a key, or give what it stands for."""
        with self._file.transaction() as (connection, now):
            connection.execute("DELETE FROM key WHERE expires_at < ?", (now,))
            row, entry = key_state.reserve(self._row(connection, claim.key, now), claim, now, lease=self._terms.lease)
            if entry is None:
                self._write(connection, claim.key, row)
            return entry

    def bind(self, claim: Claim, task_id: str) -> Told:
        """Let a reserved key stand for a task."""
        return self._change(claim.key, lambda row, now: key_state.bind(row, claim, task_id, now))

    def doubt(self, claim: Claim) -> Told:
        """Say that nobody knows whether a key's task exists."""
        return self._change(claim.key, lambda row, now: key_state.doubt(row, claim, now))

    def free(self, claim: Claim) -> Told:
        """Free a key."""
        return self._change(claim.key, lambda row, _: key_state.free(row, claim))

    def unknown_in(self, ref: str) -> float | None:
        """Give the seconds until a key that a submission reserved is unknown, or None."""
        with self._file.transaction() as (connection, now):
            entries = [key_state.view(self._row(connection, key, now), now) for key in self._keys_of(connection, ref)]
        return min((entry.wait for entry in entries if entry and entry.state != "bound"), default=None)

    def resolve(self, ref: str, task_id: str) -> Told:
        """Bind the key that a submission reserved, if nobody knows better."""
        with self._file.transaction() as (connection, _):
            keys = self._keys_of(connection, ref)
        changes = [self._change(key, lambda row, now: key_state.resolve(row, ref, task_id, now)) for key in keys]
        return tuple(message for told in changes for message in told)

    @contextmanager
    def _page(self) -> Iterator[_Page]:
        with self._file.transaction() as (connection, now):
            page = _Page(self._load(connection, now), now)
            yield page
            connection.execute(
                "INSERT OR REPLACE INTO account VALUES (?, ?, ?, ?)",
                (self._page_name, json.dumps(page.book.dump()), now, now + page.book.lives_for),
            )

    def _load(self, connection: sqlite3.Connection, now: float) -> Book:
        found = connection.execute("SELECT state FROM account WHERE digest = ?", (self._page_name,)).fetchone()
        if found and found[0]:
            try:
                return Book.load(json.loads(found[0]))
            except (ValueError, TypeError, LookupError) as error:
                raise CoordinationError(
                    "the shared file holds a state that cannot be read; remove it when no process uses it"
                ) from error
        book = Book(uuid.uuid4().hex, self._terms, now)
        if found:
            # Voided by a new start of the machine, which may have taken less than a period.
            book.touch("", Known("before the start"), now)
        return book

    def _noted(self, reply: Reply | None, number: int) -> Answer:
        # Only now is it written.
        if reply is None:
            raise CoordinationError("this session has not joined the others of its account")
        self._joined, self._known = number, reply.known
        return reply.answer

    @property
    def _seen_for(self) -> float:
        # Who can be asked whether it lives need not say so.
        return math.inf if self._sockets.life_of(self._seat) is Life.ALIVE else PEER_SEEN_FOR

    def _bury(self, page: _Page) -> None:
        self._burial_at = page.now + BURIAL_EVERY
        for peer in page.book.peers():
            seat = peer.partition(".")[0]
            match self._sockets.life_of(seat):
                case Life.DEAD:
                    page.book.bury(peer, page.now)
                    self._sockets.remove(seat)
                case Life.GONE:
                    # It may live, so what it has borrowed is left to expire.
                    page.book.leave(peer, page.now)

    def _change(self, key: str, change: Callable[[KeyRow | None, float], KeyRow | None]) -> Told:
        with self._file.transaction() as (connection, now):
            before = self._row(connection, key, now)
            after = change(before, now)
            if after == before:
                return ()
            self._write(connection, key, after)
        return (Message("key", key=key),)

    def _keys_of(self, connection: sqlite3.Connection, ref: str) -> list[str]:
        found = connection.execute("SELECT digest FROM key WHERE account = ? AND ref = ?", (self._account, ref))
        return [key for (key,) in found]

    def _row(self, connection: sqlite3.Connection, key: str, now: float) -> KeyRow | None:
        found = connection.execute(
            f"SELECT seat, {KEY_COLUMNS} FROM key WHERE account = ? AND digest = ?",  # noqa: S608  a constant
            (self._account, key),
        ).fetchone()
        if found is None:
            return None
        seat, *columns = found
        row = KeyRow(*columns)
        dead = row.state == "sending" and row.lapses_at > now and self._sockets.life_of(seat) in (Life.DEAD, Life.GONE)
        return attrs.evolve(row, lapses_at=now) if dead else row

    def _write(self, connection: sqlite3.Connection, key: str, row: KeyRow | None) -> None:
        if row is None:
            connection.execute("DELETE FROM key WHERE account = ? AND digest = ?", (self._account, key))
            return
        connection.execute(
            "INSERT OR REPLACE INTO key VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self._account, key, self._seat, *attrs.astuple(row)),
        )
