"""A file that is arriving."""

from pathlib import Path

import pytest
from emulated import logged
from file_host import JPEG, PNG, WEBP, picture

from flux2_async._http.partial_file import Part
from flux2_async.errors import ProtocolError, TaskError, TransportError

MAX_DOWNLOAD = 200_000_000

DATE = "Sun, 22 Nov 2026 20:00:00 GMT"
OTHER = "Sun, 22 Nov 2026 20:00:01 GMT"
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
        pytest.param("bytes 40-99/" + "1" * 5000, False, id="a number of 5000 digits"),
        pytest.param("bytes " + "4" * 5000 + "-99/100", False, id="a start of 5000 digits"),
        ("bytes \u0664\u0660-99/100", False),
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
    assert part.continues({"Content-Range": content_range, "ETag": '"one"'}) == fits
    part.discard()


@pytest.mark.parametrize(
    ("given", "told", "fits"),
    [
        ({"ETag": '"one"'}, {"ETag": '"one"'}, True),
        ({"ETag": '"one"'}, {"ETag": '"two"'}, False),
        ({"ETag": '"one"'}, {}, False),
        ({"ETag": '"one"', "Last-Modified": DATE}, {"ETag": '"one"'}, True),
        ({"ETag": '"one"', "Last-Modified": DATE}, {"ETag": '"one"', "Last-Modified": OTHER}, False),
        ({"Last-Modified": DATE}, {"Last-Modified": DATE}, True),
        ({"Last-Modified": DATE}, {"Last-Modified": OTHER}, False),
        ({"Last-Modified": DATE, "ETag": 'W/"one"'}, {"Last-Modified": DATE, "ETag": 'W/"two"'}, False),
    ],
)
def test_takes_a_part_of_the_same_file_only(
    part: Part, given: dict[str, str], told: dict[str, str], *, fits: bool
) -> None:
    """A cache that knows no If-Range may answer with a piece of another file, and says so in its validators."""
    part.restart(given)
    part.write(picture(40))

    assert part.continues({"Content-Range": "bytes 40-99/100", **told}) == fits
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

    assert part.continues({"Content-Range": "bytes 40-99/100", "ETag": '"one"'})
    assert part.total == 100
    part.discard()


@pytest.mark.parametrize(
    ("content_range", "ends"),
    [
        ("bytes */40", True),
        ("bytes */41", False),
        ("", False),
        ("bytes */" + "4" * 5000, False),
    ],
)
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
        (b"Service unavailable", "19", "a web page or a message"),
        (b'{"code":404}', None, "a web page or a message"),
        (PNG, "4", "8 bytes came where 4 were announced"),
    ],
    ids=["empty", "html", "words", "json", "more"],
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
    part.restart({"Content-Length": "60"})
    part.write(picture(60, seed=1))
    part.check_whole()
    part.publish(tmp_path / "t1-1.png")

    assert (tmp_path / "t1-1.png").read_bytes() == picture(60, seed=1)
    assert part.head == picture(60, seed=1)


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


CUT = {kind: picture(100, magic=magic)[:90] for kind, magic in (("JPEG", JPEG), ("PNG", PNG), ("WebP", WEBP))}


def arrived(part: Part, content: bytes, **headers: str) -> Part:
    part.restart({key.replace("_", "-"): value for key, value in headers.items()})
    part.write(content)
    return part


@pytest.mark.parametrize("magic", [JPEG, PNG, WEBP], ids=["JPEG", "PNG", "WebP"])
@pytest.mark.parametrize("headers", [{}, {"Content_Length": "120"}, {"Transfer_Encoding": "chunked"}], ids=str)
def test_a_picture_that_reaches_its_own_end_is_whole(part: Part, magic: bytes, headers: dict[str, str]) -> None:
    """Whatever the server says or does not say of its length; what lies behind its end is kept."""
    arrived(part, picture(100, magic=magic) + bytes(20), **headers).check_whole()
    assert part.received == 120
    part.discard()


@pytest.mark.parametrize(("name", "content"), CUT.items(), ids=list(CUT))
@pytest.mark.parametrize("headers", [{}, {"Content_Length": "90"}, {"Transfer_Encoding": "chunked"}], ids=str)
def test_a_picture_that_is_cut_is_not_whole(part: Part, name: str, content: bytes, headers: dict[str, str]) -> None:
    """Not even when its length is the length of the cut, and it comes anew."""
    with pytest.raises(ProtocolError, match=f"the {name} that came lacks its end; download it again"):
        arrived(part, content, **headers, ETag='"one"').check_whole()
    assert part.request_headers() == {}
    part.discard()


def test_what_comes_twice_the_same_is_saved_with_a_warning(part: Part, caplog: pytest.LogCaptureFixture) -> None:
    """An encoder may leave the end out: a picture that was paid for is not thrown away for it."""
    for content in (CUT["JPEG"], CUT["JPEG"][:-1], picture(80, magic=JPEG)[:-1]):
        with pytest.raises(ProtocolError):
            arrived(part, content, Content_Length=str(len(content))).check_whole()
    assert logged(caplog) == []
    arrived(part, CUT["JPEG"], Content_Length="90").check_whole()

    assert "picture 1 of task t1 lacks the end of a JPEG, but came twice like this; saved as it is" in caplog.text
    part.discard()


@pytest.mark.parametrize("headers", [{}, {"Transfer_Encoding": "chunked"}, {"Content_Encoding": "gzip"}], ids=str)
def test_without_a_length_the_same_cut_twice_is_still_a_cut(part: Part, headers: dict[str, str]) -> None:
    """Then nothing says that there is no more of it; the length of packed content says nothing either."""
    for _ in range(3):
        with pytest.raises(ProtocolError, match="lacks its end"):
            arrived(part, CUT["PNG"], **headers).check_whole()
    part.discard()


@pytest.mark.parametrize(
    ("headers", "whole"),
    [
        ({"Content_Length": "64"}, True),
        ({"Transfer_Encoding": "chunked"}, True),
        ({}, False),
        ({"Content_Length": "64", "Content_Encoding": "gzip"}, False),
        ({"Content_Length": "6" * 5000}, False),
    ],
    ids=["a length", "chunks", "neither", "packed", "no number"],
)
@pytest.mark.parametrize("magic", [b"GIF89a", b"\0\0\0\x20ftypavif", b"\x93anything"], ids=["GIF", "AVIF", "unknown"])
def test_other_files_are_whole_when_http_says_so(
    part: Part, magic: bytes, headers: dict[str, str], *, whole: bool
) -> None:
    """A format that is not followed to its end is judged by what is left: its length, or the last chunk."""
    arrived(part, magic.ljust(64, b"\0"), **headers)
    if whole:
        part.check_whole()
    else:
        with pytest.raises(ProtocolError, match=r"nothing tells whether the .* that came is whole"):
            part.check_whole()
    part.discard()


def test_the_rest_confirms_the_length(part: Part) -> None:
    """A 206 that ends where the file ends, and a 416 at its end, say that it is whole."""
    for confirmed in (part.continues, part.ends_at):
        arrived(part, b"GIF89a".ljust(40, b"\0"), ETag='"one"')
        assert not part.is_counted
        unsatisfied = confirmed == part.ends_at
        told = "bytes */40" if unsatisfied else "bytes 40-99/100"
        assert confirmed({"Content-Range": told, "ETag": '"one"'})
        part.write(b"" if unsatisfied else bytes(60))
        part.check_whole()
    part.discard()
