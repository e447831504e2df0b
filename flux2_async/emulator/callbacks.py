"""Telling the end of a task to its callBackUrl: once, early, twice, late or never, and again when nobody answered."""

import asyncio
import base64
import hashlib
import hmac
import math
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any

import aiohttp
import attrs

from flux2_async.emulator.engine import Engine
from flux2_async.emulator.faults import distorted
from flux2_async.emulator.ledger import CallbackCall
from flux2_async.emulator.replies import json_reply
from flux2_async.emulator.script import Fault
from flux2_async.emulator.tasks import Task, callback_body


def signature(key: str, task_id: str, timestamp: str) -> str:
    """X-Webhook-Signature, as upstream documents it; `timestamp` is X-Webhook-Timestamp, as text."""
    digest = hmac.new(key.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


@attrs.define(eq=False)
class Callbacks:
    """The callbacks of one emulator, each with an asyncio task that waits for its time and delivers it."""

    engine: Engine
    http: aiohttp.ClientSession
    _telling: dict[str, asyncio.Task[None]] = attrs.field(factory=dict)

    def schedule(self, task: Task) -> None:
        """Wait for the end of an accepted task, or anew because it comes at another time, and tell it."""
        if task.callback_url is None or task.plan.callback in {"lost", "early"}:
            return
        if (waiting := self._telling.pop(task.id, None)) is not None:
            waiting.cancel()
        if not math.isinf(due := task.finishes_at + task.plan.delay()):
            self._tell(task, self._deliver(task, due))

    def resume(self, tasks: Iterable[Task]) -> None:
        """Do so for all tasks that have not ended, after a restart."""
        now = self.engine.clock.now()
        for task in tasks:
            if not task.finished(now):
                self.schedule(task)

    async def early(self, task: Task) -> None:
        """Tell the end now; return when the receiver has answered or its time is over."""
        if task.callback_url is not None and not await self._attempt(task, 1):
            self._tell(task, self._repeat(task))

    async def close(self) -> None:
        """Stop telling."""
        for telling in self._telling.values():
            telling.cancel()
        await asyncio.gather(*self._telling.values(), return_exceptions=True)

    def _tell(self, task: Task, telling: Coroutine[Any, Any, None]) -> None:
        self._telling[task.id] = begun = asyncio.create_task(telling)
        begun.add_done_callback(partial(self._told, task.id))

    def _told(self, task_id: str, ended: asyncio.Task[None]) -> None:
        # Another one may wait in its place.
        if self._telling.get(task_id) is ended:
            del self._telling[task_id]

    async def _deliver(self, task: Task, due: float) -> None:
        await asyncio.sleep(due - self.engine.clock.now())
        for _ in range(2 if task.plan.callback == "twice" else 1):
            if not await self._attempt(task, 1):
                await self._repeat(task)

    async def _repeat(self, task: Task) -> None:
        for attempt, wait in enumerate(self.engine.script.callback_retries, start=2):
            await asyncio.sleep(wait)
            if await self._attempt(task, attempt):
                return

    async def _attempt(self, task: Task, attempt: int) -> bool:
        fault = self.engine.faults.take("callback", task.index)
        sent_at = self.engine.clock.now()
        status = None
        if fault is None or fault.kind != "cut_before":
            status = await self._post(task, fault)
        if fault is not None and fault.kind == "cut_after":
            status = None
        call = CallbackCall(sent_at, task.id, task.callback_url or "", attempt, status)
        self.engine.ledger.callbacks.append(call)
        if self.engine.log is not None:
            self.engine.log(call)
        return status is not None and 200 <= status < 300  # noqa: PLR2004  any success status counts as received

    async def _post(self, task: Task, fault: Fault | None) -> int | None:
        script, clock = self.engine.script, self.engine.clock
        sent = json_reply(callback_body(task, clock, script.callback_shape))
        if fault is not None:
            sent = distorted(sent, fault, "")
        headers = {"Content-Type": sent.content_type}
        if script.hmac_key is not None:
            timestamp = str(int(clock.wall(clock.now())))
            signed = signature(script.hmac_key, task.id, timestamp)
            headers |= {"X-Webhook-Timestamp": timestamp, "X-Webhook-Signature": signed}
        timeout, url = aiohttp.ClientTimeout(total=script.callback_timeout), task.callback_url or ""
        try:
            async with self.http.post(
                url, data=sent.body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
