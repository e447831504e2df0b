"""The state that all processes of one account share, and its rules. Pure: time comes in as an argument.

Leases. A permit is lent to a process until it is settled; then it comes back as `window` says, to the window of each
limit: a period after the answer, at once when nothing was sent, two periods after a send that is unclear. A process
that died settles nothing; its lease expires by itself and counts as unclear from then on. So a dead owner costs one
lease and no over-run.
A settlement of a lease that this state never lent (it was lost in between) counts as taken just then.

Order. Processes queue, not submissions, for the groups of those (see `permit_queue`).
Nobody polls: the answer says when to ask again, which is when the permit comes back that is theirs by their place.
What is in flight now comes back in a period at the earliest, so asking a period later misses nothing; what comes back
at once instead is told by a wake. Who does not ask at the promised time has `grace`, then is passed over.

Running. A process tells with every question how many of each group run there, or in all where it has no bound, those
that have a permit included. So many count until it tells otherwise, leaves, or is forgotten; for the bound of all until
a minute after it was last heard of, since they run on at the service.

Clock. The time is a server's, which somebody may set. Back costs nothing; forward by more than a process has counted
since its last answer is noticed by it, and no permit comes back earlier. Where none had asked before, one step lets at
most one further limit through, once.

Names. A process joins before it asks, anew under a new name after every question whose answer it did not get: leases of
its old names that it does not know of come back at once.

Loss. An `epoch` names this state. A process that knew another epoch, or a later lease of this one (a snapshot was
restored, a replica took over), shows that leases may be out of which nothing is written here: all then wait two
periods of the longest limit, as after an unclear send. They wait one when a process is back that had heard nothing for
a period or more: others may have noticed the loss two periods ago, send by themselves, and come back a moment later.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Unpack

import attrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn
from cattrs.preconf.json import make_converter

from flux2_async._limiter.permit import PermitEvent
from flux2_async._limiter.window import CLOCK_MARGIN
from flux2_async._limiter.windows import Tickets, Windows
from flux2_async.coordination.contract import Answer, Hint, Known, Settlement, Terms
from flux2_async.coordination.permit_queue import ASK_WHILE_KEPT_BACK, Asked, PermitQueue
from flux2_async.models import RateLimit

FORMAT: Final = 7
"""Of the state as it is kept. A version that keeps another one does not meet this one's, and each has its own limit."""

PEER_SEEN_FOR: Final = 60.0
"""Seconds after which a process that says nothing is no longer counted."""

# No name of a group: of those whose process is gone, or does not say.
LEFT: Final = "-"

# An answer that names a time closer than this part of the period would make many ask for what few can have.
ASKS_PER_PERIOD: Final = 500
GRACE_MIN: Final = 0.1
GRACE_MAX: Final = 0.5
# By how many seconds a question may take longer than the one before it.
JITTER: Final = 0.25


@attrs.frozen
class _Lease:
    owner: str
    tickets: Tickets
    expires_at: float


@attrs.frozen
class _Peer:
    until: float
    # The limits that it was given: of different ones the lowest keeps the promise to all.
    rates: tuple[RateLimit, ...]


