"""The report while the batch runs: a page whose rows arrive; `_shown.local_page` has who may read it."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import attrs
from aiohttp import web

from flux2_async._shown.local_page import HEADERS, event_stream, guarded
from flux2_async.batch.report.following import Following
from flux2_async.batch.report.report import served_page
from flux2_async.batch.report.rows import report_row
from flux2_async.batch.report.thumbnails import Thumbnails

# Seconds between two looks into the folder.
EVERY: Final = 0.5
# Rows of one event, so that the first ones of very many are shown at once.
MOST_ROWS: Final = 500
# For what a page that is open still asks.
SHUTDOWN_TIMEOUT: Final = 0.1
# What a file's host says is judged by nobody, and it is to run nowhere.
SANDBOX: Final = {
    "Cache-Control": "private, max-age=60",
    "Content-Security-Policy": "sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


@asynccontextmanager
async def serve_report(
    directory: str | os.PathLike[str], *, host: str = "127.0.0.1", port: int = 0, title: str = "Flux-2 batch"
) -> AsyncIterator[str]:
    """Show the report of a batch that may be running in another process; its rows arrive without a reload.

    Example:
        async with serve_report("results") as address:
            print(address)

    Args:
        directory: The folder of the batch, which exists.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        title: Its headline.

    Yields:
        Where it is, such as `http://127.0.0.1:8766/`. Only files that the batch names are given out.

    Raises:
        OSError: The address cannot be listened on.
    """
    text, policy = served_page(title)
    folder = Path(os.path.realpath(directory))  # noqa: ASYNC240  before anything else runs
    async with AsyncExitStack() as stack:
        thumbnails = stack.enter_context(Thumbnails(folder))
        report = Report(folder, text, policy, thumbnails, frozenset({host.lower()}))
        runner = web.AppRunner(report.application(), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        looking = asyncio.create_task(report.follow())
        stack.push_async_callback(asyncio.wait, [looking])
        stack.callback(looking.cancel)
        yield f"http://{f'[{host}]' if ':' in host else host}:{runner.addresses[0][1]}/"


@attrs.define
class Report:
    """The page of one folder, whose path is absolute, for who asks for it under one of `own_names`.

    Thumbnails are made when a browser asks for them.
    """

    folder: Path
    text: str
    policy: str
    thumbnails: Thumbnails
    own_names: frozenset[str]
    _following: Following = attrs.field(init=False)
    _rows: dict[str, dict[str, Any]] = attrs.field(factory=dict, init=False)
    _log: list[str] = attrs.field(factory=list, init=False)
    _files: dict[str, Path] = attrs.field(factory=dict, init=False)
    # One worker makes thumbnails.
    _thread: anyio.CapacityLimiter = attrs.field(factory=lambda: anyio.CapacityLimiter(1), init=False)

    def __attrs_post_init__(self) -> None:
        self._following = Following(self.folder)

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application()
        routes = (
            ("/", self._page),
            ("/favicon.ico", self._icon),
            ("/events", self._events),
            ("/files/{token:[0-9a-f]{32}}", self._file),
            ("/thumbnails/{token:[0-9a-f]{32}}", self._thumbnail),
        )
        for path, handler in routes:
            app.router.add_get(path, guarded(handler, self.own_names))
        return app

    async def follow(self) -> None:
        """Read what is new in the folder until cancelled."""
        while True:
            changed = await anyio.to_thread.run_sync(self._read_on)
            self._log += changed
            await asyncio.sleep(EVERY)

    def _read_on(self) -> list[str]:
        changed = self._following.news()
        for name in changed:
            self._rows[name] = report_row(self._following.outcomes[name], self.folder, self._known)
        return changed

    def _known(self, path: Path) -> dict[str, str | None]:
        if not path.is_file():
            return {}
        token = hashlib.sha256(bytes(path)).hexdigest()[:32]
        self._files[token] = path
        return {"href": f"./files/{token}", "thumb": f"./thumbnails/{token}"}

    async def _page(self, _: web.Request) -> web.StreamResponse:
        headers = HEADERS | {"Content-Security-Policy": self.policy}
        return web.Response(text=self.text, content_type="text/html", headers=headers)

    async def _icon(self, _: web.Request) -> web.StreamResponse:
        # Browsers ask for one.
        return web.Response(status=204, headers=HEADERS)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        told: dict[str, Any] | None = None
        seen = 0

        def news() -> tuple[dict[str, Any] | None, bool]:
            nonlocal told, seen
            now, before = self._following, told
            told = {"total": now.total, "running": now.running, "changed": now.changed_at, "ends": now.ends_at}
            names = dict.fromkeys(self._log[seen : seen + MOST_ROWS])
            seen = min(len(self._log), seen + MOST_ROWS)
            changed = told | {"rows": [self._rows[name] for name in names]} if names or told != before else None
            return changed, seen < len(self._log)

        return await event_stream(request, EVERY, news)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        path = self._files.get(request.match_info["token"])
        if path is None:
            return web.Response(status=404, text="no request of the batch names such a file\n", headers=HEADERS)
        return web.FileResponse(path, headers=SANDBOX)

    async def _thumbnail(self, request: web.Request) -> web.StreamResponse:
        path = self._files.get(request.match_info["token"])
        name = None
        if path is not None:
            name = await anyio.to_thread.run_sync(self.thumbnails.make, path, limiter=self._thread)
        if name is None:
            return web.Response(status=404, text="it cannot be shown small\n", headers=HEADERS)
        return web.FileResponse(self.folder / name, headers=SANDBOX)
