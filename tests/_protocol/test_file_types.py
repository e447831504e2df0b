"""What a file is, and whether all of it is there, told by its own bytes."""

import io
import itertools
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import file_host
import pytest
from file_host import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flux2_async._protocol.file_types import JPEG, PNG, WEBP, FileType, Walk, describe, file_type, is_text, picture_type
from flux2_async.cli.script import PHOTOS

BEGINNINGS = {
    "JPEG": b"\xff\xd8\xff\xe0",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "WebP": b"RIFF\0\0\0\0WEBP",
    "GIF": b"GIF89a\1\0\1\0",
    "BMP": b"BM\x3a\0\0\0\0\0\0\0",
    "TIFF": b"II*\0....",
    "HEIC": b"\0\0\0\x20ftypheic",
    "AVIF": b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif",
    "JPEG XL": b"\xff\x0a\xfa\x1f",
    "MP4": b"\0\0\0\x20ftypisom",
    "QuickTime": b"\0\0\0\x14ftypqt  ",
    "M4A": b"\0\0\0\x20ftypM4A ",
    "WebM": b"\x1a\x45\xdf\xa3\x9f",
    "WAV": b"RIFF\0\0\0\0WAVEfmt ",
    "Ogg": b"OggS\0\2",
    "FLAC": b"fLaC\0\0\0\x22",
    "MP3": b"ID3\4\0\0",
    "AAC": b"\xff\xf1\x50\x80",
    "PDF": b"%PDF-1.7",
    "text": b"<svg xmlns",
    "something else": b"\x89PNG\r\n\x1a",
}


def walked(content: bytes, *, sizes: Iterator[int] | None = None) -> Walk:
    walk, file = Walk(), io.BytesIO(content)
    while chunk := file.read(next(sizes) if sizes else 65536):
        walk.feed(chunk)
    return walk


def encoded(kind: str, image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (90, 60)) -> Image.Image:
    bands = [Image.effect_noise(size, 90) for _ in Image.new(mode, (1, 1)).getbands()]
    return Image.merge(mode, bands) if len(bands) > 1 else bands[0].convert(mode)


def with_thumbnail() -> bytes:
    """A JPEG whose Exif block holds another whole JPEG, as those of cameras do."""
    exif = b"Exif\0\0" + encoded("JPEG", noise(size=(40, 30)), quality=30)
    content = encoded("JPEG", noise(), quality=90)
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]


def animated(kind: str, **options: Any) -> bytes:
    return encoded(kind, noise(), save_all=True, append_images=[noise(), noise()], duration=50, **options)


MADE: dict[str, Callable[[], bytes]] = {
    "baseline": lambda: encoded("JPEG", noise(), quality=90),
    "progressive": lambda: encoded("JPEG", noise(), quality=90, progressive=True),
    "optimised": lambda: encoded("JPEG", noise(), quality=30, optimize=True),
    "grey": lambda: encoded("JPEG", noise("L")),
    "CMYK": lambda: encoded("JPEG", noise("CMYK")),
    "restart markers": lambda: encoded("JPEG", noise(), restart_marker_blocks=1),
    "a comment that ends pictures": lambda: encoded("JPEG", noise(), comment=b"\xff\xd9" * 50),
    "a thumbnail": with_thumbnail,
    "MPF": lambda: encoded("MPO", noise(), save_all=True, append_images=[noise(size=(20, 10))]),
    "rubbish between segments": lambda: encoded("JPEG", noise()).replace(b"\xff\xdb", b"\0\0\xff\xff\xff\xdb", 1),
    "PNG": lambda: encoded("PNG", noise()),
    "PNG with alpha": lambda: encoded("PNG", noise("RGBA")),
    "palette": lambda: encoded("PNG", noise().quantize(16)),
    "16 bits": lambda: encoded("PNG", noise("L").convert("I;16")),
    "APNG": lambda: animated("PNG"),
    "lossy": lambda: encoded("WEBP", noise()),
    "lossless": lambda: encoded("WEBP", noise(), lossless=True),
    "WebP with alpha": lambda: encoded("WEBP", noise("RGBA"), icc_profile=b"profile"),
    "animated WebP": lambda: animated("WEBP"),
}


@pytest.mark.parametrize(("name", "head"), BEGINNINGS.items(), ids=list(BEGINNINGS))
def test_names_a_file_by_its_first_bytes(name: str, head: bytes) -> None:
    """Formats are told by content, and text is none of them."""
    assert describe(head) == name
    assert is_text(head) == (name == "text")
    assert (file_type(head) is None) == (name in ("text", "something else"))


def test_the_api_takes_three_formats() -> None:
    """JPEG, PNG and WebP, by the names that the API has for them."""
    taken = {kind.mime_type for head in BEGINNINGS.values() if (kind := picture_type(head))}
    assert taken == {"image/jpeg", "image/png", "image/webp"}


@given(st.binary(max_size=64))
def test_a_name_for_any_content_is_one_of_a_fixed_list(head: bytes) -> None:
    """Whatever the content, its description never repeats it."""
    assert describe(head) in {*BEGINNINGS, "ICO", "Photoshop", "JPEG 2000"}


