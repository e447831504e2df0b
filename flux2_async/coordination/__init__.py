"""Many processes, one account: a limit, a pause, keys and callbacks that all of them share."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from flux2_async.coordination.store import Coordination, Kept, Life, Store
from flux2_async.errors import ConfigurationError

if TYPE_CHECKING:
    from flux2_async.coordination.host.store import HostCoordination
    from flux2_async.coordination.redis.settings import RedisCoordination

__all__ = ["Coordination", "HostCoordination", "Kept", "Life", "RedisCoordination", "Store"]

_HOMES = {"HostCoordination": "host.store", "RedisCoordination": "redis.settings"}

# Modules of version 0.1.0 by which its pickles name what this one gives.
for _module in ("_host", "_redis"):
    sys.modules[f"{__name__}.{_module}"] = sys.modules[__name__]


def __getattr__(name: str) -> object:
    """Import an implementation when it is first used: each needs a package or a module that the others do not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "redis":
            raise
        raise ConfigurationError("RedisCoordination needs the extra: pip install 'flux2-async[redis]'") from None
    value = globals()[name] = getattr(module, name)
    return value
