"""HostCoordination: the rules on a file, with real sockets, and the loop's clock as everybody's."""

# ruff: noqa: ASYNC240  a test may wait for the disk

import asyncio
import gc
import json
import pickle
import sqlite3
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
from emulated import REQUEST, error_of, session_for, until
from fresh_interpreter import forked, in_fresh_interpreter
from seats import BACK, CLAIM, PERIOD, Seat, taken

from flux2_async.coordination import Coordination, HostCoordination
from flux2_async.coordination.account_state import FORMAT
from flux2_async.coordination.contract import Message, PermitEvent, Settlement, Terms
from flux2_async.coordination.coordinator import Coordinator
from flux2_async.coordination.host import file as host_file
from flux2_async.coordination.host import store as host_store
from flux2_async.coordination.host.file import HostFile
from flux2_async.coordination.host.store import HostStore
from flux2_async.emulator import Emulator, Limit, Plan, Script
from flux2_async.errors import BudgetExceededError, ConfigurationError, CoordinationError
from flux2_async.models import ImageResult, Polling, RateLimit, TextToImage
from flux2_async.models.budget import Budget
from flux2_async.session.session import Flux2Session
from flux2_async.tasks.handle import ImageTask

ACCOUNT = "ab" * 32


class LoopStore(HostStore):
    clock: Callable[[], float]

    def elapsed(self) -> float:
        return self.clock()


@attrs.define
class OnLoopClock(Coordination):
    """A file whose clock is that of the test's loop."""

    path: Path
    members: list[str] = attrs.field(factory=list)

    def store(self, account: str, member: str) -> HostStore:
        self.members.append(member)
        clock = asyncio.get_running_loop().time
        made = LoopStore(HostFile(self.path, clock), account, member)
        made.clock = clock
        return made


def seat_at(path: Path, limit: int = 20, lease: float = 70.0) -> Seat:
    place = OnLoopClock(path)
    coordinator = Coordinator(place, ACCOUNT, Terms(RateLimit(limit, PERIOD), lease))
    return Seat(coordinator, place.members[0])


@asynccontextmanager
async def seats(path: Path, number: int, **options: Any) -> AsyncIterator[Sequence[Seat]]:
    async with taken([seat_at(path, **options) for _ in range(number)]) as made:
        yield made


def sockets_of(path: Path, seat: Seat) -> list[Path]:
    return [name for name in path.with_name(path.name + "-peers").iterdir() if seat.name in name.name]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite"


async def test_permits_of_who_only_lost_his_socket_expire_by_themselves(path: Path) -> None:
    """A process whose socket somebody removed may live: its permits stay lent, it counts again when it asks."""
    async with seats(path, 2, limit=2, lease=30.0) as (lost, other):
        (lease, _) = await lost.take(2)
        for name in sockets_of(path, lost):
            name.unlink()
        assert (await other.coordinator.acquire(1)).peers == 1
        await lost.settle(lease, PermitEvent.ANSWERED)
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


