"""What requests are going to cost and to take, by what a session has seen."""

from collections import Counter
from collections.abc import Iterable, Mapping

from flux2_async.errors import InvalidRequestError
from flux2_async.models import RateLimit, Request
from flux2_async.models.budget import Estimate, seconds_of
from flux2_async.models.prices import documented_price
from flux2_async.models.requests import REQUESTS
from flux2_async.models.spending import Kind
from flux2_async.tasks.schedule import Schedules

HALF, MOST = 0.5, 0.9


def estimate_of(
    requests: Request | Iterable[Request],
    *,
    prices: Mapping[Kind, float],
    schedules: Schedules,
    waiting: int,
    rate_limit: RateLimit | None,
    max_running: int | None,
) -> Estimate:
    """Tell what requests are going to cost and to take; see `Flux2Session.estimate`."""
    kinds: Counter[Kind] = Counter()
    for request in requests if isinstance(requests, Iterable) else [requests]:
        if not isinstance(request, Request):
            raise InvalidRequestError(f"requests: {type(request).__name__} given, allowed are {REQUESTS}")
        kinds[request.model, request.resolution] += 1
    durations = [schedules.of(*kind).durations() for kind in kinds]

    def seconds(share: float) -> float:
        if not durations:
            return 0.0
        task = max(each.quantile(share) for each in durations)
        return seconds_of(waiting + kinds.total(), task, rate_limit, max_running)

    return Estimate(
        requests=kinds.total(),
        credits=sum(count * prices.get(kind, documented_price(*kind)) for kind, count in kinds.items()),
        seconds=seconds(HALF),
        seconds_at_most=seconds(MOST),
        seen=all(kind in prices for kind in kinds),
    )
