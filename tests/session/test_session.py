"""The session: life cycle, settings, account calls and what it refuses to do."""

import asyncio
import contextlib
import gc
import logging
import math
import threading
import warnings
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import anyio
import pytest
from emulated import REQUEST, emulated, error_of, parts_of, session_for, until
from memory_coordination import Memory
from virtual_time import VirtualClockLoop

from flux2_async.emulator import Emulator, Fault, Limit, Plan, Script
from flux2_async.errors import (
    AmbiguousSubmitError,
    ApiError,
    AuthenticationError,
    ConfigurationError,
    ContentModeratedError,
    CoordinationError,
    Flux2Error,
    InvalidRequestError,
    RateLimitedError,
    SessionClosedError,
    TaskFailedError,
    TaskNotFoundError,
    TaskTimeoutError,
)
from flux2_async.models import Callbacks, ImageToImage, Polling, RateLimit, TaskState, Timeouts
from flux2_async.session.enqueued import SubmissionHandle
from flux2_async.session.lifecycle import Unsettled
from flux2_async.session.session import Flux2Session
from flux2_async.testing import running_emulator
from flux2_async.webhooks import Callback

PHOTO = Path(__file__).parent.parent.parent / "flux2_async" / "cli" / "photos" / "chelsea.png"
T = TypeVar("T")


async def test_the_main_job(tmp_path: Path) -> None:
    """Upload, submit, wait, download: a real picture lies in the folder."""
    script = Script(plans=Plan(duration=12.0))
    async with Emulator(script) as emulator, session_for(emulator, polling=Polling()) as flux:
        task = await flux.submit(ImageToImage("make it winter", images=[PHOTO, PHOTO], aspect_ratio="auto"))
        result = await task.result(timeout=60)
        paths = await flux.download(result, tmp_path / "out")

    assert [path.name for path in paths] == [f"{task.id}-1.jpg"]
    assert paths[0].read_bytes().startswith(b"\xff\xd8\xff")
    assert len(emulator.ledger.uploads) == 1
    assert result.record.credits_consumed == 14
    assert result.record.duration == pytest.approx(12, abs=0.01)
    assert "file" not in emulator.ledger.authorization_seen


@pytest.mark.parametrize("key", ["k", "task", "200", "test", "code", "state", "success", "file", "{", ":"])
async def test_keys_as_test_doubles_have_them(tmp_path: Path, key: str) -> None:
    """A key whose characters are part of every reply changes nothing in what is read from one."""
    async with Emulator(Script(plans=Plan(duration=2.0)), api_key=key) as emulator, session_for(emulator) as flux:
        await flux.credits()
        task = await flux.submit(ImageToImage("make it winter", images=[PHOTO]))
        paths = await flux.download(await task.result(timeout=60), tmp_path)

    assert [task.id] == emulator.ledger.accepted
    assert [path.name for path in paths] == [f"{task.id}-1.jpg"]


async def test_a_task_whose_failure_quotes_the_key() -> None:
    """The words of a failed task are shown without the key."""
    key = "sk-0123456789abcdef"
    script = Script(plans=Plan(outcome="fail", fail_message=f"upstream said: bad token {key}"))
    async with Emulator(script, api_key=key) as emulator, session_for(emulator) as flux:
        error = await error_of(flux.generate(REQUEST, timeout=60))

    assert isinstance(error, TaskFailedError)
    assert "bad token <redacted>" in str(error)
    assert key not in repr(error) + str(vars(error))


async def test_generate_is_both_in_one() -> None:
    """`generate` submits and waits; its time-out leaves the task to be waited for again."""
    async with emulated(Script(plans=Plan(duration=10.0))) as (flux, emulator):
        assert (await flux.generate(REQUEST)).urls
        caught = await error_of(flux.generate(REQUEST, timeout=5))

        assert isinstance(caught, TaskTimeoutError)
        assert caught.task is not None
        assert (await caught.task).urls
        assert len(emulator.ledger.accepted) == 2


async def test_moderated() -> None:
    """A picture refused for its content is an error of its own and costs nothing."""
    async with emulated(Script(plans=Plan(outcome="moderated"))) as (flux, emulator):
        caught = await error_of(flux.generate(REQUEST))

        assert isinstance(caught, ContentModeratedError)
        assert caught.record.state is TaskState.FAIL
        assert caught.record.credits_consumed == 0
        assert emulator.ledger.charged == 0


async def test_record_not_visible_at_first() -> None:
    """A record that appears late, in any of the three ways, costs nothing."""
    plans = [Plan(duration=5, hidden_for=20, hidden_style=style) for style in ("422", "null", "404")]
    async with emulated(Script(plans=plans)) as (flux, _):
        for _ in plans:
            assert (await flux.generate(REQUEST)).urls


@pytest.mark.parametrize("kind", ["455", "502"])
async def test_an_outage_of_ten_minutes_loses_nothing(kind: Any) -> None:
    """Tasks that run when the service goes away for ten minutes give their pictures afterwards."""
    script = Script(plans=Plan(duration=30.0), outage=(5.0, 605.0), outage_kind=kind)
    async with emulated(script, polling=Polling()) as (flux, emulator):
        tasks = [await flux.submit(REQUEST) for _ in range(5)]
        results = await asyncio.gather(*tasks)

        assert all(result.urls for result in results)
        assert len(emulator.ledger.accepted) == 5


async def test_a_restart_of_the_service_loses_nothing() -> None:
    """Refused connections while polling are an outage like any other."""
    async with emulated(Script(plans=Plan(duration=5.0))) as (flux, emulator):
        task = await flux.submit(REQUEST)
        await emulator.stop()
        assert not await task.wait(60)
        await emulator.start()

        assert (await task).urls


@pytest.mark.parametrize("kind", ["under_escaped", "broken_json", "html", "cut_before", "cut_body", "redirect"])
async def test_broken_answers_while_polling(kind: Any) -> None:
    """A record that cannot be read is repaired or read again."""
    faults = [Fault("recordInfo", kind, times=4)]
    async with emulated(Script(plans=Plan(duration=2.0), faults=faults)) as (flux, _):
        assert (await flux.generate(REQUEST)).urls


