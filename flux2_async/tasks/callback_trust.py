"""When to poll a task whose callback may get lost. Pure."""

from typing import TYPE_CHECKING, Final

import attrs

from flux2_async.tasks.schedule import Schedule

if TYPE_CHECKING:
    from flux2_async.tasks.durations import Durations

# Where the documentation lets the polling slow down; a task whose callback is lost is found there.
POLLS_OF_INSURANCE: Final = (30.0, 120.0)


class Trust:
    """Whether callbacks prove to arrive: from one that came until one that did not."""

    def __init__(self) -> None:
        self._earned = False

    def __bool__(self) -> bool:
        return self._earned

    def earn(self) -> None:
        """Count a callback that came."""
        self._earned = True

    def lose(self) -> bool:
        """Count one that did not; give True when that ends the trust."""
        before, self._earned = self._earned, False
        return before


@attrs.frozen
class Insurance:
    """While callbacks can be trusted, a poll at each age limit of the documentation; else the usual schedule."""

    usual: Schedule
    trust: Trust

    @property
    def without_callback(self) -> Schedule:
        """See `Schedule`."""
        return self.usual

    def waits(self, age: float) -> tuple[float, float]:
        """See `Schedule`."""
        if self.trust:
            for limit in POLLS_OF_INSURANCE:
                # The spread keeps tasks of one burst apart, as it does in the usual schedule.
                if age < limit:
                    return limit - age, 1.1 * limit - age
        return self.usual.waits(age)

    def wait_max(self, wait: float) -> float:
        """See `Schedule`."""
        return self.usual.wait_max(wait)

    def ran(self, begin: float, end: float) -> None:
        """See `Schedule`."""
        self.usual.ran(begin, end)

    def ended(self, begin: float, end: float) -> None:
        """See `Schedule`."""
        self.usual.ended(begin, end)

    def durations(self) -> "Durations":
        """See `Schedule`."""
        return self.usual.durations()
