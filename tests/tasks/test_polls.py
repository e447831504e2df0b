"""When polls leave; on virtual time, with a function that stands for the service."""

import asyncio

from hypothesis import example, given
from hypothesis import strategies as st
from virtual_time import VirtualClockLoop

from flux2_async.models import Polling, TaskRecord
from flux2_async.tasks.handle import ImageTask
from flux2_async.tasks.polls import Polls
from flux2_async.tasks.schedule import Schedules
from flux2_async.tasks.timing import Timing


class Service:
    """Knows no task, and notes when it was asked for which."""

    def __init__(self) -> None:
        self.polls: set[tuple[float, str]] = set()

    async def record(self, task_id: str) -> TaskRecord | None:
        self.polls.add((asyncio.get_running_loop().time(), task_id))
        return None


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(("plan", "plan", "forget", "wait")), st.integers(0, 9), st.integers(0, 60)),
        max_size=80,
    )
)
@example([("plan", 0, 1), ("plan", 1, 10), ("plan", 2, 2), ("forget", 9, 0), ("forget", 0, 0), ("wait", 0, 5)])
def test_each_poll_leaves_when_it_is_due(steps: list[tuple[str, int, int]]) -> None:
    """However tasks are planned, planned anew and forgotten, each poll leaves at its due time, and no other does."""

    async def run() -> None:
        loop, service, timing = asyncio.get_running_loop(), Service(), Timing(Schedules(Polling()))
        polls = Polls(service, lambda *_: None, 100)
        tasks = [timing.begin(ImageTask(str(number)), None, loop.time()) for number in range(10)]
        planned: dict[str, float] = {}
        made: set[tuple[float, str]] = set()

        async def wait(seconds: float) -> None:
            await asyncio.sleep(seconds)
            for task_id, due in tuple(planned.items()):
                if due < loop.time():
                    made.add((planned.pop(task_id), task_id))
            assert service.polls == made

        for step, number, seconds in steps:
            if step == "plan":
                # Between the moments at which is looked.
                polls.plan(tasks[number], seconds + 0.5)
                planned[str(number)] = loop.time() + seconds + 0.5
            elif step == "forget":
                polls.forget(tasks[number])
                planned.pop(str(number), None)
            else:
                await wait(seconds)
        await wait(100.0)

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(run())
