# Install in a virtual environment: pip install "flux2-async[redis]" taskiq taskiq-redis
# Start it: taskiq worker app:broker (any number of them), taskiq scheduler app:scheduler (one)
"""A batch on a task queue: any number of hosts take messages from Redis and stay inside one limit.

Send work with `await picture.kiq("order-17", "A lighthouse at dawn")`. A message of a worker that died goes to another
one; its `key` finds the task that was paid for already. Where nobody can know whether it was paid, the message ends
with `AmbiguousSubmitError` instead of a second payment.
"""

import os

from taskiq import TaskiqEvents, TaskiqScheduler, TaskiqState
from taskiq.schedule_sources import LabelScheduleSource
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from flux2_async import Flux2Session, TextToImage
from flux2_async.coordination import RedisCoordination

REDIS = os.environ.get("REDIS_URL", "redis://localhost:6379")
# Milliseconds after which a message that nobody has finished goes to another worker; the key makes that harmless.
IDLE = int(os.environ.get("IDLE_MS", "300000"))
broker: RedisStreamBroker = RedisStreamBroker(
    REDIS, idle_timeout=IDLE, unacknowledged_lock_timeout=30, xread_count=1
).with_result_backend(RedisAsyncResultBackend(REDIS))
flux: Flux2Session = Flux2Session(coordination=RedisCoordination(REDIS))


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def opened(_state: TaskiqState) -> None:
    """Open the session before the first message."""
    await flux.open()


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def closed(_state: TaskiqState) -> None:
    """Close it after the last one."""
    await flux.aclose()


@broker.task
async def picture(key: str, prompt: str) -> list[str]:
    """Make a picture once, however often the message comes."""
    task = await flux.submit(TextToImage(prompt, tier="pro"), key=key)
    return [str(path) for path in await flux.download(await task.result(), "pictures")]


@broker.task(schedule=[{"cron": "* * * * *"}])
async def nudge() -> None:
    """Make the broker take up what dead workers left, which it does when a new message comes."""


scheduler: TaskiqScheduler = TaskiqScheduler(broker, [LabelScheduleSource(broker)])
