"""Telling the end of a task to its callBackUrl: once, early, twice, late or never, and again when nobody answered."""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import aiohttp
import attrs

from flux2_async.emulator.core import Core
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
    """The callbacks of one emulator: one timer for a task that waits, an asyncio task only while one is delivered."""

    core: Core
    http: aiohttp.ClientSession
    _timers: dict[str, asyncio.TimerHandle] = attrs.field(factory=dict)
    _deliveries: set[asyncio.Task[None]] = attrs.field(factory=set)

    def schedule(self, task: Task) -> None:
        """Set the timer of an accepted task, or set it anew because the task ends at another time."""
        if task.callback_url is None or task.plan.callback in {"lost", "early"}:
            return
        if (pending := self._timers.pop(task.id, None)) is not None:
            pending.cancel()
        due = task.finishes_at + task.plan.delay()
        if due != float("inf"):
            self._timers[task.id] = asyncio.get_running_loop().call_at(due, self._spawn, self._deliver, task)

    def resume(self, tasks: Iterable[Task]) -> None:
        """Set the timers of all tasks that have not ended, after a restart."""
        now = self.core.clock.now()
        for task in tasks:
            if not task.finished(now):
                self.schedule(task)

    async def early(self, task: Task) -> None:
        """Tell the end now; return when the receiver has answered or its time is over."""
        if task.callback_url is not None and not await self._attempt(task, 1):
            self._spawn(self._repeat, task)

    async def close(self) -> None:
        """Stop telling."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for delivery in self._deliveries:
            delivery.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)

    def _spawn(self, work: Callable[[Task], Coroutine[Any, Any, None]], task: Task) -> None:
        self._timers.pop(task.id, None)
        delivery = asyncio.get_running_loop().create_task(work(task))
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)

    async def _deliver(self, task: Task) -> None:
        for _ in range(2 if task.plan.callback == "twice" else 1):
            if not await self._attempt(task, 1):
                await self._repeat(task)

    async def _repeat(self, task: Task) -> None:
        for attempt, wait in enumerate(self.core.script.callback_retries, start=2):
            await asyncio.sleep(wait)
            if await self._attempt(task, attempt):
                return

    async def _attempt(self, task: Task, attempt: int) -> bool:
        fault = self.core.faults.take("callback", task.index)
        sent_at = self.core.clock.now()
        status = None
        if fault is None or fault.kind != "cut_before":
            status = await self._post(task, fault)
        if fault is not None and fault.kind == "cut_after":
            status = None
        call = CallbackCall(sent_at, task.id, task.callback_url or "", attempt, status)
        self.core.ledger.callbacks.append(call)
        if self.core.log is not None:
            self.core.log(call)
        return status is not None and 200 <= status < 300  # noqa: PLR2004  any success status counts as received

    async def _post(self, task: Task, fault: Fault | None) -> int | None:
        script, clock = self.core.script, self.core.clock
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
