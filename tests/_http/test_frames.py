"""What error reporters print: no local variable of a frame that an error passes holds the key or the environment."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from multidict import CIMultiDict
from raw_server import HANG, answer, raw_server

from flux2_async import ConfigurationError, Flux2Error, Flux2Session, ImageResult, ImageToImage, TextToImage, Timeouts
from flux2_async.models import Callbacks, TaskRecord, TaskState
from flux2_async.webhooks import sign, signed_url, verify_url

KEY = "the-secret-key-0123456789"
OTHER = "a-secret-of-another-program"
DEPTH = 6
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIKLEY_API_KEY", KEY)
    monkeypatch.setenv("DATABASE_URL", OTHER)


def shown(value: object, depth: int = DEPTH) -> Iterator[str]:
    """What the most talkative reporters make of a value: containers and attrs classes opened, all else by its repr."""
    yield repr(value)
    if depth == 0:
        return
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from shown(name, depth - 1)
            yield from shown(each, depth - 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from shown(each, depth - 1)
    elif attrs.has(type(value)):
        kind: Any = type(value)
        for field in attrs.fields(kind):
            if field.repr is True:
                yield from shown(getattr(value, field.name, None), depth - 1)


def leaks(error: BaseException | None) -> list[str]:
    """The local variables, of all frames but the tests', in which a secret stands."""
    found = []
    while error is not None:
        for frame, line in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename == __file__:
                continue
            for name, value in frame.f_locals.items():
                if any(secret in text for text in shown(value) for secret in (KEY, OTHER)):
                    found.append(f"{Path(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}: {name}")
        error = error.__cause__ or error.__context__
    return found


def test_this_test_sees_what_it_looks_for() -> None:
    """A local variable with a secret, in whatever it is wrapped, is found."""
    space: dict[str, Any] = {}
    exec(compile("def fail(value):\n    raise ValueError", "elsewhere", "exec"), space)  # noqa: S102  not this file's frame
    for value in (KEY, [{"headers": (KEY,)}], CIMultiDict({"Authorization": f"Bearer {KEY}"})):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  any
            space["fail"](value)
        assert leaks(caught.value) == ["elsewhere:2 fail: value"]


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "nowhere"},
        {"base_url": 7},
        {"upload_url": "ftp://x"},
        {"api_key": f"{KEY} and more"},
        {"api_key": KEY.encode()},
        {"api_key": [KEY]},
        {"api_key": KEY, "base_url": "nowhere"},
        {"api_key": KEY, "timeouts": None},
        {"api_key": KEY, "max_running": 0},
        {"api_key": KEY, "callbacks": "no"},
    ],
)
def test_a_session_that_cannot_be_made(options: dict[str, Any]) -> None:
    """Neither a wrong address nor a malformed key puts the key or the environment before an error reporter."""
    make: Any = Flux2Session
    with pytest.raises(ConfigurationError) as caught:
        make(**options)

    assert leaks(caught.value) == []
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "variables", [{"APIKLEY_API_KEY": ""}, {"APIKLEY_API_KEY": f"{KEY} x"}, {"APIKLEY_BASE_URL": "x"}]
)
async def test_an_environment_that_cannot_be_used(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong in the environment puts nothing of it before an error reporter."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        await Flux2Session().open()

    assert leaks(caught.value) == []
    assert KEY not in str(caught.value)


ADDRESS = f"https://someone:{KEY}@app.example"


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Callbacks, {"url": "ftp://app.example/", "secret": KEY, "hmac_key": KEY}),
        (Callbacks, {"url": "https://app.example/", "secret": KEY.encode()}),
        (Callbacks, {"url": "https://app.example/", "secret": f"{KEY}\ud800"}),
        (Callbacks, {"url": "https://app.example/", "hmac_key": [KEY]}),
        (Callbacks, {"url": "https://app.example/", "secret": KEY, "confirm": "yes"}),
        (Callbacks, {"url": "https://app.example/", "secret": KEY, "no_such": 1}),
        (Callbacks, {"url": f"ftp://someone:{KEY}@app.example/"}),
        (Callbacks, {"url": f"ftp://app.example/?token={KEY}"}),
        (Flux2Session, {"base_url": ADDRESS}),
        (Flux2Session, {"base_url": [ADDRESS]}),
        (Flux2Session, {"upload_url": f"{ADDRESS}:99999"}),
        (Flux2Session, {"base_url": f"https://api.example/?key={KEY}"}),
        (Flux2Session, {"base_url": f"ftp://api.example/?key={KEY}"}),
        (Flux2Session, {"callbacks": KEY}),
        (Flux2Session, {"callbacks": Callbacks(f"https://app.example/?token={KEY}&sig=1", secret=KEY)}),
        (signed_url, {"url": "nowhere", "ref": "r", "secret": KEY}),
        (signed_url, {"url": "https://app.example/", "ref": "", "secret": KEY}),
        (verify_url, {"query": 7, "secret": KEY}),
        (sign, {"task_id": "t", "timestamp": 1, "hmac_key": [KEY]}),
    ],
)
def test_secrets_that_come_with_what_is_refused(make: Callable[..., object], options: dict[str, Any]) -> None:
    """A secret, a password in an address, a token in one: none stands in a frame or text of what refuses it."""
    with pytest.raises((Flux2Error, TypeError, AttributeError)) as caught:
        make(**options)

    assert leaks(caught.value) == []
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"no_such": 1}, {"url": "nowhere"}, {"confirm": "yes"}, {"hmac_key": [KEY]}, {"url": f"ftp://{KEY}@x/"}]
)
def test_a_copy_that_cannot_be_made(changes: dict[str, Any]) -> None:
    """A copy with changes puts the secrets of the original before no error reporter, though attrs collects them."""
    whole = Callbacks("https://app.example/", secret=KEY, hmac_key=KEY)
    with pytest.raises((Flux2Error, TypeError)) as caught:
        attrs.evolve(whole, **changes)

    assert leaks(caught.value) == []
    assert attrs.evolve(whole, confirm=False).secret == KEY


