"""The service on loopback, for tests, demonstrations and trying things out without an account.

    async with Emulator(Script(limit=Limit(20, 10.0))) as emulator:
        ...  # emulator.base_url, emulator.upload_url, emulator.api_key

It speaks the seven endpoints and the callback in the shapes that were observed, draws pictures out of the reference
pictures (Pillow, from the extra `emulator`), follows a `Script` for everything that can go wrong, and keeps a `Ledger`
of what it accepted and charged; a browser shows at its `base_url` what happens. It shares no code with the client, so
that a mistake cannot cancel itself out.

All waiting is done with timers of the event loop, and wall-clock stamps are derived from the loop's clock, so it works
on virtual time as well.
"""

from flux2_async.emulator.ledger import CallbackCall, CreateCall, Exchange, Ledger, UploadCall
from flux2_async.emulator.script import Fault, Limit, Plan, Script
from flux2_async.emulator.server import Emulator
from flux2_async.emulator.tasks import TaskView

__all__ = [
    "CallbackCall",
    "CreateCall",
    "Emulator",
    "Exchange",
    "Fault",
    "Ledger",
    "Limit",
    "Plan",
    "Script",
    "TaskView",
    "UploadCall",
]
