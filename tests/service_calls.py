"""The client's own way to whatever serves an address, and one createTask on it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from emulated import REQUEST
from raw_server import answer

from flux2_async._http.api import Api
from flux2_async._http.credentials import Credentials, make_credentials
from flux2_async._http.post import Post
from flux2_async._http.transport import Transport
from flux2_async._protocol.answers import Accepted, Answer, NeverSent, Refused, Unclear
from flux2_async._protocol.codec import encode_request
from flux2_async._shown.frames import Secret
from flux2_async.emulator import Emulator
from flux2_async.models import Timeouts

KEY = "the-secret-key"
BODY = b'{"model": "flux-2/flex-text-to-image"}'


def accepted(number: int) -> bytes:
    return answer(200, {"code": 200, "msg": "success", "data": {"taskId": f"task_{number}"}})


def upload_url_of(base_url: str | None) -> str:
    """Where a session uploads to that was given an address, or none."""
    return make_credentials(Secret(KEY), base_url, None).upload_url


@asynccontextmanager
async def transport_to(
    url: str,
    http: aiohttp.ClientSession | None = None,
    *,
    upload_url: str | None = None,
    key: str = KEY,
    timeouts: Timeouts | None = None,
    **options: Any,
) -> AsyncIterator[Transport]:
    credentials = Credentials(key, url, upload_url or f"{url}/file-upload")
    transport = Transport(credentials, timeouts or Timeouts(), http, **options)
    await transport.open()
    try:
        yield transport
    finally:
        await transport.aclose()


@asynccontextmanager
async def connected(emulator: Emulator) -> AsyncIterator[Api]:
    """The calls of an emulator."""
    async with transport_to(emulator.base_url, upload_url=emulator.upload_url, key=emulator.api_key) as transport:
        yield Api(transport)


@asynccontextmanager
async def api_to(url: str) -> AsyncIterator[Api]:
    async with transport_to(url) as transport:
        yield Api(transport)


def create_task(transport: Transport) -> Post:
    """One createTask that is not sent yet."""
    return Api(transport).create_task(BODY, request=REQUEST, ref="our-ref")


async def accepted_by(api: Api) -> Accepted:
    """What the service says to a new task."""
    with api.create_task(encode_request(REQUEST), request=REQUEST, ref="mine") as post:
        told = await post.send(lambda: False)
    assert isinstance(told, Accepted)
    return told


async def sent(
    transport: Transport, between: Callable[[], object] | None = None, lease_ended: Callable[[], bool] = bool
) -> Answer:
    """Send one createTask; `between` happens between its connection and its head, with no step of the loop after it."""

    async def announce() -> None:
        if between is not None:
            between()

    with create_task(transport) as post:
        return await post.send(lease_ended, announce)


async def create(transport: Transport) -> str:
    """The id of a new task, or the error that tells why there is none."""
    match await sent(transport):
        case Accepted(task_id):
            return task_id
        case Refused(error) | NeverSent(error) | Unclear(error):
            raise error
