"""The emulator's callbacks: once, early, twice, late, lost; signed; and repeated when nobody answers."""

import asyncio
import gc
import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
from aiohttp import web
from emulator_client import emulated, text_to_image

from flux2_async.emulator import Fault, Plan, Script
from flux2_async.emulator.callbacks import signature


@attrs.define
class Receiver:
    url: str = ""
    statuses: list[int] = attrs.field(factory=list)
    hold: float = 0.0
    got: list[tuple[float, bytes, Mapping[str, str]]] = attrs.field(factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((asyncio.get_running_loop().time(), await request.read(), request.headers.copy()))
        await asyncio.sleep(self.hold)
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, body, _ in self.got]

    def times(self, since: float) -> list[float]:
        return [round(moment - since, 1) for moment, _, _ in self.got]


@asynccontextmanager
async def receiving(*statuses: int, hold: float = 0.0) -> AsyncIterator[Receiver]:
    receiver = Receiver(statuses=list(statuses), hold=hold)
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook?ref=r1"
    try:
        yield receiver
    finally:
        await runner.cleanup()


def asking(receiver: Receiver, **changes: Any) -> dict[str, Any]:
    return text_to_image(**changes) | {"callBackUrl": receiver.url}


async def test_what_was_told_is_let_go() -> None:
    """An emulator that runs for days keeps no asyncio task of a callback that was delivered, nor of one replaced."""
    async with receiving() as receiver, emulated(Script(plans=Plan(duration=20.0))) as raw:
        before = ended_tasks()
        for _ in range(50):
            raw.emulator.finish(await raw.submit(asking(receiver)))
        await asyncio.sleep(1000.0)

        assert len(receiver.got) == 50
        assert ended_tasks() - before < 25


def ended_tasks() -> int:
    gc.collect()
    return sum(isinstance(each, asyncio.Task) and each.done() for each in gc.get_objects())


async def test_the_end_of_a_task_is_told_once() -> None:
    """At the end comes one POST of JSON with the recorded shape of a success; the ledger knows the answer."""
    async with receiving() as receiver, emulated(Script(plans=Plan(duration=20.0))) as raw:
        task_id = await raw.submit(asking(receiver))
        await asyncio.sleep(19.9)
        before = len(receiver.got)
        await asyncio.sleep(1000.0)
        record = (await raw.record(task_id)).data

        assert (before, len(receiver.got)) == (0, 1)
        assert receiver.got[0][2]["Content-Type"] == "application/json"
        assert "X-Webhook-Signature" not in receiver.got[0][2]
        assert receiver.bodies[0] == {
            "code": 200,
            "msg": "Playground task completed successfully.",
            "data": {
                "taskId": task_id,
                "model": "flux-2/pro-text-to-image",
                "state": "success",
                "param": record["param"],
                "resultJson": record["resultJson"],
                "costTime": 20,
                "completeTime": record["completeTime"],
                "createTime": record["createTime"],
                "updateTime": record["completeTime"],
                "creditsConsumed": 5.0,
            },
        }
        assert json.loads(record["param"])["callBackUrl"] == receiver.url
        call = raw.emulator.ledger.callbacks[0]
        assert (call.task_id, call.url, call.attempt, call.status) == (task_id, receiver.url, 1, 200)


async def test_a_failure_is_told_with_code_501() -> None:
    """There are failCode and failMsg, no stamps, no resultJson, zero credits."""
    async with receiving() as receiver, emulated(Script(plans=Plan(outcome="moderated"))) as raw:
        task_id = await raw.submit(asking(receiver))
        await asyncio.sleep(5)
        body = receiver.bodies[0]

        assert (body["code"], body["msg"]) == (501, "Playground task failed.")
        assert {
            name: body["data"][name] for name in ("taskId", "state", "failCode", "costTime", "creditsConsumed")
        } == {
            "taskId": task_id,
            "state": "fail",
            "failCode": "422",
            "costTime": 2,
            "creditsConsumed": 0.0,
        }
        assert not {"resultJson", "completeTime", "createTime"} & set(body["data"])


