"""Whatever a batch takes can be written at its end; what cannot is told before anything is sent."""

import enum
import json
import math
import os
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from batches import batch_in, collect, lines, run
from emulated import emulated
from file_host import picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flux2_async.batch import (
    Failure,
    InvalidInputError,
    Job,
    Journal,
    Outcome,
    State,
    document,
    read_jobs,
    read_results,
    run_batch,
    write_results,
)
from flux2_async.batch.journal.start import Work
from flux2_async.batch.options import Options
from flux2_async.batch.report import write_report
from flux2_async.errors import ConfigurationError, InvalidRequestError
from flux2_async.models import ImageToImage, TextToImage, UploadedFile

PNG = picture(100)


class Colour(str, enum.Enum):  # noqa: UP042  what people have
    RED = "red"


class Size(enum.IntEnum):
    SMALL = 1


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def circular() -> list[Any]:
    value: list[Any] = []
    value += [value, value]
    return value


def repeated() -> Any:
    """A list of 2^60 texts, in 61 objects."""
    value: Any = "x" * 10_000
    for _ in range(60):
        value = [value, value]
    return value


ODD = [
    *(math.nan, math.inf, b"x", {1}, object(), 10**5000, 2**70, nested(63), nested(900), Colour.RED, Size.SMALL),
    *(1e400, "\udce9", "\ud800", "a\0b", "\u202e", {1: 2}, {"a": {None: 1}}, {"\udce9": 1}, MappingProxyType({"a": 1})),
    *((1, 2), circular(), repeated(), True, None, -0.0, "x" * 11_000_000),
]
texts = st.text(st.characters(codec=None, categories=None))
# By their number: some of them have no representation.
odd = st.integers(0, len(ODD) - 1).map(lambda number: ODD[number])
values = st.recursive(
    odd | st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.integers(), inner, max_size=3),
    max_leaves=6,
)
names = texts | st.sampled_from(["a.png", "https://example.com/a.png", "http://[x/a", "caf\udce9.png", "a\0.png"])
images = st.lists(
    names | names.map(Path) | st.builds(UploadedFile, names, texts, st.integers(), texts) | st.binary(), max_size=2
)


@st.composite
def whatever(draw: Any) -> Any:
    """What somebody may give as one request, of right and wrong types; an error where it cannot be made."""
    prompt = draw(st.just("a lake") | st.text(min_size=3) | texts)
    shape = {"extra_input": draw(st.dictionaries(texts | st.integers(), values, max_size=2) | values)}
    shape |= draw(st.just({}) | st.just({"tier": Colour.RED}))
    pictures = draw(st.just([]) | images)
    try:
        request = ImageToImage(prompt, images=pictures, **shape) if pictures else TextToImage(prompt, **shape)
        return Job(
            draw(st.just(request) | values),
            id=draw(st.none() | st.text(min_size=1) | values),
            line=draw(st.just(0) | st.integers() | values),
            folder=draw(st.none() | names | values),
            extra=draw(st.dictionaries(texts, values, max_size=2) | values),
        )
    except InvalidRequestError as error:
        return error


@given(st.lists(whatever() | values, max_size=4))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.function_scoped_fixture,
    ],
)
async def test_what_is_taken_can_be_written(tmp_path_factory: pytest.TempPathFactory, items: list[Any]) -> None:
    """Any request is refused with words, or comes through journal, results and report as it was."""
    folder = tmp_path_factory.mktemp("batch")
    (folder / "a.png").write_bytes(PNG)
    requests = [item for item in items if not isinstance(item, InvalidRequestError)]
    async with Journal(folder / "run.db") as journal:
        entered = await journal.enter(requests, Options(skip_invalid=True))
        for line in entered.bad:
            str(line).encode()
        rows = await journal.take(Work.QUEUED, None, 100)
        assert len(rows) == entered.taken
        outcomes = [outcome async for outcome in journal.outcomes()]
        assert len(outcomes) == entered.taken
        await write_results(journal, folder)
    assert list(read_results(folder)) == outcomes
    write_report(outcomes, folder)
    sent = {row.id: row.request for row in rows}
    for item in requests:
        if isinstance(item, Job) and item.id is not None and item.id in sent:
            assert sent[item.id].input == item.request.input
            [outcome] = [each for each in outcomes if each.id == item.id]
            assert outcome.extra == item.extra
            assert outcome.prompt == item.request.prompt


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "x: nan given"),
        (b"", "x: bytes given"),
        ([{"y": {1}}], r"x\[0\].y: set given"),
        (10**5000, "x: a whole number of more than 640 digits"),
        ("caf\udce9", "x: half a surrogate pair at character 4"),
        ({"\udce9": 1}, "x: half a surrogate pair at character 1"),
        ({None: 2}, "x: NoneType given as the name of a field, it must be text"),
        ({1: 2, "1": 3}, "x: the name of a field is given twice"),
        (nested(900), r"x.*…: nested deeper than 64 levels"),
        (circular(), "nested deeper than 64 levels"),
        (repeated(), "more than 10,000,000 characters"),
        ("x" * 10_000_001, "more than 10,000,000 characters"),
    ],
    ids=[
        "nan",
        "bytes",
        "inner",
        "digits",
        "text",
        "name",
        "nothing as name",
        "twice",
        "deep",
        "circular",
        "repeated",
        "long",
    ],
)
def test_what_json_cannot_hold(value: Any, reason: str) -> None:
    """The field and the place in it are told, for what is sent and for what is kept."""
    with pytest.raises(InvalidRequestError, match=rf"^extra_input: cannot be written as JSON \(.*{reason}"):
        TextToImage("a lake", extra_input={"x": value})
    with pytest.raises(InvalidRequestError, match=rf"^extra: cannot be written as JSON \(.*{reason}"):
        Job(TextToImage("a lake"), extra={"x": value})


