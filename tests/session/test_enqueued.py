"""What the handle of an enqueued submission tells, and when it can be taken back."""

import asyncio
import gc
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from emulated import REQUEST, emulated, error_of, look_at_length, session_for, until

from flux2_async import (
    AmbiguousSubmitError,
    AuthenticationError,
    ConfigurationError,
    Flux2Session,
    ImageTask,
    ImageToImage,
    InsufficientCreditsError,
    InvalidRequestError,
    RateLimit,
    RateLimitedError,
    SessionClosedError,
    SessionEvent,
    SubmissionChanged,
    SubmissionEvent,
    SubmissionHandle,
    SubmissionState,
    SubmissionWithdrawnError,
    TextToImage,
)
from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.testing import running_emulator

S = SubmissionState
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
)
ONE_A_MINUTE = RateLimit(1, 60.0)


async def test_goes_on_unawaited() -> None:
    """A handle is given at once, its submission becomes a task that nobody waits for, and `drain` waits for both."""
    async with emulated() as (flux, emulator):
        handle = flux.enqueue(REQUEST, ref="mine", group="alice", metadata={"chat": 7})
        assert (handle.state, handle.ref, handle.request) == (S.QUEUED, "mine", REQUEST)
        assert (handle.task, handle.error) == (None, None)
        assert repr(handle) == "<SubmissionHandle mine queued>"
        await flux.drain()

        assert len(emulator.ledger.accepted) == 1
        assert (handle.state, handle.position) == (S.ACCEPTED, None)
        task = await handle
        assert (handle.task, handle.error) == (task, None)
        assert await handle is task
        assert task.done()
        assert (task.ref, task.group, task.metadata) == ("mine", "alice", {"chat": 7})
        assert not handle.withdraw()


async def test_a_waiter_that_is_cancelled_ends_its_own_wait() -> None:
    """Cancelling who awaits a handle changes nothing for the submission, nor for who else awaits it."""
    async with emulated(rate_limit=ONE_A_MINUTE) as (flux, emulator):
        await flux.submit(REQUEST)
        handle = flux.enqueue(REQUEST)

        async def wait() -> ImageTask:
            return await handle

        first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(1)
        first.cancel()

        assert (await second).id == emulator.ledger.accepted[1]
        assert first.cancelled()


async def test_positions() -> None:
    """Those before it by priority and arrival are counted; who waits for a slot comes after who has one."""
    async with emulated(rate_limit=RateLimit(1, 20.0), max_running=3) as (flux, emulator):
        await flux.submit(REQUEST)
        handles = [
            flux.enqueue(TextToImage(f"number {n}"), priority=priority) for n, priority in enumerate((0, 0, 0, 5))
        ]
        assert handles[0].position == 0
        await asyncio.sleep(1)
        # The first two have the slots that are left.
        assert [handle.position for handle in handles] == [0, 1, 3, 2]
        handles[0].withdraw()
        await asyncio.sleep(0.1)
        assert [handle.position for handle in handles] == [None, 1, 2, 0]
        await handles[3]
        assert [handle.position for handle in handles] == [None, 0, 1, None]
        await asyncio.gather(*(handles[1], handles[2]))

        prompts = [call.body["input"]["prompt"] for call in emulator.ledger.requests[1:] if call.body is not None]
        assert prompts == ["number 3", "number 1", "number 2"]


async def test_positions_at_once() -> None:
    """Whoever asks right after `enqueue` hears of all that were enqueued before, whatever their group."""
    async with emulated(rate_limit=ONE_A_MINUTE) as (flux, _):
        handles = [flux.enqueue(TextToImage(f"number {number}"), group="ab"[number % 2]) for number in range(6)]
        urgent = flux.enqueue(REQUEST, group="a", priority=1)
        assert [handle.position for handle in (*handles, urgent)] == [0, 1, 2, 3, 4, 5, 0]
        starts = [seconds_until(handle) for handle in handles[:5:2]]
        assert starts == sorted(starts)
        assert starts[2] > starts[0] + 100.0
        handles[0].withdraw()
        assert [handle.position for handle in (urgent, handles[4])] == [0, 3]


