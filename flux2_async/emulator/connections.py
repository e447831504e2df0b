"""The connections that clients have open, so that one can be cut."""

import asyncio

import attrs

__all__ = ["Connection", "Connections"]

# Of each createTask's connection something is kept until it is looked at; those that have ended go when there are many.
MANY = 1000


@attrs.define
class Connection:
    """One connection of a client.

    Attributes:
        number: Counted from 1.
        transport: The connection.
        peer: The client's address and port.
        endpoint: What was called last.
        busy: How many calls are being answered on it.
        calls: How many there were.
    """

    number: int
    transport: asyncio.BaseTransport
    peer: str
    endpoint: str = ""
    busy: int = 0
    calls: int = 0


class Connections:
    """The open connections of one emulator; those of its page are not among them."""

    def __init__(self) -> None:
        self._known: dict[asyncio.BaseTransport, Connection] = {}
        self._count = 0

    def arrive(self, transport: asyncio.BaseTransport | None, endpoint: str) -> None:
        """A call came in on a connection."""
        if transport is None:
            return
        connection = self._known.get(transport)
        if connection is None:
            if len(self._known) > MANY:
                self._forget()
            self._count += 1
            address = transport.get_extra_info("peername") or ("?",)
            peer = ":".join(map(str, address[:2]))
            connection = self._known[transport] = Connection(self._count, transport, peer)
        connection.endpoint = endpoint
        connection.busy += 1
        connection.calls += 1

    def leave(self, transport: asyncio.BaseTransport | None) -> None:
        """A call was answered, or its connection is gone."""
        connection = None if transport is None else self._known.get(transport)
        if connection is not None:
            connection.busy -= 1

    def open(self) -> list[Connection]:
        """Those that are open, the newest first."""
        self._forget()
        return list(self._known.values())[::-1]

    def cut(self, number: int) -> bool:
        """Cut one without another word, and tell whether it was there."""
        for connection in self.open():
            if connection.number == number and isinstance(connection.transport, asyncio.WriteTransport):
                connection.transport.abort()
                return True
        return False

    def _forget(self) -> None:
        for transport in [transport for transport in self._known if transport.is_closing()]:
            del self._known[transport]
