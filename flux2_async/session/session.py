"""The session manager: the one object a user makes."""

import asyncio
import logging
import math
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Self

import aiohttp

import flux2_async
from flux2_async._shown.frames import Secret, made_without_frames, showable
from flux2_async.errors import ConfigurationError, InvalidRequestError, RateLimitedError, TaskNotFoundError
from flux2_async.models import Polling, RateLimit, Request, Timeouts, UploadedFile
from flux2_async.models.image_sources import UploadSource
from flux2_async.models.plain import is_whole, plain
from flux2_async.session.arguments import (
    check_count,
    check_name,
    check_observer,
    check_observers,
    check_resend,
    check_seconds,
    check_task_id,
    checked_ref,
    too_late,
    unrecovered,
)

logger: logging.Logger = logging.getLogger("flux2_async")

# Upstream calls "typically 100+" running tasks fine.
MAX_RUNNING: Final = 100


@made_without_frames
@showable
class Flux2Session:
    """Creates tasks within the account's limit and waits for their pictures.

    Use it as `async with Flux2Session() as flux:`, or call `open` and `aclose`, which may happen in different
    asyncio tasks of one event loop. Once it is closed, or its event loop is, it may be opened again, also in another
    event loop: tasks and statistics begin anew; what was sent lately still counts for the limit, and keys stand for the
    same.

    Args:
        api_key: The account's key. None: the environment variable APIKLEY_API_KEY. Variables are read by `open`.
        base_url: The API's address. None: APIKLEY_BASE_URL, else https://api.apikley.ru.
        upload_url: The address of the upload calls. None: APIKLEY_UPLOAD_URL unless `base_url` was given, else
            `/file-upload` below the API's address.
        service: Another service that speaks the jobs API, such as `KIE`; it has its addresses, the variable of its key
            and its limits, so that `base_url` and `upload_url` are not given besides. None: Apikley, at the addresses
            above.
        headers: Sent with every call to the service, besides those of `service`, which they outrank; never with
            downloads from other hosts, and in no `repr`. Authorization is not among them. None: none.
        user_agent: Added to User-Agent, such as `my-shop/1.4`. None: nothing.
        rate_limit: At most so many new tasks per period; of several, such as per second and per minute, all hold, and
            what the service says of its limits is believed where it is lower. None: no limit on this side; a 429 still
            pauses every submission. `"service"`: what the service allows (Apikley's upstream documents 20 in 10 s).
        max_running: Tasks that may be unfinished at once, in all processes that share the account by `coordination`.
            None: no bound. `"service"`: what the service allows (upstream: "typically 100+").
        max_running_per_group: How many of them one `group` may have at once; further ones wait, and hold up no
            other. With `coordination` in all processes together, where all set it. None: no bound.
        polling: How often to poll whether a task is finished.
        callbacks: Where the service tells that a task is finished, see `flux2_async.receivers`; once one has come,
            polls become rare, until one does not come. None: polling alone.
        coordination: How all processes of the account share its limit, its pauses, the keys of `submit` and the
            callbacks, see `flux2_async.coordination`. None: this process is the only one.
        http: The caller's own aiohttp session, used for all calls but createTask and never closed. createTask goes over
            connections of its own, each of which carries one request; proxies, TLS settings, `trust_env` and what else
            leads the TCPConnector of `http` (resolver, local address, address family, socket factory) are taken over
            for it, its trace configs are not. One with a connector that goes another way needs `connector` as well.
            None: an own one, which like any aiohttp session does not read proxy settings from the environment.
        connector: A function without arguments that makes a new aiohttp connector in the running event loop: for
            createTask where the one of `http` cannot be imitated, such as one that speaks SOCKS, and for all calls
            without `http`. The session closes what it makes. None: a TCPConnector.
        timeouts: Seconds for each kind of call.
        observers: Functions that are told what happens, see `observe`.
        budget: How many credits may be spent, or several such bounds, all of which hold: what might exceed one is not
            sent, and raises `BudgetExceededError`. Processes that share the account by `coordination` share it as well.
            None: no bound.
        private_downloads: Whether `download` follows a redirect that leads from a public host into a private network.
            An address of the service's own may lie there without it.
        key_ttl: Seconds for which `key=` is remembered: longer than whoever repeats a piece of work may
            sleep meanwhile. None: for as long as the session, or the shared state, is there.

    Raises:
        ConfigurationError: Something is missing or malformed; the text says what to change.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        upload_url: str | None = None,
        service: "flux2_async.Service | None" = None,
        headers: Mapping[str, str] | None = None,
        user_agent: str | None = None,
        rate_limit: RateLimit | Iterable[RateLimit] | Literal["service"] | None = "service",
        max_running: int | Literal["service"] | None = "service",
        max_running_per_group: int | None = None,
        polling: Polling = Polling(),  # noqa: B008  frozen
        callbacks: "flux2_async.Callbacks | None" = None,
        coordination: "flux2_async.coordination.Coordination | None" = None,
        http: aiohttp.ClientSession | None = None,
        connector: Callable[[], aiohttp.BaseConnector] | None = None,
        timeouts: Timeouts = Timeouts(),  # noqa: B008  frozen
        private_downloads: bool = False,
        key_ttl: float | None = 86400.0,
        observers: Iterable["flux2_async.Observer"] = (),
        budget: "flux2_async.Budget | Iterable[flux2_async.Budget] | None" = None,
    ) -> None:
        # Error reporters print the local variables of whoever raises.
        key = None if api_key is None else Secret(api_key)
        del api_key
        from flux2_async._http.credentials import check_given, make_credentials  # noqa: PLC0415  who imports the class may make none
        from flux2_async.models import service as services  # noqa: PLC0415  likewise
        from flux2_async.session.lifecycle import Lifecycle  # noqa: PLC0415  likewise
        from flux2_async.session.options import Options  # noqa: PLC0415  likewise
        from flux2_async.tasks.observers import Observers  # noqa: PLC0415  likewise

        check_given(key, base_url, upload_url, service)
        self._service = service or services.APIKLEY
        if taken := services.name_taken(self._service, headers := services.checked_headers(headers or {})):
            raise ConfigurationError(taken)
        self._credentials = partial(
            make_credentials,
            *(key, base_url, upload_url, service),
            headers=Secret(headers),
            user_agent=services.checked_user_agent(user_agent),
        )
        limits = self._service.limits if rate_limit == "service" else rate_limit
        running = self._service.max_running if max_running == "service" else max_running
        self._options = Options(
            rate_limits=services.checked_limits("rate_limit", limits),
            max_running=check_count("max_running", running),
            max_running_per_group=check_count("max_running_per_group", max_running_per_group),
            budgets=budget,
            polling=polling,
            callbacks=callbacks,
            coordination=coordination,
            http=http,
            connector=connector,
            timeouts=timeouts,
            private_downloads=private_downloads,
            key_ttl=key_ttl,
        )
        self._observers = Observers(check_observers(observers))
        if self._options.budgets is not None:
            self._observers.add(self._options.budgets)
        self._life = Lifecycle(self._options, self._observers)

    def __repr__(self) -> str:
        if not hasattr(self, "_life"):
            return "<Flux2Session that could not be made>"
        parts = self._life.parts
        state = "closed" if self._life.closed else "open" if parts else "not open"
        address = parts.credentials.base_url if parts else None
        return f"<Flux2Session {address} {state}>" if address else f"<Flux2Session {state}>"

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    if not TYPE_CHECKING:  # type checkers go on refusing `with`

        def __enter__(self) -> NoReturn:
            """Say what to write instead; Python would not."""
            raise ConfigurationError(
                "write `async with Flux2Session(...)`; in code that is not asynchronous use "
                "`with flux2_async.blocking.BlockingSession(...)`"
            )

        def __exit__(self, *_: object) -> None:
            """Be there: `with` looks for both before it calls either."""

    async def open(self) -> Self:
        """Make the session usable in the running event loop.

        An opening that fails may be tried again; one that is cancelled, or runs into a time-out of yours, closes the
        session.

        Returns:
            The session itself.

        Raises:
            SessionClosedError: It is open, or is closed before it is open.
            ConfigurationError: The environment lacks the key or holds something malformed, callbacks lack the secret
                that a coordination needs, the borrowed aiohttp session cannot be used, or the coordination can never
                work.
            CoordinationError: The coordination cannot be reached, and was made with `on_failure="fail"`.
        """
        if self._options.callbacks is not None:
            self._options.callbacks.read_environment(needed=self._options.coordination is not None)
        await self._life.open(self._credentials())
        return self

    async def aclose(self, grace: float = 5.0) -> "flux2_async.Unsettled":
        """Close the session; calling it again gives the same answer.

        createTask calls under way are given `grace` seconds. What waits then, `open` included, ends with
        `SessionClosedError`; nothing is cancelled at the service.

        Args:
            grace: Seconds.

        Returns:
            The tasks and submissions that were not settled, which are logged as well.

        Raises:
            ConfigurationError: Called in another event loop.
        """
        return await self._life.aclose(grace)

    async def submit(
        self,
        request: Request,
        *,
        key: str | None = None,
        max_wait: float | None = None,
        priority: int = 0,
        ref: str | None = None,
        on_send: "flux2_async.session.OnSend | None" = None,
        steps: "flux2_async.SubmissionSteps | None" = None,
        group: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        resend_within: float | None = None,
    ) -> "flux2_async.ImageTask":
        """Create a task; local pictures are uploaded first.

        Cancelling the caller stops the submission where nothing is lost; a createTask call under way is
        finished, and its task stays in `tasks()`.

        Args:
            request: What to make.
            key: The caller's own name for this piece of work: the same key gives the same task, never a second
                createTask, for `key_ttl`, a day. None: every call is a piece of work of its own.
            max_wait: Seconds to wait for a slot, a permit and a service that cannot be reached. None: as long as it
                takes, but a minute for a service that cannot be reached.
            priority: Higher goes first; within a priority groups take turns, and within a group the oldest call goes
                first. What has waited 60 s has top priority (our choice: nobody waits for ever).
            ref: The name of this submission, to find it again; a service that honours names makes one task of it,
                however often it is sent. None: random.
            on_send: Awaited with the ref immediately before each createTask call; if it raises, nothing is sent
                and its error comes out. One that is sent again under the same name, since its answer was unclear, is
                told no more, and neither are `steps` before it is a task.
            steps: Awaited around each createTask call, for a journal of your own, see `SubmissionSteps`. None: none.
            group: Whose it is, such as a user's name: groups take turns, so that one of them with many requests does
                not hold up the others; kept with the task and told with its events. Where a key is
                joined, the first caller's stays. None: nobody's.
            metadata: Anything of the caller's, kept likewise and neither read nor sent; the mapping is copied, what it
                holds is not. None: nothing.
            headers: Sent with its createTask calls alone, besides the session's, which they outrank; in no `repr`, and
                not kept in a journal. None: none.
            resend_within: Seconds for which the service still keeps the name `ref`, under which this request was sent
                before without a clear answer: it is sent again under it until it is clear. Only for a service that
                honours names (`Service.idempotency_header`). None: a submission that was never sent.

        Returns:
            The handle; the service has accepted the task.

        Raises:
            InvalidRequestError: The request, a picture, the key or another argument cannot be used; nothing was sent.
            RateLimitedError: `max_wait` does not suffice; nothing was created.
            ApiError: The service refused; nothing was created.
            TransportError: The service could not be reached until `max_wait`, else for a minute, or, with what cannot
                change, at once; nothing was created.
            BudgetExceededError: It might exceed a budget; nothing was sent.
            AmbiguousSubmitError: The task may exist and cost money; it was not sent again. From a service that honours
                names: it is not clear within `max_wait`, after which it is sent again in the background; or not in the
                time for which the service keeps its name.
            CoordinationError: Under coordination, when the shared state cannot be asked: with a `key`, a budget, or
                `on_failure="fail"`; nothing was sent.
            SessionClosedError: The session is not open.
            ConfigurationError: Called in another event loop.
        """
        parts = self._life.usable()
        hidden = None if headers is None else Secret(headers)
        del headers
        if resend_within is not None:
            check_resend(resend_within, ref, parts.credentials.service)
        asked = parts.asked(
            request,
            key=key,
            max_wait=max_wait,
            priority=priority,
            ref=checked_ref(ref),
            group=group,
            metadata=metadata,
            headers=hidden,
            on_send=on_send,
            steps=steps,
            resend_within=resend_within,
        )
        return await parts.submitter.submit(parts.checked(asked))

    def enqueue(
        self,
        request: Request,
        *,
        key: str | None = None,
        max_wait: float | None = None,
        priority: int = 0,
        ref: str | None = None,
        on_send: "flux2_async.session.OnSend | None" = None,
        group: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "flux2_async.SubmissionHandle":
        """Do what `submit` does, but return a handle at once, to see the place in the queue and to leave it.

        The submission goes on whether or not anybody awaits the handle: only `handle.withdraw()`, `max_wait` and the
        session's closing end it. An error that nobody asks for stays silent.

        Example:
            handle = flux.enqueue(request, group="alice")
            print(handle.state, handle.position)
            task = await handle

        Args:
            request: As for `submit`, like all others.
            key: As for `submit`; where it is joined, `withdraw` takes this handle away alone.
            max_wait: As for `submit`.
            priority: As for `submit`.
            ref: As for `submit`.
            on_send: As for `submit`.
            group: As for `submit`.
            metadata: As for `submit`.
            headers: As for `submit`.

        Returns:
            The handle; awaiting it gives the task, or raises what `submit` raises.

        Raises:
            InvalidRequestError: An argument cannot be used. Pictures and keys are checked later.
            SessionClosedError: The session is not open.
            ConfigurationError: Called in another event loop.
        """
        parts = self._life.usable()
        hidden = None if headers is None else Secret(headers)
        del headers
        asked = parts.asked(
            request,
            key=key,
            max_wait=max_wait,
            priority=priority,
            ref=checked_ref(ref),
            group=group,
            metadata=metadata,
            headers=hidden,
            on_send=on_send,
        )
        return parts.enqueued.add(parts.checked(asked))

    async def generate(
        self,
        request: Request,
        *,
        key: str | None = None,
        timeout: float | None = None,
        group: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "flux2_async.ImageResult":
        """Submit a request and wait for its picture.

        Args:
            request: What to make.
            key: As for `submit`: called again with it, such as after a time-out, this waits for the same task.
            timeout: Seconds for the wait for a slot, a permit and the picture together. None: as long as it takes.
            group: As for `submit`.
            metadata: As for `submit`.
            headers: As for `submit`.

        Returns:
            The addresses of the pictures and the final record.

        Raises:
            Flux2Error: As `submit` and `ImageTask.result`.
        """
        given = Secret(headers)
        del headers
        check_seconds("timeout", timeout)
        begun = asyncio.get_running_loop().time()
        try:
            task = await self.submit(
                request, key=key, max_wait=timeout, group=group, metadata=metadata, headers=given.reveal()
            )
        except RateLimitedError as error:
            raise error if timeout is None else too_late(error, f"timeout={timeout:g}") from None
        passed = asyncio.get_running_loop().time() - begun
        if timeout is not None and not await task.wait(max(timeout - passed, 0.0)):
            from flux2_async.tasks.handle import unfinished  # noqa: PLC0415  loaded when there is a task

            raise unfinished(task, timeout)
        return await task.result()

    def as_completed(
        self, requests: "flux2_async.session.Requests", *, max_running: int | None = None, group: str | None = None
    ) -> AsyncGenerator["flux2_async.Completion", None]:
        """Submit many requests and yield each when it is finished, in bounded memory.

        One failed request never stops the rest. A refusal that would meet every request (401, 402, 433, 505) stops
        the sending, and the rest come back unsent with that error. `break` stops the sending; what was sent stays
        in `tasks()`.

        Example:
            async for done in flux.as_completed(TextToImage(f"house {number}") for number in range(3)):
                print(done.index, done.error or done.result.urls)

        Args:
            requests: Any iterable, also asynchronous and endless; taken in as the consumer keeps up. One with data
                that belongs to it is given as a `flux2_async.batch.Job`: its `group` and `extra` are those of task,
                events and completion.
            max_running: Requests taken in and not yet given out. None: the session's `max_running`, else 100.
            group: As for `submit`, of all these requests that name none.

        Yields:
            Completions in the order in which they finish.

        Raises:
            Exception: What `requests` itself raises, after the rest is given out.
            SessionClosedError: The session is not open, told before the iteration begins.
            ConfigurationError: `max_running` cannot be used, or another event loop; told likewise.
            InvalidRequestError: `requests` is no iterable, or `group` cannot be used; told likewise.
        """
        parts = self._life.usable()
        if not isinstance(requests, Iterable | AsyncIterable):
            given = type(requests).__name__
            raise InvalidRequestError(f"requests: {given} given, it must be an iterable; put a single one into a list")
        limit = check_count("max_running", max_running) or self._options.max_running or MAX_RUNNING

        # Handed on instead of wrapped: of two generators that nobody closes, the loop would close both at once.
        from flux2_async.session.as_completed import Completions  # noqa: PLC0415  loaded at first need

        return Completions(submitter=parts.submitter, limit=limit, group=check_name("group", group)).run(requests)

    def attach(self, task_id: str) -> "flux2_async.ImageTask":
        """Give a handle for a task that was submitted earlier or elsewhere, without asking the service.

        Args:
            task_id: Its id.

        Returns:
            The handle; the same one when the task is outstanding here already.

        Raises:
            InvalidRequestError: This cannot be a task id.
            SessionClosedError: The session is not open.
        """
        return self._life.usable().watcher.attach(check_task_id(task_id), asked=True)

    def tasks(self) -> tuple["flux2_async.ImageTask", ...]:
        """Give the handles of everything outstanding, also of what nobody waits for any more."""
        return self._life.usable().watcher.tasks()

    async def recover(self, ref: str, *, timeout: float | None = None) -> "flux2_async.ImageTask":
        """Wait for the callback that tells which task an unclear submission became.

        A submission that is still under way here is waited for as well: its answer may be the first to tell.

        Example:
            try:
                task = await flux.submit(request)
            except AmbiguousSubmitError as error:
                task = await flux.recover(error.ref, timeout=600)

        Args:
            ref: `AmbiguousSubmitError.ref`, also of an earlier session with the same callback address and secret.
            timeout: Seconds. None: `Polling.give_up_after` (20 minutes unless you said otherwise, without end where
                that is None), counted from when the submission is not under way here, since the callback comes when
                the task has ended.

        Returns:
            The handle. A key that stood for the submission stands for this task from now on.

        Raises:
            TimeoutError: No callback came in time: it is still not known whether the task exists. Ask again, or check
                the task log of your account: one that was never accepted is not found by waiting.
            ConfigurationError: The session was made without `callbacks`.
            SessionClosedError: The session is not open, or was closed meanwhile.
            Exception: The submission was under way, and became no task: what `submit` raised.
        """
        parts, ref = self._life.usable(), plain(ref)
        submission, give_up_after = parts.submitter.under_way(ref), self._options.polling.give_up_after
        bound = asyncio.timeout(timeout)
        try:
            async with bound:
                if parts.inbox is not None:
                    return await parts.inbox.recover(ref, submission, bound, give_up_after)
                if submission is not None:
                    await submission.outcome.wait()
                    if submission.known:
                        return submission.outcome.get()
        except TimeoutError:
            if not bound.expired():
                raise
            raise unrecovered(ref, give_up_after if timeout is None else timeout) from None
        raise ConfigurationError(
            "recover: only a callback can tell which task a submission became; open the session with "
            "callbacks=Callbacks(...), or check the task log of your account"
        )

    async def fetch_record(self, task_id: str) -> "flux2_async.TaskRecord":
        """Ask for a task's record once.

        Args:
            task_id: The task; it need not be of this session.

        Returns:
            What the service says of it now.

        Raises:
            TaskNotFoundError: The service does not know the task (a new one may be invisible for a moment).
            ApiError: The service refused.
            TransportError: No answer came.
            ProtocolError: The answer cannot be understood.
        """
        record = await self._life.usable().api.record(check_task_id(task_id))
        if record is None:
            raise TaskNotFoundError(
                f"the service does not know task {task_id}: wrong id, another account, deleted, or only just made",
                task_id=task_id,
            )
        return record

    async def upload(self, source: UploadSource, *, file_name: str | None = None) -> UploadedFile:
        """Upload a picture, to be used in `images` of several requests; `submit` does this by itself.

        Args:
            source: A path, the content, or an open binary file, which is read from where it stands (also one to be
                awaited, as web frameworks give them); JPEG, PNG or WebP of at most 10 MB (documented), or what the
                service takes. Or an http(s) address that the service is to fetch, each time anew and in at most 30 s
                (documented): of a host that the model cannot reach, or that gives the file for a short time.
            file_name: A name to recognise it by; a hash of the content is added. None: the hash alone.

        Returns:
            The file at the service; the same content is uploaded once per session. Of one that the service fetched
            `size` and `mime_type` are what it says, 0 and empty where it says nothing.

        Raises:
            InvalidRequestError: Not a picture the service takes.
            ApiError: The service refused.
            TransportError: No answer came in several tries.
        """
        file = await self._life.usable().files.upload(source, file_name=file_name)
        if self._observers:
            self._observers.tell("Uploaded", file=file)
        return file

    async def download(self, result: "flux2_async.ImageResult", directory: str | os.PathLike[str]) -> list[Path]:
        """Save the pictures of a result as `<task id>-<n>.<ext>`; files appear whole or not at all.

        Args:
            result: What `ImageTask.result` gave.
            directory: A folder, made when it is missing.

        Returns:
            The files, in the order of `result.urls`.

        Raises:
            InvalidRequestError: `result` is none, or the folder cannot be written; nothing was fetched.
            ApiError: The address is gone and the service gives no new one.
            TransportError: The download broke off in several tries.
            ConfigurationError: A public host leads into a private network, see `private_downloads`.
            ProtocolError: What came in several tries is text, or nothing shows that it is whole.
            TaskError: A picture is larger than 200 MB (our choice: what never ends must not fill the disk).
            OSError: The disk is full or broken.
        """
        paths = await self._life.usable().files.download(result, directory)
        if self._observers:
            self._observers.tell("Downloaded", task_id=result.task_id, paths=tuple(paths))
        return paths

    async def download_url(self, url: str) -> str:
        """Ask for a direct link to a file that the service made.

        Args:
            url: One of a result's `urls`.

        Returns:
            An address that needs no key and is valid for 20 minutes (documented).

        Raises:
            ApiError: The service refused, such as RequestRejectedError (422) for a file of somebody else's.
        """
        return await self._life.usable().files.download_url(url)

    async def credits(self) -> float:
        """Ask for the account's balance, in credits.

        Raises:
            ApiError: The service refused.
            TransportError: No answer came.
        """
        return await self._life.usable().api.credits()

    async def drain(self, timeout: float | None = None) -> None:
        """Wait until no submission and no task is outstanding.

        Args:
            timeout: Seconds. None: as long as it takes.

        Raises:
            TimeoutError: Something is still outstanding.
        """
        parts = self._life.usable()
        async with asyncio.timeout(timeout):
            while parts.watcher or parts.submitter or parts.enqueued:
                await (parts.enqueued or parts.submitter or parts.watcher).ended.wait()

    def remaining(self, more: int = 0, *, max_running: int | None = None) -> float | None:
        """Say how long it takes until all that is outstanding has ended, by what the session has learned.

        Args:
            more: The number of further requests, of the same kinds as those that are outstanding.
            max_running: Requests at once. None: as many as the session has.

        Returns:
            Seconds, 0.0 when there is nothing; of the last tasks the usual time counts, not that of a straggler. None:
            not known, while the service or the coordination is away. Of a limit that processes share an equal part
            counts, for as many as wait.

        Raises:
            ConfigurationError: An argument cannot be used.
            SessionClosedError: The session is not open.
        """
        if not (is_whole(more) and more >= 0):
            raise ConfigurationError(f"more: {more!r} given, it must be a whole number of 0 or more")
        most = check_count("max_running", max_running)
        return self._life.usable().submitter.outlook.remaining(more, math.inf if most is None else most)

    def notify(self, task_id: str) -> None:
        """Poll a task now, because it is said to be finished.

        Args:
            task_id: The task; an id that this session does not watch is ignored.
        """
        self._life.usable().watcher.notify(plain(task_id))

    def observe(self, observer: "flux2_async.Observer") -> Callable[[], None]:
        """Tell a function from now on what happens, also before the session is opened and when it is opened again.

        Example:
            end = flux.observe(lambda event: print(event) if isinstance(event, Paused) else None)
            await flux.generate(request)
            end()

        Args:
            observer: A plain function, called in the event loop with a `SessionEvent` each time: `Queued` and
                `SubmissionChanged` for every step of a submission, `Paused` and `LimitLearned` after 429s,
                `OutageBegan` and `OutageEnded`, `Attached`, `Polled`, `StateChanged` and `Settled` of tasks, `Uploaded`
                and `Downloaded` of files. It decides nothing; what it raises is logged once. One with an attribute
                `wants`, a set of these classes and of members of `SubmissionEvent`, is told of those alone.

        Returns:
            A function without arguments that ends it.

        Raises:
            ConfigurationError: `observer` cannot be called, or is asynchronous, or its `wants` is no such set.
        """
        self._observers.add(check_observer(observer))
        return partial(self._observers.remove, observer)

    def estimate(self, requests: Request | Iterable[Request]) -> "flux2_async.Estimate":
        """Say what requests will cost, and how long they will take, without asking the service or sending anything.

        Args:
            requests: One, or any finite iterable.

        Returns:
            Credits and seconds, by what the session has seen, otherwise by what is documented.

        Raises:
            InvalidRequestError: One is none.
        """
        from flux2_async.session.estimate import estimate_of  # noqa: PLC0415  few ask
        from flux2_async.tasks.schedule import Schedules  # noqa: PLC0415  loaded at first need

        parts, options = self._life.parts, self._options
        return estimate_of(
            requests,
            prices=self._observers.prices,
            schedules=Schedules(options.polling) if parts is None else parts.schedules,
            waiting=0 if parts is None else parts.slots.waiting + parts.limiter.waiting,
            rate_limit=options.rate_limit,
            max_running=options.max_running,
        )

    def statistics(self) -> "flux2_async.SessionStatistics":
        """Give a snapshot of what the session has done and is doing since it was opened; also after it was closed.

        Raises:
            SessionClosedError: It was never opened.
        """
        from flux2_async.session.parts import statistics_of  # noqa: PLC0415  loaded when it was opened

        return statistics_of(self._life.last(), self._observers.steps)

    @property
    def service(self) -> "flux2_async.Service":
        """What the session was given; Apikley without, whatever address the environment says."""
        return self._service

    @property
    def rate_limit(self) -> RateLimit | None:
        """What the session keeps to; of several the one that allows the fewest in the long run."""
        return self._options.rate_limit

    @property
    def rate_limits(self) -> tuple[RateLimit, ...]:
        """All that the session keeps to."""
        return self._options.rate_limits

    @property
    def max_running(self) -> int | None:
        """What the session keeps to."""
        return self._options.max_running

    def pause(self, seconds: float) -> None:
        """Send nothing for at least `seconds` from now on, at most an hour; a longer pause stays.

        After a crash this waits for what the last process sent to leave the limit's window.

        Args:
            seconds: How long, from now on.

        Raises:
            ConfigurationError: It is no such number.
            SessionClosedError: The session is not open.
        """
        check_seconds("seconds", seconds)
        self._life.usable().limiter.pause(seconds)

    def give_up_after(self, task: "flux2_async.ImageTask", seconds: float) -> None:
        """Settle a task that is not finished in time, as `Polling(give_up_after=)` does for all.

        Args:
            task: A task of this session.
            seconds: How long it may be watched, counted as for `Polling`.

        Raises:
            ConfigurationError: It is no such number.
            SessionClosedError: The session is not open.
        """
        check_seconds("seconds", seconds)
        self._life.usable().watcher.give_up_after(task, seconds)

    # For receivers of callbacks, those of `flux2_async.receivers` and others.

    @property
    def callback_settings(self) -> "flux2_async.session.CallbackSettings | None":
        """What addresses and bodies of callbacks are checked by; None for a session that expects none."""
        return self._options.callbacks

    def accepts_callbacks(self) -> bool:
        """Whether `deliver` takes callbacks now: the session is open, in this event loop."""
        parts = None if self._life.closed else self._life.parts
        if parts is None:
            return False
        if asyncio.get_running_loop() is not parts.loop:
            logger.error(
                "a callback came in another event loop than the session's; open the session in the server's loop"
            )
            return False
        return True

    async def deliver(self, ref: str, callback: "flux2_async.webhooks.Callback") -> bool:
        """Use a callback whose address was checked, see `flux2_async.webhooks`.

        It waits only where processes share an account and nothing but this callback tells of the task.

        Args:
            ref: The submission at whose address it came.
            callback: What its body says.

        Returns:
            Whether it is safe to answer 200. False: the session is not open, or could not keep the callback in the
            shared state within 5 seconds (our choice: services are documented to wait for 15) and goes on trying;
            answer 503, so that the sender comes again.
        """
        parts = None if self._life.closed else self._life.parts
        return parts is not None and parts.inbox is not None and await parts.inbox.deliver(ref, callback)