async def test_an_early_callback_beats_the_answer() -> None:
    """`early`: the receiver has the end of the task before createTask is answered, and the record agrees."""
    script = Script(
        plans=Plan(duration=50.0, callback="early"), latency=lambda name: 5.0 if name == "createTask" else 0.0
    )
    async with receiving() as receiver, emulated(script) as raw:
        task_id = await raw.submit(asking(receiver))
        answered = asyncio.get_running_loop().time()
        state = (await raw.record(task_id)).data["state"]
        await asyncio.sleep(100)

        assert receiver.times(answered) == [-5.0]
        assert receiver.bodies[0]["data"]["taskId"] == task_id
        assert state == "success"


async def test_an_early_callback_nobody_takes_is_repeated() -> None:
    """The createTask is answered all the same, and the repetition comes after a minute."""
    async with receiving(500) as receiver, emulated(Script(plans=Plan(callback="early"))) as raw:
        begun = asyncio.get_running_loop().time()
        await raw.submit(asking(receiver))
        await asyncio.sleep(100)

        assert receiver.times(begun) == [0.0, 60.0]


@pytest.mark.parametrize(
    ("plan", "times"),
    [
        (Plan(callback="twice"), [2.0, 2.0]),
        (Plan(callback="late"), [32.0]),
        (Plan(callback="late", callback_delay=7.0), [9.0]),
        (Plan(callback="once", callback_delay=7.0), [9.0]),
        (Plan(callback="lost"), []),
    ],
    ids=["twice", "late", "late by 7", "delayed", "lost"],
)
async def test_callbacks_come_when_planned(plan: Plan, times: list[float]) -> None:
    """`twice` repeats what was received, `late` waits, `lost` never comes."""
    async with receiving() as receiver, emulated(Script(plans=plan)) as raw:
        begun = asyncio.get_running_loop().time()
        await raw.submit(asking(receiver))
        await asyncio.sleep(300)

        assert receiver.times(begun) == times
        assert len(raw.emulator.ledger.callbacks) == len(times)


async def test_nobody_is_told_who_did_not_ask() -> None:
    """Without callBackUrl there is no callback, `early` included."""
    async with emulated(Script(plans=[Plan(), Plan(callback="early")])) as raw:
        await raw.submit()
        await raw.submit()
        await asyncio.sleep(100)

        assert raw.emulator.ledger.callbacks == []


async def test_an_unanswered_callback_is_repeated_three_times() -> None:
    """After 1, 5 and 15 minutes, then never again; each attempt is in the ledger with its answer."""
    async with receiving(500, 302, 404, 503) as receiver, emulated(Script(plans=Plan(duration=0))) as raw:
        begun = asyncio.get_running_loop().time()
        await raw.submit(asking(receiver))
        await asyncio.sleep(3000)

        assert receiver.times(begun) == [0.0, 60.0, 360.0, 1260.0]
        assert [(call.attempt, call.status) for call in raw.emulator.ledger.callbacks] == [
            (1, 500),
            (2, 302),
            (3, 404),
            (4, 503),
        ]


async def test_a_receiver_has_limited_time() -> None:
    """An answer after the time limit counts as none; the rule of repetition is the script's."""
    script = Script(plans=Plan(duration=0), callback_timeout=10.0, callback_retries=(5.0,))
    async with receiving(hold=11.0) as receiver, emulated(script) as raw:
        begun = asyncio.get_running_loop().time()
        await raw.submit(asking(receiver))
        await asyncio.sleep(100)

        assert receiver.times(begun) == [0.0, 15.0]
        assert [call.status for call in raw.emulator.ledger.callbacks] == [None, None]


async def test_a_receiver_that_is_not_there_is_no_trouble() -> None:
    """A refused connection counts as unanswered."""
    async with emulated(Script(plans=Plan(duration=0), callback_retries=())) as raw:
        await raw.submit(text_to_image() | {"callBackUrl": "http://127.0.0.1:1/hook"})
        await asyncio.sleep(1)

        assert [call.status for call in raw.emulator.ledger.callbacks] == [None]


