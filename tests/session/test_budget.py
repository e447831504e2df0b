"""A session's budget: what might exceed it is not sent, and whatever is not known stays reserved."""

import asyncio
import gc
import math
import pickle
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from batches import batch_in, collect, requests
from emulated import REQUEST, emulated, error_of, free_port, session_for
from memory_coordination import Memory

from flux2_async import (
    AmbiguousSubmitError,
    Budget,
    BudgetExceededError,
    Callbacks,
    ConfigurationError,
    CoordinationError,
    Flux2Session,
    ImageToImage,
    InvalidRequestError,
    JobRequest,
    Polling,
    RateLimit,
    RateLimitedError,
    Request,
    Service,
    TaskError,
    TaskTimeoutError,
    TextToImage,
)
from flux2_async.coordination import coordinator
from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.models.spending import Ledger
from flux2_async.models.submission_state import SubmissionState
from flux2_async.receivers import serve
from flux2_async.session import budgets
from flux2_async.session.submission import Submission
from flux2_async.testing import running_emulator
from flux2_async.webhooks import Callback

PRO = TextToImage("a blue kettle on a slate worktop", tier="pro")
QUICK = Script(plans=Plan(duration=1.0))


def failing(*outcomes: Any) -> Script:
    """Tasks that end so, one after the other, the last for the rest."""
    return Script(plans=[Plan(duration=1.0, outcome=outcome) for outcome in outcomes])


async def test_what_exceeds_it_is_not_sent() -> None:
    """Two dear pictures are within 30 credits, a third is not: at once, in words, and with nothing sent."""
    async with emulated(QUICK, budget=Budget(30)) as (flux, emulator):
        first = flux.enqueue(REQUEST)
        second = await flux.submit(REQUEST)
        error = await error_of(flux.submit(REQUEST))
        assert isinstance(error, BudgetExceededError)
        assert (error.spent, error.reserved, error.price, error.retry_after) == (0.0, 28.0, 14.0, None)
        assert error.budget == Budget(30)
        assert str(error) == (
            "the budget is 30 credits: 0 are spent, 28 reserved, and this picture may cost 14, so nothing was "
            "sent. Room may come when those that wait or run end, since what fails costs nothing: try again then, or "
            "raise the budget"
        )
        assert not error.meets_every_request
        third = flux.enqueue(REQUEST)
        assert isinstance(await error_of(third), BudgetExceededError)
        assert third.state is SubmissionState.REFUSED
        await second
        await (await first)

        after = await error_of(flux.generate(REQUEST))
        assert isinstance(after, BudgetExceededError)
        assert (after.spent, after.reserved, after.meets_every_request) == (28.0, 0.0, True)
        assert len(emulator.ledger.requests) == 2
        assert emulator.ledger.charged == 28.0
        again = pickle.loads(pickle.dumps(after))
        assert (str(again), again.spent, again.budget) == (str(after), 28.0, Budget(30))


async def test_what_costs_nothing_makes_room() -> None:
    """Withdrawn, refused and failed requests are paid for by nobody, and cheap ones count with their own price."""
    script = failing("fail", "success")
    script.faults = [Fault("createTask", "refuse", code=422)]
    async with emulated(script, budget=Budget(14), rate_limit=RateLimit(3, 60.0)) as (flux, emulator):
        await error_of(flux.submit(REQUEST))
        await error_of(flux.generate(REQUEST))
        waiting = flux.enqueue(PRO)
        await waiting
        handle = flux.enqueue(PRO)
        await asyncio.sleep(1)
        assert isinstance(await error_of(flux.submit(REQUEST)), BudgetExceededError)
        assert handle.withdraw()
        await asyncio.sleep(0.1)
        await flux.drain()
        await flux.generate(PRO)

        error = await error_of(flux.submit(PRO))
        assert isinstance(error, BudgetExceededError)
        assert (error.spent, error.reserved, error.price) == (10.0, 0.0, 5.0)
        assert len(emulator.ledger.accepted) == 3