async def test_attach() -> None:
    """A task of an earlier session is waited for without another charge, and needs no request to begin."""
    async with Emulator(Script(plans=Plan(duration=30.0), render=False)) as emulator:
        async with session_for(emulator) as first:
            task_id = (await first.submit(REQUEST)).id
        async with session_for(emulator, max_running=1) as flux:
            calls = sum(emulator.ledger.calls.values())
            task = flux.attach(task_id)

            assert flux.attach(task_id) is task
            assert sum(emulator.ledger.calls.values()) == calls
            assert (await task).urls
            assert flux.attach(task_id) is not task
            assert len(emulator.ledger.accepted) == 1


async def test_attached_before_its_reply() -> None:
    """A task that was attached by a callback or a log before its createTask reply came knows its request afterwards."""
    async with emulated(Script(latency=1.0)) as (flux, emulator):
        submitting = asyncio.create_task(flux.submit(REQUEST))
        await until(lambda: emulator.ledger.accepted)
        attached = flux.attach(emulator.ledger.accepted[0])

        assert await submitting is attached
        assert attached.request == REQUEST
        assert (await attached).urls


async def test_attached_tasks_take_slots() -> None:
    """Attaching never waits, but what is attached counts among the running."""
    async with Emulator(Script(plans=Plan(duration=30.0), render=False)) as emulator:
        async with session_for(emulator) as first:
            ids = [(await first.submit(REQUEST)).id for _ in range(3)]
        async with session_for(emulator, max_running=2) as flux:
            attached = [flux.attach(task_id) for task_id in ids]
            submitting = asyncio.create_task(flux.submit(REQUEST))
            await asyncio.sleep(20)

            assert flux.statistics().running == 3
            assert not submitting.done()
            await asyncio.gather(*attached)
            await submitting


async def test_unknown_task() -> None:
    """A wrong id settles as unknown; asking once says so at once."""
    async with emulated() as (flux, _):
        assert isinstance(await error_of(flux.fetch_record("0" * 32)), TaskNotFoundError)
        assert isinstance(await error_of(flux.attach("0" * 32).result()), TaskNotFoundError)


async def test_closing_tells_wrong_ids_apart(caplog: pytest.LogCaptureFixture) -> None:
    """An id of which the service said that it does not know it is not named among the tasks that run."""
    async with emulated(Script(plans=Plan(duration=60.0))) as (flux, _):
        task = await flux.submit(REQUEST)
        flux.attach("nonsense")
        await asyncio.sleep(5)
        assert (await flux.aclose()).task_ids == (task.id, "nonsense")
    assert (
        f"session closed; tasks not finished, to be had by `flux.attach(task_id)` in a new session: {task.id}"
        in caplog.messages
    )
    [told] = [message for message in caplog.messages if "nonsense" in message]
    assert "did not know when last polled, to be attached likewise unless the id is wrong: nonsense" in told


async def test_account_calls() -> None:
    """Balance, record and direct link are one call each."""
    async with emulated(Script(credits=812.5)) as (flux, emulator):
        assert await flux.credits() == 812.5
        result = await flux.generate(REQUEST)
        assert (await flux.fetch_record(result.task_id)).state is TaskState.SUCCESS
        assert (await flux.download_url(result.urls[0])).startswith(emulator.base_url)
        assert await flux.credits() == 812.5 - 14


async def test_wrong_key() -> None:
    """A key the service does not know is told as such by every call."""
    async with Emulator(Script(render=False)) as emulator:
        async with Flux2Session("wrong", base_url=emulator.base_url) as flux:
            for call in (flux.credits(), flux.submit(REQUEST), flux.fetch_record("x"), flux.upload(PHOTO)):
                assert isinstance(await error_of(call), AuthenticationError)


async def test_statistics() -> None:
    """The snapshot counts what happened, and stays readable after closing."""
    script = Script(plans=Plan(duration=3.0), faults=[Fault("createTask", "refuse", retry_after=2)])
    async with emulated(script) as (flux, emulator):
        task = await flux.submit(REQUEST)
        during = flux.statistics()
        flux.notify(task.id)
        await task
    after = flux.statistics()

    assert (during.running, during.submitted, during.refused, during.waiting) == (1, 1, 1, 0)
    assert (after.running, after.callbacks) == (0, 1)
    assert after.polls == emulator.ledger.polls
    assert after.paused_until is None


async def test_notify_saves_polls() -> None:
    """A hint at the right moment is one look."""
    async with emulated(Script(plans=Plan(duration=7.0)), polling=Polling(interval=600)) as (flux, emulator):
        task = await flux.submit(REQUEST)
        await asyncio.sleep(8)
        flux.notify(task.id)
        await task

        assert emulator.ledger.polls == 1


