"""What sessions ask and tell of a state they share, by the rules, on a store in memory and in virtual time."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest
from emulated import error_of
from memory_coordination import Memory, MemoryStore
from seats import BACK, CLAIM, PERIOD, Seat, taken

from flux2_async.coordination.contract import KeyEntry, Message, PermitEvent, Settlement, Terms
from flux2_async.coordination.coordinator import Coordinator
from flux2_async.coordination.store import Life
from flux2_async.errors import CoordinationError
from flux2_async.models import RateLimit

OTHER = attrs.evolve(CLAIM, ref="ref-2", owner="claim-2")


@asynccontextmanager
async def seats(memory: Memory, number: int, limit: int = 20, lease: float = 70.0) -> AsyncIterator[Sequence[Seat]]:
    terms = Terms(RateLimit(limit, PERIOD), lease)
    async with taken([Seat(Coordinator(memory, "account", terms)) for _ in range(number)]) as made:
        yield made


async def test_limit_is_shared() -> None:
    """All processes together get the limit, and a permit comes back a period after it was settled."""
    async with seats(Memory(), 3) as (first, second, third):
        leases = [*await first.take(15), *await second.take(15)]
        waiting = await third.coordinator.acquire(4)
        for lease in leases:
            await first.settle(lease, PermitEvent.ANSWERED)
        await asyncio.sleep(BACK)
        after = await third.take(4)

    assert len(set(leases)) == 20
    assert (waiting.leases, waiting.peers) == ((), 3)
    assert 0 < waiting.wait <= BACK
    assert len(after) == 4


async def test_pause_is_told_and_holds_for_all() -> None:
    """A refusal of one process stops the others, who hear of it, and who joins later."""
    memory = Memory()
    async with seats(memory, 2) as (refused, other):
        (lease,) = await refused.take(1)
        await refused.settle(lease, PermitEvent.THROTTLED, ago=1.0, pause=7.0)
        await asyncio.sleep(0.1)
        answer = await other.coordinator.acquire(1)
        async with seats(memory, 1) as (late,):
            assert late.joined is not None
            assert late.joined.paused == pytest.approx(6.0, abs=0.2)

    assert [message.kind for message in other.heard] == ["pause"]
    assert other.heard[0].seconds == pytest.approx(6.0, abs=0.1)
    assert answer.leases == ()
    assert answer.paused == pytest.approx(6.0, abs=0.2)
    assert refused.heard == []


async def test_unused_permit_wakes_who_waits() -> None:
    """A permit that comes back early is told to those who wait, and is free."""
    async with seats(Memory(), 2, limit=1) as (first, second):
        (lease,) = await first.take(1)
        await second.take(1)
        await first.settle(lease, PermitEvent.NEVER_SENT)
        await asyncio.sleep(0.1)

        assert second.heard == [Message("wake")]
        assert len(await second.take(1)) == 1


async def test_what_one_publishes_reaches_all_others() -> None:
    """Every other process hears it, and the sender does not; what no version has ever said is no message."""
    message = Message("callback", ref="ref-1", task_id="task-1")
    memory = Memory()
    async with seats(memory, 3) as (sender, *others):
        await sender.coordinator.publish(message)
        memory.stores[1].on_line("somebody says what nobody knows")
        memory.stores[1].on_line("")
        await asyncio.sleep(0.1)

        # Who may have missed something asks how many there are.
        told = Message("peers", rates=(RateLimit(20, PERIOD),), peers=3)
        assert [other.heard for other in others] == [[Message("wake"), message, told], [message]]
        assert sender.heard == []


async def test_silent_process_says_that_it_is_there() -> None:
    """Who asks for nothing counts all the same, and hears how many there are; who leaves, or is cut off, does not."""
    memory = Memory()
    async with seats(memory, 3) as (first, second, _):
        await asyncio.sleep(3600.0)
        assert first.heard[-1].peers == 3
        assert (await first.coordinator.acquire(0)).peers == 3
        await second.coordinator.aclose()
        assert (await first.coordinator.acquire(0)).peers == 2
        memory.stores[1].cut = True
        await asyncio.sleep(61.0)
        assert (await first.coordinator.acquire(0)).peers == 1


async def test_joining_again_gives_back_what_was_not_heard_of() -> None:
    """Who did not get an answer says what it knows; other leases are free at once, permits taken meanwhile count."""
    memory = Memory()
    async with seats(memory, 1, limit=5) as (seat,):
        known, *_ = await seat.take(2)
        memory.lost_answers = 1
        assert isinstance(await error_of(seat.take(3)), CoordinationError)
        await seat.coordinator.join([Settlement("away:1", PermitEvent.ANSWERED, BACK - 4.0)], keeps=[known])
        assert len(await seat.take(5)) == 3
        await asyncio.sleep(4.0)
        assert len(await seat.take(5)) == 1


async def test_permits_of_a_cancelled_question_are_not_lost() -> None:
    """Who is cancelled while the answer is on its way, and leaves, takes no permit along; what it knows of it does."""
    async with seats(Memory(rtt=1.0), 2, limit=5) as (leaving, other):
        assert len(await leaving.take(2)) == 2
        question = asyncio.create_task(leaving.take(3))
        await asyncio.sleep(1.5)
        question.cancel()
        await leaving.coordinator.aclose()
        assert len(await other.take(5)) == 3


async def test_who_was_alone_for_long_waits_a_period() -> None:
    """Others were alone as well, and have sent what is not written yet."""
    async with seats(Memory(), 1) as (seat,):
        assert (await seat.coordinator.join(alone=2 * PERIOD)).paused == pytest.approx(BACK)


async def test_who_has_not_joined_gets_nothing() -> None:
    """Asking comes after joining."""
    seat = Seat(Coordinator(Memory(), "account", Terms(None, 70.0)))
    await seat.coordinator.open(seat.heard.append)
    assert isinstance(await error_of(seat.take(1)), CoordinationError)
    await seat.coordinator.aclose()


async def test_state_that_was_lost_is_made_anew_with_a_pause() -> None:
    """Who knew it waits two periods, as what is out is written nowhere; new ones wait with it; all count again."""
    memory = Memory()
    async with seats(memory, 2, limit=3) as (first, second):
        await first.take(2)
        memory.empty()
        answer = await second.coordinator.acquire(1)
        assert answer.leases == ()
        assert answer.paused == pytest.approx(2 * BACK)
        assert await first.take(1) == ()
        await asyncio.sleep(2 * BACK)
        assert len(await second.take(1)) == 1
        assert (await first.coordinator.acquire(1)).peers == 2


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ('[{]"epoch"', '{"x": 1, "epoch"'),
        ('"_leases"', '"leases"'),
        ('"limit": [0-9]+', '"limit": -1'),
        ('"limit": [0-9]+', '"limit": Infinity'),
    ],
)
async def test_state_that_cannot_be_read_is_an_error(part: str, instead: str) -> None:
    """A text that makes no sense is told, and kept."""
    memory = Memory()
    async with seats(memory, 1) as (seat,):
        await seat.coordinator.reserve(CLAIM)
        [state] = [re.sub(part, instead, text) for text, _ in memory.texts.values() if re.search(part, text)]
        texts = {name: (state, until) for name, (_, until) in memory.texts.items()}
        memory.texts = dict(texts)
        for question in (seat.take(1), seat.coordinator.look(CLAIM.key)):
            error = await error_of(question)
            assert isinstance(error, CoordinationError)
            assert "cannot be read" in str(error)

        assert memory.texts == texts


class Lives(Memory):
    """A memory that knows of each process whether it lives; nobody has to say it."""

    def __init__(self) -> None:
        super().__init__()
        self.lives: dict[str, Life] = {}

    def store(self, account: str, member: str) -> MemoryStore:
        lives = self.lives
        lives[member] = Life.ALIVE

        class Seen(MemoryStore):
            def life_of(self, member: str) -> Life:
                return lives[member]

        made = Seen(self)
        self.stores.append(made)
        return made


@pytest.mark.parametrize("life", [Life.DEAD, Life.GONE])
async def test_who_is_known_to_have_died_costs_two_periods(life: Life) -> None:
    """The next question finds it out; what one that is gone has borrowed is left to expire, since it may live."""
    memory = Lives()
    async with seats(memory, 2, limit=2, lease=30.0) as (first, second):
        await first.take(2)
        memory.lives[next(iter(memory.lives))] = life
        noticed = await second.coordinator.acquire(1)
        back = 2 * BACK + (30.0 if life is Life.GONE else 0.0)
        await asyncio.sleep(back - 0.1)
        before = await second.take(1)
        await asyncio.sleep(0.2)
        after = await second.take(1)

    assert noticed.peers == 1
    assert (len(before), len(after)) == (0, 1)


async def test_who_lost_the_sign_of_its_life_counts_again() -> None:
    """It asks, and is one of them as before; without a word it stays one for as long as it lives."""
    memory = Lives()
    async with seats(memory, 2) as (first, second):
        name = next(iter(memory.lives))
        memory.lives[name] = Life.GONE
        assert (await second.coordinator.acquire(0)).peers == 1
        memory.lives[name] = Life.ALIVE
        assert len(await first.take(1)) == 1
        await asyncio.sleep(10 * 24 * 3600.0)
        assert (await second.coordinator.acquire(0)).peers == 2
        assert first.heard == []


# --- Keys ---


async def test_key_is_reserved_once() -> None:
    """Of two processes one reserves a key; the other one is told what it stands for, and when that changes."""
    async with seats(Memory(), 2) as (first, second):
        assert await first.coordinator.look(CLAIM.key) is None
        assert await first.coordinator.reserve(CLAIM) is None
        sending = await second.coordinator.reserve(OTHER)
        await first.coordinator.bind(CLAIM, "task-1")
        await asyncio.sleep(0.1)
        bound = await second.coordinator.look(CLAIM.key)
        await first.coordinator.bind(CLAIM, "task-1")
        await asyncio.sleep(0.1)

    assert sending == KeyEntry(CLAIM.fingerprint, "ref-1", "sending", wait=sending.wait if sending else 0)
    assert bound == KeyEntry(CLAIM.fingerprint, "ref-1", "bound", "task-1")
    assert second.heard == [Message("key", key=CLAIM.key)]


async def test_freed_key_can_be_reserved() -> None:
    """What certainly created nothing leaves no trace; nobody frees the key of another one."""
    async with seats(Memory(), 2) as (first, second):
        await first.coordinator.reserve(CLAIM)
        await second.coordinator.free(CLAIM)
        assert await second.coordinator.look(CLAIM.key) is not None
        await first.coordinator.free(CLAIM)
        assert await second.coordinator.reserve(OTHER) is None


async def test_doubtful_key_waits_for_its_callback() -> None:
    """An unclear send leaves the key unknown; a callback at its address binds it, in whichever process."""
    async with seats(Memory(), 2) as (first, second):
        await first.coordinator.reserve(CLAIM)
        assert await second.coordinator.unknown_in(CLAIM.ref) == pytest.approx(70.0, abs=0.1)
        await second.coordinator.resolve(CLAIM.ref, "early")
        await first.coordinator.bind(CLAIM, None)
        unknown = await second.coordinator.look(CLAIM.key)
        await second.coordinator.resolve("ref-2", "another")
        unknown_in = [await second.coordinator.unknown_in(ref) for ref in (CLAIM.ref, "ref-2")]
        await second.coordinator.resolve(CLAIM.ref, "task-1")
        bound = await first.coordinator.look(CLAIM.key)
        assert await first.coordinator.unknown_in(CLAIM.ref) is None

    assert unknown == KeyEntry(CLAIM.fingerprint, CLAIM.ref, "unknown")
    assert unknown_in == [0.0, None]
    assert bound == KeyEntry(CLAIM.fingerprint, CLAIM.ref, "bound", "task-1")


@pytest.mark.parametrize("life", [Life.ALIVE, Life.DEAD, Life.GONE])
async def test_owner_that_died_leaves_unknown(life: Life) -> None:
    """A key whose owner was killed while sending is unknown at once, else when the POST's time is over; never free."""
    memory = Lives()
    async with seats(memory, 2) as (owner, other):
        await owner.coordinator.reserve(CLAIM)
        memory.lives[next(iter(memory.lives))] = life
        entry = await other.coordinator.look(CLAIM.key)
        assert entry is not None
        assert entry.state == ("sending" if life is Life.ALIVE else "unknown")
        await asyncio.sleep(70.0)
        again = await other.coordinator.reserve(OTHER)
        assert again == KeyEntry(CLAIM.fingerprint, CLAIM.ref, "unknown")


