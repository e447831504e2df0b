"""Sessions of several processes on one account: keys that all know, callbacks for each other, one pause."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from emulated import REQUEST, error_of, logged, session_for, until
from memory_coordination import Memory, MemoryStore
from raw_server import answer, raw_server

from flux2_async import (
    AmbiguousSubmitError,
    Budget,
    Callbacks,
    ConfigurationError,
    CoordinationError,
    Flux2Session,
    InvalidRequestError,
    Polling,
    RateLimit,
    RequestRejectedError,
    TaskNotFoundError,
    TextToImage,
)
from flux2_async.coordination import account_state, shared_texts
from flux2_async.coordination.client import MAX_RELAYS
from flux2_async.coordination.contract import Claim, Terms
from flux2_async.coordination.coordinator import Coordinator
from flux2_async.emulator import Emulator, Fault, Limit, Plan, Script
from flux2_async.emulator.script import FaultKind
from flux2_async.session.keys import fingerprint
from flux2_async.webhooks import Callback

OTHER = TextToImage("a blue kettle on a slate worktop")
CALLBACKS = Callbacks("https://app.example/flux2/", secret="the same in all")


@asynccontextmanager
async def processes(
    count: int, script: Script | None = None, memory: Memory | None = None, **options: Any
) -> AsyncIterator[tuple[Emulator, list[Flux2Session]]]:
    """A service and so many sessions, each as a process of its own would have it."""
    script = script or Script(plans=Plan(duration=2.0))
    script.render = False
    memory = memory or Memory()
    async with Emulator(script) as emulator, AsyncExitStack() as stack:
        sessions = [session_for(emulator, coordination=memory, **options) for _ in range(count)]
        for session in sessions:
            await stack.enter_async_context(session)
        yield emulator, sessions


async def claim_of_the_dead(key: str) -> Claim:
    return Claim(hashlib.sha256(key.encode()).hexdigest(), await fingerprint(REQUEST), "dead-ref", "dead")


async def owner_that_died(memory: Memory, lease: float) -> Coordinator:
    """Reserve the key `k` as a process that is not heard of again; it counts as alive for so long."""
    dead = Coordinator(memory, "account", Terms(None, lease))
    assert await dead.reserve(await claim_of_the_dead("k")) is None
    return dead


def told_by_callbacks(memory: Memory) -> list[tuple[str, str]]:
    """What is kept of callbacks: names and task ids."""
    return [(name, text) for name, (text, _) in memory.texts.items() if ":callback:" in name]


async def test_versions_that_keep_another_form_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is kept has its form in its name, so that of another version's nothing is read or changed."""
    memory = Memory()
    options: dict[str, Any] = {"coordination": memory, "budget": Budget(100, per=3600.0)}
    async with Emulator(Script(plans=Plan(duration=1.0), render=False)) as emulator:
        async with session_for(emulator, **options) as before:
            task = await before.submit(REQUEST, key="k")
            await task.result()
            await asyncio.sleep(1.0)
            kept = dict(memory.texts)
            monkeypatch.setattr(shared_texts, "FORMAT", 99)
            async with session_for(emulator, **options) as later:
                assert (await later.submit(REQUEST, key="k")).id != task.id

    assert {name.partition(":")[0] for name in kept} == {str(account_state.FORMAT)}
    assert {name.partition(":")[0] for name in memory.texts.keys() - kept.keys()} == {"99"}
    assert {name.split(":")[1] for name in kept} == {"account", "budget", "key", "ref"}
    assert all(memory.texts[name] == kept[name] for name in kept)


# --- Keys ---


async def test_one_key_is_one_task_in_all_processes() -> None:
    """The same key submitted by several processes, at once and later, is one createTask and one picture for all."""
    async with processes(3) as (emulator, (one, other, third)):
        tasks = await asyncio.gather(*(flux.submit(REQUEST, key="k") for flux in (one, other, one)))
        later = await third.submit(REQUEST, key="k")
        results = await asyncio.gather(*(task.result(60) for task in (*tasks, later)))

    assert len(emulator.ledger.accepted) == 1
    assert {result.urls for result in results} == {results[0].urls}
    assert {task.id for task in (*tasks, later)} == {results[0].task_id}


async def test_settled_task_is_given_again() -> None:
    """A key stands for its task also after that has finished, and in a process that opens later."""
    memory = Memory()
    async with processes(1, memory=memory) as (emulator, (one,)):
        first = await (await one.submit(REQUEST, key="k")).result(60)
        async with session_for(emulator, coordination=memory) as late:
            again = await (await late.submit(REQUEST, key="k")).result(60)

    assert again.task_id == first.task_id
    assert len(emulator.ledger.accepted) == 1


