"""Tasks that the service has accepted: their handles, when to poll them, and how they are settled."""

from flux2_async.tasks.handle import Completion, ImageTask

__all__ = ["Completion", "ImageTask"]
