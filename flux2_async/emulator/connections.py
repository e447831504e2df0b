"""The connections that clients have open, so that one can be cut."""

import asyncio
from itertools import count

import attrs


@attrs.define
class Connection:
    """One connection of a client, what was called on it last, and how many calls are being answered and were made."""

    number: int
    transport: asyncio.Transport
    peer: str
    endpoint: str = ""
    busy: int = 0
    calls: int = 0


class Connections:
    """The open connections of one emulator; those of its page are not among them."""

    def __init__(self) -> None:
        self._known: dict[asyncio.Transport, Connection] = {}
        self._numbers = count(1)

    def arrive(self, transport: asyncio.Transport | None, endpoint: str) -> None:
        """A call came in on a connection."""
        if transport is None:
            return
        connection = self._known.get(transport)
        if connection is None:
            # Nobody tells that one has ended.
            self._forget()
            address = transport.get_extra_info("peername") or ("?",)
            peer = ":".join(map(str, address[:2]))
            connection = self._known[transport] = Connection(next(self._numbers), transport, peer)
        connection.endpoint = endpoint
        connection.busy += 1
        connection.calls += 1

    def leave(self, transport: asyncio.Transport | None) -> None:
        """A call was answered, or its connection is gone."""
        if transport in self._known:
            self._known[transport].busy -= 1

    def open(self) -> list[Connection]:
        """Those that are open, the newest first."""
        self._forget()
        return list(self._known.values())[::-1]

    def cut(self, number: int) -> bool:
        """Cut one without another word, and tell whether it was there."""
        for connection in self.open():
            if connection.number == number:
                connection.transport.abort()
                return True
        return False

    def _forget(self) -> None:
        for transport in [transport for transport in self._known if transport.is_closing()]:
            del self._known[transport]
