"""HostCoordination: the protocol of coordinators on a file, with real sockets, and the loop's clock as everybody's."""

# ruff: noqa: ASYNC240  a test may wait for the disk

import asyncio
import os
import pickle
import sqlite3
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from emulated import error_of, until
from fresh_interpreter import in_fresh_interpreter

from flux2_async._limiter.window import CLOCK_MARGIN, Fate
from flux2_async.coordination import HostCoordination
from flux2_async.coordination.account_state import FORMAT
from flux2_async.coordination.contract import Answer, Claim, KeyEntry, Message, Settlement, Terms
from flux2_async.coordination.host import coordinator as host_coordinator
from flux2_async.coordination.host import file as host_file
from flux2_async.coordination.host.coordinator import HostCoordinator
from flux2_async.coordination.host.state import HostState
from flux2_async.errors import ConfigurationError, CoordinationError
from flux2_async.models import RateLimit

ACCOUNT = "ab" * 32
PERIOD = 10.0
BACK = PERIOD * CLOCK_MARGIN
CLAIM = Claim("k" * 64, "f" * 64, "ref-1", "claim-1")
OTHER = attrs.evolve(CLAIM, ref="ref-2", owner="claim-2")


@attrs.define
class Seat:
    """A coordinator, what it has heard, and apart from that how many it was told there are."""

    coordinator: HostCoordinator
    heard: list[Message]
    counts: list[int]
    joined: Answer | None = None

    async def take(self, want: int) -> tuple[str, ...]:
        return (await self.coordinator.acquire(want)).leases

    async def settle(self, lease: str, fate: Fate, ago: float = 0.0, pause: float = 0.0) -> None:
        await self.coordinator.settle([Settlement(lease, fate, ago, pause)])

    def die(self) -> None:
        """Let go of the socket as the system does for a killed process."""
        loop = asyncio.get_running_loop()
        ear = self.coordinator._ear
        assert ear is not None
        loop.remove_reader(ear)
        ear.close()
        self.coordinator._ear = None


def seat_at(path: Path, limit: int | None = 20, lease: float = 70.0, account: str = ACCOUNT) -> Seat:
    heard: list[Message] = []
    counts: list[int] = []

    def hear(message: Message) -> None:
        if message.kind == "peers":
            counts.append(message.peers)
        else:
            heard.append(message)

    terms = Terms(RateLimit(limit, PERIOD) if limit else None, lease)
    clock = asyncio.get_running_loop().time
    return Seat(HostCoordinator(lambda: path, account, terms, hear, clock=clock), heard, counts)


@asynccontextmanager
async def seats(path: Path, number: int, **options: Any) -> AsyncIterator[list[Seat]]:
    async with AsyncExitStack() as stack:
        made = [seat_at(path, **options) for _ in range(number)]
        for seat in made:
            stack.push_async_callback(seat.coordinator.aclose)
            await seat.coordinator.open()
            seat.joined = await seat.coordinator.join()
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite"


async def test_limit_is_shared(path: Path) -> None:
    """All processes together get the limit, and a permit comes back a period after it was settled."""
    async with seats(path, 3) as (first, second, third):
        leases = [*await first.take(15), *await second.take(15)]
        waiting = await third.coordinator.acquire(4)
        for lease in leases:
            await first.settle(lease, Fate.ANSWERED)
        await asyncio.sleep(BACK)
        after = await third.take(4)

    assert len(set(leases)) == 20
    assert (waiting.leases, waiting.peers) == ((), 3)
    assert 0 < waiting.wait <= BACK
    assert len(after) == 4


async def test_other_account_is_another_state(path: Path) -> None:
    """Two accounts in one file share neither limit nor messages."""
    async with seats(path, 1) as (own,), seats(path, 1, account="cd" * 32) as (other,):
        await own.coordinator.publish(Message("callback", ref="r", task_id="t"))
        assert len(await own.take(20)) == 20
        assert len(await other.take(20)) == 20
        await other.settle("", Fate.REFUSED, pause=5.0)

        assert (await own.coordinator.acquire(0)).paused == 0.0
        assert (own.heard, other.heard) == ([], [])


