"""The emulator's page over HTTP: what it tells, what its buttons do, and who may not press them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from emulator_client import RawClient, emulated, text_to_image

from flux2_async.emulator import CallbackCall, Emulator, Exchange, Fault, Limit, Plan, Script

BUTTONS = ["/tasks/{id}/finish", "/connections/1/cut", "/faults"]
FILES = ["/", "/page/page.css", "/page/page.js", "/page/icon.svg"]
PARTS = [*FILES, "/ledger", "/events", "/page/shown/results/{id}/0.png"]
NO_FAULTS = [b"", b"[]", b"{}", b'{"on":1,"kind":2}', b'{"on":"credit","kind":"nonsense"}', b"[" * 999, b"\xff"]
FOREIGN: dict[str, dict[str, str]] = {
    "another site": {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"},
    "another port": {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"},
    "an old browser": {"Origin": "http://evil.example"},
    "a frame without an origin": {"Origin": "null"},
    "a rebound name": {"Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
}
ENDLESS = Script(plans=Plan(duration=float("inf")), render=False)


class Stream:
    """What a page was told so far, put together."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.state: dict[str, Any] = {}
        self.tasks: dict[str, Any] = {}

    async def take(self) -> dict[str, Any]:
        """The next event."""
        while line := await self._response.content.readline():
            if line.startswith(b"data: "):
                news: dict[str, Any] = json.loads(line[6:])
                self.state |= news
                self.tasks |= {task["id"]: task for task in news.get("tasks", ())}
                return news
        raise EOFError

    async def until(self, task_id: str, state: str) -> None:
        """Take events until a task is there."""
        while self.tasks.get(task_id, {}).get("state") != state:
            await self.take()


@asynccontextmanager
async def events(raw: RawClient) -> AsyncIterator[Stream]:
    async with raw.http.get(raw.emulator.base_url + "/events") as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        yield Stream(response)


async def test_the_page_follows_a_task_to_its_end() -> None:
    """Its stages, its end and its picture arrive in events; the ledger and the limit's window with them."""
    script = Script(plans=Plan(duration=6.0), limit=Limit(2, 10.0), render=False)
    async with emulated(script) as raw, events(raw) as page:
        await page.take()
        assert page.state["ledger"]["accepted"] == 0
        assert (page.state["limit"]["used"], page.state["limit"]["wait"]) == (0.0, 0.0)

        task_id = await raw.submit(prompt="a red kettle")
        for state in ("waiting", "queuing", "generating", "success"):
            await page.until(task_id, state)
        task = page.tasks[task_id]
        assert (task["prompt"], task["number"], task["failure"]) == ("a red kettle", 1, None)
        picture = await raw.http.get(f"{raw.emulator.base_url}/page/shown{task['pictures'][0]}")
        assert (picture.status, picture.content_type) == (200, "image/png")

        await raw.submit()
        refused = await raw.create()
        assert refused.code == 429
        while page.state["ledger"]["refused"] == 0:
            await page.take()
        assert page.state["ledger"]["reasons"] == [["429", 1]]
        assert page.state["limit"]["used"] == 2.0
        assert 0 < page.state["limit"]["wait"] <= 10.0


async def test_a_page_that_comes_late_is_told_all() -> None:
    """What happened before is in the first event, and what ended long ago is in it as it ended."""
    async with emulated(Script(plans=Plan(duration=0.0, outcome="moderated"), render=False)) as raw:
        ids = [await raw.submit() for _ in range(3)]
        async with events(raw) as page:
            await page.take()

    assert list(page.tasks) == ids
    assert {task["state"] for task in page.tasks.values()} == {"fail"}
    assert page.tasks[ids[0]]["failure"].startswith("422: CONTENT_POLICY_BLOCKED")
    assert page.state["limit"] is None


async def test_nothing_is_told_while_nothing_happens() -> None:
    """A page that is open all night costs a look four times a second, and a sign of life in 15 s."""
    async with emulated(ENDLESS) as raw, events(raw) as page:
        await raw.submit()
        while not page.tasks:
            await page.take()
        # The connection of the POST becomes idle.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60.0):
                while True:
                    news = await page.take()
                    assert "tasks" not in news
                    assert "ledger" not in news


async def test_only_the_newest_tasks_are_told() -> None:
    """A load test of thousands of tasks does not fill the page, and its figures count all of them."""
    async with emulated(Script(plans=Plan(duration=0.0), credits=1e6, render=False)) as raw:
        ids = [await raw.submit() for _ in range(230)]
        async with events(raw) as page:
            await page.take()

    assert list(page.tasks) == ids[-200:]
    assert page.state["ledger"]["accepted"] == 230


