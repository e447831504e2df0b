"""A file that is arriving."""

from pathlib import Path

import pytest
from file_host import PNG, picture

from flux2_async._media import MAX_DOWNLOAD
from flux2_async._part import Part
from flux2_async.errors import ProtocolError, TaskError, TransportError

ETAG = {"ETag": '"one"', "Content-Length": "100"}


@pytest.fixture
def part(tmp_path: Path) -> Part:
    part = Part.create("picture 1 of task t1", "t1", tmp_path)
    part.restart(ETAG)
    part.write(picture(40))
    return part


def test_asks_for_what_is_missing(part: Part) -> None:
    """Only what did not come yet, and only of the same file."""
    assert part.request_headers() == {"Range": "bytes=40-", "If-Range": '"one"'}
    part.discard()


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"ETag": 'W/"one"'}, None),
        ({}, None),
        ({"ETag": 'W/"one"', "Last-Modified": "Sun, 22 Nov 2026 20:00:00 GMT"}, "Sun, 22 Nov 2026 20:00:00 GMT"),
        ({"ETag": '"one"', "Content-Encoding": "gzip"}, None),
        ({"ETag": '"one"', "Last-Modified": "Sun, 22 Nov 2026 20:00:00 GMT"}, '"one"'),
    ],
    ids=["weak", "nothing", "date", "packed", "both"],
)
def test_resumes_only_by_a_strong_validator(part: Part, headers: dict[str, str], validator: str | None) -> None:
    """Where the same file cannot be told from another, all of it is asked for again."""
    part.restart(headers)
    part.write(picture(10))

    assert part.request_headers().get("If-Range") == validator
    assert (validator is None) == (part.request_headers() == {})
    part.discard()


@pytest.mark.parametrize(
    ("content_range", "fits"),
    [
        ("bytes 40-99/100", True),
        ("bytes 40-99/*", True),
        ("bytes 39-99/100", False),
        ("bytes 41-99/100", False),
        ("bytes 40-99/101", False),
        ("items 40-99/100", False),
        ("", False),
    ],
)
def test_takes_only_the_part_that_fits(part: Part, content_range: str, *, fits: bool) -> None:
    """A 206 must begin where the file stands, and be of a file of the same length."""
    assert part.continues({"Content-Range": content_range}) == fits
    part.discard()


def test_a_part_that_was_not_asked_for_does_not_fit(part: Part) -> None:
    """After starting anew there is no middle to begin with; packed content has other offsets."""
    assert not part.continues({"Content-Range": "bytes 40-99/100", "Content-Encoding": "gzip"})
    part.forget()
    assert not part.continues({"Content-Range": "bytes 40-99/100"})
    assert not part.ends_at({"Content-Range": "bytes */40"})
    part.discard()


def test_learns_the_length_from_the_rest(part: Part) -> None:
    """Where the first answer told no length, the second one may."""
    part.restart({"ETag": '"one"'})
    part.write(picture(40))

    assert part.continues({"Content-Range": "bytes 40-99/100"})
    assert part.total == 100
    part.discard()


@pytest.mark.parametrize(("content_range", "ends"), [("bytes */40", True), ("bytes */41", False), ("", False)])
def test_knows_from_416_that_nothing_is_missing(part: Part, content_range: str, *, ends: bool) -> None:
    """The file is whole when its length is what came; otherwise it is another file."""
    part.total = None

    assert part.ends_at({"Content-Range": content_range}) == ends
    part.total = 100
    assert not part.ends_at({"Content-Range": content_range})
    part.discard()


def test_a_file_that_lacks_bytes_is_not_whole(part: Part) -> None:
    """The text tells how far it came, and what came is kept for the next try."""
    with pytest.raises(TransportError, match=r"picture 1 of task t1: broke off after 40 of 100 bytes") as caught:
        part.check_whole()
    assert caught.value.task_id == "t1"
    assert part.request_headers() != {}
    part.discard()


@pytest.mark.parametrize(
    ("content", "length", "text"),
    [
        (b"", "0", "an empty file"),
        (b"<html>", "6", "a web page or a message"),
        (b'{"code":404}', None, "a web page or a message"),
        (PNG, "4", "8 bytes came where 4 were announced"),
    ],
    ids=["empty", "html", "json", "more"],
)
def test_what_is_no_picture_is_not_whole(part: Part, content: bytes, length: str | None, text: str) -> None:
    """It is not saved under a picture's name, and the next try starts anew."""
    part.restart({"ETag": '"one"'} | ({} if length is None else {"Content-Length": length}))
    part.write(content)

    with pytest.raises(ProtocolError, match=text) as caught:
        part.check_whole()
    assert caught.value.task_id == "t1"
    assert part.request_headers() == {}
    part.discard()


def test_restart_drops_what_came(part: Part, tmp_path: Path) -> None:
    """Nothing of the first file is left in the second, also when that is shorter."""
    part.restart({"Content-Length": "20"})
    part.write(picture(20, seed=1))
    part.check_whole()
    part.publish(tmp_path / "t1-1.png")

    assert (tmp_path / "t1-1.png").read_bytes() == picture(20, seed=1)
    assert part.head == picture(20, seed=1)


def test_is_published_with_the_permissions_of_any_new_file(part: Part, tmp_path: Path) -> None:
    """The picture can be read by whom the user's umask lets, as any other file of the user."""
    (tmp_path / "usual").touch()
    part.publish(tmp_path / "t1-1.png")

    assert (tmp_path / "usual").stat().st_mode == (tmp_path / "t1-1.png").stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"t1-1.png", "usual"}


def test_is_too_large_by_what_the_server_says(part: Part) -> None:
    """A file above 200 MB is refused before it comes."""
    part.restart({"Content-Length": str(MAX_DOWNLOAD)})
    with pytest.raises(TaskError, match="larger than 200 MB"):
        part.restart({"Content-Length": str(MAX_DOWNLOAD + 1)})
    part.discard()


def test_is_too_large_by_what_comes(part: Part) -> None:
    """A file that grows above 200 MB without saying so is refused as well."""
    part.received = MAX_DOWNLOAD - 8
    part.write(bytes(8))
    with pytest.raises(TaskError, match="larger than 200 MB"):
        part.write(b"!")
    part.discard()