async def test_pause_is_told_and_holds_for_all(path: Path) -> None:
    """A refusal of one process stops the others, who hear of it, and who joins later."""
    async with seats(path, 2) as (refused, other):
        (lease,) = await refused.take(1)
        await refused.settle(lease, Fate.REFUSED, ago=1.0, pause=7.0)
        await until(lambda: other.heard)
        answer = await other.coordinator.acquire(1)
        async with seats(path, 1) as (late,):
            assert late.joined is not None
            assert late.joined.paused == pytest.approx(6.0, abs=0.1)

    assert [message.kind for message in other.heard] == ["pause"]
    assert other.heard[0].seconds == pytest.approx(6.0, abs=0.1)
    assert answer.leases == ()
    assert answer.paused == pytest.approx(6.0, abs=0.1)
    assert refused.heard == []


async def test_unused_permit_wakes_who_waits(path: Path) -> None:
    """A permit that comes back early is told to those who wait, and is free."""
    async with seats(path, 2, limit=1) as (first, second):
        (lease,) = await first.take(1)
        await second.take(1)
        await first.settle(lease, Fate.NEVER_SENT)
        await until(lambda: second.heard)

        assert second.heard == [Message("wake")]
        assert len(await second.take(1)) == 1


async def test_who_joins_is_told_to_the_others(path: Path) -> None:
    """A process that asks for nothing hears how many there are whenever another one joins."""
    async with seats(path, 3) as (first, second, third):
        await until(lambda: len(first.counts) == 2 and second.counts)

        assert (first.counts, second.counts, third.counts) == ([2, 3], [3], [])


async def test_callback_reaches_all_others(path: Path) -> None:
    """What one process publishes, every other one hears, and itself not."""
    message = Message("callback", ref="ref-1", task_id="task-1")
    async with seats(path, 3) as (sender, *others):
        await sender.coordinator.publish(message)
        await until(lambda: all(other.heard for other in others))

        assert [other.heard for other in others] == [[message], [message]]
        assert sender.heard == []


async def test_no_limit_still_shares_the_pause(path: Path) -> None:
    """Without a limit everybody gets what it wants, except during a pause."""
    async with seats(path, 2, limit=None) as (first, second):
        leases = await first.take(70)
        assert len(leases) == 70
        await first.settle(leases[0], Fate.REFUSED, pause=5.0)
        assert await second.take(1) == ()
        await asyncio.sleep(5.0)
        assert len(await second.take(1)) == 1


async def test_permits_of_a_dead_process_come_back_after_two_periods(path: Path) -> None:
    """A killed process is noticed by the next question, so its permits do not wait for the end of their leases."""
    async with seats(path, 2, limit=2) as (dead, other):
        await dead.take(2)
        dead.die()
        noticed = await other.coordinator.acquire(1)
        await asyncio.sleep(2 * BACK - 0.01)
        before = await other.take(1)
        await asyncio.sleep(0.02)
        after = await other.take(1)

    assert noticed.peers == 1
    assert (len(before), len(after)) == (0, 1)


async def test_permits_of_who_only_lost_his_socket_expire_by_themselves(path: Path) -> None:
    """A process whose socket somebody removed may live: its permits stay lent, it counts again when it asks."""
    async with seats(path, 2, limit=2, lease=30.0) as (lost, other):
        (lease, _) = await lost.take(2)
        for name in path.with_name(path.name + "-peers").iterdir():
            if lost.coordinator._seat in name.name:
                name.unlink()
        assert (await other.coordinator.acquire(1)).peers == 1
        await lost.settle(lease, Fate.ANSWERED)
        await asyncio.sleep(BACK)
        assert len(await other.take(1)) == 1
        assert await other.take(1) == ()
        assert (await lost.coordinator.acquire(1)).peers == 2
        await asyncio.sleep(30.0 + 2 * BACK)
        assert len(await other.take(1)) == 1


async def test_who_leaves_is_not_counted(path: Path) -> None:
    """A process counts as long as it lives, however long it says nothing."""
    async with seats(path, 3) as (first, second, _):
        await asyncio.sleep(3600.0)
        assert (await first.coordinator.acquire(0)).peers == 3
        await second.coordinator.aclose()
        assert (await first.coordinator.acquire(0)).peers == 2


