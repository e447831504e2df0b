"""The caller's own names for pieces of work: one name, one createTask."""

import hashlib
import json
import os
from typing import Final

import anyio.to_thread
import attrs

from flux2_async.errors import InvalidRequestError
from flux2_async.models import ImageSource, Request, UploadedFile
from flux2_async.models.requests import facts_of, images_of
from flux2_async.session.submission import Submission

__all__ = ["Keys", "fingerprint"]

KEPT_FOR: Final = 24 * 3600.0
# Above this, hashing would hold up the event loop for more than about a millisecond.
HASH_IN_THREAD: Final = 1024 * 1024
# Other processes may have the keys of an earlier release in hand: in another order nothing would match theirs.
_ORDER: Final = ("model", "prompt", "aspect_ratio", "resolution", "extra_input", "images")


@attrs.frozen
class _Bound:
    fingerprint: str
    submission: Submission
    until: float


class Keys:
    """Which submission each key stands for; those that have ended are forgotten after 24 hours."""

    def __init__(self) -> None:
        self._bound: dict[str, _Bound] = {}

    def get(self, key: str, fingerprint: str, now: float) -> Submission | None:
        """Give the submission of a key, or None when it is free.

        Raises:
            InvalidRequestError: The key stands for another request.
        """
        self._forget(now)
        bound = self._bound.get(key)
        if bound is None:
            return None
        if bound.fingerprint != fingerprint:
            raise InvalidRequestError(
                f"key: {key!r} already stands for another request; give each piece of work a key of its own"
            )
        return bound.submission

    def bind(self, key: str, fingerprint: str, submission: Submission, now: float) -> None:
        """Let a free key stand for a submission."""
        self._bound[key] = _Bound(fingerprint, submission, now + KEPT_FOR)

    def free(self, key: str, submission: Submission) -> None:
        """Forget a key, if it stands for this submission."""
        bound = self._bound.get(key)
        if bound is not None and bound.submission is submission:
            del self._bound[key]

    def _forget(self, now: float) -> None:
        # Bound in the order of time, so the first that is young ends the search.
        while self._bound:
            key, bound = next(iter(self._bound.items()))
            if bound.until > now:
                return
            del self._bound[key]
            if not bound.submission.outcome.done:
                self.bind(key, bound.fingerprint, bound.submission, now)


async def fingerprint(request: Request) -> str:
    """Give a digest that two requests share when they ask for the same."""
    if sum(len(image) for image in images_of(request) if isinstance(image, bytes)) > HASH_IN_THREAD:
        return await anyio.to_thread.run_sync(_fingerprint, request)
    return _fingerprint(request)


def _fingerprint(request: Request) -> str:
    facts = facts_of(request, [_name(image) for image in images_of(request)])
    told = [facts[name] for name in _ORDER]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _name(image: ImageSource) -> str:
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    if isinstance(image, UploadedFile):
        return image.url
    return str(os.fspath(image))