def seconds_until(handle: SubmissionHandle) -> float:
    """How far away its start is expected."""
    assert handle.expected_start is not None
    assert handle.expected_start.tzinfo is not None
    return (handle.expected_start - datetime.now(UTC)).total_seconds()


def sent_at(emulator: Emulator) -> dict[str, float]:
    """When each prompt came to the service, in seconds since the first."""
    calls = [call for call in emulator.ledger.requests if call.outcome == "accepted" and call.body is not None]
    return {call.body["input"]["prompt"]: call.time - calls[0].time for call in calls if call.body is not None}


@pytest.mark.parametrize(
    "options",
    [
        {"rate_limit": RateLimit(2, 10.0)},
        {"rate_limit": [RateLimit(1, 5.0), RateLimit(4, 60.0)]},
        {"rate_limit": RateLimit(5, 30.0), "max_running": 2},
        {"max_running": 3},
    ],
    ids=["limit", "limits", "both", "running"],
)
async def test_expected_start(options: dict[str, Any]) -> None:
    """What the limit, those before it and the tasks that run let expect is about when each of them is sent."""
    async with emulated(Script(plans=Plan(duration=20.0)), **options) as (flux, emulator):
        for _ in range(5):
            await flux.submit(REQUEST)
        await flux.drain()
        await asyncio.sleep(60.0)
        begun = asyncio.get_running_loop().time()
        handles = [flux.enqueue(TextToImage(f"number {n}")) for n in range(12)]
        await asyncio.sleep(0.5)
        expected = [(handle.request, seconds_until(handle)) for handle in handles if handle.state is S.QUEUED]
        assert len(expected) >= 7
        assert [handle.expected_start for handle in handles if handle.state is not S.QUEUED] == [None] * (
            12 - len(expected)
        )
        await flux.drain()

        first = begun + 0.5 - emulator.ledger.requests[0].time
        for request, seconds in expected:
            came = sent_at(emulator)[request.prompt] - first
            assert came == pytest.approx(seconds, rel=0.15, abs=2.0)


async def test_expected_start_changes_with_what_happens() -> None:
    """A pause moves it, one that leaves or is overtaken makes room; without a limit it is now."""
    async with emulated(rate_limit=RateLimit(1, 20.0)) as (flux, _):
        await flux.submit(REQUEST)
        handles = [flux.enqueue(TextToImage(f"number {n}")) for n in range(3)]
        await asyncio.sleep(0.1)
        assert [round(seconds_until(handle)) for handle in handles] == [20, 40, 60]
        handles[2].priority = 1
        assert [round(seconds_until(handle)) for handle in handles] == [40, 60, 20]
        handles[0].withdraw()
        await asyncio.sleep(0.1)
        assert [round(seconds_until(handle)) for handle in handles[1:]] == [40, 20]
        flux.pause(100.0)
        assert [round(seconds_until(handle)) for handle in handles[1:]] == [120, 100]
    async with emulated(rate_limit=None, max_running=None) as (flux, _):
        assert abs(seconds_until(flux.enqueue(REQUEST))) < 1.0


async def test_expected_start_is_not_known_in_an_outage() -> None:
    """While the service is away, and nobody knows for how long, no time is told."""
    async with emulated(Script(faults=[Fault("createTask", "cut_after", times=2)])) as (flux, _):
        for _ in range(2):
            assert isinstance(await error_of(flux.submit(REQUEST)), AmbiguousSubmitError)
        handle = flux.enqueue(REQUEST)
        await asyncio.sleep(0.1)
        assert (handle.state, handle.expected_start) == (S.QUEUED, None)
        assert attrs.astuple(handle.expectation()) == (pytest.approx(0.1, abs=0.01), None, None, None)
        assert flux.remaining() is None


