"""The caller's own names for pieces of work: one name, one createTask."""

import hashlib
import json
import os
import weakref
from typing import Final

import anyio.to_thread
import attrs

from flux2_async.errors import InvalidRequestError
from flux2_async.models import ImageSource, Request, UploadedFile
from flux2_async.models.requests import facts_of, images_of
from flux2_async.models.submission_state import SubmissionState
from flux2_async.session.byte_bound import ByteBound, memory_of_request
from flux2_async.session.submission import Submission
from flux2_async.tasks.handle import ImageTask

# Bytes in memory, for handles with their requests and records together, and for one record without what it repeats.
MAX_WHOLE: Final = 16 * 1024 * 1024
RECORD: Final = 8 * 1024
# Above this, hashing would hold up the event loop for more than about a millisecond.
HASH_IN_THREAD: Final = 1024 * 1024
# Other processes may have the keys of an earlier release in hand: in another order nothing would match theirs.
_ORDER: Final = ("model", "prompt", "aspect_ratio", "resolution", "extra_input", "images")


@attrs.define(eq=False, repr=False)
class Bound:
    """What a key stands for.

    Attributes:
        fingerprint: A digest of the request.
        until: Loop time until which it is kept.
        ref: The submission.
        task_id: The task it became, where only that is kept; None: nobody knows whether there is one.
    """

    fingerprint: str
    until: float
    ref: str
    _whole: Submission | None
    task_id: str | None = None
    _seen: "weakref.ref[Submission] | None" = None
    _handle: "weakref.ref[ImageTask] | None" = None

    @property
    def submission(self) -> Submission | None:
        """The submission itself, while there is memory for it, or somebody else keeps it; else None."""
        return self._whole or (self._seen() if self._seen is not None else None)

    @property
    def handle(self) -> ImageTask | None:
        """The handle of the task, while somebody else keeps it."""
        return None if self._handle is None else self._handle()

    def keep(self, submission: Submission) -> None:
        """Keep the submission itself."""
        self._whole, self.task_id = submission, None

    def shrink(self) -> None:
        """Keep a digest and a name: enough to give the task, or to say that nobody knows, and never to pay again."""
        submission, self._whole = self._whole, None
        if submission is None:
            return
        self._seen = weakref.ref(submission)
        if submission.state is SubmissionState.ACCEPTED:
            task = submission.outcome.get()
            self.task_id, self._handle = task.id, weakref.ref(task)


class Keys:
    """Which submission each key stands for; those that have ended are forgotten after `ttl` seconds.

    Of those that have ended the newest are kept whole, in 16 MiB together. Of an older one a digest and the name of its
    task stay, some 600 bytes: its key gives a new handle of the same task, which polls it once more. One of which
    nobody knows whether it was accepted keeps its ref, and its key goes on raising `AmbiguousSubmitError`. Within
    that time no key becomes free by being forgotten, since that would be a second payment in silence.
    """

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._bound: dict[str, Bound] = {}
        self._whole = ByteBound(MAX_WHOLE)

    def get(self, key: str, fingerprint: str, now: float) -> Bound | None:
        """Give what a key stands for, or None when it is free.

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
        return bound

    def bind(self, key: str, fingerprint: str, submission: Submission, now: float) -> None:
        """Let a free key stand for a submission."""
        self._bound[key] = Bound(fingerprint, now + self._ttl, submission.ref, submission)
        if submission.ended:
            self.ended(submission)

    def ended(self, submission: Submission) -> None:
        """Count what is kept of a submission that was accepted, or may have been."""
        key = submission.key
        bound = None if key is None else self._bound.get(key)
        if key is not None and bound is not None and bound.submission is submission:
            bound.keep(submission)
            # Its record repeats the request, and is there when the task has ended.
            for oldest in self._whole.keep(key, 2 * memory_of_request(submission.request) + RECORD):
                self._bound[oldest].shrink()

    def found(self, ref: str, task_id: str) -> None:
        """Let the key of a submission of which nothing but its ref is kept stand for its task."""
        for bound in self._bound.values():
            if bound.ref == ref and bound.submission is None and bound.task_id is None:
                bound.task_id = task_id

    def free(self, key: str, submission: Submission) -> None:
        """Forget a key, if it stands for this submission."""
        bound = self._bound.get(key)
        if bound is not None and bound.submission is submission:
            self._drop(key)

    def _drop(self, key: str) -> None:
        del self._bound[key]
        self._whole.discard(key)

    def _forget(self, now: float) -> None:
        # Bound in the order of time, so the first that is young ends the search.
        while self._bound:
            key, bound = next(iter(self._bound.items()))
            if bound.until > now:
                return
            self._drop(key)
            submission = bound.submission
            if submission is not None and not submission.ended:
                self.bind(key, bound.fingerprint, submission, now)


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
