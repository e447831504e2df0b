"""Callbacks resolve tasks: from the emulator over a receiver to the handle, with everything that goes wrong between."""

import asyncio
import gc
import itertools
import json
import logging
import tracemalloc
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import anyio.to_thread
import pytest
from callback_receivers import on_aiohttp, on_uvicorn
from emulated import REQUEST, callback_answers, emulated, error_of, free_port, logged, parts_of, until

from flux2_async.emulator import Emulator, Fault, Plan, Script
from flux2_async.errors import (
    AmbiguousSubmitError,
    ConfigurationError,
    ContentModeratedError,
    InsufficientCreditsError,
    SessionClosedError,
    TaskFailedError,
    TaskNotFoundError,
    TaskTimeoutError,
)
from flux2_async.models import Callbacks, Polling, RateLimit, TextToImage, Timeouts
from flux2_async.models.events import Queued, SessionEvent, Settled, SubmissionChanged
from flux2_async.models.submission_state import SubmissionEvent, SubmissionState, after
from flux2_async.receivers import asgi_app, serve
from flux2_async.session.callback_entries import MAX_EARLY, MAX_EARLY_RECORDS, MAX_SETTLED, MAX_UNCLEAR, Entry
from flux2_async.session.callback_inbox import CallbackInbox
from flux2_async.session.callback_settings import VARIABLE, CallbackSettings
from flux2_async.session.session import Flux2Session
from flux2_async.session.submission import Asked, Patience, Submission
from flux2_async.tasks.handle import ImageTask
from flux2_async.webhooks import Callback, parse_callback, signed_url

SECRET = "a secret of all our processes"
RARE = Polling(interval=3600.0)


Server = Callable[[Flux2Session, int], AbstractAsyncContextManager[object]]


def on_own_server(flux: Flux2Session, port: int) -> AbstractAsyncContextManager[object]:
    return serve(flux, "127.0.0.1", port)


def on_asgi(flux: Flux2Session, port: int) -> AbstractAsyncContextManager[object]:
    return on_uvicorn(asgi_app(flux), port)


@asynccontextmanager
async def receiving(
    script: Script,
    *,
    secret: str | None = SECRET,
    hmac_key: str | None = None,
    confirm: bool = True,
    polling: Polling = RARE,
    server: Server = on_own_server,
    **options: Any,
) -> AsyncIterator[tuple[Flux2Session, Emulator]]:
    """A session that the emulator can call back, and no poll to speak of."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/flux2/callback/"
    callbacks = Callbacks(url, secret=secret, hmac_key=hmac_key, confirm=confirm)
    async with emulated(script, callbacks=callbacks, polling=polling, **options) as (flux, emulator):
        async with server(flux, port):
            yield flux, emulator


def callback_url(emulator: Emulator, call: int = 0) -> str:
    body = emulator.ledger.requests[call].body
    assert body is not None
    return str(body["callBackUrl"])


def address_of(flux: Flux2Session) -> str:
    settings = flux.callback_settings
    assert settings is not None
    return settings.url


async def post(url: str, body: Any) -> int:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with aiohttp.ClientSession() as http, http.post(url, data=data, allow_redirects=False) as response:
        return response.status


def finished(task_id: str, url: str = "https://files.example/other.png", state: str = "success") -> dict[str, Any]:
    result = json.dumps({"resultUrls": [url]})
    return {"code": 200, "msg": "ok", "data": {"taskId": task_id, "state": state, "resultJson": result}}


async def test_a_callback_resolves_at_once() -> None:
    """The result is there when the callback is, with one look to confirm it and no other."""
    async with receiving(Script(plans=Plan(duration=12.0))) as (flux, emulator):
        task = await flux.submit(REQUEST)
        begun = asyncio.get_running_loop().time()
        result = await task

        assert asyncio.get_running_loop().time() - begun == pytest.approx(12.0, abs=0.05)
        assert emulator.ledger.polls_of(task.id) == 1
        assert result.urls
        assert await callback_answers(emulator) == [200]
        assert flux.statistics().callbacks == 1


async def test_every_task_has_a_signed_address_of_its_own() -> None:
    """The address carries the ref and, last, its signature; never the secret."""
    async with receiving(Script()) as (flux, emulator):
        await flux.submit(REQUEST, ref="mine")
        await flux.submit(REQUEST)
        first, second = callback_url(emulator), callback_url(emulator, 1)

        assert first.startswith("http://127.0.0.1:")
        assert "/flux2/callback/?ref=mine&sig=" in first
        assert second.partition("?")[2] != first.partition("?")[2]
        assert SECRET not in first


async def test_without_confirmation_no_look_is_needed() -> None:
    """With `confirm=False` the body settles; a public address is the condition."""
    async with receiving(Script(plans=Plan(duration=60.0)), confirm=False) as (flux, emulator):
        task = await flux.submit(REQUEST)
        assert await post(callback_url(emulator), finished(task.id)) == 200
        result = await task.result(timeout=1)

        assert result.urls == ("https://files.example/other.png",)
        assert emulator.ledger.polls == 0


async def test_unconfirmed_addresses_have_to_be_public() -> None:
    """A body that names a host of the inside is a hint and no more, also with `confirm=False`."""
    async with receiving(Script(plans=Plan(duration=20.0)), confirm=False) as (flux, emulator):
        task = await flux.submit(REQUEST)
        await post(callback_url(emulator), finished(task.id, "http://169.254.169.254/meta"))

        assert not await task.wait(10)
        assert emulator.ledger.polls_of(task.id) > 0


@pytest.mark.parametrize("confirm", [True, False])
@pytest.mark.parametrize("state", ["success", "fail"])
async def test_a_body_for_another_task_is_only_a_hint(confirm: bool, state: str) -> None:
    """A valid address with another task's id settles neither of the two."""
    async with receiving(Script(plans=Plan(duration=30.0)), confirm=confirm) as (flux, emulator):
        mine, other = await flux.submit(REQUEST), await flux.submit(REQUEST)
        assert await post(callback_url(emulator), finished(other.id, state=state)) == 200

        assert not await other.wait(5)
        assert not mine.done()
        assert (await other).urls != ("https://files.example/other.png",)


