"""Where the shared file lives when the user names no place: a folder that is this user's alone.

Whoever can write the file can hold up or mislead every process of the account, so nothing is used that another user
might have planted: no symbolic link, no other owner, nothing that others may write.
"""

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from flux2_async.errors import ConfigurationError

NAME: Final = "flux2_async"
OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def runtime_folder() -> Path:
    """Give this user's folder for what lives no longer than the machine runs; it is made when it is missing.

    Returns:
        `flux2_async` in XDG_RUNTIME_DIR, else `flux2_async-UID` in the temporary directory. So a login shell and a
        service of the same user do not meet without `path=`.

    Raises:
        ConfigurationError: Somebody else owns it, or may write there.
        OSError: It cannot be made.
    """
    if os.name != "posix":
        # The temporary directory is the user's own there, and there are no modes to check.
        return private_folder(Path(tempfile.gettempdir(), NAME))
    parent = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    # The specification bids to ignore a relative one; `su` hands on that of somebody else.
    if parent.is_absolute() and _is_own(parent, stat.S_ISDIR, stat.S_IRWXG | stat.S_IRWXO):
        return private_folder(parent / NAME)
    return private_folder(Path(tempfile.gettempdir(), f"{NAME}-{os.geteuid()}"))


def private_folder(path: Path) -> Path:
    """Make a folder that only this user can enter, or check that it is one.

    Raises:
        ConfigurationError: Something else is there.
        OSError: It cannot be made.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if not _is_own(path, stat.S_ISDIR, stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(
            f"{path} must be a folder of this user's with mode 0700, no link, and is not; remove it, or name another"
            " place: HostCoordination(path=...)"
        )
    return path


def check_file(path: Path) -> None:
    """Check that a file is missing or this user's, and that nobody else may write it; its folder must be there.

    Raises:
        ConfigurationError: It cannot be trusted.
        OSError: It cannot be looked at.
    """
    if not path.parent.is_dir():
        raise ConfigurationError(
            f"{path.parent} is no folder; make it, or name another file: HostCoordination(path=...)"
        )
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; name a file in one: HostCoordination(path=...)")
    if os.path.lexists(path) and not _is_own(path, stat.S_ISREG, OTHERS_MAY_WRITE):
        raise ConfigurationError(
            f"{path} must be a file of this user's that nobody else may write, no link, and is not; remove it, or name"
            " another: HostCoordination(path=...)"
        )


def _is_own(path: Path, is_kind: Callable[[int], bool], forbidden: int) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    if os.name != "posix":
        return is_kind(status.st_mode)
    return is_kind(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & forbidden
