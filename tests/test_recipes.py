"""The recipes, with their real frameworks over real sockets and in real time."""

import ast
import asyncio
import base64
import itertools
import json
import math
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
import uvicorn
from aiohttp import web
from bot_api import TOKEN, BotApi, bot_api
from documents import PACKAGE, RECIPES, imported, recipe, source_of, waiting_for_callbacks
from emulated import callback_answers, free_port, look_seldom, until
from programs import package

from flux2_async.emulator import Limit, Plan, Script
from flux2_async.testing import RunningEmulator

pytestmark = pytest.mark.real_time

GUIDE_PAGE = PACKAGE / "guide" / "recipes.md"
PHOTO = (PACKAGE / "cli" / "photos" / "coffee.png").read_bytes()
FOR_EVER = Script(plans=Plan(duration=math.inf), render=False)
MODERATED = Script(plans=Plan(outcome="moderated", duration=0.1), render=False)


@pytest.fixture
def flux2_script(flux2_script: Script) -> Script:
    """Nothing is drawn."""
    flux2_script.render = False
    return flux2_script


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where the program of a recipe listens, known to it as its public address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("PUBLIC_URL", address(listening))
        yield listening


def address(listening: socket.socket) -> str:
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


@attrs.frozen
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


async def ask(method: str, url: str, **options: Any) -> Answer:
    """Ask a backend, as its own users do."""
    async with aiohttp.ClientSession() as http, http.request(method, url, **options) as response:
        return Answer(response.status, response.headers, await response.text())