@pytest.mark.parametrize("what", ["unclear", "timed out", "closed", "empty"])
async def test_what_is_not_known_stays_reserved(what: str) -> None:
    """A lost answer, a task that does not end and one that the session's end left behind may still cost their price."""
    script = Script(plans=Plan(duration=100.0, outcome="empty" if what == "empty" else "success"))
    if what == "unclear":
        script.faults = [Fault("createTask", "cut_after")]
    async with emulated(script, budget=Budget(20)) as (flux, emulator):
        task = None
        if what == "unclear":
            assert isinstance(await error_of(flux.submit(REQUEST)), AmbiguousSubmitError)
        else:
            task = await flux.submit(REQUEST)
        if what == "timed out" and task is not None:
            flux.give_up_after(task, 5.0)
            assert isinstance(await error_of(task.result()), TaskTimeoutError)
        if what == "closed":
            await flux.aclose()
            await flux.open()
        if what == "empty" and task is not None:
            await task.wait()
        error = await error_of(flux.submit(REQUEST))
        assert isinstance(error, BudgetExceededError)
        assert (error.spent, error.reserved) == ((14.0, 0.0) if what == "empty" else (0.0, 14.0))
        if what in ("timed out", "closed") and task is not None:
            # What is heard of it later is counted.
            await flux.attach(task.id)
            error = await error_of(flux.submit(REQUEST))
            assert isinstance(error, BudgetExceededError)
            assert (error.spent, error.reserved) == (14.0, 0.0)
        assert len(emulator.ledger.accepted) == 1


async def test_a_callback_faster_than_the_answer() -> None:
    """A task whose end is told before its createTask reply is counted as it ended."""
    script = Script(plans=Plan(outcome="fail", callback="early"), render=False)
    port = free_port()
    callbacks = Callbacks(f"http://127.0.0.1:{port}/", secret="a secret", confirm=False)
    async with (
        Emulator(script) as emulator,
        session_for(emulator, budget=Budget(14), callbacks=callbacks, polling=Polling(interval=3600.0)) as flux,
        serve(flux, "127.0.0.1", port),
    ):
        for _ in range(2):
            task = await flux.submit(REQUEST)
            assert task.done()
        assert len(emulator.ledger.accepted) == 2


@pytest.mark.parametrize("callback", ["once", "early"])
async def test_a_callback_that_names_the_task_of_a_lost_answer(callback: Any) -> None:
    """Whether it comes before the connection breaks or later: reserved until the task ends, then what it cost."""
    plan, lost = Plan(duration=5.0, callback=callback), Fault("createTask", "cut_after")
    script = Script(plans=plan, render=False, faults=[lost])
    port = free_port()
    callbacks = Callbacks(f"http://127.0.0.1:{port}/", secret="a secret")
    async with (
        Emulator(script) as emulator,
        session_for(emulator, budget=Budget(20), callbacks=callbacks) as flux,
        serve(flux, "127.0.0.1", port),
    ):
        if callback == "early":
            await flux.submit(REQUEST, ref="order-1")
        else:
            assert isinstance(await error_of(flux.submit(REQUEST, ref="order-1")), AmbiguousSubmitError)
        error = await error_of(flux.submit(REQUEST))
        assert isinstance(error, BudgetExceededError)
        assert error.spent + error.reserved == 14.0
        task = await flux.recover("order-1", timeout=60.0)
        await task
        error = await error_of(flux.submit(REQUEST))
        assert isinstance(error, BudgetExceededError)
        assert (error.spent, error.reserved) == (14.0, 0.0)
        assert len(emulator.ledger.accepted) == 1


async def test_what_is_sent_again_in_doubt_leaves_the_window() -> None:
    """What an earlier session may have paid is reserved for as long as the budget looks back, and no longer."""
    lost = Fault("createTask", "cut_before", times=1000)
    script = Script(render=False, idempotency_header="X-Request-ID", faults=[lost])
    async with Emulator(script) as emulator:
        service = Service(base_url=emulator.base_url, idempotency_header="X-Request-ID", idempotency_period=86400.0)
        async with Flux2Session(emulator.api_key, service=service, budget=Budget(20, per=3600.0)) as flux:
            await error_of(flux.submit(REQUEST, ref="order-1", resend_within=60.0))
            error = await error_of(flux.submit(REQUEST))
            assert isinstance(error, BudgetExceededError)
            assert error.retry_after is not None
            await asyncio.sleep(3600.0)
            script.faults.clear()
            await flux.submit(REQUEST)


