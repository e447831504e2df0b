"""The pytest plugin, in a pytest of its own where it matters what the user's run looks like."""

import asyncio
import subprocess
import sys
import threading

import aiohttp
import pytest
from documents import recipe
from file_host import picture

import flux2_async
from flux2_async import Flux2Session, ImageResult, Polling, TextToImage
from flux2_async.emulator import Fault, Limit, Plan, Script
from flux2_async.errors import ContentModeratedError, TransportError
from flux2_async.testing import RunningEmulator, running_emulator

pytest_plugins = ["pytester"]

REQUEST = TextToImage("a red kettle on a slate worktop")
OFTEN = Polling(interval=0.1)


async def kettle() -> ImageResult:
    async with Flux2Session(polling=OFTEN) as flux:
        return await flux.generate(REQUEST, timeout=120)


@pytest.mark.real_time
async def test_a_session_finds_the_emulator(flux2_emulator: RunningEmulator) -> None:
    """A session that was told nothing talks to the emulator, uploads included."""
    async with Flux2Session(polling=OFTEN) as flux:
        result = await flux.generate(REQUEST)
        uploaded = await flux.upload(picture(100))

        assert [result.task_id] == flux2_emulator.ledger.accepted
        assert result.urls == flux2_emulator.task(result.task_id).result_urls
        assert uploaded.url.startswith(flux2_emulator.base_url)


def test_a_synchronous_test(flux2_emulator: RunningEmulator) -> None:
    """A test without an event loop may start one, or several."""
    results = [asyncio.run(kettle()) for _ in range(2)]

    assert [result.task_id for result in results] == flux2_emulator.ledger.accepted


@pytest.mark.flux2_script(Script(plans=Plan(outcome="moderated", duration=0), render=False))
def test_the_marker_scripts(flux2_emulator: RunningEmulator) -> None:
    """The marker's script is what happens."""
    with pytest.raises(ContentModeratedError):
        asyncio.run(kettle())
    assert flux2_emulator.ledger.charged == 0


SHARED = Script(plans=Plan(duration=0), limit=Limit(20, 10.0))


@pytest.mark.flux2_script(SHARED)
def test_a_script_is_copied(flux2_emulator: RunningEmulator) -> None:
    """What a test changes in its script changes nothing for the next test with the same script."""
    flux2_emulator.script.plans = Plan(outcome="fail", duration=0)
    flux2_emulator.script.faults.append(Fault("credit", "html"))

    assert Script(plans=Plan(duration=0), limit=Limit(20, 10.0)) == SHARED


@pytest.mark.real_time
@pytest.mark.flux2_script(Script(plans=Plan(duration=3600.0), render=False))
async def test_the_emulator_is_steered_from_the_test(flux2_emulator: RunningEmulator) -> None:
    """Faults and their end, the end of a task and an outage are ordered from the test's own event loop."""
    async with Flux2Session(polling=OFTEN) as flux:
        flux2_emulator.inject(Fault("credit", "html", times=None))
        flux2_emulator.clear_faults()
        assert await flux.credits() > 0
        task = await flux.submit(REQUEST)
        waiting = flux2_emulator.task(task.id)
        flux2_emulator.stop()
        with pytest.raises(TransportError):
            await flux.fetch_record(task.id)
        flux2_emulator.start()
        flux2_emulator.finish(task.id)
        result = await task.result(timeout=120)

        assert waiting.state != flux2_emulator.task(task.id).state == "success"
        assert result.urls == waiting.result_urls
        with pytest.raises(KeyError):
            flux2_emulator.finish("unknown")
        with pytest.raises(RuntimeError):
            flux2_emulator.start()


def test_the_ledger_is_a_snapshot(flux2_emulator: RunningEmulator) -> None:
    """A ledger that was taken stays as it was, so that it can be read while the emulator goes on."""
    before = flux2_emulator.ledger
    asyncio.run(kettle())

    assert (before.accepted, before.calls, before.poll_times) == ([], {}, {})
    assert flux2_emulator.ledger.calls["createTask"] == 1


def test_nothing_is_left() -> None:
    """After use the thread is gone, the port is closed, and the environment was never touched."""
    threads = {*threading.enumerate()}
    with running_emulator(Script()) as emulator:
        assert repr(emulator) == f"<RunningEmulator {emulator.base_url}>"
        assert len({*threading.enumerate()} - threads) == 1

    assert {*threading.enumerate()} <= threads
    with pytest.raises(aiohttp.ClientConnectorError):
        asyncio.run(ask(emulator.base_url))


async def ask(url: str) -> None:
    async with aiohttp.ClientSession() as http, http.get(url):
        pass