async def test_callbacks_are_signed_with_the_accounts_key() -> None:
    """X-Webhook-Signature is the HMAC of id and timestamp."""
    async with receiving() as receiver, emulated(Script(plans=Plan(duration=0), hmac_key="secret")) as raw:
        task_id = await raw.submit(asking(receiver))
        await asyncio.sleep(1)
        headers = receiver.got[0][2]

        assert headers["X-Webhook-Signature"] == signature("secret", task_id, headers["X-Webhook-Timestamp"])
        assert int(headers["X-Webhook-Timestamp"]) > 1_700_000_000


def test_the_signature_is_upstreams() -> None:
    """The published check value."""
    assert (
        signature("test-key", "ee9c2715375b7837f8bb51d641ff5863", "1769670760")
        == "kaRdMyPIATX8gQVYxP8Mn46UnMuqft8BZvnk1FLpda4="
    )


async def test_the_guides_short_form_can_be_chosen() -> None:
    """`guide` sends the id at the root and as data.task_id, and nothing of the result."""
    async with receiving() as receiver, emulated(Script(plans=Plan(duration=0), callback_shape="guide")) as raw:
        task_id = await raw.submit(asking(receiver))
        await asyncio.sleep(1)

        assert receiver.bodies == [
            {
                "taskId": task_id,
                "code": 200,
                "msg": "Success",
                "data": {"task_id": task_id, "callbackType": "task_completed"},
            }
        ]


async def test_finishing_by_hand_tells_at_once() -> None:
    """`finish` moves the callback forward, and finishing again adds none."""
    async with receiving() as receiver, emulated(Script(plans=[Plan(duration=math.inf), Plan(duration=900.0)])) as raw:
        begun = asyncio.get_running_loop().time()
        ids = [await raw.submit(asking(receiver)), await raw.submit(asking(receiver))]
        await asyncio.sleep(100)
        for task_id in ids * 2:
            raw.emulator.finish(task_id)
        await asyncio.sleep(1000)

        assert receiver.times(begun) == [100.0, 100.0]


@pytest.mark.parametrize(
    ("kind", "received", "statuses"),
    [
        ("cut_before", [60.0], [None, 200]),
        ("cut_after", [0.0, 60.0], [None, 200]),
        ("html", [0.0], [200]),
        ("broken_json", [0.0], [200]),
    ],
)
async def test_callbacks_meet_faults(kind: Any, received: list[float], statuses: list[int | None]) -> None:
    """An attempt is lost, or its answer is, or its body is bad."""
    script = Script(plans=Plan(duration=0), faults=[Fault("callback", kind)])
    async with receiving() as receiver, emulated(script) as raw:
        begun = asyncio.get_running_loop().time()
        await raw.submit(asking(receiver))
        await asyncio.sleep(100)

        assert receiver.times(begun) == received
        assert [call.status for call in raw.emulator.ledger.callbacks] == statuses
        if kind in {"html", "broken_json"}:
            with pytest.raises(json.JSONDecodeError):
                _ = receiver.bodies


async def test_a_stopped_emulator_tells_nothing_and_a_new_start_goes_on() -> None:
    """Timers stop with the emulator; tasks that have not ended by the next start are told then."""
    async with receiving() as receiver, emulated(Script(plans=[Plan(duration=10.0), Plan(duration=100.0)])) as raw:
        begun = asyncio.get_running_loop().time()
        await raw.submit(asking(receiver))
        await raw.submit(asking(receiver))
        await raw.emulator.stop()
        await asyncio.sleep(50)
        await raw.emulator.start()
        await asyncio.sleep(100)

        assert receiver.times(begun) == [100.0]


async def test_stopping_ends_a_callback_under_way() -> None:
    """A receiver that is slow keeps nobody from stopping."""
    async with receiving(hold=10.0) as receiver, emulated(Script(plans=Plan(duration=0))) as raw:
        loop = asyncio.get_running_loop()
        await raw.submit(asking(receiver))
        await asyncio.sleep(5.0)
        begun = loop.time()
        await raw.emulator.stop()

        assert len(receiver.got) == 1
        assert loop.time() - begun < 1.0
        assert raw.emulator.ledger.callbacks == []