async def test_groups_that_are_gone_take_no_memory() -> None:
    """A budget of each group keeps what it counts of those that still have something in its window."""

    def ledgers() -> int:
        gc.collect()
        return sum(isinstance(each, Ledger) for each in gc.get_objects())

    before = ledgers()
    script = Script(plans=Plan(duration=1.0), credits=1e6)
    budget = Budget(1e6, per=5.0, group=True)
    async with emulated(script, budget=budget, rate_limit=None, max_running=None) as (flux, _):
        for night in range(4):
            await asyncio.gather(*[flux.generate(REQUEST, group=f"{night}-{number}") for number in range(70)])
            await asyncio.sleep(10.0)
        assert ledgers() - before < 200


async def test_what_was_given_up_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tasks that were given up the latest are known; all of them stay reserved, and the latest may still be paid."""
    monkeypatch.setattr(budgets, "MAX_UNCLEAR", 10)
    script = Script(plans=Plan(duration=60.0), credits=1e6)
    polling = Polling(interval=1.0, give_up_after=5.0)
    async with emulated(script, budget=Budget(560), polling=polling, rate_limit=None, max_running=None) as (flux, _):
        tasks = [await flux.submit(REQUEST) for _ in range(40)]
        await asyncio.gather(*(task.wait() for task in tasks))
        refs = {task.ref for task in tasks}
        held = [weakref.ref(each) for each in gc.get_objects() if isinstance(each, Submission) and each.ref in refs]
        first, last = tasks[0], tasks[-1]
        del tasks
        gc.collect()
        assert sum(each() is not None for each in held) <= 12
        await asyncio.sleep(60.0)
        for task in (first, last):
            assert isinstance(await error_of(task), TaskTimeoutError)
            assert (await task.result()).urls
        error = await error_of(flux.submit(REQUEST))
        assert isinstance(error, BudgetExceededError)
        assert (error.spent, error.reserved) == (14.0, 39 * 14.0)


async def test_what_was_found_and_given_up_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is where a callback named the task of a lost answer, which never ended."""
    monkeypatch.setattr(budgets, "MAX_UNCLEAR", 10)
    script = Script(plans=Plan(duration=1e6, callback="lost"), credits=1e6)
    options: dict[str, Any] = {"callbacks": Callbacks("https://app.example/"), "rate_limit": None, "max_running": None}
    polling = Polling(interval=1.0, give_up_after=5.0)
    async with emulated(script, budget=Budget(1e6), polling=polling, **options) as (flux, emulator):
        for number in range(20):
            emulator.inject(Fault("createTask", "cut_after", accepted=True))
            assert isinstance(await error_of(flux.submit(REQUEST, ref=f"unended-{number}")), AmbiguousSubmitError)
            await flux.deliver(f"unended-{number}", Callback(emulator.ledger.accepted[-1], None))
            # Else the next one would be held back.
            await flux.submit(REQUEST)
        await flux.drain()
        gc.collect()
        # That no other test has.
        refs = {f"unended-{number}" for number in range(20)}
        assert sum(isinstance(each, Submission) and each.ref in refs for each in gc.get_objects()) <= 12


