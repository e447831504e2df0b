"""What `submit` promises about money, the limit and cancellation, against the emulator's ledger."""

import asyncio
import contextlib
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import attrs
import pytest
from emulated import REQUEST, emulated, error_of, parts_of, session_for, until
from raw_server import HANG, answer, raw_server

from flux2_async.emulator import Emulator, Fault, Limit, Plan, Script
from flux2_async.errors import (
    AmbiguousSubmitError,
    ApiError,
    InsufficientCreditsError,
    InvalidRequestError,
    MaintenanceError,
    RateLimitedError,
    RequestRejectedError,
    SessionClosedError,
    SubmissionWithdrawnError,
    TransportError,
)
from flux2_async.models import Callbacks, ImageToImage, Polling, RateLimit, TextToImage, UploadedFile
from flux2_async.session import task_ids
from flux2_async.session.session import Flux2Session
from flux2_async.session.submission import Asked, Patience, Submission
from flux2_async.webhooks import Callback

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
)


async def test_accepted_once() -> None:
    """One submit is one createTask, one charge and a handle that knows its request."""
    async with emulated() as (flux, emulator):
        task = await flux.submit(REQUEST)

        assert [task.id] == emulator.ledger.accepted
        assert task.request == REQUEST
        assert len(emulator.ledger.requests) == 1
        assert flux.tasks() == (task,)


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("key", [None, "order-1"])
async def test_a_job_that_somebody_else_cancels(steps: int, key: str | None) -> None:
    """Whenever foreign code cancels the session's own asyncio task, the caller is told, and the key is free."""
    async with emulated() as (flux, emulator):
        submitting = asyncio.create_task(error_of(flux.submit(REQUEST, key=key)))
        while not (jobs := [task for task in asyncio.all_tasks() if "flux2_async submit" in task.get_name()]):  # noqa: ASYNC110  no step is to be missed
            await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        jobs[0].cancel()
        caught = await asyncio.wait_for(submitting, 1)

        assert isinstance(caught, SubmissionWithdrawnError), caught
        assert emulator.ledger.accepted == []
        assert flux.statistics().waiting == 0
        await flux.submit(REQUEST, key=key)


async def test_an_answer_that_came_while_the_loop_stood_still() -> None:
    """A process that was stopped for longer than createTask may take reads what came meanwhile, and judges that."""

    async def stop_with(writer: asyncio.StreamWriter) -> None:
        writer.write(answer(402, {"code": 402, "msg": "no credits"}))
        loop: Any = asyncio.get_running_loop()
        loop.jump(3600.0)

    async with raw_server([stop_with]) as server, Flux2Session("key", base_url=server.url) as flux:
        assert isinstance(await error_of(flux.submit(REQUEST)), InsufficientCreditsError)
        assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["cut_before", "cut_after", "cut_body", "hang", "html", "broken_json"])
@pytest.mark.parametrize("accepted", [False, True])
async def test_an_unclear_answer_is_never_sent_again(kind: Any, accepted: bool) -> None:
    """Whatever is unclear ends in AmbiguousSubmitError after exactly one createTask; nobody pays twice."""
    fault = Fault("createTask", kind, accepted=accepted)
    async with emulated(Script(faults=[fault])) as (flux, emulator):
        outcome = await asyncio.gather(flux.submit(REQUEST, ref="mine"), return_exceptions=True)
        await asyncio.sleep(600)

        assert len(emulator.ledger.requests) == 1
        if isinstance(outcome[0], AmbiguousSubmitError):
            assert (outcome[0].ref, outcome[0].request) == ("mine", REQUEST)
            assert flux.statistics().ambiguous == 1
            assert flux.statistics().running == 0
        else:
            # The id stood in front of the cut, so the task is known.
            assert kind in {"cut_body", "broken_json"}
            assert len(emulator.ledger.accepted) == 1
        await flux.submit(REQUEST)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (402, InsufficientCreditsError),
        (422, RequestRejectedError),
        (430, RateLimitedError),
        (455, MaintenanceError),
        (501, ApiError),
    ],
)
@pytest.mark.parametrize("style", ["body", "http"])
async def test_a_refusal_comes_out_at_once(code: int, error: type[ApiError], style: Any) -> None:
    """A refusal that is not 429 is the caller's to know, after one createTask; the slot comes back."""
    if style == "http" and code == 501:
        error = AmbiguousSubmitError  # type: ignore[assignment]  # under a real 5xx it is not certain
    script = Script(faults=[Fault("createTask", "refuse", code=code)], error_style=style)
    async with emulated(script, max_running=1) as (flux, emulator):
        caught = await error_of(flux.submit(REQUEST))
        await flux.submit(REQUEST)

        assert isinstance(caught, error)
        assert len(emulator.ledger.requests) == 2
        assert len(emulator.ledger.accepted) == 1


@pytest.mark.parametrize("retry_after", [3, None, "date"])
@pytest.mark.parametrize("style", ["body", "http"])
async def test_a_429_pauses_everybody(retry_after: Any, style: Any) -> None:
    """After a 429 nobody sends before Retry-After (or the period) is over, and the refused one goes first."""
    # Dates have whole seconds, which makes the pause up to one shorter.
    pause, slack = (10, 0.1) if retry_after is None else (3, 0.1)
    header = retry_after
    if retry_after == "date":
        header, slack = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True), 1.5
    fault = Fault("createTask", "refuse", code=429, retry_after=header)
    async with emulated(Script(faults=[fault], error_style=style)) as (flux, emulator):
        refused = asyncio.create_task(flux.submit(TextToImage("refused first")))
        await until(lambda: flux.statistics().refused)
        loop = asyncio.get_running_loop()
        closed = loop.time()
        paused_until = flux.statistics().paused_until
        others = [asyncio.create_task(flux.submit(REQUEST)) for _ in range(5)]
        await asyncio.gather(refused, *others)
        calls = emulator.ledger.requests

        assert paused_until is not None
        assert paused_until.tzinfo is not None
        assert calls[1].time - closed >= pause - slack
        assert calls[1].body is not None
        assert calls[1].body["input"]["prompt"] == "refused first"
        assert len(calls) == 7
        assert flux.statistics().refused == 1


