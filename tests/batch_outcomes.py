"""What a batch may have come to, for tests of what is made of it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from PIL import Image

from flux2_async.batch import Download, Failure, Outcome, State, document
from flux2_async.batch.results import Changes
from flux2_async.models.plain_json import utf8_json

START = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)


class Told(Changes):
    """`changes.jsonl` of a run, told of outcomes instead of lines."""

    def tell(self, outcome: Outcome) -> None:
        """Write a line."""
        self.add(utf8_json(document(outcome)) + b"\n")


def done(number: int, **changes: Any) -> Outcome:
    """A request that went well and took as many seconds as its number."""
    known: dict[str, Any] = {
        "id": f"shot-{number}",
        "state": State.DONE,
        "prompt": f"a house, number {number}",
        "model": "flux-2/flex-text-to-image",
        "line": number,
        "task_id": f"task_{number}",
        "download": Download.SAVED,
        "credits": 4.0,
        "submitted_at": START,
        "finished_at": START + timedelta(seconds=number),
    }
    return Outcome(**known | changes)


def failed(number: int, message: str = "refused by the content filter") -> Outcome:
    """A request that the service refused to draw."""
    failure = Failure(type="ContentModeratedError", message=message, code="500")
    return done(number, state=State.FAILED, error=failure, credits=None, download=None)


def queued(count: int) -> Iterator[Outcome]:
    """Requests that were not sent yet."""
    for number in range(1, count + 1):
        yield Outcome(id=f"shot-{number}", state=State.QUEUED, prompt=f"a house, number {number}", line=number)


def painted(path: Path, size: tuple[int, int] = (64, 48), colour: str = "teal") -> Path:
    """A picture of one colour, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path
