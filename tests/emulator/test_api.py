"""The emulator's tasks: what is accepted, refused, charged and told, and the life of the server itself."""

import asyncio
import gc
import json
import math
import socket
from typing import Any

import aiohttp
import attrs
import pytest
from emulator_client import CREATE, CREDIT, DOWNLOAD_URL, RECORD, emulated, image_to_image, text_to_image

from flux2_async.emulator import Emulator, Limit, Plan, Script


async def test_an_accepted_task_gets_a_recorded_kind_of_id() -> None:
    """The answer is code 200 and an id of 32 hex digits."""
    async with emulated() as raw:
        answer = await raw.create()

        assert answer.status == 200
        assert answer.json == {"code": 200, "msg": "success", "data": {"taskId": raw.emulator.ledger.accepted[0]}}
        assert len(answer.data["taskId"]) == 32
        assert int(answer.data["taskId"], 16) >= 0


async def test_a_pending_record_has_the_recorded_shape() -> None:
    """While pending there are nulls, an empty resultJson, and neither updateTime nor creditsConsumed."""
    async with emulated() as raw:
        task_id = await raw.submit()
        data = (await raw.record(task_id)).data

        created = data.pop("createTime")
        param = json.loads(data.pop("param"))

        assert data == {
            "taskId": task_id,
            "model": "flux-2/pro-text-to-image",
            "state": "waiting",
            "resultJson": "",
            "failCode": None,
            "failMsg": None,
            "costTime": None,
            "completeTime": None,
        }
        assert created > 1_700_000_000_000
        assert param["model"] == "flux-2/pro-text-to-image"
        assert json.loads(param["input"]) == text_to_image()["input"]


async def test_a_task_goes_through_its_states_and_succeeds() -> None:
    """The states share the duration evenly, then comes success with addresses, seconds and credits."""
    async with emulated(Script(plans=Plan(duration=9.0, pictures=2))) as raw:
        task_id = await raw.submit()
        seen = []
        for pause in (1.0, 3.0, 3.0, 1.9):
            await asyncio.sleep(pause)
            seen.append((await raw.record(task_id)).data["state"])
        await asyncio.sleep(0.2)
        data = (await raw.record(task_id)).data

        assert seen == ["waiting", "queuing", "generating", "generating"]
        assert data["state"] == "success"
        assert data["costTime"] == 9
        assert data["completeTime"] - data["createTime"] == 9000
        assert data["creditsConsumed"] == 5.0
        assert json.loads(data["resultJson"]) == {"resultUrls": list(raw.emulator.task(task_id).result_urls)}
        assert len(raw.emulator.task(task_id).result_urls) == 2


@pytest.mark.parametrize(
    ("plan", "code", "words"),
    [
        (Plan(outcome="fail"), "500", "Internal Error"),
        (Plan(outcome="moderated"), "422", "CONTENT_POLICY_BLOCKED"),
        (Plan(outcome="fail", fail_code="boom", fail_message="No luck"), "boom", "No luck"),
    ],
    ids=["fail", "moderated", "own words"],
)
async def test_a_failed_task_tells_why_and_costs_nothing(plan: Plan, code: str, words: str) -> None:
    """State fail with failCode and failMsg as text, null resultJson, zero credits, untouched balance."""
    async with emulated(Script(plans=plan)) as raw:
        task_id = await raw.submit()
        await asyncio.sleep(2.0)
        data = (await raw.record(task_id)).data

        assert (data["state"], data["failCode"], data["creditsConsumed"]) == ("fail", code, 0.0)
        assert words in data["failMsg"]
        assert data["resultJson"] is None
        assert await raw.credits() == 1000.0
        assert raw.emulator.ledger.charged == 0.0


async def test_an_empty_success_names_no_file_and_is_charged() -> None:
    """`empty` is state success with an empty resultUrls."""
    async with emulated(Script(plans=Plan(outcome="empty", duration=0))) as raw:
        task_id = await raw.submit()
        data = (await raw.record(task_id)).data

        assert (data["state"], data["resultJson"]) == ("success", '{"resultUrls":[]}')
        assert await raw.credits() == 995.0