async def test_a_service_that_asks_to_come_back_at_once_is_not_stormed() -> None:
    """However short its Retry-After, it meets one createTask a second at most."""
    always = Fault("createTask", "refuse", retry_after=0.001, times=None)
    async with emulated(Script(faults=[always])) as (flux, emulator):
        waiting = [asyncio.create_task(flux.submit(REQUEST)) for _ in range(5)]
        await asyncio.sleep(30)
        # All five may have left before the first of them was refused.
        sent = len(emulator.ledger.requests)
        for task in waiting:
            task.cancel()

        assert 10 <= sent <= 5 + 30


async def test_a_pause_holds_no_looks() -> None:
    """While nothing may be sent, tasks that were sent before are looked at and settle as ever."""
    script = Script(plans=Plan(duration=5.0), faults=[Fault("createTask", "refuse", after=1, retry_after=600)])
    async with emulated(script) as (flux, emulator):
        task = await flux.submit(REQUEST)
        waiting = asyncio.create_task(flux.submit(REQUEST))
        await until(lambda: flux.statistics().paused_until)
        await task.result(timeout=10)

        assert not waiting.done()
        assert len(emulator.ledger.requests) == 2
        waiting.cancel()


async def test_the_limit_is_kept() -> None:
    """A burst of 100 submissions against the limit we know is never refused."""
    script = Script(plans=Plan(duration=1.0), limit=Limit(20, 10.0), latency=0.3, credits=1e6)
    async with emulated(script, max_running=None) as (flux, emulator):
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await asyncio.gather(*(flux.submit(REQUEST) for _ in range(100)))

        assert emulator.ledger.refused == 0
        assert emulator.ledger.max_in_window(10.0) == 20
        assert loop.time() - begun < 40 * 1.05 + 1


async def test_max_wait_fails_fast() -> None:
    """A submission whose wait for a permit exceeds `max_wait` was never sent."""
    script = Script(plans=Plan(duration=1.0))
    async with emulated(script, rate_limit=RateLimit(1, 60.0)) as (flux, emulator):
        await flux.submit(REQUEST)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        caught = await error_of(flux.submit(REQUEST, max_wait=2.0))

        assert isinstance(caught, RateLimitedError)
        assert caught.http_status is None
        assert loop.time() - begun <= 2.1
        assert len(emulator.ledger.requests) == 1


async def test_max_wait_at_once_in_a_long_pause() -> None:
    """While a pause longer than `max_wait` is known, the refusal comes without waiting."""
    script = Script(faults=[Fault("createTask", "refuse", retry_after=60)])
    async with emulated(script) as (flux, _):
        first = asyncio.create_task(flux.submit(REQUEST))
        await until(lambda: flux.statistics().refused)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        caught = await error_of(flux.submit(REQUEST, max_wait=5.0))
        now = loop.time()
        await first

        assert isinstance(caught, RateLimitedError)
        assert now == begun
        assert caught.retry_after == pytest.approx(60, abs=1)


async def test_max_wait_covers_the_slot() -> None:
    """Waiting for a running task to end counts as well."""
    async with emulated(Script(plans=Plan(duration=100.0)), max_running=1) as (flux, emulator):
        await flux.submit(REQUEST)
        caught = await error_of(flux.submit(REQUEST, max_wait=3.0))

        assert isinstance(caught, RateLimitedError)
        assert len(emulator.ledger.requests) == 1


async def test_slot_comes_back_when_the_task_is_settled_unawaited() -> None:
    """Nobody needs to await a task for its slot to come back."""
    async with emulated(Script(plans=Plan(duration=5.0)), max_running=1) as (flux, emulator):
        for _ in range(3):
            await flux.submit(REQUEST)

        assert len(emulator.ledger.accepted) == 3


async def test_nobody_listens() -> None:
    """A connection that cannot be made is tried for a minute; then the error says that nothing was sent."""
    async with emulated(rate_limit=RateLimit(1, 600.0), max_running=1) as (flux, emulator):
        await emulator.stop()
        begun = asyncio.get_running_loop().time()
        for _ in range(2):
            # The second one would wait for ten minutes if the first had kept its permit.
            caught = await error_of(flux.submit(REQUEST))

            assert isinstance(caught, TransportError)
            assert caught.never_sent
        assert 120 <= asyncio.get_running_loop().time() - begun < 121
        await emulator.start()


async def test_a_service_that_comes_back_gets_the_task_once() -> None:
    """A submission survives a service that is away for a second or two, and its permit is not spent meanwhile."""
    async with emulated(rate_limit=RateLimit(1, 600.0)) as (flux, emulator):
        await emulator.stop()
        submitting = asyncio.create_task(flux.submit(REQUEST))
        await asyncio.sleep(1)
        await emulator.start()
        await submitting

        assert len(emulator.ledger.requests) == 1


async def test_on_send_runs_right_before_each_post() -> None:
    """`on_send` gets the ref before every POST, after the permit; also before the repetition of a refused one."""
    seen: list[tuple[str, int, float]] = []
    async with emulated(Script(faults=[Fault("createTask", "refuse", retry_after=5)])) as (flux, emulator):

        async def on_send(ref: str) -> None:
            seen.append((ref, len(emulator.ledger.requests), asyncio.get_running_loop().time()))

        await flux.submit(REQUEST, ref="mine", on_send=on_send)

    assert [(ref, requests) for ref, requests, _ in seen] == [("mine", 0), ("mine", 1)]
    assert seen[1][2] - seen[0][2] >= 5


