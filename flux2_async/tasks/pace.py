"""The pace that all polls of an account share after the service refused one. Pure: times come in, and go out.

Polls that each back off for themselves come back together, and are refused together. So after a refusal they leave one
by one: at first as many a second as passed, one more after every second that passes without a refusal, half as many
after a poll that was refused. A pace above the most that has passed is tried again when the refusal has paid off.
"""

from collections import deque
from typing import Final

SECOND: Final = 1.0
# Polls a second, where none passes any more.
SLOWEST: Final = 1 / 30
# A pace that was refused is tried again after so many times what the refusal cost.
TRIED_AGAIN: Final = 10.0
# Seconds without a refusal after which there is no limit any more, or not that one.
FORGOTTEN: Final = 300.0
# Seconds; a Retry-After beyond this would keep finished pictures from their users.
RETRY_AFTER_MAX: Final = 300.0


class Pace:
    """When the next poll may leave; all times are seconds of one clock.

    Attributes:
        rate: Polls a second; None where nothing was refused, and each leaves when it is due.
    """

    __slots__ = (
        "_asked_until",
        "_bound",
        "_bound_until",
        "_changed",
        "_held",
        "_next",
        "_passes",
        "_proven",
        "_refused",
        "rate",
    )

    def __init__(self) -> None:
        self.rate: float | None = None
        # When polls passed, within the last second.
        self._passes: deque[float] = deque()
        self._next = self._asked_until = 0.0
        self._changed = 0.0
        self._refused = 0.0
        # The most that has passed for a second, and how long that is the bound.
        self._proven = 0.0
        self._bound = self._bound_until = 0.0
        # Whether a poll had to wait since the last change: a pace that nobody needs proves nothing.
        self._held = False

    def opens(self, now: float) -> float:
        """Give when the next poll may leave, for a poll that is due; not later than `now` means at once."""
        if self.rate is None:
            return now
        if now - self._refused >= FORGOTTEN:
            self.rate = None
            return now
        opens = max(self._next, self._asked_until)
        self._held = self._held or opens > now
        return opens

    def left(self, now: float) -> None:
        """Count a poll that leaves."""
        if self.rate is not None:
            self._next = now + 1.0 / self.rate

    def passed(self, left: float, now: float) -> None:
        """Count a poll that was answered, and when it left."""
        self._passes.append(now)
        while self._passes[0] <= now - SECOND:
            self._passes.popleft()
        if self.rate is None or left < self._changed or now - self._changed < SECOND or not self._held:
            return
        self._proven = max(self._proven, self.rate)
        rate = self.rate + 1.0
        self._change(rate if now >= self._bound_until else min(rate, max(self._bound, self.rate)), now)
        self._next = min(self._next, now + 1.0 / rate)

    def passing(self, now: float) -> bool:
        """Whether a poll was answered within the last second."""
        return bool(self._passes) and self._passes[-1] > now - SECOND

    def refused(self, left: float, now: float, retry_after: float | None = None, slowest: float = SLOWEST) -> None:
        """Count a poll that was refused.

        Args:
            left: When it left. What left before the pace was changed last says nothing about it.
            now: The time.
            retry_after: Seconds that the service asked to wait, or None; a year counts as 300 s.
            slowest: Polls a second below which the pace does not fall.
        """
        asked = min(retry_after or 0.0, RETRY_AFTER_MAX)
        pause = 0.0
        if self.rate is None:
            # That many have used up this second.
            pause = SECOND
            self._proven = self._bound_until = 0.0
            self._change(max(float(sum(passed > now - SECOND for passed in self._passes)), 1.0), now)
        elif left >= self._changed:
            rate = max(self.rate / 2.0, slowest)
            self._proven = self._proven if self._proven < self.rate else max(self.rate - 1.0, rate)
            self._bound = max(self._proven, rate)
            self._bound_until = now + TRIED_AGAIN * max(asked, SECOND)
            self._change(rate, now)
            pause = 1.0 / rate
        self._refused = now
        self._next = max(self._next, now + pause)
        self._asked_until = max(self._asked_until, now + asked)

    def _change(self, rate: float, now: float) -> None:
        self.rate, self._changed, self._held = rate, now, False