@pytest.mark.parametrize(
    ("model", "resolution", "price"),
    [
        ("flux-2/flex-text-to-image", "1K", 14),
        ("flux-2/flex-text-to-image", "2K", 24),
        ("flux-2/pro-text-to-image", "1K", 5),
        ("flux-2/pro-text-to-image", "2K", 7),
    ],
)
async def test_prices_are_upstreams(model: str, resolution: str, price: float) -> None:
    """Flex costs 14 and 24 credits, pro 5 and 7."""
    async with emulated() as raw:
        await raw.submit(text_to_image(resolution=resolution) | {"model": model})

        assert await raw.credits() == 1000 - price
        assert raw.emulator.ledger.charged == price


async def test_who_cannot_pay_is_refused() -> None:
    """402 when the balance is below the price, and nothing is created or charged."""
    async with emulated(Script(credits=9.5, plans=Plan(credits=2.5))) as raw:
        first = await raw.create()
        second = await raw.create()
        third = await raw.create()

        assert [first.code, second.code, third.code] == [200, 200, 402]
        assert third.data is None
        assert raw.emulator.ledger.charged == 5.0
        assert raw.emulator.ledger.refused == 1
        assert await raw.credits() == 4.5


async def test_plans_come_in_order_and_the_last_serves_the_rest() -> None:
    """A sequence of plans is used by acceptance; refused calls use none up."""
    async with emulated(Script(plans=[Plan(outcome="fail"), Plan(outcome="empty")])) as raw:
        ids = [await raw.submit()]
        await raw.create({"model": "nonsense"})
        ids += [await raw.submit(), await raw.submit()]

        assert [raw.emulator.task(i).plan.outcome for i in ids] == ["fail", "empty", "empty"]
        assert [raw.emulator.task(i).index for i in ids] == [0, 1, 2]


async def test_a_function_makes_the_plan_from_number_and_body() -> None:
    """`plans` may be a function of the accepted task's number and its request."""
    seen: list[tuple[int, str]] = []

    def plan(index: int, body: Any) -> Plan:
        seen.append((index, body["input"]["prompt"]))
        return Plan(duration=0, outcome="fail" if "bad" in body["input"]["prompt"] else "success")

    async with emulated(Script(plans=plan)) as raw:
        good, bad = await raw.submit(prompt="good one"), await raw.submit(prompt="bad one")

        assert raw.emulator.task(good).state == "success"
        assert raw.emulator.task(bad).state == "fail"
        assert seen == [(0, "good one"), (1, "bad one")]


@pytest.mark.parametrize(
    ("style", "status", "code", "message"),
    [("422", 200, 422, "recordInfo is null"), ("null", 200, 200, "success"), ("404", 200, 404, "Task not found")],
)
async def test_a_record_can_be_hidden_for_a_while(style: Any, status: int, code: int, message: str) -> None:
    """For `hidden_for` seconds recordInfo does not know the task, in one of three ways."""
    async with emulated(Script(plans=Plan(duration=1, hidden_for=5.0, hidden_style=style))) as raw:
        task_id = await raw.submit()
        await asyncio.sleep(4.9)
        hidden = await raw.record(task_id)
        await asyncio.sleep(0.2)
        shown = await raw.record(task_id)

        assert (hidden.status, hidden.code, hidden.json["msg"], hidden.data) == (status, code, message, None)
        assert shown.data["state"] == "success"


async def test_an_unknown_id_is_answered_like_a_task_too_young() -> None:
    """422 "recordInfo is null" for an id that does not exist, 400 without any."""
    async with emulated() as raw:
        unknown = await raw.record("f" * 32)
        missing = await raw.call("GET", RECORD)

        assert unknown.json == {"code": 422, "msg": "recordInfo is null", "data": None}
        assert missing.code == 400