async def test_failed_joining_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who could not be written as joined still replaces the name under which it was known before."""
    async with seats(path, 1, limit=5) as (seat,):
        known, *_ = await seat.take(3)
        with closing(sqlite3.connect(path)) as holder:
            monkeypatch.setattr(host_file, "BUSY_TIMEOUT", 0.01)
            holder.execute("BEGIN IMMEDIATE")
            assert isinstance(await error_of(seat.coordinator.join(keeps=[known])), CoordinationError)
        answer = await seat.coordinator.join(keeps=[known])

        assert answer.peers == 1
        assert len(await seat.take(5)) == 4


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
        await first.coordinator.publish(Message("callback", "r", "t"))
        await second.coordinator.publish(Message("callback", "r", "t"))
        await until(lambda: first.heard and second.heard)


async def test_what_was_lent_before_a_start_of_the_machine_waits(path: Path) -> None:
    """After a new start permits come back when their leases have ended, and a key in the air is unknown."""
    async with seats(path, 1, limit=1) as (seat,):
        await seat.take(1)
        await seat.coordinator.reserve(CLAIM)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE clock SET boot = 'an earlier one'")
    async with seats(path, 1, limit=1) as (seat,):
        entry = await seat.coordinator.look(CLAIM.key)
        assert await seat.take(1) == ()
        await asyncio.sleep(70.0 + 2 * BACK)
        assert len(await seat.take(1)) == 1

    assert entry is not None
    assert entry.state == "unknown"


# --- settings, failures and the end ---


@pytest.mark.parametrize(
    "options", [{"path": 7}, {"path": b"x"}, {"path": "\ud800"}, {"on_failure": "stop"}, {"on_failure": None}]
)
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
    coordinator = Coordinator(HostCoordination(), ACCOUNT, Terms(None, 70.0))
    await coordinator.open(print)
    assert (tmp_path / "flux2_async" / "coordination.sqlite").is_file()
    await coordinator.aclose()


async def test_foreign_file_is_an_error_at_open_and_later(path: Path) -> None:
    """What can never work is a `ConfigurationError` at the start, and a `CoordinationError` afterwards."""
    path.write_bytes(b"something else, and long enough for a database" * 50)
    seat = seat_at(path)
    assert isinstance(await error_of(seat.coordinator.open(print)), ConfigurationError)
    assert isinstance(await error_of(seat.coordinator.join()), CoordinationError)
    assert isinstance(await error_of(seat.coordinator.look("k")), CoordinationError)
    await seat.coordinator.aclose()


async def test_folder_that_is_no_folder_is_an_error(path: Path) -> None:
    """Something else stands where the sockets should be."""
    path.with_name(path.name + "-peers").touch()
    seat = seat_at(path)
    assert isinstance(await error_of(seat.coordinator.open(print)), ConfigurationError)
    await seat.coordinator.aclose()


def open_files() -> set[str]:
    links = Path("/proc/self/fd").iterdir()
    return {f"{link.name} {link.readlink()}" for link in links if link.is_symlink()}


@pytest.mark.parametrize("begun", ["never", "open", "joined", "failed"])
async def test_nothing_is_left_behind(path: Path, begun: str) -> None:
    """Closing ends the thread and closes every file, whatever had happened; a second time does nothing."""
    # What other tests have left may end at any time.
    gc.collect()
    files, threads = open_files(), {*threading.enumerate()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seat = seat_at(path)
        if begun == "failed":
            path.mkdir()
        if begun != "never":
            await error_of(seat.coordinator.open(print)) if begun == "failed" else await seat.coordinator.open(print)
        if begun == "joined":
            await seat.coordinator.join()
            await seat.take(3)
        await seat.coordinator.aclose()
        await seat.coordinator.aclose()
        with pytest.raises(CoordinationError, match="not open"):
            await seat.take(1)
        del seat

    assert caught == []
    assert {*threading.enumerate()} <= threads
    assert open_files() <= files
    folder = path.with_name(path.name + "-peers")
    assert not folder.exists() or list(folder.iterdir()) == []


async def test_closing_does_not_need_the_file(path: Path) -> None:
    """Who cannot say that it leaves is found out by the others."""
    async with seats(path, 2) as (first, second):
        with closing(sqlite3.connect(path)) as holder:
            holder.execute("UPDATE kept SET text = 'nonsense'")
            holder.commit()
            await first.coordinator.aclose()
            holder.execute("DELETE FROM kept")
            holder.commit()
        assert (await second.coordinator.acquire(1)).peers == 1


async def test_cancelled_close_leaves_no_thread(path: Path) -> None:
    """A closing that is cancelled goes on by itself."""
    threads = {*threading.enumerate()}
    async with seats(path, 1) as (seat,):
        closing_task = asyncio.ensure_future(seat.coordinator.aclose())
        await asyncio.sleep(0)
        closing_task.cancel()
        assert isinstance(await error_or_cancelled(closing_task), asyncio.CancelledError)
        await until(lambda: {*threading.enumerate()} <= threads)


async def error_or_cancelled(task: "asyncio.Task[None]") -> BaseException | None:
    await asyncio.wait([task])
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def test_without_sockets_the_rest_works(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no sockets nothing is told, but all say now and then that they are there."""
    monkeypatch.setattr(host_store, "HAS_SOCKETS", False)
    async with seats(path, 2, limit=5) as (first, second):
        leases = await first.take(4)
        await first.coordinator.settle([Settlement(leases[0], PermitEvent.THROTTLED, 0.0, 1.0)])
        await asyncio.sleep(61.0)
        assert (await second.coordinator.acquire(0)).peers == 2
        await first.coordinator.aclose()
        assert (await second.coordinator.acquire(0)).peers == 1
        assert {message.kind for message in second.heard} == {"peers"}
    assert [name.name for name in path.parent.iterdir()] == [path.name]


async def visit(coordination: HostCoordination) -> int:
    """Take what one can get, and leave."""
    coordinator = Coordinator(coordination, ACCOUNT, Terms(RateLimit(5, 60.0), 70.0))
    await coordinator.open(print)
    await coordinator.join()
    answer = await coordinator.acquire(3)
    await coordinator.aclose()
    return len(answer.leases)


