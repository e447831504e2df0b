"""Servers that no test does any harm to, one of each for all modules; who uses one empties it first."""

from collections.abc import Iterator

import pytest
from postgres_server import PostgresServer
from redis_server import RedisServer


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server
