"""The calls of the service: where each goes, and what its answer means.

A service of the same shape, or one more thing that an answer tells, is a change here.
"""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import aiohttp
import attrs

from flux2_async._http.post import Post
from flux2_async._http.transport import JSON, Transport
from flux2_async._protocol.answers import judge
from flux2_async._protocol.codec import decode_credits, decode_download_url, decode_record, decode_upload
from flux2_async._shown.frames import Secret
from flux2_async.errors import ProtocolError
from flux2_async.models import Request, TaskRecord, UploadedFile

if TYPE_CHECKING:
    from flux2_async._http.file_transport import FileTransport

Meaning = TypeVar("Meaning", bound=Callable[..., object])


@attrs.frozen(eq=False, repr=False)
class Call(Generic[Meaning]):
    """One call.

    Attributes:
        method: HTTP's.
        path: Behind the service's `base_url` and `api_path`; of an upload, behind its `upload_url`.
        meaning: Turns its reply into a value, or raises the error that it means.
    """

    method: str
    path: str
    meaning: Meaning


CREATE_TASK: Final = Call("POST", "/jobs/createTask", judge)
RECORD_INFO: Final = Call("GET", "/jobs/recordInfo", decode_record)
CREDITS: Final = Call("GET", "/chat/credit", decode_credits)
DOWNLOAD_URL: Final = Call("POST", "/common/download-url", decode_download_url)
UPLOAD: Final = Call("POST", "/api/file-stream-upload", decode_upload)
URL_UPLOAD: Final = Call("POST", "/api/file-url-upload", decode_upload)


class Api:
    """Makes the calls, and gives what their answers mean.

    Args:
        transport: The way out.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def files(self) -> "FileTransport":
        """Speaks HTTP with the hosts of files, without the key."""
        return self._transport.files

    def create_task(self, body: bytes, *, request: Request, ref: str, headers: Secret | None = None) -> Post:
        """Give one createTask, which is neither connected nor sent yet.

        Args:
            body: The encoded request.
            request: What it stands for, for the error.
            ref: The name of this submission, for the error.
            headers: Of this call alone.
        """
        way, url = self._transport.to_create_task, self._transport.url(CREATE_TASK.path)
        return Post(way, url, body, judge=CREATE_TASK.meaning, request=request, ref=ref, headers=headers)

    async def record(self, task_id: str) -> TaskRecord | None:
        """Ask for a task's record; None when it is not visible.

        Raises:
            ApiError: The service refused.
            TransportError: No complete answer came.
            ProtocolError: The answer makes no sense.
        """
        reply = await self._transport.call(RECORD_INFO.method, RECORD_INFO.path, params={"taskId": task_id})
        return RECORD_INFO.meaning(reply, task_id)

    async def credits(self) -> float:
        """Ask for the account's balance, in credits.

        Raises:
            ApiError, TransportError, ProtocolError: As `record` does.
        """
        return CREDITS.meaning(await self._transport.call(CREDITS.method, CREDITS.path))

    async def download_url(self, url: str) -> str:
        """Ask for a direct link to a file that the service made.

        Raises:
            ApiError, TransportError, ProtocolError: As `record` does.
        """
        body = json.dumps({"url": url}).encode()
        reply = await self._transport.call(DOWNLOAD_URL.method, DOWNLOAD_URL.path, data=body, headers=JSON)
        return DOWNLOAD_URL.meaning(reply)

    async def upload(self, form: aiohttp.FormData, *, size: int, mime_type: str) -> UploadedFile:
        """Send one file; sending it again costs nothing.

        Args:
            form: The file and its name.
            size: Of the file, in bytes.
            mime_type: What it is.

        Raises:
            ApiError, TransportError, ProtocolError: As `record` does.
        """
        return UPLOAD.meaning(await self._transport.upload(UPLOAD.path, form), size=size, mime_type=mime_type)

    async def upload_address(self, fields: Mapping[str, str]) -> UploadedFile:
        """Ask the service to fetch a file, with `fileUrl`, `uploadPath` and perhaps `fileName`.

        Raises:
            ApiError, TransportError, ProtocolError: As `record` does.
        """
        reply = await self._transport.upload(URL_UPLOAD.path, json.dumps(fields).encode())
        file = URL_UPLOAD.meaning(reply)
        if file.url == fields["fileUrl"]:
            raise ProtocolError(
                "data: the address that was to be copied came back; upload it again", http_status=reply.status
            )
        return file
