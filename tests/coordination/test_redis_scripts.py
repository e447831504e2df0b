"""The Lua scripts answer as the Python rules do, step by step, on a real Redis."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis_server import RedisServer

from flux2_async._limiter.window import Fate
from flux2_async.coordination import key_state
from flux2_async.coordination.account_state import Book, Known, Reply
from flux2_async.coordination.contract import Answer, Claim, KeyEntry, Settlement, Terms
from flux2_async.coordination.redis.scripts import BOOK_SCRIPTS, KEY_SCRIPTS, script
from flux2_async.models import RateLimit

START = 1.7e9


@pytest.fixture(scope="module")
def client() -> Iterator["redis.Redis"]:
    with RedisServer() as server, server.client() as client:
        yield client


class LuaBook:
    """The shared state in Redis, asked like a `Book`; the time comes in as an argument here as well."""

    def __init__(self, client: "redis.Redis", epoch: str, terms: Terms) -> None:
        self.client, self.epoch, self.terms = client, epoch, terms
        self.scripts = {name: client.register_script(script(name)) for name in BOOK_SCRIPTS}

    def run(
        self,
        name: str,
        peer: str,
        known: Known,
        now: float,
        *arguments: Any,
        terms: Terms | None = None,
        seen: tuple[float | str, float] = ("", 0.0),
    ) -> Any:
        terms = terms or self.terms
        rate = terms.rate or RateLimit(1, 1.0)
        limit = terms.rate.limit if terms.rate else 0
        common: tuple[Any, ...] = (
            repr(now),
            peer,
            self.epoch,
            known.epoch,
            known.number,
            limit,
            repr(rate.period),
            repr(terms.lease),
        )
        return self.scripts[name](keys=["book"], args=(*common, "news", *seen, *arguments))

    def reply(self, answer: Any) -> Reply | None:
        if answer is None:
            return None
        wait, paused, learned, peers, epoch, number, _, *leases = answer
        return Reply(
            Answer(tuple(leases), float(wait), float(paused), int(learned) if learned else None, int(peers)),
            Known(epoch, int(number)),
        )

    def settle(self, settlement: Settlement, now: float) -> tuple[float, bool]:
        facts = (settlement.lease, settlement.fate.value, repr(settlement.ago), repr(settlement.pause))
        news, wakes = self.run("settle", "p", Known(), now, *facts)
        return float(news), bool(wakes)


TIMES = st.one_of(st.sampled_from([0.0, 0.01, 0.05, 0.5, 1.0, 9.9, 10.01, 20.1]), st.floats(0, 40))
FATES = st.sampled_from([Fate.ANSWERED, Fate.ANSWERED, Fate.ANSWERED, Fate.REFUSED, Fate.AMBIGUOUS, Fate.NEVER_SENT])
PEERS = st.sampled_from(["a.1", "a.2", "b.1", "c.1"])
STEPS = st.lists(
    st.tuples(
        TIMES,
        st.one_of(
            st.tuples(st.just("acquire"), PEERS, st.integers(0, 9), st.booleans()),
            st.tuples(st.just("acquire"), PEERS, st.integers(1, 9), st.just(False)),
            st.tuples(st.just("settle"), st.integers(0, 40), FATES, st.floats(0, 3), st.floats(0, 15)),
            st.tuples(st.just("settle"), st.integers(0, 40), st.just(Fate.ANSWERED), st.just(0.0), st.just(0.0)),
            st.tuples(st.just("join"), PEERS, st.lists(st.floats(0, 9), max_size=2), st.integers(1, 6)),
            st.tuples(
                st.just("rejoin"),
                PEERS,
                st.booleans(),
                st.sampled_from(["", "e", "lost"]),
                st.sampled_from([0.0, 20.0]),
            ),
            st.tuples(st.just("leave"), PEERS),
            st.tuples(st.just("touch"), PEERS),
        ),
    ),
    max_size=80,
)


class Pair:
    """Both sides, and what a process would remember."""

    def __init__(self, client: "redis.Redis", terms: Terms) -> None:
        client.flushall()
        self.now = START
        self.terms = terms
        self.book, self.lua = Book("e", terms, self.now), LuaBook(client, "e", terms)
        self.known = Known("e")
        self.leases: list[str] = []
        for peer in ("a.1", "b.1", "c.1"):
            self.join(peer, [], self.known)

    def agree(self, left: Reply | None, right: Reply | None) -> None:
        assert right == left
        if left is not None:
            self.leases += left.answer.leases
            self.known = left.known

    def join(
        self,
        peer: str,
        held: list[float],
        known: Known,
        *,
        replaces: str = "",
        keeps: tuple[str, ...] = (),
        alone: float = 0.0,
    ) -> None:
        facts = [replaces, repr(alone), len(held), *map(repr, held), *keeps]
        answer = self.lua.run("join", peer, known, self.now, *facts, terms=self.terms)
        mine = self.book.join(
            peer, known, self.now, terms=self.terms, held=held, replaces=replaces, keeps=keeps, alone=alone
        )
        self.agree(mine, self.lua.reply(answer))

    def step(self, what: str, *facts: Any) -> None:
        match what, *facts:
            case "acquire", peer, want, first:
                answer = self.lua.run("acquire", peer, self.known, self.now, want, "1" if first else "")
                self.agree(self.book.acquire(peer, self.known, want, self.now, first=first), self.lua.reply(answer))
            case "settle", place, fate, ago, pause:
                lease = self.leases[place % len(self.leases)] if self.leases else "other:3"
                # Some are settled twice.
                if place < 30 and self.leases:
                    self.leases.remove(lease)
                settlement = Settlement(lease, fate, ago, pause)
                assert self.lua.settle(settlement, self.now) == self.book.settle(settlement, self.now)
            case "join", peer, held, limit:
                if self.terms.rate:
                    self.terms = Terms(RateLimit(limit, 10.0), 30.0)
                self.join(peer, held, self.known)
            case "rejoin", peer, keeps, epoch, alone:
                known = Known(epoch, self.known.number + 1)
                kept = tuple(self.leases[::2]) if keeps else ()
                self.join(peer, [], known, replaces=peer[:2], keeps=kept, alone=alone)
            case "leave", peer:
                self.lua.run("leave", peer, self.known, self.now)
                self.book.leave(peer, self.now)
            case "touch", peer:
                answer = self.lua.run("touch", peer, self.known, self.now)
                self.agree(self.book.touch(peer, self.known, self.now), self.lua.reply(answer))


@settings(max_examples=120)
@given(steps=STEPS, limit=st.integers(0, 7))
@example(
    # What was sent alone is declared.
    steps=[(0.0, ("join", "a.1", [5.0], 1)), (1.0, ("acquire", "b.1", 1, False)), (4.1, ("acquire", "b.1", 1, False))],
    limit=1,
)
@example(
    # Of three leases a process knows two.
    steps=[
        (0.0, ("acquire", "a.1", 3, False)),
        (0.1, ("rejoin", "a.1", True, "", 0.0)),
        (0.1, ("acquire", "b.1", 5, False)),
    ],
    limit=5,
)
@example(steps=[(0.0, ("join", "a.2", [], 3)), (0.1, ("rejoin", "a.1", False, "", 0.0))], limit=3)
@example(
    # A settlement is said again, when what it said is nearly over.
    steps=[
        (0.0, ("acquire", "a.1", 1, False)),
        (0.0, ("settle", 30, Fate.ANSWERED, 0.0, 0.0)),
        (9.9, ("settle", 30, Fate.ANSWERED, 0.0, 0.0)),
        (0.2, ("acquire", "a.1", 1, False)),
    ],
    limit=1,
)
@example(
    # Who left is not waited for.
    steps=[
        (0.0, ("acquire", "a.1", 1, False)),
        (0.0, ("settle", 0, Fate.ANSWERED, 0.0, 0.0)),
        (0.1, ("acquire", "b.1", 1, False)),
        (0.1, ("acquire", "c.1", 1, False)),
        (0.1, ("leave", "b.1")),
        (9.75, ("acquire", "c.1", 1, False)),
    ],
    limit=1,
)
@example(
    # A lease expires a while before anybody asks.
    steps=[(0.0, ("acquire", "a.1", 1, False)), (35.0, ("touch", "b.1")), (15.1, ("acquire", "b.1", 1, False))],
    limit=1,
)
def test_scripts_answer_like_the_rules(client: "redis.Redis", steps: list[Any], limit: int) -> None:
    """Whatever processes do, and whenever, the scripts give the same leases, waits, pauses and limits."""
    pair = Pair(client, Terms(RateLimit(limit, 10.0) if limit else None, 30.0))
    for seconds, step in steps:
        pair.now += seconds
        pair.step(*step)


@settings(max_examples=4)
@given(chance=st.randoms(use_true_random=False), limit=st.integers(2, 12))
def test_scripts_learn_like_the_rules(client: "redis.Redis", chance: Any, limit: int) -> None:
    """Over a hundred periods of full use after some refusals both learn, grow and forget alike, in the same period."""
    pair = Pair(client, Terms(RateLimit(limit, 10.0), 30.0))
    for number in range(130):
        for _ in range(limit):
            # Paced sends come one by one.
            pair.step("acquire", chance.choice(["a.1", "b.1", "c.1"]), limit, False)
            pair.now += 10.0 / limit
        while pair.leases:
            fate = Fate.REFUSED if number < 12 and chance.random() < 0.2 else Fate.ANSWERED
            pair.step("settle", 0, fate, 0.0, 2.0)


def test_clock_that_is_set_back_holds_nothing_up(client: "redis.Redis") -> None:
    """When the server's clock jumps back by an hour a permit comes back after a period all the same."""
    client.flushall()
    terms, known = Terms(RateLimit(1, 10.0), 70.0), Known()
    book = LuaBook(client, "e", terms)
    book.run("join", "a.1", known, START, "", "0.0", 0)
    lease = book.run("acquire", "a.1", known, START + 1, 1, "")[7]
    book.settle(Settlement(lease, Fate.ANSWERED, 0.0), START + 1)
    back = START - 3600

    assert book.run("acquire", "a.1", known, back, 1, "")[7:] == []
    assert book.run("acquire", "a.1", known, back + 9.9, 1, "")[7:] == []
    assert len(book.run("acquire", "a.1", known, back + 10.1, 1, "")[7:]) == 1


