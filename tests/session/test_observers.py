"""What observers of a session are told, and that they decide nothing."""

import asyncio
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import attrs
import pytest
from emulated import REQUEST, emulated, error_of, session_for, until
from memory_coordination import Memory

import flux2_async
from flux2_async import (
    Attached,
    ConfigurationError,
    Downloaded,
    Flux2Session,
    ImageToImage,
    InvalidRequestError,
    LimitLearned,
    Paused,
    Polled,
    Queued,
    RateLimit,
    RateLimitedError,
    SessionEvent,
    Settled,
    StateChanged,
    SubmissionChanged,
    SubmissionEvent,
    SubmissionState,
    TaskState,
    Uploaded,
)
from flux2_async.emulator import Emulator, Fault, Limit, Plan, Script
from flux2_async.models import TextToImage

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
)


def steps(events: list[SessionEvent]) -> list[str]:
    """The events of submissions, in their words."""
    return [str(event.event) for event in events if isinstance(event, SubmissionChanged)]


async def test_events_can_be_sent_to_another_process() -> None:
    """What an observer is told is pickled whole, also with what the caller gave with it."""
    told: list[SessionEvent] = []
    async with emulated(Script(render=False), observers=[told.append]) as (flux, _):
        for metadata in ({"order": 7}, {}, None):
            await (await flux.submit(REQUEST, group="anna", metadata=metadata))

    opened = [pickle.loads(pickle.dumps(event)) for event in told]
    assert opened == told
    assert {type(event) for event in opened} >= {Queued, SubmissionChanged, Polled, Settled}
    assert {event.group for event in opened} == {"anna"}


async def test_a_task_from_request_to_files(tmp_path: Path) -> None:
    """Everything that becomes of a request is told in order, under its ref and key, and from the id on under that."""
    seen: list[SessionEvent] = []
    script = Script(plans=Plan(duration=2.0))
    async with Emulator(script) as emulator, session_for(emulator, observers=[seen.append]) as flux:
        task = await flux.submit(ImageToImage("make it red", images=[PNG]), ref="mine", key="order 7")
        paths = await flux.download(await task.result(), tmp_path)

    kinds = [type(event) for event in seen]
    assert kinds[:2] == [Queued, Uploaded]
    assert steps(seen) == ["granted", "announced", "posted", "accepted"]
    assert set(kinds[6:-2]) == {Polled, StateChanged}
    assert kinds[-2:] == [Settled, Downloaded]
    assert {(event.ref, event.key) for event in seen[:-1]} == {("mine", "order 7")}
    assert [event.task_id for event in seen] == [None] * 5 + [task.id] * (len(seen) - 5)
    assert all(event.time.tzinfo for event in seen)
    changes = [event.state for event in seen if isinstance(event, StateChanged)]
    assert changes[-1] is TaskState.SUCCESS
    assert len(set(changes)) == len(changes)
    assert (task.ref, task.key) == ("mine", "order 7")
    assert isinstance(seen[-1], Downloaded)
    assert list(seen[-1].paths) == paths
    assert isinstance(seen[-2], Settled)
    assert seen[-2].result is not None


@pytest.mark.parametrize(
    ("fault", "told", "state"),
    [
        (Fault("createTask", "refuse", code=402), ["posted", "refused"], SubmissionState.REFUSED),
        (Fault("createTask", "cut_after"), ["posted", "unclear"], SubmissionState.UNKNOWN),
    ],
    ids=["refused", "unclear"],
)
async def test_what_does_not_become_a_task(fault: Fault, told: list[str], state: SubmissionState) -> None:
    """The step that ends a submission carries the error that its caller gets."""
    seen: list[SessionEvent] = []
    async with emulated(Script(faults=[fault]), observers=[seen.append]) as (flux, _):
        error = await error_of(flux.submit(REQUEST))

    assert steps(seen) == ["granted", "announced", *told]
    last = seen[-1]
    assert isinstance(last, SubmissionChanged)
    assert (last.state, last.error, last.request) == (state, error, REQUEST)


