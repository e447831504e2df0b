"""The files of the service: what was uploaded, and the addresses of results.

Everything is in memory; what has expired is forgotten when it is next asked for.
"""

import re
import secrets
from typing import TypeAlias
from urllib.parse import quote, unquote, urlsplit

import attrs

from flux2_async.emulator.clock import Clock
from flux2_async.emulator.script import Script

UPLOADS = "/file-upload/files/"
RESULTS = "/results/"

BEGINNINGS = {
    "jpeg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG\r\n\x1a\n",
    "webp": rb"(?s)RIFF.{4}WEBP",
    "gif": rb"GIF8[79]a",
}


def kind_of(content: bytes) -> str | None:
    """The picture format by the first bytes: `jpeg`, `png`, `webp`, `gif`, or None for anything else."""
    return next((kind for kind, beginning in BEGINNINGS.items() if re.match(beginning, content)), None)


@attrs.frozen
class StoredFile:
    """An uploaded file; `path` is folder and name, as given, `stored_at` the loop's time."""

    path: str
    content: bytes = attrs.field(repr=False)
    mime_type: str
    stored_at: float


@attrs.frozen
class ResultRef:
    """The n-th picture (from 0) of a task."""

    task_id: str
    number: int


Reference: TypeAlias = StoredFile | ResultRef | str
"""A picture; as text the address of one of somebody else's host, which the emulator does not go and get."""


@attrs.define
class Store:
    """The uploaded files, each kept for the script's `upload_life`, and all addresses, which begin with `base_url`."""

    base_url: str
    clock: Clock
    script: Script
    _files: dict[str, StoredFile] = attrs.field(factory=dict)
    _links: dict[str, float] = attrs.field(factory=dict, repr=False)

    def keep(self, path: str, content: bytes, mime_type: str) -> StoredFile:
        """Keep a file; the same path, folder and name, once more overwrites."""
        file = self._files[path] = StoredFile(path, content, mime_type, self.clock.now())
        return file

    def find(self, path: str) -> StoredFile | None:
        """The file at this path, None when there is none or it has expired."""
        file = self._files.get(path)
        if file is not None and self.clock.now() >= file.stored_at + self.script.upload_life:
            del self._files[path]
            return None
        return file

    def upload(self, path: str, *, raw_spaces: bool) -> str:
        """The address of an uploaded file."""
        return f"{self.base_url}{UPLOADS}{quote(path, safe='/ ' if raw_spaces else '/')}"

    def result(self, ref: ResultRef, extension: str) -> str:
        """The plain address of a result."""
        return f"{self.base_url}{RESULTS}{ref.task_id}/{ref.number}.{extension}"

    def signed(self, url: str, until: float) -> str:
        """A result's address with a life of its own, up to this moment of the loop's clock."""
        link = f"{url}?expires={self.clock.milliseconds(until)}&signature={secrets.token_hex(16)}"
        self._links[link.removeprefix(self.base_url)] = until
        return link

    def expiry(self, path_and_query: str) -> float | None:
        """Until when a signed address is good, by the loop's clock; None for one that was not given out."""
        return self._links.get(path_and_query)

    def upload_path(self, url: str) -> str | None:
        """The store's path for an address of ours, None for any other."""
        prefix = self.base_url + UPLOADS
        return unquote(urlsplit(url).path)[len(UPLOADS) :] if url.startswith(prefix) else None

    def result_ref(self, url: str) -> ResultRef | None:
        """Which picture an address of ours names, None for any other."""
        return ref_of(urlsplit(url).path) if url.startswith(self.base_url + RESULTS) else None


def ref_of(path: str) -> ResultRef | None:
    """Which picture the path of a result's address names."""
    match = re.fullmatch(RESULTS + r"([0-9a-f]{32})/([0-9]{1,4})\.[a-z]+", path)
    return ResultRef(match[1], int(match[2])) if match else None
