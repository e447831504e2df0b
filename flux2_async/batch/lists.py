"""Files of rows, each with its fields: JSON a line, a JSON array, or CSV, in whatever encoding their mark tells."""

import codecs
import csv
import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, Final, TextIO

import attrs

from flux2_async.errors import InvalidRequestError
from flux2_async.models import ImageToImage, JobRequest

# Longer than any request; what has no line ends is not read as a whole to say so.
MAX_LINE: Final = 1_000_000
JSONL: Final = (".jsonl", ".ndjson")
JSON: Final = (".json",)
CSV: Final = (".csv", ".tsv")
# The longer mark first: it begins with the shorter one.
ENCODINGS: Final = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Bytes by which it is judged what a file without a mark is in.
HEAD: Final = 1024
# What spreadsheets write first to say how they separate cells.
SEPARATOR: Final = re.compile(r"sep=(.)\s*")

# A field that a model gets is a column at once.
FIELDS: Final = (*(field.name for field in attrs.fields(ImageToImage)), "model", "id")
JOB_FIELDS: Final = tuple(field.name for field in attrs.fields(JobRequest) if field.name != "model")
FILES: Final = JSONL + JSON + CSV
"""Ends of the names of lists."""


def rows_of(path: Path, needed: str = "prompt") -> Iterator[tuple[int, object]]:
    """Read a file row by row; of CSV the header names `needed`.

    Yields:
        The line of a row, and its fields, or the `InvalidRequestError` that says what is wrong with it.

    Raises:
        InvalidRequestError: It is no such file.
        OSError: It cannot be read.
    """
    kind = path.suffix.lower()
    if kind not in FILES:
        raise InvalidRequestError(f"{str(path)!r}: its name must end in one of {', '.join(FILES)}")
    with _opened(path) as file:
        yield from _array_rows(file) if kind in JSON else _json_rows(file) if kind in JSONL else _csv_rows(file, needed)


def _json_rows(file: TextIO) -> Iterator[tuple[int, object]]:
    for number, line in _lines(file):
        if isinstance(line, InvalidRequestError):
            yield number, line
        elif number == 1 and re.fullmatch(r"\s*\[\s*(\{.*)?", line, re.DOTALL):
            raise InvalidRequestError("a JSON array begins here, not a JSON object a line; name the file .json")
        elif line.strip():
            yield number, _json(line)