async def test_a_429_its_pause_and_what_it_teaches() -> None:
    """A 429 is told as a pause and as a step back into the queue; a learned limit with what it was."""
    seen: list[SessionEvent] = []
    rate, script = RateLimit(8, 10.0), Script(plans=Plan(duration=1.0), limit=Limit(4, 10.0), render=False)
    async with emulated(script, rate_limit=rate, observers=[seen.append]) as (flux, _):
        await asyncio.gather(*(flux.submit(TextToImage(f"number {number}")) for number in range(10)))
        refused = flux.statistics().refused

    pauses = [event for event in seen if isinstance(event, Paused)]
    learned = [event.limit for event in seen if isinstance(event, LimitLearned)]
    assert refused == len(pauses) == steps(seen).count("throttled") > 0
    assert pauses[0].seconds == pytest.approx(10, abs=1)
    assert pauses[0].rate_limit == rate
    assert 4 in learned


async def test_who_leaves() -> None:
    """A caller that leaves in time is told as a withdrawal, one whose max_wait runs out as an expiry."""
    seen: list[SessionEvent] = []
    async with emulated(rate_limit=RateLimit(1, 60.0), observers=[seen.append]) as (flux, _):
        await flux.submit(REQUEST)
        begun = len(seen)
        waiting = asyncio.create_task(flux.submit(REQUEST))
        await asyncio.sleep(1)
        waiting.cancel()
        assert isinstance(await error_of(flux.submit(REQUEST, max_wait=0)), RateLimitedError)
        await until(lambda: steps(seen[begun:])[1:])

        assert sorted(steps(seen[begun:])) == ["expired", "withdrawn"]


async def test_told_in_the_context_of_whoever_calls() -> None:
    """A submission that is taken in and a task that is attached are told before the call returns, in its context."""
    caller: ContextVar[str] = ContextVar("caller", default="nobody")
    seen: list[tuple[SessionEvent, str]] = []
    async with emulated(observers=[lambda event: seen.append((event, caller.get()))]) as (flux, _):
        caller.set("who submits")
        task = await flux.submit(REQUEST, ref="mine", key="order 7")
        await flux.aclose()
        async with flux:
            caller.set("who attaches")
            again = flux.attach(task.id)
            assert flux.attach(task.id) is again
            caller.set("somebody else")
            await again.result()

            caller.set("who enqueues")
            handle = flux.enqueue(REQUEST, ref="later")
            caller.set("somebody else")
            await handle

    queued, enqueued = [(event, who) for event, who in seen if isinstance(event, Queued)]
    assert (enqueued[0].ref, enqueued[1]) == ("later", "who enqueues")
    [attached] = [(event, who) for event, who in seen if isinstance(event, Attached)]
    assert isinstance(queued[0], Queued)
    assert (queued[0].ref, queued[0].key, queued[0].request, queued[1]) == ("mine", "order 7", REQUEST, "who submits")
    assert (attached[0].task_id, attached[1]) == (task.id, "who attaches")


async def test_given_up_and_attached_again() -> None:
    """A task that had been given up is told as attached when somebody wants it again."""
    seen: list[SessionEvent] = []
    async with emulated(Script(plans=Plan(duration=30.0)), observers=[seen.append]) as (flux, _):
        task = await flux.submit(REQUEST, ref="mine")
        flux.give_up_after(task, 5)
        await error_of(task.result())
        await task.result()

    ends = [event for event in seen if isinstance(event, Attached | Settled)]
    assert [type(event) for event in ends] == [Settled, Attached, Settled]
    assert {(event.ref, event.task_id) for event in ends} == {("mine", task.id)}