async def test_expectation_from_the_queue_to_the_picture() -> None:
    """It tells the wait and the task together, and goes on once the task is made; the fraction grows all the time."""
    script = Script(plans=Plan(duration=12.0))
    async with emulated(script, rate_limit=RateLimit(4, 30.0)) as (flux, _):
        await asyncio.gather(*[await flux.submit(REQUEST) for _ in range(4)])
        await asyncio.sleep(60.0)
        handles = [flux.enqueue(REQUEST) for _ in range(8)]
        await asyncio.sleep(1.0)
        last = handles[-1]
        whole = last.expectation()
        assert whole.elapsed == pytest.approx(1.0)
        assert whole.median == pytest.approx(30.0 + 12.0, rel=0.1)
        assert whole.bound is not None
        assert whole.bound > 42.0
        fractions = [whole.fraction or 0.0]
        while not (last.state is S.ACCEPTED and (await last).done()):
            await asyncio.sleep(3.0)
            now = last.expectation()
            assert now.elapsed == pytest.approx(1.0 + 3.0 * len(fractions), abs=1.5)
            assert now.median == pytest.approx(30.0 + 12.0, rel=0.15)
            fractions.append(now.fraction or 0.0)

        assert fractions == sorted(fractions)
        assert len(fractions) >= 13
        assert fractions[-1] == 1.0
        assert last.expectation().median == pytest.approx(42.0, abs=1.0)

        left = flux.enqueue(REQUEST)
        left.withdraw()
        await asyncio.sleep(1.0)
        assert attrs.astuple(left.expectation()) == (pytest.approx(0.0, abs=0.01), None, None, None)


async def test_remaining_of_nothing() -> None:
    """Nothing takes no time; arguments are checked."""
    async with emulated() as (flux, _):
        assert flux.remaining() == 0.0
        for wrong in (-1, 1.5, True):
            with pytest.raises(ConfigurationError, match="more: "):
                flux.remaining(wrong)  # type: ignore[arg-type]  # it is what is tested
        with pytest.raises(ConfigurationError, match="max_running: 0"):
            flux.remaining(max_running=0)


@pytest.mark.parametrize("wait", ["slot", "permit"])
async def test_priority_is_changed_while_it_waits(wait: str) -> None:
    """One that waits for a slot or a permit overtakes at once; one that was sent is not changed any more."""
    limited: dict[str, dict[str, Any]] = {"slot": {"max_running": 1}, "permit": {"rate_limit": RateLimit(1, 3.0)}}
    async with emulated(**limited[wait]) as (flux, emulator):
        first = await flux.submit(REQUEST)
        handles = [flux.enqueue(TextToImage(f"number {n}"), priority=2) for n in range(5)]
        await asyncio.sleep(0.5)
        handles[4].priority, handles[3].priority, handles[0].priority = 5, 5, -1
        assert [handle.position for handle in handles] == [4, 2, 3, 0, 1]
        assert [handle.priority for handle in handles] == [-1, 2, 2, 5, 5]
        with pytest.raises(InvalidRequestError, match="priority: 'high'"):
            handles[1].priority = "high"  # type: ignore[assignment]  # it is what is tested
        await asyncio.gather(first, *[(await handle).wait() for handle in handles])
        handles[0].priority = 9

        assert handles[0].priority == -1
        prompts = [call.body["input"]["prompt"] for call in emulator.ledger.requests[1:] if call.body is not None]
        assert prompts == [f"number {n}" for n in (3, 4, 1, 2, 0)]


async def test_priority_is_changed_before_it_waits() -> None:
    """What is set in the moment of the call, while its picture is looked at, counts when it comes to the queue."""
    async with emulated(rate_limit=RateLimit(1, 3.0)) as (flux, emulator):
        await flux.submit(REQUEST)
        handles = [flux.enqueue(TextToImage(f"number {n}")) for n in range(2)]
        handles[1].priority = 1
        await asyncio.gather(*handles)

        prompts = [call.body["input"]["prompt"] for call in emulator.ledger.requests[1:] if call.body is not None]
        assert prompts == ["number 1", "number 0"]


