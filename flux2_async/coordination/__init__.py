"""Many processes, one account: a limit, a pause, keys and callbacks that all of them share."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from flux2_async.coordination.store import Coordination, Kept, Life, Store
from flux2_async.errors import ConfigurationError

if TYPE_CHECKING:
    from flux2_async.coordination.host.store import HostCoordination
    from flux2_async.coordination.postgres.settings import PostgresCoordination
    from flux2_async.coordination.redis.settings import RedisCoordination

__all__ = ["Coordination", "HostCoordination", "Kept", "Life", "PostgresCoordination", "RedisCoordination", "Store"]

_HOMES = {
    "HostCoordination": "host.store",
    "PostgresCoordination": "postgres.settings",
    "RedisCoordination": "redis.settings",
}

# Modules of version 0.1.0 by which its pickles name what this one gives.
for _module in ("_host", "_redis"):
    sys.modules[f"{__name__}.{_module}"] = sys.modules[__name__]


def __getattr__(name: str) -> object:
    """Import an implementation when it is first used: each needs a package or a module that the others do not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_HOMES[name]}")
    except ImportError as error:
        # psycopg says so, and names nothing, where it finds no libpq.
        package = (error.name or ("psycopg" if "psycopg" in str(error) else "")).partition(".")[0]
        if package not in ("redis", "psycopg"):
            raise
        extra = "redis" if package == "redis" else "postgres"
        raise ConfigurationError(f"{name} needs the extra: pip install 'flux2-async[{extra}]'") from None
    value = globals()[name] = getattr(module, name)
    return value