async def test_a_task_can_be_finished_by_hand() -> None:
    """`finish` ends an endless task with its planned outcome, and does nothing to one that has ended."""
    async with emulated(Script(plans=Plan(duration=math.inf))) as raw:
        task_id = await raw.submit()
        await asyncio.sleep(86400)
        before = (await raw.record(task_id)).data["state"]
        raw.emulator.finish(task_id)
        first = (await raw.record(task_id)).data
        await asyncio.sleep(5)
        raw.emulator.finish(task_id)

        assert before == "waiting"
        assert (first["state"], first["costTime"]) == ("success", 86400)
        assert (await raw.record(task_id)).data == first
        with pytest.raises(KeyError):
            raw.emulator.finish("unknown")


async def test_the_record_can_lag_behind() -> None:
    """With `record_lag` the task has ended but recordInfo still shows the last pending state."""
    async with emulated(Script(plans=Plan(duration=1, record_lag=2.0))) as raw:
        task_id = await raw.submit()
        await asyncio.sleep(1.5)
        lagging = (await raw.record(task_id)).data
        truth = raw.emulator.task(task_id).state
        await asyncio.sleep(2)

        assert (lagging["state"], lagging["completeTime"], truth) == ("generating", None, "success")
        assert (await raw.record(task_id)).data["state"] == "success"


IMAGES = [f"https://files.example/{n}.png" for n in range(9)]


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({}, 500, "This field is required"),
        ({"model": "flux-2-pro", "input": {}}, 422, "The page does not exist or is not published"),
        ({"model": ["flux-2/pro-text-to-image"], "input": {}}, 422, "The page does not exist"),
        ({"model": "flux-2/pro-text-to-image"}, 500, "This field is required"),
        ({"model": "flux-2/pro-text-to-image", "input": []}, 500, "must be an object"),
        (text_to_image(prompt=None), 500, "This field is required"),
        (text_to_image(prompt=7), 500, "prompt it must be a string"),
        (text_to_image(prompt="ab"), 422, "between 3 and 5000"),
        (text_to_image(prompt="a" * 5001), 422, "between 3 and 5000"),
        (text_to_image(aspect_ratio="5:4"), 422, "aspect_ratio is not within"),
        (text_to_image(aspect_ratio="auto"), 422, "aspect_ratio is not within"),
        (text_to_image(resolution="4K"), 422, "resolution is not within"),
        (text_to_image(resolution=1), 422, "resolution is not within"),
        (text_to_image(nsfw_checker="false"), 500, "nsfw_checker it must be a boolean"),
        (text_to_image() | {"callBackUrl": "ftp://x"}, 422, "callBackUrl"),
        (image_to_image(), 422, "between 1 and 8 images"),
        (image_to_image(*IMAGES), 422, "between 1 and 8 images"),
        (image_to_image("https://files.example/a b.png"), 422, "invalid URL"),
        (image_to_image("data:image/png;base64,xx"), 422, "invalid URL"),
        (image_to_image("http://[broken"), 422, "invalid URL"),
        (image_to_image(input_urls="https://files.example/a.png"), 500, "input_urls it must be an array"),
        ([], 422, "JSON object"),
    ],
)
async def test_a_bad_request_is_refused_in_the_services_words(body: Any, code: int, words: str) -> None:
    """A missing field or a wrong type is a 500, a value out of bounds a 422; nothing is created."""
    async with emulated() as raw:
        answer = await raw.create(body)

        assert (answer.status, answer.code, answer.data) == (200, code, None)
        assert words in answer.json["msg"]
        assert raw.emulator.ledger.accepted == []
        assert [call.outcome for call in raw.emulator.ledger.requests] == ["refused"]


@pytest.mark.parametrize("text", [b"{", b"\xff", b"", b"[" * 100_000], ids=["cut", "no text", "empty", "deep"])
async def test_a_body_that_is_no_json_is_refused(text: bytes) -> None:
    """422, and the ledger keeps the call without a body."""
    async with emulated() as raw:
        answer = await raw.call("POST", CREATE, data=text, headers={"Content-Type": "application/json"})

        assert answer.code == 422
        assert raw.emulator.ledger.requests[0].body is None


