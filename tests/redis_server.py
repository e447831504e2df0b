"""A real redis-server on a free port, to be killed, stopped, emptied and started again.

Without one, tests are skipped. `FLUX2_TEST_REDIS_SERVER` names another program to be used, such as a valkey-server.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import redis
from emulated import free_port
from programs import program
from redis.backoff import NoBackoff
from redis.retry import Retry

from flux2_async.coordination import RedisCoordination


class RedisServer:
    """Starts on entering, is gone on leaving; nothing is kept on disk unless `save` says so."""

    def __init__(self, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self.program = os.environ.get("FLUX2_TEST_REDIS_SERVER") or program("redis-server")
        self._options = options
        self._environment = environment or {}
        self._folder = ""
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def coordination(self, *, port: int = 0, space: str = "flux2", **options: Any) -> RedisCoordination:
        # On a busy machine a server takes its time, which only few tests take for an outage.
        options = {"timeout": 10.0} | options
        return RedisCoordination(f"redis://127.0.0.1:{port or self.port}", namespace=space, **options)

    def kept(self) -> dict[str, float]:
        """All names, and the seconds for which they are kept."""
        with self.client() as client:
            return {name: client.ttl(name) for name in client.scan_iter()}

    def clients(self) -> int:
        with self.client() as client:
            return sum(entry["cmd"] != "client|list" for entry in client.client_list())

    def time(self) -> float:
        with self.client() as client:
            return float(client.time()[0])

    def empty(self) -> None:
        with self.client() as client:
            client.flushall()

    async def set_read_only(self, *, value: bool) -> None:
        """Make it a replica of nobody, or a server of its own again."""
        with self.client() as client:
            client.replicaof(*(("127.0.0.1", str(free_port())) if value else ("no", "one")))

    def start(self) -> None:
        command = [self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder]
        self._process = subprocess.Popen(  # noqa: S603  our own words
            [*command, "--save", "", "--appendonly", "no", *self._options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self._environment},
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with self.client() as client:
                    client.ping()
            except (redis.AuthenticationError, redis.ResponseError):
                return
            except (redis.ConnectionError, redis.TimeoutError):
                time.sleep(0.02)
            else:
                return
        raise AssertionError(f"{self.program} does not answer")

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, decode_responses=True, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        self._folder = tempfile.mkdtemp()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._folder)