@pytest.mark.parametrize(
    "url", [f"http://someone:{KEY}@redis", f"redis://:{KEY}@redis/x", f"redis://:{KEY}@redis:99999"]
)
def test_a_redis_that_cannot_be_used(url: str) -> None:
    """The password of a Redis stands in no frame, neither ours nor the redis package's."""
    coordination = pytest.importorskip("flux2_async.coordination")
    with pytest.raises(ConfigurationError) as caught:
        coordination.RedisCoordination(url)

    assert leaks(caught.value) == []
    assert KEY not in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        coordination.RedisCoordination(f"redis://:{KEY}@redis", namespace="")
    assert leaks(caught.value) == []


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://app:x/{KEY}@db/name",
        f"postgresql://app:x@{KEY}@db/name",
        f"host=db {KEY}",
        f"host=db password={KEY} no_such_option=1",
        f"http://app:{KEY}@db",
    ],
)
def test_a_postgres_that_cannot_be_used(dsn: str) -> None:
    """The password of a Postgres stands in no frame, neither ours nor psycopg's."""
    coordination = pytest.importorskip("flux2_async.coordination")
    with pytest.raises(ConfigurationError) as caught:
        coordination.PostgresCoordination(dsn)

    assert leaks(caught.value) == []
    assert KEY not in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        coordination.PostgresCoordination(f"host=db password={KEY}", schema="")
    assert leaks(caught.value) == []


async def test_an_address_with_a_password_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment has for an address is refused without being shown."""
    monkeypatch.setenv("APIKLEY_BASE_URL", ADDRESS)
    with pytest.raises(ConfigurationError) as caught:
        await Flux2Session().open()

    assert leaks(caught.value) == []


def test_settings_show_no_secret() -> None:
    """What stands in a receiver's address for itself alone is not in its `repr`."""
    shown_settings = repr(Callbacks(f"https://someone:{KEY}@app.example/cb/?token={KEY}", secret=KEY, hmac_key=KEY))

    assert shown_settings == "Callbacks(url='https://app.example/cb/', confirm=True)"


