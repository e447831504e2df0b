"""What a batch is asked to do: requests with a name, and how one is recognised in the next run."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from flux2_async._http.local_picture import check_picture
from flux2_async._protocol.media import MAX_PICTURE
from flux2_async.batch.outcomes import group_of
from flux2_async.errors import InvalidRequestError
from flux2_async.models import ImageSource, ImageToImage, JobRequest, Request, TextToImage, UploadedFile
from flux2_async.models.image_sources import is_url
from flux2_async.models.plain import is_whole, plain
from flux2_async.models.plain_json import plain_object, shown
from flux2_async.models.requests import REQUESTS, facts_of, images_of, names_of_images, request_of
from flux2_async.session.arguments import check_name

MAX_ID: Final = 256
MAX_SHOWN: Final = 5
# What SQLite can hold.
MAX_LINE: Final = 2**63 - 1
# In another order nothing that stands in a journal would be found again.
_ORDER: Final = ("model", "prompt", "images", "aspect_ratio", "resolution", "extra_input")


def _plain_text(value: Any) -> Any:
    return plain(value)


def _check_id(_: object, __: "attrs.Attribute[Any]", value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID or not value.isprintable() or not value.strip():
        raise InvalidRequestError(
            f"id: {shown(value)} given, it must be text of 1 to {MAX_ID} characters without line breaks"
        )


def _check_request(_: object, __: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, Request):
        raise InvalidRequestError(f"request: {type(value).__name__} given, allowed are {REQUESTS}")
    if isinstance(value, JobRequest):
        return
    base = ImageToImage if isinstance(value, ImageToImage) else TextToImage
    if type(value).model is not base.model:
        raise InvalidRequestError(
            f"request: {type(value).__name__} has a model of its own, which a journal does not keep; use submit for it"
        )


def _plain_extra(value: object) -> dict[str, Any]:
    return plain_object("extra", value)


def _check_line(_: object, __: "attrs.Attribute[Any]", value: object) -> None:
    if not is_whole(value) or not 0 <= value <= MAX_LINE:
        raise InvalidRequestError(f"line: {shown(value)} given, it must be a whole number of 0 to {MAX_LINE}")


def _folder(value: Any) -> Path | None:
    if value is None:
        return None
    try:
        return Path(os.fsdecode(value))
    except TypeError:
        raise InvalidRequestError(f"folder: {type(value).__name__} given, it must be a path or None") from None


@attrs.frozen
class Job:
    """One request of a batch.

    Attributes:
        request: What to make. A batch outlives its process, so that pictures are given by path or address.
        id: The caller's own name, by which the next run knows it again. None: by its content, and equal ones by
            their number.
        line: The line of the input it comes from, from 1; 0 for its place among the requests.
        folder: Where relative paths begin; None: the working directory.
        extra: Whatever else is to be kept with it, as JSON; what it is submitted with as `metadata`.
        group: Whose it is, see `Flux2Session.submit`; it stands in `extra` as well. None: what stands there, if any.

    Raises:
        InvalidRequestError: A value cannot be used.
    """

    request: Request = attrs.field(validator=_check_request)
    id: str | None = attrs.field(default=None, converter=_plain_text, validator=_check_id, kw_only=True)
    line: int = attrs.field(default=0, validator=_check_line, kw_only=True)
    folder: Path | None = attrs.field(default=None, converter=_folder, kw_only=True)
    extra: Mapping[str, Any] = attrs.field(factory=dict, converter=_plain_extra, kw_only=True, repr=False)
    group: str | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        group = check_name("group", self.group)
        if group is not None:
            object.__setattr__(self, "extra", {**self.extra, "group": group})
        object.__setattr__(self, "group", group_of(self.extra))

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """What it is submitted with: `extra`; None where that is empty."""
        return self.extra or None

    def located(self) -> Request:
        """Give the request with absolute paths, so that `folder` counts wherever it is submitted.

        Raises:
            InvalidRequestError: A picture is given by its content, which has no place.
        """
        return self.request if self.folder is None else request_of(facts_of(self.request, located(self)))


@attrs.frozen
class BadLine:
    """A line of the input that cannot be used.

    Attributes:
        line: Its number, from 1.
        reason: Why, and what is allowed.
        id: The id that it gives its request, which no other line may have. None: it gives none.
    """

    line: int
    reason: str
    id: str | None = None

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class InvalidInputError(InvalidRequestError):
    """Some of the input cannot be used, and nothing was sent.

    Attributes:
        lines: What is wrong, the first hundred of it.
        count: All of it.
    """

    lines: tuple[BadLine, ...]
    count: int

    def __init__(self, lines: tuple[BadLine, ...], count: int) -> None:
        shown = "; ".join(map(str, lines[:MAX_SHOWN]))
        more = f"; and {count - MAX_SHOWN} more" if count > MAX_SHOWN else ""
        super().__init__(f"{count} of the requests cannot be used, so nothing was sent: {shown}{more}")
        self.lines = lines
        self.count = count


def job_of(item: object) -> Job:
    """Take what the caller gave as a job, or raise `InvalidRequestError`."""
    if isinstance(item, Job):
        return item
    if isinstance(item, Request):
        return Job(item)
    raise InvalidRequestError(f"requests: {type(item).__name__} given, allowed are {REQUESTS}, and a Job around one")


def located(job: Job) -> list[str]:
    """Give the pictures of a job as absolute paths and addresses; `InvalidRequestError` where one is its content."""
    named = zip(names_of_images(job.request), images_of(job.request), strict=True)
    return [_located(name, image, job.folder) for name, image in named]


def check_files(request: Request, images: list[str], most: int = MAX_PICTURE) -> None:
    """Raise `InvalidRequestError` where a `located` local picture, of so many bytes at most, cannot be read; blocks."""
    for name, image in zip(names_of_images(request), images, strict=True):
        if not is_url(image):
            check_picture(name, Path(image), most)


def digest_of(request: Request) -> bytes:
    """Give what stands for the content of a request with `located` pictures, whose names are Unicode.

    Paths count as they were given, so that folders may move.
    """
    facts = facts_of(request, [_name(image) for image in images_of(request)])
    content = [facts[name] for name in _ORDER]
    # Written with escapes it would be another digest, and nothing would be found again.
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).digest()


def _name(image: ImageSource) -> str:
    if isinstance(image, UploadedFile):
        return image.url
    return str.__str__(image) if isinstance(image, str) else Path(os.fsdecode(image)).as_posix()


def _located(field: str, image: ImageSource, folder: Path | None) -> str:
    if isinstance(image, bytes):
        raise InvalidRequestError(
            f"{field}: bytes given; a batch outlives its process, so save them to a file and give its path"
        )
    name = _name(image)
    if is_url(name):
        return name
    path = os.path.abspath((folder or Path()) / name)  # noqa: PTH100  resolve() would ask the disk for every link
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            f"{field}: the name {path!r:.999} is not UTF-8, as results.jsonl must be; rename the file or folder"
        ) from None
    return path