async def test_key_of_another_request_is_refused() -> None:
    """A key stands for one request in all processes."""
    async with processes(2) as (emulator, (one, other)):
        await one.submit(REQUEST, key="k")
        error = await error_of(other.submit(OTHER, key="k"))

    assert isinstance(error, InvalidRequestError)
    assert "'k' already stands for another request" in str(error)
    assert len(emulator.ledger.accepted) == 1


async def test_who_left_while_the_key_was_reserved_sends_nothing() -> None:
    """A caller that is cancelled before anything was sent pays for nothing, and the key is free again."""
    memory = Memory(rtt=1.0)
    async with processes(2, memory=memory) as (emulator, (one, other)):
        callers = [asyncio.create_task(flux.submit(REQUEST, key="k")) for flux in (one, other)]
        await until(lambda: memory.keys)
        for caller in callers:
            caller.cancel()
        await asyncio.sleep(60)

        assert emulator.ledger.requests == []
        await other.submit(OTHER, key="k")


async def test_a_key_stands_for_its_task_when_its_owner_has_it() -> None:
    """Once `submit` has given the task, the owner may die: the others know which one it is, and are in no doubt."""
    memory = Memory(rtt=1.0)
    async with processes(1, memory=memory) as (_, (one,)):
        task = await one.submit(REQUEST, key="k")
        left_behind = Memory()
        left_behind.texts |= memory.texts
        entry = await Coordinator(left_behind, "account", Terms((), 70.0)).look((await claim_of_the_dead("k")).key)
        assert entry is not None
        assert (entry.state, entry.task_id) == ("bound", task.id)


async def test_a_task_is_given_where_its_key_cannot_be_told() -> None:
    """A shared state that goes away during the POST keeps a paid task from nobody for longer than 5 seconds."""
    memory = Memory()

    async def breaks_down(_: str) -> None:
        memory.down = True

    async with processes(1, memory=memory) as (emulator, (one,)):
        begun = asyncio.get_running_loop().time()
        task = await one.submit(REQUEST, key="k", on_send=breaks_down)

        assert 5.0 <= asyncio.get_running_loop().time() - begun < 6.0
        assert [task.id] == list(emulator.ledger.accepted)


async def test_refused_request_frees_its_key() -> None:
    """What the service refused is free for every process."""
    script = Script(faults=[Fault("createTask", "refuse", code=422)], plans=Plan(duration=1.0))
    async with processes(2, script) as (emulator, (one, other)):
        assert isinstance(await error_of(one.submit(REQUEST, key="k")), RequestRejectedError)
        await asyncio.sleep(0.1)
        await other.submit(OTHER, key="k")

    assert len(emulator.ledger.accepted) == 1


async def test_own_error_of_one_process_is_not_the_others() -> None:
    """When `on_send` of the process that reserved a key raises, the one that waits for the key sends, with its own."""
    told: list[str] = []

    async def fail(ref: str) -> None:
        await asyncio.sleep(1)
        raise AmbiguousSubmitError("of another submission", request=REQUEST, ref=ref)

    async def tell(ref: str) -> None:
        told.append(ref)

    async with processes(2) as (emulator, (one, other)):
        first = asyncio.create_task(one.submit(REQUEST, key="k", on_send=fail))
        await asyncio.sleep(0.5)
        joined = asyncio.create_task(one.submit(REQUEST, key="k", ref="joined", on_send=tell))
        elsewhere = asyncio.create_task(other.submit(REQUEST, key="k", ref="elsewhere", on_send=tell))
        caught = await error_of(first)
        tasks = await asyncio.gather(joined, elsewhere)

    assert isinstance(caught, AmbiguousSubmitError)
    assert len({task.id for task in tasks}) == len(told) == len(emulator.ledger.requests) == 1


async def test_key_survives_a_429() -> None:
    """While the owner waits after a 429, however long, nothing is sent twice and nobody is in doubt."""
    script = Script(faults=[Fault("createTask", "refuse", retry_after=200)], plans=Plan(duration=1.0))
    async with processes(2, script) as (emulator, (one, other)):
        tasks = await asyncio.gather(one.submit(REQUEST, key="k"), other.submit(REQUEST, key="k"))

    assert tasks[0].id == tasks[1].id
    assert len(emulator.ledger.accepted) == 1


