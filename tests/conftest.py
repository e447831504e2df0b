"""Every asynchronous test runs on virtual time; a module that needs the real clock asks for `real_time`."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from hypothesis import HealthCheck, find, settings
from hypothesis.strategies import none
from programs import at_the_end, for_want_of_a_program, missing_packages_skip, package
from virtual_time import VirtualClockLoop

pytest_plugins = ["time_limits"]

LONGEST_ID = 100

if sys.dont_write_bytecode:
    # Where none is to lie beside the sources it is kept apart, for the many processes that the tests start: compiling
    # all that the command needs takes each of them as long as running it.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parent.parent / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Who is started in the background by a shell ignores SIGINT, and no Ctrl-C could be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


def refuse_to_fork() -> int:
    """Fail the test that forks; a loop that starts another program, as uvloop does by forking, is let."""
    raise AssertionError("fork in a fresh interpreter (fresh_interpreter.py): a process of pytest has threads")


os.fork = refuse_to_fork


def keep_the_policy(policy: asyncio.AbstractEventLoopPolicy | None) -> None:
    """Let no import change the loop of the tests that follow: old versions of aiogram make uvloop everybody's."""
    del policy


asyncio.set_event_loop_policy = keep_the_policy

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# A change is judged by its own faults, not by the luck of its examples.
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    if request.node.get_closest_marker("real_time"):
        return "asyncio", {}
    return "asyncio", {"loop_factory": VirtualClockLoop}


@pytest.fixture(autouse=True)
def clock_waits_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The virtual clock does not jump while a thread of anyio or of a pool is busy for its loop."""
    run_sync: Callable[..., Awaitable[Any]] = anyio.to_thread.run_sync
    wrap_future: Callable[..., asyncio.Future[Any]] = asyncio.wrap_future

    async def counted(*args: Any, **options: Any) -> Any:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualClockLoop):
            return await run_sync(*args, **options)
        with loop.waiting_for_thread():
            return await run_sync(*args, **options)

    def wrapped(*args: Any, **options: Any) -> asyncio.Future[Any]:
        future = wrap_future(*args, **options)
        if isinstance(loop := future.get_loop(), VirtualClockLoop):
            loop.wait_for(future)
        return future

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    monkeypatch.setattr(asyncio, "wrap_future", wrapped)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    with missing_packages_skip():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    with missing_packages_skip():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip a module that imports at its head what is not installed; in CI if this run is to do without."""
    report = yield
    # A module that `--last-failed` leaves out has none.
    call: pytest.CallInfo[Any] | None = getattr(report, "call", None)
    if call is not None and call.excinfo and isinstance(error := call.excinfo.value.__cause__, ModuleNotFoundError):
        try:
            package(error.name or "")
        except pytest.skip.Exception as skip:
            if not os.environ.get("CI") or for_want_of_a_program(str(skip)):
                report.outcome, report.longrepr = "skipped", (str(collector.path), 1, f"Skipped: {skip}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skip is a failure, unless it is for want of a program that this run is to do without."""
    report = yield
    if os.environ.get("CI") and report.skipped and not for_want_of_a_program(str(report.longrepr)):
        report.outcome = "failed"
    return report


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a long text by its beginning: each report of a test carries its whole id, between processes as well."""
    if isinstance(val, str | bytes) and len(val) > LONGEST_ID:
        return f"{val[:LONGEST_ID]!r}...{len(val)}"
    return None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while modules are imported: nearly all that they make stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Look for garbage seldom, and not among what the modules of all tests hold, of which it would be most."""
    # It looks for who holds its random numbers when it first runs, and would find nobody among what is frozen.
    find(none(), lambda _: True, settings=settings(max_examples=1, database=None))
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_unconfigure() -> None:
    at_the_end.close()


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """Collect what an event loop left behind within the test that left it, and not in a later one.

    Python may collect it at any time, and what its coroutines raise then, in a loop that was closed, is kept by pytest
    with all their frames until the test has ended.
    """
    yield
    gc.collect()
