"""One connection to Postgres on which one thing at a time is asked, and others are heard all the time.

It is one for both since a server allows few. Nothing that psycopg waits for is ever cancelled: it would ask a server
that hangs to forget the question, and wait for that. Instead the connection is shut down below it.
"""

import asyncio
import json
import logging
import random
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import psycopg
from psycopg import sql

from flux2_async.coordination.postgres.refusals import POOLED, told
from flux2_async.coordination.store import HopelessError, finish
from flux2_async.errors import CoordinationError

logger: logging.Logger = logging.getLogger("flux2_async")

Row = tuple[Any, ...]
Connection = psycopg.AsyncConnection[Row]
Statement = bytes | sql.SQL | sql.Composed

PING_EVERY: Final = 20.0
RECONNECT_MAX: Final = 2.0
# Of the 8,000 bytes that a notification may have.
PIECE: Final = 7_900
WHO: Final = sql.SQL("SELECT pg_backend_pid()")
# A notification is a commit that would wait for the disk as others do.
NOTIFY: Final = b"SELECT pg_notify(%s, unnest(%s::text[])), set_config('synchronous_commit', 'off', true)"
# What the rules rely on, whatever server, database or user have for it: each statement sees what others have written,
# none waits for a lock until this side ends the connection, and who is silent is not thrown out.
SETTINGS: Final = sql.SQL("""
SELECT set_config(name, ours.value, false) FROM pg_settings JOIN (VALUES
    ('default_transaction_isolation', 'read committed'), ('idle_session_timeout', '0'), ('statement_timeout', %s)
) AS ours (name, value) USING (name)
""")


