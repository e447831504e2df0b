"""Results on their way to a folder: whole under their name, or not at all."""

import errno
import logging
import tempfile
from contextlib import aclosing
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from flux2_async._http.api import Api
from flux2_async._http.file_transport import FileReply
from flux2_async._http.partial_file import Part
from flux2_async._http.retry import persist
from flux2_async._protocol.converter import http_address
from flux2_async._protocol.media import result_name
from flux2_async._protocol.refusals import retry_after
from flux2_async.errors import (
    ApiError,
    Flux2Error,
    InvalidRequestError,
    NotFoundError,
    ProtocolError,
    RateLimitedError,
    ServerError,
    TransportError,
)

logger = logging.getLogger("flux2_async")

DOWNLOADS_AT_ONCE: Final = 8

# What file hosts answer for a link whose time is over.
EXPIRED: Final = (401, 403, 404, 410)
MAYBE_LATER: Final = (408, 425)

# A folder given by the caller is not to blame for these.
NOT_THE_FOLDER: Final = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)

ADVICE_EXPIRED: Final = (
    "The address is no longer valid (addresses live about 24 hours) and the service gave no new one; fetch the task's "
    "record again: if its addresses are refused too, the picture is gone"
)


class Downloads:
    """Fetches results, from any host and without the key.

    Args:
        api: The service.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._places = anyio.Semaphore(DOWNLOADS_AT_ONCE)

    async def prepare(self, directory: Path) -> None:
        """Make a folder where it is missing; see `prepare_folder`."""
        await anyio.to_thread.run_sync(prepare_folder, directory)

    async def save(self, task_id: str, number: int, url: str, directory: Path) -> Path:
        """Save one picture, of its task's the one of this number from 1, in an existing folder; give the file.

        To be called in a task of a task group, whose cancellation the removal of the unfinished file is shielded from.

        Raises:
            Flux2Error: It cannot be fetched.
            OSError: It cannot be written.
        """
        what = f"picture {number} of task {task_id}"
        address = http_address(url)
        if address is None:
            raise ProtocolError(f"{what}: its address is not http(s), so it was not fetched", task_id=task_id)
        async with self._places:
            part = await anyio.to_thread.run_sync(Part.create, what, task_id, directory)
            try:
                await self._fetch(part, address)
                target = directory / result_name(task_id, number, part.walk.type)
                await anyio.to_thread.run_sync(part.publish, target)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(part.discard)
                raise
        return target

    async def _fetch(self, part: Part, url: str) -> None:
        fresh: str | None = None

        async def attempt() -> None:
            nonlocal fresh
            try:
                await self._go_on(part, fresh or url)
            except ApiError as error:
                if not error.link_expired or fresh is not None:
                    raise
                fresh = await self._refresh(url, error)
                await self._go_on(part, fresh)

        try:
            await persist(attempt)
        except TransportError as error:
            if not part.walk.is_ended:
                raise
            logger.warning("%s; nothing of the picture itself is missing, so it was saved", error)

    async def _refresh(self, url: str, expired: ApiError) -> str:
        try:
            return await persist(lambda: self._api.download_url(url))
        except Flux2Error:
            # Why the service gives no new link says less than what became of the old one.
            raise expired from None

    async def _go_on(self, part: Part, url: str) -> None:
        async with self._api.files.get(url, part.request_headers()) as reply:
            if reply.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.ends_at(reply.headers):
                part.check_whole()
                return
            await _begin(part, url, reply)
            async with aclosing(reply.chunks()) as chunks:
                async for chunk in chunks:
                    await anyio.to_thread.run_sync(part.write, chunk)
        part.check_whole()


def prepare_folder(directory: Path) -> None:
    """Make the folder when it is missing, and find out whether it can be written; blocks.

    Raises:
        InvalidRequestError: It cannot.
        OSError: The disk is full, or no more files can be opened.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Asking for permissions is no answer: root has all of them, and a read-only disk none.
        with tempfile.TemporaryFile(dir=directory):
            return
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in NOT_THE_FOLDER:
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or error
    raise InvalidRequestError(
        f"directory: {str(directory)!r} cannot be written ({reason}), give a folder that can; nothing was fetched"
    )


async def _begin(part: Part, url: str, reply: FileReply) -> None:
    """Get ready for the content of an answer, or raise what it says instead."""
    if reply.status == HTTPStatus.OK:
        await anyio.to_thread.run_sync(part.restart, reply.headers)
    elif reply.status in (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
        if reply.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not part.continues(reply.headers):
            part.forget()
            raise ProtocolError(
                f"{part.what}: the rest that came does not fit; download it again later",
                http_status=reply.status,
                task_id=part.task_id,
            )
    else:
        raise _refusal(part, urlsplit(url).hostname, reply)


def _refusal(part: Part, host: str | None, reply: FileReply) -> ApiError:
    """Say what a file host means; its 401 and 429 are not about the API's key and limit."""
    status = reply.status
    message = f"{part.what} was refused by {host}"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        wait = retry_after(reply.headers)
        return RateLimitedError(
            status, message, status, retry_after=wait, task_id=part.task_id, advice="Download it again later"
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in MAYBE_LATER:
        return ServerError(status, message, status, task_id=part.task_id, advice="Download it again later")
    if status in EXPIRED:
        kind = NotFoundError if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE) else ApiError
        error = kind(status, message, status, task_id=part.task_id, advice=ADVICE_EXPIRED)
        error.link_expired = True
        return error
    return ApiError(status, message, status, task_id=part.task_id, advice="Check that result.urls is right")
