"""What a file is by its first bytes, and what it may be called."""

import re

import pytest
from file_host import JPEG, PNG, WEBP
from hypothesis import example, given
from hypothesis import strategies as st

from flux2_async._media import describe, is_error_page, picture_type, result_name, upload_name

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("head", "name", "mime_type"),
    [(JPEG, "JPEG", "image/jpeg"), (PNG, "PNG", "image/png"), (WEBP, "WebP", "image/webp")],
)
def test_knows_the_pictures_that_the_api_takes(head: bytes, name: str, mime_type: str) -> None:
    """JPEG, PNG and WebP are told by content."""
    found = picture_type(head + b"more")

    assert found is not None
    assert (found.name, found.mime_type) == (name, mime_type)
    assert describe(head) == name


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"GIF89a....", "GIF"),
        (b"BM......", "BMP"),
        (b"II*\0....", "TIFF"),
        (b"\0\0\0\x20ftypheic", "HEIC"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"%PDF-1.7", "PDF"),
        (b"<svg xmlns", "text"),
        (b"RIFF....WAVEfmt ", "something else"),
        (b"\x89PNG\r\n", "something else"),
        (b"", "something else"),
    ],
)
def test_names_what_the_api_does_not_take(head: bytes, name: str) -> None:
    """Anything else is no picture type, and has a name for the error text."""
    assert picture_type(head) is None
    assert describe(head) == name


@given(st.binary(max_size=64))
def test_a_name_for_any_content_is_one_of_a_fixed_list(head: bytes) -> None:
    """Whatever the content, its description never repeats it."""
    assert re.fullmatch(
        "JPEG|PNG|WebP|GIF|BMP|TIFF|AVIF|HEIC|MP4|JPEG XL|ICO|Photoshop|PDF|text|something else", describe(head)
    )


@pytest.mark.parametrize(
    "head",
    [b"<!DOCTYPE html><html>", b"\n <html>", b"\xef\xbb\xbf<?xml version='1.0'?><Error>", b'{"code":404}', b"[]"],
)
def test_markup_and_json_are_error_pages(head: bytes) -> None:
    """What servers write instead of a picture is told from a picture."""
    assert is_error_page(head)


@given(st.sampled_from([JPEG, PNG, WEBP]), st.binary())
def test_no_picture_is_taken_for_an_error_page(magic: bytes, rest: bytes) -> None:
    """A picture is never refused as an error page, whatever follows its first bytes."""
    assert not is_error_page(magic + rest)


@given(st.none() | st.text(), st.sampled_from(["jpg", "png", "webp"]))
@example("../../etc/passwd", "png")
@example("C:\\Users\\me\\Bild 1.JPG", "jpg")
@example(".png", "png")
@example("-rf", "png")
def test_an_upload_name_is_plain_and_holds_the_hash(file_name: str | None, extension: str) -> None:
    """Any name of the caller's becomes one plain name with the hash and the extension of the content."""
    name = upload_name(DIGEST, extension, file_name)

    assert re.fullmatch(rf"([A-Za-z0-9_][A-Za-z0-9_-]{{0,63}}-)?{DIGEST[:32]}\.{extension}", name)


def test_an_upload_name_keeps_the_stem_that_the_caller_chose() -> None:
    """The caller can recognise the file; without a name it is the hash alone."""
    assert upload_name(DIGEST, "jpg", "/photos/my can_2.png") == f"my-can_2-{DIGEST[:32]}.jpg"
    assert upload_name(DIGEST, "jpg", None) == f"{DIGEST[:32]}.jpg"


@given(st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True), st.integers(1, 9))
def test_a_task_id_that_is_a_plain_name_names_the_file(task_id: str, number: int) -> None:
    """The usual ids are found in the file name."""
    assert result_name(task_id, number, PNG) == f"{task_id}-{number}.png"


@given(st.text(st.characters()) | st.text("aZ0_-", min_size=129, max_size=140))
@example("../../.ssh/authorized_keys")
@example("a\n")
@example("")
@example("\ud800")
def test_no_task_id_leads_out_of_the_folder(task_id: str) -> None:
    """Any id gives a plain name; a strange one its hash, so that two of them differ."""
    name = result_name(task_id, 1, JPEG)

    assert re.fullmatch(r"[A-Za-z0-9_-]{1,128}-1\.jpg", name)
    assert name == f"{task_id}-1.jpg" or re.fullmatch(r"[0-9a-f]{32}-1\.jpg", name)


def test_an_unknown_content_is_called_bin() -> None:
    """The extension never comes from outside."""
    assert result_name("t1", 2, b"GIF89a") == "t1-2.bin"
