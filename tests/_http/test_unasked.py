"""Connections that are used again: what comes on one unasked is nobody's answer."""

import asyncio
import gc
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from file_host import PNG, result_of
from raw_server import answer, read_request

from flux2_async.models import Polling
from flux2_async.session.session import Flux2Session


@asynccontextmanager
async def speaking_unasked(answers: Sequence[bytes], unasked: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """Give these answers, the last one for ever, and more behind each a moment later; and who asked: its connection."""
    asked: list[int] = []
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        connection = opened
        try:
            while True:
                await read_request(reader)
                asked.append(connection)
                writer.write(answers[min(len(asked), len(answers)) - 1])
                await writer.drain()
                await asyncio.sleep(0.1)
                writer.write(unasked)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


@pytest.fixture(params=["ours", "borrowed", "from a factory"])
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[dict[str, Any]]:
    """Whose connections are used: the option of a session."""
    async with aiohttp.ClientSession() as http:
        options: dict[str, dict[str, Any]] = {
            "borrowed": {"http": http},
            "from a factory": {"connector": aiohttp.TCPConnector},
        }
        yield options.get(request.param, {})


def record(state: str, *urls: str, **facts: str) -> bytes:
    result = json.dumps({"resultUrls": urls})
    return answer(200, {"code": 200, "data": {"state": state, "resultJson": result, **facts}})


def picture(content: bytes) -> bytes:
    """A PNG of one chunk and its end."""
    end = bytes.fromhex("0000000049454e44ae426082")
    return PNG + len(content).to_bytes(4, "big") + b"tEXt" + content + bytes(4) + end


async def test_a_picture_that_came_unasked_is_not_another_ones(tmp_path: Path, pool: dict[str, Any]) -> None:
    """The next file of a host comes over another connection where something came on the last one."""
    mine, other = answer(200, picture(b"mine")), answer(200, picture(b"other"))
    async with speaking_unasked([mine], other) as (url, asked), Flux2Session("key", base_url=url, **pool) as flux:
        for number in range(3):
            [file] = await flux.download(result_of(f"{url}/{number}.png", task_id=f"t{number}"), tmp_path)
            assert file.read_bytes() == picture(b"mine")
            await asyncio.sleep(1)
        assert asked == [1, 2, 3]


async def test_a_record_that_came_unasked_is_not_another_ones(pool: dict[str, Any]) -> None:
    """A record is an answer to its question, also where it does not say whose it is."""
    answers = [record("generating"), record("success", "https://x.example/mine.png")]
    other = record("success", "https://x.example/other.png")
    async with speaking_unasked(answers, other) as (url, _):
        async with Flux2Session("key", base_url=url, polling=Polling(interval=1.0), **pool) as flux:
            result = await flux.attach("0123456789abcdef").result(timeout=60)
            assert result.urls == ("https://x.example/mine.png",)


async def test_a_connection_on_which_nothing_came_is_used_again(tmp_path: Path, pool: dict[str, Any]) -> None:
    """One is enough for a host that answers what it is asked."""
    async with speaking_unasked([answer(200, picture(b"mine"))], b"") as (url, asked):
        async with Flux2Session("key", base_url=url, **pool) as flux:
            for number in range(3):
                await flux.download(result_of(f"{url}/{number}.png", task_id=f"t{number}"), tmp_path)
                await asyncio.sleep(1)
            assert asked == [1, 1, 1]


async def test_a_question_is_freed_when_it_was_answered(pool: dict[str, Any]) -> None:
    """Neither a request nor its answer waits for the garbage collector."""
    async with (
        speaking_unasked([record("waiting")], b"") as (url, _),
        Flux2Session("key", base_url=url, **pool) as flux,
    ):
        gc.collect()
        gc.disable()
        try:
            before = Counter(type(each) for each in gc.get_objects())
            for _ in range(5):
                await flux.fetch_record("task-1")
            held = Counter(type(each) for each in gc.get_objects()) - before
        finally:
            gc.enable()
    assert held[aiohttp.ClientRequest] < 5
    assert held[aiohttp.ClientResponse] < 5
