"""Lists of requests from files: what is read, and what is said about what cannot be."""

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux2_async.batch import BadLine, Job, match_jobs, read_jobs
from flux2_async.errors import InvalidRequestError
from flux2_async.models import ImageToImage, TextToImage


def read(folder: Path, content: str | bytes, name: str = "jobs.jsonl") -> list[Job | BadLine]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_jobs(path))


def only(found: list[Job | BadLine]) -> Job:
    [job] = found
    assert isinstance(job, Job), job
    return job


def bad(found: list[Job | BadLine]) -> str:
    [line] = found
    assert isinstance(line, BadLine), line
    return str(line)


def test_a_line_of_jsonl(tmp_path: Path) -> None:
    """Each field finds its place, and unknown ones are kept."""
    line = {
        "prompt": "make it winter",
        "images": ["a.png", "https://example.com/b.jpg"],
        "aspect_ratio": "16:9",
        "resolution": "2K",
        "tier": "pro",
        "id": "n1",
        "extra_input": {"nsfw_checker": True},
        "customer": {"name": "Ada"},
    }
    job = only(read(tmp_path, json.dumps(line) + "\n"))
    assert job.request == ImageToImage(
        "make it winter",
        images=["a.png", "https://example.com/b.jpg"],
        aspect_ratio="16:9",
        resolution="2K",
        tier="pro",
        extra_input={"nsfw_checker": True},
    )
    assert (job.id, job.line, job.folder, job.extra) == ("n1", 1, tmp_path, {"customer": {"name": "Ada"}})


def test_what_is_left_out(tmp_path: Path) -> None:
    """Fields have the defaults of `flux2 edit` and `flux2 generate`; null is left out, and so are empty lines."""
    found = read(
        tmp_path, '{"prompt": "a lake", "tier": null}\n\n{"prompt": "make it red", "images": "a.png", "id": 7}'
    )
    assert [job.request for job in found if isinstance(job, Job)] == [
        TextToImage("a lake"),
        ImageToImage("make it red", images=["a.png"], aspect_ratio="auto"),
    ]
    assert [(job.line, job.id) for job in found if isinstance(job, Job)] == [(1, None), (3, "7")]


def test_a_model_gives_the_tier(tmp_path: Path) -> None:
    """The API's id of a model may stand for tier and kind."""
    job = only(read(tmp_path, '{"prompt": "a lake", "model": "flux-2/pro-text-to-image"}'))
    assert job.request == TextToImage("a lake", tier="pro")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 1: not JSON (Expecting property name"),
        ("[1]", "line 1: a JSON object must stand here, not a list"),
        ("null", "line 1: a JSON object must stand here, not null"),
        ("{}", "line 1: prompt: missing"),
        ('{"prompt": "ab"}', "line 1: prompt: 2 characters given, allowed are 3 to 5000"),
        ('{"prompt": 7}', "line 1: prompt: int given"),
        ('{"prompt": "abc", "prompt": "abd"}', "line 1: a field is given twice"),
        ('{"prompt": "abc", "n": NaN}', "line 1: NaN given, which is not JSON"),
        ('{"prompt": "abc", "images": [1]}', "line 1: images: it must be a list of paths and addresses"),
        ('{"prompt": "abc", "images": {"a": 1}}', "line 1: images: it must be a list of paths and addresses"),
        ('{"prompt": "abc", "images": ["data:x"]}', "line 1: images[0]: a data: address given"),
        ('{"prompt": "abc", "aspect_ratio": "21:9"}', "line 1: aspect_ratio: '21:9' given"),
        ('{"prompt": "abc", "resolution": 1}', "line 1: resolution: 1 given"),
        ('{"prompt": "abc", "model": ["x"]}', "line 1: model: ['x'] given, allowed are flux-2/flex-image-to-image"),
        ('{"prompt": "abc", "model": "flux-2/pro-image-to-image"}', "given without images"),
        ('{"prompt": "abc", "model": "flux-2/pro-text-to-image", "tier": "flex"}', "leave one of them out"),
        ('{"prompt": "abc", "id": ""}', "line 1: id: '' given"),
        ('{"prompt": "abc", "id": 1.5}', "line 1: id: 1.5 given"),
        ('{"prompt": "abc", "id": "a\\nb"}', "line 1: id: 'a\\nb' given"),
        ('{"prompt": "abc", "extra_input": {"prompt": "x"}}', "line 1: extra_input: 'prompt' given"),
        ("[" * 100_000, "line 1: not JSON"),
        ('{"a": "' + "x" * 1_000_000 + '"}', "line 1: longer than 1,000,000 characters"),
    ],
)
def test_a_bad_line_of_jsonl(tmp_path: Path, line: str, reason: str) -> None:
    """What is wrong is said with the number of the line; the lines behind it are read all the same."""
    found = read(tmp_path, line + '\n{"prompt": "a lake"}\n')
    assert reason in bad(found[:1])
    assert only(found[1:]).line == 2