async def test_on_send_may_stop_it() -> None:
    """When `on_send` raises, nothing is sent, its error comes out, and permit and slot are free again."""

    async def on_send(_: str) -> None:
        raise OSError("the journal's disk is full")

    async with emulated(max_running=1, rate_limit=RateLimit(1, 600.0)) as (flux, emulator):
        caught = await error_of(flux.submit(REQUEST, on_send=on_send))
        await flux.submit(REQUEST, max_wait=0.0)

        assert isinstance(caught, OSError)
        assert len(emulator.ledger.requests) == 1


class _StopHereError(BaseException):
    pass


@pytest.mark.parametrize("stop", [asyncio.CancelledError, _StopHereError])
async def test_on_send_may_be_cancelled_itself(stop: type[BaseException]) -> None:
    """Nothing is sent, the caller gets an error that does not speak of closing, and slot and permit come back."""

    async def on_send(_: str) -> None:
        raise stop

    async with emulated(max_running=1, rate_limit=RateLimit(1, 10.0)) as (flux, emulator):
        error = await error_of(flux.submit(REQUEST, key="a", on_send=on_send))

        assert re.fullmatch("the submission was cancelled, as all are .*; nothing was sent", str(error))
        assert emulator.ledger.requests == []
        await flux.submit(REQUEST, key="a", max_wait=0)


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.15, 0.45, 0.7])
async def test_cancelled_caller_loses_nothing(moment: float) -> None:
    """A caller cancelled at any moment leaves at once; a POST under way is finished and its task kept."""
    script = Script(plans=Plan(duration=5.0), latency=0.5, arrival=0.1)
    async with emulated(script, max_running=1, rate_limit=RateLimit(1, 1.0)) as (flux, emulator):
        caller = asyncio.create_task(flux.submit(REQUEST))
        await asyncio.sleep(moment)
        caller.cancel()
        begun = asyncio.get_running_loop().time()
        await asyncio.wait([caller])

        assert asyncio.get_running_loop().time() == begun
        await asyncio.sleep(2)
        assert [task.id for task in flux.tasks()] == emulator.ledger.accepted
        await flux.drain()
        posted = len(emulator.ledger.requests)
        assert posted == 1 or moment == 0
        assert posted == len(emulator.ledger.accepted) == flux.statistics().submitted
        # Neither the slot nor the permit is lost.
        await flux.submit(REQUEST, max_wait=2.0)


@pytest.mark.parametrize("where", ["slot", "permit", "pause"])
async def test_cancelled_while_waiting_is_never_sent(where: str) -> None:
    """A submission that waits is given up with its caller, and leaves its place to the others."""
    bounds: dict[str, dict[str, Any]] = {
        "slot": {"max_running": 1},
        "permit": {"rate_limit": RateLimit(1, 30.0)},
        "pause": {},
    }
    options = bounds[where]
    faults = [Fault("createTask", "refuse", retry_after=30, after=1)] if where == "pause" else []
    async with emulated(Script(plans=Plan(duration=20.0), faults=faults), **options) as (flux, emulator):
        await flux.submit(REQUEST)
        waiting = []
        for number in range(3):
            waiting.append(asyncio.create_task(flux.submit(TextToImage(f"number {number}"))))
            await asyncio.sleep(1)
        sent = len(emulator.ledger.requests)
        waiting[0].cancel()
        await asyncio.wait(waiting)
        prompts = [call.body["input"]["prompt"] for call in emulator.ledger.requests[sent:] if call.body]

        assert prompts == ["number 1", "number 2"]
        assert flux.statistics().waiting == 0


async def test_key_is_one_task() -> None:
    """The same key gives the same task: while it is on its way, when it runs, and when it is finished."""
    async with emulated(Script(latency=0.2)) as (flux, emulator):
        first, second = await asyncio.gather(flux.submit(REQUEST, key="a"), flux.submit(REQUEST, key="a"))
        third = await flux.submit(REQUEST, key="a")
        await third
        fourth = await flux.submit(REQUEST, key="a")
        other = await flux.submit(REQUEST, key="b")

        assert first is second is third is fourth
        assert fourth.done()
        assert other is not first
        assert len(emulator.ledger.accepted) == 2


async def test_key_of_a_failed_task_is_kept() -> None:
    """A task that failed is given again, not paid for again."""
    async with emulated(Script(plans=Plan(outcome="fail"))) as (flux, emulator):
        first = await flux.submit(REQUEST, key="a")
        await first.wait()

        assert await flux.submit(REQUEST, key="a") is first
        assert len(emulator.ledger.accepted) == 1


async def test_key_of_another_request_is_refused() -> None:
    """The same key for something else is a mistake that is told."""
    async with emulated() as (flux, emulator):
        await flux.submit(ImageToImage("make it red", images=[PNG]), key="a")
        await flux.submit(ImageToImage("make it red", images=[PNG]), key="a")
        for other in (REQUEST, ImageToImage("make it red", images=[PNG, PNG])):
            caught = await error_of(flux.submit(other, key="a"))
            assert isinstance(caught, InvalidRequestError)
            assert "'a'" in str(caught)

        assert len(emulator.ledger.accepted) == 1


async def test_key_with_large_pictures() -> None:
    """Pictures of megabytes are compared by their content, outside of the event loop."""
    picture = PNG + bytes(2_000_000)
    async with emulated() as (flux, emulator):
        first = await flux.submit(ImageToImage("make it red", images=[picture]), key="a")

        assert await flux.submit(ImageToImage("make it red", images=[bytes(picture)]), key="a") is first
        other = ImageToImage("make it red", images=[picture + b"."])
        assert isinstance(await error_of(flux.submit(other, key="a")), InvalidRequestError)
        assert len(emulator.ledger.accepted) == 1


async def test_key_is_free_after_a_refusal() -> None:
    """What was refused or never sent frees its key."""
    async with emulated(Script(faults=[Fault("createTask", "refuse", code=402)])) as (flux, emulator):
        assert isinstance(await error_of(flux.submit(REQUEST, key="a")), InsufficientCreditsError)
        await flux.submit(REQUEST, key="a")

        assert len(emulator.ledger.accepted) == 1


