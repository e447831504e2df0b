"""Whose task is whose. Pure."""

from typing import Final

# The latest ones; a reply that has strayed is not much older than its request.
MAX_TASK_IDS: Final = 10_000


class TaskIds:
    """The tasks that submissions have, however that became known: no reply to another submission names one of them."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def add(self, task_id: str) -> None:
        """Remember the task of a submission."""
        self._ids[task_id] = None
        while len(self._ids) > MAX_TASK_IDS:
            del self._ids[next(iter(self._ids))]

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)
