"""`flux2 mcp`: the session as tools of an agent, by the Model Context Protocol over stdin and stdout.

Every call that pays has a key, and the keys are in the file of `HostCoordination`: a client that runs into a time-out,
starts the server anew and asks again is given the task that it has. A flag for "another one" would break that, since it
is repeated with the call; so another picture of the same words has another `request_id`.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import anyio.to_thread
import attrs
from fastmcp import Context, FastMCP
from fastmcp.exceptions import ResourceError, ToolError
from fastmcp.resources import ResourceContent, ResourceResult
from fastmcp.tools import ToolResult
from mcp_types import ContentBlock, ResourceLink, TextContent

from flux2_async import errors
from flux2_async._protocol.file_types import TAKEN
from flux2_async._protocol.media import TASK_ID
from flux2_async._shown.version import VERSION
from flux2_async.cli.mcp_tasks import Tasks, at_once
from flux2_async.cli.options import Service, check_writable
from flux2_async.cli.screen import INTERRUPTED, LOG, Screen, UsageError, one_line
from flux2_async.cli.service import opened
from flux2_async.models import ImageResult, ImageToImage, Polling, Request, TextToImage
from flux2_async.models.budget import Budget
from flux2_async.models.image_sources import is_url
from flux2_async.models.requests import AspectRatio, FixedAspectRatio, Resolution, Tier
from flux2_async.session.arguments import too_late
from flux2_async.session.keys import fingerprint
from flux2_async.session.session import Flux2Session
from flux2_async.tasks.handle import ImageTask

DAY: Final = 86400.0
# Most clients give a call a minute.
WAIT: Final = 45.0
# Seconds between two notifications of the progress.
EVERY: Final = 2.0
# Seconds for getting a task where nobody waits for its picture.
LEAST: Final = 10.0
# Pictures of one estimate.
MOST: Final = 10_000
MIME_TYPES: Final = {f".{kind.extension}": kind.mime_type for kind in TAKEN}
PICTURE: Final = "flux2://pictures/{task_id}/{number}"
READS: Final = {"readOnlyHint": True, "openWorldHint": True}
PAYS: Final = {"readOnlyHint": False, "destructiveHint": False, "idempotentHint": True, "openWorldHint": True}
INSTRUCTIONS: Final = (
    "Makes and edits pictures with Flux-2. Each costs credits of the user's account: `estimate` tells how many. A "
    "picture takes 10 to 100 seconds; where a call ends before it is finished, `wait` goes on at no cost. The same "
    "call again gives the same picture and is not paid again, so repeat a call whenever its answer was lost."
)

Prompt: TypeAlias = Annotated[str, "What the picture shows, 3 to 5000 characters."]
Images: TypeAlias = Annotated[
    list[str], "1 to 8 pictures to work from: http(s) addresses, or paths of JPEG, PNG or WebP files."
]
Model: TypeAlias = Annotated[Tier, "The model; flex is the more expensive one, see estimate."]
Seconds: TypeAlias = Annotated[float, "Seconds to wait for the picture; 0 gives the task's id as soon as there is one."]
RequestId: TypeAlias = Annotated[
    str | None,
    "A name of yours for this picture: within 24 hours one name is one picture, and another name another picture of "
    "the same words. Without it the arguments are the name.",
]
TaskId: TypeAlias = Annotated[str, "The id that generate or edit gave."]


async def serve(screen: Screen, service: Service, folder: Path, max_credits: float | None) -> None:
    """Serve the agent on stdin and stdout until it closes them."""
    try:
        budget = None if max_credits is None else Budget(max_credits, per=DAY)
    except errors.ConfigurationError as error:
        raise UsageError(str(error).replace("Budget.credits", "--max-credits")) from None
    service.check()
    check_writable(folder, "--out: the folder {!r} cannot be written ({}); nothing was sent", make=True)
    # stdout belongs to the protocol.
    logging.basicConfig(level=logging.WARNING)
    # All of it is shown by that.
    logging.getLogger("flux2_async").removeHandler(LOG)
    try:
        async with opened(service, polling=Polling(), coordination="host", budget=budget) as flux:
            server = Agent(flux, folder).server()
            serving = asyncio.create_task(server.run_stdio_async(show_banner=False, log_level="WARNING"))
            await asyncio.wait([serving])
            await serving
    except asyncio.CancelledError:
        # The session is closed. A thread reads stdin for as long as it is open, and Python would wait for it.
        screen.error("interrupted")
        os._exit(INTERRUPTED)


@attrs.frozen
class Agent:
    """What an agent can do with an open session, and a folder for pictures."""

    flux: Flux2Session
    folder: Path

    def server(self) -> FastMCP[Any]:
        """Make the server of these tools."""
        server: FastMCP[Any] = FastMCP("flux2", INSTRUCTIONS, version=VERSION)
        paying: list[Callable[..., Any]] = [self.generate, self.edit]
        reading: list[Callable[..., Any]] = [self.wait, self.get_task, self.credits, self.estimate]
        for tool in [*paying, *reading]:
            server.tool(_errors_in_words()(tool), annotations=PAYS if tool in paying else READS)
        long = [tool.__name__ for tool in (*paying, self.wait)]
        server.add_extension(Tasks(self.flux, long, _errors_in_words()(partial(self._finish, wait_seconds=0.0))))
        server.resource(PICTURE, name="picture", description="A finished picture.")(self.picture)
        return server

    async def generate(
        self,
        context: Context,
        *,
        prompt: Prompt,
        aspect_ratio: FixedAspectRatio = "1:1",
        resolution: Resolution = "1K",
        tier: Model = "flex",
        request_id: RequestId = None,
        wait_seconds: Seconds = WAIT,
    ) -> ToolResult:
        """Make a picture from words. Costs credits, once, however often the same call is made within 24 hours.

        Gives the saved file, the address and a resource of the picture; or, where it is not finished within
        `wait_seconds`, the task's id for `wait`.
        """
        request = TextToImage(prompt, aspect_ratio=aspect_ratio, resolution=resolution, tier=tier)
        return await self._make(context, request, request_id, wait_seconds)

    async def edit(
        self,
        context: Context,
        *,
        prompt: Prompt,
        images: Images,
        aspect_ratio: AspectRatio = "auto",
        resolution: Resolution = "1K",
        tier: Model = "flex",
        request_id: RequestId = None,
        wait_seconds: Seconds = WAIT,
    ) -> ToolResult:
        """Make a picture from words and pictures. Costs credits, once, however often the same call is made.

        Gives the same as `generate`. A file that was changed since makes another call of it.
        """
        request = ImageToImage(prompt, images=images, aspect_ratio=aspect_ratio, resolution=resolution, tier=tier)
        return await self._make(context, request, request_id, wait_seconds)

    async def wait(self, context: Context, task_id: TaskId, wait_seconds: Seconds = WAIT) -> ToolResult:
        """Wait for the picture of a task and save it, at no cost; also of one of another day, or of a call that broke.

        Gives the same as `generate`.
        """
        task = self.flux.attach(task_id)
        async with _progress(context, wait_seconds, lambda: f"task {task.id}: {task.state}"):
            return await self._finish(task, wait_seconds)

    async def get_task(self, task_id: TaskId) -> dict[str, Any]:
        """Say where a task is now, without waiting."""
        record = await self.flux.fetch_record(task_id)
        return {
            "task_id": record.task_id,
            "state": str(record.state),
            "urls": list(record.result_urls),
            "failure": record.fail_message,
            "credits": record.credits_consumed,
        }

    async def credits(self) -> dict[str, float]:
        """Show the account's balance in credits."""
        return {"credits": await self.flux.credits()}

    async def estimate(
        self, pictures: Annotated[int, "How many."] = 1, resolution: Resolution = "1K", tier: Model = "flex"
    ) -> dict[str, Any]:
        """Tell what pictures are going to cost (credits) and how long they take (seconds), without making any.

        `seen` says whether the price is what such a picture has cost here, or else the documented one.
        """
        if not 1 <= pictures <= MOST:
            raise errors.InvalidRequestError(f"pictures: {pictures} given, allowed are 1 to {MOST}")
        request = TextToImage("any picture", resolution=resolution, tier=tier)
        return attrs.asdict(self.flux.estimate([request] * pictures))

    async def picture(self, task_id: str, number: int) -> ResourceResult:
        """Give the saved file of a picture; one that is not here is fetched, as long as the service has it."""
        # Anything else might lead out of the folder.
        if not TASK_ID.fullmatch(task_id):
            raise ResourceError(f"{task_id!r} is no task id")
        if not (files := self._saved(task_id, number)):
            async with _errors_in_words():
                await self.flux.download(await self.flux.attach(task_id).result(WAIT), self.folder)
            files = self._saved(task_id, number)
        if not files:
            raise ResourceError(f"task {task_id} has no picture {number}")
        content = await anyio.to_thread.run_sync(files[0].read_bytes)
        return ResourceResult([ResourceContent(content, mime_type=MIME_TYPES[files[0].suffix])])

    def _saved(self, task_id: str, number: int) -> list[Path]:
        return [file for file in sorted(self.folder.glob(f"{task_id}-{number}.*")) if file.suffix in MIME_TYPES]

    async def _make(
        self, context: Context, request: Request, request_id: str | None, wait_seconds: float
    ) -> ToolResult:
        task: ImageTask | None = None
        begun = asyncio.get_running_loop().time()
        # A picture that could be asked for at once is not missed for want of a moment.
        patience = max(wait_seconds, LEAST)
        key = f"mcp {request_id}" if request_id else await _key(request)

        async with _progress(context, patience, lambda: f"task {task.id}: {task.state}" if task else "not sent yet"):
            try:
                task = await self.flux.submit(request, key=key, max_wait=patience)
            except errors.RateLimitedError as error:
                raise too_late(error, f"wait_seconds={wait_seconds:g}") from None
            passed = asyncio.get_running_loop().time() - begun
            return await self._finish(task, max(wait_seconds - passed, 0.0))

    async def _finish(self, task: ImageTask, wait_seconds: float) -> ToolResult:
        try:
            result = await task.result(0.0 if at_once.get() else wait_seconds)
        except errors.TaskTimeoutError as error:
            if error.given_up:
                raise
            text = f"{one_line(str(error))}: call wait with this task_id"
            return ToolResult(text, {"task_id": task.id, "state": str(task.state), "urls": [], "files": []})
        try:
            files = await self.flux.download(result, self.folder)
        except (errors.Flux2Error, OSError) as error:
            raise ToolError(
                f"{one_line(str(error))}; the picture is at {', '.join(result.urls)} for about a day, and wait with "
                f"task_id {task.id} saves it at no cost"
            ) from None
        return _shown(result, files)