async def test_drain() -> None:
    """`drain` waits for tasks and submissions, or says in time that something is left."""
    async with emulated(Script(plans=Plan(duration=10.0)), max_running=1) as (flux, emulator):
        submits = [asyncio.create_task(flux.submit(REQUEST)) for _ in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises(TimeoutError):
            await flux.drain(timeout=5)
        await flux.drain()

        assert all(submit.done() for submit in submits)
        assert len(emulator.ledger.accepted) == 3
        assert flux.tasks() == ()
        await flux.drain(timeout=0.1)


async def test_opened_and_closed_in_different_tasks() -> None:
    """A bot's set-up hook opens the session, another asyncio task closes it."""
    async with Emulator(Script(plans=Plan(duration=2.0), render=False)) as emulator:
        flux = session_for(emulator)
        await asyncio.create_task(flux.open())
        result = await asyncio.create_task(flux.generate(REQUEST))
        unsettled = await asyncio.create_task(flux.aclose())

        assert result.urls
        assert (unsettled.task_ids, unsettled.refs) == ((), ())


async def test_opened_twice_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of two who open a session at the same time one is refused, so that no half of it is left open."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    async with Emulator() as emulator:
        flux = session_for(emulator, polling=Polling(remember=True))
        outcomes = await asyncio.gather(flux.open(), flux.open(), return_exceptions=True)
        await flux.aclose()

    assert [type(each) for each in outcomes] == [Flux2Session, SessionClosedError]


@pytest.mark.parametrize("after", [0.0, 0.5, 1.5, 2.0])
async def test_closed_while_it_is_opened(after: float) -> None:
    """`aclose` ends an opening at any moment of it: who opens is told, and nothing is left open."""
    memory = Memory(rtt=1.0)
    async with Emulator(Script(render=False)) as emulator:
        before = asyncio.all_tasks()
        flux = session_for(emulator, coordination=memory)
        opening = asyncio.create_task(error_of(flux.open()))
        await asyncio.sleep(after)
        assert isinstance(await error_of(flux.submit(REQUEST)), SessionClosedError)
        closes = await asyncio.gather(*(asyncio.create_task(flux.aclose()) for _ in range(2)))

        assert "while it was being opened" in str(await opening)
        assert closes == [await flux.aclose()] * 2
        assert memory.stores == []
        assert asyncio.all_tasks() == before
        assert isinstance(await error_of(flux.submit(REQUEST)), SessionClosedError)


async def test_closed_in_the_moment_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation that comes too late, or is lost below, leaves no session open either."""
    opened = asyncio.Event()

    async def deaf(*_: object) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await opened.wait()

    monkeypatch.setattr("flux2_async.coordination.client.Sharing.open", deaf)
    async with Emulator(Script(render=False)) as emulator:
        for end in ("closed", "cancelled", "lost"):
            flux = session_for(emulator, coordination=Memory())
            opening = asyncio.create_task(flux.open())
            await asyncio.sleep(1)
            if end != "lost":
                opened.set()
                await asyncio.sleep(0)
            opening.cancel() if end == "cancelled" else await flux.aclose()
            await asyncio.wait([opening])
            opened.clear()

            assert opening.cancelled() or isinstance(opening.exception(), SessionClosedError)
            assert isinstance(await error_of(parts_of(flux).transport.call("GET", "/")), SessionClosedError)


@pytest.mark.parametrize("cancel", [asyncio.timeout, anyio.fail_after])
async def test_a_cancelled_opening_leaves_nothing_open(cancel: Callable[[float], Any]) -> None:
    """Who gives up `open` leaves no connection to those who share the account, and no task, behind."""
    memory = Memory(rtt=1.0)
    async with Emulator(Script(render=False)) as emulator:
        before = asyncio.all_tasks()
        with pytest.raises(TimeoutError):
            async with AsyncExitStack() as stack:
                scope = cancel(0.5)
                await stack.enter_async_context(scope) if cancel is asyncio.timeout else stack.enter_context(scope)
                await session_for(emulator, coordination=memory).open()

        assert memory.stores == []
        assert asyncio.all_tasks() == before


async def test_opening_is_tried_again() -> None:
    """A session that could not be opened can be opened later."""
    memory = Memory(on_failure="fail")
    memory.down = True
    async with Emulator(Script(render=False)) as emulator:
        flux = session_for(emulator, coordination=memory)
        assert isinstance(await error_of(flux.open()), CoordinationError)
        memory.down = False
        async with flux:
            assert (await flux.generate(REQUEST)).urls


async def test_closing_again_gives_the_same() -> None:
    """`aclose` can be called any number of times, also at once, and also without `open`."""
    async with Emulator(Script(plans=Plan(duration=60.0), render=False)) as emulator:
        flux = session_for(emulator)
        assert (await session_for(emulator).aclose()).task_ids == ()
        async with flux:
            task = await flux.submit(REQUEST)
            first, second = await asyncio.gather(flux.aclose(), flux.aclose())
        third = await flux.aclose()

    assert first == second == third
    assert first.task_ids == (task.id,)


async def test_closing_reports_and_logs_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """The ids of unfinished tasks are returned and logged, and their handles say what to do."""
    async with emulated(Script(plans=Plan(duration=60.0))) as (flux, _):
        task = await flux.submit(REQUEST)
        waiting = asyncio.create_task(task.result())
        await asyncio.sleep(1)
        unsettled = await flux.aclose()
        caught = await error_of(waiting)

        assert unsettled.task_ids == (task.id,)
        assert task.id in caplog.text
        assert isinstance(caught, SessionClosedError)
        assert caught.task_id == task.id
        assert "attach" in str(caught)


async def test_a_cancelled_close_still_closes() -> None:
    """Cancelling `aclose` in its grace ends the grace, not the closing."""
    async with Emulator(Script(faults=[Fault("createTask", "hang")], render=False)) as emulator:
        flux = await session_for(emulator).open()
        before = asyncio.all_tasks()
        submitting = asyncio.create_task(flux.submit(REQUEST))
        await asyncio.sleep(1)
        closing = asyncio.create_task(flux.aclose(grace=1000))
        await asyncio.sleep(1)
        closing.cancel()
        await asyncio.wait([closing], timeout=1.0)
        assert isinstance(await error_of(submitting), AmbiguousSubmitError)

        assert closing.cancelled()
        assert {task for task in asyncio.all_tasks() - before if task.get_name().startswith("flux2_async")} == set()
        assert isinstance(await error_of(flux.submit(REQUEST)), SessionClosedError)


async def test_closing_leaves_nothing_behind() -> None:
    """After closing there is no asyncio task, no timer and no socket of the session."""
    async with Emulator(Script(plans=Plan(duration=60.0), render=False)) as emulator:
        before = asyncio.all_tasks()
        flux = session_for(emulator, max_running=2, polling=Polling(interval=0.5))
        async with flux:
            callers = [asyncio.create_task(flux.submit(REQUEST)) for _ in range(4)]
            await asyncio.sleep(3)
        await asyncio.wait(callers)
        await asyncio.sleep(0)
        polls = emulator.ledger.polls
        await asyncio.sleep(100)

        left = [task for task in asyncio.all_tasks() - before if "flux2" in task.get_name()]
        assert left == []
        assert emulator.ledger.polls == polls
        assert [type(caller.exception()) for caller in callers[2:]] == [SessionClosedError] * 2


async def test_the_users_own_error_comes_out_as_itself() -> None:
    """An exception in the body of `async with` is neither wrapped nor replaced."""
    with pytest.raises(KeyError, match="mine"):
        async with emulated(Script(plans=Plan(duration=60.0))) as (flux, _):
            await flux.submit(REQUEST)
            raise KeyError("mine")


async def test_used_before_and_after() -> None:
    """Every method of a session that is not open says so."""
    async with Emulator(Script(render=False)) as emulator:
        flux = session_for(emulator)
        with pytest.raises(SessionClosedError, match="not open"):
            await flux.submit(REQUEST)
        with pytest.raises(SessionClosedError, match="not open"):
            flux.statistics()
        async with flux:
            pass
        for call in (flux.submit(REQUEST), flux.credits(), flux.drain(), flux.upload(b"")):
            with pytest.raises(SessionClosedError, match="closed"):
                await call
        with pytest.raises(SessionClosedError, match="closed"):
            flux.attach("x")
        with pytest.raises(SessionClosedError, match="closed"):
            [done async for done in flux.as_completed([REQUEST])]


async def test_used_from_another_event_loop() -> None:
    """A session that is used in another event loop says so instead of hanging."""
    caught: list[Exception] = []
    async with emulated() as (flux, _):
        task = await flux.submit(REQUEST)

        def elsewhere() -> None:
            async def use() -> None:
                caught.append(await error_of(flux.submit(REQUEST)))
                caught.append(await error_of(flux.credits()))
                caught.append(await error_of(anext(task.updates())))
                caught.append(await error_of(task.result()))

            asyncio.run(use())

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    assert [type(error) for error in caught] == [ConfigurationError] * 4
    assert "another event loop" in str(caught[0])


async def test_two_sessions_of_one_account_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    """A second open session of one account logs one warning; other accounts and closed sessions do not count."""
    async with Emulator(Script(render=False)) as emulator, Emulator(Script(render=False)) as other:
        async with session_for(emulator), session_for(other):
            pass
        async with session_for(emulator):
            assert "second session" not in caplog.text
            async with session_for(emulator):
                pass
            async with session_for(emulator):
                pass

    assert caplog.text.count("second session") == 1


async def test_many_sessions_in_one_process() -> None:
    """Sessions share nothing: each talks to its own service with its own limit."""
    async with Emulator(Script(render=False)) as one, Emulator(Script(render=False)) as two:
        async with session_for(one) as first, session_for(two) as second:
            await asyncio.gather(*(flux.generate(REQUEST) for flux in (first, second) for _ in range(5)))

    assert len(one.ledger.accepted) == len(two.ledger.accepted) == 5


async def test_borrowed_session_stays_open() -> None:
    """The caller's own aiohttp session is used and not closed."""
    async with aiohttp.ClientSession() as http:
        async with emulated(http=http) as (flux, _):
            await flux.generate(REQUEST)
        assert not http.closed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"auth": ("me", "pa55")}, "auth"),
        ({"headers": {"Authorization": "Bearer x"}}, "Authorization"),
        ({"headers": {"X-Api-Key": "x"}}, "X-Api-Key"),
        ({"connector": "unix"}, "UnixConnector"),
    ],
)
async def test_borrowed_session_that_would_tell_secrets(options: dict[str, Any], words: str) -> None:
    """A session whose own credentials would reach hosts of pictures is refused."""
    with warnings.catch_warnings():
        # Deprecated, and still what many sessions are made with.
        warnings.simplefilter("ignore", DeprecationWarning)
        if "connector" in options:
            options = {"connector": aiohttp.UnixConnector("/nowhere")}
        if "auth" in options:
            options = {"auth": aiohttp.BasicAuth(*options["auth"])}
        http = aiohttp.ClientSession(**options)
    async with http:
        caught = await error_of(Flux2Session("key", http=http).open())

    assert isinstance(caught, ConfigurationError)
    assert words in str(caught)
    assert "pa55" not in str(caught)


