"""Whose task is whose. Pure."""

from typing import Final

# The latest ones; a reply that has strayed is not much older than its request.
MAX_TASK_IDS: Final = 10_000


class TaskIds:
    """The tasks that submissions have, however that became known: no reply to another submission names one of them."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    def add(self, task_id: str, ref: str) -> None:
        """Remember the task of a submission."""
        self._ids[task_id] = ref
        while len(self._ids) > MAX_TASK_IDS:
            del self._ids[next(iter(self._ids))]

    def claim(self, task_id: str, ref: str) -> bool:
        """Remember the task of a submission, unless it is that of another name; then give False."""
        if self._ids.get(task_id, ref) != ref:
            return False
        self.add(task_id, ref)
        return True