async def test_key_is_held_while_a_refusal_is_watched() -> None:
    """A 429 over a connection that stays open is not certain before its pause is over; nobody is in doubt meanwhile."""
    refused = answer(429, {"code": 429, "msg": "slow down"}, "Retry-After: 200\r\n")
    accepted = answer(200, {"code": 200, "msg": "success", "data": {"taskId": "task_1"}})
    memory = Memory()
    async with raw_server([refused, accepted]) as server, AsyncExitStack() as stack:
        flux = [Flux2Session("key", base_url=server.url, coordination=memory) for _ in range(2)]
        for each in flux:
            await stack.enter_async_context(each)
        one = asyncio.create_task(flux[0].submit(REQUEST, key="k"))
        await until(lambda: server.requests)
        other = asyncio.create_task(flux[1].submit(REQUEST, key="k"))

        assert (await one).id == (await other).id == "task_1"
        assert len(server.requests) == 2


async def test_key_that_could_not_be_freed_is_held_on() -> None:
    """Who waits after a 429, and could not free the key for that, leaves nobody in doubt of it."""
    memory = Memory()
    script = Script(faults=[Fault("createTask", "refuse", retry_after=300)], plans=Plan(duration=1.0))

    async def reserved(_: str) -> None:
        memory.down = not emulator.ledger.refused

    async with processes(2, script, memory) as (emulator, (one, other)):
        first = asyncio.create_task(one.submit(REQUEST, key="k", on_send=reserved))
        await until(lambda: emulator.ledger.refused)
        await asyncio.sleep(5.0)
        memory.down = False
        await asyncio.sleep(150.0)

        assert (await other.submit(REQUEST, key="k")).id == (await first).id
        assert len(emulator.ledger.accepted) == 1


async def test_key_is_held_while_on_send_takes_its_time() -> None:
    """An `on_send` that outlasts a reservation leaves nobody in doubt; one that fails then leaves the key free."""
    for fails in (False, True):

        async def slow(ref: str, *, fails: bool = fails) -> None:
            await asyncio.sleep(200.0)
            if fails:
                raise RuntimeError(ref)

        async with processes(2) as (emulator, (one, other)):
            first = asyncio.create_task(one.submit(REQUEST, key="k", on_send=slow))
            await asyncio.sleep(1.0)
            task = await other.submit(REQUEST, key="k")

            assert isinstance(await error_of(first), RuntimeError) if fails else (await first).id == task.id
            assert len(emulator.ledger.accepted) == 1


async def test_only_who_sends_a_key_says_so() -> None:
    """`on_send` runs in the process that has reserved the key, and in no other."""
    said: list[int] = []

    async def submit(flux: Flux2Session, number: int) -> str:
        async def on_send(_: str) -> None:
            said.append(number)

        return (await flux.submit(REQUEST, key="k", on_send=on_send)).id

    async with processes(3) as (emulator, sessions):
        ids = await asyncio.gather(*(submit(flux, number) for number, flux in enumerate(sessions)))

    assert len(said) == 1
    assert set(ids) == set(emulator.ledger.accepted)


async def test_ambiguous_key_is_ambiguous_for_all_until_recovered() -> None:
    """A lost reply binds the key everywhere; the callback, received by a third process, tells all of them the task."""
    script = Script(faults=[Fault("createTask", "cut_after")], plans=Plan(duration=5.0))
    async with processes(3, script, callbacks=CALLBACKS) as (emulator, (one, other, third)):
        assert isinstance(await error_of(one.submit(REQUEST, key="k", ref="r1")), AmbiguousSubmitError)
        await asyncio.sleep(0.1)
        error = await error_of(other.submit(REQUEST, key="k"))
        assert isinstance(error, AmbiguousSubmitError)
        assert error.ref == "r1"

        (task_id,) = emulator.ledger.accepted
        await third.deliver("r1", Callback(task_id, None))
        await asyncio.sleep(0.1)
        tasks = [await flux.submit(REQUEST, key="k") for flux in (one, other)]

    assert [task.id for task in tasks] == [task_id, task_id]
    assert len(emulator.ledger.accepted) == 1


