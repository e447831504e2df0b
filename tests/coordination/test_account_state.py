"""The shared state's rules in simulated time: several processes, a server that counts, and who dies or forgets."""

import heapq
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rate_servers import SlidingLog
from seats import BACK, PERIOD

from flux2_async.coordination.account_state import AccountState
from flux2_async.coordination.contract import Answer, Known, PermitEvent, Settlement, Terms
from flux2_async.models import RateLimit

TERMS = Terms(RateLimit(20, PERIOD), 70.0)


def book(limit: int = 20, lease: float = 70.0, epoch: str = "e", now: float = 0.0) -> AccountState:
    terms = Terms(RateLimit(limit, PERIOD), lease)
    shared = AccountState(epoch, terms, now)
    for peer in ("a", "b", "c", "d"):
        shared.join(peer, Known(), now, terms=terms, seen_for=math.inf)
    return shared


def ask(
    book: AccountState, peer: str, want: int, now: float, *, known: Known | None = None, first: bool = False
) -> Answer:
    reply = book.acquire(peer, known or Known(), want, now, first=[""] if first else [])
    assert reply is not None
    return reply


def take(shared: AccountState, peer: str, want: int, now: float) -> tuple[str, ...]:
    return ask(shared, peer, want, now).leases


def answered(lease: str) -> Settlement:
    return Settlement(lease, PermitEvent.ANSWERED, 0.0)


@attrs.define
class World:
    """Processes that share a book, and a server; a heap of events instead of a loop.

    Attributes:
        kill: Share of the requests whose process dies right after sending; another one takes over its work.
    """

    limit: int
    rng: random.Random
    rtt: float
    kill: float = 0.0
    lease: float = 3 * PERIOD
    todo: dict[str, int] = attrs.field(factory=dict)
    sent: Counter[str] = attrs.field(factory=Counter)
    asks: Counter[str] = attrs.field(factory=Counter)
    refused: int = 0
    now: float = 0.0
    last: float = 0.0
    terms: Terms = attrs.field(init=False)
    book: AccountState = attrs.field(init=False)
    server: SlidingLog = attrs.field(init=False)
    order: Iterator[int] = attrs.field(init=False, factory=itertools.count)
    events: list[tuple[float, int, str, str]] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self.terms = Terms(RateLimit(self.limit, PERIOD), self.lease)
        shared = AccountState("e", self.terms, 0.0)
        for peer in self.todo:
            shared.join(peer, Known(), 0.0, terms=self.terms, seen_for=math.inf)
        self.book = shared
        self.server = SlidingLog(self.limit, PERIOD)
        for peer in self.todo:
            self.at(0.0, "ask", peer)

    def at(self, when: float, what: str, who: str) -> None:
        heapq.heappush(self.events, (when, next(self.order), what, who))

    def delay(self) -> float:
        return self.rtt * self.rng.lognormvariate(-0.5, 1.0) / 2

    def run(self, until: float = math.inf) -> float:
        while self.events and self.events[0][0] <= until:
            self.now, _, what, who = heapq.heappop(self.events)
            getattr(self, what)(who)
        return self.last

    def arrive(self, peer: str) -> None:
        self.todo[peer] = 400
        self.ask(peer)

    def ask(self, peer: str) -> None:
        if not self.todo[peer]:
            return
        self.asks[peer] += 1
        answer = ask(self.book, peer, self.todo[peer], self.now)
        for lease in answer.leases:
            self.todo[peer] -= 1
            self.at(self.now + self.delay(), "count", f"{peer} {lease}")
        if self.todo[peer]:
            self.at(self.now + answer.wait, "ask", peer)

    def count(self, who: str) -> None:
        self.refused += self.server.take(self.now) is not None
        peer = who.split(maxsplit=1)[0]
        self.sent[peer] += 1
        self.last = self.now
        if self.rng.random() >= self.kill:
            self.at(self.now + self.delay(), "settle", who)

    def settle(self, who: str) -> None:
        self.book.settle(answered(who.split()[1]), self.now)


