"""Faults: which one meets a call, and how an answer goes wrong on the wire."""

import asyncio
from collections.abc import Iterable
from itertools import count

import attrs
from aiohttp import web

from flux2_async.emulator.replies import Refusal, Reply, html, refused
from flux2_async.emulator.script import Endpoint, Fault, Script
from flux2_async.emulator.tasks import under_escaped


class Faults:
    """The faults of one emulator, each with how often it has matched so far."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._armed = [(fault, count(1)) for fault in faults]

    def __bool__(self) -> bool:
        return bool(self._armed)

    def add(self, fault: Fault) -> None:
        """One more; earlier ones come first."""
        self._armed.append((fault, count(1)))

    def clear(self) -> None:
        """Drop them all."""
        self._armed.clear()

    def take(self, endpoint: Endpoint, index: int | None) -> Fault | None:
        """The fault for a call, None for none. A call that meets one is not counted by later ones.

        `index` is the number of the createTask call, elsewhere of the task; None where there is none.
        """
        for fault, matched in self._armed:
            if fault.on == endpoint and fault.task in {None, index}:
                number = next(matched) - fault.after
                if number > 0 and (fault.times is None or number <= fault.times):
                    return fault
        return None


def undone(fault: Fault, script: Script, here: str) -> Reply:
    """What a call is answered that meets a fault and is not carried out; `here` is the emulator's address."""
    if fault.kind == "refuse":
        wait = None if fault.retry_after is None else str(fault.retry_after)
        refusal = Refusal(fault.code, fault.message, retry_after=wait)
        return refused(refusal, script.error_style, upload=fault.on == "upload")
    return distorted(Reply(b'{"code":200,"msg":"success","data":'), fault, here)


def distorted(reply: Reply, fault: Fault, here: str) -> Reply:
    """An answer as the fault lets it appear."""
    match fault.kind:
        case "html":
            return html(fault.status)
        case "redirect":
            return Reply(status=307, content_type="text/plain", headers={"Location": fault.location or here})
        case "broken_json":
            return attrs.evolve(reply, body=reply.body.rstrip(b"}"))
        case "under_escaped":
            return attrs.evolve(reply, body=under_escaped(reply.body))
        case _:
            return reply


async def deliver(request: web.BaseRequest, reply: Reply, fault: Fault | None) -> web.StreamResponse:
    """Send an answer, or fail to in the way of the fault; a `hang` ends when the emulator stops and cancels it."""
    if fault is not None and fault.kind == "hang":
        await asyncio.Event().wait()
    if fault is not None and fault.kind in {"cut_before", "cut_after"}:
        if request.transport is not None:
            request.transport.abort()
        # aiohttp wants an answer; there is no connection left to send it on.
        return web.Response()
    if fault is not None and fault.kind == "cut_body":
        headers = {**reply.headers, "Content-Type": reply.content_type}
        response = web.StreamResponse(status=reply.status, headers=headers)
        response.content_length = len(reply.body)
        response.force_close()
        await response.prepare(request)
        await response.write(reply.body[: len(reply.body) // 2])
        if request.transport is not None:
            request.transport.close()
        return response
    return web.Response(
        body=reply.body,
        status=reply.status,
        content_type=reply.content_type,
        charset="utf-8" if reply.content_type == "application/json" else None,
        headers=reply.headers,
    )