async def test_joining_again_gives_back_what_was_not_heard_of(path: Path) -> None:
    """Who did not get an answer says what it knows; other leases are free at once, permits taken meanwhile count."""
    async with seats(path, 1, limit=5) as (seat,):
        known, *_ = await seat.take(3)
        await seat.coordinator.join(held=[4.0], keeps=[known])
        assert len(await seat.take(5)) == 3
        await asyncio.sleep(4.0)
        assert len(await seat.take(5)) == 1


async def test_failed_joining_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who could not be written as joined still replaces the name under which it was known before."""
    async with seats(path, 1, limit=5) as (seat,):
        known, *_ = await seat.take(3)
        with closing(sqlite3.connect(path)) as holder:
            monkeypatch.setattr(host_file, "BUSY_TIMEOUT", 0.01)
            seat.coordinator._file.close()
            holder.execute("BEGIN IMMEDIATE")
            assert isinstance(await error_of(seat.coordinator.join(keeps=[known])), CoordinationError)
        answer = await seat.coordinator.join(keeps=[known])

        assert answer.peers == 1
        assert len(await seat.take(5)) == 4


async def test_who_was_alone_for_long_waits_a_period(path: Path) -> None:
    """Others were alone as well, and have sent what is not written yet."""
    async with seats(path, 1) as (seat,):
        assert (await seat.coordinator.join(alone=2 * PERIOD)).paused == pytest.approx(BACK)


async def test_who_has_not_joined_gets_nothing(path: Path) -> None:
    """Asking comes after joining."""
    seat = seat_at(path)
    await seat.coordinator.open()
    assert isinstance(await error_of(seat.take(1)), CoordinationError)
    await seat.coordinator.aclose()


async def test_removed_file_is_made_anew_with_a_pause(path: Path) -> None:
    """Who knew the removed state waits two periods, as what is out is written nowhere; new ones wait with it."""
    async with seats(path, 2, limit=3) as (first, second):
        await first.take(2)
        for name in path.parent.iterdir():
            if name.is_file():
                name.unlink()
        answer = await second.coordinator.acquire(1)
        assert answer.leases == ()
        assert answer.paused == pytest.approx(2 * BACK)
        assert await first.take(1) == ()
        await asyncio.sleep(2 * BACK)
        assert len(await second.take(1)) == 1
        assert (await first.coordinator.acquire(1)).peers == 2


async def test_removed_folder_is_made_anew(path: Path) -> None:
    """Who lost its socket with the folder takes another one, and hears again."""
    async with seats(path, 2) as (first, second):
        folder = path.with_name(path.name + "-peers")
        for name in folder.iterdir():
            name.unlink()
        folder.rmdir()
        await first.take(1)
        await second.take(1)
        await first.coordinator.publish(Message("wake"))
        await second.coordinator.publish(Message("wake"))
        await until(lambda: first.heard and second.heard)


async def test_state_before_a_start_of_the_machine_is_void(path: Path) -> None:
    """After a new start nothing is lent any more, and sending waits two periods; a key in the air is unknown."""
    async with seats(path, 1, limit=1) as (seat,):
        await seat.take(1)
        await seat.coordinator.reserve(CLAIM)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE boot SET id = 'an earlier one'")
    async with seats(path, 1, limit=1) as (seat,):
        assert seat.joined is not None
        assert seat.joined.paused == pytest.approx(2 * BACK)
        entry = await seat.coordinator.look(CLAIM.key)
        await asyncio.sleep(2 * BACK)
        assert len(await seat.take(1)) == 1

    assert entry is not None
    assert entry.state == "unknown"


async def test_state_that_cannot_be_read_is_an_error(path: Path) -> None:
    """A row that makes no sense is told, and kept."""
    async with seats(path, 1) as (seat,):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE account SET state = '{\"epoch\": 1}'")
        with pytest.raises(CoordinationError, match="cannot be read"):
            await seat.take(1)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT state FROM account").fetchone() == ('{"epoch": 1}',)


async def test_state_of_a_version_that_keeps_another_one_is_left_alone(path: Path) -> None:
    """What a process of another version keeps is neither read nor changed; a file that both use serves both."""
    other = (ACCOUNT, '{"epoch": 1}', 0.0, 1e12)
    async with seats(path, 1):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("INSERT INTO account VALUES (?, ?, ?, ?)", other)
    async with seats(path, 1) as (seat,):
        assert len(await seat.take(2)) == 2
        with closing(sqlite3.connect(path)) as connection:
            assert other in connection.execute("SELECT * FROM account").fetchall()


# --- keys ---


async def test_key_is_reserved_once(path: Path) -> None:
    """Of two processes one reserves a key; the other one is told what it stands for, and when that changes."""
    async with seats(path, 2) as (first, second):
        assert await first.coordinator.look(CLAIM.key) is None
        assert await first.coordinator.reserve(CLAIM) is None
        sending = await second.coordinator.reserve(OTHER)
        await first.coordinator.bind(CLAIM, "task-1")
        await until(lambda: second.heard)
        bound = await second.coordinator.look(CLAIM.key)
        await first.coordinator.bind(CLAIM, "task-1")
        await first.coordinator.publish(Message("wake"))
        await until(lambda: len(second.heard) == 2)

    assert sending == KeyEntry(CLAIM.fingerprint, "ref-1", "sending", wait=sending.wait if sending else 0)
    assert bound == KeyEntry(CLAIM.fingerprint, "ref-1", "bound", "task-1")
    assert second.heard == [Message("key", key=CLAIM.key), Message("wake")]


async def test_freed_key_can_be_reserved(path: Path) -> None:
    """What certainly created nothing leaves no trace."""
    async with seats(path, 2) as (first, second):
        await first.coordinator.reserve(CLAIM)
        await second.coordinator.free(OTHER)
        assert await second.coordinator.look(CLAIM.key) is not None
        await first.coordinator.free(CLAIM)
        assert await second.coordinator.reserve(OTHER) is None


async def test_doubtful_key_waits_for_its_callback(path: Path) -> None:
    """An ambiguous send leaves the key unknown; a callback at its address binds it, in whichever process."""
    async with seats(path, 2) as (first, second):
        await first.coordinator.reserve(CLAIM)
        assert await second.coordinator.unknown_in(CLAIM.ref) == pytest.approx(70.0)
        await second.coordinator.resolve(CLAIM.ref, "early")
        await first.coordinator.doubt(CLAIM)
        unknown = await second.coordinator.look(CLAIM.key)
        await second.coordinator.resolve("ref-2", "another")
        unknown_in = [await second.coordinator.unknown_in(ref) for ref in (CLAIM.ref, "ref-2")]
        await second.coordinator.resolve(CLAIM.ref, "task-1")
        bound = await first.coordinator.look(CLAIM.key)
        assert await first.coordinator.unknown_in(CLAIM.ref) is None

    assert unknown == KeyEntry(CLAIM.fingerprint, CLAIM.ref, "unknown")
    assert unknown_in == [0.0, None]
    assert bound == KeyEntry(CLAIM.fingerprint, CLAIM.ref, "bound", "task-1")


@pytest.mark.parametrize("killed", [True, False])
async def test_owner_that_died_leaves_unknown(path: Path, *, killed: bool) -> None:
    """A key whose owner was killed while sending is unknown at once, else when the POST's time is over; never free."""
    async with seats(path, 2) as (owner, other):
        await owner.coordinator.reserve(CLAIM)
        if killed:
            owner.die()
        entry = await other.coordinator.look(CLAIM.key)
        assert entry is not None
        assert entry.state == ("unknown" if killed else "sending")
        await asyncio.sleep(70.0)
        again = await other.coordinator.reserve(OTHER)
        assert again == KeyEntry(CLAIM.fingerprint, CLAIM.ref, "unknown")