@settings(max_examples=12)
@given(
    limit=st.integers(1, 25),
    wants=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
    rtt=st.sampled_from([0.01, 0.3, 2.0]),
    kill=st.sampled_from([0.0, 0.1]),
)
def test_known_limit_is_never_refused(*, limit: int, wants: list[int], seed: int, rtt: float, kill: float) -> None:
    """However many processes share an account, and die holding permits, the server never refuses one of them."""
    todo = {f"p{number}": want for number, want in enumerate(wants)}
    world = World(limit, random.Random(seed), rtt, kill, todo=todo)
    world.run()

    assert sum(world.sent.values()) == sum(wants)
    assert world.refused == 0


@pytest.mark.parametrize("processes", [1, 2, 4, 16])
def test_limit_is_used_up_and_shared_fairly(processes: int) -> None:
    """The limit is used up to 3 %, each process has its share all along, and nobody asks more than it must."""
    each = 480 // processes
    world = World(20, random.Random(5), 0.05, todo={f"p{number}": each for number in range(processes)})
    took = world.run()

    assert world.refused == 0
    assert took <= (480 / 20 - 1) * PERIOD * 1.03
    assert sum(world.asks.values()) <= 480 + 4 * processes * 480 / 20


def test_latecomer_has_its_share_at_once() -> None:
    """A process that comes while another one has hundreds waiting gets half of what comes back from then on."""
    world = World(20, random.Random(5), 0.05, todo={"early": 400, "late": 0})
    world.at(25.0, "arrive", "late")
    world.run(until=25.0)
    before = world.sent["early"]
    world.run(until=105.0)

    late, early = world.sent["late"], world.sent["early"] - before
    assert late >= 0.45 * (late + early)
    assert world.refused == 0


def test_each_gets_the_same_of_one_burst() -> None:
    """What comes back together is dealt evenly among those who wait for it."""
    shared = book()
    for lease in take(shared, "a", 20, 0.0):
        shared.settle(answered(lease), 0.1)
    waits = {peer: ask(shared, peer, 50, 0.2).wait for peer in "bcda"}
    back = 0.1 + BACK

    assert all(0.2 + wait >= back for wait in waits.values())
    assert {peer: len(take(shared, peer, 50, back + 0.02)) for peer in "bcda"} == {"b": 5, "c": 5, "d": 5, "a": 5}


def test_process_that_does_not_come_is_passed_over() -> None:
    """A permit is kept for the first in the queue for a moment, and given to the next when it does not come."""
    shared = book(limit=1)
    (lease,) = take(shared, "d", 1, 0.0)
    shared.settle(answered(lease), 0.0)
    ask(shared, "d", 1, 0.0)
    ask(shared, "b", 1, 0.1)
    kept = ask(shared, "b", 1, 10.02)

    assert kept.leases == ()
    assert 0.1 <= kept.wait <= 0.5
    assert len(take(shared, "b", 1, 10.02 + kept.wait)) == 1


def test_refused_submission_puts_its_process_first() -> None:
    """`first` goes before the processes that waited longer."""
    shared = book(limit=1)
    (lease,) = take(shared, "a", 1, 0.0)
    shared.settle(answered(lease), 0.0)
    ask(shared, "b", 1, 0.0)
    ask(shared, "a", 1, 0.1, first=True)

    assert take(shared, "b", 1, 10.02) == ()
    assert len(take(shared, "a", 1, 10.02)) == 1


def test_pause_holds_everybody_and_is_not_shortened() -> None:
    """Nobody sends before the longest pause is over, and only a longer one is news."""
    shared = book()
    first, second, third = take(shared, "a", 3, 0.0)
    news = [
        shared.settle(Settlement(first, PermitEvent.THROTTLED, 0.0, 7.0), 1.0),
        shared.settle(Settlement(second, PermitEvent.THROTTLED, 0.0, 3.0), 1.5),
        shared.settle(Settlement(third, PermitEvent.THROTTLED, 0.5, 8.0), 2.0),
    ]
    waiting = ask(shared, "b", 5, 2.0)

    assert news == [(7.0, False), (0.0, False), (7.5, False)]
    assert (waiting.leases, waiting.wait, waiting.paused) == ((), 7.5, 7.5)
    for lease in (first, second, third):
        # Who waits was promised nothing before a period is over.
        assert shared.settle(Settlement(lease, PermitEvent.REFUSED, 0.0), 9.4) == (0.0, True)
    assert len(take(shared, "b", 5, 9.5)) == 1  # nothing was accepted, so one is what was learned


