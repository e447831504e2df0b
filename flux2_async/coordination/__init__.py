"""Many processes, one account: a limit, a pause, keys and callbacks that all of them share."""

import sys
from typing import TYPE_CHECKING, Final

from flux2_async._shown.names import lazily
from flux2_async.coordination.store import Coordination, Kept, Life, Store

if TYPE_CHECKING:
    from flux2_async.coordination.host.store import HostCoordination
    from flux2_async.coordination.postgres.settings import PostgresCoordination
    from flux2_async.coordination.redis.settings import RedisCoordination

__all__ = ["Coordination", "HostCoordination", "Kept", "Life", "PostgresCoordination", "RedisCoordination", "Store"]

# Each loads modules that the others do not need.
__getattr__: Final = lazily(
    __name__,
    **{
        "host.store": "HostCoordination",
        "postgres.settings": "PostgresCoordination",
        "redis.settings": "RedisCoordination",
    },
)

# Modules of version 0.1.0 by which its pickles name what this one gives.
for _module in ("_host", "_redis"):
    sys.modules[f"{__name__}.{_module}"] = sys.modules[__name__]
