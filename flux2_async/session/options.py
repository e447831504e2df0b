"""What a session is open with; its parts are loaded when it is opened."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import aiohttp
import attrs

from flux2_async.errors import ConfigurationError
from flux2_async.models import Polling, RateLimit, Timeouts
from flux2_async.session.arguments import check_key_ttl

if TYPE_CHECKING:
    from flux2_async._http.borrowed import ConnectorFactory
    from flux2_async.coordination.store import Coordination
    from flux2_async.models import Callbacks
    from flux2_async.models.budget import Budget
    from flux2_async.session.budgets import Budgets
    from flux2_async.session.callback_settings import CallbackSettings


def _is_a(kind: Any, allowed: str) -> Any:
    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not isinstance(value, kind) and not (value is None and allowed.endswith("or None")):
            raise ConfigurationError(f"{attribute.name}: {type(value).__name__} given, it must be {allowed}")

    return check


def _check_coordination(options: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None:
        from flux2_async.coordination.store import Coordination  # noqa: PLC0415  most processes are alone

        allowed = "HostCoordination(), RedisCoordination(...), PostgresCoordination(...) or None"
        _is_a(Coordination, allowed)(options, attribute, value)


def _callback_settings(callbacks: "Callbacks | None") -> "CallbackSettings | None":
    if callbacks is None:
        return None
    from flux2_async.session.callback_settings import CallbackSettings  # noqa: PLC0415  most sessions poll alone

    return CallbackSettings.of(callbacks)


def _budgets(budget: "Budget | Iterable[Budget] | None") -> "Budgets | None":
    if budget is None:
        return None
    from flux2_async.session.budgets import Budgets, checked_budgets  # noqa: PLC0415  most sessions have none

    return Budgets(checked_budgets(budget))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Options:
    """What a session is open with, checked when made; see `Flux2Session`, where a None means what it means here."""

    rate_limits: tuple[RateLimit, ...]
    max_running: int | None
    max_running_per_group: int | None
    budgets: "Budgets | None" = attrs.field(converter=_budgets)
    polling: Polling = attrs.field(validator=_is_a(Polling, "Polling(...)"))
    callbacks: "CallbackSettings | None" = attrs.field(converter=_callback_settings)
    coordination: "Coordination | None" = attrs.field(validator=_check_coordination)
    http: aiohttp.ClientSession | None = attrs.field(
        validator=_is_a(aiohttp.ClientSession, "an aiohttp.ClientSession or None")
    )
    connector: "ConnectorFactory | None" = attrs.field(
        validator=_is_a(Callable, "a function without arguments that makes an aiohttp connector, or None")
    )
    timeouts: Timeouts = attrs.field(validator=_is_a(Timeouts, "Timeouts(...)"))
    private_downloads: bool = attrs.field(validator=_is_a(bool, "True or False"))
    key_ttl: float = attrs.field(converter=check_key_ttl)

    @property
    def rate_limit(self) -> RateLimit | None:
        """Of several limits the one that allows the fewest in the long run."""
        from flux2_async._limiter.windows import tightest  # noqa: PLC0415  loaded when a session is opened

        return tightest(self.rate_limits)