@pytest.mark.parametrize(
    ("event", "back"),
    [
        (PermitEvent.REFUSED, 0.0),
        (PermitEvent.ANSWERED, BACK),
        (PermitEvent.UNCLEAR, 2 * BACK),
    ],
)
def test_429_whose_owner_is_open_keeps_its_permit(event: PermitEvent, back: float) -> None:
    """A pause gives nothing back: the permit comes back when it is told what became of its request."""
    shared = book(limit=1)
    (lease,) = take(shared, "a", 1, 0.0)
    shared.settle(Settlement(lease, PermitEvent.THROTTLED, 0.0, 1.0), 0.0)
    assert take(shared, "b", 1, 4.9) == ()
    shared.settle(Settlement(lease, event, 0.0), 5.0)

    assert (take(shared, "b", 1, 5.0) != ()) == (back == 0.0)
    assert take(shared, "b", 1, 5.0 + back - 0.01) == ()
    assert (take(shared, "b", 1, 5.0 + back) != ()) == (back > 0.0)


def test_429_lets_its_permit_be_out_for_its_pause() -> None:
    """A long pause outlasts no lease: who was refused still gives the permit back; who died loses it a lease later."""
    shared = book(limit=2)
    told, died = take(shared, "a", 2, 0.0)
    for lease in (told, died):
        shared.settle(Settlement(lease, PermitEvent.THROTTLED, 0.0, 600.0), 1.0)
    shared.settle(Settlement(told, PermitEvent.REFUSED, 0.0), 600.9)
    assert len(take(shared, "b", 2, 601.0)) == 1

    expires = 601.0 + 70.0
    assert take(shared, "b", 1, expires + 2 * PERIOD) == ()
    assert len(take(shared, "b", 1, expires + 2 * BACK)) == 1


def test_limit_learned_from_one_holds_for_all() -> None:
    """A 429 met by one process lowers the limit of the others, once for the whole burst."""
    shared = book()
    leases = take(shared, "a", 20, 0.0)
    for lease in leases[:8]:
        shared.settle(answered(lease), 0.1)
    for lease in leases[8:]:
        shared.settle(Settlement(lease, PermitEvent.THROTTLED, 0.0, PERIOD), 0.2)
        shared.settle(Settlement(lease, PermitEvent.REFUSED, 0.0), 0.3)

    answer = ask(shared, "b", 20, 10.3)
    assert answer.learned_limit == 8
    assert len(answer.leases) == 8


def test_owner_that_died_costs_one_lease() -> None:
    """A lease that nobody settles comes back two periods after it ended, and not before."""
    shared = book(limit=1, lease=30.0)
    take(shared, "d", 1, 0.0)
    back = 30.0 + 2 * BACK

    assert take(shared, "b", 1, 30.0) == ()
    assert take(shared, "b", 1, back - 0.01) == ()
    assert len(take(shared, "b", 1, back)) == 1


def test_settling_counts_from_the_answer() -> None:
    """A settlement that arrives late holds its permit for what is left of the period, and not for a whole one."""
    shared = book(limit=1)
    (lease,) = take(shared, "a", 1, 0.0)
    shared.settle(Settlement(lease, PermitEvent.ANSWERED, 6.0), 7.0)

    assert take(shared, "a", 1, 11.0) == ()
    assert len(take(shared, "a", 1, 1.0 + BACK)) == 1


