"""The life of a session: its parts are made and opened in order, and closed in reverse; perhaps several times."""

import asyncio
import logging
import os
import sys
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

import attrs

from flux2_async._http.credentials import Credentials
from flux2_async.errors import SessionClosedError
from flux2_async.session.options import Options
from flux2_async.tasks.observers import Observers
from flux2_async.tasks.outcome import check_loop

if TYPE_CHECKING:
    from flux2_async.session.parts import Parts

logger: logging.Logger = logging.getLogger("flux2_async")

IDS_PER_LINE: Final = 50
KEEPING_MAX: Final = 1.0
NOT_OPEN: Final = "the session is not open; use `async with Flux2Session(...)` or await open()"

# Those that are open without a coordination.
_alone: "WeakSet[Parts]" = WeakSet()
_warned_accounts: set[str] = set()
if hasattr(os, "register_at_fork"):
    # What is open in the parent process is not open in the child.
    os.register_at_fork(after_in_child=_alone.clear)


@attrs.frozen
class Unsettled:
    """What a session left behind when it was closed.

    Attributes:
        task_ids: Tasks that were not finished; `attach` them when the session is open again, or in a new one.
        refs: Submissions of which it is not known whether the service accepted them.
    """

    task_ids: tuple[str, ...] = ()
    refs: tuple[str, ...] = ()


