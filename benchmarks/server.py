"""The service that all contenders talk to: cheap enough not to be what is measured.

One protocol object per connection, no framework, answers put together from text. Every client finds its own API under
a path of its own (`dialects`); what becomes of a task is the same for all.
"""

import argparse
import asyncio
import json
import math
import ssl
import sys
import tempfile
import time
from collections import deque
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import attrs

from benchmarks.dialects import DIALECTS, Dialect

# Optional packages are typed as Any, so that the type checkers say the same with and without them.
httptools: Any = import_module("httptools")

BACKLOG: Final = 4096
REFUSAL: Final = '{"code":429,"msg":"too many requests","data":null,"error":{"message":"too many requests"}}'
REASONS: Final = {200: "OK", 404: "Not Found", 429: "Too Many Requests"}


@attrs.define
class Shop:
    """The tasks, the limit and the books of the service.

    Attributes:
        duration: Seconds that a task takes.
        limit: Creations in any `period`, 0 for no limit.
        period: Seconds.
        says_when: Whether a refusal has a Retry-After.
        looks: Looks a second, evenly, as nginx's `limit_req` takes them; 0 for no limit.
        strangers: Creations that somebody else makes just before the first one.
        strays: Creations that are refused at first, whatever the limit.
        capacity: Creations at once, refilled by `limit` per `period`; 0 for a sliding window.
    """

    duration: float
    limit: int
    period: float
    says_when: bool
    looks: float = 0.0
    strangers: int = 0
    strays: int = 0
    capacity: int = 0
    _ends: dict[str, float] = attrs.field(init=False, factory=dict)
    _recent: deque[float] = attrs.field(init=False, factory=deque)
    _full_at: float = attrs.field(init=False, default=0.0)
    _refused: int = attrs.field(init=False, default=0)
    _polls: int = attrs.field(init=False, default=0)
    _looked: float = attrs.field(init=False, default=-math.inf)
    _looks_refused: int = attrs.field(init=False, default=0)
    _reused: int = attrs.field(init=False, default=0)
    _first: float = attrs.field(init=False, default=0.0)
    _last: float = attrs.field(init=False, default=0.0)

    def create(self, *, reused: bool) -> str | float:
        """Give the id of a new task, or the seconds until there may be one.

        Args:
            reused: Whether the connection has carried a request before.
        """
        self._reused += reused
        now = time.monotonic()
        if self.strangers:
            self._recent.extend([now] * self.strangers)
            self.strangers = 0
        if (wait := self._wait(now)) > 0:
            self._refused += 1
            return wait
        self._first, self._last = self._first or now, now
        task_id = f"{len(self._ends):032x}"
        self._ends[task_id] = now + self.duration
        return task_id

    def look(self) -> bool:
        """Whether one more look is taken now."""
        now = time.monotonic()
        taken = not self.looks or now - self._looked >= 1.0 / self.looks
        self._looked = now if taken else self._looked
        self._looks_refused += not taken
        return taken

    def _wait(self, now: float) -> float:
        """Count one creation, or give the seconds until there may be one."""
        if self.strays:
            self.strays -= 1
            return self.period
        if self.capacity:
            spacing = self.period / self.limit
            full_at = max(self._full_at, now) + spacing
            if full_at > now + self.capacity * spacing:
                return full_at - now - self.capacity * spacing
            self._full_at = full_at
            return 0.0
        while self._recent and self._recent[0] <= now - self.period:
            self._recent.popleft()
        if self.limit and len(self._recent) >= self.limit:
            return self._recent[0] + self.period - now
        if self.limit:
            self._recent.append(now)
        return 0.0

    def finished(self, task_id: str) -> bool | None:
        """Whether a task is at its end; None for one that does not exist."""
        self._polls += 1
        end = self._ends.get(task_id)
        return None if end is None else end <= time.monotonic()

    def books(self) -> dict[str, float]:
        """Give the counts, see `service.Books`."""
        return {
            "created": len(self._ends),
            "refused": self._refused,
            "polls": self._polls,
            "looks_refused": self._looks_refused,
            "reused": self._reused,
            "first": self._first,
            "last": self._last,
        }


