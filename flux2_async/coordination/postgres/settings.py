"""The settings of a shared state on Postgres, and the check of its address."""

import re
from typing import Any, Final, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from flux2_async._shown.frames import made_without_frames, showable
from flux2_async.coordination.postgres.store import PostgresStore
from flux2_async.coordination.store import Coordination, check_settings
from flux2_async.errors import ConfigurationError
from flux2_async.models.plain import plain

# In bytes.
LONGEST_NAME: Final = 63
_BAD_DSN: Final = (
    "dsn: it must look like postgresql://user:password@host:5432/database or host=... dbname=... user=..., with "
    "options of libpq only; what is no letter or digit in user and password is written as %40 and so on in an address"
)


@made_without_frames
@showable
class PostgresCoordination(Coordination):
    """Many processes on any number of hosts that share an account, by a Postgres (tested with 15).

    Each session keeps one connection. It has to be the server's own, or one of a pool in session mode: over poolers
    that in transaction mode, as PgBouncer's, no notification arrives, and `open` says so.
    A table `coordination` in a schema of its own is made by the first session that may; else `open` says what SQL to
    run. It holds digests, task ids and refs, never a key.

    Args:
        dsn: As libpq takes it: `postgresql://...` (of `postgresql+driver://` the driver does not matter), or
            `host=... dbname=...`; never shown.
        schema: Holds the table, so that several applications can use one database.
        on_failure: While the server cannot be asked, submissions without a key go on by a safe share of the limit
            (`degrade`), or raise `CoordinationError` (`fail`).
        timeout: Seconds that the server may take to answer.

    Raises:
        ConfigurationError: An argument cannot be used. `Flux2Session.open` raises it where the server can never serve:
            a wrong password, an unknown database, a missing right, a standby, a pooler.

    The only clock is the server's, which may be set: back costs nothing, and forward by more than a quarter of a second
    is noticed by every session that had asked before. Where none had, one step lets at most one further limit through,
    once.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "flux2",
        on_failure: Literal["degrade", "fail"] = "degrade",
        timeout: float = 1.0,
    ) -> None:
        _check(schema, on_failure, timeout)
        self._dsn = _read(dsn)
        self._schema = plain(schema)
        self._timeout = timeout
        self.on_failure: Literal["degrade", "fail"] = on_failure

    def __repr__(self) -> str:
        return f"<PostgresCoordination schema={self._schema!r} on_failure={self.on_failure!r}>"

    def store(self, account: str, member: str) -> PostgresStore:
        """Make the store of a session, see `Coordination.store`."""
        del member
        return PostgresStore(self._dsn, self._schema, account, self._timeout)


def _read(dsn: object) -> str:
    """Give what libpq takes; a user's own options stand, but not against what we rely on."""
    if not isinstance(dsn, str) or not dsn.strip():
        raise ConfigurationError(_BAD_DSN)
    try:
        options: dict[str, Any] = {**conninfo_to_dict(re.sub(r"^(postgres(ql)?)\+\w+://", r"\1://", dsn.strip()))}
    except (psycopg.Error, UnicodeEncodeError):
        raise ConfigurationError(_BAD_DSN) from None
    # An address with a password that is not escaped ends too early, and psycopg would log the rest of it.
    if "@" in str(options.get("host", "")) or not re.fullmatch(r"[0-9,]*", str(options.get("port", ""))):
        raise ConfigurationError(_BAD_DSN)
    options.setdefault("application_name", "flux2_async")
    return make_conninfo(**options | {"client_encoding": "utf8"})


def _check(schema: object, on_failure: object, timeout: object) -> None:
    if not isinstance(schema, str) or not schema.isprintable() or not 0 < len(schema.encode()) <= LONGEST_NAME:
        raise ConfigurationError(f"schema: {schema!r} given, it must be the name of a schema, of 1 to 63 bytes")
    check_settings(on_failure, timeout)