async def test_key_is_kept_for_a_day(path: Path) -> None:
    """After 24 hours the key is free, and the row is removed."""
    async with seats(path, 1) as (seat,):
        await seat.coordinator.reserve(CLAIM)
        await seat.coordinator.bind(CLAIM, "task-1")
        await asyncio.sleep(24 * 3600 - 1)
        assert await seat.coordinator.look(CLAIM.key) is not None
        await asyncio.sleep(2)
        await seat.coordinator.reserve(Claim("other", "f", "ref-2", "claim-2"))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT digest FROM key").fetchall() == [("other",)]


# --- settings, failures and the end ---


@pytest.mark.parametrize("options", [{"path": 7}, {"path": b"x"}, {"on_failure": "stop"}, {"on_failure": None}])
def test_settings_are_checked(options: dict[str, Any]) -> None:
    """What cannot be used is told when the settings are made."""
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}: .* given, it must be"):
        HostCoordination(**options)


def test_settings_survive_a_pickle_and_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings can be handed to another process; a relative path means the directory at that time."""
    monkeypatch.chdir(tmp_path)
    coordination = HostCoordination("state.sqlite", on_failure="fail")
    monkeypatch.chdir("/")

    assert coordination.path == tmp_path / "state.sqlite"
    assert pickle.loads(pickle.dumps(coordination)) == coordination
    assert HostCoordination().path is None


async def test_default_place_is_the_runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path the file is in the user's runtime folder."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    coordinator = HostCoordination().coordinator(ACCOUNT, Terms(None, 70.0), lambda _: None)
    await coordinator.open()
    assert (tmp_path / "flux2_async" / "coordination.sqlite").is_file()
    await coordinator.aclose()


async def test_foreign_file_is_an_error_at_open_and_later(path: Path) -> None:
    """What can never work is a `ConfigurationError` at the start, and a `CoordinationError` afterwards."""
    path.write_bytes(b"something else, and long enough for a database" * 50)
    seat = seat_at(path)
    assert isinstance(await error_of(seat.coordinator.open()), ConfigurationError)
    assert isinstance(await error_of(seat.coordinator.join()), CoordinationError)
    assert isinstance(await error_of(seat.coordinator.look("k")), CoordinationError)
    await seat.coordinator.aclose()


async def test_folder_that_is_no_folder_is_an_error(path: Path) -> None:
    """Something else stands where the sockets should be."""
    path.with_name(path.name + "-peers").touch()
    seat = seat_at(path)
    assert isinstance(await error_of(seat.coordinator.open()), ConfigurationError)
    await seat.coordinator.aclose()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("begun", ["never", "open", "joined", "failed"])
async def test_nothing_is_left_behind(path: Path, begun: str) -> None:
    """Closing ends the thread and closes every file, whatever had happened; a second time does nothing."""
    files = open_files()
    threads = threading.active_count()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seat = seat_at(path)
        if begun == "failed":
            path.mkdir()
        if begun != "never":
            await error_of(seat.coordinator.open()) if begun == "failed" else await seat.coordinator.open()
        if begun == "joined":
            await seat.coordinator.join()
            await seat.take(3)
        await seat.coordinator.aclose()
        await seat.coordinator.aclose()
        with pytest.raises(CoordinationError, match="not open"):
            await seat.take(1)
        del seat

    assert caught == []
    assert threading.active_count() == threads
    assert open_files() == files
    folder = path.with_name(path.name + "-peers")
    assert not folder.exists() or list(folder.iterdir()) == []


async def test_closing_does_not_need_the_file(path: Path) -> None:
    """Who cannot say that it leaves is found out by the others."""
    async with seats(path, 2) as (first, second):
        with closing(sqlite3.connect(path)) as holder:
            holder.execute("UPDATE account SET state = 'nonsense'")
            holder.commit()
            await first.coordinator.aclose()
            holder.execute("UPDATE account SET state = ''")
            holder.commit()
        assert (await second.coordinator.acquire(1)).peers == 1


async def test_cancelled_close_leaves_no_thread(path: Path) -> None:
    """A closing that is cancelled goes on by itself."""
    threads = threading.active_count()
    async with seats(path, 1) as (seat,):
        closing_task = asyncio.ensure_future(seat.coordinator.aclose())
        await asyncio.sleep(0)
        closing_task.cancel()
        assert isinstance(await error_or_cancelled(closing_task), asyncio.CancelledError)
        await until(lambda: threading.active_count() == threads)


async def error_or_cancelled(task: "asyncio.Task[None]") -> BaseException | None:
    await asyncio.wait([task])
    return asyncio.CancelledError() if task.cancelled() else task.exception()


@attrs.define
class Held:
    asked: threading.Event = attrs.field(factory=threading.Event)
    go: threading.Event = attrs.field(factory=threading.Event)


def hold(monkeypatch: pytest.MonkeyPatch, state: HostState) -> Held:
    """Let the thread's next question for permits wait for a word."""
    held, acquire = Held(), state.acquire

    def slow(*arguments: Any, **options: Any) -> Answer:
        held.asked.set()
        held.go.wait()
        return acquire(*arguments, **options)

    monkeypatch.setattr(state, "acquire", slow)
    return held