def test_unsent_permit_is_told_to_those_who_wait() -> None:
    """A permit that was not used is free at once, and who waits is to be woken."""
    shared = book(limit=1)
    (lease,) = take(shared, "a", 1, 0.0)
    ask(shared, "b", 1, 0.1)

    assert shared.settle(Settlement(lease, PermitEvent.NEVER_SENT, 0.0), 0.2) == (0.0, True)
    assert len(take(shared, "b", 1, 0.2)) == 1


def test_state_that_replaces_a_lost_one_waits_two_periods() -> None:
    """A process that knew another epoch stops everybody for as long as anything sent before may be counted."""
    shared = book(epoch="new", now=100.0)
    assert len(take(shared, "a", 1, 100.0)) == 1

    assert shared.acquire("old", Known("lost", 7), 1, 102.0) is None
    reply = shared.join("old", Known("lost", 7), 103.0, terms=TERMS)
    assert reply is not None
    assert reply.paused == pytest.approx(2 * BACK - 3.0)
    assert take(shared, "a", 1, 119.0) == ()
    assert len(take(shared, "old", 1, 100.0 + 2 * BACK)) == 1


def test_state_that_was_set_back_waits_two_periods() -> None:
    """A lease younger than all that the state knows of shows that it is an old copy."""
    shared = book()
    copy = AccountState.load(json.loads(json.dumps(shared.dump())))
    reply = shared.acquire("a", Known(), 3, 1.0)
    assert reply is not None

    answer = ask(copy, "a", 1, 5.0, known=reply.known)
    assert answer.paused == pytest.approx(2 * BACK)
    (lease,) = ask(copy, "a", 1, 5.0 + 2 * BACK, known=reply.known).leases
    assert lease not in reply.leases


def test_return_of_a_process_that_was_alone_holds_all() -> None:
    """Who is back after hearing nothing for a period stops everybody until the others have declared what they sent."""
    shared = book()
    shared.join("x.2", Known("e", 0), 50.0, terms=TERMS, replaces="x.", alone=9.9)
    assert len(take(shared, "a", 1, 50.0)) == 1
    shared.join("x.3", Known("e", 0), 60.0, terms=TERMS, replaces="x.", alone=10.0)
    assert take(shared, "a", 1, 69.0) == ()
    assert len(take(shared, "a", 1, 60.0 + BACK)) == 1


def test_lease_that_never_reached_its_owner_comes_back() -> None:
    """A process that got no answer joins anew: what it does not know of is free at once, and its late question void."""
    terms = Terms(RateLimit(4, PERIOD), 70.0)
    shared = AccountState("e", terms, 0.0)
    shared.join("x.1", Known(), 0.0, terms=terms, replaces="x.")
    known = take(shared, "x.1", 1, 0.0)
    take(shared, "x.1", 3, 1.0)
    shared.join("x.3", Known("e", 1), 2.0, terms=terms, replaces="x.", keeps=known)

    assert shared.acquire("x.1", Known("e", 1), 4, 2.0) is None
    assert len(take(shared, "x.3", 4, 2.0)) == 3
    # A try to join that was slower than the next one must not give back what that one has.
    assert shared.join("x.2", Known("e", 1), 2.0, terms=terms, replaces="x.") is None
    assert take(shared, "x.3", 4, 2.0) == ()


def test_settlement_said_twice_counts_once() -> None:
    """A settlement that is repeated, or comes after the lease expired, changes nothing."""
    shared = book(limit=2, lease=30.0)
    said, expired = take(shared, "a", 2, 0.0)
    for _ in range(2):
        shared.settle(answered(said), 1.0)
    shared.join("a", Known(), 30.0, terms=Terms(RateLimit(2, PERIOD), 30.0))
    shared.settle(answered(expired), 31.0)

    assert len(take(shared, "a", 2, 31.0)) == 1
    assert len(take(shared, "b", 2, 30.0 + 2 * BACK)) == 1


def test_dead_process_is_buried() -> None:
    """What a process borrowed that is known to be dead is held for two periods from then on."""
    shared = book(limit=1)
    take(shared, "d", 1, 0.0)
    shared.died("d", 5.0)

    assert shared.peers() == ("a", "b", "c")
    assert take(shared, "a", 1, 24.9) == ()
    assert len(take(shared, "a", 1, 5.0 + 2 * BACK)) == 1


