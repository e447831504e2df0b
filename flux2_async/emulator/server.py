"""The emulator as a server on loopback."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, Self

import aiohttp
import attrs
from aiohttp import web

from flux2_async.emulator.api import Api
from flux2_async.emulator.callbacks import Callbacks
from flux2_async.emulator.clock import Clock
from flux2_async.emulator.connections import Connections
from flux2_async.emulator.engine import Engine
from flux2_async.emulator.faults import Faults
from flux2_async.emulator.files import Files
from flux2_async.emulator.ledger import CallbackCall, Exchange, Ledger
from flux2_async.emulator.monitor import Monitor
from flux2_async.emulator.script import Fault, Script
from flux2_async.emulator.store import Store
from flux2_async.emulator.tasks import TaskView
from flux2_async.emulator.uploads import Uploads

BACKLOG = 1024
# Handlers that are still busy when the emulator stops; nothing of theirs is worth waiting for.
SHUTDOWN_TIMEOUT = 0.1
TURNS_OF_ACCEPTING = 5


class Emulator:
    """The service on loopback, with the answers that were observed and the faults that a script sets.

    Use it as `async with Emulator(Script(...)) as emulator`, or with `start` and `stop`. Stopping and starting again
    is an outage with refused connections: the address, the tasks, the files and the ledger stay.

    Args:
        script: What the service does; None: every task succeeds after 2 seconds (our choice). It may be
            changed while running.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        api_key: The only key that is accepted.
        log: Called with every request once it was answered or cut off, and with every attempt to deliver a callback;
            what it raises is seen by the client. None: nothing is told.

    A browser shows at `base_url` what happens, ends tasks and cuts connections; at `/ledger` is the ledger as JSON.

    Attributes:
        script: As given.
        api_key: As given.
        ledger: What was seen, taken and charged.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str = "emulator-key",
        log: Callable[[Exchange | CallbackCall], object] | None = None,
    ) -> None:
        self.script: Script = Script() if script is None else script
        self.api_key = api_key
        self.ledger: Ledger = Ledger()
        self._host = host
        self._port = port
        self._log = log
        self._faults = Faults(self.script.faults)
        self._files: Files | None = None
        self._callbacks: Callbacks | None = None
        # What ends when it stops.
        self._running: AsyncExitStack | None = None

    def __repr__(self) -> str:
        # One that could not be made is shown as well, by those who report errors.
        if vars(self).get("_files") is None:
            return "<Emulator not started>"
        return f"<Emulator {self.base_url} tasks={len(self.ledger.accepted)} charged={self.ledger.charged}>"

    @property
    def base_url(self) -> str:
        """The address of the API.

        Raises:
            RuntimeError: It was not started yet.
        """
        return self._started().engine.store.base_url

    @property
    def upload_url(self) -> str:
        """The address of the upload endpoints.

        Raises:
            RuntimeError: It was not started yet.
        """
        return f"{self.base_url}/file-upload"

    async def start(self) -> None:
        """Listen.

        Raises:
            RuntimeError: It runs already.
            OSError: The port is taken.
        """
        if self._running is not None:
            raise RuntimeError("this emulator runs already; stop it first, or use another one")
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, self._port), family=family)
        # The next start is to be found where this one was.
        self._port = listener.getsockname()[1]
        files = self._files = self._files or self._make_files()
        engine = files.engine
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(aiohttp.ClientSession())
            callbacks = Callbacks(engine, http)
            own_names = frozenset({self._host.lower()})
            monitor = Monitor(engine, files, self.finish, own_names)
            api = Api(engine, files, callbacks, Uploads(engine, http), monitor)
            stack.push_async_callback(_end, api.handlers)
            runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)
            stack.push_async_callback(runner.cleanup)
            await runner.setup()
            await web.SockSite(runner, listener, backlog=BACKLOG).start()
            callbacks.resume(engine.tasks.values())
            stack.push_async_callback(callbacks.close)
            stack.push_async_callback(_stop_accepting, listener)
            self._callbacks, self._running = callbacks, stack.pop_all()

    async def stop(self) -> None:
        """Cut all connections and stop listening; nothing happens when it does not run."""
        running, self._running, self._callbacks = self._running, None, None
        if running is not None:
            await running.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def inject(self, fault: Fault) -> None:
        """Add a fault.

        Args:
            fault: What goes wrong; those added earlier are used first, and its `after` counts from now on.
        """
        self._faults.add(fault)

    def clear_faults(self) -> None:
        """End all faults, those of the script and those added.

        A call that hangs already goes on hanging, and an `outage` of the script lasts as long as it says.
        """
        self._faults.clear()

    def finish(self, task_id: str) -> None:
        """End a task now, with the outcome of its plan.

        Args:
            task_id: The task; nothing changes for one that has ended.

        Raises:
            KeyError: Not a task of this emulator.
        """
        files = self._started()
        task, now = files.engine.tasks[task_id], files.engine.clock.now()
        if task.finished(now):
            return
        task.finishes_at = now
        if self._callbacks is not None:
            self._callbacks.schedule(task)

    def task(self, task_id: str) -> TaskView:
        """A task as it is now.

        Args:
            task_id: The task.

        Returns:
            A snapshot, which later events do not change.

        Raises:
            KeyError: Not a task of this emulator.
        """
        files = self._started()
        task = files.engine.tasks[task_id]
        names = {field.name for field in attrs.fields(TaskView)} - {"state"}
        return TaskView(state=task.state(files.engine.clock.now()), **{name: getattr(task, name) for name in names})

    def _started(self) -> Files:
        if self._files is None:
            raise RuntimeError("start the emulator first: `async with Emulator() as emulator`")
        return self._files

    def _make_files(self) -> Files:
        clock = Clock(asyncio.get_running_loop())
        # Nobody can connect to "any address".
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104  not listened on here
        address = f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"
        store = Store(address, clock, self.script)
        return Files(
            Engine(self.api_key, self.script, self.ledger, clock, store, self._faults, Connections(), self._log)
        )


async def _end(handlers: set[asyncio.Task[Any]]) -> None:
    # aiohttp forgets a handler whose client has gone; one that pauses would outlive the event loop.
    for handler in (left := tuple(handlers)):
        handler.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def _stop_accepting(listener: socket.socket) -> None:
    # asyncio loses a connection that it has accepted and not yet made when its server is closed: nothing would ever
    # close it. So it is given some turns to make what it has accepted, while it accepts no more.
    with suppress(NotImplementedError):
        asyncio.get_running_loop().remove_reader(listener)
    for _ in range(TURNS_OF_ACCEPTING):
        await asyncio.sleep(0)