async def test_key_of_an_ambiguous_send_stays_bound() -> None:
    """What may have been paid is never sent again under its key: repeats raise the same error."""
    async with emulated(Script(faults=[Fault("createTask", "cut_after")])) as (flux, emulator):
        first = await error_of(flux.submit(REQUEST, key="a"))
        second = await error_of(flux.submit(REQUEST, key="a"))

        assert isinstance(first, AmbiguousSubmitError)
        assert second is first
        assert len(emulator.ledger.requests) == 1


async def test_cancelled_first_caller_leaves_the_joined_one() -> None:
    """The caller that made the submission may leave; who joined it gets the task."""
    async with emulated(Script(plans=Plan(duration=5.0)), max_running=1) as (flux, emulator):
        await flux.submit(REQUEST)
        first = asyncio.create_task(flux.submit(REQUEST, key="a"))
        await asyncio.sleep(0.5)
        second = asyncio.create_task(flux.submit(REQUEST, key="a"))
        await asyncio.sleep(0.5)
        first.cancel()
        task = await second

        assert first.cancelled()
        assert len(emulator.ledger.accepted) == 2
        assert await flux.submit(REQUEST, key="a") is task


async def test_joined_caller_does_not_inherit_the_patience_of_the_first() -> None:
    """When the first caller's `max_wait` runs out, the one that joined goes on by its own."""
    async with emulated(Script(plans=Plan(duration=5.0)), max_running=1) as (flux, emulator):
        await flux.submit(REQUEST)
        first = asyncio.create_task(flux.submit(REQUEST, key="a", max_wait=1.0))
        await asyncio.sleep(0.5)
        second = asyncio.create_task(flux.submit(REQUEST, key="a"))
        hasty = await error_of(flux.submit(REQUEST, key="a", max_wait=0.1))
        await second

        assert isinstance(hasty, RateLimitedError)
        assert isinstance(await error_of(first), RateLimitedError)
        assert len(emulator.ledger.accepted) == 2


def own_errors() -> list[BaseException]:
    return [
        OSError("the journal's disk is full"),
        AmbiguousSubmitError("of another submission", request=REQUEST, ref="other"),
        InvalidRequestError("no such row"),
        TransportError("the journal's server is away", never_sent=True),
        RateLimitedError(429, "the journal's limit", 429),
        asyncio.CancelledError(),
    ]


@pytest.mark.parametrize("error", own_errors(), ids=lambda error: type(error).__name__)
async def test_joined_callers_do_not_get_what_the_first_ones_on_send_raises(error: BaseException) -> None:
    """Whatever the first caller's `on_send` raises is its own; the next one sends, with an `on_send` of its own."""
    told: list[str] = []

    async def fail(ref: str) -> None:
        told.append(f"first {ref}")
        await asyncio.sleep(1)
        raise error

    async def second_on_send(ref: str) -> None:
        told.append(f"second {ref}")

    async def third_on_send(ref: str) -> None:
        told.append(f"third {ref}")

    async with emulated() as (flux, emulator):
        first = asyncio.create_task(flux.submit(REQUEST, key="a", ref="one", on_send=fail))
        await asyncio.sleep(0.5)
        second = asyncio.create_task(flux.submit(REQUEST, key="a", ref="two", on_send=second_on_send))
        third = asyncio.create_task(flux.submit(REQUEST, key="a", ref="three", on_send=third_on_send))
        caught = await error_of(first)

        assert await second is await third
        assert caught is error or isinstance(error, asyncio.CancelledError)
        assert told == ["first one", "second two"]
        assert len(emulator.ledger.accepted) == len(emulator.ledger.requests) == 1
        assert flux.statistics().ambiguous == 0


async def test_a_key_whose_on_send_failed_is_free() -> None:
    """Where nobody joined, the key is free again after the caller's own error, of whatever kind."""

    async def fail(_: str) -> None:
        raise AmbiguousSubmitError("of another submission", request=REQUEST, ref="other")

    async with emulated() as (flux, emulator):
        assert isinstance(await error_of(flux.submit(REQUEST, key="a", on_send=fail)), AmbiguousSubmitError)
        await flux.submit(TextToImage("something else"), key="a")

        assert len(emulator.ledger.requests) == 1


async def test_the_patience_of_a_joined_caller_counts_from_its_call() -> None:
    """Seconds spent with the first caller's submission are gone from the `max_wait` of who goes on by itself."""

    async def fail(_: str) -> None:
        await asyncio.sleep(3)
        raise OSError

    async with emulated(Script(plans=Plan(duration=600.0)), max_running=2) as (flux, _):
        first = asyncio.create_task(flux.submit(REQUEST, key="a", on_send=fail))
        await asyncio.sleep(0)
        begun = asyncio.get_running_loop().time()
        second = asyncio.create_task(flux.submit(REQUEST, key="a", max_wait=5.0))
        await flux.submit(REQUEST)
        others = [asyncio.create_task(flux.submit(REQUEST)) for _ in range(2)]
        assert isinstance(await error_of(first), OSError)
        assert isinstance(await error_of(second), RateLimitedError)

        assert asyncio.get_running_loop().time() - begun == pytest.approx(5.0, abs=0.1)
        for other in others:
            other.cancel()


async def test_key_is_forgotten_after_a_day() -> None:
    """A key stands for its task for 24 hours."""
    async with emulated() as (flux, emulator):
        first = await flux.submit(REQUEST, key="a")
        await first
        await asyncio.sleep(24 * 3600 - 60)
        assert await flux.submit(REQUEST, key="a") is first
        await asyncio.sleep(120)

        assert await flux.submit(REQUEST, key="a") is not first
        assert len(emulator.ledger.accepted) == 2


