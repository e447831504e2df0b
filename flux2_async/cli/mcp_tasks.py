"""The extension Tasks of the Model Context Protocol: a call that takes long gives an id, which the client polls.

The id is that of the service, so it is known to every server of the account: a client that reconnects polls it further,
whether its server was started anew or not. A client that does not say with a call that it speaks the extension is
answered as without it.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, Literal

import attrs
import mcp_types as wire
from fastmcp import Context
from fastmcp.exceptions import ToolError
from fastmcp.server.extensions import MethodBinding, ServerExtension
from fastmcp.tools import ToolResult
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel

from flux2_async.cli.screen import one_line
from flux2_async.errors import Flux2Error, InvalidRequestError, TaskNotFoundError
from flux2_async.session.session import Flux2Session
from flux2_async.tasks.handle import ImageTask

EXTENSION: Final = "io.modelcontextprotocol/tasks"
# Milliseconds: between two polls of a client, and for which its picture can be had.
EVERY: Final = 2_000
LIFE: Final = 86_400_000
# Of more the oldest are asked for at the service again.
MOST: Final = 1_000

at_once: ContextVar[bool] = ContextVar("at_once", default=False)
"""Whether a call is to give the id of its task, and not to wait for the picture."""


class Task(wire.Result):
    """What the protocol says of a task; `result` is what the call would have given, once it has ended."""

    result_type: Literal["task", "complete"]
    task_id: str
    status: Literal["working", "completed", "cancelled"]
    status_message: str
    created_at: str
    last_updated_at: str
    ttl_ms: int = LIFE
    poll_interval_ms: int = EVERY
    result: wire.CallToolResult | None = None


class TaskParams(wire.RequestParams):
    """Of all its requests."""

    task_id: str


@attrs.define
class Known:
    """A task that a client was told of, or asked for."""

    task: ImageTask
    created: datetime = attrs.field(factory=lambda: datetime.now(UTC))
    cancelled: bool = False


class Tasks(ServerExtension):
    """Answers the calls of some tools with tasks.

    Args:
        flux: The open session.
        tools: The names of these tools; each gives the id of its task where `at_once` says so.
        finish: Gives the picture of a task that has ended as the tools do.
    """

    identifier = EXTENSION

    def __init__(
        self, flux: Flux2Session, tools: Sequence[str], finish: Callable[[ImageTask], Awaitable[ToolResult]]
    ) -> None:
        self._flux = flux
        self._tools = tools
        self._finish = finish
        self._known: dict[str, Known] = {}

    def methods(self) -> Sequence[MethodBinding]:
        """The three of the extension; `tasks/update` answers questions, of which there are none."""
        return [
            MethodBinding("tasks/get", TaskParams, self._get),
            MethodBinding("tasks/cancel", TaskParams, self._cancel),
            MethodBinding("tasks/update", TaskParams, self._update),
        ]

    async def intercept_tool_call(
        self,
        params: wire.CallToolRequestParams,
        context: Context,
        call_next: Callable[[], Awaitable[ToolResult | BaseModel]],
    ) -> ToolResult | BaseModel:
        """Give a task instead of waiting for a picture; what is finished, or refused, is told as ever."""
        if params.name not in self._tools or context.client_extension_settings(EXTENSION) is None:
            return await call_next()
        token = at_once.set(True)
        try:
            given = await call_next()
        finally:
            at_once.reset(token)
        data = given.structured_content if isinstance(given, ToolResult) else None
        if not data or data["files"]:
            return given
        return _shown("task", self._remember(self._flux.attach(data["task_id"])), "working")

    async def _get(self, context: Any, params: TaskParams) -> Task:
        known = await self._find(context, params.task_id)
        task = known.task
        if known.cancelled:
            return _shown("complete", known, "cancelled")
        if not task.done():
            return _shown("complete", known, "working")
        try:
            result = await self._finish(task)
            told = wire.CallToolResult(content=result.content, structured_content=result.structured_content)
        except ToolError as error:
            told = wire.CallToolResult(content=[wire.TextContent(type="text", text=str(error))], is_error=True)
        return _shown("complete", known, "completed", told)

    async def _cancel(self, context: Any, params: TaskParams) -> dict[str, str]:
        known = await self._find(context, params.task_id)
        # The service cannot be told; what the client gets is what it asked for.
        known.cancelled = not known.task.done()
        return {"resultType": "complete"}

    async def _update(self, context: Any, params: TaskParams) -> dict[str, str]:
        await self._find(context, params.task_id)
        return {"resultType": "complete"}

    async def _find(self, context: Any, task_id: str) -> Known:
        if self.client_settings(context) is None:
            needed: dict[str, Any] = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
            raise MCPError(wire.MISSING_REQUIRED_CLIENT_CAPABILITY, f"the client has not declared {EXTENSION}", needed)
        if (known := self._known.get(task_id)) is not None:
            return known
        try:
            await self._flux.fetch_record(task_id)
        except (TaskNotFoundError, InvalidRequestError) as error:
            raise MCPError(wire.INVALID_PARAMS, one_line(str(error))) from None
        except Flux2Error:
            # Nobody knows now; the session goes on asking.
            pass
        return self._remember(self._flux.attach(task_id))

    def _remember(self, task: ImageTask) -> Known:
        # One that was given up before is waited for again.
        known = self._known[task.id] = Known(task)
        while len(self._known) > MOST:
            del self._known[next(iter(self._known))]
        return known


def _shown(
    kind: Literal["task", "complete"],
    known: Known,
    status: Literal["working", "completed", "cancelled"],
    result: wire.CallToolResult | None = None,
) -> Task:
    task, record = known.task, known.task.record
    created = known.created if record is None or record.create_time is None else record.create_time
    message = f"task {task.id}: {task.state}"
    if status == "cancelled":
        message += "; the service goes on with it and charges it, and wait with this task_id gives the picture"
    return Task(
        result_type=kind,
        task_id=task.id,
        status=status,
        status_message=message,
        created_at=created.isoformat(),
        last_updated_at=datetime.now(UTC).isoformat(),
        result=result,
    )
