"""Texts of others, and addresses, as people may see them. Pure."""

import logging
import re
from typing import Final
from urllib.parse import urlsplit

# Characters; what is shorter is no secret.
SECRET_LENGTH: Final = 12

# Joins letters of some scripts, and people to families; steers nothing.
JOINERS: Final = "\u200c\u200d"
KEPT: Final = f"\n\t{JOINERS}"
NOT_ASCII_TEXT: Final = re.compile(r"[^ -~\n\t]")


def printable(text: str) -> str:
    r"""Give text in which nothing steers a terminal or turns the direction of reading.

    Control characters but line feeds and tabs, bidirectional marks, and what no font shows become escapes such as
    `\x1b`, so that they are seen.
    """
    return NOT_ASCII_TEXT.sub(_escaped, text)


def json_escaped(document: str) -> str:
    r"""Give JSON that means the same, with such characters as `\u202e`."""
    return NOT_ASCII_TEXT.sub(lambda match: match[0] if _is_harmless(match[0]) else _json_escape(match[0]), document)


def shown_address(url: str) -> str:
    """Give an http(s) address without what may be private in it: user name, password, query, fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return character if _is_harmless(character) else character.encode("unicode_escape", "surrogatepass").decode()


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in KEPT


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[begin : begin + 4]}" for begin in range(0, len(units), 4))


def _with_printable_arguments(record: logging.LogRecord) -> bool:
    """Let a record pass with ids and reasons, which others chose, as a terminal may have them."""
    if isinstance(record.args, tuple):
        record.args = tuple(value if isinstance(value, int | float) else printable(str(value)) for value in record.args)
    return True


logging.getLogger("flux2_async").addFilter(_with_printable_arguments)


class Redactor:
    """Takes a key out of texts that are shown; data that is still to be read is left alone.

    A short one, which test doubles have, is taken out as a word only: it is no secret, and part of many words.
    """

    __slots__ = ("_key",)

    def __init__(self, key: str = "") -> None:
        self._key = key

    def __repr__(self) -> str:
        return "Redactor()"

    def __call__(self, text: str) -> str:
        """The text without the key."""
        if not self._key or self._key not in text:
            return text
        if len(self._key) >= SECRET_LENGTH:
            return text.replace(self._key, "<redacted>")
        return re.sub(rf"(?<![\w-]){re.escape(self._key)}(?![\w-])", "<redacted>", text)