def test_settlement_of_an_unknown_lease_counts() -> None:
    """What was lent by a state that was lost is counted when it is settled, and so is what was held without one."""
    shared = book(limit=2)
    shared.settle(Settlement("lost:4", PermitEvent.ANSWERED, 1.0), 5.0)
    held = Settlement("away:1", PermitEvent.ANSWERED, BACK - 3.0)
    shared.join("a", Known(), 5.0, terms=Terms(RateLimit(2, PERIOD), 70.0), held=[held])

    assert take(shared, "b", 2, 5.0) == ()
    assert len(take(shared, "b", 2, 8.0)) == 1
    assert len(take(shared, "b", 2, 4.0 + BACK)) == 1

    # The state was set back.
    shared = book(limit=1)
    shared.settle(Settlement("e:7", PermitEvent.ANSWERED, 1.0), 5.0)
    assert take(shared, "b", 1, 5.0) == ()
    assert len(take(shared, "b", 1, 4.0 + BACK)) == 1

    shared = book(limit=1)
    shared.settle(Settlement("lost:5", PermitEvent.UNCLEAR, 1.0), 5.0)
    assert take(shared, "b", 1, 4.0 + BACK) == ()
    assert len(take(shared, "b", 1, 4.0 + 2 * BACK)) == 1


def test_nobody_asks_all_the_time() -> None:
    """However close the next permit is, an answer names a time that lets nobody ask more than 50 times a second."""
    shared = book(limit=1)
    (lease,) = take(shared, "a", 1, 0.0)
    shared.settle(answered(lease), 0.0)

    assert ask(shared, "b", 1, BACK - 1e-6).wait == pytest.approx(0.02)


def test_peers_are_those_seen_lately() -> None:
    """A process counts for a minute after it was last heard of, or until it leaves."""
    shared = AccountState("e", TERMS, 0.0)
    for peer in "abc":
        shared.join(peer, Known(), 0.0, terms=TERMS)
    assert ask(shared, "a", 1, 30.0).peers == 3
    shared.leave("b", 30.0)
    assert ask(shared, "a", 1, 31.0).peers == 2
    assert ask(shared, "a", 1, 61.0).peers == 1
    assert shared.touch("c", Known(), 61.0) is None


def test_the_lowest_limit_of_those_that_live_counts() -> None:
    """A process that joins with a lower limit lowers it for all until it leaves; what is out stays out."""
    shared = AccountState("e", TERMS, 0.0)
    shared.join("a", Known(), 0.0, terms=Terms(RateLimit(3, PERIOD), 70.0))
    shared.join("b.1", Known(), 0.0, terms=Terms(RateLimit(2, PERIOD), 70.0))
    assert len(take(shared, "a", 5, 0.0)) == 2
    # Joined anew, and another that would allow more: nothing is raised.
    shared.join("b.2", Known("e", 2), 1.0, terms=Terms(RateLimit(2, PERIOD), 70.0), replaces="b.")
    shared.join("c", Known(), 1.0, terms=Terms(RateLimit(9, PERIOD), 70.0))
    assert take(shared, "c", 5, 1.0) == ()
    shared = AccountState.load(json.loads(json.dumps(shared.dump())))
    shared.leave("b.2", 1.0)
    assert len(take(shared, "c", 5, 1.0)) == 1
    # A minute later nobody has heard of the one with the lower of both limits.
    shared.touch("c", Known("e", 3), 59.0)
    assert len(take(shared, "c", 20, 110.0)) == 9


def test_limits_of_different_periods_count_together() -> None:
    """Nobody's is exceeded, whichever lasts longer."""
    shared = AccountState("e", TERMS, 0.0)
    shared.join("a", Known(), 0.0, terms=Terms(RateLimit(5, PERIOD), 70.0))
    shared.join("b", Known(), 0.0, terms=Terms(RateLimit(2, 2 * PERIOD), 70.0))
    assert len(take(shared, "a", 9, 0.0)) == 2
    shared.leave("b", 0.0)
    assert len(take(shared, "a", 9, 0.0)) == 3