def test_what_is_not_utf8(tmp_path: Path) -> None:
    """A line in another encoding is told with the place; a byte order mark is no harm."""
    found = read(tmp_path, b'\xef\xbb\xbf{"prompt": "a lake"}\n{"prompt": "caf\xe9"}\n')
    assert only(found[:1]).request.prompt == "a lake"
    advice = "save the list as UTF-8, a spreadsheet as CSV UTF-8"
    assert bad(found[1:]) == f"line 2: not UTF-8 (invalid continuation byte at byte 16); {advice}"


def test_csv(tmp_path: Path) -> None:
    """A header names the columns; empty cells are left out, pictures separated by |, cells may hold line ends."""
    content = (
        "prompt,images,tier,note\r\n"
        '"make it ""red"", please",a.png | b c.png,,x\r\n'
        '"two\nlines",,pro,\r\n'
        "\r\n"
        "a lake,,,y\r\n"
    )
    found = read(tmp_path, content, "jobs.csv")
    jobs = [job for job in found if isinstance(job, Job)]
    assert [job.request for job in jobs] == [
        ImageToImage('make it "red", please', images=["a.png", "b c.png"], aspect_ratio="auto"),
        TextToImage("two\nlines", tier="pro"),
        TextToImage("a lake"),
    ]
    assert [job.line for job in jobs] == [2, 3, 6]
    assert [job.extra for job in jobs] == [{"note": "x"}, {}, {"note": "y"}]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    """What spreadsheets write elsewhere is read as well."""
    content = delimiter.join(("prompt", "id")) + "\n" + delimiter.join(("a lake, at dawn", "7"))
    job = only(read(tmp_path, content, "jobs.csv"))
    assert (job.request.prompt, job.id) == ("a lake, at dawn", "7")


def test_bad_lines_of_csv(tmp_path: Path) -> None:
    """Each bad line has its number, whatever is wrong with the ones before."""
    content = b"prompt,tier,extra_input\na lake\ncaf\xe9,flex,\na lake,flax,\na lake,,{\na lake,flex,\n"
    found = read(tmp_path, content, "jobs.csv")
    assert [str(each)[:40] for each in found if isinstance(each, BadLine)] == [
        "line 2: 1 cells given, the header names ",
        "line 3: not UTF-8 (invalid continuation ",
        "line 4: tier: 'flax' given, allowed are ",
        "line 5: extra_input: not JSON (Expecting",
    ]
    assert only(found[-1:]).line == 6


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("", "header of a CSV file must name"),
        ("text,id", "header of a CSV file must name"),
        ("prompt,prompt", "same name"),
    ],
)
def test_a_bad_header(tmp_path: Path, header: str, reason: str) -> None:
    """Without a usable header no line can be read."""
    with pytest.raises(InvalidRequestError, match=reason):
        read(tmp_path, header + "\na lake,x\n", "jobs.csv")


def test_an_open_quote(tmp_path: Path) -> None:
    """A quote that never ends is told, and does not read the rest of a large file into one cell."""
    content = 'prompt\n"a lake\n' + "x" * 100 + "\n"
    assert "line 2: not CSV" in bad(read(tmp_path, content, "jobs.csv"))


def test_another_file(tmp_path: Path) -> None:
    """A name that tells no format is refused."""
    with pytest.raises(InvalidRequestError, match=r"its name must end in one of \.jsonl"):
        read(tmp_path, "", "jobs.txt")


PARTI = (
    "Prompt\tCategory\tChallenge\tNote\n"
    "a snail\tAnimals\tBasic\t\n"
    'A robot painted on a wall. The words "Fly an airplane" are on it.\tOutdoor Scenes\tComplex\t\n'
    '"G I G G L E" painted in thick lettering\tIllustrations\tWriting & Symbols\tVQ-Diffusion\n'
)