async def test_joiners_share_a_priority() -> None:
    """What joined a key changes the priority of the one submission; one that goes on alone has its own again."""
    async with emulated(rate_limit=ONE_A_MINUTE) as (flux, _):
        await flux.submit(REQUEST)
        first = flux.enqueue(REQUEST, key="a", priority=1, max_wait=5)
        second = flux.enqueue(REQUEST, key="a", priority=2)
        await asyncio.sleep(1)
        assert (first.priority, second.priority) == (1, 1)
        second.priority = 3
        assert (first.priority, second.priority) == (3, 3)
        await error_of(first)
        await asyncio.sleep(1)
        assert second.priority == 3
        await second


@pytest.mark.parametrize("wait", ["check", "slot", "permit", "pause"])
async def test_withdrawn_while_it_waits(wait: str) -> None:
    """Whatever it waits for, one that is withdrawn is never sent, says so again, and leaves no slot and no permit."""
    refused = Fault("createTask", "refuse", after=1, retry_after=30)
    script = Script(plans=Plan(duration=100.0), faults=[refused] if wait == "pause" else [])
    limited: dict[str, dict[str, Any]] = {"slot": {"max_running": 1}, "permit": {"rate_limit": ONE_A_MINUTE}}
    options = limited.get(wait, {})
    async with emulated(script, **options) as (flux, emulator):
        await flux.submit(REQUEST)
        handle = flux.enqueue(ImageToImage("make it red", images=[PNG]) if wait == "check" else REQUEST, key="a")
        if wait != "check":
            await asyncio.sleep(5)
        sent = len(emulator.ledger.requests)
        assert (handle.state, handle.position) == (S.QUEUED, 0)

        assert handle.withdraw()
        assert handle.withdraw()
        assert (handle.state, handle.position) == (S.WITHDRAWN, None)
        error = await error_of(handle)
        assert isinstance(error, SubmissionWithdrawnError)
        assert "withdrawn" in str(error)
        await asyncio.sleep(200)
        assert len(emulator.ledger.requests) == sent == (2 if wait == "pause" else 1)
        # Its key is free.
        await flux.submit(TextToImage("another one"), key="a")
        assert len(emulator.ledger.accepted) == 2


async def test_who_refused_an_upload_refused_the_submission() -> None:
    """The state of what nobody took back does not say so: the error and it tell one story."""
    script = Script(faults=[Fault("upload", "refuse", code=401)])
    async with emulated(script) as (flux, emulator):
        handle = flux.enqueue(ImageToImage("make it red", images=[PNG]), key="a")
        assert isinstance(await error_of(handle), AuthenticationError)
        assert (handle.state, emulator.ledger.accepted) == (S.REFUSED, [])
        assert not handle.withdraw()
        # Its key is free, and nothing of the limit is used up.
        assert (await flux.submit(TextToImage("another one"), key="a")).id


async def test_too_late_once_it_is_announced() -> None:
    """While `on_send` is awaited, while it is sent and once it is a task it cannot be taken back, and goes on."""
    go_on, sending = asyncio.Event(), asyncio.Event()

    async def on_send(_: str) -> None:
        sending.set()
        await go_on.wait()

    script = Script(plans=Plan(duration=2.0), latency=lambda name: 5.0 if name == "createTask" else 0.0)
    async with emulated(script) as (flux, emulator):
        handle, joined = flux.enqueue(REQUEST, key="a", on_send=on_send), flux.enqueue(REQUEST, key="a")
        await sending.wait()
        assert (joined.state, joined.withdraw(), joined.state) == (S.ANNOUNCED, False, S.ANNOUNCED)
        assert (handle.state, handle.position, handle.withdraw()) == (S.ANNOUNCED, None, False)
        go_on.set()
        await until(lambda: handle.state is S.SENT)
        assert (handle.position, handle.withdraw()) == (None, False)
        task = await handle

        assert handle.state is S.ACCEPTED
        assert not handle.withdraw()
        assert [task.id] == emulator.ledger.accepted
        assert await joined is task
        assert (await task).urls