class Connection(asyncio.Protocol):
    """One connection of a client.

    Args:
        shop: What it can order from.
        url: The address under which results are found.
    """

    def __init__(self, shop: Shop, url: str) -> None:
        self._shop = shop
        self._url = url
        self._transport: Any = None
        self._parser: Any = None
        self._target = ""
        self._requests = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        """Called by the parser."""
        self._target += url.decode()

    def on_message_complete(self) -> None:
        """Called by the parser: everything of a request is here."""
        target, self._target = self._target, ""
        self._requests += 1
        status, body, headers = self._answer(self._parser.get_method(), target)
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/json\r\n{headers}"
        self._transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())

    def _answer(self, method: bytes, target: str) -> tuple[int, str, str]:
        if target == "/-/books":
            return 200, json.dumps(self._shop.books()), ""
        dialect = next(each for each in DIALECTS if target.startswith(each.prefix))
        if method == b"POST":
            return self._create(dialect)
        if not self._shop.look():
            return 429, REFUSAL, "Retry-After: 1\r\n" if self._shop.says_when else ""
        finished = self._shop.finished(dialect.task_id(target))
        if finished is None:
            return 404, '{"code":404,"msg":"no such task"}', ""
        return 200, dialect.look(self._url, target, dialect.task_id(target), finished=finished), ""

    def _create(self, dialect: Dialect) -> tuple[int, str, str]:
        task_id = self._shop.create(reused=self._requests > 1)
        if isinstance(task_id, str):
            return 200, dialect.created(self._url, task_id), ""
        headers = f"Retry-After: {math.ceil(task_id)}\r\n" if self._shop.says_when else ""
        return 429, REFUSAL, headers


async def serve(shop: Shop, *, secure: bool, folder: Path) -> None:
    """Listen on loopback, print where, and serve until the process is ended."""
    loop = asyncio.get_running_loop()
    addresses: list[str] = []

    async def listen(scheme: str, context: ssl.SSLContext | None) -> None:
        server = await loop.create_server(
            lambda: Connection(shop, addresses[0]), "127.0.0.1", 0, ssl=context, backlog=BACKLOG
        )
        addresses.append(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    await listen("http", None)
    authority = folder / "authority.pem"
    if secure:
        await listen("https", _context(authority))
    print(json.dumps({"url": addresses[0], "secure_url": "".join(addresses[1:]), "certificate": str(authority)}))
    sys.stdout.flush()
    await asyncio.Event().wait()


def _context(authority: Path) -> ssl.SSLContext:
    maker = import_module("trustme").CA()
    maker.cert_pem.write_to_path(authority)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    maker.issue_cert("127.0.0.1").configure_cert(context)
    return context


def main() -> None:
    """What the process does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", description=__doc__)
    parser.add_argument("--duration", type=float, default=0.0)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--period", type=float, default=10.0)
    parser.add_argument("--says-when", type=int, default=0)
    parser.add_argument("--strangers", type=int, default=0)
    parser.add_argument("--strays", type=int, default=0)
    parser.add_argument("--capacity", type=int, default=0)
    parser.add_argument("--secure", type=int, default=0)
    parser.add_argument("--looks", type=float, default=0.0)
    given = parser.parse_args()
    options = {name: getattr(given, name) for name in ("looks", "strangers", "strays", "capacity")}
    shop = Shop(given.duration, given.limit, given.period, bool(given.says_when), **options)
    with tempfile.TemporaryDirectory() as folder:
        try:
            runner = asyncio.Runner(loop_factory=import_module("uvloop").new_event_loop)
        except ImportError:
            runner = asyncio.Runner()
        with runner:
            runner.run(serve(shop, secure=bool(given.secure), folder=Path(folder)))


if __name__ == "__main__":
    main()