async def test_key_is_kept_for_a_day() -> None:
    """After 24 hours the key is free."""
    memory = Memory()
    async with seats(memory, 1) as (seat,):
        await seat.coordinator.reserve(CLAIM)
        await seat.coordinator.bind(CLAIM, "task-1")
    # With nobody there, since who is there says so thousands of times a day.
    await asyncio.sleep(24 * 3600 - 1)
    async with seats(memory, 1) as (seat,):
        assert await seat.coordinator.look(CLAIM.key) is not None
        await asyncio.sleep(2)
        assert await seat.coordinator.look(CLAIM.key) is None
        assert await seat.coordinator.unknown_in(CLAIM.ref) is None


# --- The clock of a store may be set ---


def most_in_a_period(sent: list[float]) -> int:
    return max(sum(begin <= at < begin + PERIOD for at in sent) for begin in sent)


async def test_step_that_nobody_could_notice_admits_one_further_limit_once() -> None:
    """A process that first asks after the step gets what was lent before it; afterwards the limit holds again."""
    memory, loop, sent = Memory(), asyncio.get_running_loop(), list[float]()
    async with seats(memory, 1) as (old,):
        begun = loop.time()
        for lease in await old.take(20):
            await old.settle(lease, PermitEvent.ANSWERED)
        memory.set_by = 9.0
        await asyncio.sleep(1.5)
        async with seats(memory, 1) as (new,):
            while loop.time() < begun + 50.0:
                for seat in (old, new):
                    for lease in await seat.take(5):
                        await seat.settle(lease, PermitEvent.ANSWERED)
                        sent.append(loop.time())
                await asyncio.sleep(0.25)

    assert sum(at < begun + PERIOD for at in sent) <= 20
    assert most_in_a_period(sent) <= 20


async def test_slow_question_is_no_step() -> None:
    """A question that takes a second longer than the one before it costs nothing."""
    memory = Memory()
    async with seats(memory, 1) as (seat,):
        leases = await seat.take(20)
        await seat.coordinator.settle([Settlement(lease, PermitEvent.ANSWERED, 0.0) for lease in leases])
        await asyncio.sleep(4.0)
        memory.rtt = 1.0
        await seat.take(1)
        memory.rtt = 0.001
        await asyncio.sleep(BACK - 6.5)
        assert await seat.take(20) == ()
        await asyncio.sleep(1.1)
        assert len(await seat.take(20)) == 20