@pytest.mark.parametrize("exists", [True, False])
async def test_owner_that_died_leaves_unknown(*, exists: bool) -> None:
    """Who finds a key in flight waits; its owner never comes back, so nobody sends, until a callback tells the task."""
    memory = Memory()
    async with processes(2, memory=memory, callbacks=CALLBACKS) as (emulator, (one, other)):
        task = await one.submit(REQUEST)
        await owner_that_died(memory, 70.0)
        begun = asyncio.get_running_loop().time()
        error = await error_of(other.submit(REQUEST, key="k"))
        assert isinstance(error, AmbiguousSubmitError)
        assert error.ref == "dead-ref"
        assert 69.0 <= asyncio.get_running_loop().time() - begun <= 73.0

        await one.deliver("dead-ref", Callback(task.id if exists else "no-such-task", None))
        await asyncio.sleep(0.5)
        again = await error_of(other.submit(REQUEST, key="k")) if not exists else await other.submit(REQUEST, key="k")

    assert again.id == task.id if not isinstance(again, Exception) else isinstance(again, AmbiguousSubmitError)
    assert len(emulator.ledger.accepted) == 1


@pytest.mark.parametrize("kind", ["refuse", "html", "cut_before"])
async def test_callback_while_the_service_cannot_be_asked(kind: FaultKind) -> None:
    """Whether the task of a dead owner exists is asked again, and the others are told of the callback once."""
    memory = Memory()
    async with processes(2, memory=memory, callbacks=CALLBACKS) as (emulator, (one, other)):
        task = await one.submit(REQUEST)
        await task.result(60)
        await owner_that_died(memory, 0.0)
        before = other.statistics().callbacks
        emulator.inject(Fault("recordInfo", kind, code=455, times=3))
        await one.deliver("dead-ref", Callback(task.id, None))
        await asyncio.sleep(10.0)

        assert (await other.submit(REQUEST, key="k")).id == task.id
        assert other.statistics().callbacks == before + 1
    assert len(emulator.ledger.accepted) == 1


async def test_callbacks_that_name_missing_tasks_are_looked_at_one_after_the_other() -> None:
    """Of 300 tasks told in 10 s at the address of a submission in doubt few are polled, and the last one counts."""
    memory = Memory()
    async with processes(2, memory=memory, callbacks=CALLBACKS) as (emulator, (one, other)):
        task = await one.submit(REQUEST)
        await task.result(60)
        await owner_that_died(memory, 0.0)
        for number in range(300):
            await one.deliver("dead-ref", Callback(f"no-such-task-{number}", None))
            await asyncio.sleep(10.0 / 300)
        looked = emulator.ledger.poll_times.keys() - {task.id}
        await one.deliver("dead-ref", Callback(task.id, None))
        await asyncio.sleep(5.0)

        assert 1 <= len(looked) <= 6
        assert (await other.submit(REQUEST, key="k")).id == task.id
    assert len(emulator.ledger.accepted) == 1


async def test_callback_before_its_owner_is_known_to_be_dead() -> None:
    """A callback that comes while a dead owner still counts as sending tells the task all the same, later."""
    memory = Memory()
    async with processes(2, memory=memory, callbacks=CALLBACKS) as (emulator, (one, other)):
        task = await one.submit(REQUEST)
        await owner_that_died(memory, 70.0)
        await asyncio.sleep(20.0)
        await one.deliver("dead-ref", Callback(task.id, None))
        await asyncio.sleep(60.0)

        assert (await other.submit(REQUEST, key="k")).id == task.id
    assert len(emulator.ledger.accepted) == 1


@pytest.mark.parametrize("trouble", ["down before", "down unnoticed"])
async def test_callback_that_could_not_be_passed_on_is_passed_on_later(trouble: str) -> None:
    """What a callback told of another process's submission is told when the shared state can be asked again."""
    memory, script = Memory(), Script(faults=[Fault("createTask", "cut_after")], plans=Plan(duration=5.0))
    async with processes(2, script, memory, callbacks=CALLBACKS) as (emulator, (one, other)):
        assert isinstance(await error_of(one.submit(REQUEST, key="k", ref="r1")), AmbiguousSubmitError)
        await asyncio.sleep(0.1)
        (task_id,) = emulator.ledger.accepted
        memory.down = True
        if trouble == "down before":
            assert isinstance(await error_of(other.submit(OTHER, key="other")), CoordinationError)
        await other.deliver("r1", Callback(task_id, None))
        await asyncio.sleep(100.0)
        memory.down = False
        await asyncio.sleep(5.0)
        tasks = [await flux.submit(REQUEST, key="k") for flux in (one, other)]

    assert [task.id for task in tasks] == [task_id, task_id]
    assert len(emulator.ledger.accepted) == 1


