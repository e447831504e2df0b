# Install in a virtual environment: pip install "flux2-async[postgres]" dbos
# Start it: DATABASE_URL=postgresql://... python app.py order-17 order-18 (and again after a crash: it goes on)
"""Workflows of DBOS, which survive a crash: one Postgres keeps them, the limit of all processes, and the keys.

A step that was killed runs again; its `key` finds the task that was paid for already. Where nobody can know whether it
was paid, it fails with `AmbiguousSubmitError` instead of a second payment.
"""

import os
import sys

from dbos import DBOS, SetWorkflowID

from flux2_async import TextToImage
from flux2_async.blocking import BlockingSession
from flux2_async.coordination import PostgresCoordination

DATABASE = os.environ.get("DATABASE_URL", "postgresql://localhost/app")
DBOS(config={"name": "pictures", "system_database_url": DATABASE})
# Keys for ever: a workflow may sleep for days.
flux = BlockingSession(coordination=PostgresCoordination(DATABASE), key_ttl=None)


@DBOS.step()
def make(order: str, prompt: str) -> list[str]:
    """Make a picture once, however often the step runs."""
    task = flux.submit(TextToImage(prompt, tier="pro"), key=order)
    return [str(path) for path in flux.download(task.result(), "pictures")]


@DBOS.workflow()
def picture(order: str) -> list[str]:
    """Do all that an order needs."""
    return make(order, f"A lighthouse at dawn, in the style of {order}")


if __name__ == "__main__":
    with flux:
        DBOS.launch()
        handles = []
        for order in sys.argv[1:]:
            with SetWorkflowID(order):  # the same order is the same workflow
                handles.append(DBOS.start_workflow(picture, order))
        for handle in handles:
            print(*handle.get_result())
