"""A client of the Model Context Protocol that speaks the extension Tasks, written after its specification."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from fastmcp import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp_types import CallToolResult, Request, RequestParams, Result
from pydantic import ConfigDict


class Given(Result):
    """What a call gives instead of its result."""

    result_type: Literal["task"]
    task_id: str
    status: str
    created_at: str
    last_updated_at: str
    ttl_ms: int | None
    poll_interval_ms: int


class Anything(Result):
    """Every field as it comes."""

    model_config = ConfigDict(extra="allow")


class TaskParams(RequestParams):
    task_id: str


Ask = Callable[[str, str], Awaitable[dict[str, Any]]]


def asking(session: Any) -> Ask:
    """Send requests about tasks, and give what is answered."""

    async def ask(method: str, task_id: str) -> dict[str, Any]:
        request = Request[TaskParams, str](method=f"tasks/{method}", params=TaskParams(task_id=task_id))
        answer: Anything = await session.send_request(request, Anything)
        return answer.model_extra or {}

    return ask


class SpeaksTasks(ClientExtension):
    """Polls each task to its end, or gives nothing but its id.

    Attributes:
        given: The tasks that calls gave.
        seen: The answers to polls.
    """

    identifier = "io.modelcontextprotocol/tasks"

    def __init__(self, *, polls: bool = True) -> None:
        self.given: list[Given] = []
        self.seen: list[dict[str, Any]] = []
        self._polls = polls

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Given, resolve=self._resolve)]

    async def _resolve(self, given: Given, context: ClaimContext) -> CallToolResult:
        self.given.append(given)
        if not self._polls:
            return CallToolResult(content=[], structured_content={"task_id": given.task_id})
        ask = asking(context.session)
        while not self.seen or self.seen[-1]["status"] == "working":
            await asyncio.sleep(0.2)
            self.seen.append(await ask("get", given.task_id))
        return CallToolResult.model_validate(self.seen[-1]["result"])


def speaking(client: "Client[Any]") -> Ask:
    """Send requests about tasks as a connected client."""
    return asking(client.session)