def test_plain_values() -> None:
    """What is kept is a copy, of nothing but what JSON has."""
    extra = {"colour": Colour.RED, "size": Size.SMALL, "more": MappingProxyType({"pair": (1, 2.5, None)})}
    job = Job(TextToImage("a lake"), extra=extra, id=Colour.RED)
    assert job.extra == {"colour": "red", "size": 1, "more": {"pair": [1, 2.5, None]}}
    assert [type(job.extra["colour"]), type(job.extra["size"]), type(job.id)] == [str, int, str]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"request": "a lake"}, "request: str given"),
        ({"line": 2**63}, "line: 9223372036854775808 given"),
        ({"line": -1}, "line: -1 given"),
        ({"line": "1"}, "line: '1' given"),
        ({"folder": 7}, "folder: int given, it must be a path or None"),
        ({"extra": [1]}, "extra: list given, it must be a mapping"),
    ],
)
def test_a_job_checks_what_it_is_given(fields: dict[str, Any], reason: str) -> None:
    """What the journal could not hold is told when the job is made."""
    arguments: dict[str, Any] = {"request": TextToImage("a lake")} | fields
    with pytest.raises(InvalidRequestError, match=reason):
        Job(**arguments)


@pytest.mark.parametrize("url", ["", "a.png", "ftp://example.com/a.png", "https://example.com/caf\udce9.png", None])
def test_an_uploaded_file_has_an_address(url: Any) -> None:
    """What came from somewhere else than `upload` is no address by itself."""
    with pytest.raises(InvalidRequestError, match=r"images\[0\].url: (not a complete address|half a surrogate pair)"):
        ImageToImage("a lake", images=[UploadedFile(url, "a.png", 1, "image/png")])


async def test_a_half_surrogate_in_an_unknown_column(tmp_path: Path) -> None:
    """A line whose other columns cannot be kept is told with its number, and nothing is sent."""
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"prompt": "a lake"}\n{"prompt": "a hill", "note": "\\ud83d"}\n' + json.dumps({"prompt": "abc"}))
    async with emulated() as (flux, emulator):
        with pytest.raises(InvalidInputError, match=r"line 2: extra: .*\(note: half a surrogate pair at character 1\)"):
            await run(tmp_path, flux, read_jobs(path))
        assert emulator.ledger.requests == []


async def test_a_folder_that_is_not_utf8(tmp_path: Path) -> None:
    """A picture in such a folder is told by its name before anything is sent; results may be put into one."""
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")  # noqa: PTH118  bytes
    os.mkdir(folder)  # noqa: PTH102
    (Path(os.fsdecode(folder)) / "a.png").write_bytes(PNG)
    job = Job(ImageToImage("make it red", images=["a.png"]), folder=Path(os.fsdecode(folder)))
    async with emulated() as (flux, emulator):
        with pytest.raises(InvalidInputError, match=r"images\[0\]: the name '.*caf\\udce9/a.png' is not UTF-8"):
            await run(tmp_path, flux, [job])
        assert emulator.ledger.requests == []
        batch = batch_in(Path(os.fsdecode(folder)), flux, [TextToImage("a lake")])
        assert [outcome.state for outcome in await collect(batch)] == ["done"]
    assert len(lines(Path(os.fsdecode(folder)))) == 1


def test_an_old_journal_is_written_all_the_same(tmp_path: Path) -> None:
    """What an earlier version took and this one would not is written with escapes, however deep it is."""
    failure = Failure(type="OSError", message="caf\udce9")
    outcome = Outcome(id="a", state=State.FAILED, prompt="a lake", extra={"deep": nested(900)}, error=failure)
    assert document(outcome)["extra"] == outcome.extra
    assert document(outcome)["error"] == {"type": "OSError", "message": "caf\udce9", "code": None}
    write_report([outcome], tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"journal": None}, "journal: NoneType given, it must be a path"),
        ({"journal": "a\0b"}, "journal: 'a.x00b' given, no path holds a null character"),
        ({"journal": "a\ud800"}, "journal: 'a.ud800' given, it must be valid Unicode"),
        ({"directory": 7}, "directory: int given, it must be a path"),
        ({"directory": "a\0b"}, "directory: 'a.x00b' given"),
        ({"requests": TextToImage("a lake")}, "requests: TextToImage given, it must be a list or another iterable"),
    ],
)
async def test_arguments_are_checked_at_once(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    """What can be no path and no list is told by its name."""
    usual: dict[str, Any] = {"requests": [], "journal": tmp_path / "run.db", "directory": tmp_path}
    async with emulated() as (flux, _):
        with pytest.raises(ConfigurationError, match=reason):
            run_batch(flux, **(usual | options))
