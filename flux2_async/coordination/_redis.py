"""Where what was pickled by version 0.1.0 is looked for."""

from flux2_async.coordination import RedisCoordination

__all__ = ["RedisCoordination"]