async def test_what_is_told_late_takes_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that was given up and is paid after its window adds to what the others know of its group."""
    monkeypatch.setattr(budgets, "FEW", 1)
    script = Script(plans=[Plan(duration=300.0), Plan(duration=1.0)], credits=1e6, render=False)
    options: dict[str, Any] = {"coordination": Memory(), "budget": Budget(40, per=100.0, group=True)}
    async with Emulator(script) as emulator:
        async with session_for(emulator, **options) as one, session_for(emulator, **options) as two:
            late = await one.submit(REQUEST, group="g")
            one.give_up_after(late, 5.0)
            assert isinstance(await error_of(late), TaskTimeoutError)
            await asyncio.sleep(280.0)
            for group in ("a", "b", "c", "g", "g"):
                await one.generate(REQUEST, group=group)
            await late.result()
            await asyncio.sleep(1.0)
            assert isinstance(await error_of(two.submit(REQUEST, group="g")), BudgetExceededError)


@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_goes_on_in_another_event_loop() -> None:
    """What was under way when the event loop ended stays reserved when the session is opened again in another one."""
    with running_emulator(Script(plans=Plan(duration=60.0), render=False)) as emulator:
        flux = session_for(emulator, budget=Budget(20))

        async def begin() -> None:
            await flux.open()
            await flux.submit(REQUEST)

        async def go_on() -> Exception:
            async with flux:
                return await error_of(flux.submit(REQUEST))

        asyncio.run(begin())
        error = asyncio.run(go_on())
        assert isinstance(error, BudgetExceededError)
        assert (error.spent, error.reserved) == (0.0, 14.0)
        assert len(emulator.ledger.accepted) == 1


async def test_a_window_moves() -> None:
    """Within an hour two pictures, and the error says when the next one is possible, which is true."""
    async with emulated(QUICK, budget=Budget(30, per=3600.0)) as (flux, emulator):
        await flux.generate(REQUEST)
        await asyncio.sleep(1000)
        await flux.generate(REQUEST)
        await asyncio.sleep(1000)
        error = await error_of(flux.submit(REQUEST))
        assert isinstance(error, BudgetExceededError)
        assert error.retry_after == pytest.approx(1600, abs=10)
        assert "30 credits per 3600 s" in str(error)
        assert f"Enough is free again in {math.ceil(error.retry_after or 0)} s" in str(error)
        assert error.retry_after is not None
        await asyncio.sleep(error.retry_after)
        await flux.generate(REQUEST)
        assert len(emulator.ledger.accepted) == 3


async def test_each_group_its_own() -> None:
    """Several budgets hold at once: each user's, one user's own, and that of all."""
    budgets = [Budget(10, group=True), Budget(5, group="carol"), Budget(24)]
    async with emulated(QUICK, budget=budgets) as (flux, emulator):
        for group in ("alice", "alice", "carol", None):
            await flux.generate(PRO, group=group)
        for group, whose in (("alice", "alice"), ("carol", "carol")):
            error = await error_of(flux.submit(PRO, group=group))
            assert isinstance(error, BudgetExceededError)
            assert f"of group '{whose}'" in str(error)
            assert error.group == group
        last = await error_of(flux.submit(PRO, group="dave"))
        assert isinstance(last, BudgetExceededError)
        assert (last.budget, last.group) == (Budget(24), "dave")
        assert len(emulator.ledger.accepted) == 4


async def test_a_key_counts_once() -> None:
    """A double click is one charge of the budget as well."""
    async with emulated(QUICK, budget=Budget(14)) as (flux, emulator):
        one, other = await asyncio.gather(flux.submit(REQUEST, key="a"), flux.submit(REQUEST, key="a"))
        assert one is other
        await one
        assert await flux.submit(REQUEST, key="a") is one
        assert len(emulator.ledger.accepted) == 1


@pytest.mark.parametrize("fault", [None, Fault("createTask", "refuse", code=429, retry_after=5.0, times=4)])
async def test_a_key_of_several_processes_counts_once(fault: Fault | None) -> None:
    """So it is where they click at once, also when a 429 makes another process the one that sends."""
    script = Script(plans=Plan(duration=1.0), render=False, faults=[fault] if fault else [])
    options: dict[str, Any] = {"coordination": Memory(), "budget": Budget(30)}
    async with (
        Emulator(script) as emulator,
        session_for(emulator, **options) as one,
        session_for(emulator, **options) as two,
        session_for(emulator, **options) as three,
    ):
        clicks = [flux.submit(PRO, key=f"order {number}") for number in range(6) for flux in (one, two, three)]
        tasks = await asyncio.gather(*clicks)
        assert len({task.id for task in tasks}) == len(emulator.ledger.accepted) == 6


async def test_who_waited_for_a_key_sends_what_its_owner_did_not() -> None:
    """What another process gave back before its POST makes room for who waited for its key, and no more than that."""
    options: dict[str, Any] = {"coordination": Memory(), "budget": Budget(5)}
    async with (
        Emulator(Script(plans=Plan(duration=1.0), render=False)) as emulator,
        session_for(emulator, **options) as one,
        session_for(emulator, **options) as two,
    ):
        begun, wait = asyncio.Event(), asyncio.Event()

        async def on_send(_: str) -> None:
            begun.set()
            await wait.wait()
            raise ValueError("not today")

        owner = asyncio.ensure_future(one.submit(PRO, key="a", on_send=on_send))
        await begun.wait()
        joined = asyncio.ensure_future(two.submit(PRO, key="a"))
        assert isinstance(await error_of(two.submit(PRO, key="b")), BudgetExceededError)
        assert not joined.done()
        wait.set()
        assert isinstance(await error_of(owner), ValueError)
        assert (await joined).id in emulator.ledger.accepted
        assert isinstance(await error_of(one.submit(PRO, key="b")), BudgetExceededError)
        assert len(emulator.ledger.accepted) == 1


class Waiting:
    """An `on_send` that says when it has begun, and goes on, or fails, when it is told to."""

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, _: str) -> None:
        self.begun.set()
        await self.go_on.wait()
        if self.error is not None:
            raise self.error


@asynccontextmanager
async def sharing(budget: Budget, count: int = 2) -> AsyncIterator[tuple[Emulator, list[Flux2Session], Memory]]:
    """Sessions that share an account, in the order of the stores of what they share."""
    memory = Memory()
    async with Emulator(Script(plans=Plan(duration=1.0), render=False)) as emulator, AsyncExitStack() as stack:
        sessions = [session_for(emulator, coordination=memory, budget=budget) for _ in range(count)]
        yield emulator, [await stack.enter_async_context(flux) for flux in sessions], memory


@pytest.mark.parametrize("sent", [True, False])
async def test_no_room_for_what_another_process_counts(*, sent: bool) -> None:
    """It reserved the key, and counted it, between two questions: who finds no room joins it, or sends it after all."""
    async with sharing(Budget(5)) as (emulator, (one, two), memory):
        asks, counted, on_send = asyncio.Event(), asyncio.Event(), Waiting()
        on_send.error = None if sent else ValueError("not today")

        async def held_up(name: str) -> None:
            if ":budget:" in name:
                asks.set()
                await counted.wait()
            elif ":key:" in name and counted.is_set() and not sent:
                on_send.go_on.set()
                # Given back, and free.
                await asyncio.sleep(1)

        memory.stores[1].held_up = held_up
        joined = asyncio.ensure_future(two.submit(PRO, key="a"))
        await asks.wait()
        owner = asyncio.ensure_future(one.submit(PRO, key="a", on_send=on_send))
        await on_send.begun.wait()
        counted.set()
        await asyncio.sleep(0.5)
        assert not joined.done()
        on_send.go_on.set()
        task = await joined
        (outcome,) = await asyncio.gather(owner, return_exceptions=True)
        assert getattr(outcome, "id", outcome) == (task.id if sent else on_send.error)
        assert list(emulator.ledger.accepted) == [task.id]


async def test_what_is_given_back_is_told_before_its_key_is_free() -> None:
    """Who waited for the key finds room also where it takes long to tell of the budget."""
    async with sharing(Budget(5)) as (emulator, (one, two), memory):
        on_send = Waiting()
        on_send.error = ValueError("not today")

        async def held_up(name: str) -> None:
            if ":budget:" in name:
                await asyncio.sleep(1)

        owner = asyncio.ensure_future(one.submit(PRO, key="a", on_send=on_send))
        await on_send.begun.wait()
        joined = asyncio.ensure_future(two.submit(PRO, key="a"))
        memory.stores[0].held_up = held_up
        on_send.go_on.set()
        assert isinstance(await error_of(owner), ValueError)
        assert (await joined).id in emulator.ledger.accepted


async def test_what_its_turn_refuses_is_told_without_itself() -> None:
    """Of two that fit when they were asked for, the later one is refused by what the other one has reserved."""
    async with sharing(Budget(5)) as (emulator, (one, two), memory):
        asks, counted = asyncio.Event(), asyncio.Event()

        async def held_up(name: str) -> None:
            if ":ref:" in name:
                asks.set()
                await counted.wait()

        memory.stores[1].held_up = held_up
        late = asyncio.ensure_future(two.submit(PRO, key="b"))
        await asks.wait()
        await one.submit(PRO, key="a")
        counted.set()
        error = await error_of(late)
        assert isinstance(error, BudgetExceededError)
        assert (error.spent, error.reserved, error.price) == (0.0, 5.0, 5.0)
        assert len(emulator.ledger.accepted) == 1


async def test_a_key_that_was_refused_stays_free() -> None:
    """Nothing was sent, so another process may send it, also where the one that asked dies over the answer."""
    async with sharing(Budget(4), 1) as (emulator, (one,), memory), session_for(emulator, coordination=memory) as other:

        async def held_up(_: str) -> None:
            memory.stores[0].cut = bool(memory.keys)

        memory.stores[0].held_up = held_up
        await error_of(one.submit(PRO, key="a"))
        memory.stores[0].cut = True
        # Longer than what is reserved is taken for sent.
        await asyncio.sleep(200)
        await other.submit(PRO, key="a")


async def test_as_completed_sends_what_is_within() -> None:
    """What fits is made, the rest comes back unsent with the error."""
    async with emulated(QUICK, budget=Budget(50)) as (flux, emulator):
        done = [each async for each in flux.as_completed([REQUEST] * 8)]
        assert sum(each.error is None for each in done) == 3
        assert sum(isinstance(each.error, BudgetExceededError) for each in done) == 5
        assert len(emulator.ledger.accepted) == 3


async def test_a_batch_stops_and_goes_on(tmp_path: Path) -> None:
    """A batch makes what is within the session's budget, says why it stops, and the next run sends the rest."""
    async with Emulator(Script(plans=Plan(duration=1.0), render=False)) as emulator:
        async with session_for(emulator, budget=Budget(50)) as flux:
            batch = batch_in(tmp_path, flux, requests(8), download=False, group="batch")
            outcomes = await collect(batch)
            assert len(outcomes) == len(emulator.ledger.accepted) == 3
            assert batch.progress is not None
            assert batch.progress.queued == 5
            assert batch.progress.failed == 0
            assert "the budget is 50 credits" in str(batch.progress.stopped)
        async with session_for(emulator, budget=Budget(500)) as flux:
            assert len(await collect(batch_in(tmp_path, flux, requests(8), download=False))) == 5
        assert len(emulator.ledger.accepted) == 8