async def test_key_of_a_submission_that_waits_for_days_is_kept() -> None:
    """A key is not forgotten after 24 hours while its submission still waits, so that it is never doubled."""
    script = Script(plans=Plan(duration=30 * 3600.0))
    # A server's connection ticks every second for an hour after each look, so there are few.
    polling = Polling(interval=30 * 3600.0, give_up_after=None)
    async with emulated(script, max_running=1, polling=polling) as (flux, emulator):
        await flux.submit(REQUEST)
        first = asyncio.create_task(flux.submit(REQUEST, key="a"))
        await asyncio.sleep(25 * 3600)
        second = asyncio.create_task(flux.submit(REQUEST, key="a"))

        assert await first is await second
        assert len(emulator.ledger.accepted) == 2


async def test_priority_goes_first() -> None:
    """A higher priority overtakes what waits, equal ones stay in order."""
    script = Script(plans=Plan(duration=1.0))
    async with emulated(script, rate_limit=RateLimit(1, 5.0)) as (flux, emulator):
        await flux.submit(REQUEST)
        submits = [
            asyncio.create_task(flux.submit(TextToImage(name), priority=priority))
            for name, priority in (("low 1", 0), ("low 2", 0), ("high", 5), ("low 3", 0))
        ]
        await asyncio.gather(*submits)
        prompts = [call.body["input"]["prompt"] for call in emulator.ledger.requests[1:] if call.body]

        assert prompts == ["high", "low 1", "low 2", "low 3"]


async def test_local_pictures_are_uploaded_first() -> None:
    """Bytes become an uploaded file in what is sent and in what the handle keeps."""
    request = ImageToImage("make it red", images=[PNG, "https://files.example/a.png"], aspect_ratio="auto")
    async with emulated() as (flux, emulator):
        task = await flux.submit(request)
        body = emulator.ledger.requests[0].body

        assert isinstance(task.request, ImageToImage)
        assert isinstance(task.request.images[0], UploadedFile)
        assert body is not None
        assert body["input"]["input_urls"] == [task.request.images[0].url, "https://files.example/a.png"]
        assert task.request.images[1] == "https://files.example/a.png"


async def test_what_holds_no_bytes_is_kept_as_it_was_checked() -> None:
    """A request of addresses and uploaded files is sent as it is: the handle keeps the very object."""
    uploaded = UploadedFile("https://files.example/b.png", "b.png", 3, "image/png")
    request = ImageToImage("make it red", images=["https://files.example/a.png", uploaded])
    async with emulated() as (flux, emulator):
        task = await flux.submit(request)
        body = emulator.ledger.requests[0].body

        assert task.request is request
        assert body is not None
        assert body["input"]["input_urls"] == ["https://files.example/a.png", "https://files.example/b.png"]


async def test_slot_then_upload_then_permit() -> None:
    """A picture is uploaded once its task has a slot and before it has a permit, which others could use meanwhile."""
    one, other = (ImageToImage("make it red", images=[PNG + end]) for end in (b"1", b"2"))
    script = Script(plans=Plan(duration=600.0))
    options: dict[str, Any] = {"max_running": 2, "rate_limit": RateLimit(1, 100.0), "polling": Polling(interval=20.0)}
    async with emulated(script, **options) as (flux, emulator):
        await flux.submit(REQUEST)
        waiting = [asyncio.create_task(flux.submit(request)) for request in (one, other)]
        await asyncio.sleep(90)

        assert len(emulator.ledger.uploads) == 1
        assert len(emulator.ledger.requests) == 1
        await asyncio.gather(*waiting)


async def test_bad_pictures_are_found_before_anything_is_sent() -> None:
    """A missing file costs neither an upload of the others nor a createTask."""
    async with emulated() as (flux, emulator):
        caught = await error_of(flux.submit(ImageToImage("make it red", images=[PNG, "missing.png"])))

        assert isinstance(caught, InvalidRequestError)
        assert "images[1]" in str(caught)
        assert emulator.ledger.uploads == []
        assert emulator.ledger.requests == []


async def test_close_lets_a_post_under_way_finish() -> None:
    """Closing waits for the answer of a POST; the task is reported as not settled."""
    async with Emulator(Script(latency=2.0, render=False)) as emulator:
        flux = session_for(emulator)
        await flux.open()
        caller = asyncio.create_task(flux.submit(REQUEST))
        waiting = asyncio.create_task(flux.submit(REQUEST, max_wait=None))
        await asyncio.sleep(1)
        unsettled = await flux.aclose()
        task = await caller

        assert set(unsettled.task_ids) == set(emulator.ledger.accepted)
        assert unsettled.refs == ()
        assert isinstance(await error_of(task.result()), SessionClosedError)
        await waiting


async def test_close_is_bounded_in_time() -> None:
    """A POST that gets no answer within the grace ends as unclear, and its ref is reported."""
    async with Emulator(Script(faults=[Fault("createTask", "hang")], render=False)) as emulator:
        flux = session_for(emulator, rate_limit=RateLimit(1, 600))
        await flux.open()
        caller = asyncio.create_task(flux.submit(REQUEST, ref="mine"))
        await asyncio.sleep(0.5)
        waiting = asyncio.create_task(flux.submit(REQUEST))
        await asyncio.sleep(0.5)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        unsettled = await flux.aclose(grace=3.0)

        assert loop.time() - begun == pytest.approx(3.0, abs=0.2)
        assert unsettled.refs == ("mine",)
        ambiguous = await error_of(caller)
        assert isinstance(ambiguous, AmbiguousSubmitError)
        assert ambiguous.ref == "mine"
        assert isinstance(await error_of(waiting), SessionClosedError)
        assert len(emulator.ledger.requests) == 1


