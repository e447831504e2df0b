"""A task of the emulated service, and its record and callback in the shapes that were observed."""

import json
import math
from collections.abc import Mapping
from typing import Any

import attrs

from flux2_async.emulator.clock import Clock
from flux2_async.emulator.script import Plan
from flux2_async.emulator.store import Reference
from flux2_async.emulator.validation import RATIOS

FAILURES: Mapping[str, tuple[str, str]] = {
    "fail": ("500", "Internal Error, Please try again later."),
    "moderated": ("422", "CONTENT_POLICY_BLOCKED: the input or output was flagged as sensitive"),
}


@attrs.define
class Task:
    """An accepted task, see `TaskView`. Nothing runs for it: its state is worked out whenever somebody asks.

    `price` is what it costs in the end, `references` are its reference pictures as far as the emulator has them.
    """

    id: str
    index: int
    body: Mapping[str, Any]
    plan: Plan
    price: float
    accepted_at: float
    finishes_at: float
    result_urls: tuple[str, ...] = ()
    references: tuple[Reference, ...] = ()

    @property
    def callback_url(self) -> str | None:
        """Where its end is told, or None."""
        return self.body.get("callBackUrl")

    @property
    def prompt(self) -> str:
        """What to draw; of models that are not looked into perhaps the model's name."""
        return str(self.body["input"].get("prompt") or self.body["model"])

    @property
    def shape(self) -> tuple[str, str]:
        """Aspect ratio and resolution, the usual ones where others or none are asked for."""
        given = self.body["input"]
        ratio, resolution = given.get("aspect_ratio"), given.get("resolution")
        return ratio if ratio in (*RATIOS, "auto") else "1:1", resolution if resolution in ("1K", "2K") else "1K"

    @property
    def failure(self) -> tuple[str, str]:
        """`failCode` and `failMsg` of a task that fails."""
        code, message = FAILURES[self.plan.outcome]
        return self.plan.fail_code or code, self.plan.fail_message or message

    def finished(self, now: float) -> bool:
        """Whether it has ended."""
        return now >= self.finishes_at

    def state(self, now: float) -> str:
        """The API's word for where it is."""
        if self.finished(now):
            return "fail" if self.plan.failing else "success"
        states = self.plan.states or ("waiting",)
        length = self.finishes_at - self.accepted_at
        part = 0.0 if math.isinf(length) else (now - self.accepted_at) / length
        return states[min(int(part * len(states)), len(states) - 1)]


@attrs.frozen
class TaskView:
    """A task as it is at one moment.

    Attributes:
        id: 32 hex digits.
        index: Its number among the accepted ones, from 0.
        state: The API's word.
        body: The createTask request.
        plan: What it does.
        accepted_at: When it was accepted, in seconds of the event loop.
        finishes_at: When it ends, likewise; infinite when nobody has finished it yet.
        result_urls: Addresses of its pictures, also before its end.
    """

    id: str
    index: int
    state: str
    body: Mapping[str, Any]
    plan: Plan
    accepted_at: float
    finishes_at: float
    result_urls: tuple[str, ...]


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _param(task: Task) -> str:
    # As recorded: JSON text, and `input` inside it is JSON text once more.
    inner = {"input": _compact(task.body["input"])}
    inner |= {name: task.body[name] for name in ("callBackUrl", "model") if name in task.body}
    return _compact(inner)


def record(task: Task, clock: Clock) -> dict[str, Any]:
    """The `data` of recordInfo: no `updateTime`, nulls and an empty `resultJson` while pending, as recorded."""
    now = clock.now()
    # It may lag behind the truth.
    lags = task.finished(now) and now < task.finishes_at + task.plan.record_lag
    state = (task.plan.states or ("waiting",))[-1] if lags else task.state(now)
    data: dict[str, Any] = {
        "taskId": task.id,
        "model": task.body["model"],
        "state": state,
        "param": _param(task),
        "resultJson": "",
        "failCode": None,
        "failMsg": None,
        "costTime": None,
        "completeTime": None,
        "createTime": clock.milliseconds(task.accepted_at),
    }
    return data | _ending(task, clock) if state in {"success", "fail"} else data


def _ending(task: Task, clock: Clock) -> dict[str, Any]:
    code, message = task.failure if task.plan.failing else (None, None)
    return {
        "resultJson": None if task.plan.failing else _compact({"resultUrls": task.result_urls}),
        "failCode": code,
        "failMsg": message,
        # Whole seconds, whatever the documentation says.
        "costTime": int(task.finishes_at - task.accepted_at),
        "completeTime": clock.milliseconds(task.finishes_at),
        "creditsConsumed": task.price,
    }


def callback_body(task: Task, clock: Clock, shape: str) -> dict[str, Any]:
    """What is POSTed to the callBackUrl at the end: the record, or in the shape `guide` that of the signature guide."""
    if shape == "guide":
        short = {"task_id": task.id, "callbackType": "task_completed"}
        return {"taskId": task.id, "code": 200, "msg": "Success", "data": short}
    data: dict[str, Any] = {"taskId": task.id, "model": task.body["model"], "param": _param(task)}
    data |= _ending(task, clock)
    if task.plan.failing:
        # Neither stamps nor a result in a failure's callback.
        del data["resultJson"], data["completeTime"]
        return {"code": 501, "msg": "Playground task failed.", "data": data | {"state": "fail"}}
    del data["failCode"], data["failMsg"]
    data |= {"state": "success", "createTime": clock.milliseconds(task.accepted_at), "updateTime": data["completeTime"]}
    return {"code": 200, "msg": "Playground task completed successfully.", "data": data}


def under_escaped(body: bytes) -> bytes:
    """A sound recordInfo answer whose `param` lacks one level of escaping: every value is there, but it is no JSON."""
    envelope = json.loads(body)
    param = (envelope.get("data") or {}).get("param")
    if param is None:
        return body
    return body.replace(_compact(param).encode(errors="replace"), f'"{param}"'.encode(errors="replace"), 1)
