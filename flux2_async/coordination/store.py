"""What the processes of an account need to share it: a place for small texts, changed one at a time, and a voice.

A `Store` knows no rules; those are in `coordinator`, `account_state` and `key_state`, and written once. It keeps texts
under names, changes each by compare and set, tells the time to whoever changes, and passes lines on to the others. A
store for another server is a subclass of `Store`, and one of `Coordination` that makes it.
"""

import asyncio
import enum
import math
import random
import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, Literal, TypeVar

import attrs

from flux2_async.errors import ConfigurationError, CoordinationError
from flux2_async.models.plain import is_number

T = TypeVar("T")

# Seconds; all who met the same text would else meet again.
LONGEST_BACK_OFF: Final = 0.05


class HopelessError(CoordinationError):
    """Waiting will not help."""


class Life(enum.Enum):
    """What is known of a member; `GONE`: it left, or lost the sign of its life."""

    ALIVE = enum.auto()
    DEAD = enum.auto()
    GONE = enum.auto()
    UNKNOWN = enum.auto()


@attrs.frozen
class Kept(Generic[T]):
    """What a change makes of a text.

    Attributes:
        text: What is to be kept; the text as it was changes nothing, None removes it.
        seconds: For how long it is kept unless it is changed again; infinity for ever.
        result: What the caller of `update` gets once it is kept.
    """

    text: str | None
    seconds: float
    result: T


Change = Callable[[str | None, float], Kept[T]]
"""Is given a text, or None where there is none, and the time: seconds on the clock of the store."""


class Store(ABC):
    """One session's way to what the processes of its account share.

    A store that cannot be reached raises `CoordinationError`, and nothing else. The change may then have been made
    all the same.
    """

    @abstractmethod
    async def listen(self, on_line: Callable[[str], None]) -> None:
        """Begin: check what can be checked once, and hear from now on what others publish.

        Args:
            on_line: Called in the event loop with each line; with an empty one when some may have been lost. It may be
                called with a session's own lines.

        Raises:
            ConfigurationError: It can never work: a wrong password, a folder of somebody else's.
            CoordinationError: It cannot be reached now. Everything may be tried later, also this; `aclose` is needed.
        """

    @abstractmethod
    async def update(self, name: str, change: Change[T]) -> T:
        """Change the text under a name by compare and set, and give the result of the change.

        Args:
            name: Of letters, digits and colons.
            change: What to make of the text. Called again with what is there by then when somebody else was faster;
                in any thread, but in one at a time. An exception of its own changes nothing and is raised here.

        Returns:
            The result of the change that was kept.
        """

    @abstractmethod
    async def publish(self, line: str) -> None:
        """Send a line to all that listen now; those that do not never get it.

        Args:
            line: Text without line breaks.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Leave; never raises and never takes long."""

    def life_of(self, member: str) -> Life:
        """Tell whether a member lives.

        Args:
            member: Its name.

        Returns:
            `UNKNOWN` where nobody can tell, and members have to say so themselves; so does this method of the base.
        """
        del member
        return Life.UNKNOWN

    def elapsed(self) -> float:
        """Give seconds on a clock of this process that goes on while it is stopped and while the machine sleeps."""
        if sys.platform == "linux":
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        if sys.platform == "darwin":
            # `time.monotonic` stands still there while the machine sleeps.
            return time.clock_gettime(time.CLOCK_MONOTONIC)
        return time.monotonic()


@attrs.frozen
class Found:
    """What is under a name: the text, the token of its last change, which no other has, and the time."""

    token: str
    text: str | None
    now: float


class RemoteStore(Store):
    """A store on a server that can be asked to write, if nobody else has written since."""

    async def update(self, name: str, change: Change[T]) -> T:
        """See `Store`; who is slower than others tries again at once, and then ever later."""
        found, tries = await self.look(name), 0
        while True:
            kept = change(found.text, found.now)
            if kept.text == found.text or (later := await self.replace(name, found.token, kept)) is None:
                return kept.result
            found, tries = later, tries + 1
            if tries > 1:
                await asyncio.sleep(random.random() * min(0.001 * 2**tries, LONGEST_BACK_OFF))  # noqa: S311  it spreads in time, it guards nothing
                found = await self.look(name)

    async def try_rights(self) -> None:
        """Do once whatever may be forbidden: who finds out later loses a key's payment, or misses callbacks."""
        await self.publish("can it be said?")
        name = f"check:{secrets.token_hex(8)}"
        for text in ("can it be written?", "and changed?", None):
            await self.update(name, lambda _, __, text=text: Kept(text, 1.0, None))  # type: ignore[misc]  # mypy knows no default there

    @abstractmethod
    async def look(self, name: str) -> Found:
        """Give what is there."""

    @abstractmethod
    async def replace(self, name: str, token: str, kept: Kept[Any]) -> Found | None:
        """Write over what has this token, empty where nothing was; None: done, else what is there by now."""


class Coordination(ABC):
    """Settings of a shared state, as `Flux2Session(coordination=...)` takes them.

    Limits, their pauses, the bound of running tasks, the turns and bounds of groups, budgets, keys and callbacks are
    shared. What a session finds out by itself is not: whether it sends one createTask at a time because the last ones
    got no answer, and the pace of its polls.

    Attributes:
        on_failure: What submissions without a key do when the shared state cannot be asked: `degrade` to a safe share
            of the limit, or `fail` with `CoordinationError`.
    """

    on_failure: Literal["degrade", "fail"]

    @abstractmethod
    def store(self, account: str, member: str) -> Store:
        """Make the store of a session.

        Args:
            account: The digest of address and API key; never the key.
            member: The name of the session, which no other has: letters and digits.

        Returns:
            A store that is not connected yet.
        """


def check_settings(on_failure: object, timeout: object = 1.0) -> None:
    """Check what users give for a coordination, of whatever kind.

    Raises:
        ConfigurationError: One makes no sense.
    """
    if on_failure not in ("degrade", "fail"):
        raise ConfigurationError(f"on_failure: {on_failure!r} given, it must be 'degrade' or 'fail'")
    if not is_number(timeout) or not 0 < timeout < math.inf:
        raise ConfigurationError(f"timeout: {timeout!r} given, it must be a number of seconds above 0")


@contextmanager
def needs(package: str, name: str, *, extra: str) -> Iterator[None]:
    """Import a package that an extra brings.

    Raises:
        ConfigurationError: It is missing.
    """
    try:
        yield
    except ImportError as error:
        # psycopg says so, and names nothing, where it finds no libpq.
        missing = error.name or (package if package in str(error) else "")
        if missing.partition(".")[0] != package:
            raise
        raise ConfigurationError(f"{name} needs the extra: pip install 'flux2-async[{extra}]'") from None


async def finish(task: "asyncio.Task[None] | None") -> None:
    """Cancel a task and wait for its end."""
    while task is not None and not task.done():
        task.cancel()
        # A library below may have lost the cancellation among its own errors.
        await asyncio.wait([task], timeout=0.2)