class PostgresConnection:
    """A connection that is made when it is needed, and anew when it is lost; it listens to `channel`.

    An answer may take `timeout` seconds.
    """

    def __init__(self, dsn: str, channel: str, timeout: float) -> None:
        self._dsn = dsn
        self._channel = channel
        self._timeout = timeout
        self._connection: Connection | None = None
        self._connecting: asyncio.Timeout | None = None
        self._opened: set[Connection] = set()
        self._lost = asyncio.Event()
        self._turn = asyncio.Lock()
        # How many there were, and what the last one was.
        self._failures = (0, "")
        self._questions: set[asyncio.Task[list[Row]]] = set()
        self._keeping: asyncio.Task[None] | None = None
        self._on_line: Callable[[str], None] | None = None
        self._heard = ""
        self._closed = False

    def listen(self, on_line: Callable[[str], None], ping: Statement) -> None:
        """Hear from now on what others publish, whatever happens to the connection, see `Store.listen`.

        `ping` is asked now and then, so that a connection that is dead without a word is found out.
        """
        self._on_line = on_line
        if self._keeping is None:
            loop = asyncio.get_running_loop()
            self._keeping = loop.create_task(self._keep(ping), name="flux2_async listen to postgres")

    async def ask(self, statement: Statement, values: Sequence[object] | None = None) -> list[Row]:
        """Carry out a statement, or several without values in one transaction, and give the rows of the last one.

        Raises:
            CoordinationError: It failed, or the connection did while this one waited for its turn.
        """
        question = asyncio.get_running_loop().create_task(self._ask(statement, values, self._failures[0]))
        self._questions.add(question)
        question.add_done_callback(self._answered)
        return await asyncio.shield(question)

    async def publish(self, line: str) -> None:
        """Tell all that listen, in as many notifications as it takes: those of one transaction come in a row."""
        text = json.dumps(line)
        pieces = [text[begin : begin + PIECE] for begin in range(0, len(text), PIECE)]
        # Of those that are the same in one transaction only one would come.
        numbered = [f"{len(pieces) - number} {piece}" for number, piece in enumerate(pieces, 1)]
        await self.ask(NOTIFY, (self._channel, numbered))

    async def aclose(self) -> None:
        """End; never raises and never takes long."""
        self._closed = True
        await finish(self._keeping)
        if self._questions:
            await asyncio.wait(self._questions, timeout=0.2)
        if self._questions:
            if self._connecting is not None:
                self._connecting.reschedule(0.0)
            for connection in tuple(self._opened):
                self._cut(connection)
            await asyncio.wait(self._questions, timeout=0.2)
        self._lose()

    async def _ask(self, statement: Statement, values: Sequence[object] | None, failures: int) -> list[Row]:
        async with self._turn:
            if self._closed:
                raise CoordinationError("the session's place among the processes of its account is not open")
            if failures != self._failures[0]:
                # It has waited for as long as the one that failed.
                raise CoordinationError(self._failures[1])
            try:
                connection = self._connection or await self._connect()
                # psycopg reads by itself now.
                asyncio.get_running_loop().remove_reader(connection.fileno())
                return await self._execute(connection, statement, values)
            except (psycopg.Error, OSError, TimeoutError) as error:
                failure = told(error)
                if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                    # It keeps the connection, and the address may lead to its successor.
                    self._lose()
            finally:
                self._read_on()
            if self._connection is None:
                self._failures = self._failures[0] + 1, str(failure)
        raise failure

    async def _connect(self) -> Connection:
        connection = await self._open()
        connection.add_notify_handler(lambda notify: self._hear(notify.payload))
        try:
            await self._check_for_poolers(connection)
            await self._execute(connection, SETTINGS, (str(round(800 * self._timeout)),))
            await self._execute(connection, sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
        except BaseException:
            self._finish(connection)
            raise
        self._connection, self._heard = connection, ""
        self._lost.clear()
        if self._on_line is not None:
            # What was said meanwhile is lost.
            self._on_line("")
        return connection

    async def _open(self) -> Connection:
        try:
            async with asyncio.timeout(self._timeout) as self._connecting:
                connection = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        finally:
            self._connecting = None
        self._opened.add(connection)
        return connection

    def _cut(self, connection: Connection) -> None:
        """End one of which something is awaited; its file stays open until then, since its number is still in use."""
        self._opened.discard(connection)
        with suppress(OSError, psycopg.Error):
            end = socket.socket(fileno=connection.fileno())
            try:
                end.shutdown(socket.SHUT_RDWR)
            finally:
                end.detach()

    def _finish(self, connection: Connection) -> None:
        self._opened.discard(connection)
        connection.pgconn.finish()

    async def _check_for_poolers(self, connection: Connection) -> None:
        """Refuse a connection that has no server process of its own; nothing is set in one that is another's next.

        Where processes are lent out, who begins a transaction gets the one that was free last.
        """
        ((process,),) = await self._execute(connection, WHO)
        if process == connection.info.backend_pid:
            return
        other = await self._open()
        try:
            with suppress(TimeoutError):
                await self._execute(other, sql.SQL("BEGIN; SELECT 1"))
            kept = await self._execute(connection, WHO) == [(process,)]
        except (psycopg.Error, TimeoutError):
            kept = False
        finally:
            self._finish(other)
        if not kept:
            raise HopelessError(POOLED)

    async def _execute(
        self, connection: Connection, statement: Statement, values: Sequence[object] | None = None
    ) -> list[Row]:
        loop = asyncio.get_running_loop()
        cut = loop.call_later(self._timeout, self._cut, connection)
        try:
            cursor = await connection.execute(statement, values)
            while cursor.nextset():
                pass
            return await cursor.fetchall() if cursor.description else []
        except psycopg.Error:
            if loop.time() >= cut.when():
                raise TimeoutError from None
            raise
        finally:
            cut.cancel()

    def _read_on(self) -> None:
        """Hear what has come, and what will come while nothing is asked."""
        connection = self._connection
        if connection is None:
            return
        if connection not in self._opened:
            # It was cut, perhaps in the moment of an answer.
            self._lose()
            return
        try:
            while (notify := connection.pgconn.notifies()) is not None:
                self._hear(notify.extra.decode())
            asyncio.get_running_loop().add_reader(connection.fileno(), self._read)
        except psycopg.Error:
            self._lose()

    def _read(self) -> None:
        if self._connection is not None:
            # If it has ended its file is closed in a moment, and another may get the number.
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            with suppress(psycopg.Error):
                self._connection.pgconn.consume_input()
            self._read_on()

    def _hear(self, payload: str) -> None:
        left, _, piece = payload.partition(" ")
        self._heard += piece
        if left == "0":
            text, self._heard = self._heard, ""
            # Anybody may say anything on a channel.
            with suppress(ValueError):
                line = json.loads(text)
                if self._on_line is not None and line and isinstance(line, str):
                    self._on_line(line)

    def _lose(self) -> None:
        connection, self._connection = self._connection, None
        self._lost.set()
        if connection is not None:
            if not connection.closed:
                asyncio.get_running_loop().remove_reader(connection.fileno())
            self._finish(connection)

    async def _keep(self, ping: Statement) -> None:
        wait = 0.05
        while True:
            try:
                await self.ask(ping)
                wait = 0.05
                with suppress(TimeoutError):
                    async with asyncio.timeout(PING_EVERY):
                        await self._lost.wait()
            except CoordinationError as error:
                logger.debug("listening to postgres broke off: %s", error)
                await asyncio.sleep(wait * (0.5 + random.random()))  # noqa: S311  it spreads in time, it guards nothing
                wait = min(2 * wait, RECONNECT_MAX)

    def _answered(self, question: "asyncio.Task[list[Row]]") -> None:
        self._questions.discard(question)
        if not question.cancelled():
            # Who asked may have gone.
            question.exception()