def test_prompts_as_they_are_published(tmp_path: Path) -> None:
    """Tabs, a header with capitals, and quotes at the beginning of a cell that mean themselves."""
    jobs = [job for job in read(tmp_path, PARTI, "PartiPrompts.tsv") if isinstance(job, Job)]
    assert [job.request.prompt for job in jobs] == [
        "a snail",
        'A robot painted on a wall. The words "Fly an airplane" are on it.',
        '"G I G G L E" painted in thick lettering',
    ]
    assert jobs[2].extra == {"Category": "Illustrations", "Challenge": "Writing & Symbols", "Note": "VQ-Diffusion"}


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("prompt,id\ra lake,1\ra hill,2\r", "utf-8"),
        ("prompt,id\r\na lake,1\r\na hill,2", "utf-16"),
        ("prompt,id\r\na lake,1\r\na hill,2", "utf-16-le"),
        ("日付;prompt;id\r\n湖;a lake;1\r\n丘;a hill;2", "utf-16-be"),
        ("prompt\tid\r\na lake\t1\r\na hill\t2", "utf-16"),
        ("sep=;\r\nprompt;id\r\na lake;1\r\na hill;2\r\n", "utf-8-sig"),
        ("Prompt ; ID\na lake;1\na hill;2\n", "utf-8"),
        ("sep=|\nPROMPT|id\na lake|1\na hill|2\n", "utf-8"),
        ('"prompt";"id"\n"a lake";1\n"a hill";2\n', "utf-8"),
    ],
    ids=[
        "CR",
        "UTF-16",
        "UTF-16 without a mark",
        "another column first",
        "UTF-16 and tabs",
        "sep",
        "capitals",
        "sep of its own",
        "quoted header",
    ],
)
def test_what_spreadsheets_write(tmp_path: Path, content: str, encoding: str) -> None:
    """Line ends, encodings and separators of all of them are read without being told."""
    path = tmp_path / "jobs.csv"
    path.write_bytes(content.encode(encoding))
    jobs = [job for job in read_jobs(path) if isinstance(job, Job)]
    assert [(job.request.prompt, job.id) for job in jobs] == [("a lake", "1"), ("a hill", "2")]
    assert jobs[0].line == (3 if content.startswith("sep") else 2)


def test_all_faults_of_a_line_are_told_at_once(tmp_path: Path) -> None:
    """Who corrects one need not try again to learn of the next; what is missing is told once."""
    content = "prompt,tier,resolution,aspect_ratio\na lake,max,8K,1:1\n,max,,\na hill,pro,1K,7:1\n"
    told = [item.reason for item in read(tmp_path, content, "jobs.csv") if isinstance(item, BadLine)]

    assert [sorted(part.partition(":")[0] for part in reason.split("; ")) for reason in told] == [
        ["resolution", "tier"],
        ["prompt"],
        ["aspect_ratio"],
    ]


