"""When to look again. Pure: ages and a random number come in, seconds go out."""

from typing import Final, Protocol

import attrs

from flux2_async.models import Polling

__all__ = ["DocumentedAdvice", "FixedInterval", "Schedule", "make_schedule", "wait_after_failure"]

# Apikley's advice: every 2-3 s for 30 s, 5-10 s after, 15-30 s after two minutes; the middle of each.
ADVICE: Final = ((30.0, 2.5), (120.0, 7.5), (float("inf"), 22.5))
SPREAD: Final = 0.1
MAX_SLOWDOWN_OF_FIXED: Final = 10.0
# Without a floor, looking "as fast as replies come" would become a busy loop when no reply comes.
SLOWED_MIN: Final = 0.1
# A Retry-After beyond this would keep a finished picture from its user.
RETRY_AFTER_MAX: Final = 300.0


class Schedule(Protocol):
    """Knows how long to wait for the next look at a task."""

    def wait(self, age: float, spread: float) -> float:
        """Give the seconds until the next look.

        Args:
            age: Seconds since the task was submitted or attached.
            spread: A random number, 0 to 1, that keeps tasks of one burst apart.
        """
        ...

    def wait_max(self, wait: float) -> float:
        """Give the longest wait, in seconds, after failures to look, where `wait` is the usual one."""
        ...


@attrs.frozen
class DocumentedAdvice:
    """The intervals that the API's documentation advises, within the bounds of the settings."""

    polling: Polling

    def wait(self, age: float, spread: float) -> float:
        """See `Schedule`."""
        gap = next(gap for until, gap in ADVICE if age < until)
        spaced = gap * (1 + SPREAD * (spread - 0.5))
        return min(max(spaced, self.polling.wait_min), self.polling.wait_max)

    def wait_max(self, wait: float) -> float:
        """See `Schedule`."""
        return max(wait, self.polling.wait_max)


@attrs.frozen
class FixedInterval:
    """The same interval at any age, exactly."""

    interval: float

    def wait(self, age: float, spread: float) -> float:  # noqa: ARG002  the interval is what was asked for
        """See `Schedule`."""
        return self.interval

    def wait_max(self, wait: float) -> float:
        """See `Schedule`."""
        return MAX_SLOWDOWN_OF_FIXED * max(wait, SLOWED_MIN)


def make_schedule(polling: Polling) -> Schedule:
    """Give the schedule that the settings ask for."""
    return DocumentedAdvice(polling) if polling.interval is None else FixedInterval(polling.interval)


def wait_after_failure(schedule: Schedule, wait: float, failures: int, retry_after: float | None) -> float:
    """Slow down after failures to look.

    Args:
        schedule: The schedule in force.
        wait: What it says without failures, seconds.
        failures: Failures in a row, 1 or more.
        retry_after: What the service asked for, seconds, or None.

    Returns:
        Seconds: twice as long with each failure, up to the schedule's bound, and not less than `retry_after`
        (as far as 300 s).
    """
    # The exponent is bounded because an outage of hours would overflow a float.
    slowed = min(max(wait, SLOWED_MIN) * 2.0 ** min(failures, 16), schedule.wait_max(wait))
    return max(slowed, min(retry_after or 0.0, RETRY_AFTER_MAX))