async def test_harmless_headers_of_a_borrowed_session() -> None:
    """A User-Agent of its own does not disqualify a session."""
    async with aiohttp.ClientSession(headers={"User-Agent": "my-bot/1.0"}) as http:
        async with emulated(http=http) as (flux, _):
            assert await flux.credits() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"api_key": "  \n"}, "APIKLEY_API_KEY"),
        ({"api_key": "one\ntwo"}, "line break"),
        ({"api_key": "'quoted'"}, "api_key: it is in quotes"),
        ({"api_key": "\u201cquoted\u201d"}, "api_key: it is in quotes"),
        ({"api_key": '"'}, "api_key: it is in quotes"),
        ({"api_key": "Bearer abc"}, "without the word Bearer"),
        ({"api_key": b"key"}, "APIKLEY_API_KEY"),
        ({"base_url": "api.apikley.ru"}, "https://api.apikley.ru"),
        ({"base_url": "ftp://api.apikley.ru"}, "base_url"),
        ({"base_url": ""}, "base_url: '' given"),
        ({"base_url": b""}, "base_url: bytes given"),
        ({"base_url": "https://api.example/\ud800"}, r"base_url: 'https://api.example/.ud800' given"),
        ({"upload_url": "nowhere"}, "upload_url"),
        ({"upload_url": ""}, "upload_url: '' given"),
        ({"rate_limit": (20, 10)}, "RateLimit"),
        ({"max_running": 0}, "max_running"),
        ({"max_running": "many"}, "max_running"),
        ({"polling": 2.0}, "Polling"),
        ({"polling": None}, "Polling"),
        ({"timeouts": 5}, "Timeouts"),
        ({"http": "aiohttp"}, "ClientSession"),
    ],
)
def test_unusable_settings(options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot work is refused when the session is made, with words that say what to change."""
    monkeypatch.delenv("APIKLEY_API_KEY", raising=False)
    session: Any = Flux2Session
    with pytest.raises(ConfigurationError, match=words):
        session(**{"api_key": "key"} | options)


async def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key and addresses come from the environment, which is read when the session is opened, each time."""
    flux = Flux2Session()
    assert repr(flux) == "<Flux2Session not open>"
    for url in ("https://api.example", "https://other.example"):
        monkeypatch.setenv("APIKLEY_API_KEY", " env-key\n")
        monkeypatch.setenv("APIKLEY_BASE_URL", f"{url}/")
        async with flux:
            assert repr(flux) == f"<Flux2Session {url} open>"
        assert repr(flux) == f"<Flux2Session {url} closed>"
    monkeypatch.delenv("APIKLEY_API_KEY")
    with pytest.raises(ConfigurationError, match="APIKLEY_API_KEY"):
        await flux.open()
    for variable, value in (("API_KEY", "two words"), ("UPLOAD_URL", "nowhere"), ("BASE_URL", "ftp://api.example")):
        monkeypatch.setenv("APIKLEY_API_KEY", "env-key")
        monkeypatch.setenv(f"APIKLEY_{variable}", value)
        with pytest.raises(ConfigurationError, match=f"^APIKLEY_{variable}: "):
            await flux.open()


# --- Opened again


async def test_a_closed_session_is_opened_again() -> None:
    """It begins anew: no old tasks, statistics from nothing, and a handle of before can be attached."""
    async with Emulator(Script(plans=[Plan(duration=30.0), Plan(duration=1.0)], render=False)) as emulator:
        flux = session_for(emulator)
        async with flux:
            old = await flux.submit(REQUEST)
        for _ in range(3):
            async with flux:
                assert flux.tasks() == ()
                assert flux.statistics().submitted == 0
                assert (await flux.generate(REQUEST)).urls
                assert flux.statistics().submitted == 1
            assert flux.statistics().submitted == 1
        async with flux:
            assert isinstance(await error_of(old.result()), SessionClosedError)
            assert (await flux.attach(old.id).result()).urls
        with pytest.raises(SessionClosedError, match="open it again"):
            await flux.submit(REQUEST)


async def test_only_a_closed_session_is_opened() -> None:
    """An open one says that it is open, and one that is being closed that this is to be waited for."""
    async with Emulator(Script(faults=[Fault("createTask", "hang")], render=False)) as emulator:
        flux = session_for(emulator)
        await flux.open()
        with pytest.raises(SessionClosedError, match="is open already"):
            await flux.open()
        submitting = asyncio.create_task(error_of(flux.submit(REQUEST)))
        await asyncio.sleep(1)
        closing = asyncio.create_task(flux.aclose())
        await asyncio.sleep(1)
        with pytest.raises(SessionClosedError, match="being closed"):
            await flux.open()
        first = await closing
        await submitting
        assert first is await flux.aclose()
        async with flux:
            pass
        assert await flux.aclose() == Unsettled()


async def test_the_limit_does_not_end_with_a_session() -> None:
    """What was sent before the session was closed counts for the limit, and a pause goes on, when it is open again."""
    limit = Limit(2, 10.0)
    async with Emulator(Script(plans=Plan(duration=0.1), limit=limit, render=False)) as emulator:
        flux = session_for(emulator, rate_limit=RateLimit(2, 10.0))
        for _ in range(8):
            async with flux:
                await flux.generate(REQUEST)
        assert emulator.ledger.refused == 0
        assert emulator.ledger.max_in_window(10.0) == 2
        async with flux:
            flux.pause(100.0)
        begun = asyncio.get_running_loop().time()
        async with flux:
            await flux.submit(REQUEST)
        assert asyncio.get_running_loop().time() - begun > 99.0


async def test_keys_do_not_end_with_a_session() -> None:
    """A key stands for its task when the session is open again: finished, unfinished or unclear, it is paid once."""
    plans = [Plan(duration=1.0), Plan(duration=60.0), Plan(duration=1.0)]
    async with Emulator(Script(plans=plans, render=False)) as emulator:
        flux = session_for(emulator)
        async with flux:
            done = await flux.submit(REQUEST, key="done")
            await done
            cut = await flux.submit(REQUEST, key="cut")
            emulator.inject(Fault("createTask", "cut_after"))
            assert isinstance(await error_of(flux.submit(REQUEST, key="unclear", ref="r")), AmbiguousSubmitError)
        for _ in range(2):
            async with flux:
                assert await flux.submit(REQUEST, key="done") is done
                again = await flux.submit(REQUEST, key="cut")
                assert (again.id, again.request) == (cut.id, REQUEST)
                assert again is await flux.submit(REQUEST, key="cut")
                assert flux.tasks() == (again,)
                error = await error_of(flux.submit(REQUEST, key="unclear"))
                assert isinstance(error, AmbiguousSubmitError)
                assert error.ref == "r"
        async with flux:
            assert (await (await flux.submit(REQUEST, key="cut"))).urls
        assert len(emulator.ledger.accepted) == 3


async def test_a_reply_that_was_lost_before_is_found_after() -> None:
    """The callback of an unclear submission tells its task, and frees nothing, also when the session is open again."""
    callbacks = Callbacks("https://app.example/flux2/", secret="the same")
    async with Emulator(Script(plans=Plan(duration=1.0), render=False)) as emulator:
        flux = session_for(emulator, callbacks=callbacks)
        async with flux:
            emulator.inject(Fault("createTask", "cut_after"))
            assert isinstance(await error_of(flux.submit(REQUEST, key="k", ref="r")), AmbiguousSubmitError)
        async with flux:
            [task_id] = emulator.ledger.accepted
            await flux.deliver("r", Callback(task_id, None))
            task = await flux.recover("r", timeout=5)
            assert task.id == task_id
            assert await flux.submit(REQUEST, key="k") is task
            assert (await task).urls


@pytest.mark.real_time
def test_opened_again_in_another_event_loop() -> None:
    """Each `asyncio.run`, and each client of a test, has an event loop of its own."""

    async def use() -> float:
        async with flux:
            return await flux.credits()

    with running_emulator(Script(render=False, credits=7.0)) as emulator:
        flux = Flux2Session(emulator.api_key, base_url=emulator.base_url)
        assert [asyncio.run(use()) for _ in range(3)] == [7.0] * 3


async def test_max_wait_is_named_as_it_was_given() -> None:
    """However much of it a slot, or the submission under the same key, has used up before the permit is wanted."""
    async with emulated(rate_limit=RateLimit(1, 60.0), max_running=1) as (flux, _):
        await flux.submit(REQUEST)
        behind_a_slot = asyncio.create_task(error_of(flux.submit(REQUEST, max_wait=7.25)))
        first = asyncio.create_task(error_of(flux.submit(REQUEST, key="k", max_wait=5)))
        await asyncio.sleep(1.0)
        behind_another = asyncio.create_task(error_of(flux.submit(REQUEST, key="k", max_wait=8.5)))

        for caller, given in ((first, "5"), (behind_a_slot, "7.25"), (behind_another, "8.5")):
            error = await caller
            assert isinstance(error, RateLimitedError)
            assert f"max_wait={given} s" in str(error)


@pytest.mark.parametrize(
    "limits", [{"rate_limit": RateLimit(1, 60.0)}, {"max_running": 1}, {}], ids=["limit", "slot", "picture"]
)
async def test_a_timeout_is_named_as_it_was_given(limits: dict[str, Any]) -> None:
    """`generate` tells of its own `timeout`, all of it, whatever of it the submission had used up."""
    async with emulated(Script(plans=Plan(duration=60.0)), **limits) as (flux, _):
        if limits:
            await flux.submit(REQUEST)
        error = await error_of(flux.generate(REQUEST, timeout=7.25))

    kind, words = (RateLimitedError, "within timeout=7.25;") if limits else (TaskTimeoutError, "after 7.25 s;")
    assert isinstance(error, kind)
    assert words in str(error)
    assert "max_wait" not in str(error)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"request": "a red kettle"}, "request: str given"),
        ({"key": ""}, "key"),
        ({"key": 7}, "key"),
        ({"max_wait": -1}, "max_wait"),
        ({"max_wait": "soon"}, "max_wait"),
        ({"max_wait": float("nan")}, "max_wait"),
        ({"priority": 1.5}, "priority"),
        ({"ref": "with blank"}, "ref"),
        ({"ref": ""}, "ref"),
    ],
)
async def test_unusable_arguments_of_submit(arguments: dict[str, Any], words: str) -> None:
    """A wrong argument is told before anything is sent."""
    async with emulated() as (flux, emulator):
        options: dict[str, Any] = {"request": REQUEST} | arguments
        caught = await error_of(flux.submit(**options))

        assert isinstance(caught, InvalidRequestError)
        assert words in str(caught)
        assert emulator.ledger.requests == []


