"""The emulator's page: what happens, when it happens, buttons to steer it. `_shown.local_page` has who may use it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs
from aiohttp import web

from flux2_async._shown.local_page import HEADERS, SCRIPT, STYLE, event_stream, file_of, guarded
from flux2_async.emulator.engine import Engine
from flux2_async.emulator.files import Files
from flux2_async.emulator.script import Fault
from flux2_async.emulator.snapshot import Watch, ledger_document
from flux2_async.emulator.store import kind_of

PAGE: Final = Path(__file__).with_name("page")
# Seconds between two looks for what has changed.
EVERY: Final = 0.25
# Of a button; nothing it sends is longer.
MOST_BYTES: Final = 1000


@attrs.define
class Monitor:
    """The page of one emulator, for who asks for it under one of `own_names`; the key is shown to who may read it.

    `finish` ends a task.
    """

    engine: Engine
    files: Files
    finish: Callable[[str], None]
    own_names: frozenset[str]

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the page to the emulator's addresses."""
        routes = (
            ("GET", "/", file_of(PAGE / "index.html")),
            ("GET", "/page/page.css", file_of(STYLE, PAGE / "page.css")),
            ("GET", "/page/page.js", file_of(SCRIPT, PAGE / "page.js")),
            ("GET", "/page/icon.svg", file_of(PAGE / "icon.svg")),
            ("GET", "/page/shown{path:/.+}", self._shown),
            ("GET", "/events", self._events),
            ("GET", "/ledger", self._ledger),
            ("POST", "/tasks/{id}/finish", self._finish),
            ("POST", "/connections/{number:[0-9]{1,9}}/cut", self._cut),
            ("POST", "/faults", self._fault),
        )
        for method, path, handler in routes:
            router.add_route(method, path, guarded(handler, self.own_names))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        watch = Watch(self.engine)
        return await event_stream(request, EVERY, lambda: (watch.changes() or None, False))

    async def _shown(self, request: web.Request) -> web.StreamResponse:
        content = await self.files.shown(request.match_info["path"])
        if (kind := kind_of(content or b"")) is None:
            return web.Response(status=404, text="there is no such picture\n", headers=HEADERS)
        return web.Response(body=content, content_type=f"image/{kind}", headers=HEADERS)

    async def _ledger(self, _: web.Request) -> web.StreamResponse:
        return web.Response(
            text=json.dumps(ledger_document(self.engine)), content_type="application/json", headers=HEADERS
        )

    async def _finish(self, request: web.Request) -> web.StreamResponse:
        try:
            self.finish(request.match_info["id"])
        except KeyError:
            return _answer(404, "there is no such task")
        return _answer(200, "finished")

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        if not self.engine.connections.cut(int(request.match_info["number"])):
            return _answer(404, "the connection is gone already")
        return _answer(200, "cut")

    async def _fault(self, request: web.Request) -> web.StreamResponse:
        try:
            given = json.loads(await request.content.read(MOST_BYTES))
            fault = Fault(given["on"], given["kind"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return _answer(400, f"no fault: {error}")
        self.engine.faults.add(fault)
        return _answer(200, "armed")


def _answer(status: int, text: str) -> web.Response:
    return web.json_response({"message": text}, status=status, headers=HEADERS)
