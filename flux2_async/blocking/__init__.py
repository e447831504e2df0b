"""The session for code without an event loop: `Flux2Session` on a loop of its own in a thread, nothing to be awaited.

    with BlockingSession() as flux:
        task = flux.submit(TextToImage("a red kettle on a slate worktop"))
        flux.download(task.result(timeout=300), "out/")

All that pays, waits and limits is `Flux2Session`; its docstrings hold here. Any number of threads may use one session.
"""

from flux2_async.blocking.mirror import BlockingCompletion, BlockingHandle, BlockingIterator, BlockingTask
from flux2_async.blocking.session import BlockingSession, EnqueueOptions, SubmitOptions

__all__ = [
    "BlockingCompletion",
    "BlockingHandle",
    "BlockingIterator",
    "BlockingSession",
    "BlockingTask",
    "EnqueueOptions",
    "SubmitOptions",
]