Call = Callable[[Flux2Session, Path], Awaitable[object]]

RECORD = TaskRecord(task_id="task_1", state=TaskState.SUCCESS, state_text="success")
RESULT = ImageResult(task_id="task_1", urls=("http://127.0.0.1:9/a.png",), record=RECORD)
CALLS: dict[str, Call] = {
    "credits": lambda flux, _: flux.credits(),
    "fetch_record": lambda flux, _: flux.fetch_record("task_1"),
    "upload": lambda flux, _: flux.upload(PNG),
    "download_url": lambda flux, _: flux.download_url("https://cdn.example/a.png"),
    "download": lambda flux, folder: flux.download(RESULT, folder),
    "submit": lambda flux, _: flux.submit(TextToImage("a red kettle")),
    "submit with a key": lambda flux, _: flux.submit(TextToImage("a red kettle"), key="k"),
    "submit with a picture": lambda flux, _: flux.submit(ImageToImage("a red kettle", images=[PNG])),
    "generate": lambda flux, _: flux.generate(TextToImage("a red kettle")),
    "attach": lambda flux, _: flux.attach("task_1").result(5.0),
    "recover": lambda flux, _: flux.recover("ref"),
}
REPLIES = {
    "closes": b"",
    "not HTTP": b"what is this\r\n\r\n",
    "401": answer(401, {"code": 401, "msg": f"wrong key {KEY}"}),
    "html": answer(200, b"<html>"),
    "cut": answer(200, b"{", length=99),
    "hangs": HANG,
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES.keys())
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_an_error_of_a_call(call: Call, reply: bytes, tmp_path: Path) -> None:
    """No call that fails, however, puts the key before an error reporter, in our frames or in aiohttp's."""
    async with (
        raw_server([reply]) as server,
        Flux2Session(
            KEY, base_url=server.url, timeouts=Timeouts(connect=2, submit=2, record=2, upload=2, download=2)
        ) as f,
    ):
        with pytest.raises((Flux2Error, TimeoutError)) as caught:
            await call(f, tmp_path)

    assert leaks(caught.value) == []


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_a_call_that_is_cancelled(call: Call, tmp_path: Path) -> None:
    """A time-out of the caller's own passes through aiohttp's frames; the key stands in none of them."""
    async with (
        raw_server([HANG]) as server,
        aiohttp.ClientSession() as http,
        Flux2Session(KEY, base_url=server.url, http=http) as flux,
    ):
        with pytest.raises((Flux2Error, TimeoutError)) as caught:
            async with asyncio.timeout(1.0):
                await call(flux, tmp_path)

    assert leaks(caught.value) == []


@pytest.mark.parametrize("moment", ["on_request_start", "on_request_end", "on_request_exception"])
async def test_a_hook_that_fails(moment: str) -> None:
    """A hook of the caller's session sees no key, and its failure shows none."""

    async def fail(*_: object) -> None:
        raise RuntimeError

    trace = aiohttp.TraceConfig()
    getattr(trace, moment).append(fail)
    async with (
        raw_server([b""]) as server,
        aiohttp.ClientSession(trace_configs=[trace]) as http,
        Flux2Session(KEY, base_url=server.url, http=http) as flux,
    ):
        with pytest.raises(Flux2Error) as caught:
            await flux.credits()

    assert leaks(caught.value) == []


async def test_a_closed_session() -> None:
    """A call after the end shows nothing."""
    flux = Flux2Session(KEY, base_url="http://127.0.0.1:1")
    async with flux:
        pass
    with pytest.raises(Flux2Error) as caught:
        await flux.credits()

    assert leaks(caught.value) == []
    assert not any(KEY in text for text in shown(vars(flux)))