async def test_recovering_tells_the_others() -> None:
    """After `recover` the key stands for the task, also where nobody knew the submission when the callback came."""
    memory = Memory()
    async with processes(2, memory=memory, callbacks=CALLBACKS) as (emulator, (one, other)):
        task = await one.submit(REQUEST)
        await task.result(60)
        await one.deliver("dead-ref", Callback(task.id, None))
        await asyncio.sleep(1.0)
        # Else it would be enough that the callback came.
        memory.texts = {name: text for name, text in memory.texts.items() if ":callback:" not in name}
        await owner_that_died(memory, 0.0)
        assert isinstance(await error_of(other.submit(REQUEST, key="k")), AmbiguousSubmitError)
        assert (await one.recover("dead-ref")).id == task.id

        assert (await other.submit(REQUEST, key="k")).id == task.id
    assert len(emulator.ledger.accepted) == 1


async def test_keys_need_the_shared_state() -> None:
    """Where it cannot be asked a key is an error and nothing is sent; without a key submissions go on."""
    memory = Memory()
    async with processes(1, memory=memory, rate_limit=RateLimit(20, 1.0)) as (emulator, (flux,)):
        memory.down = True
        errors = [await error_of(flux.submit(REQUEST, key="k")) for _ in range(2)]
        assert [type(error) for error in errors] == [CoordinationError, CoordinationError]
        assert emulator.ledger.requests == []
        await flux.submit(REQUEST)
        memory.down = False
        await until(lambda: flux.statistics().waiting == 0 and memory.account is not None)
        await asyncio.sleep(5.0)
        await flux.submit(REQUEST, key="k")

    assert len(emulator.ledger.accepted) == 2


async def test_closing_tells_what_a_key_stands_for() -> None:
    """Who leaves right after a submission does not leave its key in doubt."""
    memory = Memory(rtt=0.1)
    async with processes(1, memory=memory) as (emulator, (other,)):
        async with session_for(emulator, coordination=memory) as leaving:
            task = await leaving.submit(REQUEST, key="k")
        begun = asyncio.get_running_loop().time()

        assert (await other.submit(REQUEST, key="k")).id == task.id
        assert asyncio.get_running_loop().time() - begun < 1.0


async def test_refusal_in_an_outage_is_tried_again() -> None:
    """A 429 under a key that comes while nobody can be told does not end the submission when that passes."""
    memory = Memory()
    script = Script(faults=[Fault("createTask", "refuse", retry_after=20)], plans=Plan(duration=1.0), latency=3.0)
    async with processes(1, script, memory) as (emulator, (flux,)):
        job = asyncio.create_task(flux.submit(REQUEST, key="k"))
        await asyncio.sleep(1.0)
        memory.down = True
        await until(lambda: flux.statistics().refused == 1)
        await asyncio.sleep(1.0)
        memory.down = False

        assert (await job).id in emulator.ledger.accepted


async def test_lost_answer_to_a_reservation_sends_nothing() -> None:
    """Who does not hear whether its key is reserved sends nothing, and frees it as soon as it is heard again."""
    memory = Memory()
    async with processes(2, memory=memory) as (emulator, (one, other)):
        memory.lost_reservations = 1
        assert isinstance(await error_of(one.submit(REQUEST, key="k")), CoordinationError)
        assert emulator.ledger.requests == []
        await asyncio.sleep(1.0)
        await other.submit(REQUEST, key="k")

    assert len(emulator.ledger.accepted) == 1


async def test_lost_news_of_a_key_cost_a_moment() -> None:
    """Who waits for a key in flight finds out by itself when nobody tells it."""

    class Silent(Memory):
        def say(self, sender: MemoryStore, line: str) -> None:
            """Everything is lost."""

    async with processes(2, Script(plans=Plan(duration=1.0), latency=3.0), Silent()) as (emulator, (one, other)):
        begun = asyncio.get_running_loop().time()
        first = asyncio.create_task(one.submit(REQUEST, key="k"))
        await asyncio.sleep(1.0)
        second = await other.submit(REQUEST, key="k")

        assert second.id == (await first).id
        assert asyncio.get_running_loop().time() - begun <= 6.0
    assert len(emulator.ledger.accepted) == 1