async def test_several_processes_share_it() -> None:
    """Four sessions of an account that share it stay under one budget together, also where one of them has died."""
    memory = Memory()
    async with Emulator(Script(plans=Plan(duration=5.0), render=False)) as emulator:
        options: dict[str, Any] = {"coordination": memory, "budget": Budget(100), "rate_limit": RateLimit(20, 10.0)}
        sessions = [session_for(emulator, **options) for _ in range(4)]
        for flux in sessions:
            await flux.open()
        handles = [flux.enqueue(REQUEST) for flux in sessions * 5]
        await asyncio.gather(*(flux.drain() for flux in sessions))
        exceeded = [handle for handle in handles if isinstance(handle.error, BudgetExceededError)]
        assert len(exceeded) == 20 - 7
        assert {handle.state for handle in exceeded} == {SubmissionState.REFUSED}
        assert len(emulator.ledger.accepted) == 7
        for flux in sessions:
            await flux.aclose()
        # Who begins later knows what was spent.
        async with session_for(emulator, **options) as late:
            error = await error_of(late.submit(REQUEST))
            assert isinstance(error, BudgetExceededError)
            assert (error.spent, error.reserved) == (98.0, 0.0)
            memory.down = True
            assert isinstance(await error_of(late.submit(PRO)), CoordinationError)
        assert len(emulator.ledger.accepted) == 7


