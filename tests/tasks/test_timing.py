"""How old tasks are, and what their records teach."""

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from flux2_async.models import Polling, TaskRecord, TaskState
from flux2_async.tasks.durations import Durations
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.schedule import Schedule, Schedules
from flux2_async.tasks.timing import Timing, Watched

KIND = ("flux-2/flex-text-to-image", "1K")
# The service's clock is far from the loop's, and nobody compares it with this machine's.
SERVICE = datetime(1999, 1, 1, tzinfo=UTC)
PARAM = {"input": {"resolution": KIND[1]}}


@attrs.define(eq=False)
class Pupil:
    """Notes what it is taught."""

    lessons: list[tuple[str, float, float]] = attrs.field(factory=list)
    asked: list[float] = attrs.field(factory=list)

    @property
    def without_callback(self) -> Schedule:
        return self

    def waits(self, age: float) -> tuple[float, float]:
        self.asked.append(age)
        return 1.0, 1.0

    def wait_max(self, wait: float) -> float:
        return wait

    def ran(self, begin: float, end: float) -> None:
        self.lessons.append(("ran", begin, end))

    def ended(self, begin: float, end: float) -> None:
        self.lessons.append(("ended", begin, end))

    def durations(self) -> Durations:
        raise AssertionError("nobody asks for them here")


class Room(Schedules):
    def __init__(self) -> None:
        super().__init__(Polling())
        self.pupil = Pupil()

    def of(self, model: str, resolution: str) -> Schedule:
        return self.pupil if (model, resolution) == KIND else self.unknown


def record(created: float | None = None, completed: float | None = None, **more: Any) -> TaskRecord:
    """A record with the service's stamps, in seconds of its clock."""

    def stamp(at: float | None) -> datetime | None:
        return None if at is None else SERVICE + timedelta(seconds=at)

    state = more.pop("state", TaskState.GENERATING if completed is None else TaskState.SUCCESS)
    return TaskRecord(
        task_id="a", state=state, state_text=state, create_time=stamp(created), complete_time=stamp(completed),
        **({"model": KIND[0], "param": PARAM} | more),
    )  # fmt: skip


async def look(timing: Timing, watched: Watched, left: float, what: TaskRecord, took: float = 0.0) -> None:
    watched.polled = left
    timing.learn(watched, what, left + took)


async def begin(room: Room, *, at: float = 100.0, new: bool = True) -> tuple[Timing, Watched]:
    timing = Timing(room)
    return timing, timing.begin(ImageTask("a"), room.pupil if new else None, at)


async def test_durations_are_the_services_own() -> None:
    """A task ends where its stamps say, not where it was seen; it ran at the looks before."""
    room = Room()
    timing, watched = await begin(room)
    await look(timing, watched, 105.0, record(0.0))
    await look(timing, watched, 110.0, record(0.0))
    await look(timing, watched, 115.0, record(0.0, 12.0))

    assert room.pupil.lessons == [("ran", 0, 5), ("ran", 5, 10), ("ended", 10, 12)]


@pytest.mark.parametrize(
    ("completed", "ended"), [(3.0, 10.0), (-50.0, 10.0), (900.0, 15.5)], ids=["early", "negative", "late"]
)
async def test_stamps_that_cannot_be_are_not_believed(completed: float, ended: float) -> None:
    """By our own clock it ended between the last look that saw it run and the reply that said so."""
    room = Room()
    timing, watched = await begin(room)
    await look(timing, watched, 110.0, record(0.0))
    await look(timing, watched, 115.0, record(0.0, completed), took=0.5)

    assert room.pupil.lessons[-1] == ("ended", 10, ended)


async def test_without_stamps_it_ended_between_two_looks() -> None:
    """A failed task, whose stamps may be missing, ended half-way between the looks; it teaches like any other."""
    room = Room()
    timing, watched = await begin(room)
    await look(timing, watched, 110.0, record(0.0))
    await look(timing, watched, 116.0, record(state=TaskState.FAIL))

    assert room.pupil.lessons[-1] == ("ended", 10, 13)


async def test_a_slow_reply_counts_from_when_the_look_left() -> None:
    """What a reply says was true when the look left; it may have ended since."""
    room = Room()
    timing, watched = await begin(room)
    await look(timing, watched, 105.0, record(0.0), took=20.0)

    assert room.pupil.lessons == [("ran", 0, 5)]


async def test_an_attached_task_teaches_when_it_ends() -> None:
    """Its age is not known while it runs, but its stamps tell how long it took."""
    room = Room()
    timing, watched = await begin(room, new=False)
    await look(timing, watched, 105.0, record(0.0))
    await look(timing, watched, 110.0, record(0.0, 70.0))

    assert (watched.schedule, watched.created) == (room.unknown, None)
    assert room.pupil.lessons == [("ended", 0, 70)]


@pytest.mark.parametrize(
    "what", [{"completed": None}, {"completed": 9.0, "model": None}, {"completed": 9.0, "param": {}}]
)
async def test_an_attached_task_without_stamps_or_kind_teaches_nothing(what: dict[str, Any]) -> None:
    """Nothing is made up."""
    room = Room()
    timing, watched = await begin(room, new=False)
    created = None if what["completed"] is None else 0.0
    await look(timing, watched, 110.0, record(created, state=TaskState.SUCCESS, **what))

    assert room.pupil.lessons == []


async def test_the_age_of_an_attached_task_is_found_out() -> None:
    """Once a task that was created here tells how the clocks lie, another one's stamp tells its age."""
    room = Room()
    timing, own = await begin(room, at=100.0)
    attached = timing.begin(ImageTask("b"), None, 110.0)
    await look(timing, own, 105.0, record(5000.0))
    # 7 s before the own one.
    await look(timing, attached, 112.0, record(4993.0))
    timing.wait(attached, 112.0)
    await look(timing, attached, 120.0, record(4993.0, 4993.0 + 25.0))

    assert attached.schedule is room.pupil
    assert attached.created == pytest.approx(93.0)
    assert room.pupil.asked == pytest.approx([19.0])
    assert [what for what, *_ in room.pupil.lessons[1:]] == ["ran", "ended"]
    assert [seconds for _, *seconds in room.pupil.lessons[1:]] == [
        pytest.approx([0.0, 19.0]),
        pytest.approx([19.0, 25.0]),
    ]


async def test_no_task_is_younger_than_its_handle() -> None:
    """A stamp that lies after the attaching is taken for it."""
    room = Room()
    timing, own = await begin(room, at=100.0)
    attached = timing.begin(ImageTask("b"), None, 110.0)
    await look(timing, own, 105.0, record(5000.0))
    await look(timing, attached, 112.0, record(5050.0))

    assert attached.created == 110.0


async def test_only_a_known_kind_has_an_age() -> None:
    """A task whose record does not name its kind is looked at as the documentation advises, to its end."""
    room = Room()
    timing, own = await begin(room, at=100.0)
    attached = timing.begin(ImageTask("b"), None, 110.0)
    await look(timing, own, 105.0, record(5000.0))
    await look(timing, attached, 112.0, record(4993.0, model=None))

    assert (attached.schedule, attached.created) == (room.unknown, None)
