"""Which servers, users and addresses a `PostgresCoordination` takes, and that it says at `open` what can never work."""

import asyncio
import logging
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
from emulated import error_of, free_port, until
from opening import SECRET, assert_hopeless, opened
from postgres_server import OWNERS_PASSWORD, PostgresServer, unprivileged
from preloaded import NO_ROOM, preloaded
from programs import program
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from flux2_async import CoordinationError
from flux2_async.coordination import Kept, PostgresCoordination, Store

pytestmark = pytest.mark.real_time

SHORT: dict[str, Any] = {"timeout": 1.0}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


async def opened_by(dsn: str) -> Exception | None:
    return await opened(PostgresCoordination(dsn, on_failure="fail", timeout=10.0))


@asynccontextmanager
async def listening(coordination: PostgresCoordination, number: int) -> AsyncIterator[list[tuple[Store, list[str]]]]:
    stores: list[tuple[Store, list[str]]]
    stores = [(coordination.store("ab" * 32, f"m{place}"), []) for place in range(number)]
    try:
        await asyncio.gather(*(store.listen(heard.append) for store, heard in stores))
        yield stores
    finally:
        for store, _ in stores:
            await store.aclose()


# --- Rights ---


def give(server: PostgresServer, name: str, *statements: str) -> str:
    """Make a user and a database of one name, and give the user's address."""
    server.run(f"CREATE ROLE {name} LOGIN PASSWORD '{SECRET}'", f"CREATE DATABASE {name}", *statements)
    return server.url_for(name, SECRET, database=name)


async def test_user_without_rights_is_told_the_sql_that_gives_them(server: PostgresServer) -> None:
    """Whoever may not make the table learns what to run; run by the owner, twice even, it is all that is needed."""
    dsn = give(server, "little")
    error = await opened_by(dsn)
    assert_hopeless(error, "lacks a right; let the owner of the database run once: CREATE SCHEMA")
    sql = str(error).partition("run once: ")[2]
    server.run_in("little", sql, sql)

    assert await opened_by(dsn) is None


@pytest.mark.parametrize("right", ["SELECT", "INSERT", "UPDATE", "DELETE", "USAGE"])
async def test_every_right_is_needed(server: PostgresServer, right: str) -> None:
    """Without any one of them `open` says so, and not a session that has paid."""
    name = f"lacks_{right.lower()}"
    dsn = give(server, name)
    server.run_in(name, str(await opened_by(dsn)).partition("run once: ")[2])
    what = "SCHEMA flux2" if right == "USAGE" else "flux2.coordination"
    server.run_in(name, f"REVOKE {right} ON {what} FROM {name}")

    assert_hopeless(await opened_by(dsn), f'lacks a right.*GRANT .* TO "{name}"')


async def test_many_who_come_at_once_make_one_table(server: PostgresServer) -> None:
    """In a schema whose name needs quotes."""
    coordination = server.coordination(space='our "own" Schema', timeout=10.0)
    async with listening(coordination, 12) as stores:
        assert len(stores) == 12


async def test_table_of_somebody_else_is_left_alone(server: PostgresServer) -> None:
    """A table of that name and other columns is told."""
    server.run("CREATE SCHEMA theirs", "CREATE TABLE theirs.coordination (id integer)")
    assert_hopeless(
        await opened(server.coordination(space="theirs")), "belongs to another program; name another schema"
    )
    assert server.run("SELECT * FROM theirs.coordination") == []


# --- Servers ---


