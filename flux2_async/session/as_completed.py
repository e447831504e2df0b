"""Many requests in bounded memory, in the order in which they finish."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import aclosing
from itertools import islice
from typing import Any, Protocol, TypeVar, cast

from flux2_async.errors import Flux2Error, InvalidRequestError
from flux2_async.models import Request
from flux2_async.models.requests import REQUESTS
from flux2_async.session.submission import Asked, Submission
from flux2_async.session.submitter import Submitter
from flux2_async.tasks.handle import Completion, ImageTask

T = TypeVar("T")

# An iteration that nobody closes is closed when it is collected, which must not collect its task with it.
_feeders: set[asyncio.Task[None]] = set()


class Labelled(Protocol):
    """A request with what belongs to it, as `flux2_async.batch.Job` is."""

    @property
    def group(self) -> str | None:
        """Whose it is, or None."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """What its caller wants kept with it, or None."""
        ...

    def located(self) -> Request:
        """Give the request."""
        ...


Requests = Iterable[Request | Labelled] | AsyncIterable[Request | Labelled]


class Completions:
    """Takes requests in and gives completions out, at most `limit` between the two."""

    def __init__(self, *, submitter: Submitter, limit: int, group: str | None) -> None:
        self._submitter = submitter
        self._group = group
        self._room = asyncio.Semaphore(limit)
        self._done: asyncio.Queue[Completion | BaseException | None] = asyncio.Queue()
        self._jobs: set[asyncio.Task[None]] = set()
        self._on_the_way: set[Submission] = set()
        self._stopped: Flux2Error | None = None

    async def run(self, requests: Requests) -> AsyncGenerator[Completion, None]:
        """Give the completions; leaving early stops the sending and keeps what was sent."""
        feeder = asyncio.create_task(self._feed(requests))
        _feeders.add(feeder)
        feeder.add_done_callback(_feeders.discard)
        try:
            while (completion := await self._done.get()) is not None:
                if isinstance(completion, BaseException):
                    raise completion
                yield completion
                self._room.release()
        finally:
            ours = (feeder, *self._jobs)
            for job in ours:
                job.cancel()
            await asyncio.wait(ours)

    async def _feed(self, requests: Requests) -> None:
        failure: BaseException | None = None
        index = 0
        try:
            async with aclosing(in_chunks(requests, 1)) as taken:
                async for (item,) in taken:
                    await self._room.acquire()
                    job = asyncio.create_task(self._one(index, item))
                    self._jobs.add(job)
                    job.add_done_callback(self._jobs.discard)
                    index += 1
        except BaseException as error:  # noqa: BLE001  the caller's iterable may raise anything, also CancelledError; it comes out where it is read
            failure = error
        while self._jobs:
            await asyncio.wait(self._jobs)
        self._done.put_nowait(failure)

    async def _one(self, index: int, item: Request | Labelled) -> None:
        task: ImageTask | None = None
        asked = None
        try:
            asked = self._asked(item)
            task = await self._accepted(asked)
            ended: dict[str, Any] = {"result": await task.result()}
        except Exception as error:  # noqa: BLE001  one failed request never stops the rest
            ended = {"error": error}
        if asked is None:
            completion = Completion(index=index, request=cast("Request", getattr(item, "request", item)), **ended)
        else:
            group, metadata = asked.group, asked.metadata
            completion = Completion(
                index=index, request=asked.request, task=task, group=group, metadata=metadata, **ended
            )
        self._done.put_nowait(completion)

    def _asked(self, item: Request | Labelled) -> Asked:
        if isinstance(item, Request):
            return Asked(item, group=self._group)
        request = item.located() if hasattr(item, "located") else item
        if not isinstance(request, Request):
            raise InvalidRequestError(
                f"requests: {type(item).__name__} given, allowed are {REQUESTS}, and a Job around one"
            )
        return Asked(request, group=item.group or self._group, metadata=item.metadata)

    async def _accepted(self, asked: Asked) -> ImageTask:
        if self._stopped is not None:
            raise self._stopped.with_traceback(None)
        submissions: list[Submission] = []

        def started(submission: Submission) -> None:
            submissions.append(submission)
            self._on_the_way.add(submission)
            # The refusal came while the pictures of this request were looked at.
            if self._stopped is not None:
                self._submitter.give_up(submission, self._stopped)

        try:
            return await self._submitter.submit(asked, started=started)
        except Flux2Error as error:
            if error.meets_every_request:
                self._stop(error)
            raise
        finally:
            self._on_the_way.difference_update(submissions)

    def _stop(self, error: Flux2Error) -> None:
        if self._stopped is None:
            self._stopped = error
            for submission in self._on_the_way:
                self._submitter.give_up(submission, error)


async def in_chunks(items: Iterable[T] | AsyncIterable[T], most: int) -> AsyncGenerator[list[T], None]:
    """Give what can be iterated over in either way, at most so many at a time."""
    if isinstance(items, AsyncIterable):
        chunk: list[T] = []
        async for item in items:
            chunk.append(item)
            if len(chunk) == most:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        return
    iterator = iter(items)
    while chunk := list(islice(iterator, most)):
        yield chunk
