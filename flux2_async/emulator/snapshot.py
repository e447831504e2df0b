"""What the emulator's page and its `/ledger` are told, as plain values. Pure: reads, and changes nothing."""

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import attrs

from flux2_async.emulator.clock import Clock
from flux2_async.emulator.engine import Engine
from flux2_async.emulator.store import UPLOADS, Reference, ResultRef, StoredFile
from flux2_async.emulator.tasks import Task

SHOWN = 200
"""Tasks that the page shows at most: the newest."""


@attrs.define
class Watch:
    """What one page was told so far, so that it is told changes only."""

    engine: Engine
    _judged: int = 0
    _reasons: Counter[str] = attrs.field(factory=Counter)
    _told: dict[str, Any] = attrs.field(factory=dict)
    _rows: dict[str, dict[str, Any]] = attrs.field(factory=dict)

    def changes(self) -> dict[str, Any]:
        """Give what is new since the last call; empty when nothing is."""
        parts = {
            "key": self.engine.api_key,
            "ledger": self._figures(),
            "limit": self._limit(),
            "connections": [
                {"number": c.number, "peer": c.peer, "endpoint": c.endpoint, "busy": c.busy > 0, "calls": c.calls}
                for c in self.engine.connections.open()[:SHOWN]
            ],
        }
        new = {name: value for name, value in parts.items() if name not in self._told or self._told[name] != value}
        self._told |= new
        if tasks := self._tasks():
            new["tasks"] = tasks
        return new and new | {"now": self.engine.clock.milliseconds(self.engine.clock.now())}

    def _tasks(self) -> list[dict[str, Any]]:
        newest = self.engine.ledger.accepted[-SHOWN:]
        before, self._rows = self._rows, {name: task_row(self.engine.tasks[name], self.engine.clock) for name in newest}
        return [row for name, row in self._rows.items() if before.get(name) != row]

    def _limit(self) -> dict[str, Any] | None:
        if (policy := self.engine.policy()) is None:
            return None
        now = self.engine.clock.now()
        # Tenths: between two tasks nothing changes that a page has to be told more often.
        figures = {"used": round(policy.used(now), 1), "wait": round(policy.wait(now), 1)}
        return {name: getattr(policy.limit, name) for name in ("limit", "period", "policy")} | figures

    def _figures(self) -> dict[str, Any]:
        ledger = self.engine.ledger
        for call in islice(ledger.requests, self._judged, None):
            if call.outcome != "accepted":
                self._reasons[str(call.code or call.fault or "cut")] += 1
        self._judged = len(ledger.requests)
        return {
            "accepted": len(ledger.accepted),
            "charged": round(ledger.charged, 6),
            "balance": round(self.engine.balance, 6),
            "refused": ledger.refused,
            "reasons": self._reasons.most_common(),
            "polls": ledger.polls,
            "uploads": len(ledger.uploads),
            "callbacks": len(ledger.callbacks),
        }


def task_row(task: Task, clock: Clock) -> dict[str, Any]:
    """A task for the page; its prompt and all else that came with it are others' words."""
    now = clock.now()
    ended = task.finished(now)
    return {
        "id": task.id,
        "number": task.index + 1,
        "prompt": task.prompt,
        "model": task.body["model"],
        "shape": " · ".join(task.shape),
        "state": task.state(now),
        "stages": list(task.plan.states or ("waiting",)),
        "accepted": clock.milliseconds(task.accepted_at),
        "ends": None if task.finishes_at == float("inf") else clock.milliseconds(task.finishes_at),
        "ended": ended,
        "price": task.price,
        "pictures": [urlsplit(url).path for url in task.result_urls] if ended else [],
        "references": [reference_path(reference) for reference in task.references],
        "failure": ": ".join(task.failure) if ended and task.plan.failing else None,
        "callback": task.callback_url is not None,
    }


def reference_path(reference: Reference) -> str | None:
    """Where the page finds a reference picture; None for one of another host, which the page does not ask."""
    match reference:
        case StoredFile():
            return UPLOADS + quote(reference.path)
        case ResultRef():
            return f"/results/{reference.task_id}/{reference.number}.jpg"
        case str():
            return None


def ledger_document(engine: Engine) -> dict[str, Any]:
    """The whole ledger as JSON has it; times are ISO 8601."""
    ledger, clock = engine.ledger, engine.clock
    return attrs.asdict(ledger, recurse=False) | {
        "accepted_at": [clock.iso(moment) for moment in ledger.accepted_at],
        "balance": engine.balance,
        "polls": ledger.polls,
        "poll_times": {task: [clock.iso(moment) for moment in times] for task, times in ledger.poll_times.items()},
        "requests": [
            timed(call, clock) | {"submission": submission_of(call.body), "body": sendable(call.body)}
            for call in ledger.requests
        ],
        "uploads": [timed(call, clock) for call in ledger.uploads],
        "callbacks": [timed(call, clock) for call in ledger.callbacks],
        "authorization_seen": sorted(ledger.authorization_seen),
    }


def submission_of(body: Mapping[str, Any] | None) -> str | None:
    """The client's own name of a request, which only its callback address carries: `ref`; None without one."""
    address = (body or {}).get("callBackUrl")
    with suppress(ValueError):
        return parse_qs(urlsplit(address).query).get("ref", [None])[-1] if isinstance(address, str) else None
    return None


def sendable(body: Any) -> Any:
    """What came, as JSON knows it: no NaN, which Python reads; None for what is too deep to be written again."""
    try:
        return json.loads(json.dumps(body), parse_constant=str)
    except RecursionError:
        return None


def timed(call: Any, clock: Clock) -> dict[str, Any]:
    """An entry of the ledger with its time as ISO 8601."""
    # Not recursively: a request is as it came.
    return attrs.asdict(call, recurse=False) | {"time": clock.iso(call.time)}
