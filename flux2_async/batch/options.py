"""What a run is asked for besides its requests."""

import attrs

from flux2_async.batch.outcomes import State
from flux2_async.errors import ConfigurationError
from flux2_async.session.arguments import check_max_running

__all__ = ["Options"]


@attrs.frozen(kw_only=True)
class Options:
    """The arguments of `run_batch` of the same names, which it explains."""

    max_running: int | None
    limit: int | None
    shuffle: bool
    max_tasks: int | None
    max_credits: float | None
    retry_failed: bool
    retry_unknown: bool
    download: bool
    skip_invalid: bool
    recover_timeout: float
    task_timeout: float | None

    def __attrs_post_init__(self) -> None:
        check_max_running(self.max_running)
        for name in ("limit", "max_tasks"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"{name}: {value!r} given, it must be a whole number of 1 or more, or None")
        for name in ("max_credits", "recover_timeout"):
            value = getattr(self, name)
            none = value is None and name == "max_credits"
            if not none and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
                raise ConfigurationError(f"{name}: {value!r} given, it must be a number of 0 or more")
        timeout: object = self.task_timeout
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0
        ):
            raise ConfigurationError(f"task_timeout: {timeout!r} given, it must be a number above 0, or None")

    def sendable(self) -> set[State]:
        """States whose requests may be sent by this run."""
        states = {State.QUEUED}
        if self.retry_failed:
            states.add(State.FAILED)
        if self.retry_unknown:
            states |= {State.UNKNOWN, State.SUBMITTING}
        return states
