"""When a window that was refused tries a higher level. Pure: time comes in as an argument.

* A try is one start per period more, after so many clean periods that one in `PROBE` submissions is a probe; of an
  even stream after `PATIENCE` periods, since a refusal costs it one. When a level has passed, on to the next at once.
  The first try waits `PATIENCE` periods as well: trying at once gains nothing where a burst told the level, and costs
  a refusal.
* Where the limit stands firm (but for the probe all was taken) tries come four times as rarely each time, up to
  `MAX_PATIENCE` periods. Strangers move the limit: there the wait starts anew.
* A period counts only if all permits were out: an idle one proves nothing.
* `EARNS` submissions taken earn one refusal, up to `SAVINGS`. Once more are spent, every wait is twice as long.
* After `FORGET` clean periods at the top the refusals are forgotten; where bursts are never legal, this costs at most
  n refusals in 60 n submissions.
"""

from typing import Final

import attrs

PROBE: Final = 24
PATIENCE: Final = 4
MAX_PATIENCE: Final = 32
EARNS: Final = 20
SAVINGS: Final = 6
FORGET: Final = 60


@attrs.define(eq=False)
class Growth:
    """Counts clean periods at the present level and says when to try a higher one."""

    _period: float
    _wait: int = attrs.field(init=False, default=PATIENCE)
    _budget: int = attrs.field(init=False, default=SAVINGS * EARNS)
    _clean: int = attrs.field(init=False, default=0)
    _clean_since: float | None = attrs.field(init=False, default=None)
    trying: bool = attrs.field(init=False, default=False)

    @property
    def forgets(self) -> bool:
        return self._clean >= FORGET

    @property
    def overspent(self) -> bool:
        return self._budget <= 0

    def earn(self) -> None:
        self._budget = min(self._budget + 1, SAVINGS * EARNS)

    def spend(self, refused: int) -> None:
        self._budget -= refused * EARNS

    def tries(self, now: float, *, limit: int, even: bool, room: bool) -> bool:
        """Whether to grow by one, after a request that used the last permit was accepted."""
        if self._clean_since is None or now < self._clean_since + self._period:
            self._clean_since = now if self._clean_since is None else self._clean_since
            return False
        self._clean += 1
        self._clean_since = now
        # An even stream that is too fast by one is refused after a period or two.
        if self.trying and self._clean >= (2 if even else 1):
            self.trying, self._wait = False, self._patience(limit, even=even) if self.overspent else 1
        if self.trying or self._clean < self._wait or not room:
            return False
        self._clean, self.trying = 0, True
        return True

    def stop(self, *, limit: int, even: bool, firm: bool) -> None:
        """A refusal: wait before the next try, longer when it was a try at a limit that stands firm."""
        wait = self._patience(limit, even=even)
        self._wait = min(4 * max(self._wait, wait), MAX_PATIENCE) if self.trying and firm else wait
        self._clean, self._clean_since, self.trying = 0, None, False

    def _patience(self, limit: int, *, even: bool) -> int:
        periods = PATIENCE if even else max(1, round(PROBE / limit))
        return 2 * periods if self.overspent else periods