async def test_unknown_input_fields_and_any_character_are_taken() -> None:
    """Fields that are not known pass through, and `param` gives back what was sent, lone surrogates included."""
    async with emulated() as raw:
        body = text_to_image(prompt="чайник 茶 \U0001fad6 \ud800", seed=7)
        task_id = await raw.submit(body)
        param = json.loads((await raw.record(task_id)).data["param"])

        assert json.loads(param["input"]) == body["input"]


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": ""}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic emulator-key"}],
    ids=["none", "wrong key", "wrong scheme"],
)
async def test_every_endpoint_wants_the_key(headers: dict[str, str]) -> None:
    """401 on all seven endpoints, in each one's own envelope, and nothing is created."""
    async with emulated(Script(error_style="http")) as raw:
        for method, path in (("POST", CREATE), ("GET", RECORD), ("GET", CREDIT), ("POST", DOWNLOAD_URL)):
            answer = await raw.call(method, path, headers=headers, json=text_to_image())
            assert (answer.status, answer.json) == (
                401,
                {"code": 401, "msg": "You do not have access permissions", "data": None},
            )
        for way in ("stream", "base64", "url"):
            answer = await raw.call("POST", f"/file-upload/api/file-{way}-upload", headers=headers, json={})
            assert (answer.status, answer.json) == (
                401,
                {"success": False, "code": 401, "msg": "Authentication failed: Invalid API Key"},
            )
        assert raw.emulator.ledger.accepted == []


async def test_a_wrong_content_type_is_refused_like_a_wrong_key() -> None:
    """Both JSON endpoints want application/json, else 401."""
    async with emulated() as raw:
        for path in (CREATE, DOWNLOAD_URL):
            answer = await raw.call("POST", path, data=b"{}", headers={"Content-Type": "text/plain"})
            assert answer.code == 401


async def test_the_error_style_chooses_the_http_status() -> None:
    """`http` gives the refusal's code as HTTP status, with the same JSON; a script may change it while running."""
    async with emulated(Script(error_style="http")) as raw:
        real = await raw.create({"model": "nonsense"})
        raw.emulator.script.error_style = "body"
        hidden = await raw.create({"model": "nonsense"})

        assert (real.status, hidden.status) == (422, 200)
        assert real.json == hidden.json


async def test_what_is_no_endpoint_gets_a_real_status() -> None:
    """404 for an unknown path, 405 with Allow for a wrong method."""
    async with emulated() as raw:
        unknown = await raw.call("GET", "/api/v1/jobs/getTaskDetail")
        wrong = await raw.call("GET", CREATE)
        upload = await raw.call("DELETE", "/file-upload/api/file-url-upload")

        assert (unknown.status, unknown.code) == (404, 404)
        assert (wrong.status, wrong.code, wrong.headers["Allow"]) == (405, 405, "POST")
        assert (upload.status, upload.json["success"]) == (405, False)


async def test_recordinfo_can_print_message_instead_of_msg() -> None:
    """`record_text` names the text field the way Apikley's page does."""
    async with emulated(Script(record_text="message")) as raw:
        answer = await raw.record(await raw.submit())

        assert answer.json["message"] == "success"
        assert "msg" not in answer.json


async def test_latency_delays_the_answer_and_arrival_the_judgement() -> None:
    """`arrival` passes before a task is accepted, `latency` after; both may depend on the endpoint."""
    script = Script(arrival=lambda endpoint: 3.0 if endpoint == "createTask" else 0.0, latency=2.0)
    async with emulated(script) as raw:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        await raw.submit()
        answered = loop.time()
        await raw.credits()

        assert raw.emulator.ledger.requests[0].time - sent == pytest.approx(3.0)
        assert answered - sent == pytest.approx(5.0)
        assert loop.time() - answered == pytest.approx(2.0)


