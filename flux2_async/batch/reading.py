"""Lists of requests from files, line by line: JSONL, CSV, and folders of pictures. Strict, and never all at once."""

import csv
import glob
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from flux2_async.batch.jobs import BadLine, Job
from flux2_async.errors import InvalidRequestError
from flux2_async.models import TIERS, ImageToImage, Request, TextToImage

__all__ = ["match_jobs", "read_jobs"]

# Longer than any request; what has no line ends is not read as a whole to say so.
MAX_LINE: Final = 1_000_000
JSONL: Final = (".jsonl", ".ndjson")
CSV: Final = (".csv", ".tsv")

FIELDS: Final = ("prompt", "images", "aspect_ratio", "resolution", "tier", "model", "id", "extra_input")
MODELS: Final = {f"flux-2/{tier}-{way}-to-image": (tier, way == "image") for tier in TIERS for way in ("text", "image")}


def read_jobs(path: Path) -> Iterator[Job | BadLine]:
    """Read a list of requests.

    Args:
        path: A file whose name ends in `.jsonl` or `.ndjson` (a JSON object a line), or `.csv` or `.tsv` (a header,
            then a request a line; several pictures in one cell are separated by `|`). UTF-8. Relative paths of
            pictures begin at the file's folder.

    Yields:
        A job for each line that is not empty, in their order, or what is wrong with the line.

    Raises:
        InvalidRequestError: It is no such file.
        OSError: It cannot be read.
    """
    if path.suffix.lower() not in JSONL + CSV:
        raise InvalidRequestError(f"{str(path)!r}: its name must end in one of {', '.join(JSONL + CSV)}")
    with path.open("rb") as file:
        rows = _json_rows(file) if path.suffix.lower() in JSONL else _csv_rows(file)
        for line, fields in rows:
            try:
                yield _job(fields, line, path.parent)
            except InvalidRequestError as error:
                yield BadLine(line, str(error))


def match_jobs(patterns: Iterable[str], prompt: str, shape: Mapping[str, str]) -> Iterator[Job | BadLine]:
    """Make a request of each picture that a pattern matches.

    Args:
        patterns: Names of files, with `*`, `?`, `[…]` and `**`; each match is one request, whatever else matches it.
        prompt: What to do with each of them.
        shape: `aspect_ratio`, `resolution` and `tier`.

    Yields:
        A job for each picture, sorted by name within a pattern; a pattern that matches nothing is a bad line.
    """
    seen: set[str] = set()
    number = 0
    for pattern in patterns:
        names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  Path.glob knows no absolute patterns
        if not names:
            number += 1
            yield BadLine(number, f"no file matches {pattern!r}")
        for name in names:
            if name in seen or Path(name).is_dir():
                continue
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
        raise InvalidRequestError(f"a JSON object must stand here, not {_kind(fields)}")
    given = {name: value for name, value in fields.items() if name in FIELDS and value is not None}
    extra = {name: value for name, value in fields.items() if name not in FIELDS}
    name = _name(given.pop("id", None))
    return Job(_request(given), id=name, line=line, folder=folder, extra=extra)


def _name(value: Any) -> Any:
    # A column of numbers is a column of names as well; true is none.
    return str(value) if type(value) is int else value


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
        return ImageToImage(images=images, **({"aspect_ratio": "auto"} | given))
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


def _json_rows(file: BinaryIO) -> Iterator[tuple[int, object]]:
    for number, line in _lines(file):
        if isinstance(line, InvalidRequestError):
            yield number, line
        elif line.strip():
            yield number, _json(line)


def _json(line: str) -> object:
    try:
        return json.loads(line, object_pairs_hook=_object, parse_constant=_no_constant)
    except InvalidRequestError as error:
        return error
    except (ValueError, RecursionError) as error:
        return InvalidRequestError(f"no JSON ({error})")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise InvalidRequestError("a field is given twice")
    return fields


def _no_constant(name: str) -> None:
    raise InvalidRequestError(f"{name} given, which is no JSON")


def _csv_rows(file: BinaryIO) -> Iterator[tuple[int, object]]:
    bad: list[tuple[int, InvalidRequestError]] = []
    # A cell may hold line ends, so that one row may be several lines.
    taken: list[int] = []

    def good() -> Iterator[str]:
        for number, line in _lines(file):
            if isinstance(line, InvalidRequestError):
                bad.append((number, line))
            else:
                taken.append(number)
                yield line

    lines = good()
    first = next(lines, "")
    delimiter = next((each for each in (",", ";", "\t") if each in first), ",")
    header = next(csv.reader([first], delimiter=delimiter), [])
    _check_header(header)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        row = _next(reader)
        yield from bad
        bad.clear()
        if row is None:
            return
        if row:
            yield taken[0], _fields(header, row)


def _check_header(header: list[str]) -> None:
    if "prompt" not in header:
        raise InvalidRequestError("line 1: the header of a CSV file must name its columns, prompt among them")
    if len(set(header)) < len(header):
        raise InvalidRequestError("line 1: two columns of the CSV file have the same name")


def _next(reader: Any) -> list[str] | InvalidRequestError | None:
    try:
        row: list[str] | None = next(reader, None)
    except csv.Error as error:
        return InvalidRequestError(f"no CSV ({error})")
    return row


def _fields(header: list[str], row: list[str] | InvalidRequestError) -> object:
    if isinstance(row, InvalidRequestError):
        return row
    if len(row) != len(header):
        return InvalidRequestError(f"{len(row)} cells given, the header names {len(header)}")
    fields: dict[str, Any] = {name: cell for name, cell in zip(header, row, strict=True) if cell}
    if images := fields.get("images"):
        fields["images"] = [image.strip() for image in images.split("|")]
    if extra_input := fields.get("extra_input"):
        fields["extra_input"] = _json(extra_input)
        if isinstance(fields["extra_input"], InvalidRequestError):
            return InvalidRequestError(f"extra_input: {fields['extra_input']}")
    return fields


def _lines(file: BinaryIO) -> Iterator[tuple[int, str | InvalidRequestError]]:
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            while len(line) == MAX_LINE and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield number, InvalidRequestError(f"longer than {MAX_LINE:,} bytes")
            continue
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield number, InvalidRequestError(f"not UTF-8 ({error.reason} at byte {error.start + 1})")


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")