def _shown(result: ImageResult, files: list[Path]) -> ToolResult:
    """Give a finished picture: words, resources and data."""
    record = result.record
    content: list[ContentBlock] = [
        TextContent(
            type="text",
            text=f"Task {result.task_id} is finished. Saved: {', '.join(map(str, files))}. "
            f"Addresses, for about a day: {', '.join(result.urls)}",
        )
    ]
    for number, file in enumerate(files, 1):
        uri = PICTURE.format(task_id=result.task_id, number=number)
        kind = MIME_TYPES.get(file.suffix, "application/octet-stream")
        content.append(ResourceLink(uri=uri, name=file.name, mime_type=kind, size=file.stat().st_size))
    data = {
        "task_id": result.task_id,
        "state": str(record.state),
        "urls": list(result.urls),
        "files": [str(file) for file in files],
        "credits": record.credits_consumed,
        "created": None if record.create_time is None else record.create_time.isoformat(),
    }
    return ToolResult(content, data)


async def _key(request: Request) -> str:
    """Give the key of a call without a name: what it asks for, with the state of the files that it names."""
    images = request.images if isinstance(request, ImageToImage) else ()
    states = [_state_of(image) for image in images if isinstance(image, str) and not is_url(image)]
    return f"mcp {await fingerprint(request)} {states}" if states else f"mcp {await fingerprint(request)}"


