"""A second lock on the journal's file, which its process does not give up when it closes another descriptor. Blocks.

SQLite's own goes with the first descriptor of the file that the process closes: of a copy that somebody makes while the
batch runs, or of a second journal. Then another process may send what this one sends.
"""

import errno
import os
import struct
import sys
from pathlib import Path
from typing import BinaryIO, Final
from weakref import WeakSet

from flux2_async.batch.journal.schema import in_use

# One byte, far behind those that SQLite locks.
_BYTE: Final = 1 << 62

_open: "WeakSet[BinaryIO]" = WeakSet()


def locked(path: Path) -> BinaryIO:
    """Open the file of a journal, and lock it until that is closed; JournalError: it is being used.

    To close it gives up SQLite's lock, so it is to be closed behind the connection.
    """
    file = path.open("r+b", buffering=0)
    try:
        # Elsewhere there is the first lock.
        if sys.platform == "linux":
            import fcntl  # noqa: PLC0415  it is not everywhere

            # In C's words a `struct flock`.
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("@hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, _BYTE, 1, 0))
    except OSError as error:
        # Else the file system knows no such lock.
        if error.errno in (errno.EAGAIN, errno.EACCES):
            file.close()
            raise in_use(path) from None
    _open.add(file)
    return file


def _close_in_child() -> None:
    # A child that outlives its parent would keep the lock.
    for file in tuple(_open):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