OTHER_WAYS = """
    import asyncio
    import os

    import pytest

    from flux2_async import Flux2Session, Polling, TaskFailedError, TextToImage
    from flux2_async.emulator import Plan, Script


    async def kettle():
        async with Flux2Session(polling=Polling(interval=0.05)) as flux:
            return await flux.generate(TextToImage("a red kettle"))


    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_anyio(flux2_emulator, anyio_backend):
        assert flux2_emulator.ledger.accepted == []
        assert [(await kettle()).task_id] == flux2_emulator.ledger.accepted


    @pytest.mark.asyncio
    async def test_pytest_asyncio(flux2_emulator):
        assert flux2_emulator.ledger.accepted == []
        assert [(await kettle()).task_id] == flux2_emulator.ledger.accepted


    def test_environment_is_restored():
        assert not {name for name in os.environ if name.startswith("APIKLEY_")}


    class TestOverridden:
        @pytest.fixture
        def flux2_script(self):
            return Script(plans=Plan(outcome="fail", duration=0))

        def test_fails(self, flux2_emulator):
            with pytest.raises(TaskFailedError):
                asyncio.run(kettle())


    @pytest.mark.flux2_script(plans=Plan())
    def test_marker_is_misused(flux2_emulator):
        pass
"""

WITHOUT_PILLOW = """
    import pytest

    from flux2_async.emulator import Script


    def test_draws(flux2_emulator):
        pass


    @pytest.mark.flux2_script(Script(render=False))
    def test_draws_nothing(flux2_emulator):
        assert flux2_emulator.base_url
"""

STRICT = """
    [pytest]
    # What this project's own tests use besides takes seconds to import.
    addopts = --strict-markers -ra -p no:schemathesis -p no:hypothesispytest
    filterwarnings = error
    asyncio_default_fixture_loop_scope = function
"""


@pytest.fixture
def user(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder of a user who is strict about markers and warnings."""
    for name in ("APIKLEY_API_KEY", "APIKLEY_BASE_URL", "APIKLEY_UPLOAD_URL", "CI"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini(STRICT)
    return pytester


def test_in_a_run_of_a_user(user: pytest.Pytester) -> None:
    """It works with anyio's plugin, pytest-asyncio and an overridden script; the recipe's tests are tests."""
    user.makepyfile(test_ways=OTHER_WAYS, test_readme=recipe("testing").read_text())
    result = user.runpytest_subprocess()

    result.assert_outcomes(passed=4 + 2, errors=1)
    result.stdout.fnmatch_lines(["*the marker flux2_script takes one flux2_async.emulator.Script"])


def test_without_pillow(user: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra a test is skipped and the reason says what to install, unless nothing is to be drawn."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "PIL.Image", raising=False)
    user.makepyfile(WITHOUT_PILLOW)
    # In this process pytest has loaded other plugins already, in its own way.
    result = user.runpytest_inprocess("--disable-plugin-autoload", "-p", "flux2_async", "-p", "pytest_asyncio.plugin")

    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(['SKIPPED*pip install "flux2-async?emulator?"*'])


def test_loading_costs_nothing() -> None:
    """What pytest loads in every run imports neither the library nor aiohttp, Pillow or the emulator."""
    code = "import sys, flux2_async.testing; print(*(module.__name__ for module in sys.modules.values()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  our own
    loaded = set(done.stdout.split())

    assert "flux2_async.testing" in loaded
    assert {name for name in loaded if name.startswith("flux2_async")} == {"flux2_async", "flux2_async.testing"}
    assert not {"PIL", "aiohttp", "attrs", "cattrs"} & loaded


def test_a_session_loads_only_what_it_needs() -> None:
    """What serves callbacks, several processes, a memory, files or a broken record is loaded by those who meet it."""
    # Coverage, where it watches, has loaded some before.
    code = "import sys; before = {*sys.modules}; from flux2_async import Flux2Session; print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  our own
    loaded = set(done.stdout.split())

    assert "flux2_async.session.session" in loaded
    others = (
        "session.callback_inbox", "session.remembered", "coordination.client", "coordination.contract", "webhooks",
        "_http.uploads", "_http.downloads", "_http.file_transport", "_protocol.file_types", "session.as_completed",
        "session.parts", "session.enqueued", "session.submission", "tasks.watcher", "tasks.handle", "models.records",
        "models.callbacks", "models.statistics", "models.submission_state", "_limiter.permit", "session.lifecycle",
        "session.options", "tasks.observers", "_http.credentials", "models.service",
    )  # fmt: skip
    assert not {f"flux2_async.{name}" for name in others} & loaded
    assert not {"cattrs", "importlib.metadata", "sqlite3"} & loaded


OPENED_AND_CLOSED = """
import asyncio, sys, flux2_async
async def main():
    async with flux2_async.Flux2Session("key", base_url="http://127.0.0.1:1"):
        pass
asyncio.run(main())
print(*sys.modules)
"""


def test_a_session_that_polls_does_not_start_anyio() -> None:
    """What runs anyio's scopes is loaded by files and by users of anyio, not by the closing of a session."""
    done = subprocess.run([sys.executable, "-c", OPENED_AND_CLOSED], capture_output=True, text=True, check=True)  # noqa: S603  our own

    assert "anyio._backends._asyncio" not in done.stdout.split()


def test_every_public_name_is_there() -> None:
    """Names are imported when they are first used, and all of them can be."""
    code = "import flux2_async as f; assert {*f.__all__} <= {*dir(f)}; print(*(n for n in f.__all__ if hasattr(f, n)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  our own

    assert done.stdout.split() == flux2_async.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        flux2_async.nothing  # noqa: B018