# What to install, how to start, what it is.
HEAD = re.compile(r'# Install in a virtual environment: pip install (.+)\n# Start it: (.+)\n"""[A-Z].+')
TESTED = re.compile(r'\b(?:recipe|started)\("([a-z]+)"')


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"notebook", "testing"}))
def test_recipes_are_imported_without_an_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test, a linter or a task queue may import a program before anything is set."""
    for variable in ("APIKLEY_API_KEY", "APIKLEY_BASE_URL", "APIKLEY_UPLOAD_URL"):
        monkeypatch.delenv(variable, raising=False)
    for variable in (
        "PUBLIC_URL",
        "REDIS_URL",
        "APIKLEY_CALLBACK_SECRET",
        "BOT_TOKEN",
        "PORT",
        "IDLE_MS",
        "DATABASE_URL",
    ):
        monkeypatch.delenv(variable, raising=False)
    imported(recipe(name))


def test_every_recipe_is_run_short_and_says_how_to_start_it() -> None:
    """Each has a test of its own, says what to install, how to start it and what it is, and fits on a screen."""
    tested = {name for path in Path(__file__).parent.rglob("test_*.py") for name in TESTED.findall(path.read_text())}
    sources = {name: source_of(name) for name in RECIPES}
    lengths = {name: len([line for line in source.splitlines() if line]) for name, source in sources.items()}

    assert len(sources) >= 8
    assert sorted(sources) == sorted(tested)
    assert [name for name, source in sources.items() if not HEAD.match(source)] == []
    # Of that one a backend of 60 lines was asked for.
    assert lengths.pop("queue") <= 60
    # Of that one at most 90.
    assert lengths.pop("jobs") <= 90
    assert [name for name, length in lengths.items() if length >= 40] == []


homes_of_packages = cache(packages_distributions)


def normal(package: str) -> str:
    return package.lower().replace("_", "-")


def brought_by(name: str, brought: set[str]) -> set[str]:
    """The packages that come with one, itself among them, by their names in lower case."""
    found = re.match(r"([\w-]+)(?:\[(\w+)\])?", name)
    assert found is not None
    package, extra = normal(found[1]), found[2]
    if package not in brought or extra is not None:
        brought.add(package)
        with suppress(PackageNotFoundError):  # of an optional one
            for line in requires(package) or []:
                if "extra ==" not in line or (extra is not None and re.search(rf"extra == ['\"]{extra}['\"]", line)):
                    brought_by(line, brought)
    return brought


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_says_what_to_install(name: str) -> None:
    """What is to be installed brings all that the program imports and is started by, and the guide's table names it."""
    recipe(name)
    source = source_of(name)
    head = HEAD.match(source)
    assert head is not None
    named = [word.strip('"') for word in head[1].split()]
    brought: set[str] = set()
    for each in named:
        brought_by(each, brought)

    roots = {
        module.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    homes = homes_of_packages()
    roots |= {word for word in re.findall(r"(?<!\.)\b[a-z]+", head[2]) if word in homes}
    roots -= sys.stdlib_module_names | {"flux2_async"}
    assert [root for root in roots if not brought & {*map(normal, homes[root])}] == []
    [row] = [line for line in GUIDE_PAGE.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    needs = [word.strip() for word in row.split("|")[-2].split(",")]
    told = [re.sub(r"extra `(\w+)`", r"flux2-async[\1]", word) for word in needs if word]
    assert {*told, "flux2-async"} == {*named, "flux2-async"}


# --- aiohttp


@pytest.fixture
async def aiohttp_recipe(flux2_emulator: RunningEmulator, listener: socket.socket) -> AsyncIterator[str]:
    runner = web.AppRunner(imported(recipe("aiohttp"))["make_app"](), access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    yield f"{address(listener)}/edits"
    await runner.cleanup()


def form(**fields: str | bytes) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, value in fields.items():
        data.add_field(name, value, filename="photo.png" if isinstance(value, bytes) else None)
    return data


async def test_aiohttp_edits_a_photograph(
    aiohttp_recipe: str, flux2_emulator: RunningEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The photograph is uploaded, and the callback alone brings the result."""
    look_seldom(monkeypatch)
    answer = await ask("POST", aiohttp_recipe, data=form(prompt="make it winter", photo=PHOTO))

    ledger = flux2_emulator.ledger
    [task_id] = ledger.accepted
    assert answer.status == 200
    assert answer.json() == {"id": task_id, "urls": list(flux2_emulator.task(task_id).result_urls)}
    assert [upload.size for upload in ledger.uploads] == [len(PHOTO)]
    assert await callback_answers(flux2_emulator) == [200]
    assert ledger.polls == 1


@pytest.mark.flux2_script(MODERATED)
async def test_aiohttp_explains_failures(aiohttp_recipe: str, flux2_emulator: RunningEmulator) -> None:
    """What cannot be sent is the client's mistake, what the service refuses is not."""
    forms = [
        form(prompt="make it winter"),
        form(prompt="make it winter", photo=b"no picture"),
        form(prompt="make it winter", photo=PHOTO),
    ]
    answers = [await ask("POST", aiohttp_recipe, data=each) for each in forms]

    assert [answer.status for answer in answers] == [422, 422, 502]
    assert len(flux2_emulator.ledger.requests) == 1


# --- FastAPI


@asynccontextmanager
async def on_uvicorn(app: Any, listening: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        await until(lambda: server.started)
        yield
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
async def fastapi_recipe(flux2_emulator: RunningEmulator, listener: socket.socket) -> AsyncIterator[dict[str, Any]]:
    """The names of the recipe while it is served."""
    names = imported(recipe("fastapi"))
    async with on_uvicorn(names["app"], listener):
        yield names


async def create(listening: socket.socket, prompt: str = "a red kettle") -> Answer:
    return await ask("POST", f"{address(listening)}/pictures", params={"prompt": prompt})


async def test_fastapi_waits_for_the_picture(
    fastapi_recipe: dict[str, Any],
    flux2_emulator: RunningEmulator,
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request awaits its picture, which the callback alone brings."""
    look_seldom(monkeypatch)
    answer = await create(listener)

    ledger = flux2_emulator.ledger
    [task_id] = ledger.accepted
    assert answer.status == 200
    assert answer.json() == {"id": task_id, "urls": list(flux2_emulator.task(task_id).result_urls)}
    assert await callback_answers(flux2_emulator) == [200]
    assert ledger.polls == 1


def test_fastapi_is_entered_twice(flux2_emulator: RunningEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clients of a test, or two invocations of a function, start and stop the same app, each in its event loop."""

    async def serve_once(app: Any) -> tuple[int, int]:
        with socket.create_server(("127.0.0.1", port)) as listening:
            async with on_uvicorn(app, listening):
                answer = await create(listening)
                return answer.status, len(answer.json()["urls"])

    port = free_port()
    monkeypatch.setenv("PUBLIC_URL", f"http://127.0.0.1:{port}")
    app = imported(recipe("fastapi"))["app"]
    assert [asyncio.run(serve_once(app)) for _ in range(2)] == [(200, 1)] * 2
    assert len(flux2_emulator.ledger.accepted) == 2


@pytest.mark.flux2_script(FOR_EVER)
async def test_fastapi_gives_the_id_when_it_takes_longer(
    fastapi_recipe: dict[str, Any], flux2_emulator: RunningEmulator, listener: socket.socket
) -> None:
    """After its patience a request gets 202 and the id; another one gets the picture under that id."""
    fastapi_recipe["PATIENCE"] = 0.1
    first = await create(listener)
    fastapi_recipe["PATIENCE"] = 20.0
    second = asyncio.create_task(ask("GET", address(listener) + first.headers["Location"]))
    flux2_emulator.finish(first.text)
    answer = await second

    [task_id] = flux2_emulator.ledger.accepted
    assert (first.status, first.text) == (202, task_id)
    assert answer.json() == {"id": task_id, "urls": list(flux2_emulator.task(task_id).result_urls)}


async def test_fastapi_knows_no_such_id(
    fastapi_recipe: dict[str, Any], flux2_emulator: RunningEmulator, listener: socket.socket
) -> None:
    """An id that nobody knows is answered after one look, and holds no place; one from before a restart is found."""
    earlier = await create(listener)
    polls, answers = [], []
    for name in ("nonsense", earlier.json()["id"]):
        before = flux2_emulator.ledger.polls
        answers.append(await ask("GET", f"{address(listener)}/pictures/{name}"))
        polls.append(flux2_emulator.ledger.polls - before)

    assert ([answer.status for answer in answers], polls) == ([404, 200], [1, 1])
    assert "nonsense" in answers[0].text
    assert answers[1].json() == earlier.json()
    assert fastapi_recipe["flux"].tasks() == ()


@pytest.mark.flux2_script(Script(limit=Limit(1, 30.0, retry_after="seconds"), render=False))
async def test_fastapi_tells_that_it_is_busy(
    fastapi_recipe: dict[str, Any], flux2_emulator: RunningEmulator, listener: socket.socket
) -> None:
    """Beyond the limit a request is told when to come again; the next one does not even reach the service."""
    fastapi_recipe["PATIENCE"] = 0.1
    answers = [await create(listener) for _ in range(3)]

    assert [answer.status for answer in answers] == [202, 429, 429]
    assert [25 <= int(answer.headers["Retry-After"]) <= 32 for answer in answers[1:]] == [True, True]
    assert [call.outcome for call in flux2_emulator.ledger.requests] == ["accepted", "refused"]


@pytest.mark.flux2_script(MODERATED)
async def test_fastapi_explains_failures(
    fastapi_recipe: dict[str, Any], flux2_emulator: RunningEmulator, listener: socket.socket
) -> None:
    """What cannot be sent is the client's mistake, what the service refuses is not."""
    answers = [await create(listener, " "), await create(listener)]
    answers.append(await ask("GET", f"{address(listener)}/pictures/a%20b"))

    assert [answer.status for answer in answers] == [422, 502, 422]


# --- prometheus


async def test_prometheus_reads_what_pictures_cost(
    flux2_emulator: RunningEmulator, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prometheus reads the duration, the credits and what runs; no prompt is among it."""
    async with on_uvicorn(imported(recipe("prometheus"))["app"], listener):
        answer = await create(listener, "a red kettle")
        metrics = (await ask("GET", f"{address(listener)}/metrics/")).text
    values = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in metrics.splitlines() if "{" in line}

    assert answer.status == 200
    assert values["gen_ai_client_inference_duration_seconds_count"] == 1
    assert values["flux2_client_lag_seconds_count"] == 1
    assert values["flux2_client_credits_total"] == flux2_emulator.ledger.charged
    assert values["flux2_client_running"] == values["flux2_client_waiting"] == 0
    assert 'gen_ai_request_model="flux-2/pro-text-to-image"' in metrics
    assert "kettle" not in metrics


# --- queue


@asynccontextmanager
async def run_by_a_new_user(folder: Path, port: int) -> AsyncIterator[str]:
    """The recipe as one gets it and starts it by its first line."""
    with (folder / "app.py").open("wb") as program:
        getting = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "flux2_async.cli", "recipe", "queue"), stdout=program
        )
        assert await getting.wait() == 0
    assert (folder / "app.py").read_text() == recipe("queue").read_text()
    words = ("-m", "uvicorn", "app:app", "--port", str(port), "--no-access-log")
    process = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=folder)
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(120):
            while True:
                try:
                    await ask("GET", f"{url}/docs")
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.1)
        yield url
    finally:
        process.terminate()
        # It ends well, and then by the signal that it was sent.
        assert await process.wait() in (0, -signal.SIGTERM)


async def events_of(url: str) -> list[dict[str, Any]]:
    """What a browser is told of a picture until it has ended."""
    lines = (await ask("GET", url)).text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


@pytest.mark.flux2_script(Script(plans=Plan(duration=4.5), render=False))
async def test_queue_shows_everything_and_cancels(flux2_emulator: RunningEmulator, tmp_path: Path) -> None:
    """Position, stages, expected end and price are streamed; what is cancelled is never sent, what was sent goes on."""
    async with run_by_a_new_user(tmp_path, free_port()) as url:
        # The limit lets 20 through at once.
        queries = [{"prompt": f"kettle {number}", "user": "alice"} for number in range(23)]
        async with aiohttp.ClientSession() as http:
            created = [await (await http.post(f"{url}/pictures", params=query)).json() for query in queries]
        pictures = [f"{url}/pictures/{each['id']}" for each in created]
        following = asyncio.create_task(events_of(pictures[20]))
        cancelled, sent = [(await ask("DELETE", pictures[number])).json() for number in (21, 0)]
        [end] = await events_of(pictures[21])
        missing = await ask("GET", f"{url}/pictures/nowhere")
        wrong = await ask("POST", f"{url}/pictures", params={"prompt": "x", "user": "bob"})
        seen = await following
        ended = datetime.now(UTC)
        metrics = (await ask("GET", f"{url}/metrics/")).text
        await events_of(pictures[22])

    assert (cancelled, sent) == ({"cancelled": True}, {"cancelled": False})
    assert (end["state"], end["urls"], missing.status) == ("withdrawn", [], 404)
    assert "withdrawn" in end["error"]
    assert (wrong.status, "prompt" in wrong.text) == (422, True)
    prompts = [call.body["input"]["prompt"] for call in flux2_emulator.ledger.requests if call.body is not None]
    assert sorted(prompts) == sorted(f"kettle {number}" for number in range(23) if number != 21)

    states = [key for key, _ in itertools.groupby(event["state"] for event in seen)]
    assert (states[0], states[-4:]) == ("queued", ["waiting", "queuing", "generating", "success"])
    assert {event["credits"] for event in seen} == {5.0}
    queued = [event for event in seen if event["state"] == "queued"]
    assert len(queued) >= 5
    assert {event["position"] for event in queued} == {0}
    # By then the first ones have ended.
    assert abs((datetime.fromisoformat(queued[-1]["expected_end"]) - ended).total_seconds()) < 5
    assert len(seen[-1]["urls"]) == 1
    assert seen[-1]["error"] is None
    assert "gen_ai_client_inference_duration_seconds_count" in metrics
    assert "kettle" not in metrics


# --- aiogram


def bot_at(url: str) -> Any:
    """A bot whose Telegram is there."""
    from aiogram import Bot  # noqa: PLC0415  takes seconds, and few of the processes that collect this module need it
    from aiogram.client.session.aiohttp import AiohttpSession  # noqa: PLC0415
    from aiogram.client.telegram import TelegramAPIServer  # noqa: PLC0415

    return Bot(TOKEN, session=AiohttpSession(api=TelegramAPIServer.from_base(url)))


@pytest.fixture
async def telegram(
    flux2_emulator: RunningEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[BotApi]:
    """People who can talk to the bot of the recipe."""
    monkeypatch.chdir(tmp_path)
    dispatcher = imported(recipe("aiogram"))["dispatcher"]
    async with bot_api() as api:
        bot = bot_at(api.url)
        polling = asyncio.create_task(dispatcher.start_polling(bot, handle_signals=False))
        yield api
        await dispatcher.stop_polling()
        await polling


@pytest.mark.flux2_script(Script(plans=Plan(duration=1.0)))
async def test_aiogram_two_people_and_a_double_tap(telegram: BotApi, flux2_emulator: RunningEmulator) -> None:
    """Each gets the own picture back, at the same time; a message that comes twice is paid and answered once."""
    winter, summer = await asyncio.gather(
        telegram.photo(1, PHOTO, "make it winter", deliveries=2), telegram.photo(2, PHOTO, "make it summer")
    )
    await telegram.answers(2)
    # One more from the same chat, which takes a second: what was answered twice comes before it.
    last = await telegram.photo(1, PHOTO, "make it autumn")
    sent = await telegram.answers(3)

    ledger = flux2_emulator.ledger
    tasks = [flux2_emulator.task(task_id) for task_id in ledger.accepted]
    pictures = {task.body["input"]["prompt"]: await fetched(task.result_urls[0]) for task in tasks}
    assert sorted((each.chat, each.reply_to) for each in sent) == [(1, winter), (1, last), (2, summer)]
    assert {each.photo for each in sent if each.reply_to == winter} == {pictures["make it winter"]}
    assert {each.photo for each in sent if each.chat == 2} == {pictures["make it summer"]}
    assert len(ledger.accepted) == 3
    assert len(set(pictures.values())) == 3
    assert ledger.accepted_at[1] - ledger.accepted_at[0] < 1.0


@pytest.mark.flux2_script(Script(plans=Plan(duration=1.0), render=False))
async def test_aiogram_is_fair_and_has_a_budget(telegram: BotApi, flux2_emulator: RunningEmulator) -> None:
    """One who sends nine photographs gets seven pictures and two answers in words, and holds up nobody else."""
    for number in range(9):
        await telegram.photo(1, PHOTO, f"make it winter {number}")
    await telegram.photo(2, PHOTO, "make it summer")
    sent = await telegram.answers(10)

    ledger = flux2_emulator.ledger
    prompts = [flux2_emulator.task(task_id).body["input"]["prompt"] for task_id in ledger.accepted]
    # Three of the first may run at once.
    assert prompts.index("make it summer") <= 3
    assert len(prompts) == 8
    assert ledger.accepted_at[4] - ledger.accepted_at[0] >= 1.0
    told = [str(each.text) for each in sent if each.text is not None]
    assert told == ["These are all of your pictures for today. Send this one again in 24 h."] * 2
    assert all(each.chat == 1 for each in sent if each.text is not None)
    assert ledger.charged == 8 * 5


def test_aiogram_without_a_token_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who starts it as it stands is told what it needs."""
    monkeypatch.delenv("BOT_TOKEN", raising=False)
    with pytest.raises(SystemExit, match="set BOT_TOKEN to what @BotFather gave you"):
        runpy.run_path(str(recipe("aiogram")), run_name="__main__")


def test_no_recipe_ends_with_the_bare_name_of_a_variable() -> None:
    """A variable that is missing has a default, or is told in a sentence."""
    assert [name for name in RECIPES if re.search(r"os\.environ\[", source_of(name))] == []


@pytest.mark.flux2_script(MODERATED)
async def test_aiogram_is_started_twice(
    flux2_emulator: RunningEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bot that was stopped is started again."""
    monkeypatch.chdir(tmp_path)
    dispatcher = imported(recipe("aiogram"))["dispatcher"]
    for number in range(2):
        async with bot_api() as api:
            bot = bot_at(api.url)
            polling = asyncio.create_task(dispatcher.start_polling(bot, handle_signals=False))
            await api.photo(number, PHOTO, "make it winter")
            [answer] = await api.answers(1)
            await dispatcher.stop_polling()
            await polling
            assert answer.chat == number
    assert len(flux2_emulator.ledger.requests) == 2


@pytest.mark.flux2_script(MODERATED)
async def test_aiogram_says_what_was_refused(telegram: BotApi, flux2_emulator: RunningEmulator) -> None:
    """A refusal is answered in words."""
    question = await telegram.photo(1, PHOTO, "make it winter")
    [answer] = await telegram.answers(1)

    assert (answer.chat, answer.reply_to, answer.photo) == (1, question, None)
    assert "content filter" in str(answer.text)


async def fetched(url: str) -> bytes:
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return await response.read()


# --- Flask and Django


@pytest.fixture
def flask_recipe(flux2_emulator: RunningEmulator) -> Iterator[str]:
    from werkzeug.serving import make_server  # noqa: PLC0415  comes with Flask, which the other recipes have no need of

    server = make_server("127.0.0.1", 0, imported(recipe("flask"))["create_app"](), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/orders"
    server.shutdown()
    thread.join()


@pytest.mark.flux2_script(Script(plans=Plan(duration=0.5), render=False))
async def test_flask_answers_many_at_once_and_an_order_is_paid_once(
    flask_recipe: str, flux2_emulator: RunningEmulator
) -> None:
    """Requests wait for their pictures beside each other, a repeated one for the same, and a mistake is explained."""
    orders = [f"{flask_recipe}/{number % 4}" for number in range(12)]
    answers = await asyncio.gather(*(ask("POST", url, data={"prompt": f"house {url[-1]}"}) for url in orders))
    wrong = await ask("POST", f"{flask_recipe}/0", data={"prompt": "another house"})

    assert {answer.status for answer in answers} == {200}
    assert sorted({answer.json()["id"] for answer in answers}) == sorted(flux2_emulator.ledger.accepted)
    assert len(flux2_emulator.ledger.accepted) == 4
    assert (wrong.status, "key" in wrong.json()["error"]) == (422, True)


@pytest.mark.flux2_script(Script(plans=Plan(duration=0.5), render=False))
async def test_django_waits_in_both_kinds_of_views(flux2_emulator: RunningEmulator, listener: socket.socket) -> None:
    """The asynchronous view and the synchronous one make pictures at the same time, in one session."""
    program = imported(recipe("django"))
    async with on_uvicorn(program["app"], listener):
        kinds = ["awaited", "blocking"] * 4
        answers = await asyncio.gather(
            *(ask("POST", f"{address(listener)}/{kind}", data={"prompt": "a house"}) for kind in kinds)
        )
        wrong = [await ask("POST", f"{address(listener)}/{kind}", data={}) for kind in kinds[:2]]

    assert {answer.status for answer in answers} == {200}
    assert sorted(answer.json()["id"] for answer in answers) == sorted(flux2_emulator.ledger.accepted)
    assert len(flux2_emulator.ledger.accepted) == 8
    assert [(answer.status, "prompt" in answer.json()["error"]) for answer in wrong] == [(422, True)] * 2
    assert program["flux"].statistics().submitted == 8


# --- scripts


def started(name: str, folder: Path, **environment: str) -> str:
    """Start a recipe as its first line says, in a folder of its own, and give what it printed."""
    program, source = folder / "app.py", recipe(name).read_text()
    program.write_text(waiting_for_callbacks(source) if "Callbacks(" in source else source)
    done = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-W", "error", program],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.flux2_script(Script(plans=Plan(duration=0.5), render=False))
@pytest.mark.parametrize("name", ["first", "interrupt", "script"])
def test_scripts_are_entered_twice(
    name: str, flux2_emulator: RunningEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is a program of its own can be called by another one, and again, each time in an event loop of its own."""
    port = free_port()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PUBLIC_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("PORT", str(port))
    program = imported(recipe(name))
    # Of a thousand postcards a few will do.
    program["range"] = lambda number: range(number // 500)
    for _ in range(2):
        asyncio.run(program["main"]())

    # The same batch again finds its pictures made.
    assert len(flux2_emulator.ledger.accepted) == {"first": 4, "interrupt": 2, "script": 6}[name]


@pytest.mark.flux2_script(Script(plans=Plan(duration=0.1), render=False))
def test_aiohttp_is_entered_twice(flux2_emulator: RunningEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that makes its application anew serves again, in another event loop of the same process."""

    async def serve_once() -> tuple[int, int]:
        runner = web.AppRunner(program["make_app"](), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        answer = await ask("POST", f"http://127.0.0.1:{port}/edits", data=form(photo=PHOTO, prompt="make it winter"))
        await runner.cleanup()
        return answer.status, len(answer.json()["urls"])

    port = free_port()
    monkeypatch.setenv("PUBLIC_URL", f"http://127.0.0.1:{port}")
    program = imported(recipe("aiohttp"))
    assert [asyncio.run(serve_once()) for _ in range(2)] == [(200, 1)] * 2
    assert len(flux2_emulator.ledger.accepted) == 2


def test_first_makes_a_picture_out_of_a_picture(flux2_emulator: RunningEmulator, tmp_path: Path) -> None:
    """The first picture goes into the second request, and the second picture is saved."""
    printed = started("first", tmp_path)

    first, second = flux2_emulator.ledger.accepted
    sent = flux2_emulator.task(second).body["input"]["input_urls"]
    assert tuple(sent) == flux2_emulator.task(first).result_urls
    assert printed.split() == [f"out/{second}-1.png"]
    assert (tmp_path / printed.strip()).read_bytes()


def test_blocking_saves_each_picture(flux2_emulator: RunningEmulator, tmp_path: Path) -> None:
    """The script without asyncio saves three pictures and names their files."""
    printed = started("blocking", tmp_path)

    assert {f"houses/{task_id}-1.png" for task_id in flux2_emulator.ledger.accepted} == {*printed.split()}
    assert len(list((tmp_path / "houses").iterdir())) == 3


def test_notebook_shows_pictures_in_a_kernel(
    flux2_emulator: RunningEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells run as Jupyter runs them: by `await`, then by the session that blocks while the kernel's loop runs."""
    package("nbclient")
    flux2_emulator.script.render = True
    notebook = tmp_path / "app.ipynb"
    shutil.copy(recipe("notebook"), notebook)
    monkeypatch.setenv("HOME", str(tmp_path))
    words = (sys.executable, "-m", "jupyter", "execute", "--inplace", "--timeout=60", notebook.name)
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)  # noqa: S603  our own
    assert done.returncode == 0, done.stderr

    cells = json.loads(notebook.read_text())["cells"]
    opened, one, many, closed, blocking = [
        "".join("".join(each.get("text", "")) or str(each.get("data")) for each in cell["outputs"]) for cell in cells
    ]
    ledger = flux2_emulator.ledger
    files = [f"pictures/{task_id}-1.jpg" for task_id in ledger.accepted]
    assert [base64.b64encode((tmp_path / files[0]).read_bytes()).decode() in one.replace("\\n", "")] == [True]
    assert [base64.b64encode((tmp_path / files[4]).read_bytes()).decode() in blocking.replace("\\n", "")] == [True]
    assert sorted(many.split()) == sorted(files[1:4])
    # A warning of any cell would stand there.
    assert opened == f"{{'text/plain': ['<Flux2Session {flux2_emulator.base_url} open>']}}"
    assert closed == "{'text/plain': ['Unsettled(task_ids=(), refs=())']}"
    assert [call.outcome for call in ledger.requests] == ["accepted"] * 5


async def test_script_runs_without_a_web_server(flux2_emulator: RunningEmulator, tmp_path: Path) -> None:
    """The program saves three pictures, each brought by its callback."""
    port = free_port()
    printed = started("script", tmp_path, PORT=str(port), PUBLIC_URL=f"http://127.0.0.1:{port}")

    assert sorted(line.split()[0] for line in printed.splitlines()) == ["done:"] * 3
    assert len(list((tmp_path / "houses").iterdir())) == 3
    assert await callback_answers(flux2_emulator, 3) == [200] * 3
    assert flux2_emulator.ledger.polls == 3
