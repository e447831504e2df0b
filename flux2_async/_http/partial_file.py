"""A file that is arriving: where it stands, how to go on with it, and when it is whole.

Knows HTTP's rules for ranges (RFC 9110, 13 and 14) and does no HTTP. `create`, `restart`, `write`, `publish` and
`discard` block and belong into a worker thread.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import attrs

from flux2_async._http.atomic_file import AtomicFile
from flux2_async._protocol.file_types import HEAD, Walk, is_text
from flux2_async._protocol.media import MAX_DOWNLOAD
from flux2_async.errors import ProtocolError, TaskError, TransportError

logger = logging.getLogger("flux2_async")

# Longer numbers mean nothing, and int() refuses the longest.
NUMBER: Final = "([0-9]{1,18})"
LENGTH: Final = re.compile(NUMBER)
CONTENT_RANGE: Final = re.compile(rf"bytes {NUMBER}-{NUMBER}/(?:{NUMBER}|\*)")
UNSATISFIED: Final = re.compile(rf"bytes \*/{NUMBER}")


@attrs.define
class Part:
    """A file that is arriving.

    Attributes:
        what: What errors call it.
        task_id: The task it belongs to.
        unfinished: Where it is until it is whole.
        received: Bytes written so far.
        total: Bytes in all, or None when the server did not say.
        is_counted: Whether the end of the content was told, by its length or by its last chunk.
        validators: What tells that it is still the same file (ETag, Last-Modified), as the server gave them.
        head: Its first bytes.
        walk: Follows it to its own end.
    """

    what: str
    task_id: str
    unfinished: AtomicFile
    received: int = 0
    total: int | None = None
    is_counted: bool = False
    validators: Mapping[str, str] = attrs.field(factory=dict)
    head: bytes = attrs.field(default=b"", repr=False)
    walk: Walk = attrs.field(factory=Walk)
    _digest: Any = attrs.field(factory=hashlib.sha256, repr=False)
    # Of what came before and did not reach its end.
    _doubted: set[bytes] = attrs.field(factory=set, repr=False)

    @classmethod
    def create(cls, what: str, task_id: str, directory: Path) -> Self:
        """Begin one in a folder.

        Raises:
            OSError: The file cannot be made.
        """
        return cls(what, task_id, AtomicFile.create(directory))

    def request_headers(self) -> dict[str, str]:
        """Give the headers that ask for what is missing; none where all of it has to come again."""
        validator = self._validator()
        if not (self.received and validator):
            return {}
        # If-Range makes a server whose file is another one by now send that from its start.
        return {"Range": f"bytes={self.received}-", "If-Range": validator}

    def forget(self) -> None:
        """Have it come anew with the next request."""
        self.validators = {}

    def continues(self, headers: Mapping[str, str]) -> bool:
        """Whether the content of a 206 fits behind what is here."""
        match = CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if match is None or not self.request_headers() or not _is_plain(headers) or not self._is_same(headers):
            return False
        start, end, total = (None if number is None else int(number) for number in match.groups())
        if start != self.received or total not in (None, self.total or total):
            return False
        self.total = total or self.total
        self.is_counted = end is not None and end + 1 == self.total
        return True

    def ends_at(self, headers: Mapping[str, str]) -> bool:
        """Whether a 416 says that there is nothing behind what is here."""
        match = UNSATISFIED.fullmatch(headers.get("Content-Range", ""))
        if match is None or not self.request_headers() or int(match[1]) != self.received:
            return False
        if self.total not in (None, self.received):
            return False
        self.total, self.is_counted = self.received, True
        return True

    def restart(self, headers: Mapping[str, str]) -> None:
        """Drop what is here and get ready for the content of a 200."""
        self.unfinished.file.seek(0)
        self.unfinished.file.truncate()
        self.received, self.head, self.total, self.is_counted = 0, b"", None, False
        self.walk, self._digest = Walk(), hashlib.sha256()
        self.forget()
        # Unpacked on the way, neither its length nor its offsets are those of the headers.
        if _is_plain(headers):
            length = LENGTH.fullmatch(headers.get("Content-Length", ""))
            self.total = int(length[1]) if length else None
            self.is_counted = self.total is not None or "chunked" in headers.get("Transfer-Encoding", "").lower()
            self.validators = {name: headers[name] for name in ("ETag", "Last-Modified") if name in headers}
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
        self.walk.feed(chunk)
        self._digest.update(chunk)

    def check_whole(self) -> None:
        """Judge what is here after the last byte came, by the file itself.

        Raises:
            TransportError: Bytes are missing.
            ProtocolError: It is no picture, or nothing shows that all of it is here.
        """
        if self.total is not None and self.received < self.total:
            raise TransportError(
                f"{self.what}: broke off after {self.received} of {self.total} bytes", task_id=self.task_id
            )
        problem = self._problem()
        if problem:
            self.forget()
            raise ProtocolError(f"{self.what}: {problem}; download it again later", task_id=self.task_id)

    def _problem(self) -> str | None:
        if self.total is not None and self.received > self.total:
            return f"{self.received} bytes came where {self.total} were announced"
        if not self.head.strip(b"\0"):
            return "an empty file came"
        if is_text(self.head):
            return "a web page or a message came instead of a picture"
        name = self.walk.type.name if self.walk.type else "file"
        if not self.walk.has_end:
            return None if self.is_counted else f"nothing tells whether the {name} that came is whole"
        return None if self.walk.is_ended or self._came_before(name) else f"the {name} that came lacks its end"

    def _came_before(self, name: str) -> bool:
        """Whether exactly this came once before, each time as long as was announced: more of it there is not."""
        if self.total is None:
            return False
        digest = self._digest.digest()
        if digest not in self._doubted:
            self._doubted.add(digest)
            return False
        logger.warning("%s lacks the end of a %s, but came twice like this; saved as it is", self.what, name)
        return True

    def publish(self, target: Path) -> None:
        """Give the whole file its name, replacing one that has it."""
        # The address is gone by the time a power failure would be noticed.
        self.unfinished.publish(target)

    def discard(self) -> None:
        """Remove it."""
        self.unfinished.discard()

    def _validator(self) -> str:
        etag = self.validators.get("ETag", "")
        # A weak one may stand for files whose bytes differ.
        return etag if etag and not etag.startswith("W/") else self.validators.get("Last-Modified", "")

    def _is_same(self, headers: Mapping[str, str]) -> bool:
        """Whether a part is of the file that is here: its server may know If-Range and a cache on the way not."""
        told = {name: headers[name] for name in self.validators if name in headers}
        return self._validator() in told.values() and all(self.validators[name] == told[name] for name in told)

    def _check_size(self, size: int) -> None:
        if size > MAX_DOWNLOAD:
            limit = f"{MAX_DOWNLOAD // 1_000_000} MB"
            raise TaskError(
                f"{self.what}: larger than {limit}, so it was not saved; its address is in result.urls",
                task_id=self.task_id,
            )


def _is_plain(headers: Mapping[str, str]) -> bool:
    return headers.get("Content-Encoding", "identity").strip().lower() in ("identity", "")
