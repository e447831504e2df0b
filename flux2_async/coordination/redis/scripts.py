"""The Lua scripts: a common beginning and one file for each operation."""

from functools import cache
from importlib.resources import files

__all__ = ["BOOK_SCRIPTS", "KEY_SCRIPTS", "script"]

BOOK_SCRIPTS = ("acquire", "join", "leave", "settle", "touch")
KEY_SCRIPTS = ("bind", "doubt", "free", "look", "reserve", "resolve")


@cache
def script(name: str) -> str:
    """Give the text of an operation."""
    folder = files("flux2_async.coordination.redis") / "lua"
    common = "book" if name in BOOK_SCRIPTS else "keys"
    return "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in (common, name))