@pytest.mark.parametrize(
    "head",
    [
        b"<!DOCTYPE html><html>",
        b"\n <html>",
        b"\xef\xbb\xbf<?xml version='1.0'?><Error>",
        b'{"code":404}',
        b"[]",
        b"Service unavailable",
        b"BMW is the name of a factory",
        "Сервис недоступен".encode(),
        "Сервис недоступен".encode("cp1251"),
        "Service unavailable".encode("utf-16"),
        b"<html>" + bytes(5000),
    ],
)
def test_what_servers_write_is_text(head: bytes) -> None:
    """Messages in markup, JSON or plain words, in the encodings they come in, are told from files."""
    assert is_text(head)


@given(st.sampled_from([head for name, head in BEGINNINGS.items() if name not in ("text", "something else")]))
def test_no_known_file_is_taken_for_text(head: bytes) -> None:
    """Whatever follows its first bytes."""
    assert not is_text(head + b"<html>" * 100)


@pytest.mark.parametrize("make", MADE.values(), ids=list(MADE))
def test_sees_the_end_of_what_encoders_make(make: Callable[[], bytes]) -> None:
    """The whole file is whole, with and without bytes behind it; cut anywhere before its end it is not."""
    content = make()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
    walk = walked(content)
    assert walk.is_ended
    assert walked(content + b"trailing").is_ended
    # Of several pictures in one file the first is what was asked for.
    end = content.index(b"\xff\xd9\xff\xd8", 1000) + 2 if make is MADE["MPF"] else len(content)

    assert not walked(content[: len(content) // 2]).is_ended
    cuts = {*range(1, 100), *range(end - 100, end), *random.Random(1).sample(range(1, end), 50)}
    # The last byte of a WebP may be one that only makes a length even.
    unseen = {cut for cut in cuts if walked(content[:cut]).is_ended}
    assert unseen <= ({end - 1} if content.startswith(b"RIFF") else set())


@pytest.mark.parametrize("make", MADE.values(), ids=list(MADE))
def test_how_it_comes_makes_no_difference(make: Callable[[], bytes]) -> None:
    """In single bytes, in odd pieces or at once: the same end is found, and hardly anything kept."""
    content = make()
    whole = walked(content)
    for sizes in ([1], [7], [1, 2, 3, 5, 8, 13, 4096]):
        walk = walked(content, sizes=itertools.cycle(sizes))
        assert (walk, walk.is_ended) == (whole, True)
        assert len(walk.rest) < 64


def test_photographs_of_others() -> None:
    """What cameras and other people's programs wrote is followed to its end, and its first half is not whole."""
    for path in PHOTOS.values():
        content = path.read_bytes()
        assert walked(content).is_ended, path
        assert not walked(content[: len(content) // 2]).is_ended, path


def test_a_webp_may_lack_its_last_padding() -> None:
    """A byte that only makes a length even is no content; any other one is."""
    even, padded = picture(1000, magic=file_host.WEBP), picture(999, magic=file_host.WEBP) + b"\0"
    assert walked(even).is_ended
    assert not walked(even[:-1]).is_ended
    assert walked(padded).is_ended
    assert walked(padded[:-1]).is_ended
    assert not walked(padded[:-2]).is_ended


@pytest.mark.parametrize(
    "content",
    [
        file_host.JPEG + b"\0\1" + b"\xff\xda\0\2\xff\xd9",
        file_host.JPEG + b"\0\2\xff\xd9" + bytes(9),
        file_host.PNG + b"\xff\xff\xff\xffIDAT" + bytes(100),
        file_host.PNG + bytes(100),
        b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff" + bytes(100),
    ],
    ids=["a length that cannot be", "no scan", "a chunk of 4 GB", "a chunk without a name", "4 GB"],
)
def test_parts_that_do_not_fit_have_no_end(content: bytes) -> None:
    """A file that makes no sense is never taken for whole."""
    walk = walked(content)
    assert walk.has_end
    assert not walk.is_ended


@given(st.sampled_from([file_host.JPEG, file_host.PNG, file_host.WEBP]), st.binary(max_size=300), st.integers(1, 9))
def test_any_bytes_are_walked(magic: bytes, content: bytes, size: int) -> None:
    """Nothing raises and nothing hangs, and in whatever pieces it comes the answer is the same."""
    whole = walked(magic + content)
    pieces = walked(magic + content, sizes=itertools.repeat(size))
    assert pieces.is_ended == whole.is_ended
    assert pieces.type == whole.type


@given(
    st.sampled_from([file_host.JPEG, file_host.PNG, file_host.WEBP]),
    st.integers(60, 5000),
    st.data(),
)
def test_a_changed_byte_raises_nothing(magic: bytes, size: int, data: st.DataObject) -> None:
    """Bit rot changes what is found, never breaks the walk."""
    content = bytearray(picture(size, magic=magic))
    content[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    walked(bytes(content))


@pytest.mark.parametrize(
    ("kind", "magic"),
    [(JPEG, file_host.JPEG), (PNG, file_host.PNG), (WEBP, file_host.WEBP)],
    ids=str,
)
def test_other_formats_are_not_walked(kind: FileType, magic: bytes) -> None:
    """Only what says where it ends is followed."""
    assert walked(picture(100, magic=magic)).type is kind
    for name, head in BEGINNINGS.items():
        walk = walked(head + bytes(100))
        assert walk.has_end == (name in ("JPEG", "PNG", "WebP"))
        assert walk.is_ended is False