@pytest.mark.parametrize("deaf_for", [0.0, 1000.0])
async def test_on_send_that_ignores_its_cancellation(deaf_for: float) -> None:
    """It neither holds up the closing nor lets anything be sent after it."""

    async def on_send(_: str) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)
        await asyncio.sleep(deaf_for)

    async with emulated() as (flux, emulator):
        caller = asyncio.create_task(flux.submit(REQUEST, on_send=on_send))
        await asyncio.sleep(1)
        begun = asyncio.get_running_loop().time()
        await flux.aclose(grace=5.0)

        assert asyncio.get_running_loop().time() - begun < 7.0
        assert str(await error_of(caller)) == "the session was closed; nothing was sent"
        await asyncio.sleep(2000)
        assert emulator.ledger.requests == []


async def test_closing_sends_nothing_again() -> None:
    """A POST that is refused while the session closes is not repeated, however long the grace is."""
    fault = Fault("createTask", "refuse", retry_after=1)
    async with Emulator(Script(latency=1.0, faults=[fault], render=False)) as emulator:
        async with session_for(emulator) as flux:
            caller = asyncio.create_task(flux.submit(REQUEST))
            await asyncio.sleep(0.5)
            unsettled = await flux.aclose(grace=60.0)
            caught = await error_of(caller)

        assert isinstance(caught, RateLimitedError)
        assert len(emulator.ledger.requests) == 1
        assert (unsettled.task_ids, unsettled.refs) == ((), ())


async def test_given_up_before_it_began() -> None:
    """A submission that ends in the moment it was made leaves nothing that `drain` would wait for."""
    async with emulated() as (flux, emulator):
        submitter = parts_of(flux).submitter
        submission = Submission(Asked(REQUEST), Patience(None, 0.0))
        submitter.start(submission)
        assert submitter.give_up(submission, SessionClosedError("gone"))
        await flux.drain(timeout=1)

        assert isinstance(submission.outcome.error, SessionClosedError)
        assert emulator.ledger.requests == []


@pytest.mark.parametrize("factory", [None, getattr(asyncio, "eager_task_factory", None)])
async def test_a_task_factory_that_starts_at_once(factory: Any) -> None:
    """Where tasks run as soon as they are made, a submission that fails at once frees its key and is forgotten."""
    asyncio.get_running_loop().set_task_factory(factory)
    async with emulated(Script(plans=Plan(duration=5.0)), max_running=1) as (flux, emulator):
        first = await flux.submit(REQUEST)
        assert isinstance(await error_of(flux.submit(REQUEST, key="a", max_wait=0)), RateLimitedError)
        await first
        await flux.drain(timeout=1)
        await flux.submit(REQUEST, key="a")

        assert len(emulator.ledger.accepted) == 2


async def test_key_with_any_extra_input() -> None:
    """Fields of any kind do not stand in the way of a key."""
    request = TextToImage("a red kettle", extra_input={"sizes": {"1": "small", "b": ["big", None, 1.5]}})
    async with emulated() as (flux, emulator):
        assert await flux.submit(request, key="a") is await flux.submit(request, key="a")

        assert len(emulator.ledger.accepted) == 1


@pytest.mark.parametrize(
    ("fault", "periods"),
    [
        (Fault("createTask", "cut_after"), 2),
        (Fault("createTask", "html"), 2),
        (Fault("createTask", "refuse", code=402), 1),
        (Fault("createTask", "refuse", code=430), 1),
        (Fault("createTask", "refuse", code=500), 2),
    ],
    ids=["lost", "unclear", "402", "430", "a server's fault"],
)
async def test_how_long_a_permit_is_held(fault: Fault, periods: int) -> None:
    """A permit comes back one period after a refusal, and two after an answer that leaves it open."""
    async with emulated(Script(faults=[fault]), rate_limit=RateLimit(1, 10.0)) as (flux, emulator):
        await error_of(flux.submit(REQUEST))
        await flux.submit(REQUEST)
        first, second = (call.time for call in emulator.ledger.requests)

        assert second - first == pytest.approx(10 * periods, abs=0.5)


async def test_the_refused_one_goes_first() -> None:
    """Who was refused by 429 goes before those who waited already when it was sent."""
    faults = [Fault("createTask", "refuse", retry_after=3)]
    async with emulated(Script(faults=faults, latency=1.0), rate_limit=RateLimit(1, 1.0)) as (flux, emulator):
        submits = [asyncio.create_task(flux.submit(TextToImage(f"number {number}"))) for number in range(3)]
        await asyncio.gather(*submits)
        prompts = [call.body["input"]["prompt"] for call in emulator.ledger.requests if call.body]

        assert prompts == ["number 0", "number 0", "number 1", "number 2"]


async def test_max_wait_covers_slot_and_permit_together() -> None:
    """What was spent on waiting for a slot is not there for the permit."""
    script = Script(plans=Plan(duration=5.0))
    async with emulated(script, max_running=1, rate_limit=RateLimit(1, 30.0)) as (flux, emulator):
        begun = asyncio.get_running_loop().time()
        await flux.submit(REQUEST)
        caught = await error_of(flux.submit(REQUEST, max_wait=10.0))

        assert isinstance(caught, RateLimitedError)
        assert asyncio.get_running_loop().time() - begun == pytest.approx(10, abs=0.5)
        assert len(emulator.ledger.requests) == 1


async def test_max_wait_goes_on_after_a_429() -> None:
    """A refusal gives no new patience: what was waited for the first permit is not there for the second."""
    script = Script(plans=Plan(duration=600.0), faults=[Fault("createTask", "refuse", after=1, retry_after=8)])
    async with emulated(script, rate_limit=RateLimit(1, 10.0)) as (flux, emulator):
        await flux.submit(REQUEST)
        caught = await error_of(flux.submit(REQUEST, max_wait=15.0))

        assert isinstance(caught, RateLimitedError)
        assert len(emulator.ledger.requests) == 2