async def test_permits_of_a_cancelled_question_are_not_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is cancelled while it asks, and leaves, takes no permit along."""
    async with seats(path, 2, limit=5) as (leaving, other):
        state = leaving.coordinator._state
        answers = hold(monkeypatch, state)
        question = asyncio.ensure_future(leaving.coordinator.acquire(5))
        await asyncio.to_thread(answers.asked.wait)
        question.cancel()
        await asyncio.sleep(0)
        answers.go.set()
        await leaving.coordinator.aclose()
        assert len(await other.take(5)) == 5


async def test_without_sockets_the_rest_works(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no sockets nothing is told, and who says nothing for a minute is not counted."""
    monkeypatch.setattr(host_coordinator, "HAS_SOCKETS", False)
    async with seats(path, 2, limit=5) as (first, second):
        leases = await first.take(4)
        await first.settle(leases[0], Fate.REFUSED, pause=1.0)
        await asyncio.sleep(59.0)
        assert (await second.coordinator.acquire(1)).peers == 2
        await asyncio.sleep(2.0)
        assert (await second.coordinator.acquire(0)).peers == 1
        assert (await first.coordinator.acquire(0)).peers == 2
        assert second.heard == []
    assert [name.name for name in path.parent.iterdir()] == [path.name]


async def visit(coordination: HostCoordination) -> int:
    """Take what one can get, and leave."""
    coordinator = coordination.coordinator(ACCOUNT, Terms(RateLimit(5, 60.0), 70.0), lambda _: None)
    await coordinator.open()
    await coordinator.join()
    answer = await coordinator.acquire(3)
    await coordinator.aclose()
    return len(answer.leases)


