"""The endpoints: from an HTTP request to a reply, through whatever the script puts in the way."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import attrs
from aiohttp import web

from flux2_async.emulator.callbacks import Callbacks
from flux2_async.emulator.engine import Engine, parsed
from flux2_async.emulator.faults import deliver, distorted, undone
from flux2_async.emulator.files import Files
from flux2_async.emulator.ledger import CreateCall, CreateOutcome, Exchange
from flux2_async.emulator.monitor import Monitor
from flux2_async.emulator.replies import Refusal, Reply, granted, html, refused
from flux2_async.emulator.script import Endpoint, Fault
from flux2_async.emulator.store import RESULTS, UPLOADS, ref_of
from flux2_async.emulator.uploads import MOST_BYTES, Uploads

REDIRECTED = "/redirected"
CUTTING = frozenset({"cut_before", "cut_after", "cut_body", "hang"})
# Base64 adds a third, a multipart frame a little.
MOST_BODY_BYTES = MOST_BYTES * 4 // 3 + 65536

CREATE = "/api/v1/jobs/createTask"
RECORD = "/api/v1/jobs/recordInfo"
CREDIT = "/api/v1/chat/credit"
DOWNLOAD_URL = "/api/v1/common/download-url"
STREAM = "/file-upload/api/file-stream-upload"
BASE64 = "/file-upload/api/file-base64-upload"
URL = "/file-upload/api/file-url-upload"


@attrs.define
class Call:
    """One call on its way through: what came, and what the script does to it."""

    endpoint: Endpoint
    request: web.Request
    body: bytes = b""
    fault: Fault | None = None
    task_id: str | None = None


Handler: TypeAlias = Callable[[Call], Awaitable[Reply]]
_WebHandler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.define
class Api:
    """The seven endpoints and the files of one emulator."""

    engine: Engine
    files: Files
    callbacks: Callbacks
    uploads: Uploads
    monitor: Monitor
    handlers: set[asyncio.Task[Any]] = attrs.field(factory=set)
    _created: int = 0

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=MOST_BODY_BYTES, middlewares=[self._keep])
        routes: tuple[tuple[str, str, Endpoint, Handler], ...] = (
            ("POST", CREATE, "createTask", self._create_task),
            ("GET", RECORD, "recordInfo", self._record_info),
            ("GET", CREDIT, "credit", self._credit),
            ("POST", DOWNLOAD_URL, "download-url", self._download_url),
            ("POST", STREAM, "upload", partial(self._upload, self.uploads.stream)),
            ("POST", BASE64, "upload", partial(self._upload, self.uploads.base64)),
            ("POST", URL, "upload", partial(self._upload, self.uploads.url)),
        )
        for method, path, endpoint, handler in routes:
            app.router.add_route(method, path, partial(self._serve, endpoint, handler))
        for path in (RESULTS + "{path:.+}", UPLOADS + "{path:.+}"):
            app.router.add_get(path, partial(self._serve, "file", lambda call: self.files.get(call.request)))
        self.monitor.add_routes(app.router)
        return app

    @web.middleware
    async def _keep(self, request: web.Request, handler: _WebHandler) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  coroutines run in one
        self.handlers.add(task)
        task.add_done_callback(self.handlers.discard)
        try:
            return await handler(request)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
            return await self._elsewhere(request, error)

    async def _serve(self, endpoint: Endpoint, handler: Handler, request: web.Request) -> web.StreamResponse:
        self.engine.ledger.arrive(endpoint)
        self.engine.connections.arrive(request.transport, endpoint)
        came, call, reply = self.engine.clock.now(), Call(endpoint, request), None
        try:
            self._watch_key(endpoint, request)
            await self._pause(self.engine.script.arrival, endpoint)
            reply = await self._judged(call, handler)
            await self._pause(self.engine.script.latency, endpoint)
            return await deliver(request, reply, call.fault)
        finally:
            self.engine.ledger.leave(endpoint)
            self.engine.connections.leave(request.transport)
            self._tell(came, call, reply)

    def _tell(self, came: float, call: Call, reply: Reply | None) -> None:
        if self.engine.log is None:
            return
        fault, transport = call.fault.kind if call.fault else None, call.request.transport
        told = Exchange(came, self.engine.clock.now() - came, call.endpoint, None, None, call.task_id or None, fault)
        if reply is not None and transport is not None and not transport.is_closing() and fault not in CUTTING:
            again = reply.headers.get("Retry-After")
            told = attrs.evolve(told, status=reply.status, code=reply.code, retry_after=again)
        self.engine.log(told)

    async def _judged(self, call: Call, handler: Handler) -> Reply:
        try:
            if call.endpoint in {"createTask", "download-url"}:
                call.body = await call.request.read()
            # No await from here to the judgement, so that createTask calls are numbered as they are judged.
            if call.endpoint == "recordInfo":
                call.task_id = call.request.query.get("taskId", "")
            elif call.endpoint == "file" and (ref := ref_of(call.request.path)):
                call.task_id = ref.task_id
            call.fault = self.engine.faults.take(call.endpoint, self._number(call)) if self.engine.faults else None
            if (hindrance := self._hindrance(call)) is not None:
                return hindrance
            reply = await handler(call)
        except (Refusal, web.HTTPRequestEntityTooLarge) as error:
            reply = self._refused(error if isinstance(error, Refusal) else Refusal(413), call)
        return reply if call.fault is None else distorted(reply, call.fault, self._detour(call))

    def _number(self, call: Call) -> int | None:
        """What `Fault.task` is compared with."""
        if call.endpoint == "createTask":
            self._created += 1
            return self._created - 1
        task = self.engine.tasks.get(call.task_id or "")
        return task.index if task else None

    def _hindrance(self, call: Call) -> Reply | None:
        """The answer to a call that is not carried out because of an outage or a fault, else None."""
        script, span, reply = self.engine.script, self.engine.script.outage, None
        since_start = self.engine.clock.now() - self.engine.clock.started
        if span is not None and call.endpoint in script.outage_on and span[0] <= since_start < span[1]:
            reply = html(502) if script.outage_kind == "502" else self._refused(Refusal(455), call)
        elif call.fault is not None and not call.fault.done:
            reply = undone(call.fault, script, self._detour(call))
        if reply is not None and call.endpoint == "createTask":
            told = reply.code is not None and reply.code != 200  # noqa: PLR2004  the API's word for success
            self._note(call, "refused" if told else "cut", reply.code)
        if reply is not None and call.endpoint == "recordInfo":
            self.engine.ledger.polled(call.task_id or "", self.engine.clock.now())
        return reply

    def _refused(self, refusal: Refusal, call: Call) -> Reply:
        return refused(refusal, self.engine.script.error_style, upload=call.endpoint == "upload")

    def _detour(self, call: Call) -> str:
        return call.request.path_qs if call.endpoint == "file" else self.engine.store.base_url + REDIRECTED

    async def _create_task(self, call: Call) -> Reply:
        try:
            self._authorize(call.request, "application/json")
            header = self.engine.script.idempotency_header
            name = None if header is None else call.request.headers.get(header)
            task, new = self.engine.accept(call.body, name)
        except Refusal as refusal:
            self._note(call, "refused", refusal.code)
            raise
        call.task_id = task.id
        self._note(call, "accepted" if new else "repeated", 200, name)
        if new and task.plan.callback == "early":
            await self.callbacks.early(task)
        elif new:
            self.callbacks.schedule(task)
        return granted({"taskId": task.id})

    def _note(self, call: Call, outcome: CreateOutcome, code: int | None, name: str | None = None) -> None:
        body: Mapping[str, Any] | None = None
        with suppress(Refusal):
            body = parsed(call.body)
        fault = call.fault.kind if call.fault else None
        self.engine.ledger.judged(CreateCall(self.engine.clock.now(), body, outcome, code, call.task_id, fault, name))

    async def _record_info(self, call: Call) -> Reply:
        self._authorize(call.request)
        task_id = call.task_id or ""
        self.engine.ledger.polled(task_id, self.engine.clock.now())
        return granted(self.engine.record(task_id), self.engine.script.record_text)

    async def _credit(self, call: Call) -> Reply:
        self._authorize(call.request)
        return granted(self.engine.balance)

    async def _download_url(self, call: Call) -> Reply:
        self._authorize(call.request, "application/json")
        url = parsed(call.body).get("url")
        if not isinstance(url, str):
            raise Refusal(422, "url is required")
        return granted(self.files.signed(self.engine.generated(url)))

    async def _upload(self, way: Callable[[web.Request], Awaitable[Reply]], call: Call) -> Reply:
        try:
            self._authorize(call.request)
        except Refusal:
            raise Refusal(401, "Authentication failed: Invalid API Key") from None
        return await way(call.request)

    async def _elsewhere(self, request: web.Request, error: web.HTTPError) -> web.StreamResponse:
        """What is none of ours gets a real status: it never reaches the service behind the edge."""
        came = self.engine.clock.now()
        if request.path == REDIRECTED:
            self._watch_key("redirected", request)
        reply = refused(Refusal(error.status), "http", upload=request.path.startswith("/file-upload/"))
        reply = attrs.evolve(reply, headers={"Allow": error.headers["Allow"]} if "Allow" in error.headers else {})
        if self.engine.log is not None:
            self.engine.log(Exchange(came, 0.0, request.path, reply.status, reply.code))
        return await deliver(request, reply, None)

    def _watch_key(self, endpoint: str, request: web.Request) -> None:
        if self.engine.api_key in request.headers.get("Authorization", "") or self.engine.api_key in request.path_qs:
            self.engine.ledger.authorization_seen.add(endpoint)

    def _authorize(self, request: web.Request, content_type: str | None = None) -> None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        right = scheme.lower() == "bearer" and key.strip() == self.engine.api_key
        # Upstream answers a wrong Content-Type like a wrong key.
        if not right or (content_type and request.content_type != content_type):
            raise Refusal(401)

    async def _pause(self, seconds: float | Callable[[str], float], endpoint: str) -> None:
        wait = seconds(endpoint) if callable(seconds) else seconds
        if wait > 0:
            await asyncio.sleep(wait)