class Process:
    """A process whose own clock is right, at a server whose clock may be set."""

    def __init__(self, book: LuaBook, name: str, steps: list[tuple[float, float]]) -> None:
        self.book, self.name, self.steps = book, name, steps
        self.known = Known()
        self.seen: tuple[float | str, float] = ("", 0.0)

    def ask(self, name: str, now: float, *arguments: Any, took: float = 0.0) -> list[str]:
        """Ask at a time, by a right clock, and give the leases."""
        shown = now + took + sum(step for at, step in self.steps if at <= now)
        last, asked_at = self.seen
        answer = self.book.run(name, self.name, self.known, shown, *arguments, seen=(last, now - asked_at))
        self.known, self.seen = Known(answer[4], int(answer[5])), (answer[6], now)
        return list(answer[7:])

    def send(self, now: float, want: int) -> int:
        """Use what is lent, answered at once; give how much that was."""
        leases = self.ask("acquire", now, want, "")
        for lease in leases:
            shown = now + sum(step for at, step in self.steps if at <= now)
            self.book.settle(Settlement(lease, Fate.ANSWERED, 0.0), shown)
        return len(leases)


def most_in_a_period(sent: list[tuple[float, int]]) -> int:
    return max(sum(count for at, count in sent if begin <= at < begin + 10.0) for begin, _ in sent)