async def test_a_joiner_takes_itself_away() -> None:
    """Of two under one key the first to be withdrawn leaves alone, which pays for the other; the last ends it."""
    async with emulated(rate_limit=ONE_A_MINUTE) as (flux, emulator):
        await flux.submit(REQUEST)
        first, second = flux.enqueue(REQUEST, key="a"), flux.enqueue(REQUEST, key="a")
        await asyncio.sleep(1)
        assert first.ref == second.ref
        assert not first.withdraw()
        assert not first.withdraw()
        assert (first.state, second.state) == (S.WITHDRAWN, S.QUEUED)
        assert isinstance(await error_of(first), SubmissionWithdrawnError)
        assert (await second).id == emulator.ledger.accepted[1]

        both = [flux.enqueue(TextToImage("another one"), key="b") for _ in range(2)]
        await asyncio.sleep(1)
        assert [handle.withdraw() for handle in both] == [False, True]
        await asyncio.sleep(200)
        assert [handle.state for handle in both] == [S.WITHDRAWN, S.WITHDRAWN]
        assert len(emulator.ledger.requests) == 2


async def test_a_joiner_goes_on_where_the_first_gave_up() -> None:
    """When the first one's `max_wait` runs out, who joined it waits on by itself, and can be withdrawn."""
    async with emulated(rate_limit=ONE_A_MINUTE) as (flux, emulator):
        await flux.submit(REQUEST)
        first = flux.enqueue(REQUEST, key="a", max_wait=5)
        second = flux.enqueue(REQUEST, key="a")
        third = flux.enqueue(REQUEST, key="a", max_wait=2)
        assert isinstance(await error_of(third), RateLimitedError)
        assert third.state is S.WITHDRAWN
        assert first.state is S.QUEUED
        assert isinstance(await error_of(first), RateLimitedError)
        assert (first.state, second.state, second.position) == (S.WITHDRAWN, S.QUEUED, 0)

        assert second.withdraw()
        await asyncio.sleep(200)
        assert len(emulator.ledger.requests) == 1


async def test_a_joiner_is_withdrawn_while_the_first_gives_up() -> None:
    """At the very moment when the first one's end is told, who joined it still waits and can be taken back."""
    seen: list[tuple[SubmissionState, bool]] = []

    def observe(event: SessionEvent) -> None:
        if isinstance(event, SubmissionChanged) and event.event is SubmissionEvent.EXPIRED:
            seen.append((second.state, second.withdraw()))

    async with emulated(rate_limit=ONE_A_MINUTE, observers=[observe]) as (flux, emulator):
        await flux.submit(REQUEST)
        first, second = flux.enqueue(REQUEST, key="a", max_wait=5), flux.enqueue(REQUEST, key="a")
        assert isinstance(await error_of(first), RateLimitedError)
        await asyncio.sleep(200)

        assert seen == [(S.QUEUED, True)]
        assert second.state is S.WITHDRAWN
        assert len(emulator.ledger.requests) == 1