async def test_whose_it_is_and_what_belongs_to_it() -> None:
    """Group and metadata go with a submission: to its task, to the next handle of it, to its events and completion."""
    seen: list[SessionEvent] = []
    given: dict[str, Any] = {"chat": 7, "list": [1]}
    refused = Fault("createTask", "refuse", retry_after=1)
    script = Script(plans=Plan(duration=2.0), faults=[refused])
    async with emulated(script, observers=[seen.append]) as (flux, _):
        picture = ImageToImage("make it red", images=[PNG])
        task = await flux.submit(picture, ref="mine", key="a", group="alice", metadata=given)
        given["chat"] = 8
        joined = await flux.submit(picture, key="a", group="bob", metadata={"chat": 9})
        await flux.aclose()
        await flux.open()
        again = await flux.submit(picture, key="a")
        await again.result()
        own = [event for event in seen if not isinstance(event, LimitLearned)]
        del seen[:]
        await flux.generate(REQUEST, group="carol", metadata={})

    assert joined is task
    assert again is not task
    carriers: list[Any] = [task, again, *own]
    for each in carriers:
        assert (each.ref, each.key, each.group, each.metadata) == ("mine", "a", "alice", {"chat": 7, "list": [1]})
    assert {type(event) for event in own} == {
        *(Queued, Uploaded, SubmissionChanged, Paused, Polled, StateChanged, Settled),
    }
    assert {(event.group, *(event.metadata or ())) for event in seen} == {("carol",)}
    assert task.metadata is not None
    assert task.metadata["list"] is given["list"]
    with pytest.raises(TypeError):
        task.metadata["chat"] = 1  # type: ignore[index]  # pyright: ignore[reportIndexIssue]  what is tried
    assert "chat" not in repr(own)


async def test_a_key_that_another_process_has() -> None:
    """The handle of a task that another process submitted knows by what it was asked for here."""
    memory = Memory()
    async with emulated(coordination=memory) as (there, emulator), session_for(emulator, coordination=memory) as here:
        task = await there.submit(REQUEST, key="a", group="alice")
        found = await here.submit(REQUEST, key="a", group="bob", metadata={"chat": 7})

    assert found.id == task.id
    assert (found.key, found.group, found.metadata) == ("a", "bob", {"chat": 7})


@pytest.mark.parametrize(("name", "wrong"), [("group", ""), ("group", 7), ("metadata", "text"), ("metadata", [1])])
async def test_what_can_be_no_group_and_no_metadata(name: str, wrong: Any) -> None:
    """A wrong one is refused by its name before anything is sent."""
    async with emulated() as (flux, emulator):
        for call in (flux.submit, flux.generate):
            error = await error_of(call(REQUEST, **{name: wrong}))
            assert isinstance(error, InvalidRequestError)
            assert str(error).startswith(f"{name}: ")
        assert not emulator.ledger.requests


async def test_a_look_that_fails() -> None:
    """A look without an answer is told with its error, and is no new state."""
    seen: list[SessionEvent] = []
    script = Script(plans=Plan(duration=2.0), faults=[Fault("recordInfo", "refuse", code=500)])
    async with emulated(script, observers=[seen.append]) as (flux, _):
        await (await flux.submit(REQUEST)).wait()

    looks = [event for event in seen if isinstance(event, Polled)]
    assert looks[0].error is not None
    assert looks[0].record is None
    assert looks[-1].record is not None
    assert all(look.seconds >= 0 for look in looks)


async def test_one_that_raises_decides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """An observer that raises is logged once; all that happens happens as without it, and the others are told."""
    seen: list[SessionEvent] = []

    def broken(event: SessionEvent) -> None:
        raise ValueError(f"no room for {event.task_id}")

    async with emulated(observers=[broken, seen.append]) as (flux, emulator):
        tasks = [await flux.submit(REQUEST) for _ in range(3)]
        for task in tasks:
            await task.result()

    assert len(emulator.ledger.accepted) == 3
    assert steps(seen).count("accepted") == 3
    failures = [record for record in caplog.records if "observer" in record.message]
    assert len(failures) == 1
    assert "no room for" in caplog.text


async def test_observed_for_a_while() -> None:
    """`observe` begins at once and ends where its function is called; statistics count all along."""
    seen: list[SessionEvent] = []
    async with emulated() as (flux, _):
        await flux.submit(REQUEST)
        end = flux.observe(seen.append)
        await flux.submit(REQUEST, ref="observed")
        end()
        end()
        await flux.submit(REQUEST)

        assert {event.ref for event in seen if isinstance(event, SubmissionChanged)} == {"observed"}
        assert flux.statistics().submitted == 3