@pytest.mark.parametrize("steps", [[9.0], [3600.0], [9.0, 9.0, 9.0], [9.0, -9.0, 9.0], [-3600.0, 3600.0]])
def test_clock_that_is_set_forward_lends_nothing_twice(client: "redis.Redis", steps: list[float]) -> None:
    """However the server's clock jumps, processes that asked before get no permit earlier, and none later."""
    client.flushall()
    set_at = [(START + 5.0 + 7.0 * number, step) for number, step in enumerate(steps)]
    book = LuaBook(client, "e", Terms(RateLimit(20, 10.0), 70.0))
    processes = [Process(book, name, set_at) for name in ("a.1", "b.1")]
    for process in processes:
        process.ask("join", START, "", "0.0", 0)
    times = [START + 0.25 * number for number in range(400)]
    sent = [(now, process.send(now, 3)) for now in times for process in processes]

    assert most_in_a_period(sent) <= 20
    assert sum(count for _, count in sent) >= 180


def test_step_that_nobody_could_notice_admits_one_further_limit_once(client: "redis.Redis") -> None:
    """A process that first asks after the step gets what was lent before it; afterwards the limit holds again."""
    client.flushall()
    set_at = [(START + 1.0, 9.0)]
    book = LuaBook(client, "e", Terms(RateLimit(20, 10.0), 70.0))
    old, new = Process(book, "a.1", set_at), Process(book, "b.1", set_at)
    old.ask("join", START, "", "0.0", 0)
    assert old.send(START, 20) == 20
    new.ask("join", START + 1.5, "", "0.0", 0)
    times = [START + 1.5 + 0.25 * number for number in range(200)]
    sent = [(now, process.send(now, 5)) for now in times for process in (old, new)]

    early = [(at, count) for at, count in sent if at < START + 10.0]
    assert sum(count for _, count in early) <= 20
    assert most_in_a_period(sent) <= 20