def visit_in_child(coordination: HostCoordination) -> int:
    """Visit in a forked process, and give what it got as its exit status."""
    pid = os.fork()
    if pid == 0:
        # The child must not go on with what the parent does, whatever happens.
        try:
            code = asyncio.run(visit(coordination))
        except BaseException:  # noqa: BLE001  as above
            code = 100
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork_first(path: str) -> list[int]:
    coordination = HostCoordination(path)
    return [*(visit_in_child(coordination) for _ in range(3)), threading.active_count()]


def fork_while_open(path: str) -> list[int]:
    async def parent() -> list[int]:
        coordination = HostCoordination(path)
        coordinator = coordination.coordinator(ACCOUNT, Terms(RateLimit(5, 60.0), 70.0), lambda _: None)
        await coordinator.open()
        await coordinator.join()
        first = await coordinator.acquire(1)
        child = visit_in_child(coordination)
        second = await coordinator.acquire(4)
        await coordinator.aclose()
        return [len(first.leases), child, len(second.leases)]

    return asyncio.run(parent())


@pytest.mark.parametrize(("fork", "got"), [(fork_first, [3, 2, 0, 1]), (fork_while_open, [1, 3, 1])])
def test_settings_made_before_a_fork_serve_both_sides(
    path: Path, fork: Callable[[str], object], got: list[int]
) -> None:
    """Settings can be used after a fork, also while the parent has a session open, as if they were made there."""
    assert in_fresh_interpreter(fork, str(path)) == str(got)


async def test_no_secret_and_no_word_of_a_request_is_in_the_file(path: Path) -> None:
    """The file holds what the protocol was given: digests, refs and task ids."""
    async with seats(path, 1) as (seat,):
        await seat.take(1)
        await seat.coordinator.reserve(CLAIM)
        await seat.coordinator.bind(CLAIM, "task-1")
        with closing(sqlite3.connect(path)) as connection:
            (account,) = connection.execute("SELECT digest FROM account").fetchone()
            (key,) = connection.execute("SELECT account, digest, fingerprint, ref, task_id FROM key").fetchall()

    assert account == f"{ACCOUNT}:{FORMAT}"
    assert key == (ACCOUNT, CLAIM.key, CLAIM.fingerprint, CLAIM.ref, "task-1")
