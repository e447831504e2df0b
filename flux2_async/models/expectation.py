"""How long something still takes, as far as that can be known."""

import attrs

__all__ = ["Expectation"]


@attrs.frozen(kw_only=True)
class Expectation:
    """How long a task, or a submission with its task, is expected to take; made by `expectation()` of either.

    All times count in seconds from the same moment: when the service took the task, or when the submission was
    enqueued. They change as it gets older, and as the session sees others end.

    Attributes:
        elapsed: How old it is; once it has ended, what it took. None: not known, as of a task that was attached.
        median: The age by which half of the tasks that get as old as this one have ended, so it grows with `elapsed`;
            once it has ended, what it took. None: not known.
        bound: Likewise, the seconds within which nine in ten end. None likewise.
        fraction: How much of its time has passed, 0 to 1: of one that runs never less when it is older, 1.0 once it has
            ended. None: not known.
    """

    elapsed: float | None = None
    median: float | None = None
    bound: float | None = None
    fraction: float | None = None

    @property
    def remaining(self) -> float | None:
        """Seconds that it still takes by the median; 0.0 once it has ended. None: not known."""
        return None if self.elapsed is None or self.median is None else max(self.median - self.elapsed, 0.0)

    def after(self, seconds: float) -> "Expectation":
        """Give the same for what waited before: all times count from the beginning of that.

        Args:
            seconds: How long it waited.

        Returns:
            Another expectation, with these seconds added to each time that is known.
        """
        elapsed, median, bound = (
            None if each is None else each + seconds for each in (self.elapsed, self.median, self.bound)
        )
        fraction = self.fraction
        if fraction is not None and self.median is not None and median:
            fraction = (seconds + fraction * self.median) / median
        return Expectation(elapsed=elapsed, median=median, bound=bound, fraction=fraction)