@pytest.mark.parametrize(("kind", "status", "text"), [("455", 200, b"maintenance"), ("502", 502, b"<html>")])
async def test_an_outage_answers_everything_alike(kind: Any, status: int, text: bytes) -> None:
    """From..to seconds after the start everything is 455, or 502 with HTML, and nothing is accepted."""
    async with emulated(Script(outage=(10.0, 20.0), outage_kind=kind)) as raw:
        task_id = await raw.submit()
        await asyncio.sleep(10.0)
        down = [await raw.create(), await raw.record(task_id), await raw.call("GET", CREDIT), await raw.upload(b"x")]
        await asyncio.sleep(10.0)
        up = await raw.record(task_id)

        assert [(answer.status, text in answer.body) for answer in down] == [(status, True)] * 4
        assert up.data["state"] == "success"
        assert len(raw.emulator.ledger.accepted) == 1
        assert raw.emulator.ledger.requests[1].outcome == ("refused" if kind == "455" else "cut")
        assert raw.emulator.ledger.polls_of(task_id) == 2


async def test_an_outage_can_be_limited_to_endpoints() -> None:
    """With `outage_on` the others go on."""
    async with emulated(Script(outage=(0.0, 600.0), outage_on=["recordInfo"])) as raw:
        task_id = await raw.submit()

        assert (await raw.record(task_id)).code == 455


async def test_the_ledger_knows_every_call() -> None:
    """Requests with outcome and time, polls by task, the most calls at one time, and who was sent the key."""
    async with emulated(Script(latency=1.0, limit=Limit(2, 10.0))) as raw:
        await asyncio.gather(*(raw.create() for _ in range(3)))
        ledger = raw.emulator.ledger
        await asyncio.gather(*(raw.record(ledger.accepted[0]) for _ in range(4)))

        assert sorted(call.outcome for call in ledger.requests) == ["accepted", "accepted", "refused"]
        assert sorted(call.code or 0 for call in ledger.requests) == [200, 200, 429]
        assert {call.task_id for call in ledger.requests} == {*ledger.accepted, None}
        assert ledger.requests[0].body == text_to_image()
        assert (ledger.polls, ledger.polls_of(ledger.accepted[0]), ledger.polls_of(ledger.accepted[1])) == (4, 4, 0)
        assert ledger.max_in_flight == {"createTask": 3, "recordInfo": 4}
        assert ledger.in_flight["recordInfo"] == 0
        assert ledger.authorization_seen == {"createTask", "recordInfo"}


async def test_the_ledger_counts_the_fullest_window() -> None:
    """max_in_window looks at every half-open window, not only at aligned ones."""
    async with emulated() as raw:
        for pause in (0.0, 4.0, 4.0, 3.0, 8.0):
            await asyncio.sleep(pause)
            await raw.submit()
        first = raw.emulator.ledger.accepted_at[0]

        # 0, 4, 8, 11, 19
        assert raw.emulator.ledger.accepted_at[-1] - first == pytest.approx(19.0)
        assert [raw.emulator.ledger.max_in_window(period) for period in (1.0, 5.0, 9.0, 100.0)] == [1, 2, 3, 5]


async def test_stopping_and_starting_keeps_address_tasks_and_ledger() -> None:
    """In between connections are refused; afterwards everything is as it was, and time has gone on."""
    async with emulated(Script(plans=Plan(duration=30.0))) as raw:
        address = raw.emulator.base_url
        task_id = await raw.submit()
        await raw.emulator.stop()
        with pytest.raises(aiohttp.ClientConnectionError):
            await raw.record(task_id)
        await raw.emulator.stop()
        await asyncio.sleep(30)
        await raw.emulator.start()

        assert raw.emulator.base_url == address
        assert (await raw.record(task_id)).data["state"] == "success"
        assert raw.emulator.ledger.polls == 1


