"""Files that appear under their name whole or not at all. Everything blocks and belongs into a worker thread."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, Self

import attrs

UNFINISHED: Final = re.compile(r"\.flux2-[0-9a-f]{16}\.part")
"""Names of files that are being written, or were left by a process that was killed."""


# Writers give lines and rows one by one, and the disk would rather have more at once.
BUFFER: Final = 256 * 1024


@attrs.frozen
class AtomicFile:
    """A file that has no name of its own yet.

    Attributes:
        path: Where it is until then: hidden, beside its future name, and not to be guessed.
        file: The same, open for writing.
    """

    path: Path
    file: BinaryIO = attrs.field(repr=False)

    @classmethod
    def create(cls, directory: Path) -> Self:
        """Begin one in the folder it will appear in, with the permissions of any new file of this process.

        Raises:
            OSError: It cannot be made.
        """
        path = directory / f".flux2-{secrets.token_hex(8)}.part"
        # "x" opens nothing that is there already and follows no link, which somebody else may have put there.
        return cls(path, path.open("xb", BUFFER))

    def publish(self, target: Path, *, durable: bool = True) -> None:
        """Give it its name, replacing a file or a link that has it.

        Args:
            target: The name, in the same folder.
            durable: Whether its content has to survive a power failure that the name survives.

        Raises:
            OSError: It cannot be written, or not be named; `discard` it then.
        """
        self.file.flush()
        if durable:
            os.fsync(self.file.fileno())
        self.file.close()
        self.path.replace(target)

    def discard(self) -> None:
        """Remove it."""
        # On a full disk closing fails as well, which would hide why.
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


@contextmanager
def replacing(target: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Write a file that takes its name at the end of the block, and only when nothing went wrong in it.

    A file or a link that has the name stays until then; see `AtomicFile.publish` for `durable`.

    Raises:
        OSError: It cannot be written.
    """
    unfinished = AtomicFile.create(target.parent)
    try:
        yield unfinished.file
        unfinished.publish(target, durable=durable)
    except BaseException:
        unfinished.discard()
        raise
