"""Tasks that the service has accepted: their handles, when to poll them, and how they are settled."""

from typing import TYPE_CHECKING, Final

from flux2_async._shown.names import lazily

if TYPE_CHECKING:
    from flux2_async.tasks.handle import Completion, ImageTask

__all__ = ["Completion", "ImageTask"]

# There are none before a session is open.
__getattr__: Final = lazily(__name__, handle="Completion ImageTask")
