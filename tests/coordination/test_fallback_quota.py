"""What a session may send by itself, and what it declares of that."""

import pytest
from seats import BACK, PERIOD

from flux2_async.coordination.contract import PermitEvent, Settlement
from flux2_async.coordination.fallback_quota import FallbackQuota, quota_of
from flux2_async.models import RateLimit


def share(limit: int = 3) -> FallbackQuota:
    """A share that has waited long enough to begin."""
    made = FallbackQuota([RateLimit(limit, PERIOD)], -2 * BACK)
    assert made.windows.ready_at(0.0) == 0.0
    return made


@pytest.mark.parametrize(("limit", "peers", "part"), [(20, 4, 5), (20, 3, 6), (20, 30, 1), (20, 1, 20), (20, None, 2)])
def test_part_of_the_limit(limit: int, peers: int | None, part: int) -> None:
    """All parts together fit into the limit, unless there are more processes than permits."""
    assert quota_of(limit, peers) == part


def test_begins_used_up() -> None:
    """Nothing may be sent before what was sent earlier is certainly over."""
    made = FallbackQuota([RateLimit(3, PERIOD)], 5.0)

    assert made.windows.ready_at(6.0) == 5.0 + 2 * BACK


def test_declares_what_became_of_each() -> None:
    """What was answered or is unclear is named with its time, what is under way as unclear, what was not sent not."""
    made = share(5)
    numbers = [made.take(0.0) for _ in range(5)]
    events = (PermitEvent.ANSWERED, PermitEvent.UNCLEAR, PermitEvent.REFUSED, PermitEvent.NEVER_SENT)
    for number, event in zip(numbers, events, strict=False):
        made.settle(number, event, 1.0)

    assert made.held(2.0) == {
        numbers[0]: Settlement("away:1", PermitEvent.ANSWERED, 1.0),
        numbers[1]: Settlement("away:2", PermitEvent.UNCLEAR, 1.0),
        numbers[4]: Settlement("away:5", PermitEvent.UNCLEAR, 0.0),
    }


def test_forgets_what_is_over() -> None:
    """An outage of days takes no memory for what was sent days ago."""
    made = share(1)
    for turn in range(100):
        made.settle(made.take(turn * BACK), PermitEvent.ANSWERED, turn * BACK)

    assert len(made.held(99 * BACK)) == 1
    assert len(made.held(0.0)) == 1


def test_no_limit_is_no_share() -> None:
    """Without a limit everything may be sent, and nothing has to be declared."""
    made = FallbackQuota([], 0.0)
    made.settle(made.take(0.0), PermitEvent.ANSWERED, 1.0)

    assert made.windows.ready_at(0.0) == 0.0
    assert made.held(1.0) == {}