def _state_of(path: str) -> str:
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        # That it cannot be read is said when it is read.
        return ""
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"


@asynccontextmanager
async def _progress(context: Context, seconds: float, message: Callable[[], str]) -> AsyncIterator[None]:
    """Notify the client of the time that passes, out of the seconds of the call."""
    loop = asyncio.get_running_loop()
    begun = loop.time()

    async def tell() -> None:
        while True:
            await context.report_progress(min(round(loop.time() - begun, 1), seconds), seconds, message())
            await asyncio.sleep(EVERY)

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()
        # Who does not listen any more still gets the picture.
        await asyncio.wait([telling])


@asynccontextmanager
async def _errors_in_words() -> AsyncIterator[None]:
    """Turn an error of the session into words for an agent: what went wrong, whether it was paid for, what to do."""
    try:
        yield
    except (errors.Flux2Error, OSError) as error:
        # Who asked is told; the log is for what nobody expects.
        raise ToolError(f"{one_line(str(error)).rstrip('.;')}{_advice(error)}", log_level=logging.DEBUG) from None


def _advice(error: Exception) -> str:
    if isinstance(error, errors.BudgetExceededError):
        return "; the budget is --max-credits of this server, and only the user can raise it"
    if isinstance(error, errors.InvalidRequestError) and str(error).startswith("key: "):
        return ". The key is the request_id: choose another"
    if isinstance(error, errors.AmbiguousSubmitError):
        return "; tell the user, since it may be paid for. The same call gives this error and is not sent again"
    if isinstance(error, errors.TaskFailedError):
        return "; nothing was charged unless the record says so. Change the prompt, or try again with a new request_id"
    if isinstance(error, errors.RateLimitedError):
        return "; nothing was sent: make the same call again"
    return ""
