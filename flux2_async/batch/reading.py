"""Lists of requests from files, and requests for pictures of a folder. Strict, and never all at once."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from flux2_async.batch.jobs import BadLine, Job
from flux2_async.batch.lists import FIELDS, JOB_FIELDS, kind_of, rows_of
from flux2_async.errors import InvalidRequestError
from flux2_async.models import ImageToImage, JobRequest, Request, TextToImage
from flux2_async.models.requests import TIERS

MODELS: Final = {f"flux-2/{tier}-{way}-to-image": (tier, way == "image") for tier in TIERS for way in ("text", "image")}
# What a column may be meant for by its letters alone, and by the API's own names.
MEANT: Final = {name.replace("_", ""): name for name in FIELDS if name != "id"} | {
    "inputurls": "images",
    "imageurls": "images",
}
# A word as short as `mode` is one of its own, however near it comes to a field.
SHORT: Final = 4


def read_jobs(path: str | os.PathLike[str]) -> Iterator[Job | BadLine]:
    """Read a list of requests.

    Args:
        path: A file whose name ends in `.jsonl` or `.ndjson` (a JSON object a line), `.json` (a JSON array of them), or
            `.csv` or `.tsv` (a header, then a request a line; cells are separated by `,`, `;` or tabs, several pictures
            in one cell by `|`). UTF-8, UTF-16, or what the mark at its beginning says. Relative paths of pictures
            begin at the file's folder.

    Yields:
        A job for each line that is not empty, in their order, or what is wrong with the line. In an array the place of
        a request counts as its line.

    Raises:
        InvalidRequestError: It is no such file.
        OSError: It cannot be read.
    """
    path = Path(path)
    for line, fields in rows_of(path):
        try:
            yield _job(fields, line, path.parent)
        except InvalidRequestError as error:
            name = _name(fields.get("id")) if isinstance(fields, dict) else None
            yield BadLine(line, str(error), name if isinstance(name, str) else None)


def match_jobs(patterns: Iterable[str], prompt: str, shape: Mapping[str, Any]) -> Iterator[Job | BadLine]:
    """Make a request of each picture that a pattern matches.

    Args:
        patterns: Names of files, also with `*`, `?`, `[…]` and `**`; each match is one request, whatever else matches
            it. A name that a file has is no pattern. A single text is one pattern.
        prompt: What to do with each of them.
        shape: `aspect_ratio`, `resolution` and `tier`.

    Yields:
        A job for each picture, sorted by name within a pattern; a pattern that matches nothing is a bad line.
    """
    number, seen = 0, set[str]()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  Path.glob knows no absolute patterns
        names = [name for name in found if not Path(name).is_dir()]
        if not names:
            number += 1
            folder = f"; it is a folder, so name its pictures: {os.path.join(pattern, '*')!r}" * Path(pattern).is_dir()  # noqa: PTH118  as it was given
            yield BadLine(number, f"no file matches {pattern!r}{folder}")
        for name in dict.fromkeys(name for name in names if name not in seen):
            seen.add(name)
            number += 1
            try:
                yield Job(ImageToImage(prompt, images=[name], **shape), line=number)
            except InvalidRequestError as error:
                yield BadLine(number, str(error))


def _job(fields: object, line: int, folder: Path) -> Job:
    if isinstance(fields, InvalidRequestError):
        raise fields
    if not isinstance(fields, dict):
        raise InvalidRequestError(f"a JSON object must stand here, not {kind_of(fields)}")
    if isinstance(extra_input := fields.get("extra_input"), InvalidRequestError):
        raise InvalidRequestError(f"extra_input: {extra_input}")
    # With an `input` that is no object it is a column like others, as lists of before had it.
    known = (*FIELDS, *JOB_FIELDS) if isinstance(fields.get("input"), dict) else FIELDS
    given = {name: value for name, value in fields.items() if name in known and value is not None}
    extra = {name: value for name, value in fields.items() if name not in known}
    name = _name(given.pop("id", None))
    if "input" not in given:
        _check_columns(extra, given)
    request = _job_request(given) if "input" in given else _checked(given)
    return Job(request, id=name, line=line, folder=folder, extra=extra)


def _check_columns(extra: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse a column that was meant for a field: a picture would be paid for without what it says."""
    for name, value in extra.items():
        plain = re.sub(r"[\W_]", "", name).lower()
        close = get_close_matches(plain, MEANT, n=1, cutoff=1.0 if len(plain) <= SHORT else 0.85)
        if value and close and (field := MEANT[close[0]]) not in given:
            raise InvalidRequestError(
                f"{name}: no field of a request, but nearly {field}, and its value would not be sent; name it {field}, "
                "or otherwise if it is a column of your own"
            )


def _name(value: Any) -> Any:
    # A column of numbers is a column of names as well; true is none.
    return str(value) if type(value) is int else value


def _job_request(given: dict[str, Any]) -> JobRequest:
    if "model" not in given:
        raise InvalidRequestError("model: missing; with input it names the model that takes it")
    if besides := sorted(given.keys() - {"model", *JOB_FIELDS}):
        raise InvalidRequestError(f"{besides[0]}: given besides input; what the model takes goes into input")
    return JobRequest(given["model"], given["input"], image_fields=given.get("image_fields", ()))


def _checked(given: dict[str, Any]) -> Request:
    """Make a request, or say of all its fields at once what is wrong with them."""
    reasons: list[str] = []
    while True:
        try:
            request = _request(dict(given))
        except InvalidRequestError as error:
            reasons.append(str(error))
            field = reasons[-1].partition(":")[0]
            # Without these it would be another request, with faults of its own.
            if field in ("prompt", "images", "model") or given.pop(field, None) is None:
                raise InvalidRequestError("; ".join(reasons)) from None
        else:
            if reasons:
                raise InvalidRequestError("; ".join(reasons))
            return request


def _request(given: dict[str, Any]) -> Request:
    if "prompt" not in given:
        raise InvalidRequestError("prompt: missing")
    images = given.pop("images", [])
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise InvalidRequestError("images: it must be a list of paths and addresses")
    _take_model(given, with_images=bool(images))
    if images:
        # As `flux2 edit`: an edited picture keeps its shape unless another one is asked for.
        given.setdefault("aspect_ratio", "auto")
        return ImageToImage(images=images, **given)
    return TextToImage(**given)


def _take_model(given: dict[str, Any], *, with_images: bool) -> None:
    """Turn a model's id into its tier."""
    model = given.pop("model", None)
    if model is None:
        return
    if not isinstance(model, str) or model not in MODELS:
        raise InvalidRequestError(f"model: {model!r} given, allowed are {', '.join(sorted(MODELS))}")
    tier, needs_images = MODELS[model]
    if given.setdefault("tier", tier) != tier:
        raise InvalidRequestError(f"tier: {given['tier']!r} given, and model {model!r}; leave one of them out")
    if needs_images != with_images:
        raise InvalidRequestError(f"model: {model!r} given {'with' if with_images else 'without'} images")
