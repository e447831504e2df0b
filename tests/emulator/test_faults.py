"""What the emulator lets go wrong: every kind of fault, on the wire."""

import asyncio
import json
from functools import partial
from typing import Any

import aiohttp
import pytest
from emulator_client import RawClient, emulated, text_to_image

from flux2_async.emulator import Fault, Limit, Plan, Script
from flux2_async.emulator.script import ENDPOINTS

CUT = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


def ledger_line(raw: RawClient) -> tuple[Any, ...]:
    call = raw.emulator.ledger.requests[-1]
    return call.outcome, call.code, call.fault, call.task_id is not None


async def test_refuse_answers_with_a_code_of_choice() -> None:
    """`refuse` has a code, words and a Retry-After, and creates nothing."""
    fault = Fault("createTask", "refuse", code=433, message="cap reached", retry_after=2.5)
    async with emulated(Script(faults=[fault], error_style="http")) as raw:
        answer = await raw.create()

        assert (answer.status, answer.json) == (433, {"code": 433, "msg": "cap reached", "data": None})
        assert answer.headers["Retry-After"] == "2.5"
        assert ledger_line(raw) == ("refused", 433, "refuse", False)
        assert raw.emulator.ledger.refused == 1
        assert (await raw.create()).code == 200


async def test_refuse_uses_the_usual_words_by_default() -> None:
    """Without words of its own a refusal says what the service usually says, uploads in their own envelope."""
    faults = [Fault("createTask", "refuse"), Fault("upload", "refuse", code=500), Fault("credit", "refuse", code=999)]
    async with emulated(Script(faults=faults)) as raw:
        assert (await raw.create()).json == {"code": 429, "msg": "Rate limit exceeded", "data": None}
        assert (await raw.upload(b"x")).json == {"success": False, "code": 500, "msg": "Server exception"}
        assert (await raw.call("GET", "/api/v1/chat/credit")).code == 999
        assert raw.emulator.ledger.uploads == []


@pytest.mark.parametrize("accepted", [False, True])
async def test_html_comes_from_the_proxy_in_front(accepted: bool) -> None:
    """`html` is a page under an HTTP status; whether the task exists is the fault's choice."""
    async with emulated(Script(faults=[Fault("createTask", "html", status=504, accepted=accepted)])) as raw:
        answer = await raw.create()

        assert (answer.status, answer.headers["Content-Type"]) == (504, "text/html")
        assert b"<h1>504</h1>" in answer.body
        assert len(raw.emulator.ledger.accepted) == accepted
        assert ledger_line(raw) == (("accepted", 200, "html", True) if accepted else ("cut", None, "html", False))


async def test_broken_json_of_an_accepted_task_still_names_it() -> None:
    """With `accepted`, the reply lacks its closing braces only."""
    async with emulated(Script(faults=[Fault("createTask", "broken_json", accepted=True)])) as raw:
        answer = await raw.create()
        task_id = raw.emulator.ledger.accepted[0]

        assert answer.body == b'{"code":200,"msg":"success","data":{"taskId":"' + task_id.encode() + b'"'


async def test_broken_json_without_a_task_names_none() -> None:
    """Without, nothing was created and the reply breaks off earlier."""
    async with emulated(Script(faults=[Fault("createTask", "broken_json")])) as raw:
        answer = await raw.create()

        assert answer.body == b'{"code":200,"msg":"success","data":'
        assert ledger_line(raw) == ("cut", None, "broken_json", False)


async def test_broken_json_of_a_record_is_the_real_one_cut_short() -> None:
    """The answer lacks its end."""
    async with emulated(Script(faults=[Fault("recordInfo", "broken_json")])) as raw:
        task_id = await raw.submit()
        broken, sound = await raw.record(task_id), await raw.record(task_id)

        assert broken.body == sound.body.rstrip(b"}")
        with pytest.raises(json.JSONDecodeError):
            _ = broken.json


async def test_under_escaped_param_spoils_the_json_and_nothing_else() -> None:
    """All values are there, but `param` lacks one level of escaping."""
    async with emulated(Script(faults=[Fault("recordInfo", "under_escaped")])) as raw:
        task_id = await raw.submit(prompt='say "hello"')
        spoilt, sound = await raw.record(task_id), await raw.record(task_id)

        with pytest.raises(json.JSONDecodeError):
            _ = spoilt.json
        param = sound.data["param"]
        assert spoilt.body.decode() == sound.body.decode().replace(json.dumps(param), f'"{param}"')
        assert spoilt.body != sound.body


async def test_under_escaping_leaves_an_answer_without_record_alone() -> None:
    """An unknown task has no `param` to spoil."""
    async with emulated(Script(faults=[Fault("recordInfo", "under_escaped", times=None)])) as raw:
        assert (await raw.record("unknown")).code == 422


