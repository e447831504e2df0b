"""What a Postgres that refuses something means: whether waiting helps, and what to do, in words of ours.

The server's own words are not shown: they may repeat what it was sent.
"""

import re
from collections.abc import Mapping
from typing import Final

import psycopg

from flux2_async.coordination.store import HopelessError
from flux2_async.errors import CoordinationError

POOLED: Final = (
    "postgres: a pooler in transaction mode passes no notifications on; give the "
    "address of the server itself, or of a pool in session mode"
)
_LOGIN: Final = "postgres refuses the user or the password; check them in the dsn, and the server's pg_hba.conf"
_DATABASE: Final = "postgres has no database of the name in the dsn, or the user may not connect to it"
_TLS: Final = "postgres: the encrypted connection is refused; check sslmode and the certificates in the dsn"
_OPTION: Final = (
    "postgres: the dsn holds an option that the server or libpq does not take, or the event loop cannot be used: on "
    "Windows psycopg needs asyncio's SelectorEventLoop"
)

# By the first letters of what SQL calls a state.
_HOPELESS_STATES: Final = {
    "28": _LOGIN,
    "3D000": _DATABASE,
    "25006": "postgres takes no writes here; give the address of the server that does, and a user who may write",
    "0A000": "postgres: this server lacks what is needed; use PostgreSQL itself, no server that imitates it",
    "42703": "postgres: the table `coordination` belongs to another program; name another schema",
}
# Of a connection that is not made psycopg knows no state. What a server says in another language counts as an outage.
_HOPELESS_WORDS: Final = {
    r"password|SASL|role .* (not permitted|does not exist)|no such user|pg_hba\.conf|authentication method": _LOGIN,
    r"database .* does not exist|no such database|permission denied for database": _DATABASE,
    r"support SSL|SSL error: cert|root cert|certificate|channel binding|GSSAPI": _TLS,
    r"^connection is bad: (invalid|definition of service)|invalid integer|(configuration|startup) p|Proactor": _OPTION,
}


class MissingRightError(HopelessError):
    """The user may not do it."""


class MissingTableError(CoordinationError):
    """It was never made, or is lost."""


_MISSING: Final[Mapping[str, tuple[type[CoordinationError], str]]] = {
    "42501": (MissingRightError, "the user lacks a right"),
    "42P01": (MissingTableError, "the table is missing"),
}


def told(error: Exception) -> CoordinationError:
    """Say what a failure means."""
    text, state = str(error), getattr(error, "sqlstate", None) or ""
    if state in _MISSING:
        kind, what = _MISSING[state]
        return kind(f"postgres: {what}")
    for begins, hopeless in _HOPELESS_STATES.items():
        if state.startswith(begins):
            return HopelessError(hopeless)
    if state == "53300" or re.search("too many|connection slots|no more connections", text):
        return CoordinationError("postgres has no connection left; each session keeps one")
    if state:
        return CoordinationError(f"postgres answers {type(error).__name__}")
    for words, hopeless in _HOPELESS_WORDS.items():
        if isinstance(error, psycopg.Error) and re.search(words, text):
            return HopelessError(hopeless)
    return CoordinationError(f"postgres cannot be reached ({type(error).__name__})")