async def test_finish_ends_a_task() -> None:
    """A POST without a browser does what the button does; an unknown task is 404."""
    async with emulated(ENDLESS) as raw:
        task_id = await raw.submit()
        answer = await raw.http.post(f"{raw.emulator.base_url}/tasks/{task_id}/finish")
        unknown = await raw.http.post(f"{raw.emulator.base_url}/tasks/{'0' * 32}/finish")

        assert (answer.status, unknown.status) == (200, 404)
        assert raw.emulator.task(task_id).state == "success"


async def test_cut_ends_a_connection_without_an_answer() -> None:
    """A call that hangs loses its connection; the page shows the connection until then."""
    script = Script(faults=[Fault("createTask", "hang")], render=False)
    async with emulated(script) as raw, events(raw) as page:
        call = asyncio.ensure_future(raw.create())
        while not (page.state.get("connections") and page.state["connections"][0]["busy"]):
            await page.take()
        [connection] = page.state["connections"]
        assert connection["endpoint"] == "createTask"
        answer = await raw.http.post(f"{raw.emulator.base_url}/connections/{connection['number']}/cut")
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await call
        while page.state["connections"]:
            await page.take()
        again = await raw.http.post(f"{raw.emulator.base_url}/connections/{connection['number']}/cut")
        assert again.status == 404


async def test_a_fault_meets_the_next_call() -> None:
    """`createTask`, done and then cut: the task exists and its reply is lost."""
    async with emulated(ENDLESS) as raw:
        url = raw.emulator.base_url + "/faults"
        assert (await raw.http.post(url, json={"on": "createTask", "kind": "cut_after"})).status == 200
        with pytest.raises(aiohttp.ClientError):
            await raw.create()
        assert len(raw.emulator.ledger.accepted) == 1


@pytest.mark.parametrize("body", NO_FAULTS)
async def test_what_is_no_fault_is_told(body: bytes) -> None:
    """400, and nothing is armed."""
    async with emulated() as raw:
        answer = await raw.http.post(raw.emulator.base_url + "/faults", data=body)
        assert answer.status == 400
        assert (await raw.create()).code == 200


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("path", BUTTONS)
async def test_no_other_origin_presses_a_button(path: str, headers: dict[str, str]) -> None:
    """403, and nothing is done; over the socket as a browser sends it."""
    async with emulated(ENDLESS) as raw:
        task_id = await raw.submit()
        url = raw.emulator.base_url + path.format(id=task_id)
        answer = await raw.http.post(url, data=b'{"on":"credit","kind":"cut_after"}', headers=headers)

        assert answer.status == 403
        assert raw.emulator.task(task_id).state == "waiting"
        assert await raw.credits() > 0


@pytest.mark.parametrize("path", BUTTONS)
async def test_no_address_that_is_opened_presses_a_button(path: str) -> None:
    """GET, which an image in any page sends, is no way."""
    async with emulated(ENDLESS) as raw:
        task_id = await raw.submit()
        answer = await raw.http.get(raw.emulator.base_url + path.format(id=task_id))

        assert answer.status in {404, 405}
        assert raw.emulator.task(task_id).state == "waiting"


@pytest.mark.parametrize("path", PARTS)
async def test_a_rebound_name_reads_nothing(path: str) -> None:
    """403 to a name that is not this machine's, for every part of the page."""
    async with emulated(Script(plans=Plan(duration=0.0), render=False)) as raw:
        url = raw.emulator.base_url + path.format(id=await raw.submit())
        own, rebound = await raw.http.get(url), await raw.http.get(url, headers={"Host": "evil.example"})

        assert (own.status, rebound.status) == (200, 403)
        assert rebound.headers["Content-Security-Policy"]
        assert "default-src 'none'" in own.headers["Content-Security-Policy"]
        assert own.headers["X-Content-Type-Options"] == "nosniff"
        own.close()


async def test_the_api_asks_for_no_name() -> None:
    """Programs reach the service under the name of a container as before."""
    async with emulated() as raw:
        body, host = text_to_image(), {"Host": "emulator:8765"}
        answer = await raw.call("POST", "/api/v1/jobs/createTask", json=body, headers=host)
        assert answer.code == 200


async def test_the_page_takes_no_part_in_the_traffic() -> None:
    """Its pictures count as no client's call, and meet no fault that waits for one."""
    script = Script(plans=Plan(duration=0.0), faults=[Fault("file", "cut_before", times=None)], render=False)
    async with emulated(script) as raw:
        task_id = await raw.submit()
        before = dict(raw.emulator.ledger.calls)
        picture = await raw.http.get(f"{raw.emulator.base_url}/page/shown/results/{task_id}/0.png")
        assert picture.status == 200
        assert dict(raw.emulator.ledger.calls) == before
        [url] = await raw.urls(task_id)
        with pytest.raises(aiohttp.ClientError):
            await raw.get(url)