async def test_cancelled_caller_does_not_cancel_the_other_process() -> None:
    """A process that attached to a submission under way still gets its task when the first caller is gone."""
    async with processes(2, Script(plans=Plan(duration=1.0), latency=3.0)) as (emulator, (one, other)):
        begun = asyncio.get_running_loop().time()
        first = asyncio.create_task(one.submit(REQUEST, key="k"))
        await asyncio.sleep(1.0)
        second = asyncio.create_task(other.submit(REQUEST, key="k"))
        await asyncio.sleep(1.0)
        first.cancel()
        task = await second
        assert asyncio.get_running_loop().time() - begun < 3.5

    assert list(emulator.ledger.accepted) == [task.id]


# --- Callbacks ---


async def test_callback_reaches_the_process_that_waits() -> None:
    """A callback that another process received wakes the one that awaits the task, and is passed on only once."""
    said: list[str] = []

    class Attentive(Memory):
        def say(self, sender: MemoryStore, line: str) -> None:
            said.append(line)
            super().say(sender, line)

    options: dict[str, Any] = {"callbacks": CALLBACKS, "polling": Polling(interval=1000.0)}
    async with processes(4, memory=Attentive(), **options) as (_, (one, other, *_)):
        task = await one.submit(REQUEST, ref="r1")
        await asyncio.sleep(3.0)
        assert not task.done()
        await other.deliver("r1", Callback(task.id, None))
        begun = asyncio.get_running_loop().time()
        await task.wait()

        assert asyncio.get_running_loop().time() - begun < 0.5
        await asyncio.sleep(1.0)
    assert sum(" callback " in line for line in said) == 1


async def test_recover_in_a_process_that_did_not_submit() -> None:
    """`recover` finds the task wherever the callback lands."""
    async with processes(2, callbacks=CALLBACKS) as (_, (one, other)):
        task = await one.submit(REQUEST)
        found = asyncio.create_task(other.recover("of-an-earlier-session"))
        await one.deliver("of-an-earlier-session", Callback("t-9", None))

        assert (await found).id == "t-9"
        assert task.id != "t-9"


async def test_callback_that_came_while_nobody_waited() -> None:
    """What a process was told, which was closed at once, is found by one that opens hours later: by ref and by key."""
    memory = Memory(rtt=0.1)
    async with processes(1, memory=memory, callbacks=CALLBACKS) as (emulator, (one,)):
        task = await one.submit(REQUEST)
        await task.result(60)
        await owner_that_died(memory, 70.0)
        await one.deliver("dead-ref", Callback(task.id, None))
        await one.deliver("of-an-earlier-session", Callback("t-9", None))
        await one.aclose()
        await asyncio.sleep(20 * 3600.0)
        async with session_for(emulator, coordination=memory, callbacks=CALLBACKS) as late:
            assert (await late.recover("of-an-earlier-session", timeout=5)).id == "t-9"
            assert (await late.submit(REQUEST, key="k")).id == task.id

    assert len(emulator.ledger.accepted) == 1


async def test_callback_of_a_task_that_cannot_be_looked_up() -> None:
    """A key of which a callback told stays unknown while its task cannot be looked up, and nothing is sent."""
    memory = Memory()
    async with processes(1, memory=memory, callbacks=CALLBACKS) as (emulator, (one,)):
        task = await one.submit(REQUEST)
        await task.result(60)
        dead = await owner_that_died(memory, 0.0)
        await dead.pass_on("dead-ref", task.id)
        emulator.inject(Fault("recordInfo", "html", times=None))
        assert isinstance(await error_of(one.submit(REQUEST, key="k")), AmbiguousSubmitError)
        emulator.clear_faults()
        assert (await one.submit(REQUEST, key="k")).id == task.id

    assert len(emulator.ledger.accepted) == 1


async def test_recover_hears_of_a_callback_although_the_news_is_lost() -> None:
    """Who waits for a callback finds it where another process has kept it, and waits on while that cannot be asked."""
    memory = Memory()
    async with processes(2, memory=memory, callbacks=CALLBACKS) as (_, (one, other)):
        memory.down = True
        found = asyncio.create_task(other.recover("of-an-earlier-session"))
        await asyncio.sleep(10.0)
        memory.down, memory.mute = False, True
        await asyncio.sleep(10.0)
        await one.deliver("of-an-earlier-session", Callback("t-9", None))

        assert (await asyncio.wait_for(found, 10.0)).id == "t-9"