def test_slow_question_is_no_step(client: "redis.Redis") -> None:
    """A question that takes a second longer than the one before it costs that second, and nothing afterwards."""
    client.flushall()
    book = LuaBook(client, "e", Terms(RateLimit(20, 10.0), 70.0))
    process = Process(book, "a.1", [])
    process.ask("join", START, "", "0.0", 0)
    assert process.send(START + 1.0, 20) == 20
    process.ask("touch", START + 5.0, took=1.0)
    assert process.send(START + 11.9, 20) == 0
    assert process.send(START + 12.1, 20) == 20
    assert process.send(START + 22.2, 20) == 20


def test_state_expires(client: "redis.Redis") -> None:
    """What nobody asks for is forgotten by Redis itself, after more than an hour and less than two."""
    Pair(client, Terms(RateLimit(20, 10.0), 70.0))

    assert 3600 < client.ttl("book") < 7200


class LuaKeys:
    def __init__(self, client: "redis.Redis") -> None:
        client.flushall()
        self.scripts = {name: client.register_script(script(name)) for name in KEY_SCRIPTS}

    def run(self, name: str, claim: Claim, now: float, extra: str = "") -> KeyEntry | None:
        facts = (repr(now), "p", "news", claim.key, claim.fingerprint, claim.ref, claim.owner, extra)
        entry: Any = self.scripts[name](keys=[f"key:{claim.key}", f"ref:{claim.ref}"], args=facts)
        if name not in ("look", "reserve") or entry is None:
            return None
        fingerprint, ref, state, task_id, wait = entry
        return KeyEntry(fingerprint, ref, state, task_id, float(wait))


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 1.0, 30.0, 71.0]),
            st.sampled_from(KEY_SCRIPTS),
            st.sampled_from(["r1", "r2"]),
            st.sampled_from(["o1", "o1", "o2"]),
        ),
        max_size=12,
    )
)
def test_key_scripts_answer_like_the_rules(client: "redis.Redis", steps: list[tuple[float, str, str, str]]) -> None:
    """A key stands for the same, whoever says what about it in which order."""
    lua, row, now = LuaKeys(client), None, START
    for number, (seconds, what, ref, owner) in enumerate(steps):
        now += seconds
        claim, task_id = Claim("k", f"print {ref}", ref, owner), f"t{number}"
        expected = None
        match what:
            case "look":
                expected = key_state.view(row, now)
            case "reserve":
                row, expected = key_state.reserve(row, claim, now, lease=70.0)
            case "bind":
                row = key_state.bind(row, claim, task_id, now)
            case "doubt":
                row = key_state.doubt(row, claim, now)
            case "free":
                row = key_state.free(row, claim)
            case "resolve":
                row = key_state.resolve(row, ref, task_id, now)
        assert lua.run(what, claim, now, "70.0" if what == "reserve" else task_id) == expected
        assert lua.run("look", claim, now) == key_state.view(row, now)


def test_keys_expire(client: "redis.Redis") -> None:
    """A key, and the way to it from its submission, are forgotten after 24 hours."""
    LuaKeys(client).run("reserve", Claim("k", "print", "r", "o"), START, "70.0")

    assert [client.ttl("key:k"), client.ttl("ref:r")] == [86400, 86400]