async def test_long_waiting_counts_from_the_beginning() -> None:
    """Who has waited for a slot for a minute does not queue anew for its permit."""
    script = Script(plans=[Plan(duration=100.0), Plan(duration=50.0), Plan(duration=1.0)])
    async with emulated(script, max_running=2, rate_limit=RateLimit(2, 1000.0)) as (flux, emulator):
        sent = [await flux.submit(REQUEST) for _ in range(2)]
        first = asyncio.create_task(flux.submit(TextToImage("waits from the beginning")))
        await asyncio.sleep(10)
        urgent = asyncio.create_task(flux.submit(TextToImage("came later with priority"), priority=5))
        await asyncio.gather(*sent, first, urgent)

    bodies = [call.body["input"]["prompt"] for call in emulator.ledger.requests if call.body]
    assert bodies[2:] == ["waits from the beginning", "came later with priority"]


async def test_an_id_that_is_outstanding_already() -> None:
    """When the service names a task that is watched here, its handle is given and no second slot is taken."""
    accepted = [answer(200, {"code": 200, "msg": "success", "data": {"taskId": name}}) for name in ("one", "two")]
    async with raw_server(accepted) as server:
        async with Flux2Session("key", base_url=server.url, max_running=2, polling=Polling(interval=600)) as flux:
            attached = flux.attach("one")
            assert await flux.submit(REQUEST) is attached
            await flux.submit(REQUEST, max_wait=0)

            assert [task.id for task in flux.tasks()] == ["one", "two"]


async def test_an_id_that_another_submission_has() -> None:
    """A reply that names the task of another submission, outstanding or settled, is nobody knows whose: unclear."""
    accepted = answer(200, {"code": 200, "msg": "success", "data": {"taskId": "one"}})
    done = answer(200, {"code": 200, "data": {"taskId": "one", "state": "fail", "failMsg": "no"}})
    async with raw_server([accepted, accepted, done, accepted]) as server:
        async with Flux2Session("key", base_url=server.url, polling=Polling(interval=600)) as flux:
            task = await flux.submit(REQUEST)
            outstanding = await error_of(flux.submit(REQUEST, ref="mine", key="a"))
            await task.wait()
            settled = await error_of(flux.submit(REQUEST))

            for error in (outstanding, settled):
                assert isinstance(error, AmbiguousSubmitError)
                assert "task one, which another submission has" in str(error)
            assert await error_of(flux.submit(REQUEST, key="a")) is outstanding
            assert flux.statistics().ambiguous == 2
            assert len(server.requests) == 4


async def test_an_id_that_a_callback_gave_to_another_submission() -> None:
    """A late reply to one whose task its callback has told settles no other submission, whose own task may exist."""
    accepted = answer(200, {"code": 200, "msg": "success", "data": {"taskId": "one"}})
    async with raw_server([b"", accepted]) as server:
        callbacks = Callbacks("http://127.0.0.1:9/", secret="of all our processes")
        async with Flux2Session("key", base_url=server.url, callbacks=callbacks) as flux:
            assert isinstance(await error_of(flux.submit(REQUEST, ref="first")), AmbiguousSubmitError)
            await flux.deliver("first", Callback("one", None))
            error = await error_of(flux.submit(REQUEST, ref="second"))

            assert "task one, which another submission has" in str(error)
            assert [(task.id, task.ref) for task in flux.tasks()] == [("one", "first")]


async def test_a_pause_is_no_outage() -> None:
    """Who waits while one tries whether the service is back waits for the pause that it asks for then, however long."""
    throttled = answer(200, {"code": 429, "msg": "too many"}, "Retry-After: 300\r\n")
    accepted = [answer(200, {"code": 200, "msg": "success", "data": {"taskId": f"t{number}"}}) for number in range(3)]
    async with raw_server([b"", b"", throttled, *accepted, HANG]) as server:
        async with Flux2Session("key", base_url=server.url, polling=Polling(interval=3600)) as flux:
            for _ in range(2):
                assert isinstance(await error_of(flux.submit(REQUEST)), AmbiguousSubmitError)
            tasks = await asyncio.gather(*(flux.submit(REQUEST) for _ in range(3)))

            assert {task.id for task in tasks} == {"t0", "t1", "t2"}


async def test_only_the_latest_ids_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for the ids of others is bounded."""
    monkeypatch.setattr(task_ids, "MAX_TASK_IDS", 3)
    async with emulated(Script(plans=Plan(duration=0.1))) as (flux, _):
        tasks = [await flux.submit(REQUEST) for _ in range(10)]
        free = [parts_of(flux).task_ids.claim(task.id, "another") for task in reversed(tasks)]

        assert free == 3 * [False] + 7 * [True]


async def test_closing_waits_for_nothing_but_posts() -> None:
    """Submissions that wait for a slot or a permit do not hold up a closing."""
    async with Emulator(Script(plans=Plan(duration=60.0), render=False)) as emulator:
        async with session_for(emulator, max_running=2, rate_limit=RateLimit(1, 60.0)) as flux:
            callers = [asyncio.create_task(flux.submit(REQUEST)) for _ in range(4)]
            await asyncio.sleep(1)
            begun = asyncio.get_running_loop().time()
            await flux.aclose(grace=30.0)

            assert asyncio.get_running_loop().time() == begun
            assert [type(await error_of(caller)) for caller in callers[1:]] == [SessionClosedError] * 3


async def test_refused_after_its_caller_left() -> None:
    """A POST under way that is refused is not repeated when nobody waits for it any more."""
    fault = Fault("createTask", "refuse", retry_after=1)
    async with emulated(Script(faults=[fault], latency=1.0), max_running=1) as (flux, emulator):
        caller = asyncio.create_task(flux.submit(REQUEST))
        await asyncio.sleep(0.5)
        caller.cancel()
        await flux.drain()
        await asyncio.sleep(10)

        assert len(emulator.ledger.requests) == 1
        await flux.submit(REQUEST, max_wait=0)


async def test_priority_counts_for_slots() -> None:
    """A higher priority overtakes those who wait for a slot as well."""
    async with emulated(max_running=1) as (flux, emulator):
        await flux.submit(REQUEST)
        names = {"low 1": 0, "low 2": 0, "high": 5}
        submits = [flux.submit(TextToImage(name), priority=priority) for name, priority in names.items()]
        await asyncio.gather(*submits)
        prompts = [call.body["input"]["prompt"] for call in emulator.ledger.requests[1:] if call.body]

        assert prompts == ["high", "low 1", "low 2"]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "another prompt"},
        {"aspect_ratio": "16:9"},
        {"resolution": "2K"},
        {"tier": "pro"},
        {"extra_input": {"nsfw_checker": True}},
        {"images": [PNG + b"-"]},
        {"images": ["https://files.example/a.png"]},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_key_stands_for_every_field(change: dict[str, Any]) -> None:
    """A key is bound to all that a request says."""
    request = ImageToImage("make it red", images=[PNG])
    async with emulated() as (flux, emulator):
        await flux.submit(request, key="a")
        assert isinstance(await error_of(flux.submit(attrs.evolve(request, **change), key="a")), InvalidRequestError)

        assert len(emulator.ledger.accepted) == 1


async def test_joined_caller_does_not_inherit_the_failure_of_on_send() -> None:
    """When the first caller's `on_send` fails, the one that joined submits for itself, once."""

    async def on_send(_: str) -> None:
        await asyncio.sleep(1)
        raise OSError("the journal's disk is full")

    async with emulated() as (flux, emulator):
        first = asyncio.create_task(flux.submit(REQUEST, key="a", on_send=on_send))
        await asyncio.sleep(0.5)
        joined = await asyncio.gather(*(flux.submit(REQUEST, key="a") for _ in range(3)))

        assert isinstance(await error_of(first), OSError)
        assert len(set(map(id, joined))) == 1
        assert len(emulator.ledger.requests) == 1


