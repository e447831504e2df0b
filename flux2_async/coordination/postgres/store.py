"""Texts in a table of Postgres: compare and set of a row, the server's time only, each with an expiry."""

import hashlib
import secrets
from collections.abc import Callable
from typing import Any, Final, LiteralString

from psycopg import sql

from flux2_async.coordination.account_state import FORMAT
from flux2_async.coordination.postgres.connection import PostgresConnection
from flux2_async.coordination.postgres.refusals import MissingRightError, MissingTableError
from flux2_async.coordination.store import Found, HopelessError, Kept, RemoteStore
from flux2_async.errors import ConfigurationError

NOW: Final = sql.SQL("extract(epoch FROM clock_timestamp())::double precision")
IS_THERE: Final[LiteralString] = "SELECT to_regnamespace(%s) IS NOT NULL, to_regclass(%s) IS NOT NULL"
MAKE_SCHEMA: Final[LiteralString] = "CREATE SCHEMA IF NOT EXISTS {schema}"
# A text is bytes, so that the encoding of the database does not matter. Nothing but the name has an index: the row of
# an account is changed many times a second, which is cheap as long as no index has to be.
MAKE_TABLE: Final[LiteralString] = (
    "CREATE TABLE IF NOT EXISTS {table} (name text PRIMARY KEY, token text NOT NULL, text bytea NOT NULL, "
    "expires_at double precision NOT NULL)"
)
GRANT: Final[LiteralString] = (
    "GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {user};"
)
# Of those who come at once one makes the table.
ALONE: Final[LiteralString] = "SELECT pg_advisory_xact_lock(439956237362)"
LOOK: Final[LiteralString] = """
SELECT kept.token, kept.text, {now} FROM (VALUES (1)) AS one (row)
LEFT JOIN {table} AS kept ON kept.name = %s AND kept.expires_at > {now}
"""
INSERT: Final[LiteralString] = """
INSERT INTO {table} AS kept (name, token, text, expires_at) VALUES (%s, %s, %s, {now} + %s)
ON CONFLICT (name) DO UPDATE SET token = excluded.token, text = excluded.text, expires_at = excluded.expires_at
WHERE kept.expires_at <= {now} RETURNING {written}
"""
UPDATE: Final[LiteralString] = """
UPDATE {table} SET token = %s, text = %s, expires_at = {now} + %s WHERE name = %s AND token = %s RETURNING {written}
"""
DELETE: Final[LiteralString] = "DELETE FROM {table} WHERE name = %s AND token = %s RETURNING {written}"
# A server that crashes may forget the last moments of the account, which its rules notice, but nothing of a key: who
# changes the account, or tells others, need not wait for the disk.
LOST_AT_A_CRASH: Final = f"{FORMAT}:account"
NOT_AWAITED: Final = sql.SQL("set_config('synchronous_commit', 'off', true)")
# Every ten minutes by whoever comes first, and never so many that it takes long.
FORGET: Final[LiteralString] = """
WITH mine AS (
    INSERT INTO {table} AS kept (name, token, text, expires_at) VALUES ('forgetting', '', '', {now} + 600)
    ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at WHERE kept.expires_at <= {now} RETURNING 1
) DELETE FROM {table} WHERE EXISTS (SELECT 1 FROM mine) AND name IN (
    SELECT name FROM {table} WHERE expires_at <= {now} AND name <> 'forgetting' LIMIT 20000
)
"""


class PostgresStore(RemoteStore):
    """See `Store`; `schema` is what holds the table, an answer may take `timeout` seconds."""

    def __init__(self, dsn: str, schema: str, account: str, timeout: float) -> None:
        self._schema = schema
        self._account = account
        # Written out once, since they are what most of the time would go into.
        self._look, self._forget = self._bytes(LOOK), self._bytes(FORGET)
        self._insert, self._update, self._delete = (
            {awaited: self._bytes(part, awaited=awaited) for awaited in (True, False)}
            for part in (INSERT, UPDATE, DELETE)
        )
        channel = hashlib.sha256(f"{schema} {account} {FORMAT}".encode()).hexdigest()
        self._connection = PostgresConnection(dsn, f"flux2_{channel[:40]}", timeout)

    async def listen(self, on_line: Callable[[str], None]) -> None:
        """See `Store`."""
        self._connection.listen(on_line, self._forget)
        try:
            await self.try_rights()
        except MissingRightError:
            ((user,),) = await self._connection.ask(sql.SQL("SELECT current_user::text"))
            missing = sql.SQL("; ").join(self._sql(part, user) for part in (MAKE_SCHEMA, MAKE_TABLE, GRANT))
            raise ConfigurationError(
                "postgres: the user lacks a right; let the owner of the database run once: " + missing.as_string(None)
            ) from None
        except HopelessError as error:
            raise ConfigurationError(str(error)) from None

    async def look(self, name: str) -> Found:
        """See `RemoteStore`."""
        key = (f"{self._account}:{name}",)
        try:
            ((token, text, now),) = await self._connection.ask(self._look, key)
        except MissingTableError:
            # The first session makes it, and who finds a server that was away at the opening, or has been emptied.
            await self._make_table()
            ((token, text, now),) = await self._connection.ask(self._look, key)
        return Found(token or "", None if text is None else text.decode(), now)

    async def replace(self, name: str, token: str, kept: Kept[Any]) -> Found | None:
        """See `RemoteStore`."""
        key, awaited = f"{self._account}:{name}", name != LOST_AT_A_CRASH
        if kept.text is None:
            done = await self._connection.ask(self._delete[awaited], (key, token))
        else:
            row = (secrets.token_hex(8), kept.text.encode(), kept.seconds)
            statement, values = (self._update, (*row, key, token)) if token else (self._insert, (key, *row))
            done = await self._connection.ask(statement[awaited], values)
        return None if done else await self.look(name)

    async def publish(self, line: str) -> None:
        """See `Store`."""
        await self._connection.publish(line)

    async def aclose(self) -> None:
        """See `Store`."""
        await self._connection.aclose()

    async def _make_table(self) -> None:
        names = [self._sql("{schema}").as_string(None), self._sql("{table}").as_string(None)]
        ((schema, table),) = await self._connection.ask(sql.SQL(IS_THERE), names)
        if not table:
            # Who may not make schemas may not make one that is there either.
            making = (ALONE, MAKE_TABLE) if schema else (ALONE, MAKE_SCHEMA, MAKE_TABLE)
            await self._connection.ask(sql.SQL("; ").join(self._sql(part) for part in making))

    def _bytes(self, statement: LiteralString, *, awaited: bool = True) -> bytes:
        return self._sql(statement, written=sql.Literal(1) if awaited else NOT_AWAITED).as_bytes(None)

    def _sql(self, statement: LiteralString, user: str = "", written: sql.Composable = NOT_AWAITED) -> sql.Composed:
        names = {"schema": sql.Identifier(self._schema), "table": sql.Identifier(self._schema, "coordination")}
        return sql.SQL(statement).format(**names, user=sql.Identifier(user), now=NOW, written=written)