def _array_rows(file: TextIO) -> Iterator[tuple[int, object]]:
    try:
        items = json.loads(file.read(), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeError as error:
        raise InvalidRequestError(f"not {_encoding(file)} ({error})") from None
    except json.JSONDecodeError as error:
        advice = "; with a JSON object a line, name the file .jsonl" if error.msg == "Extra data" else ""
        raise InvalidRequestError(f"not JSON ({error}){advice}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"not JSON ({error})") from None
    if not isinstance(items, list):
        raise InvalidRequestError(f"a JSON array of requests must stand here, not {kind_of(items)}")
    yield from enumerate(items, start=1)


def _json(line: str) -> object:
    try:
        value = json.loads(line, object_pairs_hook=_object, parse_constant=_constant)
        return next(_errors(value), value)
    except (ValueError, RecursionError) as error:
        return InvalidRequestError(f"not JSON ({error})")


def _object(pairs: list[tuple[str, Any]]) -> object:
    """Give an object, or the first error in it: in an array, one bad request is not to hide the others."""
    fields = dict(pairs)
    twice = [InvalidRequestError("a field is given twice")] if len(fields) < len(pairs) else []
    return next(chain(_errors([value for _, value in pairs]), twice), fields)


def _errors(value: object) -> Iterator[InvalidRequestError]:
    if isinstance(value, InvalidRequestError):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _errors(each)


def _constant(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} given, which is not JSON")


def _csv_rows(file: TextIO, needed: str) -> Iterator[tuple[int, object]]:
    bad: list[tuple[int, InvalidRequestError]] = []
    # A cell may hold line ends, so that one row may be several lines.
    taken: list[tuple[int, str]] = []

    def good() -> Iterator[str]:
        for number, line in _lines(file):
            if isinstance(line, InvalidRequestError):
                bad.append((number, line))
            else:
                taken.append((number, line))
                yield line

    lines = good()
    delimiter, header = _header(lines, needed)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        row = _next(reader)
        yield from bad
        bad.clear()
        if row is None:
            return
        if isinstance(row, InvalidRequestError) and delimiter == "\t" and len(taken) == 1:
            # Where tabs separate, many write quotes as they are, also at the beginning of a cell.
            cells = taken[0][1].rstrip("\r\n").split(delimiter)
            row = cells if len(cells) == len(header) else row
        if row:
            yield taken[0][0], _fields(header, row)


def _header(lines: Iterator[str], needed: str) -> tuple[str, list[str]]:
    """Give what separates cells, and the names of the columns: ours as we write them, others as they are."""
    first = next(lines, "")
    if told := SEPARATOR.fullmatch(first):
        first = next(lines, "")
    candidates = [told[1]] if told else [",", ";", "\t"]
    headers = {each: _names(first, each) for each in candidates}
    delimiter = next((each for each, names in headers.items() if needed in names), candidates[0])
    header = headers[delimiter]
    if needed not in header:
        close = get_close_matches(needed, [name for names in headers.values() for name in names], n=1, cutoff=0.8)
        raise InvalidRequestError(
            f"line 1: the header of a CSV file must name its columns, {needed} among them, not {first.strip()!r:.99}"
            + "".join(f"; do you mean {needed} by {name!r}?" for name in close)
        )
    if len(set(header)) < len(header):
        raise InvalidRequestError("line 1: two columns of the CSV file have the same name")
    return delimiter, header


def _names(line: str, delimiter: str) -> list[str]:
    cells = next(csv.reader([line], delimiter=delimiter), [])
    usual = {cell: cell.strip().lower() for cell in cells}
    return [usual[cell] if usual[cell] in FIELDS else cell for cell in cells]


def _next(reader: Any) -> list[str] | InvalidRequestError | None:
    try:
        row: list[str] | None = next(reader, None)
    except csv.Error as error:
        return InvalidRequestError(f"not CSV ({error})")
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
    return fields


def _opened(path: Path) -> TextIO:
    with path.open("rb") as file:
        head = file.read(HEAD)
    encoding = next((name for mark, name in ENCODINGS.items() if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in head:
        encoding = _unmarked(head)
        if not encoding:
            raise InvalidRequestError(f"{str(path)!r}: neither UTF-8 nor UTF-16, so no text; save it as CSV or JSON")
    # What is no UTF-8 is told line by line; no line end is changed, since cells may hold some.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    return path.open(encoding=encoding, errors=errors, newline="")


def _unmarked(head: bytes) -> str:
    """Give the kind of UTF-16 that a file without a mark is in; empty: it is no text."""
    texts = {name: codecs.getincrementaldecoder(name)("replace").decode(head) for name in ("utf-16-le", "utf-16-be")}
    # In the wrong order of bytes nothing is ASCII.
    name = max(texts, key=lambda name: sum(map(str.isascii, texts[name])))
    return name if all(character.isprintable() or character.isspace() for character in texts[name]) else ""


def _lines(file: TextIO) -> Iterator[tuple[int, str | InvalidRequestError]]:
    number = 0
    try:
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                while len(line) == MAX_LINE and not line.endswith(("\n", "\r")):
                    line = file.readline(MAX_LINE)
                yield number, InvalidRequestError(f"longer than {MAX_LINE:,} characters")
            else:
                yield number, line if line.isascii() else _unicode(line)
    except UnicodeError as error:
        # Of the encoding that the mark promised, which cannot be read further.
        yield number + 1, InvalidRequestError(f"not {_encoding(file)} ({error})")


def _unicode(line: str) -> str | InvalidRequestError:
    try:
        return line.encode(errors="surrogateescape").decode()
    except UnicodeDecodeError as error:
        advice = "save the list as UTF-8, a spreadsheet as CSV UTF-8"
        return InvalidRequestError(f"not UTF-8 ({error.reason} at byte {error.start + 1}); {advice}")


def _encoding(file: TextIO) -> str:
    return (file.encoding or "").upper()


def kind_of(value: object) -> str:
    """Name what a value of JSON is."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")