@pytest.mark.parametrize("body", [{"url": "https://evil.example/x.png"}, {"state": "fail"}])
async def test_a_tampered_body_is_not_believed(body: dict[str, Any]) -> None:
    """With `confirm=True` nothing counts but the record."""
    async with receiving(Script(plans=Plan(duration=5.0))) as (flux, emulator):
        task = await flux.submit(REQUEST)
        assert await post(callback_url(emulator), finished(task.id, **body)) == 200
        result = await task

        assert result.urls[0].startswith(emulator.base_url)


@pytest.mark.parametrize("plan", ["early", "twice", "late", "once"])
async def test_whenever_the_callback_comes(plan: Any) -> None:
    """Before the createTask reply, twice, or late: one settle, the right result."""
    script = Script(plans=Plan(duration=3.0, callback=plan, callback_delay=20.0 if plan == "late" else None))
    async with receiving(script) as (flux, emulator):
        task = await flux.submit(REQUEST)

        assert (await task.result(timeout=60)).urls
        await asyncio.sleep(60)
        assert flux.statistics().repeated_settles == 0
        assert emulator.ledger.polls_of(task.id) <= 2


async def test_ten_at_once_are_one_look() -> None:
    """Many callbacks of one task in one moment make one look."""
    async with receiving(Script(plans=Plan(duration=3.0, callback="lost"))) as (flux, emulator):
        task = await flux.submit(REQUEST)
        await asyncio.sleep(4)
        answers = await asyncio.gather(*(post(callback_url(emulator), finished(task.id)) for _ in range(10)))
        await task

        assert answers == [200] * 10
        assert emulator.ledger.polls_of(task.id) == 1


def from_then_on_lost(known: int, duration: float = 12.0) -> Callable[[int, Any], Plan]:
    """Plans whose callbacks come for the first so many tasks only."""
    return lambda index, _: Plan(duration=duration, callback="once" if index < known else "lost")


async def test_before_a_callback_came_looks_come_as_without() -> None:
    """An address that nobody reaches costs no time: the first task is found as soon as without callbacks."""
    async with receiving(Script(plans=Plan(duration=12.0, callback="lost")), polling=Polling()) as (flux, emulator):
        task = await flux.submit(REQUEST)
        begun = asyncio.get_running_loop().time()
        await task

        assert asyncio.get_running_loop().time() - begun < 15
        assert emulator.ledger.polls_of(task.id) >= 4


async def test_a_lost_callback_is_found_by_the_insurance() -> None:
    """Once one came, and without an own interval, the record is read at the documentation's ages, 30 s and 2 min."""
    async with receiving(Script(plans=from_then_on_lost(1)), polling=Polling()) as (flux, emulator):
        await flux.generate(REQUEST)
        task = await flux.submit(REQUEST)
        begun = asyncio.get_running_loop().time()
        await task

        assert 30 <= asyncio.get_running_loop().time() - begun <= 34
        assert emulator.ledger.polls_of(task.id) == 1


async def test_callbacks_that_do_not_come_any_more_are_not_waited_for() -> None:
    """Ten seconds after a task was found whose callback did not come, looks come as without; and back with the next."""
    lost = False

    def plan(index: int, body: Any) -> Plan:
        return Plan(duration=12.0, callback="lost" if lost else "once")

    async with receiving(Script(plans=plan, credits=1e6), polling=Polling()) as (flux, emulator):
        await flux.generate(REQUEST)
        lost = True
        await flux.generate(REQUEST)
        await asyncio.sleep(10.1)
        for _ in range(3):
            begun = asyncio.get_running_loop().time()
            await flux.generate(REQUEST)
            assert asyncio.get_running_loop().time() - begun < 16

        lost = False
        await flux.generate(REQUEST)
        polls = emulator.ledger.polls
        await flux.generate(REQUEST)
        assert emulator.ledger.polls == polls + 1


async def test_a_callback_that_does_not_come_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """The warning names the address, without anything that may be private in it."""
    async with receiving(Script(plans=Plan(duration=3.0, callback="lost")), polling=Polling(interval=1.0)) as (flux, _):
        address = address_of(flux)
        for _ in range(3):
            task = await flux.submit(REQUEST)
            await task
            await asyncio.sleep(9)
            assert caplog.text.count("did not come") <= 1
            await asyncio.sleep(2)
    texts = logged(caplog, level=logging.WARNING)

    assert len(texts) == 1
    assert f"can reach {address} from outside" in texts[0]
    assert "sig=" not in texts[0]
    assert SECRET not in caplog.text


@pytest.mark.parametrize("url", ["https://user:word@a.example/x/?token=word", "https://user:word@a.example/x/#word"])
def test_what_may_be_private_in_an_address_is_not_shown(url: str) -> None:
    """Neither user, password, query nor fragment."""
    assert CallbackSettings(url, b"s", None, confirm=True).shown_url == "https://a.example/x/"


