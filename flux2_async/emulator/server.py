"""The emulator as a server on loopback."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
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
from flux2_async.emulator.store import Links, Store
from flux2_async.emulator.tasks import TaskView
from flux2_async.emulator.uploads import Uploads

BACKLOG = 1024
# Handlers that are still busy when the emulator stops; nothing of theirs is worth waiting for.
SHUTDOWN_TIMEOUT = 0.1
TURNS_OF_ACCEPTING = 5


@attrs.frozen
class Core:
    """What outlives a stop and a new start: the tasks, the files and the addresses they stand under."""

    clock: Clock
    links: Links
    store: Store
    engine: Engine
    files: Files


@attrs.frozen
class Running:
    """What lives from start to stop."""

    listener: socket.socket
    runner: web.AppRunner
    http: aiohttp.ClientSession
    callbacks: Callbacks
    closing: asyncio.Event
    handlers: set[asyncio.Task[Any]]


class Emulator:
    """The service on loopback, with the answers that were observed and the faults that a script sets.

    Use it as `async with Emulator(Script(...)) as emulator`, or with `start` and `stop`. Stopping and starting again
    is an outage with refused connections: the address, the tasks, the files and the ledger stay.

    Args:
        script: What the service does; None: every task succeeds after 2 seconds. It may be changed while running.
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
        self._connections = Connections()
        self._faults = Faults(self.script.faults)
        self._core: Core | None = None
        self._running: Running | None = None

    def __repr__(self) -> str:
        # One that could not be made is shown as well, by those who report errors.
        core = vars(self).get("_core")
        if core is None:
            return "<Emulator not started>"
        return f"<Emulator {core.links.base_url} tasks={len(self.ledger.accepted)} charged={self.ledger.charged}>"

    @property
    def base_url(self) -> str:
        """The address of the API.

        Raises:
            RuntimeError: It was not started yet.
        """
        return self._started().links.base_url

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
        core = self._core = self._core or self._make_core()
        http = aiohttp.ClientSession()
        closing = asyncio.Event()
        callbacks = Callbacks(self.script, self.ledger, core.clock, self._faults, http, log=self._log)
        api = self._api(core, callbacks, http, closing)
        runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)
        await runner.setup()
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
        callbacks.resume(core.engine.tasks.values())
        self._running = Running(listener, runner, http, callbacks, closing, api.handlers)

    async def stop(self) -> None:
        """Cut all connections and stop listening; nothing happens when it does not run."""
        running, self._running = self._running, None
        if running is None:
            return
        running.closing.set()
        await _stop_accepting(running.listener)
        await running.callbacks.close()
        await running.runner.cleanup()
        # aiohttp forgets a handler whose client has gone; one that pauses would outlive the event loop.
        for handler in (left := tuple(running.handlers)):
            handler.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await running.http.close()

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
        core = self._started()
        before = core.clock.now()
        ended = core.engine.tasks[task_id].finished(before)
        task = core.engine.finish(task_id)
        if self._running is not None and not ended:
            self._running.callbacks.schedule(task)

    def task(self, task_id: str) -> TaskView:
        """A task as it is now.

        Args:
            task_id: The task.

        Returns:
            A snapshot, which later events do not change.

        Raises:
            KeyError: Not a task of this emulator.
        """
        core = self._started()
        task = core.engine.tasks[task_id]
        return TaskView(
            id=task.id,
            index=task.index,
            state=task.state(core.clock.now()),
            body=task.body,
            plan=task.plan,
            accepted_at=task.accepted_at,
            finishes_at=task.finishes_at,
            result_urls=task.result_urls,
        )

    def _started(self) -> Core:
        if self._core is None:
            raise RuntimeError("start the emulator first: `async with Emulator() as emulator`")
        return self._core

    def _make_core(self) -> Core:
        clock = Clock(asyncio.get_running_loop())
        # Nobody can connect to "any address".
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104  not listened on here
        links = Links(f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}")
        store = Store(clock.now, lambda: self.script.upload_life)
        engine = Engine(self.script, self.ledger, clock, links, store)
        return Core(clock, links, store, engine, Files(self.script, engine, clock, links, store))

    def _api(self, core: Core, callbacks: Callbacks, http: aiohttp.ClientSession, closing: asyncio.Event) -> Api:
        return Api(
            script=self.script,
            ledger=self.ledger,
            clock=core.clock,
            engine=core.engine,
            faults=self._faults,
            callbacks=callbacks,
            uploads=Uploads(self.script, self.ledger, core.clock, core.links, core.store),
            files=core.files,
            http=http,
            api_key=self.api_key,
            base_url=core.links.base_url,
            closing=closing,
            connections=self._connections,
            monitor=Monitor(
                engine=core.engine,
                ledger=self.ledger,
                clock=core.clock,
                files=core.files,
                connections=self._connections,
                closing=closing,
                finish=self.finish,
                inject=self.inject,
                api_key=self.api_key,
                own_names=frozenset({self._host.lower()}),
            ),
            log=self._log,
        )


async def _stop_accepting(listener: socket.socket) -> None:
    # asyncio loses a connection that it has accepted and not yet made when its server is closed: nothing would ever
    # close it. So it is given some turns to make what it has accepted, while it accepts no more.
    with suppress(NotImplementedError):
        asyncio.get_running_loop().remove_reader(listener)
    for _ in range(TURNS_OF_ACCEPTING):
        await asyncio.sleep(0)