@attrs.define(eq=False)
class AccountState:
    """The shared state of one account.

    Args:
        epoch: A name that no other state has.
        terms: As the first process knows them.
        born: The time.

    Attributes:
        number: How many permits it has lent.
        wakes: Whether those who wait should ask again now.
    """

    epoch: str
    _terms: Terms
    _born: float
    number: int = attrs.field(init=False, default=0)
    wakes: bool = attrs.field(init=False, default=False)
    _seen: float = attrs.field(init=False)
    _set_back: float = attrs.field(init=False, default=0.0)
    _until: float = attrs.field(init=False, default=-math.inf)
    _windows: Windows = attrs.field(init=False)
    _leases: dict[str, _Lease] = attrs.field(init=False, factory=dict)
    _peers: dict[str, _Peer] = attrs.field(init=False, factory=dict)
    _queue: PermitQueue = attrs.field(init=False, factory=PermitQueue)
    # By process and group; and of processes that are gone, with the time until which they count.
    _running: dict[str, dict[str, int]] = attrs.field(init=False, factory=dict)
    _left: list[tuple[float, int]] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self._seen, self._windows = self._born, Windows(self._terms.rates)

    @property
    def lives_for(self) -> float:
        """Seconds after which a state that nobody asked means nothing any more; infinity while somebody counts."""
        if any(peer.until == math.inf for peer in self._peers.values()):
            return math.inf
        return 3600.0 + self._terms.lease + 4 * self._windows.longest

    def tell_time(self, now: float, known: Known, passed: float, at_least: float) -> float:
        """Give the time by which permits come back.

        Args:
            now: The time on a clock that somebody may set.
            known: What the process that asks remembers.
            passed: Seconds that it has counted by a clock of its own, from when it asked for the time that it knows to
                when it asked for this one.
            at_least: The same from when it knew that one: no more than lies between both, however slow the way is.
        """
        shown = now + self._set_back
        now = max(shown, self._seen)
        if known.epoch == self.epoch and shown > known.seen + passed * CLOCK_MARGIN + JITTER:
            now = max(known.seen + at_least, self._seen)
        self._set_back += now - shown
        self._seen = now
        return now

    def join(
        self,
        peer: str,
        known: Known,
        now: float,
        *,
        terms: Terms,
        held: Iterable[Settlement] = (),
        replaces: str = "",
        keeps: Sequence[str] = (),
        alone: float = 0.0,
        seen_for: float = PEER_SEEN_FOR,
    ) -> Answer | None:
        """Let a process take part, at first or again; None: it has joined under a later name already.

        Args:
            peer: Its name, never used before: one of its own, a dot, and a number that rises.
            known: What it remembers.
            now: The time.
            terms: As it knows them. Of limits the lowest counts of those of all processes, of the rest the latest word.
            held: What became of each permit that it took without this state.
            replaces: The beginning of all names it had before, or empty.
            keeps: The leases under those names that it knows of; the others never reached it.
            alone: Seconds since it last heard of this state, if it has lost it since.
            seen_for: Seconds for which it counts without saying anything; infinity: until `leave`.
        """
        self._advance(now)
        if replaces and any(name.startswith(replaces) and _number(name) > _number(peer) for name in self._peers):
            return None
        self._compare(known, now)
        self._terms = terms
        if alone >= self._windows.longest:
            # The others send by themselves as well, now or in a moment, and have not declared it yet.
            self._pause(now + self._windows.longest * CLOCK_MARGIN, now)
        if replaces:
            self._rename(replaces, peer, keeps, now)
        self._peers[peer] = _Peer(now + seen_for, terms.rates)
        self._keep_to_lowest(now)
        for settlement in held:
            self._windows.hold(settlement.event, now - settlement.ago)
        return self._reply(now, (), 0.0)

    def touch(self, peer: str, known: Known, now: float) -> Answer | None:
        """Hear that a process is still there; None: it has to join."""
        return self._reply(now, (), 0.0) if self._is_there(peer, known, now) else None

    def leave(self, peer: str, now: float, unheard: Sequence[str] = ()) -> None:
        """Forget a process that goes; what it has borrowed and not settled expires by itself.

        Of `unheard` it never knew: what was lent to it of these is free at once.
        """
        self._advance(now)
        for name in unheard:
            if (lease := self._leases.get(name)) and lease.owner == peer:
                self._take_back(name, PermitEvent.NEVER_SENT, now)
        self._forget(peer, now)
        self._keep_to_lowest(now)

    def acquire(self, peer: str, known: Known, want: int, now: float, **asked: Unpack[Asked]) -> Answer | None:
        """Lend permits to a process, as many as are its share now; None: it has to join. With 0 it leaves the queue."""
        if not self._is_there(peer, known, now):
            return None
        self._queue.enter(peer, want, now, **asked)
        share: Sequence[str] = ()
        kept = 0
        if self._until <= now:
            share, kept = self._queue.deal(
                peer, lambda number: self._windows.ready_at(now, number) <= now, now, self._alive()
            )
        leases = tuple(self._lend(peer, now) for _ in share)
        self._running[peer] = dict(Counter(self._running.get(peer)) + Counter(share))
        wait = 0.0
        if self._queue.wants(peer):
            wait = self._postpone(peer, kept, now) - now
        else:
            self._queue.leave(peer)
        return self._reply(now, leases, wait, peer=peer, groups=tuple(share))

    def run(self, peer: str, running: Mapping[str, int]) -> None:
        """Hear how many run in a process of which groups."""
        before, self._running[peer] = self._running.get(peer, {}), dict(running)
        fewer = any(running.get(group, 0) < count for group, count in before.items())
        self.wakes |= fewer and self._queue.is_freed(self._alive())

    def settle(self, settlement: Settlement, now: float) -> tuple[float, bool]:
        """Take a permit back, or hear of a 429 that its request met, after which it is still out.

        Returns:
            The seconds of a pause that is news to everybody, else 0; and whether who waits should ask again now.
        """
        self._advance(now)
        name, event, at, pause = settlement.lease, settlement.event, now - settlement.ago, settlement.pause
        if event is PermitEvent.THROTTLED and not pause:
            pause = self._windows.pause_of(None, now)
        is_out = name in self._leases
        if is_out:
            lease = self._take_back(name, event, at, pause)
            if event is PermitEvent.THROTTLED:
                # Whose the 429 is may be open until its pause is over.
                expires_at = max(lease.expires_at, at + pause + self._terms.lease)
                self._leases[name] = attrs.evolve(lease, expires_at=expires_at)
        elif not self._has_lent(name):
            self._windows.hold(event, at)
        # Else it is said twice, or after it expired.
        if event is PermitEvent.THROTTLED:
            return self._pause(at + pause, now), False
        # Who waits was told that what is out comes back in a period at the earliest.
        return 0.0, event in (PermitEvent.NEVER_SENT, PermitEvent.REFUSED) and is_out and len(self._queue) > 0

    def believe(self, hint: Hint, now: float) -> tuple[float, bool]:
        """Keep to what the service told one process of its limits, where that is less; see `settle`."""
        self._advance(now)
        for told in hint.told:
            self._windows.believe(told, now - hint.ago)
        return 0.0, False

    def died(self, peer: str, now: float) -> None:
        """Forget a process that is known to have died; what it has borrowed is unclear from now on."""
        self.leave(peer, now)
        for name in [name for name, lease in self._leases.items() if lease.owner == peer]:
            self._take_back(name, PermitEvent.UNCLEAR, now)

    def forgot(self, known: Known) -> bool:
        """Tell whether a process knows another state, or a later one."""
        return bool(known.epoch) and (known.epoch != self.epoch or known.number > self.number)

    def peers(self) -> tuple[str, ...]:
        """Give the names of the processes that count."""
        return tuple(self._peers)

    def _is_there(self, peer: str, known: Known, now: float) -> bool:
        self._advance(now)
        self._compare(known, now)
        if peer not in self._peers:
            return False
        if (known_until := now + PEER_SEEN_FOR) > self._peers[peer].until:
            self._peers[peer] = attrs.evolve(self._peers[peer], until=known_until)
        return True

    def _has_lent(self, name: str) -> bool:
        epoch, _, number = name.rpartition(":")
        return epoch == self.epoch and number.isdecimal() and _number(number) <= self.number

    def _rename(self, old: str, new: str, keeps: Sequence[str], now: float) -> None:
        # It has told by its new name what runs there, and may be here by that already.
        running = self._running.pop(new, {})
        for peer in [peer for peer in self._peers if peer.startswith(old)]:
            self._running.pop(peer, None)
            self._forget(peer, now)
        self._running[new] = running
        for name in [name for name, lease in self._leases.items() if lease.owner.startswith(old)]:
            if name in keeps:
                self._leases[name] = attrs.evolve(self._leases[name], owner=new)
            else:
                self._take_back(name, PermitEvent.NEVER_SENT, now)

    def _take_back(self, name: str, event: PermitEvent, at: float, pause: float = 0.0) -> _Lease:
        lease = self._leases.pop(name)
        self._windows.settle(lease.tickets, event, at, pause)
        return lease

    def _pause(self, until: float, now: float) -> float:
        if until <= self._until:
            return 0.0
        self._until = until
        return max(until - now, 0.0)

    def _advance(self, now: float) -> None:
        """Let everything happen that time alone brings."""
        for name, lease in [(name, lease) for name, lease in self._leases.items() if lease.expires_at <= now]:
            self._take_back(name, PermitEvent.UNCLEAR, lease.expires_at)
        if silent := [name for name, peer in self._peers.items() if peer.until <= now]:
            for peer in silent:
                self._forget(peer, now)
            self._keep_to_lowest(now)
        self._left = [(until, count) for until, count in self._left if until > now]
        for peer in self._queue.late(now - self._grace):
            self.wakes |= self._queue.drop(peer, now, self._grace)

    @property
    def _grace(self) -> float:
        return max(GRACE_MIN, min(self._windows.shortest / 20, GRACE_MAX))

    def _compare(self, known: Known, now: float) -> None:
        if known.epoch not in ("", self.epoch):
            # All leases of the other state were lent before this one began, and what was given up may arrive late.
            self._pause(self._born + 2 * self._windows.longest * CLOCK_MARGIN, now)
        elif known.epoch and known.number > self.number:
            self.number = known.number
            self._pause(now + 2 * self._windows.longest * CLOCK_MARGIN, now)

    def _keep_to_lowest(self, now: float) -> None:
        if self._peers:
            self._windows.change([rate for peer in self._peers.values() for rate in peer.rates], now)

    def _forget(self, peer: str, now: float) -> None:
        gone = self._peers.pop(peer, None)
        until = now if gone is None else min(gone.until, now + PEER_SEEN_FOR)
        if (count := sum(self._running.pop(peer, {}).values())) and until > now:
            self._left.append((until, count))
        self.wakes |= self._queue.drop(peer, now, self._grace)

    def _alive(self) -> Counter[str]:
        return sum(map(Counter, self._running.values()), Counter({LEFT: sum(count for _, count in self._left)}))

    def _lend(self, peer: str, now: float) -> str:
        self.number += 1
        name = f"{self.epoch}:{self.number}"
        tickets = self._windows.take(now)
        if tickets.parts:
            self._leases[name] = _Lease(peer, tickets, now + self._terms.lease)
        return name

    def _postpone(self, peer: str, kept: int, now: float) -> float:
        """Put off a process until the permit comes that is its by its place, after those `kept` for others now."""
        ahead = self._queue.ahead(peer, self._alive())
        if ahead is None:
            return self._queue.keep_back(peer, now)
        turn = max(self._windows.ask_at(now, max(ahead, kept)), self._until)
        due = max(turn, now + self._windows.shortest / ASKS_PER_PERIOD)
        if not self._queue.has_groups:
            # Whoever asks first may have what comes until then: they are all alike.
            turn = due
        if kept:
            # Others may not come for what is kept for them.
            due = min(due, now + self._grace)
        if self._queue.kept_back(peer):
            due = min(due, now + ASK_WHILE_KEPT_BACK)
        return self._queue.postpone(peer, turn, due)

    def _reply(
        self, now: float, leases: tuple[str, ...], wait: float, *, peer: str = "", groups: tuple[str, ...] = ()
    ) -> Answer:
        supply = self._windows.supply(now, self._until).shared(1, -now)
        return Answer(
            leases,
            wait,
            paused=max(self._until - now, 0.0),
            learned_limit=self._windows.learned_limit,
            peers=max(len(self._peers), 1),
            waiting=self._queue.share(peer),
            supply=supply,
            rates=self._windows.rates,
            groups=groups,
            kept_back=tuple(self._queue.kept_back(peer)),
            running=self._alive().total(),
            known=Known(self.epoch, self.number, now),
        )

    def dump(self) -> dict[str, Any]:
        """Give the state as plain data that JSON keeps exactly (with `allow_nan`, its default)."""
        self.wakes = False
        self._running = {peer: running for peer, running in self._running.items() if running and peer in self._peers}
        kept: dict[str, Any] = _converter.unstructure(self)
        return kept

    @classmethod
    def load(cls, state: dict[str, Any]) -> "AccountState":
        """Make a state from what `dump` gave; all else raises what Python, cattrs or a setting does for it."""
        # A part that is missing would be taken for an empty one, and its permits for free ones.
        if state.keys() != attrs.fields_dict(cls).keys():
            raise ValueError
        return _converter.structure(state, cls)


def _number(name: str) -> int:
    number = name.rpartition(".")[2]
    # What another process left there may be longer than int() reads.
    return int(number[:18]) if number.isdecimal() else 0


_converter: Final = make_converter(detailed_validation=False)
_converter.register_structure_hook_factory(
    attrs.has, lambda kind: make_dict_structure_fn(kind, _converter, _cattrs_include_init_false=True)
)
_converter.register_unstructure_hook_factory(
    attrs.has, lambda kind: make_dict_unstructure_fn(kind, _converter, _cattrs_include_init_false=True)
)