@pytest.mark.parametrize(
    ("login", "says"),
    [
        (("owner", f"{SECRET}x", "postgres"), "the user or the password"),
        (("nobody", SECRET, "postgres"), "the user or the password"),
        (("never", SECRET, "postgres"), "the user or the password"),
        (("owner", OWNERS_PASSWORD, "none"), "no database of the name"),
        (("outside", SECRET, "closed"), "may not connect to it"),
        (("owner", OWNERS_PASSWORD, "postgres?sslmode=require"), "sslmode"),
        (("owner", OWNERS_PASSWORD, "postgres?sslmode=perhaps"), "an option"),
        (("owner", OWNERS_PASSWORD, "postgres?options=-c%20none%3D1"), "an option"),
    ],
)
async def test_wrong_login_and_database_are_told(
    server: PostgresServer, login: tuple[str, str, str], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What will not be right tomorrow either; nothing shows a password, not even what psycopg logs."""
    caplog.set_level(logging.DEBUG)
    user, password, database = login
    server.run(
        "DROP DATABASE IF EXISTS closed", "DROP ROLE IF EXISTS never, outside",
        f"CREATE ROLE never PASSWORD '{SECRET}'", f"CREATE ROLE outside LOGIN PASSWORD '{SECRET}'",
        "CREATE DATABASE closed", "REVOKE CONNECT ON DATABASE closed FROM public",
    )  # fmt: skip
    assert_hopeless(await opened_by(server.url_for(user, password, database=database)), says)
    assert not any(word in caplog.text for word in (SECRET, OWNERS_PASSWORD))


async def test_missing_password_is_told(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that asks for one."""
    monkeypatch.setenv("PGPASSFILE", "/dev/null")
    assert_hopeless(
        await opened_by(f"host=127.0.0.1 port={server.port} user=owner dbname=postgres"), "the user or the password"
    )


async def test_server_that_is_read_only_or_a_standby_is_told() -> None:
    """Whoever opens there would wait for ever; a standby is one that does not take writes."""
    with PostgresServer() as server:
        await server.set_read_only(value=True)
        assert_hopeless(await opened(server.coordination()), "takes no writes here")
        server.stop_cleanly()
        (server.folder / "data" / "standby.signal").touch()
        server.start()
        assert_hopeless(await opened(server.coordination()), "takes no writes here")


async def test_no_connection_left_is_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    """A server of few connections; one that comes free is taken."""
    with PostgresServer(max_connections="3", superuser_reserved_connections="0") as server:
        server.run("CREATE ROLE app SUPERUSER LOGIN PASSWORD 'x'")
        dsn = server.url_for("app", "x")
        await until(lambda: server.backends() == 0)
        async with listening(PostgresCoordination(dsn, timeout=10.0), 3):
            assert isinstance(await opened_by(dsn), CoordinationError)
            assert "no connection left" in caplog.text
        await until(lambda: server.backends() == 0)
        assert await opened_by(dsn) is None


async def test_full_disk_is_an_outage() -> None:
    """While no file can grow, what needs room cannot be written, and with room again all goes on."""
    with preloaded(NO_ROOM) as disk, PostgresServer(environment=disk.environment) as server:
        async with listening(server.coordination(), 1) as ((store, _),):
            text = os.urandom(100_000).hex()
            disk.set("full")
            error = await error_of(store.update("a", lambda _, __: Kept(text, 60.0, None)))
            disk.set("")
            await store.update("a", lambda _, __: Kept(text, 60.0, None))

    assert str(error) == "postgres answers DiskFull"


@pytest.mark.parametrize("how", ["idle_session_timeout", "terminated"])
async def test_connection_that_is_cut_while_idle_is_made_anew(how: str) -> None:
    """A server's time limit for who is silent does not matter; whatever ends a connection, others are heard again."""
    with PostgresServer(idle_session_timeout="300ms" if how == "idle_session_timeout" else "0") as server:
        async with listening(server.coordination(), 2) as ((one, _), (_, heard)):
            await asyncio.sleep(0.6)
            before = heard.count("")
            if how == "idle_session_timeout":
                assert before == 1
            else:
                cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flux2_async'"
                server.run(cut)
                await until(lambda: heard.count("") > before)
            # The one that tells may have to connect first.
            await until_told(one, "news", heard)


async def until_told(store: Store, line: str, heard: list[str]) -> None:
    async with asyncio.timeout(30.0):
        while line not in heard:
            with suppress(CoordinationError):
                await store.publish(line)
            await asyncio.sleep(0.05)


async def test_what_is_out_of_date_is_deleted(server: PostgresServer) -> None:
    """By the first session that opens ten minutes after the last time."""
    async with listening(server.coordination(space="old"), 1) as ((store, _),):
        await store.update("short", lambda _, __: Kept("x", 0.01, None))
        await store.update("for:ever", lambda _, __: Kept("x", float("inf"), None))
    server.run("UPDATE old.coordination SET expires_at = 1 WHERE name = 'forgetting'")
    async with listening(server.coordination(space="old"), 1):
        names = "SELECT name FROM old.coordination WHERE name <> 'forgetting'"
        await until(lambda: [name.partition(":")[2] for (name,) in server.run(names)] == ["for:ever"])


async def test_database_of_another_encoding_works(server: PostgresServer) -> None:
    """Texts and lines of any letters go through a database that knows few."""
    server.run("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    coordination = PostgresCoordination(server.url_for("owner", OWNERS_PASSWORD, database="latin"))
    async with listening(coordination, 1) as ((store, heard),):
        await store.update("a", lambda _, __: Kept("漢\0", 60.0, None))
        await store.publish("漢\0")
        await until(lambda: "漢\0" in heard)
        assert await store.update("a", lambda text, _: Kept(text, 0.0, text)) == "漢\0"


async def test_long_lock_is_an_outage_and_no_more(server: PostgresServer) -> None:
    """Who locks the table, as some maintenance does, holds nobody up for longer than the time limit."""
    async with listening(server.coordination(**SHORT), 1) as ((store, _),):
        with server.connection() as other:
            other.execute("BEGIN; LOCK TABLE flux2.coordination")
            error = await error_of(store.update("a", lambda _, __: Kept("x", 60.0, None)))
            assert isinstance(error, CoordinationError)
            other.execute("ROLLBACK")
        await store.update("a", lambda _, __: Kept("x", 60.0, None))


async def test_missing_table_is_made_whenever_it_is_missed() -> None:
    """A server that did not answer at the opening has no table when it does, and a restored one may have lost it."""
    with PostgresServer() as server:
        store = server.coordination(**SHORT).store("ab" * 32, "m0")
        heard: list[str] = []
        try:
            server.stop()
            assert isinstance(await error_of(store.listen(heard.append)), CoordinationError)
            server.go_on()
            await until_told(store, "news", heard)
            await store.update("a", lambda _, __: Kept("x", 60.0, None))
            server.run("DROP SCHEMA flux2 CASCADE")
            assert await store.update("a", lambda text, _: Kept("y", 60.0, text)) is None
        finally:
            await store.aclose()


# --- Poolers ---


@contextmanager
def pgbouncer(server: PostgresServer, mode: str, size: int) -> Iterator[int]:
    """Run a PgBouncer before a server; give its port."""
    port, settings, users = free_port(), server.folder / "pgbouncer.ini", server.folder / "users"
    users.write_text(f'"owner" "{OWNERS_PASSWORD}"\n')
    settings.write_text(
        f"[databases]\npostgres = host=127.0.0.1 port={server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\npool_mode = {mode}\ndefault_pool_size = {size}\n"
        f"auth_type = plain\nauth_file = {users}\n"
    )
    quiet = subprocess.DEVNULL
    command = [program("pgbouncer"), str(settings)]
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, **unprivileged()) as process:  # noqa: S603  our own words
        try:
            server.wait_for(port)
            yield port
        finally:
            process.kill()


@pytest.mark.parametrize("mode", ["transaction", "statement", "session"])
@pytest.mark.parametrize("size", [1, 5])
async def test_pooler_has_to_lend_for_a_session(server: PostgresServer, mode: str, size: int) -> None:
    """Over one that lends connections for less nothing would be heard, and what is set would be another's next."""
    with pgbouncer(server, mode, size) as port:
        # What nobody lends is waited for so long.
        coordination = server.coordination(port=port, timeout=2.0)
        if mode == "session":
            async with listening(coordination, 1) as ((store, heard),):
                await until_told(store, "news", heard)
            return
        assert_hopeless(await opened(coordination), "a pooler in transaction mode passes no notifications on")
        settings = "SELECT current_setting('statement_timeout'), count(*) FROM pg_listening_channels()"
        with server.connection(port=port) as another:
            assert another.execute(settings).fetchall() == [("0", 0)]


# --- Addresses ---


ADDRESSES: dict[str, Callable[[PostgresServer], str]] = {
    "postgres": lambda server: server.url.replace("postgresql:", "postgres:"),
    "driver": lambda server: server.url.replace("postgresql:", " postgresql+asyncpg:") + "\n",
    "words": lambda server: make_conninfo("", **conninfo_to_dict(server.url)),
    "several hosts": lambda server: server.url.replace("@", f"@127.0.0.1:{free_port()},"),
    "socket": lambda server: f"{server.url.replace('127.0.0.1', '')}?host={server.folder}",
    "what we rely on": lambda server: (
        f"{server.url}?client_encoding=latin1&application_name=mine"
        "&options=-c%20default_transaction_isolation%3Dserializable"
    ),
}


@pytest.mark.parametrize("form", ADDRESSES)
async def test_forms_of_an_address_work(server: PostgresServer, form: str) -> None:
    """Everything that libpq documents, and what other libraries write for their drivers."""
    server.empty()
    assert await opened_by(ADDRESSES[form](server)) is None


def test_nothing_shows_the_password() -> None:
    """Neither the settings nor a store."""
    coordination = PostgresCoordination(f"postgresql://user:{SECRET}@host/db")
    assert SECRET not in f"{coordination!r} {coordination} {coordination.store('a', 'b')!r}"
