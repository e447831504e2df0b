"""The settings of a shared state on Postgres; psycopg is needed when one is made."""

from typing import Final, Literal

from flux2_async._shown.frames import made_without_frames, showable
from flux2_async.coordination.store import Coordination, Store, check_settings, needs
from flux2_async.errors import ConfigurationError
from flux2_async.models.plain import plain

# In bytes.
LONGEST_NAME: Final = 63


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
        with needs("psycopg", type(self).__name__, extra="postgres"):
            from flux2_async.coordination.postgres.address import dsn_of  # noqa: PLC0415  it needs the package
        self._dsn = dsn_of(dsn)
        self._schema = plain(schema)
        self._timeout = timeout
        self.on_failure: Literal["degrade", "fail"] = on_failure

    def __repr__(self) -> str:
        return f"<PostgresCoordination schema={self._schema!r} on_failure={self.on_failure!r}>"

    def store(self, account: str, member: str) -> Store:
        """Make the store of a session, see `Coordination.store`."""
        from flux2_async.coordination.postgres.store import PostgresStore  # noqa: PLC0415  it needs the package

        del member
        return PostgresStore(self._dsn, self._schema, account, self._timeout)


def _check(schema: object, on_failure: object, timeout: object) -> None:
    if not isinstance(schema, str) or not schema.isprintable() or not 0 < len(schema.encode()) <= LONGEST_NAME:
        raise ConfigurationError(f"schema: {schema!r} given, it must be the name of a schema, of 1 to 63 bytes")
    check_settings(on_failure, timeout)