@pytest.mark.parametrize("task_id", ["", "a b", None, 7, "x" * 257])
async def test_unusable_task_ids(task_id: Any) -> None:
    """What cannot be a task id is refused."""
    async with emulated() as (flux, _):
        with pytest.raises(InvalidRequestError, match="task_id"):
            flux.attach(task_id)
        assert isinstance(await error_of(flux.fetch_record(task_id)), InvalidRequestError)


async def test_no_secret_anywhere(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Neither log nor error nor repr shows the key or the prompt, on any path that goes wrong."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "asyncio")
    secret, prompt = "s3cr3t-key-of-the-account", "a very private prompt"
    request = ImageToImage(prompt, images=[PHOTO])
    errors: list[Exception] = []
    kinds: list[dict[str, Any]] = [
        *({"kind": "refuse", "code": code, "message": f"no: {code}"} for code in (400, 401, 402, 404, 422, 433, 455)),
        *({"kind": "refuse", "code": code} for code in (500, 501, 505, 999)),
        *(
            {"kind": kind}
            for kind in ("html", "broken_json", "cut_before", "cut_after", "cut_body", "hang", "redirect")
        ),
    ]
    for endpoint in ("createTask", "recordInfo", "credit", "download-url", "upload", "file"):
        for options in kinds:
            script = Script(plans=Plan(duration=1), faults=[Fault(endpoint, times=None, **options)], render=False)
            async with Emulator(script, api_key=secret) as emulator:
                flux = Flux2Session(
                    secret,
                    base_url=emulator.base_url,
                    polling=Polling(interval=5),
                    timeouts=Timeouts(connect=1, submit=2, record=2, upload=2, download=2),
                    rate_limit=RateLimit(1000, 1),
                )
                async with flux:
                    errors += await _errors_of_everything(flux, request, tmp_path)
    texts = [caplog.text, *(repr(error) + str(error) + str(vars(error)) for error in errors)]
    texts += [repr(Flux2Session(secret)), repr(request)]
    chained = [error.__cause__ or error.__context__ for error in errors]

    assert len(errors) > 100
    assert len({type(error) for error in errors}) > 12
    assert all(isinstance(error, Flux2Error) for error in errors)
    assert not [text for text in texts if secret in text or prompt in text]
    assert not [error for error in chained if isinstance(error, aiohttp.ClientError)]


async def _errors_of_everything(flux: Flux2Session, request: ImageToImage, folder: Path) -> list[Exception]:
    async def saved() -> None:
        await flux.download(await flux.generate(request, timeout=200), folder)

    calls = (saved(), flux.upload(PHOTO), flux.download_url("https://files.example/a.png"), flux.credits())
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    return [outcome for outcome in outcomes if isinstance(outcome, Exception)]


async def test_polls_of_a_burst_are_spread() -> None:
    """Tasks made in one burst are not all looked at in the same moment."""
    async with emulated(Script(plans=Plan(duration=60.0)), polling=Polling()) as (flux, emulator):
        tasks = await asyncio.gather(*(flux.submit(REQUEST) for _ in range(20)))
        await until(lambda: all(emulator.ledger.polls_of(task.id) for task in tasks))
        first = [emulator.ledger.poll_times[task.id][0] for task in tasks]

        assert max(first) - min(first) > 0.1


async def test_refused_download_url() -> None:
    """A link to somebody else's file is refused by the service, in its own words."""
    async with emulated() as (flux, _):
        assert isinstance(await error_of(flux.download_url("https://elsewhere.example/a.png")), ApiError)


async def test_closing_again_after_a_cancelled_close() -> None:
    """Who closes after a close that was cancelled gets its answer, unclear submissions included."""
    async with Emulator(Script(faults=[Fault("createTask", "hang")], render=False)) as emulator:
        async with session_for(emulator) as flux:
            submitting = asyncio.create_task(flux.submit(REQUEST, ref="mine"))
            await asyncio.sleep(1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(flux.aclose(grace=1000), 1)
            unsettled = await flux.aclose()
            caught = await error_of(submitting)

    assert isinstance(caught, AmbiguousSubmitError)
    assert unsettled.refs == ("mine",)


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("who", ["caller", "closing"])
async def test_closing_again_after_a_close_that_was_cancelled_at_once(
    steps: int, who: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However early a close is cancelled, by its caller or whoever ends all tasks: the next one tells what is left."""
    async with Emulator(Script(faults=[Fault("createTask", "hang")], render=False)) as emulator:
        flux = session_for(emulator)
        await flux.open()
        submitting = asyncio.create_task(error_of(flux.submit(REQUEST, ref="mine")))
        await asyncio.sleep(1)
        closing = asyncio.create_task(flux.aclose(grace=1000))
        for _ in range(steps):
            await asyncio.sleep(0)
        named = [task for task in asyncio.all_tasks() if task.get_name() == "flux2_async close"]
        for task in named if who == "closing" and named else [closing]:
            task.cancel()
        await asyncio.wait([closing])
        unsettled = await flux.aclose(grace=0.0)

        assert isinstance(await submitting, AmbiguousSubmitError)
        assert unsettled.refs == ("mine",)
        assert "may have been accepted: mine" in caplog.text
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("flux2_async")]


async def test_a_cancelled_scope_leaves_the_grace() -> None:
    """A scope of anyio, which cancels every wait within it, does not cut off a POST under way."""
    async with Emulator(Script(latency=2.0, render=False)) as emulator:
        flux = session_for(emulator)
        with anyio.move_on_after(1):
            async with flux:
                await flux.submit(REQUEST)
        unsettled = await flux.aclose()

        assert len(emulator.ledger.accepted) == 1
        assert list(unsettled.task_ids) == emulator.ledger.accepted
        assert unsettled.refs == ()


def test_closed_from_another_event_loop() -> None:
    """`aclose` in another event loop says so, and the session can still be closed in its own."""
    flux = Flux2Session("key", base_url="http://127.0.0.1:1")
    with asyncio.Runner() as runner:
        runner.run(flux.open())
        with asyncio.Runner() as other:
            caught = other.run(error_of(flux.aclose()))
        unsettled = runner.run(flux.aclose())

    assert isinstance(caught, ConfigurationError)
    assert "another event loop" in str(caught)
    assert unsettled.task_ids == ()


def run_and_leave_open(flux: Flux2Session, use: Callable[[], Awaitable[T]]) -> T:
    """Open it in an event loop that ends before it is closed, as a second `asyncio.run` or pytest-asyncio find it."""

    async def open_and_use() -> T:
        await flux.open()
        return await use()

    return asyncio.run(open_and_use())


@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("closes", [False, True])
def test_left_open_by_an_event_loop_that_ended(closes: bool, caplog: pytest.LogCaptureFixture) -> None:
    """It is opened, or closed, in the next loop: what was left is named, and its key stands for the same task."""
    with running_emulator(Script(plans=Plan(duration=0.1), render=False)) as emulator:
        flux = session_for(emulator, polling=Polling(interval=0.05))
        left = run_and_leave_open(flux, lambda: flux.submit(REQUEST, key="order-1"))
        with pytest.raises(SessionClosedError, match="open it again"):
            asyncio.run(flux.submit(REQUEST))
        if closes:
            assert asyncio.run(flux.aclose()) == Unsettled(task_ids=(left.id,))

        async def again() -> None:
            async with flux:
                task = await flux.submit(REQUEST, key="order-1")
                assert task.id == left.id
                assert (await task.result(30)).urls
                assert isinstance(await error_of(left.result()), SessionClosedError)
                assert (await flux.generate(REQUEST, timeout=30)).urls

        asyncio.run(again())
        assert asyncio.run(flux.aclose()) == Unsettled()
        gc.collect()
        assert len(emulator.ledger.accepted) == 2

    assert f"by `flux.attach(task_id)` in a new session: {left.id}" in caplog.text
    assert "second session" not in caplog.text


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("keeps", [False, True], ids=["dropped in its loop", "kept until its loop has ended"])
def test_a_session_that_is_forgotten_names_its_tasks(keeps: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Their ids are what their pictures can be had by; a session that was closed, or has none, says nothing."""
    with running_emulator(Script(plans=Plan(duration=math.inf), render=False)) as emulator:
        kept = [session_for(emulator), session_for(emulator), session_for(emulator)]

        async def main() -> str:
            # Each is dropped while its loop runs, or else after it has ended.
            forgotten, idle, closed = kept if keeps else (kept.pop(), kept.pop(), kept.pop())
            for each in (forgotten, idle, closed):
                await each.open()
            await closed.submit(REQUEST)
            await closed.aclose()
            caplog.clear()
            return (await forgotten.submit(REQUEST)).id

        task_id = asyncio.run(main())
        kept.clear()
        gc.collect()
        why = "the event loop was closed" if keeps else "a session was not closed, and nothing refers to it any more"
        what = "tasks not finished, to be had by `flux.attach(task_id)` in a new session"
        assert [each.getMessage() for each in caplog.records if each.name == "flux2_async"] == [
            f"{why}; {what}: {task_id}"
        ]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_post_that_the_end_of_a_program_cuts_off_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """`asyncio.run` cancels everybody who could be told that it may have been accepted."""
    with running_emulator(Script(faults=[Fault("createTask", "hang")], render=False)) as emulator:

        async def main() -> None:
            flux = session_for(emulator)
            await flux.open()
            sent.append(flux.enqueue(REQUEST))
            await until(lambda: emulator.ledger.requests)
            sent.append(flux.enqueue(REQUEST))
            await asyncio.sleep(0)

        sent: list[SubmissionHandle] = []
        asyncio.run(main())
        assert f"the submission was cancelled; submission that may have been accepted: {sent[0].ref}" in caplog.messages
        assert "asyncio.run` ends before `aclose`; nothing was sent" in str(sent[1].error)
        gc.collect()


@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_post_that_an_event_loop_left_behind() -> None:
    """One that may have been accepted stays unclear under its key; one that waited frees its key and its memory."""
    with running_emulator(Script(faults=[Fault("createTask", "hang")], render=False)) as emulator:
        flux = session_for(emulator, rate_limit=RateLimit(1, 0.5), polling=Polling(interval=0.05))

        async def leave() -> None:
            await flux.open()
            submitting.extend(asyncio.create_task(flux.submit(REQUEST, key=key)) for key in ("sent", "waits"))
            await until(lambda: emulator.ledger.requests)

        submitting: list[asyncio.Task[Any]] = []
        # Not `asyncio.run`, which would cancel what is under way and wait for that.
        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave())
        loop.close()

        async def again() -> None:
            async with flux:
                assert isinstance(await error_of(flux.submit(REQUEST, key="sent")), AmbiguousSubmitError)
                assert (await flux.submit(REQUEST, key="waits")).id

        asyncio.run(again())
        while submitting:
            # Nobody will ever run them.
            submitting.pop()._log_destroy_pending = False  # type: ignore[attr-defined]
        gc.collect()
        kept = [each for each in gc.get_objects() if isinstance(each, asyncio.Task) and not each.done()]
        # Programs that other tests import have sessions of their own, which stay open.
        kept = [each for each in kept if each.get_loop() is loop]
        # What was collected, and stands in a line of the log because of that, has no frame any more.
        kept = [each for each in kept if getattr(each.get_coro(), "cr_frame", None) is not None]
        assert [each for each in kept if each.get_name().startswith("flux2_async")] == []
        assert len(emulator.ledger.requests) == 2


@pytest.mark.parametrize("endpoint", ["file", "upload", "credit"])
async def test_calls_under_way_while_closing(endpoint: Any, tmp_path: Path) -> None:
    """A download, an upload or a look that a closing interrupts ends as such, at most a pause later."""
    async with Emulator(Script(plans=Plan(duration=1.0), render=False)) as emulator:
        async with session_for(emulator) as flux:
            result = await flux.generate(REQUEST)
            emulator.inject(Fault(endpoint, "hang"))
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "file": lambda: flux.download(result, tmp_path),
                "upload": lambda: flux.upload(PHOTO),
                "credit": flux.credits,
            }
            ending = asyncio.create_task(error_of(calls[endpoint]()))
            await asyncio.sleep(1)
        begun = asyncio.get_running_loop().time()
        caught = await ending

        assert isinstance(caught, SessionClosedError)
        assert asyncio.get_running_loop().time() - begun < 1


class OpaqueHandle:
    """A timer that can be cancelled and tells nothing."""

    def __init__(self, handle: asyncio.TimerHandle) -> None:
        self.cancel = handle.cancel


class OpaqueLoop(VirtualClockLoop):
    def call_at(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]  # passed on as it comes
        return OpaqueHandle(super().call_at(*args, **options))


def test_timers_that_do_not_tell_their_time() -> None:
    """Sessions work on loops whose timers do not know when they are due, as some of uvloop's do not."""

    async def use() -> None:
        async with emulated(rate_limit=RateLimit(2, 1.0)) as (flux, _):
            await asyncio.gather(*(flux.generate(REQUEST) for _ in range(6)))

    with asyncio.Runner(loop_factory=OpaqueLoop) as runner:
        runner.run(use())


async def test_the_timeout_of_generate_covers_all_of_it() -> None:
    """Waiting for a permit and for the picture share one time-out."""
    script = Script(plans=Plan(duration=60.0), latency=3.0)
    async with emulated(script, rate_limit=RateLimit(1, 30.0)) as (flux, emulator):
        loop = asyncio.get_running_loop()
        begun = loop.time()
        assert isinstance(await error_of(flux.generate(REQUEST, timeout=10)), TaskTimeoutError)
        assert loop.time() - begun == pytest.approx(10)
        assert isinstance(await error_of(flux.generate(REQUEST, timeout=5)), RateLimitedError)
        assert loop.time() - begun == pytest.approx(15)

        assert len(emulator.ledger.requests) == 1


@pytest.mark.parametrize("timeout", [-1, "5", float("nan"), True])
async def test_an_unusable_timeout_of_generate_is_named_as_it_was_given(timeout: Any) -> None:
    """The error speaks of `timeout`, not of the wait that it becomes, and nothing is sent."""
    async with emulated() as (flux, emulator):
        error = await error_of(flux.generate(REQUEST, timeout=timeout))

        assert isinstance(error, InvalidRequestError)
        assert str(error) == f"timeout: {timeout!r} given, it must be a number of seconds of 0 or more, or None"
        assert emulator.ledger.calls.total() == 0


async def test_half_the_believed_limit_costs_one_burst_of_refusals() -> None:
    """100 tasks at once, 40 per period believed, 20 allowed: 20 refused and one that asks for more, near optimum."""
    script = Script(plans=Plan(duration=0.1), limit=Limit(20, 10.0, "sliding"), credits=1e6)
    async with emulated(script, rate_limit=RateLimit(40, 10.0), max_running=None) as (flux, emulator):
        begun = asyncio.get_running_loop().time()
        await asyncio.gather(*(flux.submit(REQUEST) for _ in range(100)))
        seconds = asyncio.get_running_loop().time() - begun

        assert emulator.ledger.refused == 21
        assert len(emulator.ledger.accepted) == 100
        assert 40 <= seconds <= 50