async def test_who_comes_later_spends_all_that_is_left() -> None:
    """What one user has no room for, by what an earlier session spent, keeps out nothing of another user."""
    async with Emulator(Script(plans=Plan(duration=5.0), render=False)) as emulator:
        budget = [Budget(50, per=3600.0), Budget(30, per=3600.0, group=True)]
        options: dict[str, Any] = {"coordination": Memory(), "budget": budget}
        async with session_for(emulator, **options) as first:
            for _ in range(4):
                await first.generate(PRO, group="alice")
        async with session_for(emulator, **options) as later:
            handles = [later.enqueue(PRO, group=group) for group in ["alice"] * 6 + ["bob"] * 4]
            await later.drain()
        refused = [handle.error is not None for handle in handles]
        assert refused == [False] * 2 + [True] * 4 + [False] * 4
        assert emulator.ledger.charged == 50.0


async def test_what_an_idle_session_spent_counts_as_long_as_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget without a window is not forgotten by the others of the account when nobody uses it for days."""
    monkeypatch.setattr(coordinator, "HEARTBEAT", 600.0)
    memory = Memory()
    async with Emulator(Script(plans=Plan(duration=5.0), render=False)) as emulator:
        options: dict[str, Any] = {"coordination": memory, "budget": Budget(20)}
        async with session_for(emulator, **options) as idle, session_for(emulator, **options) as other:
            await idle.generate(REQUEST)
            await asyncio.sleep(2 * 86400.0)
            assert isinstance(await error_of(other.submit(REQUEST)), BudgetExceededError)
        assert len(emulator.ledger.accepted) == 1
        await asyncio.sleep(2 * 86400.0)
        async with session_for(emulator, **options) as late:
            await late.submit(REQUEST)


@pytest.mark.parametrize(("per", "restored"), [(None, False), (3600.0, False), (None, True)])
async def test_what_an_idle_session_spent_counts_also_after_the_state_was_lost(
    per: float | None, *, restored: bool
) -> None:
    """It is told anew as soon as another session finds the state empty, or its own connection to it breaks."""
    memory = Memory()
    async with Emulator(Script(plans=Plan(duration=5.0), render=False)) as emulator:
        options: dict[str, Any] = {"coordination": memory, "budget": Budget(20, per=per)}
        async with session_for(emulator, **options) as idle, session_for(emulator, **options) as other:
            older = dict(memory.texts)
            await idle.generate(REQUEST)
            await asyncio.sleep(1)
            memory.texts = older if restored else {}
            if restored:
                memory.stores[0].on_line("")
                await asyncio.sleep(1)
            assert isinstance(await error_of(other.submit(REQUEST)), BudgetExceededError)
        assert len(emulator.ledger.accepted) == 1


async def test_no_room_that_others_have() -> None:
    """What one process has reserved and not paid yet is no room for another one, and what it frees is."""
    memory = Memory()
    async with Emulator(Script(plans=Plan(duration=20.0, outcome="fail"), render=False)) as emulator:
        options: dict[str, Any] = {"coordination": memory, "budget": Budget(20, per=3600.0, group=True)}
        async with session_for(emulator, **options) as one, session_for(emulator, **options) as two:
            task = await one.submit(REQUEST, group="alice")
            assert isinstance(await error_of(two.submit(REQUEST, group="alice")), BudgetExceededError)
            await two.submit(REQUEST, group="bob")
            await task.wait()
            await asyncio.sleep(1)
            await two.submit(REQUEST, group="alice")
        assert len(emulator.ledger.accepted) == 3


@pytest.mark.parametrize(
    ("per", "spent", "reserved", "advice"),
    [
        (None, 10.0, 14.0, "Room may come when those that wait or run end"),
        (None, 20.0, 10.0, "Raise the budget to go on"),
        (60.0, 20.0, 10.0, "Room may come when those that wait or run end"),
        (60.0, 30.0, 0.0, "Enough is free again within 60 s"),
    ],
)
def test_waiting_is_advised_only_where_room_may_come(
    per: float | None, spent: float, reserved: float, advice: str
) -> None:
    """Where what was paid leaves too little for ever, no end of another picture helps."""
    error = BudgetExceededError(budget=Budget(30, per=per), group=None, spent=spent, reserved=reserved, price=14.0)
    assert f"so nothing was sent. {advice}" in str(error)
    never = BudgetExceededError(budget=Budget(10, per=per), group=None, spent=spent, reserved=0.0, price=14.0)
    assert "Raise the budget to go on" in str(never)


async def test_estimate() -> None:
    """By the documented prices and times at first, by what was seen afterwards, behind what waits."""
    script = Script(plans=Plan(duration=4.0, credits=11.0))
    async with emulated(script, rate_limit=RateLimit(2, 10.0)) as (flux, _):
        pictures: list[Request] = [
            REQUEST,
            REQUEST,
            PRO,
            ImageToImage("x y z", images=["https://example.com/a.png"], resolution="2K"),
        ]
        before = flux.estimate(pictures)
        assert (before.requests, before.credits, before.seen) == (4, 14 + 14 + 5 + 24, False)
        assert 10 < before.seconds < before.seconds_at_most
        assert flux.estimate(REQUEST).credits == 14
        assert flux.estimate([]).credits == flux.estimate([]).seconds == 0
        assert flux.estimate(JobRequest("another/model", {"prompt": "a"})).credits == 24
        for _ in range(6):
            await flux.generate(REQUEST)
        after = flux.estimate([REQUEST])
        assert (after.credits, after.seen) == (11.0, True)
        for _ in range(6):
            flux.enqueue(REQUEST)
        await asyncio.sleep(1)
        assert flux.estimate([REQUEST]).seconds > after.seconds + 10
        with pytest.raises(InvalidRequestError, match="str given"):
            flux.estimate(["a kettle"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Budget(-1), "Budget.credits: -1"),
        (lambda: Budget("30"), "Budget.credits: '30'"),  # type: ignore[arg-type]
        (lambda: Budget(float("inf")), "Budget.credits: inf"),
        (lambda: Budget(True), "Budget.credits: True"),
        (lambda: Budget(30, per=0), "Budget.per: 0"),
        (lambda: Budget(30, group=False), "Budget.group: False"),
        (lambda: Budget(30, group=""), "Budget.group: ''"),
        (lambda: session_of(30), "budget: int given"),
        (lambda: session_of([Budget(1), 2]), "budget: int given"),
    ],
)
def test_what_is_no_budget_is_told(make: Any, named: str) -> None:
    """Each error names what was given and what is allowed."""
    with pytest.raises(ConfigurationError, match=named.replace("(", r"\(")) as caught:
        make()
    assert "must be" in str(caught.value)


def session_of(budget: Any) -> object:
    from flux2_async import Flux2Session  # noqa: PLC0415

    return Flux2Session("key", budget=budget)


async def test_asking_for_money_is_waiting() -> None:
    """What the shared budget takes to answer is a part of `max_wait`, as everything is that goes before the POST."""
    options: dict[str, Any] = {"coordination": Memory(rtt=1.0), "budget": Budget(40), "max_running": 3}
    script = Script([*[Plan(90.0)] * 3, Plan(20.0, outcome="fail")], render=False)
    async with (
        Emulator(script) as emulator,
        session_for(emulator) as stranger,
        session_for(emulator, **options) as flux,
        session_for(emulator, **options) as other,
    ):
        foreign = [await stranger.submit(REQUEST) for _ in range(2)]
        await flux.submit(REQUEST)
        failing = await other.submit(REQUEST)
        assert isinstance(await error_of(flux.submit(REQUEST)), BudgetExceededError)
        assert isinstance(await error_of(failing), TaskError)
        await asyncio.sleep(10.0)
        for task in foreign:
            flux.attach(task.id)
        begun = asyncio.get_running_loop().time()
        error = await error_of(flux.submit(REQUEST, max_wait=5.0))

        assert isinstance(error, RateLimitedError)
        assert asyncio.get_running_loop().time() - begun == pytest.approx(5.0, abs=0.1)


async def test_a_price_that_no_task_has_is_not_known(caplog: pytest.LogCaptureFixture) -> None:
    """A record that names 1e20 credits blocks no budget: what was reserved stays so, and a person is told once."""
    script = Script(plans=[Plan(duration=1.0, credits=price) for price in (1e20, 1e20, 14.0)], credits=1e30)
    async with emulated(script, budget=Budget(100)) as (flux, _):
        for _ in range(2):
            assert (await flux.generate(REQUEST)).record.credits_consumed is None
        assert (await flux.generate(REQUEST)).record.credits_consumed == 14.0
        assert flux.estimate([REQUEST]).credits == 14.0
        for _ in range(4):
            await flux.submit(REQUEST)
        error = await error_of(flux.submit(REQUEST))

    assert isinstance(error, BudgetExceededError)
    assert (error.spent, error.reserved) == (14.0, 84.0)
    assert caplog.text.count("creditsConsumed") == 1
