"""The calls of the service, each once against the emulator."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from service_calls import accepted_by, connected

from flux2_async._http.api import Api
from flux2_async.emulator import Emulator, Plan, Script
from flux2_async.errors import ApiError
from flux2_async.models import TaskRecord


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(Script(Plan(duration=0), render=False)) as emulator:
        yield emulator


@pytest.fixture
async def api(emulator: Emulator) -> AsyncIterator[Api]:
    async with connected(emulator) as api:
        yield api


async def made(api: Api) -> TaskRecord:
    """The record of a new task."""
    answer = await accepted_by(api)
    assert "Date" in answer.headers
    record = await api.record(answer.task_id)
    assert record is not None
    return record


async def test_a_task_and_its_record(api: Api, emulator: Emulator) -> None:
    """An accepted createTask gives an id with the reply's headers, and recordInfo what became of it."""
    record = await made(api)

    assert [record.task_id] == emulator.ledger.accepted
    assert await api.record("task_unknown") is None


async def test_credits_and_upload(api: Api, emulator: Emulator) -> None:
    """The balance is a number, and an uploaded file has an address."""
    assert await api.credits() == emulator.script.credits
    form = aiohttp.FormData()
    form.add_field("uploadPath", "images")
    form.add_field("fileName", "a.png")
    form.add_field("file", b"\x89PNG\r\n\x1a\n", filename="a.png", content_type="image/png")
    uploaded = await api.upload(form, size=8, mime_type="image/png")

    assert uploaded.url.startswith("http")
    assert uploaded.size == 8


async def test_asks_for_a_direct_link(api: Api) -> None:
    """The service's link works without the key; a foreign address is refused with 422."""
    link = await api.download_url((await made(api)).result_urls[0])

    async with aiohttp.ClientSession() as http, http.get(link) as response:
        assert response.status == 200
    with pytest.raises(ApiError, match=r"^422") as caught:
        await api.download_url("https://example.com/a.png")
    assert caught.value.code == 422