@pytest.mark.parametrize("delay", [0.5, 9.0])
async def test_a_callback_a_little_after_the_look_came(delay: float, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is warned when a look was faster than a callback by some seconds."""
    script = Script(plans=Plan(duration=3.0, callback="late", callback_delay=delay))
    async with receiving(script, polling=Polling(interval=1.0)) as (flux, _):
        await flux.generate(REQUEST)
        await asyncio.sleep(60)

        assert inbox_of(flux).arrivals.trust
    assert "did not come" not in caplog.text


async def test_a_callback_after_a_poll_settles_nothing_again() -> None:
    """A poll that was first has the last word."""
    script = Script(plans=Plan(duration=3.0, callback="late", callback_delay=10.0))
    async with receiving(script, polling=Polling(interval=1.0)) as (flux, emulator):
        task = await flux.submit(REQUEST)
        result = await task
        await asyncio.sleep(30)

        assert await callback_answers(emulator) == [200]
        assert await task is result


async def test_a_callback_after_the_waiter_gave_up() -> None:
    """A waiter's time-out changes nothing for the callback and for the next waiter."""
    async with receiving(Script(plans=Plan(duration=12.0))) as (flux, _):
        task = await flux.submit(REQUEST)
        assert isinstance(await error_of(task.result(timeout=2)), TaskTimeoutError)

        assert (await task.result(timeout=11)).urls


async def test_the_record_lags_behind_the_callback() -> None:
    """A record that is not final yet when its callback comes is looked at again shortly after."""
    async with receiving(Script(plans=Plan(duration=5.0, record_lag=1.2))) as (flux, emulator):
        task = await flux.submit(REQUEST)
        await task.result(timeout=8)

        assert 2 <= emulator.ledger.polls_of(task.id) <= 4


async def test_the_record_lags_far_behind_the_callback() -> None:
    """After a callback there is none to rely on any more: the looks are as frequent as without callbacks."""
    async with receiving(Script(plans=Plan(duration=5.0, record_lag=10.0)), polling=Polling()) as (flux, _):
        task = await flux.submit(REQUEST)

        assert (await task.result(timeout=20)).urls


@pytest.mark.parametrize("kind", ["cut_before", "cut_body", "html", "broken_json", "refuse", "redirect"])
async def test_confirming_fails_at_first(kind: Any) -> None:
    """A look that fails after the callback is repeated by the usual schedule, not by the rare one."""
    faults = [Fault("recordInfo", kind, times=3, code=500)]
    async with receiving(Script(plans=Plan(duration=5.0), faults=faults), polling=Polling()) as (flux, _):
        task = await flux.submit(REQUEST)

        assert (await task.result(timeout=60)).urls


async def test_a_failed_task_by_callback() -> None:
    """Failures come by callback as well, as what they are."""
    async with receiving(Script(plans=Plan(duration=4.0, outcome="moderated"))) as (flux, _):
        assert isinstance(await error_of(flux.generate(REQUEST)), ContentModeratedError)


async def test_a_lost_reply_is_not_a_lost_picture() -> None:
    """Connection cut after accepting, callback comes: one charge, one picture, found by its ref."""
    script = Script(plans=Plan(duration=12.0), faults=[Fault("createTask", "cut_after")])
    async with receiving(script) as (flux, emulator):
        caught = await error_of(flux.submit(REQUEST))
        assert isinstance(caught, AmbiguousSubmitError)
        task = await flux.recover(caught.ref, timeout=60)
        result = await task

        assert [task.id] == emulator.ledger.accepted
        assert task.request == REQUEST
        assert result.urls
        assert emulator.ledger.charged == 14
        assert len(emulator.ledger.requests) == 1
        assert await flux.recover(caught.ref) is task


async def test_an_ambiguous_task_is_attached_unasked() -> None:
    """Once its callback came, the task is among the outstanding, also when nobody calls `recover`."""
    script = Script(plans=Plan(duration=12.0, record_lag=5.0), faults=[Fault("createTask", "cut_after")])
    async with receiving(script) as (flux, emulator):
        caught = await error_of(flux.submit(REQUEST))
        assert isinstance(caught, AmbiguousSubmitError)
        await asyncio.sleep(13)

        assert [task.id for task in flux.tasks()] == emulator.ledger.accepted
        await flux.drain()
        assert (await (await flux.recover(caught.ref))).urls


async def test_recovering_frees_the_key() -> None:
    """The key of an unclear submission raises its error until the task is known, then gives the task."""
    script = Script(plans=Plan(duration=12.0), faults=[Fault("createTask", "cut_after")])
    async with receiving(script) as (flux, emulator):
        caught = await error_of(flux.submit(REQUEST, key="a", group="alice", metadata={"chat": 7}))
        assert isinstance(caught, AmbiguousSubmitError)
        assert await error_of(flux.submit(REQUEST, key="a")) is caught
        task = await flux.recover(caught.ref, timeout=60)

        assert await flux.submit(REQUEST, key="a") is task
        assert (task.ref, task.key, task.group, task.metadata) == (caught.ref, "a", "alice", {"chat": 7})
        assert len(emulator.ledger.requests) == 1


async def test_an_early_callback_answers_a_lost_reply() -> None:
    """A callback that came before the connection broke turns the unclear submission into a task."""
    script = Script(plans=Plan(callback="early"), faults=[Fault("createTask", "cut_after")])
    async with receiving(script) as (flux, emulator):
        task = await flux.submit(REQUEST)

        assert [task.id] == emulator.ledger.accepted
        assert (await task).urls


@pytest.mark.parametrize("confirm", [True, False])
@pytest.mark.parametrize("faults", [[], [Fault("createTask", "cut_after")]])
async def test_an_early_callback_is_told_after_its_submission(faults: list[Fault], confirm: bool) -> None:
    """Observers hear the steps of a submission as the table has them, then of its task: also where that was faster."""
    told: list[SessionEvent] = []
    script = Script(plans=Plan(outcome="fail", callback="early"), faults=faults)
    async with receiving(script, confirm=confirm, observers=[told.append]) as (flux, _):
        assert isinstance(await error_of(flux.generate(REQUEST)), TaskFailedError)

    state = SubmissionState.QUEUED
    for event in told:
        if isinstance(event, SubmissionChanged):
            state = after(state, event.event)
            assert event.state is state
        else:
            assert (state is SubmissionState.ACCEPTED) == (not isinstance(event, Queued))
    assert isinstance(told[-1], Settled)


async def test_a_forged_early_callback_is_told_after_its_submission() -> None:
    """A callback for a lost reply that names no task is told as found and disproved, after the lost reply."""
    told: list[SessionEvent] = []
    script = Script(faults=[Fault("createTask", "cut_before")])
    async with receiving(script, polling=Polling(), observers=[told.append]) as (flux, _):

        async def forge(ref: str) -> None:
            await flux.deliver(ref, Callback("forged", None))

        task = await flux.submit(REQUEST, ref="mine", on_send=forge)
        assert isinstance(await error_of(task), TaskNotFoundError)
        assert flux.statistics().ambiguous == 1

    changes = [(event.event, event.state, event.task_id) for event in told if isinstance(event, SubmissionChanged)]
    assert changes[-3:] == [
        (SubmissionEvent.UNCLEAR, SubmissionState.UNKNOWN, None),
        (SubmissionEvent.FOUND, SubmissionState.ACCEPTED, "forged"),
        (SubmissionEvent.DISPROVED, SubmissionState.UNKNOWN, "forged"),
    ]


async def test_nothing_to_recover() -> None:
    """What was never accepted stays unknown; waiting for it ends in time, or with the session."""
    async with receiving(Script(faults=[Fault("createTask", "cut_before")])) as (flux, _):
        caught = await error_of(flux.submit(REQUEST))
        assert isinstance(caught, AmbiguousSubmitError)
        with pytest.raises(TimeoutError):
            await flux.recover(caught.ref, timeout=30)
        recovering = asyncio.create_task(flux.recover(caught.ref))
        await asyncio.sleep(1)
        await flux.aclose()

        assert isinstance(await error_of(recovering), SessionClosedError)


@pytest.mark.parametrize("give_up_after", [1200.0, 300.0])
async def test_without_a_timeout_it_is_given_up_as_a_task_is(give_up_after: float) -> None:
    """A submission that no callback names is waited for as long as a task that does not end; the error says so."""
    async with receiving(Script(), polling=Polling(interval=3600.0, give_up_after=give_up_after)) as (flux, _):
        begun = asyncio.get_running_loop().time()
        caught = await error_of(flux.recover("of-an-earlier-session"))

        assert type(caught) is TimeoutError
        assert str(caught).startswith(f"nothing told within {give_up_after:g} s which task submission 'of-an-earlier-")
        assert asyncio.get_running_loop().time() - begun == pytest.approx(give_up_after)


async def test_what_is_under_way_is_given_up_after_its_end() -> None:
    """While a submission waits for its turn its own answer will tell; the time for a callback begins with its end."""
    lost = Fault("createTask", "cut_before", after=1)
    async with receiving(Script(faults=[lost]), rate_limit=RateLimit(1, 4000.0)) as (flux, _):
        await flux.submit(REQUEST)
        submitting = asyncio.create_task(error_of(flux.submit(REQUEST, ref="mine")))
        await asyncio.sleep(1)
        recovering = asyncio.create_task(error_of(flux.recover("mine")))
        assert isinstance(await submitting, AmbiguousSubmitError)
        ended = asyncio.get_running_loop().time()

        assert type(await recovering) is TimeoutError
        assert asyncio.get_running_loop().time() - ended == pytest.approx(1200.0)


async def test_stages_are_seen_with_callbacks() -> None:
    """Who follows a task sees its stages also where callbacks are trusted, so that the session itself hardly looks."""
    async with receiving(Script(plans=Plan(duration=12.0)), polling=Polling()) as (flux, emulator):
        await (await flux.submit(REQUEST))
        task, other = await flux.submit(REQUEST), await flux.submit(REQUEST)
        seen = [record.state_text async for record in task.updates(every=1.0)]

        assert seen == ["waiting", "queuing", "generating", "success"]
        assert 12 <= emulator.ledger.polls_of(task.id) <= 16
        await other
        assert emulator.ledger.polls_of(other.id) == 1


async def test_recovering_in_a_new_session() -> None:
    """A ref of a session that is gone is recovered by the next one, when it has the same secret."""
    port = free_port()
    callbacks = Callbacks(f"http://127.0.0.1:{port}/", secret=SECRET)
    script = Script(plans=Plan(duration=30.0), faults=[Fault("createTask", "cut_after")])
    async with emulated(script, callbacks=callbacks, polling=RARE) as (first, emulator):
        caught = await error_of(first.submit(REQUEST))
        assert isinstance(caught, AmbiguousSubmitError)
        await first.aclose()
        async with Flux2Session(
            emulator.api_key, base_url=emulator.base_url, callbacks=callbacks, polling=RARE
        ) as flux:
            async with serve(flux, "127.0.0.1", port):
                recovering = asyncio.create_task(flux.recover(caught.ref, timeout=100))
                await asyncio.sleep(40)
                assert (await (await recovering)).urls
        assert len(emulator.ledger.accepted) == 1


async def test_a_callback_that_came_before_recovering() -> None:
    """A callback for an unknown ref is kept for an hour."""
    async with receiving(Script(plans=Plan(duration=3.0))) as (flux, emulator):
        task = await flux.submit(REQUEST)
        await task
        assert (
            await post(signed_url(callback_url(emulator).partition("?")[0], "of-yesterday", SECRET), finished(task.id))
            == 200
        )
        await asyncio.sleep(3500)
        recovered = await flux.recover("of-yesterday", timeout=1)

        assert recovered.id == task.id


async def test_a_callback_that_came_long_before() -> None:
    """After an hour a parked callback is neither an answer to `recover` nor a reason to look."""
    async with receiving(Script(plans=Plan(duration=60.0))) as (flux, emulator):
        url = signed_url(address_of(flux), "mine", SECRET)
        assert await post(url, finished("of-yesterday")) == 200
        await asyncio.sleep(3700)
        assert isinstance(await error_of(flux.recover("mine", timeout=1)), TimeoutError)
        await flux.submit(REQUEST, ref="mine")
        await asyncio.sleep(30)

        assert emulator.ledger.polls == 0


@pytest.mark.parametrize("callbacks", [True, False])
async def test_recovering_what_is_refused_meanwhile(*, callbacks: bool) -> None:
    """Who asks for a submission under way that becomes no task gets what its caller gets, and does not wait on."""
    script = Script(latency=1.0, faults=[Fault("createTask", "refuse", code=402)])
    async with receiving(script) if callbacks else emulated(script) as (flux, _):
        submitting = asyncio.create_task(error_of(flux.submit(REQUEST, ref="mine")))
        await asyncio.sleep(0.5)
        recovering = asyncio.create_task(error_of(flux.recover("mine", timeout=60)))

        assert isinstance(await submitting, InsufficientCreditsError)
        assert await recovering is await submitting


async def test_recovering_what_is_withdrawn_meanwhile() -> None:
    """The same where nothing is sent, because its caller leaves before its turn."""
    async with receiving(Script(), rate_limit=RateLimit(1, 60.0)) as (flux, _):
        await flux.submit(REQUEST)
        submitting = asyncio.create_task(flux.submit(REQUEST, ref="mine"))
        await asyncio.sleep(1.0)
        recovering = asyncio.create_task(error_of(flux.recover("mine", timeout=60)))
        await asyncio.sleep(1.0)
        submitting.cancel()

        assert "nothing was sent" in str(await recovering)


async def test_recovering_without_callbacks() -> None:
    """A submission under way needs no callback: its answer tells, or leaves it open, which the error says."""
    async with emulated(Script(latency=1.0, faults=[Fault("createTask", "cut_after", after=1)])) as (flux, _):
        submitting = asyncio.create_task(flux.submit(REQUEST, ref="mine"))
        await asyncio.sleep(0.5)
        assert await flux.recover("mine", timeout=60) is await submitting

        left_open = asyncio.create_task(error_of(flux.submit(REQUEST, ref="other")))
        await asyncio.sleep(0.5)
        assert isinstance(await error_of(flux.recover("other", timeout=60)), ConfigurationError)
        assert isinstance(await left_open, AmbiguousSubmitError)


async def test_recover_needs_callbacks() -> None:
    """Without callbacks nobody can tell, and the error says what to do."""
    async with emulated() as (flux, _):
        caught = await error_of(flux.recover("mine"))

        assert isinstance(caught, ConfigurationError)
        assert "Callbacks" in str(caught)


async def test_forged_callbacks_wake_nobody() -> None:
    """Without the signature of our secret there is no look, whatever the body says."""
    async with receiving(Script(plans=Plan(duration=30.0))) as (flux, emulator):
        task = await flux.submit(REQUEST)
        url = callback_url(emulator)
        forged = signed_url(url.partition("?")[0], "other", "another secret")
        statuses = [
            await post(each, finished(task.id))
            for each in (url[:-1] + ("1" if url.endswith("0") else "0"), url.partition("?")[0], forged)
        ]
        statuses.append(await post(url, b"{"))

        assert statuses == [401, 401, 401, 400]
        assert emulator.ledger.polls == 0
        assert flux.statistics().callbacks == 0


@pytest.mark.parametrize(("signing", "status"), [("a key", 200), ("another key", 401), (None, 401)])
async def test_the_services_own_signature(signing: str | None, status: int) -> None:
    """With `hmac_key` a callback counts only when the service signed it; the picture comes in any case."""
    script = Script(plans=Plan(duration=5.0), hmac_key=signing)
    async with receiving(script, hmac_key="a key", polling=Polling(interval=20.0)) as (flux, emulator):
        task = await flux.submit(REQUEST)
        begun = asyncio.get_running_loop().time()
        await task
        took = asyncio.get_running_loop().time() - begun

        assert await callback_answers(emulator) == [status]
        assert (took < 6) == (status == 200)


async def test_a_random_secret_of_its_own() -> None:
    """Without a secret each session makes one, so callbacks of another session are refused."""
    async with receiving(Script(plans=Plan(duration=5.0)), secret=None) as (flux, emulator):
        task = await flux.submit(REQUEST)

        assert (await task).urls
        assert await callback_answers(emulator) == [200]
        assert await post(signed_url(callback_url(emulator).partition("?")[0], "x", SECRET), finished("x")) == 401


def test_a_secret_for_each_session() -> None:
    """Two sessions that were given no secret sign one ref differently."""
    callbacks = Callbacks("https://app.example/")
    settings = [Flux2Session("key", callbacks=callbacks).callback_settings for _ in range(2)]

    assert len({signed_url(each.url, "r1", each.secret) for each in settings if each is not None}) == 2


async def test_the_secret_of_the_environment_is_read_when_a_session_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was given none signs as all do that have the same environment; a secret that was given outranks it."""
    own, given = (Callbacks("https://app.example/", secret=secret) for secret in (None, "given"))
    sessions = [Flux2Session("key", callbacks=callbacks) for callbacks in (own, own, given)]
    monkeypatch.setenv(VARIABLE, " of the environment\n")
    for flux in sessions:
        async with flux:
            pass
    settings = [flux.callback_settings for flux in sessions]

    assert [each.secret for each in settings if each] == [b"of the environment"] * 2 + [b"given"]
    assert [each.lasting for each in settings if each] == [True] * 3


async def test_the_receiver_restarts_meanwhile() -> None:
    """A callback that meets a closed door is repeated by the service, or found by a look."""
    port = free_port()
    callbacks = Callbacks(f"http://127.0.0.1:{port}/", secret=SECRET)
    async with emulated(Script(plans=Plan(duration=5.0)), callbacks=callbacks, polling=RARE) as (flux, emulator):
        async with serve(flux, "127.0.0.1", port):
            task = await flux.submit(REQUEST)
        await asyncio.sleep(10)
        async with serve(flux, "127.0.0.1", port):
            assert (await task.result(timeout=120)).urls
            assert await callback_answers(emulator, 2) == [None, 200]


async def test_callback_of_another_process() -> None:
    """A callback for a task that somebody else awaits is parked, and wakes the task where it was attached."""
    async with receiving(Script(plans=Plan(duration=60.0))) as (flux, emulator):
        async with emulated() as (_, _):
            pass
        task = await flux.submit(REQUEST)
        emulator.finish(task.id)
        await until(task.done)
        url = signed_url(callback_url(emulator).partition("?")[0], "of-another", SECRET)

        assert await post(url, finished("0" * 32)) == 200
        assert flux.tasks() == ()


@pytest.mark.parametrize("server", [on_aiohttp, on_asgi])
async def test_a_thousand_at_once(server: Server) -> None:
    """A thousand tasks are settled by callbacks alone, each once and with one look, under aiohttp.web and uvicorn."""
    script = Script(plans=Plan(duration=20.0), credits=1e6)
    async with receiving(script, server=server, rate_limit=None, max_running=None) as (flux, emulator):
        tasks = await asyncio.gather(*(flux.submit(TextToImage(f"number {n}")) for n in range(1000)))
        results = await asyncio.gather(*tasks)

        assert len({result.task_id for result in results}) == 1000
        assert emulator.ledger.polls == 1000
        assert await callback_answers(emulator, 1000) == [200] * 1000
        assert flux.statistics().repeated_settles == 0


async def test_parked_callbacks_are_bounded() -> None:
    """However many callbacks for unknown refs come, only so many are kept, the newest."""
    async with receiving(Script()) as (flux, _):
        for number in range(MAX_EARLY + 10):
            await flux.deliver(f"ref-{number}", Callback(f"task-{number}", None))

        for forgotten in (0, 9):
            assert isinstance(await error_of(flux.recover(f"ref-{forgotten}", timeout=1)), TimeoutError)
        assert (await flux.recover("ref-10", timeout=1)).id == "task-10"
        assert (await flux.recover(f"ref-{MAX_EARLY + 9}", timeout=1)).id == f"task-{MAX_EARLY + 9}"


async def test_a_receiver_in_another_event_loop(caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that runs in another loop than the session asks the sender to try again, and says why in the log."""
    answers: list[bool] = []
    async with receiving(Script()) as (flux, _):

        async def elsewhere() -> None:
            answers.append(flux.accepts_callbacks())

        await anyio.to_thread.run_sync(asyncio.run, elsewhere())
        assert flux.accepts_callbacks()

    assert answers == [False]
    assert not flux.accepts_callbacks()
    assert "another event loop" in caplog.text


def inbox_of(flux: Flux2Session) -> CallbackInbox:
    inbox = parts_of(flux).inbox
    assert isinstance(inbox, CallbackInbox)
    return inbox


def state_of(entry: Entry) -> str | None:
    return next((name for name in ("task", "unclear", "settled", "early") if getattr(entry, name) is not None), None)


async def test_one_ref_for_two_submissions() -> None:
    """A ref that the user gives twice costs neither task its callback."""
    script = Script(plans=lambda index, _: Plan(duration=20.0 if index else 5.0))
    async with receiving(script) as (flux, _):
        one, other = await flux.submit(REQUEST, ref="mine"), await flux.submit(REQUEST, ref="mine")
        await one
        await other.result(timeout=16)

        assert state_of(inbox_of(flux).entries["mine"]) == "settled"


async def test_a_ref_given_again_recovers_its_own_task() -> None:
    """What an earlier submission of the same name became, told again, is no answer to a lost reply."""
    script = Script(
        plans=lambda index, _: Plan(duration=20.0 if index else 2.0),
        faults=[Fault("createTask", "cut_after", after=1)],
    )
    async with receiving(script) as (flux, emulator):
        earlier = await flux.submit(REQUEST, ref="mine")
        await earlier
        assert isinstance(await error_of(flux.submit(REQUEST, ref="mine")), AmbiguousSubmitError)
        assert isinstance(await error_of(flux.recover("mine", timeout=1)), TimeoutError)
        assert await post(callback_url(emulator), finished(earlier.id)) == 200
        assert isinstance(await error_of(flux.recover("mine", timeout=1)), TimeoutError)
        task = await flux.recover("mine", timeout=60)

        assert [earlier.id, task.id] == emulator.ledger.accepted
        assert (await task).urls


async def test_an_early_callback_for_a_ref_given_again() -> None:
    """It is kept for the submission under way, although its name is known from an earlier one."""
    script = Script(
        plans=lambda index, _: Plan(callback="early" if index else "once"),
        faults=[Fault("createTask", "cut_after", after=1)],
    )
    async with receiving(script) as (flux, emulator):
        earlier = await flux.submit(REQUEST, ref="mine")
        await earlier
        task = await flux.submit(REQUEST, ref="mine")

        assert [earlier.id, task.id] == emulator.ledger.accepted
        assert (await task.result(timeout=2)).urls


@pytest.mark.parametrize("confirm", [True, False])
@pytest.mark.parametrize("outstanding", [True, False])
async def test_an_unclear_submission_takes_no_task_of_another(confirm: bool, outstanding: bool) -> None:
    """A body that names another submission's task, at the address of a lost reply, settles and binds nothing."""
    script = Script(plans=Plan(duration=20.0), faults=[Fault("createTask", "cut_after")])
    async with receiving(script, confirm=confirm) as (flux, emulator):
        caught = await error_of(flux.submit(REQUEST, key="a"))
        assert isinstance(caught, AmbiguousSubmitError)
        other = await flux.submit(REQUEST, key="b")
        if not outstanding:
            emulator.finish(other.id)
            await other
        assert await post(callback_url(emulator), finished(other.id)) == 200
        await asyncio.sleep(1)

        assert other.done() is not outstanding
        assert await error_of(flux.submit(REQUEST, key="a")) is caught
        assert (await flux.recover(caught.ref, timeout=60)).id == emulator.ledger.accepted[0]
        assert (await other).urls != ("https://files.example/other.png",)


@pytest.mark.parametrize("confirm", [True, False])
@pytest.mark.parametrize("duration", [30.0, 120.0])
async def test_a_forged_answer_to_a_lost_reply(confirm: bool, duration: float) -> None:
    """A task that does not exist holds a lost reply's place only until that is known; the true one follows."""
    script = Script(plans=Plan(duration=duration), faults=[Fault("createTask", "cut_after")])
    async with receiving(script, confirm=confirm, polling=Polling()) as (flux, emulator):
        caught = await error_of(flux.submit(REQUEST, key="a"))
        assert isinstance(caught, AmbiguousSubmitError)
        assert await post(callback_url(emulator), finished("forged")) == 200
        forged = await flux.recover(caught.ref, timeout=1)
        assert isinstance(await error_of(forged), TaskNotFoundError)
        task = await flux.recover(caught.ref, timeout=60)

        assert [task.id] == emulator.ledger.accepted
        assert await flux.submit(REQUEST, key="a") is task
        assert (await task).urls[0].startswith(emulator.base_url)
        assert state_of(inbox_of(flux).entries[caught.ref]) == "settled"


async def test_an_own_interval_holds() -> None:
    """Who fixes an interval is not given another one because callbacks are expected."""
    script = Script(plans=Plan(duration=3.0, callback="lost"))
    async with receiving(script, polling=Polling(interval=1.0)) as (flux, emulator):
        task = await flux.submit(REQUEST)
        await task.result(timeout=5)

        assert emulator.ledger.polls_of(task.id) == 3


@pytest.mark.parametrize("faults", [[], [Fault("createTask", "cut_after")]])
async def test_recovering_what_is_still_being_sent(faults: list[Fault]) -> None:
    """Several callers may ask for a submission under way: its callback serves them all, and the submission."""
    script = Script(plans=Plan(callback="early"), faults=faults)
    async with receiving(script, max_running=1) as (flux, emulator):
        recovering = [asyncio.create_task(flux.recover("mine", timeout=60)) for _ in range(3)]
        task = await flux.submit(REQUEST, key="a", ref="mine")

        assert (await task.result(timeout=5)).urls
        assert [(await each).id for each in recovering] == emulator.ledger.accepted * 3
        assert await flux.submit(REQUEST, key="a") is task
        # It has given back its slot.
        assert (await flux.submit(REQUEST, max_wait=0)).id != task.id


async def test_recovering_and_finishing_what_is_still_being_sent() -> None:
    """A picture that is there before its submission turns out lost is the submission's."""
    script = Script(plans=Plan(callback="early"), faults=[Fault("createTask", "hang", accepted=True)])
    async with receiving(script, timeouts=Timeouts(submit=5.0)) as (flux, emulator):
        submitting = asyncio.create_task(flux.submit(REQUEST, key="a", ref="mine"))
        recovered = await flux.recover("mine", timeout=2)
        result = await recovered.result(timeout=2)
        assert not submitting.done()
        task = await submitting

        assert [task.id] == emulator.ledger.accepted
        assert (await task.result(timeout=2)).urls == result.urls
        assert (await flux.recover("mine", timeout=1)).id == task.id


async def test_a_success_without_a_picture_is_looked_at() -> None:
    """Also with `confirm=False` a body that names no picture is no result: the record may have one."""
    async with receiving(Script(plans=Plan(duration=5.0)), confirm=False) as (flux, emulator):
        task = await flux.submit(REQUEST)
        body = {"code": 200, "data": {"taskId": task.id, "state": "success"}}
        assert await post(callback_url(emulator), body) == 200

        assert (await task).urls


async def test_looks_far_away_come_back_when_callbacks_do_not_come() -> None:
    """What is outstanding when the trust ends is looked at as without callbacks from then on, and not all at once."""

    def plan(index: int, body: Any) -> Plan:
        return Plan(duration=2.0 if index < 2 else 20.0, callback="lost" if index else "once")

    script = Script(plans=plan, credits=1e6)
    async with receiving(script, polling=Polling(), rate_limit=None) as (flux, emulator):
        await flux.generate(REQUEST)
        first = await flux.submit(REQUEST)
        await asyncio.sleep(28)
        tasks = [await flux.submit(REQUEST) for _ in range(60)]
        await first
        looks = [emulator.ledger.polls]
        for _ in range(4 * 32):
            await asyncio.sleep(0.25)
            looks.append(emulator.ledger.polls)

        assert not inbox_of(flux).arrivals.trust
        assert all(task.done() for task in tasks)
        assert max(after - before for before, after in itertools.pairwise(looks)) < 25


async def test_looks_come_back_once() -> None:
    """Trust that ends again and again, as where every other callback is lost, makes looks no more frequent."""
    script = Script(plans=Plan(duration=60.0, callback="lost"), credits=1e6)
    polls = []
    for ends in (1, 100):
        async with receiving(script, polling=Polling(), rate_limit=None) as (flux, emulator):
            inbox = inbox_of(flux)
            inbox.arrivals.trust.earn()
            for _ in range(20):
                await flux.submit(REQUEST)
            inbox.arrivals.trust.lose()
            for _ in range(ends):
                parts_of(flux).watcher.come_back()
                await asyncio.sleep(0.1)
            await asyncio.sleep(10 - 0.1 * ends)
            polls.append(emulator.ledger.polls)

    assert polls[1] < 1.3 * polls[0]


async def test_what_was_refused_does_not_come_back_early() -> None:
    """The end of the trust is no reason to ask before the time that a refused look was told."""
    script = Script(plans=Plan(duration=60.0, callback="lost"), credits=1e6)
    async with receiving(script, polling=Polling()) as (flux, emulator):
        inbox_of(flux).arrivals.trust.earn()
        task = await flux.submit(REQUEST)
        emulator.inject(Fault("recordInfo", "refuse", code=429, retry_after=200.0))
        flux.notify(task.id)
        await asyncio.sleep(1)
        inbox_of(flux).arrivals.trust.lose()
        parts_of(flux).watcher.come_back()
        await asyncio.sleep(100)

        assert emulator.ledger.polls_of(task.id) == 1


async def test_an_unconfirmed_failure_settles() -> None:
    """With `confirm=False` a failure in the body is believed; it names no picture."""
    async with receiving(Script(plans=Plan(duration=60.0)), confirm=False) as (flux, emulator):
        task = await flux.submit(REQUEST)
        body = {"code": 501, "msg": "no", "data": {"taskId": task.id, "state": "fail", "failCode": "500"}}
        assert await post(callback_url(emulator), body) == 200

        assert isinstance(await error_of(task.result(timeout=1)), TaskFailedError)
        assert emulator.ledger.polls == 0


async def test_giving_up_teaches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Tasks that are given up before they end say nothing about callbacks."""
    script = Script(plans=from_then_on_lost(1, duration=30.0), credits=1e6)
    async with receiving(script, polling=Polling(give_up_after=40.0)) as (flux, emulator):
        await flux.generate(REQUEST)
        emulator.script.plans = Plan(duration=300.0, callback="lost")
        for _ in range(3):
            assert isinstance(await error_of(flux.generate(REQUEST)), TaskTimeoutError)
        await asyncio.sleep(60)

        assert inbox_of(flux).arrivals.trust
    assert "did not come" not in caplog.text


async def test_late_callbacks_are_callbacks() -> None:
    """One that comes long after it was missed brings the trust back."""
    script = Script(plans=Plan(duration=3.0, callback="late", callback_delay=100.0), credits=1e6)
    async with receiving(script, polling=Polling()) as (flux, _):
        await flux.generate(REQUEST)
        await asyncio.sleep(50)
        assert not inbox_of(flux).arrivals.trust
        await asyncio.sleep(60)

        assert inbox_of(flux).arrivals.trust


async def test_a_relayed_callback_is_a_callback() -> None:
    """What a sibling was called for this session proves that callbacks arrive."""
    async with receiving(Script(plans=Plan(duration=60.0))) as (flux, _):
        task = await flux.submit(REQUEST, ref="mine")
        inbox_of(flux).relayed("mine", task.id)

        assert inbox_of(flux).arrivals.trust


async def test_closing_names_a_submission_once() -> None:
    """A submission that is cut off by closing, whose callback came before, is left as a task and not as a ref."""
    async with receiving(Script(faults=[Fault("createTask", "hang")])) as (flux, _):
        submitting = asyncio.create_task(flux.submit(REQUEST, ref="mine"))
        await asyncio.sleep(1)
        await inbox_of(flux).deliver("mine", Callback("early", None))
        unsettled = await flux.aclose(grace=1.0)

        assert (unsettled.task_ids, unsettled.refs) == (("early",), ())
        assert (await submitting).id == "early"


async def test_a_callback_wakes_a_task_attached_here() -> None:
    """A callback for a submission of another process wakes its task where it was attached."""
    async with receiving(Script(plans=Plan(duration=5.0))) as (flux, emulator):
        async with Flux2Session(emulator.api_key, base_url=emulator.base_url) as other:
            task = flux.attach((await other.submit(REQUEST)).id)
        await asyncio.sleep(6)
        assert await post(signed_url(address_of(flux), "of-another", SECRET), finished(task.id)) == 200

        assert (await task.result(timeout=1)).urls


async def test_recovering_looks_at_once() -> None:
    """A task recovered from an earlier callback is looked at now: no other callback will come."""
    async with receiving(Script(plans=Plan(duration=5.0))) as (flux, emulator):
        async with Flux2Session(emulator.api_key, base_url=emulator.base_url) as other:
            submitted = await other.submit(REQUEST)
        await asyncio.sleep(6)
        await inbox_of(flux).deliver("of-another", Callback(submitted.id, None))
        task = await flux.recover("of-another", timeout=1)

        assert (await task.result(timeout=1)).urls


async def test_a_body_for_another_task_wakes_both() -> None:
    """A valid address with another task's id is a reason to look at the two."""
    async with receiving(Script(plans=Plan(duration=5.0, callback="lost"))) as (flux, emulator):
        mine, other = await flux.submit(REQUEST), await flux.submit(REQUEST)
        await asyncio.sleep(6)
        assert await post(callback_url(emulator), finished(other.id)) == 200

        assert (await other.result(timeout=1)).urls
        assert (await mine.result(timeout=1)).urls


async def test_what_is_remembered_is_bounded() -> None:
    """Lost replies and settled tasks are remembered only so far, the newest; nothing is kept of the rest."""
    async with receiving(Script()) as (flux, _):
        inbox = inbox_of(flux)
        for number in range(MAX_UNCLEAR + 10):
            lost = Submission(Asked(REQUEST, ref=f"lost-{number}"), Patience(None, 0.0))
            lost.doubted(1.0)
            inbox.ended(lost)
        for number in range(MAX_SETTLED + 10):
            task = ImageTask(f"task-{number}")
            inbox.accepted(f"ref-{number}", task)
            inbox.settled(task, called=True)

        assert Counter(map(state_of, inbox.entries)) == {"unclear": MAX_UNCLEAR, "settled": MAX_SETTLED}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "app.example/callback"}, "Callbacks.url"),
        ({"url": "ftp://app.example/"}, "Callbacks.url"),
        ({"url": None}, "Callbacks.url"),
        ({"url": "https://[app.example/"}, "Callbacks.url"),
        ({"url": "https://app.example/\ud800/"}, "Callbacks.url"),
        ({"url": "https://app.example/", "secret": " "}, "secret"),
        ({"url": "https://app.example/", "hmac_key": ""}, "hmac_key"),
        ({"url": "https://app.example/", "confirm": None}, "confirm"),
    ],
)
def test_unusable_settings(options: dict[str, Any], words: str) -> None:
    """An address that cannot be called, a blank secret, or trust that nobody stated is told when they are made."""
    with pytest.raises(ConfigurationError, match=words):
        Callbacks(**options)