def visit_in_child(coordination: HostCoordination) -> int:
    """Visit in a forked process, and give what it got as its exit status."""
    return forked(lambda: asyncio.run(visit(coordination)))


def fork_first(path: str) -> list[int]:
    coordination = HostCoordination(path)
    return [*(visit_in_child(coordination) for _ in range(3)), threading.active_count()]


def fork_while_open(path: str) -> list[int]:
    async def parent() -> list[int]:
        coordination = HostCoordination(path)
        coordinator = Coordinator(coordination, ACCOUNT, Terms(RateLimit(5, 60.0), 70.0))
        await coordinator.open(print)
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
            kept = dict(connection.execute("SELECT name, text FROM kept").fetchall())

    key, ref = f"{ACCOUNT}:{FORMAT}:key:{CLAIM.key}", f"{ACCOUNT}:{FORMAT}:ref:{CLAIM.ref}"
    assert set(kept) == {f"{ACCOUNT}:{FORMAT}:account", key, ref}
    assert kept[ref] == CLAIM.key
    assert json.loads(kept[key])[:5] == [CLAIM.fingerprint, CLAIM.ref, f"{seat.name}.claim-1", "bound", "task-1"]


async def patiently(flux: Flux2Session) -> ImageTask:
    async with asyncio.timeout(10):
        while True:
            try:
                return await flux.submit(REQUEST, key="after")
            except CoordinationError:
                await asyncio.sleep(0.05)


def put_a_folder_at(path: Path) -> None:
    """Take the file away for good: whoever still has something to write makes it anew, until it cannot."""
    while not path.is_dir():
        for name in path.parent.glob(f"{path.name}*"):
            if name.is_file():
                name.unlink(missing_ok=True)
        with suppress(FileExistsError):
            path.mkdir()


@pytest.mark.real_time
async def test_lost_file_hurts_nothing_that_runs(path: Path) -> None:
    """While the file cannot be used tasks end, submissions go on, those with a key fail; then all is as before."""
    script = Script(plans=Plan(duration=0.5), limit=Limit(20, 0.3), render=False, credits=1e9)
    options: dict[str, Any] = {"rate_limit": RateLimit(20, 0.3), "polling": Polling(interval=0.1)}
    async with Emulator(script) as emulator:
        async with session_for(emulator, coordination=HostCoordination(path), **options) as flux:
            running = await flux.submit(REQUEST, key="before")
            put_a_folder_at(path)
            with pytest.raises(CoordinationError):
                await flux.submit(REQUEST, key="meanwhile")
            without_key = await flux.submit(REQUEST)
            results = [await running.result(timeout=120), await without_key.result(timeout=120)]
            path.rmdir()
            again = await patiently(flux)

    assert [bool(result.urls) for result in results] == [True, True]
    assert again.id in emulator.ledger.accepted
    assert len(emulator.ledger.accepted) == 3


@pytest.mark.real_time
@pytest.mark.parametrize("window", [{}, {"per": 86400.0}, {"per": 86400.0, "group": True}])
@pytest.mark.parametrize(("cap", "fit"), [(30, 6), (20, 4)])
async def test_orders_of_several_processes_count_once(path: Path, cap: int, fit: int, window: Any) -> None:
    """Six orders that three processes have at once are paid once each, as far as they fit, and told in all three."""
    options: dict[str, Any] = {"coordination": HostCoordination(path), "polling": Polling(interval=0.1)}
    options["budget"] = Budget(cap, **window)
    async with Emulator(Script(plans=Plan(duration=0.2), render=False)) as emulator, AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(session_for(emulator, **options)) for _ in range(3)]
        orders = [(flux, (number + 2 * turn) % 6) for number in range(6) for turn, flux in enumerate(sessions)]
        outcomes = await asyncio.gather(
            *(
                flux.generate(TextToImage(f"kettle {order}", tier="pro"), key=f"order {order}", group="g")
                for flux, order in orders
            ),
            return_exceptions=True,
        )
    told: dict[int, set[str]] = {}
    for (_, order), outcome in zip(orders, outcomes, strict=True):
        assert isinstance(outcome, ImageResult | BudgetExceededError)
        told.setdefault(order, set()).add(outcome.task_id if isinstance(outcome, ImageResult) else "")

    assert all(len(each) == 1 for each in told.values())
    assert set.union(*told.values()) - {""} == set(emulator.ledger.accepted)
    assert len(emulator.ledger.accepted) == fit
    assert emulator.ledger.charged == 5.0 * fit