async def test_starting_twice_and_asking_too_early_are_clear_errors() -> None:
    """The texts say what to do."""
    emulator = Emulator()
    with pytest.raises(RuntimeError, match="start the emulator first"):
        _ = emulator.base_url
    async with emulator:
        with pytest.raises(RuntimeError, match="stop it first"):
            await emulator.start()
        assert emulator.upload_url == emulator.base_url + "/file-upload"
        assert emulator.base_url in repr(emulator)
        assert emulator.api_key not in repr(emulator)


async def test_stopping_does_not_wait_for_slow_answers() -> None:
    """A client that waits for a slow answer is cut off when the emulator stops."""
    async with emulated(Script(latency=3600.0)) as raw:
        loop = asyncio.get_running_loop()
        asking = asyncio.ensure_future(raw.create())
        await asyncio.sleep(1.0)
        begun = loop.time()
        await raw.emulator.stop()

        with pytest.raises(aiohttp.ClientError):
            await asking
        assert loop.time() - begun < 5.0


async def test_another_key_and_host_can_be_chosen() -> None:
    """`api_key` is the only key that is accepted; any-address is spelt as one that can be connected to."""
    async with emulated(api_key="other", host="0.0.0.0") as raw:  # noqa: S104  only to see how it is spelt
        assert raw.emulator.base_url.startswith("http://127.0.0.1:")
        assert (await raw.create()).code == 200
        assert (await raw.call("GET", CREDIT, headers={"Authorization": "Bearer emulator-key"})).code == 401


async def test_thousands_of_tasks_at_once_are_no_burden() -> None:
    """1500 tasks submitted, each known by its own id; no timer and no coroutine runs for them."""
    async with emulated(Script(credits=1e6, plans=Plan(duration=60.0))) as raw:
        ids: list[str] = []
        for _ in range(15):
            ids += await asyncio.gather(*(raw.submit() for _ in range(100)))
        # The server's connections remain, one task each.
        alive = len(asyncio.all_tasks())

        assert len(set(ids)) == 1500
        assert alive <= 102
        assert raw.emulator.ledger.charged == 7500.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Plan(duration=-1), "duration"),
        (lambda: Plan(outcome="sucess"), "outcome"),  # type: ignore[arg-type]  # the mistake is the point
        (lambda: Plan(pictures=0), "pictures"),
        (lambda: Limit(0, 10.0), "limit"),
        (lambda: Limit(20, 0.0), "period"),
        (lambda: Script(error_style="json"), "error_style"),  # type: ignore[arg-type]  # the mistake is the point
        (lambda: Script(plans=["fail"]), "plans"),  # type: ignore[list-item]  # the mistake is the point
        (lambda: Script(plans=[]), "plans"),
        (lambda: Script(faults=["hang"]), "faults"),  # type: ignore[list-item]  # the mistake is the point
        (lambda: Script(limit=20), "limit"),  # type: ignore[arg-type]  # the mistake is the point
    ],
)
def test_a_script_that_makes_no_sense_is_refused_when_made(make: Any, words: str) -> None:
    """The error names the field."""
    with pytest.raises(ValueError, match=words):
        make()


def test_plans_are_frozen_and_scripts_are_not() -> None:
    """A plan is shared by many tasks; a script may be changed while the emulator runs."""
    script = Script()
    script.limit = Limit(1, 1.0)

    assert script.limit == Limit(1, 1.0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Plan().duration = 1.0  # type: ignore[misc]  # the mistake is the point


async def test_a_connection_that_comes_with_the_stop_is_closed() -> None:
    """What was accepted in the very turn in which the emulator stops is cut like any other, and nothing warns."""
    emulator = Emulator(Script(render=False))
    await emulator.start()
    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[None]] = []
    host, _, port = emulator.base_url.rpartition("//")[2].rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        # In the ready queue before the listener is found to have something.
        loop.call_soon(lambda: stopping.append(loop.create_task(emulator.stop())))
        while not stopping:  # noqa: ASYNC110  the turns of the loop are what counts
            await asyncio.sleep(0)
        await stopping[0]
        connection.settimeout(5.0)
        assert await asyncio.to_thread(connection.recv, 1) == b""
    gc.collect()