def test_secrets_are_not_shown() -> None:
    """No repr shows a secret."""
    callbacks = Callbacks("https://app.example/", secret="s3cret", hmac_key="h-mac")

    assert "s3cret" not in repr(callbacks)
    assert "h-mac" not in repr(callbacks)
    assert "s3cret" not in repr(CallbackSettings.of(callbacks))
    assert "h-mac" not in repr(CallbackSettings.of(callbacks))


# --- Memory


@pytest.mark.parametrize("filling", ["x" * 1_000_000, [[]] * 5_000, {str(n): n for n in range(2_500)}, "x" * 30_000])
async def test_parked_bodies_are_bounded_in_bytes(filling: object) -> None:
    """Many signed bodies for nobody, up to a megabyte each, leave a few megabytes behind, under `confirm=False`."""
    callbacks = Callbacks("https://app.example/", secret=SECRET, confirm=False)
    record = {"taskId": "?", "state": "success", "resultJson": '{"resultUrls":["https://f.example/a.png"]}'}
    body = json.dumps({"code": 200, "data": record | {"filling": filling}})

    def large(task_id: str) -> Callback:
        return parse_callback(body.replace("?", task_id, 1).encode())

    async with emulated(Script(render=False), callbacks=callbacks) as (flux, _):
        inbox = inbox_of(flux)
        await inbox.deliver("first", large("first"))
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        count = 50 if isinstance(filling, dict | list) else 300
        for number in range(count):
            await inbox.deliver(f"r{number}", large(f"t{number}"))
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert after - before < 2 * MAX_EARLY_RECORDS


async def test_ended_tasks_are_not_kept_for_their_refs() -> None:
    """Who dropped the handle of a finished task keeps no record of it alive, and `recover` looks at it again."""
    callbacks = Callbacks("https://app.example/", secret=SECRET)
    async with emulated(Script(plans=Plan(duration=0.1), render=False), callbacks=callbacks) as (flux, _):
        task = await flux.submit(REQUEST, ref="mine")
        await task
        handle, task_id = weakref.ref(task), task.id
        assert await flux.recover("mine") is task
        del task
        await asyncio.sleep(1)
        gc.collect()
        assert handle() is None
        again = await flux.recover("mine")
        assert again.id == task_id
        assert (await again).urls
        assert await flux.recover("mine") is again
