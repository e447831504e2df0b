"""Uploads and downloads, as the session calls them.

Whatever touches a file runs in worker threads. Uploads and downloads run in a task group, also a single one: there, a
cancellation of the caller from any side can be shielded from, so that nothing is left open or half written.
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio

from flux2_async._http.api import Api
from flux2_async._protocol.converter import http_address
from flux2_async._protocol.media import MAX_PICTURE
from flux2_async.errors import InvalidRequestError
from flux2_async.models import ImageResult, ImageSource, UploadedFile
from flux2_async.models.image_sources import UploadSource, is_url

if TYPE_CHECKING:
    from flux2_async._http.downloads import Downloads
    from flux2_async._http.uploads import Uploads

T = TypeVar("T")


class Files:
    """Brings local pictures to the service and results to a folder.

    Args:
        api: The service.
        most: Bytes that one reference picture may have.
    """

    def __init__(self, api: Api, most: int = MAX_PICTURE) -> None:
        self._api = api
        self._most = most

    # Who gives addresses and takes addresses loads neither of the two.

    @cached_property
    def _uploads(self) -> "Uploads":
        from flux2_async._http.uploads import Uploads  # noqa: PLC0415  loaded at first need

        return Uploads(self._api, self._most)

    @cached_property
    def _downloads(self) -> "Downloads":
        from flux2_async._http.downloads import Downloads  # noqa: PLC0415  loaded at first need

        return Downloads(self._api)

    async def check(self, images: Sequence[ImageSource], names: Sequence[str] = ()) -> None:
        """Look at the local pictures of a request before anything is sent.

        Args:
            images: The pictures.
            names: What errors call each; without, `images[n]`, n from 0.

        Raises:
            InvalidRequestError: One is no readable JPEG, PNG or WebP file of 1 byte to what the service takes; the text
                names it.
        """
        names = names or [f"images[{index}]" for index in range(len(images))]
        local = {
            name: place
            for name, place in zip(names, map(located, images), strict=True)
            if not isinstance(place, str | UploadedFile)
        }
        if local:
            await self._uploads.check(local)

    async def urls(self, images: Sequence[ImageSource], names: Sequence[str] = ()) -> tuple[str | UploadedFile, ...]:
        """Upload the local pictures of a request; see `check` for the arguments.

        Returns:
            For each picture, in order: an address as it was given, else the file at the service.

        Raises:
            InvalidRequestError: See `check`; a file may have changed since.
            ApiError: The service refused an upload.
            TransportError: No answer came in several tries.
        """
        places = list(map(located, images))
        there = [place for place in places if isinstance(place, str | UploadedFile)]
        if len(there) == len(places):
            # What is there already needs no task group.
            return tuple(there)

        async def bring(name: str, place: Path | bytes | str | UploadedFile) -> str | UploadedFile:
            if not isinstance(place, Path | bytes):
                return place
            return await self._uploads.bring_local(name, place, None)

        names = names or [f"images[{index}]" for index in range(len(images))]
        return tuple(await together([partial(bring, *each) for each in zip(names, places, strict=True)]))

    async def upload(self, source: UploadSource, *, file_name: str | None = None) -> UploadedFile:
        """Upload one picture, see `Flux2Session.upload`; an error names it as `source`.

        A content that was uploaded by this session before is not sent again and keeps the name it has there.
        """
        return (await together([partial(self._uploads.bring_source, source, file_name)]))[0]

    async def download(self, result: ImageResult, directory: str | os.PathLike[str]) -> list[Path]:
        """Save the pictures of a result, each whole or not at all, see `Flux2Session.download`.

        When one fails the others are finished and stay. Files of the same name are replaced; the extension goes by the
        content, and is `bin` for a format that is not known here.
        """
        if not isinstance(result, ImageResult):
            raise InvalidRequestError(f"result: {type(result).__name__} given, it must be what `await task` gave")
        if not isinstance(directory, str | os.PathLike):
            raise InvalidRequestError(f"directory: {type(directory).__name__} given, it must be the path of a folder")
        folder = Path(directory)
        await self._downloads.prepare(folder)
        save = self._downloads.save
        urls = enumerate(result.urls, start=1)
        return await together([partial(save, result.task_id, number, url, folder) for number, url in urls])

    async def download_url(self, url: str) -> str:
        """Ask the service for a direct link, see `Flux2Session.download_url`.

        Raises:
            InvalidRequestError: `url` is no http(s) address.
            ApiError, TransportError, ProtocolError: As `Api.record` does.
        """
        if http_address(url) is None:
            raise InvalidRequestError(f"url: {url!r} given, it must look like https://host/picture.png")
        return await self._api.download_url(url)


def located(image: ImageSource) -> Path | bytes | str | UploadedFile:
    """Give a picture that has to be uploaded as its path or content, and any other as it is."""
    if isinstance(image, str):
        return image if is_url(image) else Path(image)
    return Path(image) if isinstance(image, os.PathLike) else image


async def together(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Run all at once and to their ends, then give what they returned, or raise the first error in their order."""
    done: dict[int, T] = {}
    failed: dict[int, Exception] = {}

    async def run(index: int, call: Callable[[], Awaitable[T]]) -> None:
        try:
            done[index] = await call()
        except Exception as error:  # noqa: BLE001  it is raised below, outside of the group, which would wrap it
            failed[index] = error

    async with anyio.create_task_group() as group:
        for index, call in enumerate(calls):
            group.start_soon(run, index, call)
    if failed:
        raise failed[min(failed)]
    return [done[index] for index in range(len(calls))]
