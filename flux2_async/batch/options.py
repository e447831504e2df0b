"""What a run is asked for besides its requests."""

import attrs

from flux2_async.batch.outcomes import State
from flux2_async.errors import ConfigurationError
from flux2_async.models.plain import is_number
from flux2_async.session.arguments import check_count, check_name


@attrs.frozen(kw_only=True)
class Options:
    """The arguments of `run_batch` of the same names, which it explains."""

    max_running: int | None = None
    limit: int | None = None
    shuffle: bool = False
    max_tasks: int | None = None
    retry_failed: bool = False
    retry_unknown: bool = False
    skip_invalid: bool = False
    max_credits: float | None = None
    max_failed: float | None = None
    download: bool = True
    recover_timeout: float = 0.0
    task_timeout: float | None = None
    group: str | None = None

    def __attrs_post_init__(self) -> None:
        for name in ("max_running", "limit", "max_tasks"):
            check_count(name, getattr(self, name))
        check_name("group", self.group)
        most, recover, timeout, share = self.max_credits, self.recover_timeout, self.task_timeout, self.max_failed
        if most is not None and not (is_number(most) and most >= 0):
            raise ConfigurationError(f"max_credits: {most!r} given, it must be a number of 0 or more")
        if share is not None and not (is_number(share) and 0 <= share <= 1):
            raise ConfigurationError(f"max_failed: {share!r} given, it must be a share of 0 to 1, such as 0.2, or None")
        if not is_number(recover) or not recover >= 0:
            raise ConfigurationError(f"recover_timeout: {recover!r} given, it must be a number of 0 or more")
        if timeout is not None and not (is_number(timeout) and timeout > 0):
            raise ConfigurationError(f"task_timeout: {timeout!r} given, it must be a number above 0, or None")

    def sendable(self) -> set[State]:
        """States whose requests may be sent by this run."""
        states = {State.QUEUED}
        if self.retry_failed:
            states.add(State.FAILED)
        if self.retry_unknown:
            states |= {State.UNKNOWN, State.SUBMITTING}
        return states
