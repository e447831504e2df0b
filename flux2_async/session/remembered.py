"""What schedules have learned, kept in the user's cache folder between runs.

It is worth a few polls and no more: whatever is wrong with the file or its folder is a warning, never an error. Runs in
worker threads.
"""

import hashlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, Final

from flux2_async._http.atomic_file import replacing
from flux2_async.tasks.schedule import Schedules

logger: logging.Logger = logging.getLogger("flux2_async")

MAX_BYTES: Final = 1_000_000


class Remembered:
    """The file for one service; several processes may use it, and the last one that closes wins."""

    def __init__(self, base_url: str) -> None:
        # Not one for all: an emulator is faster than what it stands for.
        self._name = f"polling-{hashlib.sha256(base_url.encode()).hexdigest()[:16]}.json"

    def restore(self, schedules: Schedules) -> None:
        """Let new schedules go on from what the file says, if there is one."""
        try:
            with (_cache_folder() / self._name).open("rb") as file:
                # What is longer is not ours, and cut short it is no JSON.
                schedules.remember(json.loads(file.read(MAX_BYTES)))
        except FileNotFoundError:
            pass
        # No home folder is a RuntimeError, and so is a file that is nested too deeply.
        except (OSError, ValueError, RuntimeError) as error:
            logger.warning("the learned durations cannot be read and are learned again: %s", error)

    def keep(self, knowledge: dict[str, Any]) -> None:
        """Write the file, whole or not at all."""
        try:
            folder = _cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / self._name, durable=False) as file:
                file.write(json.dumps(knowledge).encode())
        except (OSError, RuntimeError) as error:
            logger.warning("the learned durations cannot be saved: %s", error)


def _cache_folder() -> Path:
    """Where this user's programs keep what they can do without."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        named = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # The XDG specification has relative ones ignored.
        base = named if named.is_absolute() else Path.home() / ".cache"
    return base / "flux2_async"