def test_a_json_array(tmp_path: Path) -> None:
    """A file named .json holds all requests in a list; each bad one is told by its place."""
    content = '[{"prompt": "a lake", "id": 7},\n {"prompt": "a", "prompt": "b"}, 3, {"prompt": "a hill", "n": NaN}]'
    found = read(tmp_path, content, "jobs.json")
    assert only(found[:1]).id == "7"
    assert [str(line) for line in found[1:]] == [
        "line 2: a field is given twice",
        "line 3: a JSON object must stand here, not a number",
        "line 4: NaN given, which is not JSON",
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "a.jsonl",
            '[\n{"prompt": "a lake"}\n]',
            "a JSON array begins here, not a JSON object a line; name the file .json",
        ),
        (
            "a.jsonl",
            '[{"prompt": "a lake"}]',
            "a JSON array begins here, not a JSON object a line; name the file .json",
        ),
        ("a.json", '{"prompt": "a lake"}\n{"prompt": "a hill"}', "with a JSON object a line, name the file .jsonl"),
        ("a.json", '{"prompt": "a lake"}', "a JSON array of requests must stand here, not an object"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", b'["caf\xe9"]', "a JSON object must stand here, not text"),
        ("a.json", '["\u0436"'.encode("utf-16")[:-1], "not UTF-16"),
        (
            "a.csv",
            b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0",
            "neither UTF-8 nor UTF-16, so no text; save it as CSV or JSON",
        ),
        ("a.csv", "prompt,id\na lake,1".encode("utf-16")[:-1], "line 2: not UTF-16"),
        ("a.csv", "text,id\na lake,1", "must name its columns, prompt among them, not 'text,id'"),
        ("a.csv", "promt,id\na lake,1", "prompt among them, not 'promt,id'; do you mean prompt by 'promt'?"),
        ("a.csv", "promt;id\na lake;1", "prompt among them, not 'promt;id'; do you mean prompt by 'promt'?"),
        ("a.csv", "prompt,Prompt\na lake,1", "two columns of the CSV file have the same name"),
    ],
)
def test_what_is_no_list(tmp_path: Path, name: str, content: str | bytes, reason: str) -> None:
    """One line says what a file is taken for, and what it should be."""
    try:
        told = str(read(tmp_path, content, name)[0])
    except InvalidRequestError as error:
        told = str(error)
    assert reason in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("column", "field"),
    [
        ("image", "images"),
        ("Image URLs", "images"),
        ("input_urls", "images"),
        ("aspectRatio", "aspect_ratio"),
        ("aspect-ratio", "aspect_ratio"),
        ("resoluton", "resolution"),
        ("tiers", "tier"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_that_is_nearly_a_field_is_refused(tmp_path: Path, column: str, field: str, kind: str) -> None:
    """Nobody pays for pictures without the photograph or the shape that a misspelt column names."""
    lines = f"prompt,{column}\na lake,4:3" if kind == "csv" else json.dumps({"prompt": "a lake", column: "4:3"})
    (line,) = read(tmp_path, lines, f"list.{kind}")
    assert isinstance(line, BadLine)
    assert f"name it {field}, or otherwise" in str(line)


@pytest.mark.parametrize("column", ["mode", "id_number", "image_id", "prompt_en", "group", "Category", "note", "size"])
def test_columns_of_ones_own_are_kept(tmp_path: Path, column: str) -> None:
    """Other columns stay what they are, also one near a field that is given; so does one without a value."""
    (job,) = read(tmp_path, f"prompt,{column}\na lake,4:3", "list.csv")
    assert isinstance(job, Job)
    assert job.extra == {column: "4:3"}
    (job,) = read(tmp_path, "prompt,tier,tiers,image\na lake,pro,gold,", "list.csv")
    assert isinstance(job, Job)
    assert job.extra == {"tiers": "gold"}


def test_a_name_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose name could be a pattern is itself; what it would match beside it is not left out either."""
    monkeypatch.chdir(tmp_path)
    for name in ("img[1].jpg", "img1.jpg", "a*.jpg", "ab.jpg"):
        (tmp_path / name).touch()
    shape: dict[str, Any] = {"aspect_ratio": "auto", "resolution": "1K", "tier": "pro"}
    found = list(match_jobs(["img[1].jpg", "img1.jpg", "a*.jpg", "?b.jpg"], "make it winter", shape))
    pictures = [job.request.images for job in found if isinstance(job, Job) and isinstance(job.request, ImageToImage)]
    assert pictures == [("img[1].jpg",), ("img1.jpg",), ("a*.jpg",), ("ab.jpg",)]


def test_a_single_text_is_one_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its characters are none: `*` among them would be every file of the folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).touch()
    job = only(list(match_jobs("*.jpg", "make it winter", {})))
    assert isinstance(job.request, ImageToImage)
    assert job.request.images == ("a.jpg",)


def test_a_list_is_named_by_text_as_well(tmp_path: Path) -> None:
    """Its name may be text, as all other paths may; pictures begin at its folder all the same."""
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"prompt": "make it winter"}')
    job = only(list(read_jobs(str(path))))
    assert isinstance(job.request, TextToImage)
    assert (job.request.prompt, job.folder) == ("make it winter", tmp_path)


def test_a_folder_is_told(tmp_path: Path) -> None:
    """A folder where pictures are meant is no empty batch."""
    (tmp_path / "photos").mkdir()
    found = list(match_jobs([str(tmp_path / "photos")], "make it winter", {}))
    assert bad(found).endswith(f"it is a folder, so name its pictures: '{tmp_path}/photos/*'")


def test_pictures_by_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each match is a request, sorted, once, whatever else matches it; folders are none."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.jpg", "c.png"):
        (tmp_path / name).touch()
    (tmp_path / "d.jpg").mkdir()
    shape: dict[str, Any] = {"aspect_ratio": "auto", "resolution": "1K", "tier": "pro"}
    found = list(match_jobs(["*.jpg", "?.*", "nothing*"], "make it winter", shape))
    assert [job.request for job in found if isinstance(job, Job)] == [
        ImageToImage("make it winter", images=[name], **shape) for name in ("a.jpg", "b.jpg", "c.png")
    ]
    assert bad(found[-1:]) == "line 4: no file matches 'nothing*'"


def test_every_field_of_a_request_is_a_column(tmp_path: Path) -> None:
    """What a request is made of is read from a list by the same names, whichever fields it has."""
    request = ImageToImage("a house", images=["https://host/a.png"], aspect_ratio="1:1", extra_input={"seed": 7})
    fields = {field.name: getattr(request, field.name) for field in attrs.fields(ImageToImage)}
    (tmp_path / "list.jsonl").write_text(json.dumps(fields))
    (job,) = read_jobs(tmp_path / "list.jsonl")
    assert isinstance(job, Job)
    assert (job.request, job.extra) == (request, {})
