"""How large a file may be, and what it may be called. Pure.

Names from outside (a task id, a caller's file name) never become a path: they are matched or rewritten here.
"""

import hashlib
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from flux2_async._protocol.file_types import FileType

MAX_PICTURE: Final = 10_000_000
"""Bytes of a reference picture, where a service says nothing else.

The API says "10 MB" and not which; the smaller reading is certain to be taken.
"""

MAX_DOWNLOAD: Final = 200_000_000
"""Bytes of one file that is downloaded; a 2K picture has about a hundredth of that."""

TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
UNSAFE: Final = re.compile(r"[^A-Za-z0-9_]+")
MAX_STEM: Final = 64
DIGITS: Final = 32


def upload_name(digest: str, extension: str, file_name: str | None) -> str:
    """Name a file at the service by the hex digest of its content, behind a safe stem of the caller's own name, if any.

    The same name overwrites there while caches may go on with the old bytes, so that a name belongs to one content.
    It has ASCII letters, digits, `_`, `-` and the one dot before the extension.
    """
    base = re.split(r"[/\\]", file_name or "")[-1]
    stem = base.rpartition(".")[0] or base
    safe = UNSAFE.sub("-", stem)[:MAX_STEM].strip("-")
    return f"{safe}{'-' if safe else ''}{digest[:DIGITS]}.{extension}"


def result_name(task_id: str, number: int, kind: "FileType | None") -> str:
    """Name a downloaded file by its task, its number there from 1, and its format; an unknown one is called `.bin`.

    An id that is not made of letters, digits, `_` and `-` is replaced by its hash.
    """
    safe = task_id
    if not TASK_ID.fullmatch(task_id):
        safe = hashlib.sha256(task_id.encode(errors="surrogatepass")).hexdigest()[:DIGITS]
    return f"{safe}-{number}.{kind.extension if kind else 'bin'}"