async def test_joined_caller_waits_no_longer_than_it_said() -> None:
    """`max_wait` of a caller that joined ends its own wait, unless the POST is under way already."""
    async with emulated(Script(latency=2.0), rate_limit=RateLimit(1, 30.0)) as (flux, emulator):
        loop = asyncio.get_running_loop()
        sending = asyncio.create_task(flux.submit(REQUEST, key="a"))
        await asyncio.sleep(0.5)
        assert await flux.submit(REQUEST, key="a", max_wait=0.5) is await sending

        waiting = asyncio.create_task(flux.submit(REQUEST, key="b"))
        await asyncio.sleep(0.5)
        begun = loop.time()
        assert isinstance(await error_of(flux.submit(REQUEST, key="b", max_wait=0.5)), RateLimitedError)
        assert loop.time() - begun == pytest.approx(0.5)
        await waiting
        assert len(emulator.ledger.accepted) == 2


async def test_nobody_listens_and_no_time_to_wait() -> None:
    """`max_wait` bounds the tries at a connection as well."""
    async with emulated() as (flux, emulator):
        await emulator.stop()
        begun = asyncio.get_running_loop().time()
        assert isinstance(await error_of(flux.submit(REQUEST, max_wait=0.1)), TransportError)

        assert asyncio.get_running_loop().time() - begun == pytest.approx(0.1)
        await emulator.start()


async def test_closed_while_pictures_are_looked_at() -> None:
    """A session that is closed before a submission has begun sends nothing any more."""
    async with Emulator(Script(render=False)) as emulator:
        async with session_for(emulator) as flux:
            caller = asyncio.create_task(flux.submit(ImageToImage("make it red", images=[PNG])))
            await asyncio.sleep(0)
        assert isinstance(await error_of(caller), SessionClosedError)

        assert emulator.ledger.requests == []
        assert emulator.ledger.uploads == []


async def test_close_logs_what_is_unclear(caplog: pytest.LogCaptureFixture) -> None:
    """Leaving `async with` names the submissions that may have been accepted."""
    async with Emulator(Script(faults=[Fault("createTask", "hang")], render=False)) as emulator:
        async with session_for(emulator) as flux:
            caller = asyncio.create_task(flux.submit(REQUEST, ref="the-ref"))
            await asyncio.sleep(1)
        assert isinstance(await error_of(caller), AmbiguousSubmitError)

    assert "may have been accepted: the-ref" in caplog.text


async def test_one_who_joined_keeps_their_own_max_wait() -> None:
    """Who joined is told when their own `max_wait` is over, in a pause of the service as well, and hurts nobody."""
    throttled = answer(200, {"code": 429, "msg": "too many"}, "Retry-After: 60\r\n")
    accepted = answer(200, {"code": 200, "msg": "success", "data": {"taskId": "one"}})
    async with raw_server([throttled, accepted]) as server:
        async with Flux2Session("key", base_url=server.url, polling=Polling(interval=3600)) as flux:
            clock = asyncio.get_running_loop().time
            first = asyncio.create_task(flux.submit(REQUEST, key="a"))
            await until(lambda: server.requests)
            begun = clock()
            error = await error_of(flux.submit(REQUEST, key="a", max_wait=5.0))
            waited = clock() - begun
            task = await first

            assert isinstance(error, RateLimitedError)
            assert 5.0 <= waited <= 6.5
            assert clock() - begun > 59
            assert (task.id, len(server.requests)) == ("one", 2)


async def test_one_who_joined_and_is_left_alone_keeps_their_own_max_wait() -> None:
    """Who joined a submission whose first caller left is told that their `max_wait` is over; the key is free then."""
    async with emulated(rate_limit=RateLimit(1, 60.0)) as (flux, emulator):
        await flux.submit(REQUEST)
        first = asyncio.create_task(flux.submit(REQUEST, key="a"))
        await asyncio.sleep(1)
        second = asyncio.create_task(error_of(flux.submit(REQUEST, key="a", max_wait=5.0)))
        await asyncio.sleep(1)
        first.cancel()

        assert isinstance(await second, RateLimitedError)
        assert len(emulator.ledger.requests) == 1
        assert (await flux.submit(REQUEST, key="a")).id