async def test_one_that_wants_little_is_told_little(caplog: pytest.LogCaptureFixture) -> None:
    """It is told of the kinds and steps that it names, whatever others want; in the log nothing is missed."""

    class Few:
        wants = frozenset({Settled, SubmissionEvent.POSTED})

        def __init__(self) -> None:
            self.seen: list[SessionEvent] = []

        def __call__(self, event: SessionEvent) -> None:
            self.seen.append(event)

    class Steps(Few):
        wants = frozenset({SubmissionChanged})

    few, whole, every = Few(), Steps(), list[SessionEvent]()
    script = Script(faults=[Fault("createTask", "cut_after", after=1)])
    async with emulated(script, observers=[few]) as (flux, _):
        ends = [flux.observe(every.append), flux.observe(whole)]
        await (await flux.submit(REQUEST)).result()
        for end in ends:
            end()
        told = len(every)
        await error_of(flux.submit(REQUEST))

    assert [type(event) for event in few.seen] == [SubmissionChanged, Settled, SubmissionChanged]
    assert steps(few.seen) == ["posted", "posted"]
    assert whole.seen == [event for event in every if isinstance(event, SubmissionChanged)]
    assert set(few.seen[:2]) < set(every)
    assert told == len(every)
    assert [record.levelname for record in caplog.records if record.name == "flux2_async"] == ["WARNING"]


async def test_statistics_begin_anew() -> None:
    """A session that is opened again counts from nothing, and its observers stay."""
    seen: list[SessionEvent] = []
    async with emulated(observers=[seen.append]) as (flux, _):
        await flux.submit(REQUEST)
        await flux.aclose()
        assert flux.statistics().submitted == 1
        await flux.open()
        assert flux.statistics().submitted == 0
        await flux.submit(REQUEST)

        assert steps(seen).count("accepted") == 2


class Asynchronous:
    """Can be called, and must be awaited."""

    async def __call__(self, event: SessionEvent) -> None: ...


async def asynchronous(event: SessionEvent) -> None: ...


@pytest.mark.parametrize("wrong", ["print", None, asynchronous, Asynchronous()])
def test_what_cannot_observe(wrong: Any) -> None:
    """What cannot be called, or would have to be awaited, is refused with what to give instead."""
    with pytest.raises(ConfigurationError, match="must be a plain function that takes an event"):
        Flux2Session("key", observers=[wrong])
    with pytest.raises(ConfigurationError, match="must be a plain function that takes an event"):
        Flux2Session("key").observe(wrong)


@pytest.mark.parametrize("wants", [{"Settled"}, [Settled], {Settled, "accepted"}])
def test_what_cannot_be_wanted(wants: object) -> None:
    """Names instead of classes, and lists, are refused: the observer would be told of nothing, or of everything."""
    observer: Any = type("Observer", (), {"__call__": print, "wants": wants})()
    with pytest.raises(
        ConfigurationError, match="must be a set of classes of events and of members of SubmissionEvent"
    ):
        Flux2Session("key", observers=[observer])


def test_one_observer_without_a_list() -> None:
    """A function where a list of functions belongs is told as such."""
    observe: Callable[[SessionEvent], object] = print
    with pytest.raises(ConfigurationError, match="must be a list of functions"):
        Flux2Session("key", observers=observe)  # type: ignore[arg-type]  # what is tried


def test_events_hold_still_and_show_no_prompt() -> None:
    """Events are frozen, and what a log may hold of them are names and states."""
    for name in (
        *("Attached", "Downloaded", "LimitLearned", "Polled", "Paused"),
        *("OutageBegan", "OutageEnded", "Queued", "Settled", "StateChanged", "SubmissionChanged", "Uploaded"),
    ):
        assert issubclass(getattr(flux2_async, name), SessionEvent)
        assert attrs.fields_dict(getattr(flux2_async, name)).keys() >= {
            *("time", "ref", "task_id", "key", "group", "metadata"),
        }
    assert not attrs.fields_dict(SubmissionChanged)["request"].repr
    assert not attrs.fields_dict(Queued)["request"].repr


def test_events_cost_nothing_unobserved() -> None:
    """A process that observes nothing does not even load them."""
    code = "import sys, flux2_async; flux2_async.Flux2Session('key'); print('flux2_async.models.events' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  our own words

    assert done.stdout.strip() == "False"