async def test_recover_of_what_is_unclear_here_although_the_news_is_lost() -> None:
    """A task that another process was told of is that of the submission whose reply was lost here, with all it had."""
    memory = Memory()
    async with processes(2, memory=memory, callbacks=CALLBACKS) as (emulator, (one, other)):
        emulator.inject(Fault("createTask", "cut_after"))
        lost = await error_of(one.submit(REQUEST, ref="r", metadata={"row": 7}))
        assert isinstance(lost, AmbiguousSubmitError)
        (accepted,) = emulator.ledger.accepted
        memory.mute = True
        await other.deliver("r", Callback(accepted, None))
        task = await one.recover("r", timeout=10)
        await task.result(60)

        assert (task.id, task.request, task.metadata) == (accepted, REQUEST, {"row": 7})


async def test_a_callback_is_kept_before_it_is_answered() -> None:
    """Where only the callback tells of a task, it is kept when the receiver may answer 200: a kill loses nothing."""
    memory = Memory(rtt=1.0)
    async with processes(1, memory=memory, callbacks=CALLBACKS) as (emulator, (one,)):
        emulator.inject(Fault("createTask", "cut_after"))
        assert isinstance(await error_of(one.submit(REQUEST, ref="unclear-here")), AmbiguousSubmitError)
        (accepted,) = emulator.ledger.accepted
        for ref, task_id in (("of-an-earlier-session", "t-9"), ("unclear-here", accepted)):
            assert await one.deliver(ref, Callback(task_id, None))
            assert (f"{account_state.FORMAT}:callback:{ref}", task_id) in told_by_callbacks(memory)
            async with session_for(emulator, coordination=memory, callbacks=CALLBACKS) as late:
                assert (await late.recover(ref, timeout=5)).id == task_id


async def test_what_an_own_task_is_told_is_not_kept() -> None:
    """The callback of a task that is outstanding here is used at once, without a question to the shared state."""
    memory = Memory(rtt=1.0)
    async with processes(1, memory=memory, callbacks=CALLBACKS) as (_, (one,)):
        task = await one.submit(REQUEST, ref="mine")
        begun = asyncio.get_running_loop().time()
        assert await one.deliver("mine", Callback(task.id, None))

        assert asyncio.get_running_loop().time() == begun
        assert told_by_callbacks(memory) == []


async def test_a_callback_that_cannot_be_kept_is_told_to_come_again() -> None:
    """While the shared state is away the sender is told so in 5 s; it is kept all the same once the state is back."""
    memory = Memory()
    async with processes(1, memory=memory, callbacks=CALLBACKS) as (_, (one,)):
        memory.down = True
        begun = asyncio.get_running_loop().time()
        assert not await one.deliver("of-an-earlier-session", Callback("t-9", None))
        assert asyncio.get_running_loop().time() - begun == pytest.approx(5.0)
        memory.down = False
        await asyncio.sleep(10.0)

        assert [task_id for _, task_id in told_by_callbacks(memory)] == ["t-9"]


async def test_callbacks_that_are_dropped_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """More callbacks than may wait for the shared state are one warning that says what is lost; none is a 200."""
    memory = Memory()
    async with processes(1, memory=memory, callbacks=CALLBACKS) as (_, (one,)):
        memory.down = True
        kept = await asyncio.gather(*(one.deliver(f"r{n}", Callback(f"t{n}", None)) for n in range(MAX_RELAYS + 50)))
        memory.down = False

        told = [record.getMessage() for record in caplog.records if "callbacks wait" in record.getMessage()]
        assert len(told) == 1
        assert told[0].startswith(f"{MAX_RELAYS} callbacks wait for the shared state of this account")
        assert not any(kept)


async def test_a_callback_for_a_task_that_does_not_exist_is_given_once() -> None:
    """Once the service has not known the task for 90 s, nobody else gets it; a callback that comes after it counts."""
    memory = Memory()
    async with processes(1, memory=memory, callbacks=CALLBACKS) as (emulator, (one,)):
        await one.deliver("of-an-earlier-session", Callback("no-such-task", None))
        task = await one.recover("of-an-earlier-session", timeout=5)
        assert isinstance(await error_of(task.result(200)), TaskNotFoundError)
        async with session_for(emulator, coordination=memory, callbacks=CALLBACKS) as late:
            assert isinstance(await error_of(late.recover("of-an-earlier-session", timeout=60)), TimeoutError)
            await one.deliver("of-an-earlier-session", Callback("t-9", None))
            assert (await late.recover("of-an-earlier-session", timeout=5)).id == "t-9"


