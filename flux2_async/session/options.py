"""What a session is open with; its parts are loaded when it is opened."""

from typing import TYPE_CHECKING

import aiohttp
import attrs

from flux2_async.models import Polling, RateLimit, Timeouts

if TYPE_CHECKING:
    from flux2_async._http.borrowed import ConnectorFactory
    from flux2_async.coordination.store import Coordination
    from flux2_async.session.budgets import Budgets
    from flux2_async.session.callback_settings import CallbackSettings


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Options:
    """What a session was given and is open with, checked; see `Flux2Session`, where a None means what it means here."""

    rate_limits: tuple[RateLimit, ...]
    max_running: int | None
    max_running_per_group: int | None
    budgets: "Budgets | None"
    polling: Polling
    callbacks: "CallbackSettings | None"
    coordination: "Coordination | None"
    http: aiohttp.ClientSession | None
    connector: "ConnectorFactory | None"
    timeouts: Timeouts
    private_downloads: bool
    key_ttl: float

    @property
    def rate_limit(self) -> RateLimit | None:
        """Of several limits the one that allows the fewest in the long run."""
        from flux2_async._limiter.windows import tightest  # noqa: PLC0415  loaded when a session is opened

        return tightest(self.rate_limits)
