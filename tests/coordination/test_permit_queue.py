"""Whose permit comes next, in simulated time: groups in several processes, which die, and a bound for each group."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Iterator

import attrs
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from rate_servers import SlidingLog
from seats import PERIOD

from flux2_async.coordination.account_state import PEER_SEEN_FOR, AccountState
from flux2_async.coordination.contract import Known, PermitEvent, Settlement, Terms
from flux2_async.models import RateLimit

PEERS = ("a.1", "b.1", "c.1")


@attrs.define(eq=False)
class Process:
    """What it waits for, by group, and what has a permit or runs there."""

    waiting: Counter[str] = attrs.field(factory=Counter)
    alive: Counter[str] = attrs.field(factory=Counter)
    asked: int = 0
    dead: bool = False


@attrs.define
class World:
    """Processes that ask when they were told to, or for a new group at once; a heap of events instead of a loop."""

    limit: int
    rng: random.Random
    rtt: float = 0.02
    duration: float = 5.0
    bound: int | None = None
    places: int | None = None
    is_seen: bool = True
    now: float = 0.0
    deaths: int = 0
    refused: int = 0
    most: Counter[str] = attrs.field(factory=Counter)
    most_of_all: int = 0
    grants: list[tuple[float, str]] = attrs.field(factory=list)
    arrivals: list[tuple[float, str]] = attrs.field(factory=list)

    terms: Terms = attrs.field(init=False)
    state: AccountState = attrs.field(init=False)
    server: SlidingLog = attrs.field(init=False)
    order: Iterator[int] = attrs.field(factory=itertools.count)
    events: list[tuple[float, int, str, tuple[str, ...]]] = attrs.field(factory=list)
    peers: dict[str, Process] = attrs.field(factory=lambda: {name: Process() for name in PEERS})

    def __attrs_post_init__(self) -> None:
        self.terms = Terms((RateLimit(self.limit, PERIOD),), 30.0)
        self.state = AccountState("e", self.terms, 0.0)
        self.server = SlidingLog(self.limit, PERIOD)
        for name in PEERS:
            self.state.join(name, Known(), 0.0, terms=self.terms)

    def at(self, when: float, what: str, *of: str) -> None:
        heapq.heappush(self.events, (when, next(self.order), what, of))

    def delay(self) -> float:
        return self.rtt * (0.5 + self.rng.random()) / 2

    def run(self, until: float = 1e9) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what, of = heapq.heappop(self.events)
            getattr(self, what)(*of)
            if self.state.wakes:
                self.state.wakes = False
                for name in PEERS:
                    self.at(self.now + self.delay(), "wake", name)

    def arrive(self, peer: str, group: str, count: str = "1") -> None:
        process = self.peers[peer]
        if not process.dead:
            process.waiting[group] += int(count)
            self.arrivals.append((self.now, group))
            self.at(self.now + self.delay(), "ask", peer, "")

    def ask(self, peer: str, number: str) -> None:
        process = self.peers[peer]
        if process.dead or number not in ("", str(process.asked)):
            return
        process.asked += 1
        self.state.run(peer, process.alive)
        groups = +process.waiting
        reply = self.state.acquire(
            peer, Known(), min(groups.total(), 100), self.now, groups=groups, bound=self.bound, most=self.places
        )
        assert reply is not None
        for lease, group in zip(reply.leases, reply.groups, strict=True):
            self.grants.append((self.now, group))
            process.waiting[group] -= 1
            process.alive[group] += 1
            self.at(self.now + self.delay(), "count", peer, group, lease)
        if reply.wait > 0:
            self.at(self.now + reply.wait + self.delay(), "ask", peer, str(process.asked))
        elif process.waiting.total():
            self.at(self.now + self.delay(), "ask", peer, "")

    def wake(self, peer: str) -> None:
        if self.peers[peer].waiting.total():
            self.ask(peer, "")

    def count(self, peer: str, group: str, lease: str) -> None:
        self.refused += self.server.take(self.now) is not None
        living = (process.alive for process in self.peers.values() if not process.dead)
        running = sum(living, Counter[str]())
        self.most, self.most_of_all = self.most | running, max(self.most_of_all, running.total())
        self.at(self.now + self.delay(), "settle", peer, lease)
        self.at(self.now + self.duration * (0.5 + self.rng.random()), "end", peer, group)

    def settle(self, peer: str, lease: str) -> None:
        if not self.peers[peer].dead:
            self.state.settle(Settlement(lease, PermitEvent.ANSWERED, 0.0), self.now)

    def end(self, peer: str, group: str) -> None:
        process = self.peers[peer]
        if process.alive[group]:
            process.alive[group] -= 1
        if not process.dead:
            self.state.run(peer, process.alive)

    def touch(self, peer: str) -> None:
        if not self.peers[peer].dead:
            self.state.touch(peer, Known(), self.now)
            self.at(self.now + 20.0, "touch", peer)

    def die(self, peer: str) -> None:
        self.peers[peer].dead = True
        self.deaths += 1
        if self.is_seen:
            self.at(self.now + 0.3, "die_seen", peer)

    def die_seen(self, peer: str) -> None:
        self.state.died(peer, self.now)


GROUPS = st.sampled_from(["x", "y", "z", ""])
ARRIVALS = st.lists(
    st.tuples(st.floats(0.0, 60.0), st.sampled_from(PEERS), GROUPS, st.integers(1, 30)), min_size=1, max_size=8
)


@settings(max_examples=40, deadline=None)
@given(
    arrivals=ARRIVALS,
    singles=st.lists(st.tuples(st.floats(5.0, 60.0), st.sampled_from(PEERS)), min_size=1, max_size=4),
    deaths=st.lists(st.tuples(st.floats(5.0, 60.0), st.sampled_from(PEERS[1:])), max_size=2),
    limit=st.integers(1, 20),
    bound=st.sampled_from([None, 1, 3]),
    places=st.sampled_from([None, 4]),
    is_seen=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_turns_hold_whatever_happens(
    *,
    arrivals: list[tuple[float, str, str, int]],
    singles: list[tuple[float, str]],
    deaths: list[tuple[float, str]],
    limit: int,
    bound: int | None,
    places: int | None,
    is_seen: bool,
    seed: int,
) -> None:
    """Who has one request waits for one permit of each other group; none is lost or too many, nor a bound broken."""
    world = World(limit, random.Random(seed), bound=bound, places=places, is_seen=is_seen)
    for peer in PEERS:
        world.at(20.0, "touch", peer)
    for when, peer, group, count in arrivals:
        world.at(when, "arrive", peer, group, str(count))
    for number, (when, peer) in enumerate(singles):
        world.at(when, "arrive", peer, f"single {number}")
    for when, peer in deaths:
        world.at(when, "die", peer)
    world.run(2000.0)

    left = [process.waiting.total() for process in world.peers.values() if not process.dead]
    assert not any(left)
    assert world.refused == 0
    assert bound is None or all(count <= bound for count in world.most.values())
    assert places is None or world.most_of_all <= places
    for came, single in world.arrivals:
        served = [when for when, group in world.grants if group == single]
        if single.startswith("single") and served:
            # What comes free in one moment is fetched in any order.
            others = Counter(group for when, group in world.grants if came + world.rtt < when < served[0] - 0.05)
            event(f"waits for {others.total()}")
            assert max(others.values(), default=0) <= 1


@pytest.mark.parametrize("bound", [None, 40])
def test_limit_is_used_up_by_groups(bound: int | None) -> None:
    """Many groups in three processes use the limit up to 1 %, and each gets the same."""
    world = World(20, random.Random(3), bound=bound)
    for peer in PEERS:
        for group in ("x", "y", "z", peer):
            world.at(0.0, "arrive", peer, group, "200")
    world.run(20 * PERIOD)

    assert world.refused == 0
    assert len(world.grants) >= 20 * 20 / 1.01
    # The first twenty went to who was there first.
    shares = Counter(group for _, group in world.grants[20:])
    assert max(shares.values()) - min(shares.values()) <= 3


@pytest.mark.parametrize("is_seen", [True, False])
def test_dead_hold_nobody_up(is_seen: bool) -> None:
    """The process whose turn it is has died: the others go on within a second, and with its group a lease later."""
    world = World(1, random.Random(1), bound=1, is_seen=is_seen, duration=1e9)
    world.at(0.0, "arrive", "a.1", "x", "9")
    world.at(0.1, "arrive", "b.1", "y")
    world.at(0.2, "arrive", "c.1", "z")
    world.at(0.3, "arrive", "c.1", "x")
    world.at(5.0, "die", "a.1")
    world.at(5.0, "die", "b.1")
    world.at(20.0, "touch", "c.1")
    world.run(200.0)

    assert [group for _, group in world.grants] == ["x", *("xz" if is_seen else "zx")]
    second, third = (when for when, _ in world.grants[1:])
    assert second <= PERIOD + 1.0
    assert third <= 2 * PERIOD + 1.0 if is_seen else PEER_SEEN_FOR <= third <= 5.0 + PEER_SEEN_FOR + 1.0


def test_who_lets_another_have_the_last_place_is_next() -> None:
    """One task may run: whoever asked for the place that was another's has the next one, whoever asks first then."""
    world = World(20, random.Random(1), places=1)
    state = world.state

    def ask(peer: str, **waiting: int) -> tuple[str, ...]:
        reply = state.acquire(peer, Known(), sum(waiting.values()), 1.0, groups=waiting, most=1)
        assert reply is not None
        return reply.groups

    assert ask("a.1", x=1) == ("x",)
    assert (ask("b.1", y=2), ask("c.1", z=1)) == ((), ())
    state.run("a.1", {})
    assert (ask("c.1", z=1), ask("b.1", y=2)) == ((), ("y",))
    state.run("b.1", {})
    assert state.wakes
    assert (ask("b.1", y=1), ask("c.1", z=1)) == ((), ("z",))