async def test_the_page_shows_pictures_and_nothing_else_that_was_uploaded() -> None:
    """An HTML file that somebody uploaded is no part of the page, and at its own address it is in a sandbox."""
    async with emulated() as raw:
        answer = await raw.upload(b"<script>parent.pwned=1</script>", name="a.html")
        path = answer.data["downloadUrl"].removeprefix(raw.emulator.base_url)
        shown = await raw.http.get(f"{raw.emulator.base_url}/page/shown{path}")
        file = await raw.http.get(raw.emulator.base_url + path)

        assert shown.status == 404
        assert file.status == 200
        assert file.headers["Content-Security-Policy"] == "sandbox"
        assert file.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_ledger_is_json() -> None:
    """All that was seen, taken and charged, with times that people can read."""
    async with emulated(Script(plans=Plan(duration=0.0, credits=3.0), render=False)) as raw:
        task_id = await raw.submit(prompt="naïve \ud800")
        await raw.record(task_id)
        document = await (await raw.http.get(raw.emulator.base_url + "/ledger")).json()

    assert (document["accepted"], document["charged"], document["polls"]) == ([task_id], 3.0, 1)
    [call] = document["requests"]
    assert (call["outcome"], call["body"]["input"]["prompt"]) == ("accepted", "naïve \ud800")
    assert call["time"].endswith("Z")
    assert call["submission"] is None
    assert document["balance"] == 997.0


async def test_the_ledger_tells_submissions_apart() -> None:
    """What a client calls a request stands in its callback address; with it one that the client lost is found."""
    async with emulated(ENDLESS) as raw:
        for url in ("http://127.0.0.1:9/a?x=1&ref=mine&sig=f00", "http://127.0.0.1:9/a", "http://[", 7):
            await raw.create(text_to_image() | {"callBackUrl": url})
        document = await (await raw.http.get(raw.emulator.base_url + "/ledger")).json()

    assert [call["submission"] for call in document["requests"]] == ["mine", None, None, None]


@pytest.mark.parametrize("body", [b'{"a": NaN, "b": -Infinity}', b'{"a":' + b"[" * 800 + b"]" * 800 + b"}"])
async def test_the_ledger_is_json_whatever_was_sent(body: bytes) -> None:
    """A request that no browser could read as it came, or that is too deep, spoils nothing."""
    async with emulated() as raw:
        await raw.call("POST", "/api/v1/jobs/createTask", data=body, headers={"Content-Type": "application/json"})
        answer = await raw.http.get(raw.emulator.base_url + "/ledger")
        assert answer.status == 200
        document = json.loads(await answer.text(), parse_constant=pytest.fail)
        assert [call["outcome"] for call in document["requests"]] == ["refused"]


async def test_stopping_ends_the_pages() -> None:
    """A page that is open does not hold the emulator up, and hears its end."""
    emulator = Emulator(ENDLESS)
    async with aiohttp.ClientSession() as http:
        await emulator.start()
        async with events(RawClient(emulator, http)) as page:
            await page.take()
            async with asyncio.timeout(2.0):
                await emulator.stop()
                with pytest.raises((EOFError, aiohttp.ClientError)):
                    await page.take()


async def test_each_request_is_logged_once() -> None:
    """With its answer, its task and its fault; and each callback; who is cut has no status."""
    told: list[Exchange | CallbackCall] = []
    script = Script(plans=Plan(duration=0.0), limit=Limit(2, 10.0, retry_after="seconds"), render=False)
    async with emulated(script, log=told.append) as raw:
        task_id = await raw.submit(text_to_image() | {"callBackUrl": "http://127.0.0.1:9/"})
        await raw.record(task_id)
        raw.emulator.inject(Fault("createTask", "cut_after"))
        with pytest.raises(aiohttp.ClientError):
            await raw.create()
        await raw.create()
        await raw.get(raw.emulator.base_url + "/nowhere")
        await asyncio.sleep(0.1)

    calls = [event for event in told if isinstance(event, Exchange)]
    assert [(call.endpoint, call.status, call.code, call.fault) for call in calls] == [
        ("createTask", 200, 200, None),
        ("recordInfo", 200, 200, None),
        ("createTask", None, None, "cut_after"),
        ("createTask", 200, 429, None),
        ("/nowhere", 404, 404, None),
    ]
    assert calls[0].task_id == calls[1].task_id == task_id
    assert calls[3].retry_after == "10"
    [callback] = [event for event in told if isinstance(event, CallbackCall)]
    assert (callback.task_id, callback.status) == (task_id, None)
