"""What all submissions of a session share."""

from typing import TYPE_CHECKING

import attrs

from flux2_async._http.api import Api
from flux2_async._http.files import Files
from flux2_async._limiter.limiter import Gate
from flux2_async._limiter.slots import Slots
from flux2_async.models import RateLimit
from flux2_async.session.ending import Keepers
from flux2_async.tasks.schedule import Schedules
from flux2_async.tasks.watcher import Watcher

if TYPE_CHECKING:
    from flux2_async.coordination.client import Sharing
    from flux2_async.session.callback_inbox import CallbackInbox


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Shared(Keepers):
    """What a submission meets on its way.

    Attributes:
        rate_limit: Of several the one that allows the fewest in the long run.
        names_kept: Seconds for which the service knows a createTask again by the name of its submission; None: it does
            not.
    """

    api: Api
    files: Files
    slots: Slots
    limiter: Gate
    rate_limit: RateLimit | None
    schedules: Schedules
    watcher: Watcher
    inbox: "CallbackInbox | None" = None
    sharing: "Sharing | None" = None
    names_kept: float | None = None
