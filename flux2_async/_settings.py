"""Where settings that were pickled by version 0.1.0 are looked for."""

from flux2_async.models.settings import Callbacks, Polling, RateLimit, SessionStatistics, Timeouts

__all__ = ["Callbacks", "Polling", "RateLimit", "SessionStatistics", "Timeouts"]
