# Install in a virtual environment: pip install "flux2-async[redis]" celery
# Start it: celery -A app worker --concurrency 4 (any number of them, on any number of hosts)
"""A batch on Celery: worker processes on any number of hosts stay inside one limit, which Redis holds.

Send work with `picture.delay("order-17", "A lighthouse at dawn")`. A message of a worker that was killed is delivered
again; its `key` finds the task that was paid for already. Where nobody can know whether it was paid, it fails with
`AmbiguousSubmitError` instead of a second payment.
"""

import os

from celery import Celery, signals

from flux2_async import TextToImage
from flux2_async.blocking import BlockingSession
from flux2_async.coordination import RedisCoordination

REDIS = os.environ.get("REDIS_URL", "redis://localhost:6379")
app = Celery("app", broker=REDIS, backend=REDIS)
# Seconds after which a message that nobody has finished is delivered again; the key makes that harmless.
app.conf.broker_transport_options = {"visibility_timeout": float(os.environ.get("IDLE_S", "600"))}
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1)
flux = BlockingSession(coordination=RedisCoordination(REDIS))


@signals.worker_process_init.connect
def opened(**_: object) -> None:
    """Open the session in each process of the pool, after the fork."""
    flux.open()


@signals.worker_process_shutdown.connect
def closed(**_: object) -> None:
    """Close it after the last message."""
    flux.close()


@app.task
def picture(key: str, prompt: str) -> list[str]:
    """Make a picture once, however often the message comes."""
    task = flux.submit(TextToImage(prompt, tier="pro"), key=key)
    return [str(path) for path in flux.download(task.result(), "pictures")]