@pytest.mark.parametrize(("kind", "accepted"), [("cut_before", 0), ("cut_after", 1), ("cut_body", 1)])
async def test_a_connection_is_cut_before_or_after_accepting(kind: Any, accepted: int) -> None:
    """No complete answer comes; whether the task exists depends on the kind, and the ledger knows."""
    async with emulated(Script(faults=[Fault("createTask", kind)])) as raw:
        expected = aiohttp.ClientPayloadError if kind == "cut_body" else CUT
        with pytest.raises(expected):
            await raw.create()

        assert len(raw.emulator.ledger.accepted) == accepted
        assert ledger_line(raw) == (("accepted", 200, kind, True) if accepted else ("cut", None, kind, False))
        assert (await raw.create()).code == 200


async def test_a_reply_cut_in_its_middle_has_begun() -> None:
    """`cut_body` sends the headers with the full length and half of the body."""
    async with emulated(Script(faults=[Fault("createTask", "cut_body")])) as raw:
        headers = {"Authorization": "Bearer emulator-key"}
        url = raw.emulator.base_url + "/api/v1/jobs/createTask"
        async with raw.http.post(url, json=text_to_image(), headers=headers) as response:
            begun = await response.content.readany()

            assert response.status == 200
            assert response.content_length == 2 * len(begun) or response.content_length == 2 * len(begun) + 1
            assert begun.startswith(b'{"code":200')


@pytest.mark.parametrize("accepted", [False, True])
async def test_a_hanging_call_is_answered_by_nothing(accepted: bool) -> None:
    """Nothing comes for an hour; stopping the emulator cuts the connection."""
    async with emulated(Script(faults=[Fault("createTask", "hang", accepted=accepted)])) as raw:
        asking = asyncio.ensure_future(raw.create())
        done, _ = await asyncio.wait([asking], timeout=250.0)
        accepted_meanwhile = len(raw.emulator.ledger.accepted)
        await raw.emulator.stop()

        assert done == set()
        assert accepted_meanwhile == accepted
        with pytest.raises(CUT):
            await asking


async def test_a_redirect_leads_to_a_place_that_watches_for_the_key() -> None:
    """307 to the watching place; who follows with the key is found out."""
    async with emulated(Script(faults=[Fault("recordInfo", "redirect", times=None)])) as raw:
        answer = await raw.record("any")
        before = set(raw.emulator.ledger.authorization_seen)
        await raw.call("GET", "/redirected")

        assert (answer.status, answer.headers["Location"]) == (307, raw.emulator.base_url + "/redirected")
        assert "redirected" not in before
        assert "redirected" in raw.emulator.ledger.authorization_seen


async def test_a_redirect_may_lead_anywhere() -> None:
    """`location` is sent as it is."""
    async with emulated(Script(faults=[Fault("createTask", "redirect", location="https://x.example/y")])) as raw:
        answer = await raw.create()

        assert (answer.status, answer.headers["Location"]) == (307, "https://x.example/y")
        assert ledger_line(raw) == ("cut", None, "redirect", False)


async def test_an_accepted_task_may_be_answered_by_a_redirect() -> None:
    """With `accepted`, the task exists although its answer leads away."""
    async with emulated(Script(faults=[Fault("createTask", "redirect", accepted=True)])) as raw:
        assert (await raw.create()).status == 307
        assert ledger_line(raw) == ("accepted", 200, "redirect", True)


async def test_a_redirected_file_is_found_at_the_second_try() -> None:
    """A file's redirect leads to itself, so that following it gives the file."""
    script = Script(faults=[Fault("file", "redirect")], render=False, plans=Plan(duration=0))
    async with emulated(script) as raw:
        url = (await raw.urls(await raw.submit()))[0]
        first = await raw.get(url)
        second = await raw.get(raw.emulator.base_url + first.headers["Location"])

        assert (first.status, second.status) == (307, 200)