def test_no_limit_still_shares_the_pause() -> None:
    """Without a limit everybody gets what it wants, except during a pause."""
    shared = AccountState("e", Terms(None, 70.0), 0.0)
    for peer in "ab":
        shared.join(peer, Known(), 0.0, terms=Terms(None, 70.0))
    leases = take(shared, "a", 50, 0.0)
    assert len(leases) == 50
    shared.settle(Settlement(leases[0], PermitEvent.THROTTLED, 0.0, 5.0), 1.0)

    assert take(shared, "b", 1, 5.9) == ()
    assert len(take(shared, "b", 100, 6.0)) == 100


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_dump_and_load_keep_everything(seed: int) -> None:
    """A book written down and read after every step answers as one that was not."""
    rng = random.Random(seed)
    kept, written = book(limit=5), book(limit=5)
    now, leases = 0.0, list[str]()
    for _ in range(60):
        now += rng.random() * 3
        written = AccountState.load(json.loads(json.dumps(written.dump())))
        if leases and rng.random() < 0.6:
            event = rng.choice(list(PermitEvent))
            lease = leases[-1] if event is PermitEvent.THROTTLED else leases.pop()
            settlement = Settlement(lease, event, rng.random(), 4.0)
            assert written.settle(settlement, now) == kept.settle(settlement, now)
        else:
            peer, want = rng.choice("abc"), rng.randrange(4)
            reply = kept.acquire(peer, Known("e"), want, now)
            assert written.acquire(peer, Known("e"), want, now) == reply
            leases += reply.leases if reply else ()


class Client:
    """A process that asks a state whose clock somebody sets, and counts the seconds itself."""

    def __init__(self, shared: AccountState, name: str, steps: list[tuple[float, float]]) -> None:
        self.shared, self.name, self.steps = shared, name, steps
        self.known, self.asked_at = Known(), 0.0

    def send(self, now: float, want: int) -> int:
        """Get what one may have, and let it be answered at once."""
        shown = now + sum(step for at, step in self.steps if at <= now)
        told = self.shared.tell_time(shown, self.known, now - self.asked_at, now - self.asked_at)
        reply = self.shared.acquire(self.name, self.known, want, told)
        assert reply is not None
        self.known, self.asked_at = reply.known, now
        for lease in reply.leases:
            self.shared.settle(answered(lease), told)
        return len(reply.leases)


@pytest.mark.parametrize("slow", [0.0, 0.9])
def test_slow_question_lets_no_time_pass(slow: float) -> None:
    """Of a clock that was set forth, only the time between two answers counts, not what a question took to arrive."""
    shared = book()
    told = shared.tell_time(100.0 + slow, Known(), 0.0, 0.0)
    reply = shared.acquire("a", Known(), 1, told)
    assert reply is not None
    # Asked at 0, read by the server at `slow`, and asked again at 1.
    later = shared.tell_time(3701.0, reply.known, passed=1.0, at_least=1.0 - slow)

    assert later - told == pytest.approx(1.0 - slow)


SET_BY = st.sampled_from([-3600.0, -9.0, 0.3, 9.0, 3600.0])


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(1.0, 9.0), SET_BY), max_size=4))
def test_clock_that_is_set_lends_nothing_twice(pauses: list[tuple[float, float]]) -> None:
    """However a server's clock jumps, processes that asked before get no permit earlier, and few later."""
    steps = [(7.0 * number + after, step) for number, (after, step) in enumerate(pauses)]
    shared = book()
    clients = [Client(shared, name, steps) for name in "ab"]
    sent = [(0.5 * number, client.send(0.5 * number, 5)) for number in range(100) for client in clients]

    assert max(sum(count for at, count in sent if begin <= at < begin + PERIOD) for begin, _ in sent) <= 20
    assert sum(count for _, count in sent) >= 90