class Lifecycle:
    """Opens and closes a session.

    Attributes:
        parts: Those that are open, or were when the session was open last; None where it never was.
    """

    def __init__(self, options: Options, observers: Observers) -> None:
        self.parts: Parts | None = None
        self._options = options
        self._observers = observers
        # Of the last time, until it is open again.
        self._before: Parts | None = None
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[Unsettled] | None = None

    def __del__(self) -> None:
        """Name what a session leaves behind that was forgotten while it was open: nobody else can any more."""
        if self.parts is None or self._opening is None or self._closing is not None:
            return
        if self.parts.loop.is_closed():
            self._leave()
        else:
            task_ids = tuple(task.id for task in self.parts.watcher.tasks())
            _log_all_left(
                "a session was not closed, and nothing refers to it any more", task_ids, _unseen(self.parts), ()
            )

    @property
    def closed(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closing is not None

    def last(self) -> "Parts":
        """Give the parts that are open, or were when it was open last.

        Raises:
            SessionClosedError: It never was.
        """
        if self.parts is None:
            raise SessionClosedError(NOT_OPEN)
        return self.parts

    def usable(self) -> "Parts":
        """Give the parts of a session that is open in this event loop.

        Raises:
            SessionClosedError: It is not open.
            ConfigurationError: It is open in another one.
        """
        if self._closing is not None:
            raise SessionClosedError("the session is closed; open it again, or make a new one")
        if self.parts is None or self._opening is None:
            raise SessionClosedError(NOT_OPEN)
        self._check_loop(self._opening)
        return self.parts

    async def open(self, credentials: Credentials) -> None:
        """Open it for an account; see `Flux2Session.open`."""
        if self._opening is not None and self._opening.get_loop().is_closed():
            self._leave()
        if self._closing is not None and not self._closing.done():
            raise SessionClosedError("the session is being closed; wait for `aclose` before it is opened again")
        if self._opening is not None and self._closing is None:
            raise SessionClosedError("the session is open already; use it as it is")
        # Half of what the package consists of, which a program that only imports it does without.
        from flux2_async.session.parts import make_parts  # noqa: PLC0415

        before = self.parts or self._before
        parts = make_parts(credentials, self._options, self._observers, before)
        self._before, self.parts, self._closing = before, None, None
        # A task of its own, so that `aclose` can end the opening and not the caller.
        opening = self._opening = parts.loop.create_task(self._open(parts), name="flux2_async open")
        try:
            await asyncio.wait([opening])
        except asyncio.CancelledError:
            await self.aclose(0.0)
            raise
        if self._opening is not opening or self._closing is not None:
            raise SessionClosedError("the session was closed while it was being opened")
        try:
            opening.result()
        except BaseException:
            self._opening = None
            raise

    async def aclose(self, grace: float) -> Unsettled:
        """See `Flux2Session.aclose`."""
        if self._opening is None:
            return Unsettled()
        if self._closing is not None and self._closing.done() and not self._closing.cancelled():
            return self._closing.result()
        if self._opening.get_loop().is_closed():
            return self._leave()
        self._check_loop(self._opening)
        if self._closing is None or self._closing.cancelled():
            closing = self._close(self._opening, grace)
            self._closing = self._opening.get_loop().create_task(closing, name="flux2_async close")
        try:
            with _shielded():
                await asyncio.wait([self._closing])
        except asyncio.CancelledError:
            # Who cancels a closing wants it over, not undone.
            if self.parts is not None:
                self.parts.submitter.abandon()
            await asyncio.wait([self._closing])
            raise
        return self._closing.result()

    async def _open(self, parts: "Parts") -> None:
        await _open(parts)
        self.parts, self._before = parts, None

    async def _close(self, opening: asyncio.Task[None], grace: float) -> Unsettled:
        # Once only: what the opening has made it takes down by itself, or it comes to its end.
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        return Unsettled() if self.parts is None else await _close(self.parts, grace)

    def _leave(self) -> Unsettled:
        """Forget the opening in an event loop that was closed meanwhile; give what was left there."""
        self._opening = self._closing = None
        return Unsettled() if self.parts is None else _leave(self.parts)

    def _check_loop(self, opening: asyncio.Task[None]) -> None:
        if opening.get_loop().is_closed():
            raise SessionClosedError(
                "the event loop in which the session was open was closed; open it again in this one"
            )
        check_loop(opening.get_loop())


async def _open(parts: "Parts") -> None:
    """Read what an earlier session has learned, make the connections' pools, and join who shares the account."""
    from flux2_async._limiter.limiter import Limiter  # noqa: PLC0415  loaded with the parts
    from flux2_async.session.open_ahead import OpenAhead  # noqa: PLC0415  likewise

    async with AsyncExitStack() as opening:
        if parts.remembered is not None:
            import anyio.to_thread  # noqa: PLC0415  a session that remembers nothing does without

            await anyio.to_thread.run_sync(parts.remembered.restore, parts.schedules, abandon_on_cancel=True)
        await parts.transport.open()
        opening.push_async_callback(parts.transport.aclose)
        if parts.sharing is not None:
            await parts.sharing.open()
            opening.push_async_callback(parts.sharing.aclose)
            if parts.budgets is not None:
                parts.budgets.go_on_telling()
                opening.callback(parts.budgets.end_telling)
        else:
            _count(parts)
            opening.callback(_alone.discard, parts)
        if parts.inbox is not None:
            opening.callback(parts.inbox.close)
        opening.callback(parts.slots.close)
        opening.callback(parts.limiter.close)
        if isinstance(parts.limiter, Limiter):
            opening.callback(OpenAhead(parts.limiter, parts.transport).close)
        parts.opened.push_async_callback(_keep_what_was_learned, parts)
        parts.opened.push_async_exit(opening.pop_all())


async def _close(parts: "Parts", grace: float) -> Unsettled:
    """Close everything in order, whatever happens on the way.

    Returns:
        What was left.
    """
    refs: tuple[str, ...] = ()
    task_ids: tuple[str, ...] = ()
    unseen: set[str] = set()
    try:
        async with parts.opened:
            try:
                refs = await parts.submitter.aclose(grace)
                await parts.enqueued.aclose()
            finally:
                unseen = _unseen(parts)
                task_ids = await parts.watcher.aclose()
    finally:
        _log_all_left("session closed", task_ids, unseen, refs)
    return Unsettled(task_ids, refs)


def _leave(parts: "Parts") -> Unsettled:
    """Do what can be done without the event loop, which was closed while the session was open in it."""
    refs, unseen = parts.submitter.leave(), _unseen(parts)
    task_ids = parts.watcher.leave()
    parts.enqueued.leave()
    _alone.discard(parts)
    _log_all_left("the event loop was closed", task_ids, unseen, refs)
    return Unsettled(task_ids, refs)


def _shielded() -> AbstractContextManager[object]:
    """Keep a cancelled scope of anyio from cancelling every wait within it, which would leave POSTs no grace.

    Nobody can have such a scope before anyio's backend is loaded, and to load it takes longer than all other closing.
    """
    if "anyio._backends._asyncio" not in sys.modules:
        return nullcontext()
    import anyio  # noqa: PLC0415  it is there

    return anyio.CancelScope(shield=True)


def _count(parts: "Parts") -> None:
    """Warn of a second open session of one account in this process."""
    account = parts.credentials.account
    if account not in _warned_accounts and any(other.credentials.account == account for other in _alone):
        _warned_accounts.add(account)
        logger.warning(
            "a second session of one account is open in this process; together they may exceed its limit. "
            "Share one session"
        )
    _alone.add(parts)


async def _keep_what_was_learned(parts: "Parts") -> None:
    knowledge = parts.schedules.knowledge()
    if parts.remembered is not None and knowledge["kinds"]:
        import anyio.to_thread  # noqa: PLC0415  loaded when it was opened

        # Closing is bounded in time, whatever disk the folder is on.
        with anyio.move_on_after(KEEPING_MAX, shield=True):
            await anyio.to_thread.run_sync(parts.remembered.keep, knowledge, abandon_on_cancel=True)


def _unseen(parts: "Parts") -> set[str]:
    return {task.id for task in parts.watcher.tasks() if parts.watcher.unseen(task)}


def _log_all_left(why: str, task_ids: tuple[str, ...], unseen: set[str], refs: tuple[str, ...]) -> None:
    known = tuple(task_id for task_id in task_ids if task_id not in unseen)
    _log_left(f"{why}; tasks not finished, to be had by `flux.attach(task_id)` in a new session", known)
    _log_left(
        f"{why}; tasks that the service did not know when last polled, to be attached likewise unless the id is wrong",
        tuple(task_id for task_id in task_ids if task_id in unseen),
    )
    _log_left(f"{why}; submissions that may have been accepted", refs)


def _log_left(what: str, names: tuple[str, ...]) -> None:
    # Leaving `async with` gives no answer to look at, so the log has to name them all.
    for begin in range(0, len(names), IDS_PER_LINE):
        logger.warning("%s: %s", what, " ".join(names[begin : begin + IDS_PER_LINE]))
