"""What the parts of one emulator share; it outlives a stop and a new start."""

from collections.abc import Callable

import attrs

from flux2_async.emulator.clock import Clock
from flux2_async.emulator.connections import Connections
from flux2_async.emulator.faults import Faults
from flux2_async.emulator.ledger import CallbackCall, Exchange, Ledger
from flux2_async.emulator.script import Script
from flux2_async.emulator.store import Links, Store


@attrs.frozen(eq=False)
class Core:
    """What happens, when, to what, and where it is written down; `log` is told of each request and callback."""

    script: Script
    ledger: Ledger
    clock: Clock
    links: Links
    store: Store
    faults: Faults
    connections: Connections
    log: Callable[[Exchange | CallbackCall], object] | None