async def test_closing_while_a_picture_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing does not wait for a file system that does not answer, and leaves no asyncio task behind."""
    look_at_length(monkeypatch, asyncio.Event().wait)
    async with emulated() as (flux, _):
        handle = flux.enqueue(ImageToImage("make it red", images=[PNG]))
        await asyncio.sleep(1)
        assert (handle.state, handle.position) == (S.QUEUED, 0)
        await flux.aclose()

        assert handle.state is S.WITHDRAWN
        assert isinstance(await error_of(handle), SessionClosedError)
        assert not [each for each in asyncio.all_tasks() if "flux2_async" in each.get_name()]


@pytest.mark.parametrize(
    ("fault", "kind", "state"),
    [
        (Fault("createTask", "refuse", code=402), InsufficientCreditsError, S.REFUSED),
        (Fault("createTask", "cut_after"), AmbiguousSubmitError, S.UNKNOWN),
    ],
)
async def test_errors(
    fault: Fault, kind: type[Exception], state: SubmissionState, caplog: pytest.LogCaptureFixture
) -> None:
    """What is refused or unclear is told to who awaits the handle, and to nobody else."""
    async with emulated(Script(faults=[fault])) as (flux, _):
        handle = flux.enqueue(REQUEST)
        await until(lambda: handle.state is state)
        assert not handle.withdraw()
        assert isinstance(await error_of(handle), kind)
        assert await error_of(handle) is await error_of(handle) is handle.error
        assert handle.task is None

        flux.enqueue(ImageToImage("make it red", images=["/nowhere/at-all.png"]))
        await asyncio.sleep(1)
        gc.collect()
    assert "never retrieved" not in caplog.text


async def test_arguments() -> None:
    """What is wrong with an argument is told at once, what is wrong with a picture or a key when it is awaited."""
    async with emulated(Script(plans=Plan(duration=50.0))) as (flux, emulator):
        wrongs: dict[str, Any] = {"key": "", "max_wait": -1, "priority": "high", "group": "", "ref": "ö", "metadata": 1}
        for name, wrong in wrongs.items():
            with pytest.raises(InvalidRequestError):
                flux.enqueue(REQUEST, **{name: wrong})
        await flux.submit(REQUEST, key="a")
        other = flux.enqueue(TextToImage("another one"), key="a")
        assert isinstance(await error_of(other), InvalidRequestError)
        assert other.state is S.WITHDRAWN
        joined = flux.enqueue(REQUEST, key="a")
        assert (await joined).id == emulator.ledger.accepted[0]
        assert joined.state is S.ACCEPTED
        assert len(emulator.ledger.requests) == 1


async def test_closing_ends_what_is_enqueued() -> None:
    """Closing settles handles wherever they are; what is being sent has its time, and nothing is left behind."""
    script = Script(plans=Plan(duration=50.0), latency=lambda name: 2.0 if name == "createTask" else 0.0)
    async with Emulator(script) as emulator:
        flux = session_for(emulator, rate_limit=ONE_A_MINUTE)
        await flux.open()
        sent = flux.enqueue(REQUEST)
        await until(lambda: sent.state is S.SENT)
        waiting = [flux.enqueue(REQUEST), flux.enqueue(REQUEST, key="a"), flux.enqueue(REQUEST, key="a")]
        await asyncio.sleep(0.1)
        waiting += [flux.enqueue(REQUEST), flux.enqueue(ImageToImage("make it red", images=[PNG]))]
        left = await flux.aclose()

        assert [handle.state for handle in waiting] == [S.WITHDRAWN] * 5
        for handle in waiting:
            assert isinstance(await error_of(handle), SessionClosedError)
            assert not handle.withdraw()
        task = await sent
        assert left.task_ids == (task.id,)
        assert emulator.ledger.accepted == [task.id]
        assert not [each for each in asyncio.all_tasks() if "flux2_async" in each.get_name()]
        with pytest.raises(SessionClosedError):
            flux.enqueue(REQUEST)


# aiohttp says of its own what is left behind in a loop that was closed.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_event_loop_that_is_closed() -> None:
    """Handles of an event loop that was closed are settled once the session is opened in another one."""

    async def begin(flux: Flux2Session) -> SubmissionHandle:
        await flux.open()
        await flux.submit(REQUEST)
        handle = flux.enqueue(REQUEST)
        await asyncio.sleep(0.1)
        return handle

    async def go_on(flux: Flux2Session, handle: SubmissionHandle) -> Exception:
        async with flux:
            return await error_of(handle)

    with running_emulator(Script(plans=Plan(duration=50.0))) as emulator:
        flux = session_for(emulator, rate_limit=ONE_A_MINUTE)
        handle = asyncio.run(begin(flux))
        error = asyncio.run(go_on(flux, handle))
        del flux
        gc.collect()

    assert isinstance(error, SubmissionWithdrawnError)
    assert handle.state is S.WITHDRAWN


async def test_withdrawn_in_another_event_loop() -> None:
    """A handle is withdrawn in the loop in which it was made; another one is told so, and nothing happens."""
    async with emulated(rate_limit=ONE_A_MINUTE) as (flux, _):
        await flux.submit(REQUEST)
        handle = flux.enqueue(REQUEST)

        async def elsewhere() -> bool:
            return handle.withdraw()

        error = await error_of(asyncio.to_thread(asyncio.run, elsewhere()))
        assert isinstance(error, ConfigurationError)
        assert handle.state is S.QUEUED
        assert handle.withdraw()
