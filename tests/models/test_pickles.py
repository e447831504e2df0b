"""Pickles that version 0.1.0 made, in which public objects stand under the modules of then."""

import pickle
from pathlib import Path

import pytest

from flux2_async import (
    Completion,
    ImageResult,
    Polling,
    RateLimit,
    TaskRecord,
    TaskState,
    TextToImage,
    Timeouts,
    Unsettled,
)
from flux2_async.batch import JournalError
from flux2_async.coordination import HostCoordination

REQUEST = TextToImage("a red kettle")
RECORD = TaskRecord(task_id="t", state=TaskState.SUCCESS, state_text="success")
RESULT = ImageResult(task_id="t", urls=("https://x.example/a.png",), record=RECORD)
SETTINGS = "flux2_async._settings"
MADE = [
    (REQUEST, "flux2_async.models"),
    (TaskRecord(task_id="t", state=TaskState.SUCCESS, state_text="success"), "flux2_async.models"),
    (RateLimit(20, 10.0), SETTINGS),
    (Polling(interval=1.0), SETTINGS),
    (Timeouts(), SETTINGS),
    (Completion(index=1, request=REQUEST, error=ValueError("x")), "flux2_async.tasks"),
]


@pytest.mark.parametrize(("value", "module"), MADE, ids=lambda value: type(value).__name__)
def test_pickle_of_an_earlier_version_opens(value: object, module: str) -> None:
    """What was pickled before modules moved into folders is the same object now."""
    # The oldest protocol writes names as lines, so that one can be put in the place of another.
    now = pickle.dumps(value, 0)
    then = now.replace(type(value).__module__.encode() + b"\n", module.encode() + b"\n")
    then = then.replace(b"flux2_async.models.requests\n", b"flux2_async.models\n")
    then = then.replace(b"flux2_async.models.records\n", b"flux2_async.models\n")

    assert then != now
    opened = pickle.loads(then)
    assert type(opened) is type(value)
    assert repr(opened) == repr(value)


SAMPLES = Path(__file__).parent.parent / "samples" / "pickles"


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.iterdir()))
def test_pickle_that_an_earlier_version_made_opens(name: str) -> None:
    """What stood in private modules then, and was given out all the same, is the same object now."""
    if name == "RedisCoordination":
        pytest.importorskip("redis")
    opened = pickle.loads((SAMPLES / name).read_bytes())
    expected: object = {
        "Completion": Completion(index=1, request=REQUEST, result=RESULT),
        "Unsettled": Unsettled(("t",), ("r",)),
        "JournalError": JournalError("journal: 'run.db' is damaged"),
        "HostCoordination": HostCoordination("/tmp/x.sqlite"),  # noqa: S108  never opened
        "RedisCoordination": "<RedisCoordination namespace='flux2' on_failure='degrade'>",
    }[name]

    assert type(opened).__name__ == name
    assert repr(opened) == (expected if isinstance(expected, str) else repr(expected))
