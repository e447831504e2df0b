"""What each client's API answers, in that API's own words. One finished picture each, as much as the API says of it."""

import json
from collections.abc import Callable
from typing import Final, Protocol

import attrs

STAMP: Final = 1_786_413_258_000
PROMPT: Final = "a red kettle on a slate worktop, seen from above, soft light from the left"


class Look(Protocol):
    """See `Dialect.look`."""

    def __call__(  # noqa: D102  the one thing it does
        self, url: str, target: str, task_id: str, /, *, finished: bool
    ) -> str: ...


@attrs.frozen
class Dialect:
    """One API.

    Attributes:
        prefix: How its paths begin.
        task_id: Takes the id out of the target of a look.
        created: The answer to a creation, from the service's address and the id.
        look: The answer to a look, from the address, the target, the id, and `finished`.
    """

    prefix: str
    task_id: Callable[[str], str]
    created: Callable[[str, str], str]
    look: Look


def picture(task_id: str) -> str:
    """The address of a result."""
    return f"https://files.example/{task_id}.png"


def _last(target: str) -> str:
    return target.partition("?")[0].rpartition("/")[2]


# The jobs API: what is echoed is JSON text in JSON text.
_INPUT: Final = json.dumps({"prompt": PROMPT, "aspect_ratio": "1:1", "resolution": "1K"})
_PARAM: Final = json.dumps(json.dumps({"input": _INPUT, "model": "flux-2/flex-text-to-image"}))


def _jobs_created(_url: str, task_id: str) -> str:
    return f'{{"code":200,"msg":"success","data":{{"taskId":"{task_id}"}}}}'


def _jobs_look(_url: str, _target: str, task_id: str, *, finished: bool) -> str:
    return jobs_record(task_id, finished=finished)


def jobs_record(task_id: str, *, finished: bool) -> str:
    """The answer of recordInfo, which is also the body of a callback."""
    common = f'"taskId":"{task_id}","model":"flux-2/flex-text-to-image","param":{_PARAM},"createTime":{STAMP}'
    if not finished:
        pending = '"state":"generating","resultJson":"","failCode":null,"failMsg":null,"costTime":null'
        return f'{{"code":200,"msg":"success","data":{{{common},{pending},"completeTime":null}}}}'
    result = f'"resultJson":"{{\\"resultUrls\\":[\\"{picture(task_id)}\\"]}}"'
    done = '"state":"success","failCode":null,"failMsg":null,"costTime":21,"creditsConsumed":14'
    times = f'"completeTime":{STAMP + 21_000},"updateTime":{STAMP + 21_000}'
    return f'{{"code":200,"msg":"success","data":{{{common},{done},{result},{times}}}}}'


def _replicate_created(url: str, task_id: str) -> str:
    return _replicate_look(url, "", task_id, finished=False)


def _replicate_look(url: str, _target: str, task_id: str, *, finished: bool) -> str:
    now = "2026-11-22T12:00:00.000Z"
    address = f"{url}/replicate/v1/predictions/{task_id}"
    prediction = {
        "id": task_id,
        "model": "black-forest-labs/flux-2-flex",
        "version": "hidden",
        "input": {"prompt": PROMPT, "aspect_ratio": "1:1", "resolution": "1 MP"},
        "logs": "",
        "output": [picture(task_id)] if finished else None,
        "error": None,
        "status": "succeeded" if finished else "starting",
        "created_at": now,
        "started_at": now if finished else None,
        "completed_at": now if finished else None,
        "metrics": {"predict_time": 21.0} if finished else None,
        "urls": {"get": address, "cancel": f"{address}/cancel"},
    }
    return json.dumps(prediction)


def _runway_created(_url: str, task_id: str) -> str:
    return f'{{"id":"{task_id}"}}'


def _runway_look(_url: str, _target: str, task_id: str, *, finished: bool) -> str:
    common = f'"id":"{task_id}","createdAt":"2026-11-22T12:00:00.000Z"'
    if finished:
        return f'{{{common},"status":"SUCCEEDED","cost":{{"credits":5}},"output":["{picture(task_id)}"]}}'
    return f'{{{common},"status":"RUNNING","estimatedCost":{{"credits":5}},"progress":0.5}}'


def _openai_created(url: str, task_id: str) -> str:
    return _openai_look(url, "", task_id, finished=False)


def _openai_look(_url: str, _target: str, task_id: str, *, finished: bool) -> str:
    call = {"id": f"ig_{task_id}", "type": "image_generation_call", "status": "completed", "result": picture(task_id)}
    response = {
        "id": task_id,
        "object": "response",
        "created_at": STAMP // 1000,
        "status": "completed" if finished else "queued",
        "background": True,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": "gpt-5",
        "output": [call] if finished else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [{"type": "image_generation"}],
        "top_p": 1.0,
    }
    return json.dumps(response)


def _fal_created(url: str, task_id: str) -> str:
    address = f"{url}/fal-ai/flux-2/requests/{task_id}"
    urls = f'"response_url":"{address}","status_url":"{address}/status","cancel_url":"{address}/cancel"'
    return f'{{"status":"IN_QUEUE","queue_position":0,"request_id":"{task_id}",{urls}}}'


def _fal_look(_url: str, target: str, task_id: str, *, finished: bool) -> str:
    if "/status" not in target:
        size = '"width":1024,"height":1024,"content_type":"image/png"'
        return f'{{"images":[{{"url":"{picture(task_id)}",{size}}}],"seed":42,"prompt":"{PROMPT}"}}'
    if finished:
        return '{"status":"COMPLETED","logs":null,"metrics":{"inference_time":21.0}}'
    return '{"status":"IN_PROGRESS","logs":null}'


DIALECTS: Final = (
    Dialect("/api/v1/jobs/", lambda target: target.rpartition("taskId=")[2], _jobs_created, _jobs_look),
    Dialect("/replicate/", _last, _replicate_created, _replicate_look),
    Dialect("/runwayml/", _last, _runway_created, _runway_look),
    Dialect("/openai/", _last, _openai_created, _openai_look),
    Dialect("/fal-ai/", lambda target: _last(target.partition("/status")[0]), _fal_created, _fal_look),
)