async def test_callback_for_a_session_without_callbacks() -> None:
    """A session that receives none itself still looks when another one was told."""
    memory = Memory()
    options: dict[str, Any] = {"polling": Polling(interval=1000.0)}
    async with processes(1, memory=memory, **options) as (emulator, (plain,)):
        async with session_for(emulator, coordination=memory, callbacks=CALLBACKS) as receiving:
            task = await plain.submit(REQUEST)
            await asyncio.sleep(3.0)
            await receiving.deliver("r", Callback(task.id, None))
            await task.result(2.0)


# --- The rest ---


async def test_statistics_show_what_is_shared() -> None:
    """The pause and the learned limit that one process met show in the statistics of the other."""
    script = Script(limit=Limit(2, 10.0, "sliding"), plans=Plan(duration=1.0))
    async with processes(2, script) as (_, (one, other)):
        refused = asyncio.gather(*(one.submit(REQUEST) for _ in range(3)))
        await asyncio.sleep(1.0)
        assert other.statistics().paused_until is not None
        await asyncio.gather(refused, other.submit(REQUEST))
        # It is heard with the next permit.
        assert other.statistics().learned_limit == one.statistics().learned_limit == 2


async def test_pause_of_another_process_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A process that waits because another one was refused says so at INFO."""
    caplog.set_level("INFO", "flux2_async")
    script = Script(limit=Limit(2, 10.0, "sliding"), plans=Plan(duration=1.0))
    async with processes(2, script) as (_, (one, other)):
        await asyncio.gather(*(one.submit(REQUEST) for _ in range(3)), other.submit(REQUEST))

    told = [line for line in caplog.messages if line.startswith("another process of this account")]
    assert set(told) == {"another process of this account lets all submissions pause for 10.0 s"}


async def test_sessions_that_share_are_no_cause_for_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Several sessions of one account are what coordination is for."""
    async with processes(2):
        pass

    assert logged(caplog, level=logging.WARNING) == []


async def test_callbacks_need_a_common_secret() -> None:
    """A secret made up per session would let no other process receive its callbacks."""
    flux = Flux2Session("key", coordination=Memory(), callbacks=Callbacks("https://app.example/flux2/"))
    with pytest.raises(ConfigurationError, match="set the environment variable APIKLEY_CALLBACK_SECRET"):
        await flux.open()
    await flux.aclose()


async def test_coordination_must_be_one() -> None:
    """Anything else is told when the session is made."""
    with pytest.raises(ConfigurationError, match=r"coordination: str given, it must be HostCoordination"):
        Flux2Session("key", coordination="redis://host")  # type: ignore[arg-type]  # on purpose


async def test_account_is_a_digest() -> None:
    """The shared state hears neither key nor address."""
    seen: list[str] = []

    class Curious(Memory):
        def store(self, account: str, member: str) -> MemoryStore:
            seen.append(account)
            return super().store(account, member)

    async with processes(2, memory=Curious()) as (emulator, _):
        assert emulator.api_key not in seen[0]

    assert seen[0] == seen[1]
    assert len(seen[0]) == 64


async def test_failed_opening_leaves_nothing() -> None:
    """A session that cannot be opened can be dropped, or opened later."""
    memory = Memory(on_failure="fail")
    memory.down = True
    async with Emulator(Script(render=False)) as emulator:
        flux = session_for(emulator, coordination=memory)
        assert isinstance(await error_of(flux.open()), CoordinationError)
        assert memory.stores == []
        memory.down = False
        async with flux:
            await flux.submit(REQUEST)


async def test_on_send_that_outlasts_its_lease_breaks_no_limit() -> None:
    """A lease that ended before the request left is asked for anew: all are sent once, in the limit."""
    sent: list[str] = []

    async def slow(ref: str) -> None:
        sent.append(ref)
        # The first four leases have ended, and are lent to others, when these four would send.
        await asyncio.sleep(100.0 if len(sent) <= 4 else 0.1)

    memory, rate = Memory(), RateLimit(4, 10.0)
    script = Script(plans=Plan(duration=1.0), limit=Limit(4, 10.0), render=False)
    async with Emulator(script) as emulator, AsyncExitStack() as stack:
        opened = [session_for(emulator, coordination=memory, rate_limit=rate) for _ in range(2)]
        for flux in opened:
            await stack.enter_async_context(flux)
        await asyncio.gather(*(flux.submit(TextToImage("a kettle"), on_send=slow) for flux in opened for _ in range(6)))

    assert len(emulator.ledger.accepted) == 12
    assert emulator.ledger.refused == 0
    assert emulator.ledger.max_in_window(10.0) <= 4
    assert len(set(sent)) == 12
