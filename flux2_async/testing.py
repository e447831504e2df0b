"""pytest plugin for users' own tests: the fixture `flux2_emulator`, the service on loopback.

    @pytest.mark.flux2_script(Script(plans=Plan(outcome="moderated")))
    def test_refused_pictures_are_explained(client, flux2_emulator):
        ...  # the program under test makes its Flux2Session() as always
        assert flux2_emulator.ledger.charged == 0

The emulator lives in a thread with an event loop of its own. So it serves synchronous tests, tests of pytest-asyncio
and of anyio, and programs that a test starts with a loop of their own or as a process. Its time is real time.

pytest loads this module in every run where the library is installed: it imports nothing before the fixture is used.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import flux2_async

if TYPE_CHECKING:
    # Imported by annotations alone, see above.
    from anyio.from_thread import BlockingPortal

__all__ = ["RunningEmulator", "flux2_emulator", "flux2_script", "running_emulator"]

MARKER = "flux2_script(script): what the service of the fixture flux2_emulator does in this test"
MISSING = 'the emulator draws with Pillow: pip install "flux2-async[emulator]", or use Script(render=False)'

# Seconds that a task takes where a test says nothing: short, because a test waits for it.
DURATION = 0.1


class RunningEmulator:
    """An `Emulator` that may be used from every thread, in and outside of event loops; nothing is awaited.

    Made by `running_emulator` and the fixture `flux2_emulator`.

    Attributes:
        api_key: The only key that it accepts.
        base_url: The address of the API.
        upload_url: The address of the upload calls.
        script: What it does; fields may be set while it runs.
    """

    def __init__(self, emulator: "flux2_async.emulator.Emulator", portal: "BlockingPortal") -> None:
        self._emulator = emulator
        self._portal = portal
        self.api_key: str = emulator.api_key
        self.base_url: str = emulator.base_url
        self.upload_url: str = emulator.upload_url
        self.script: flux2_async.emulator.Script = emulator.script

    def __repr__(self) -> str:
        return f"<RunningEmulator {self.base_url}>"

    @property
    def ledger(self) -> "flux2_async.emulator.Ledger":
        """What it has seen, taken and charged up to now: a copy, which later calls do not change."""
        return self._portal.call(copy.deepcopy, self._emulator.ledger)

    def inject(self, fault: "flux2_async.emulator.Fault") -> None:
        """Add a fault; see `Emulator.inject`.

        Args:
            fault: What goes wrong.
        """
        self._portal.call(self._emulator.inject, fault)

    def clear_faults(self) -> None:
        """End all faults; see `Emulator.clear_faults`."""
        self._portal.call(self._emulator.clear_faults)

    def finish(self, task_id: str) -> None:
        """End a task now; see `Emulator.finish`.

        Args:
            task_id: The task.

        Raises:
            KeyError: Not a task of this emulator.
        """
        self._portal.call(self._emulator.finish, task_id)

    def task(self, task_id: str) -> "flux2_async.emulator.TaskView":
        """A task as it is now.

        Args:
            task_id: The task.

        Returns:
            A snapshot, which later events do not change.

        Raises:
            KeyError: Not a task of this emulator.
        """
        return self._portal.call(self._emulator.task, task_id)

    def stop(self) -> None:
        """Begin an outage: connections are cut and refused; tasks, files and ledger stay."""
        self._portal.call(self._emulator.stop)

    def start(self) -> None:
        """End the outage, at the same address.

        Raises:
            RuntimeError: It runs already.
        """
        self._portal.call(self._emulator.start)


@contextmanager
def running_emulator(script: "flux2_async.emulator.Script") -> Iterator[RunningEmulator]:
    """Run an emulator in a thread of its own; what the fixture does, for fixtures of another scope.

    Args:
        script: What the service does. It is copied, so that one may serve several tests.

    Yields:
        The emulator; the environment is left alone.
    """
    from anyio.from_thread import start_blocking_portal  # noqa: PLC0415  see the top of the module

    from flux2_async.emulator import Emulator  # noqa: PLC0415  likewise

    with start_blocking_portal(name="flux2_emulator") as portal:
        emulator = Emulator(copy.deepcopy(script))
        portal.call(emulator.start)
        try:
            yield RunningEmulator(emulator, portal)
        finally:
            portal.call(emulator.stop)


@pytest.fixture
def flux2_script(request: pytest.FixtureRequest) -> "flux2_async.emulator.Script":
    """What the service does: the marker `flux2_script`, else every task succeeds after 0.1 s. Override it at will."""
    from flux2_async.emulator import Plan, Script  # noqa: PLC0415  see the top of the module

    marker = request.node.get_closest_marker("flux2_script")
    if marker is None:
        return Script(plans=Plan(duration=DURATION))
    if marker.kwargs or len(marker.args) != 1 or not isinstance(marker.args[0], Script):
        pytest.fail("the marker flux2_script takes one flux2_async.emulator.Script", pytrace=False)
    script: flux2_async.emulator.Script = marker.args[0]
    return script


@pytest.fixture
def flux2_emulator(
    flux2_script: "flux2_async.emulator.Script", monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunningEmulator]:
    """The service on loopback, for one test; `Flux2Session()` finds it through the environment.

    It follows the fixture `flux2_script`. A test is skipped when pictures are to be drawn and Pillow is missing.
    """
    if flux2_script.render:
        pytest.importorskip("PIL.Image", reason=MISSING)
    with running_emulator(flux2_script) as emulator:
        monkeypatch.setenv("APIKLEY_API_KEY", emulator.api_key)
        monkeypatch.setenv("APIKLEY_BASE_URL", emulator.base_url)
        monkeypatch.setenv("APIKLEY_UPLOAD_URL", emulator.upload_url)
        yield emulator


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER)
