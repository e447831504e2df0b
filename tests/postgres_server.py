"""A real Postgres on a free port, to be killed, stopped, emptied, made read-only and started again.

Without one, tests are skipped. It refuses to run as root, so root lends it the user `postgres`.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psycopg
from emulated import free_port, until
from programs import at_the_end, program

from flux2_async.coordination import PostgresCoordination

OWNER: Final = "owner"
OWNERS_PASSWORD: Final = "the owner's password"
# What no test needs, and what takes time.
QUIET: Final = {"fsync": "off", "listen_addresses": "127.0.0.1", "shared_buffers": "16MB", "log_min_messages": "panic"}


class PostgresServer:
    """Starts on entering, is gone on leaving; its one database is `postgres`."""

    def __init__(self, environment: Mapping[str, str] | None = None, **settings: str) -> None:
        self.program = program("postgres")
        self.port = free_port()
        self.folder = Path()
        self._environment = environment or {}
        self._settings = QUIET | {"port": str(self.port)} | settings
        self._process: subprocess.Popen[Any] | None = None

    @property
    def url(self) -> str:
        return self.url_for(OWNER, OWNERS_PASSWORD)

    def url_for(self, user: str, password: str, *, port: int = 0, database: str = "postgres") -> str:
        return f"postgresql://{user}:{password.replace(' ', '%20')}@127.0.0.1:{port or self.port}/{database}"

    def coordination(self, *, port: int = 0, space: str = "flux2", **options: Any) -> PostgresCoordination:
        # As in redis_server.py.
        options = {"timeout": 10.0} | options
        return PostgresCoordination(self.url_for(OWNER, OWNERS_PASSWORD, port=port), schema=space, **options)

    def connection(self, *, port: int = 0, database: str = "postgres") -> "psycopg.Connection[Any]":
        url = self.url_for(OWNER, OWNERS_PASSWORD, port=port, database=database)
        return psycopg.connect(url, autocommit=True, connect_timeout=5)

    def run(self, *statements: str) -> list[Any]:
        """Run them as the owner, each by itself; give the rows of the last one."""
        return self.run_in("postgres", *statements)

    def run_in(self, database: str, *statements: str) -> list[Any]:
        with self.connection(database=database) as connection:
            cursors = [connection.execute(statement.encode()) for statement in statements]
            return cursors[-1].fetchall() if cursors[-1].description else []

    def kept(self) -> dict[str, float]:
        """All names, and the seconds for which they are kept."""
        rows = self.run("SELECT name, expires_at - extract(epoch FROM now())::float8 FROM flux2.coordination")
        return {name: seconds for name, seconds in rows if name != "forgetting"}

    def clients(self) -> int:
        ((clients,),) = self.run("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flux2_async'")
        return int(clients)

    def backends(self) -> int:
        """How many of its processes serve somebody, those included who have left a moment ago."""
        served = 0
        for process in self._processes()[1:]:
            with suppress(OSError):
                served += b"127.0.0.1(" in Path(f"/proc/{process}/cmdline").read_bytes()
        return served

    def time(self) -> float:
        ((now,),) = self.run("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(now)

    def empty(self) -> None:
        for (table,) in self.run("SELECT oid::regclass::text FROM pg_class WHERE relname = 'coordination'"):
            self.run(f"TRUNCATE {table}")

    async def set_read_only(self, *, value: bool) -> None:
        """Let it take no writes, or again, as those who rent out servers do when a disk is full."""
        self.run(f"ALTER SYSTEM SET default_transaction_read_only = {value}", "SELECT pg_reload_conf()")
        # Its processes learn of it one after the other.
        await until(lambda: self.run("SHOW default_transaction_read_only") == [("on" if value else "off",)])

    def start(self) -> None:
        words = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(  # noqa: S603  our own words
            [self.program, "-D", str(self.folder / "data"), "-k", str(self.folder), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self._environment},
            cwd=self.folder,
            start_new_session=True,
            **unprivileged(),
        )
        self.wait_for(self.port)

    def wait_for(self, port: int) -> None:
        """Wait until it answers at its port, or at one that leads to it."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with self.connection(port=port):
                    return
            except psycopg.OperationalError:
                time.sleep(0.05)
        raise AssertionError(f"{self.program} does not answer")

    def stop_cleanly(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)

    def kill(self) -> None:
        """End it as a crash does: its processes too, which would else hold its memory for a while."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.folder = own_folder()
        # A copy takes a fraction of the work.
        run_quietly("cp", "-a", str(fresh_cluster(self.program)), str(self.folder / "data"))
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        # Processes of it that are about to end may still take files away.
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes():
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _processes(self) -> list[int]:
        assert self._process is not None
        processes = [self._process.pid]
        # Each of its processes leads a session of its own.
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, parent = entry.parent.name, entry.read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if parent == str(self._process.pid):
                processes.append(int(pid))
        return processes


def unprivileged() -> dict[str, Any]:
    """How a child is started that must not be root."""
    if os.getuid() != 0:
        return {}
    entry = pwd.getpwnam("postgres")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def own_folder() -> Path:
    """A new folder of the user that Postgres runs as."""
    folder = Path(tempfile.mkdtemp())
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    return folder


def run_quietly(*command: str) -> None:
    """Run a program as that user."""
    null = subprocess.DEVNULL
    subprocess.run(  # noqa: S603  our own words
        command, stdin=null, stdout=null, stderr=null, cwd="/", timeout=60, check=True, **unprivileged()
    )


@cache
def fresh_cluster(program: str) -> Path:
    """The files of a server that never ran."""
    folder = own_folder()
    at_the_end.callback(shutil.rmtree, folder)
    password = folder / "password"
    password.write_text(OWNERS_PASSWORD)
    password.chmod(0o644)
    command = [str(Path(program).with_name("initdb")), "-D", str(folder / "data"), "-U", OWNER]
    options = ["--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C"]
    run_quietly(*command, *options, "-A", "scram-sha-256", f"--pwfile={password}")
    return folder / "data"
