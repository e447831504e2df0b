"""A file that is arriving: where it stands, how to go on with it, and when it is whole.

Knows HTTP's rules for ranges (RFC 9110, 13 and 14) and does no HTTP. `create`, `restart`, `write`, `publish` and
`discard` block and belong into a worker thread.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import attrs

from flux2_async._atomic_file import AtomicFile
from flux2_async._media import HEAD, MAX_DOWNLOAD, is_error_page
from flux2_async.errors import ProtocolError, TaskError, TransportError

__all__ = ["Part"]

CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
UNSATISFIED: Final = re.compile(r"bytes \*/(\d+)")


@attrs.define
class Part:
    """A file that is arriving.

    Attributes:
        what: What errors call it.
        task_id: The task it belongs to.
        unfinished: Where it is until it is whole.
        received: Bytes written so far.
        total: Bytes in all, or None when the server did not say.
        validator: What tells that it is still the same file (ETag or Last-Modified); empty when it cannot be resumed.
        head: Its first bytes.
    """

    what: str
    task_id: str
    unfinished: AtomicFile
    received: int = 0
    total: int | None = None
    validator: str = ""
    head: bytes = attrs.field(default=b"", repr=False)

    @classmethod
    def create(cls, what: str, task_id: str, directory: Path) -> Self:
        """Begin one in a folder.

        Raises:
            OSError: The file cannot be made.
        """
        return cls(what, task_id, AtomicFile.create(directory))

    def request_headers(self) -> dict[str, str]:
        """Give the headers that ask for what is missing; none where all of it has to come again."""
        if not (self.received and self.validator):
            return {}
        # If-Range makes a server whose file is another one by now send that from its start.
        return {"Range": f"bytes={self.received}-", "If-Range": self.validator}

    def forget(self) -> None:
        """Have it come anew with the next request."""
        self.validator = ""

    def continues(self, headers: Mapping[str, str]) -> bool:
        """Whether the content of a 206 fits behind what is here."""
        match = CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if match is None or not self.request_headers() or not _is_plain(headers):
            return False
        if match[2] != "*" and self.total is None:
            self.total = int(match[2])
        return int(match[1]) == self.received and match[2] in ("*", str(self.total))

    def ends_at(self, headers: Mapping[str, str]) -> bool:
        """Whether a 416 says that there is nothing behind what is here."""
        match = UNSATISFIED.fullmatch(headers.get("Content-Range", ""))
        if match is None or not self.request_headers():
            return False
        return int(match[1]) == self.received and self.total in (None, self.received)

    def restart(self, headers: Mapping[str, str]) -> None:
        """Drop what is here and get ready for the content of a 200."""
        self.unfinished.file.seek(0)
        self.unfinished.file.truncate()
        self.received, self.head, self.total = 0, b"", None
        self.forget()
        # Unpacked on the way, neither its length nor its offsets are those of the headers.
        if _is_plain(headers):
            length = headers.get("Content-Length", "")
            self.total = int(length) if length.isdecimal() else None
            self.validator = _validator(headers)
        self._check_size(self.total or 0)

    def write(self, chunk: bytes) -> None:
        """Add what came.

        Raises:
            TaskError: It becomes too large.
        """
        self._check_size(self.received + len(chunk))
        self.unfinished.file.write(chunk)
        self.received += len(chunk)
        self.head += chunk[: HEAD - len(self.head)]

    def check_whole(self) -> None:
        """Judge what is here after the last byte came.

        Raises:
            TransportError: Bytes are missing.
            ProtocolError: It is no picture, or not the announced one.
        """
        if self.total is not None and self.received < self.total:
            raise TransportError(
                f"{self.what}: broke off after {self.received} of {self.total} bytes", task_id=self.task_id
            )
        problem = None
        if self.total is not None and self.received > self.total:
            problem = f"{self.received} bytes came where {self.total} were announced"
        elif not self.received:
            problem = "an empty file came"
        elif is_error_page(self.head):
            problem = "a web page or a message came instead of a picture"
        if problem:
            self.forget()
            raise ProtocolError(f"{self.what}: {problem}; download it again later", task_id=self.task_id)

    def publish(self, target: Path) -> None:
        """Give the whole file its name, replacing one that has it."""
        # The address is gone by the time a power failure would be noticed.
        self.unfinished.publish(target)

    def discard(self) -> None:
        """Remove it."""
        self.unfinished.discard()

    def _check_size(self, size: int) -> None:
        if size > MAX_DOWNLOAD:
            limit = f"{MAX_DOWNLOAD // 1_000_000} MB"
            raise TaskError(
                f"{self.what}: larger than {limit}, so it was not saved; its address is in result.urls",
                task_id=self.task_id,
            )


def _validator(headers: Mapping[str, str]) -> str:
    etag = headers.get("ETag", "")
    # A weak one may stand for files whose bytes differ.
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _is_plain(headers: Mapping[str, str]) -> bool:
    return headers.get("Content-Encoding", "identity") == "identity"