async def test_a_cut_file_can_be_resumed() -> None:
    """`cut_body` on a file breaks off half-way, and Range gives the rest."""
    async with emulated(Script(faults=[Fault("file", "cut_body")])) as raw:
        content = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 400
        url = (await raw.upload(content)).data["downloadUrl"]
        async with raw.http.get(url) as response:
            got = await response.content.readexactly(len(content) // 2)
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
        rest = await raw.get(url, Range=f"bytes={len(got)}-")

        assert len(got) == len(content) // 2
        assert rest.status == 206
        assert got + rest.body == content


async def test_times_and_after_count_matching_calls() -> None:
    """The first `after` calls pass, the next `times` are met, the rest pass; None goes on for ever."""
    fault = Fault("credit", "refuse", code=455, after=1, times=2)
    async with emulated(Script(faults=[fault])) as raw:
        codes = [(await raw.call("GET", "/api/v1/chat/credit")).code for _ in range(4)]
        raw.emulator.inject(Fault("credit", "refuse", code=505, times=None))
        codes += [(await raw.call("GET", "/api/v1/chat/credit")).code for _ in range(3)]

        assert codes == [200, 455, 455, 200, 505, 505, 505]


async def test_all_faults_end_at_once() -> None:
    """`clear_faults` ends those of the script and those added, whatever they had left; later ones strike as always."""
    async with emulated(Script(faults=[Fault("credit", "refuse", code=455, times=None)])) as raw:
        raw.emulator.inject(Fault("credit", "refuse", code=505, times=None))
        codes = [(await raw.call("GET", "/api/v1/chat/credit")).code]
        raw.emulator.clear_faults()
        codes += [(await raw.call("GET", "/api/v1/chat/credit")).code for _ in range(2)]
        raw.emulator.inject(Fault("credit", "refuse", code=500))
        codes += [(await raw.call("GET", "/api/v1/chat/credit")).code]

        assert codes == [455, 200, 200, 500]


async def test_a_fault_may_be_about_one_task() -> None:
    """On createTask the n-th call, elsewhere what asks for the n-th accepted task."""
    faults = [
        Fault("createTask", "refuse", task=1),
        Fault("recordInfo", "refuse", task=1, times=None),
        Fault("file", "html", task=1),
    ]
    async with emulated(Script(faults=faults, render=False, plans=Plan(duration=0))) as raw:
        answers = [await raw.create() for _ in range(4)]
        ids = raw.emulator.ledger.accepted
        urls = [raw.emulator.task(i).result_urls[0] for i in ids]

        assert [answer.code for answer in answers] == [200, 429, 200, 200]
        assert [(await raw.record(i)).code for i in [*ids, "unknown"]] == [200, 429, 200, 422]
        assert [(await raw.get(url)).status for url in urls] == [200, 502, 200]


async def test_a_call_meets_one_fault_and_earlier_ones_come_first() -> None:
    """Two faults that match the same call strike one after the other."""
    faults = [Fault("createTask", "refuse", code=455), Fault("createTask", "refuse", code=505)]
    async with emulated(Script(faults=faults)) as raw:
        assert [(await raw.create()).code for _ in range(3)] == [455, 505, 200]


@pytest.mark.parametrize("kind", ["cut_before", "cut_after", "html"])
async def test_uploads_meet_faults_too(kind: Any) -> None:
    """An upload that is cut after being kept is in the ledger, one cut before is not."""
    async with emulated(Script(faults=[Fault("upload", kind)])) as raw:
        if kind == "html":
            assert (await raw.upload(b"x")).status == 502
        else:
            with pytest.raises(CUT):
                await raw.upload(b"x")

        assert len(raw.emulator.ledger.uploads) == (kind == "cut_after")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fault("callback", "hang"),
        lambda: Fault("createTask", "under_escaped"),
        lambda: Fault("createTask", "refuse", times=0),
        lambda: Fault("createtask", "refuse"),  # type: ignore[arg-type]  # the mistake is the point
        lambda: Fault("createTask", "explode"),  # type: ignore[arg-type]  # the mistake is the point
    ],
    ids=["callback hang", "under-escaped createTask", "never", "endpoint", "kind"],
)
def test_a_fault_that_makes_no_sense_is_refused_when_made(make: Any) -> None:
    """A ValueError, before anything runs."""
    with pytest.raises(ValueError, match=r"given"):
        make()


@pytest.mark.parametrize(
    ("kind", "field", "value", "advice"),
    [
        (Plan, "outcome", "won", "use one of success, fail, moderated, empty"),
        (Plan, "duration", -1, "use a number of 0 or more"),
        (Plan, "duration", "2", "use a number of 0 or more"),
        (Plan, "credits", -1, "use a number of 0 or more, or None"),
        (Plan, "pictures", 0, "use a number of 1 or more"),
        (partial(Limit, 20), "period", 0, "use a number above 0"),
        (partial(Limit, period=10.0), "limit", 0, "use a number of 1 or more"),
        (partial(Limit, 20, 10.0), "retry_after", "days", "use one of seconds, date, None"),
        (partial(Fault, kind="hang"), "on", "nowhere", f"use one of {', '.join(ENDPOINTS)}"),
        (Script, "picture_format", "gif", "use one of jpeg, png"),
    ],
)
def test_what_cannot_be_told_to_the_emulator_is_said_in_a_sentence(
    kind: Any, field: str, value: object, advice: str
) -> None:
    """The field, what was given, and what to give instead; no more."""
    with pytest.raises(ValueError, match="given") as caught:
        kind(**{field: value})
    assert caught.value.args == (f"{field}: {value!r} given, {advice}",)


@pytest.mark.parametrize("script", [Script(arrival=600.0), Script(latency=600.0)], ids=["arrival", "latency"])
async def test_a_handler_whose_client_has_gone_ends_with_the_emulator(script: Script) -> None:
    """However long it still had to pause: nothing of it outlives the event loop."""
    before = asyncio.all_tasks()
    async with emulated(script) as raw:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await raw.create()
        assert asyncio.all_tasks() > before

    assert asyncio.all_tasks() == before


def test_a_single_text_is_one_state_or_address() -> None:
    """Its characters are none."""
    plan = Plan(states="generating", result_urls="https://files.example/a.png")

    assert plan.states == ("generating",)
    assert plan.result_urls == ("https://files.example/a.png",)
