"""The emulator's pictures: sizes, colours, marks, and what happens with references that are no pictures."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from flux2_async.emulator import lettering
from flux2_async.emulator.render import SIZES_1K, draw, size_of

RIBBON = (250, 204, 21)


def encoded(colour: str, size: tuple[int, int] = (400, 300), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def drawn(prompt: str, ratio: str = "1:1", references: Sequence[bytes | str] = ()) -> Image.Image:
    return Image.open(io.BytesIO(draw(prompt, ratio, references=references))).convert("RGB")


def colours(picture: Image.Image) -> list[tuple[int, int, int]]:
    content = picture.tobytes()
    return list(zip(content[::3], content[1::3], content[2::3], strict=True))


def near(one: tuple[int, int, int], other: tuple[int, int, int], distance: int) -> bool:
    return all(abs(a - b) < distance for a, b in zip(one, other, strict=True))


def pixel(picture: Image.Image, x: float, y: float) -> tuple[int, int, int]:
    """The colour around a point that is given in parts of width and height."""
    left, top = int(picture.width * x), int(picture.height * y)
    spot = picture.crop((left - 4, top - 4, left + 4, top + 4)).resize((1, 1), Image.Resampling.BOX)
    return colours(spot)[0]


@pytest.mark.parametrize("ratio", SIZES_1K)
def test_sizes_have_the_exact_ratio_in_steps_of_sixteen(ratio: str) -> None:
    """About one megapixel at 1K; 2K has twice the width and height."""
    width, height = size_of(ratio, "1K")
    wanted = Fraction(*map(int, ratio.split(":")))

    assert Fraction(width, height) == wanted
    assert (width % 16, height % 16) == (0, 0)
    assert 0.9e6 <= width * height <= 1.1e6
    assert size_of(ratio, "2K") == (2 * width, 2 * height)


@pytest.mark.parametrize(
    ("first", "size"),
    [((3000, 2000), (1248, 832)), ((500, 500), (1024, 1024)), ((100, 900), (592, 1776)), (None, (1024, 1024))],
)
def test_auto_takes_the_first_pictures_ratio(first: tuple[int, int] | None, size: tuple[int, int]) -> None:
    """At about one megapixel, at most 3:1, square without a picture."""
    width, height = size_of("auto", "1K", first)

    assert (width % 16, height % 16) == (0, 0)
    assert (width, height) == pytest.approx(size, abs=16)


@pytest.mark.parametrize(("kind", "name", "resolution"), [("jpeg", "JPEG", "2K"), ("png", "PNG", "1K")])
def test_a_picture_has_the_format_and_size_asked_for(kind: Literal["jpeg", "png"], name: str, resolution: str) -> None:
    """JPEG or PNG, 1K or 2K, with and without references."""
    for references in ((), (encoded("teal"),)):
        content = draw("a quiet harbour", "3:2", resolution, references=references, kind=kind)
        picture = Image.open(io.BytesIO(content))

        assert (picture.format, picture.size) == (name, size_of("3:2", resolution))


def test_the_same_job_gives_the_same_bytes_and_another_prompt_others() -> None:
    """So a cached picture can be dropped and drawn again."""
    assert draw("one") == draw("one")
    assert len({draw("one"), draw("two"), draw("one", number=1)}) == 3


def test_two_pictures_stand_side_by_side() -> None:
    """Red at the left and blue at the right stay recognisable, and flow into each other in the middle."""
    picture = drawn("both", "16:9", references=(encoded("red"), encoded("blue")))
    left, middle, right = (pixel(picture, x, 0.5) for x in (0.15, 0.5, 0.85))

    assert left[0] > 2 * left[2]
    assert right[2] > 2 * right[0]
    assert left[0] > middle[0] > right[0]


def test_upright_pictures_are_stacked() -> None:
    """In 9:16 the first is above the second."""
    picture = drawn("both", "9:16", references=(encoded("red"), encoded("blue")))
    top, bottom = pixel(picture, 0.3, 0.25), pixel(picture, 0.3, 0.75)

    assert top[0] > 2 * top[2]
    assert bottom[2] > 2 * bottom[0]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("ratio", ["1:1", "16:9", "9:16"])
def test_one_to_eight_references_all_appear(count: int, ratio: str) -> None:
    """Each reference's colour is found somewhere in the picture."""
    corners = (
        (255, 0, 0),
        (0, 0, 255),
        (0, 255, 0),
        (255, 255, 0),
        (255, 0, 255),
        (0, 255, 255),
        (255, 255, 255),
        (0, 0, 0),
    )
    references = tuple(encoded(f"rgb{colour}") for colour in corners[:count])
    seen = set(colours(drawn("all", ratio, references=references).resize((48, 48))))

    for colour in corners[:count]:
        # The tint moves every colour a little, less than half-way to another corner of the cube.
        assert any(near(colour, spot, 110) for spot in seen), colour


def test_every_picture_is_marked_as_emulated() -> None:
    """The yellow ribbon crosses the upper right corner, and the caption darkens the lower edge."""
    for picture in (drawn("a view"), drawn("a picture", references=(encoded("white"),))):
        corner = picture.crop((picture.width * 3 // 4, 0, picture.width, picture.height // 4))
        yellow = [spot for spot in colours(corner) if near(spot, RIBBON, 40)]

        assert len(yellow) > 0.05 * corner.width * corner.height
        assert max(pixel(picture, 0.98, 0.99)) < 120


def test_the_caption_writes_the_prompt() -> None:
    """Two prompts on the same picture differ in the caption strip only; a long one is shortened to the width."""
    one, other = (Image.new("RGB", (1024, 1024), "gray") for _ in range(2))
    lettering.mark(one, "short", "label")
    lettering.mark(other, "other", "label")
    long = lettering.mark(Image.new("RGB", (1024, 1024), "gray"), "word " * 999 + "x" * 999, "label")

    assert one.crop((0, 0, 1024, 900)).tobytes() == other.crop((0, 0, 1024, 900)).tobytes()
    assert one.tobytes() != other.tobytes()
    # No letter reaches the edge.
    assert max(map(max, colours(long.crop((1015, 960, 1024, 1024))))) < 130


@pytest.mark.parametrize("prompt", ["x" * 5000, "чайник и чашка", "a\nb\tc\x00d", "\ud800 lone"])
@pytest.mark.filterwarnings("error")
def test_any_prompt_can_be_drawn(prompt: str) -> None:
    """One endless word, other scripts, control characters, lone surrogates."""
    assert drawn(prompt).size == (1024, 1024)


@pytest.mark.parametrize(
    "reference",
    [
        "https://files.example/a/very/long/path/and-a-very-long-name-of-a-picture.png",
        b"\x89PNG\r\n\x1a\nbroken",
        b"no picture at all",
        encoded("red")[:200],
    ],
    ids=["address", "broken", "text", "cut"],
)
def test_what_cannot_be_loaded_is_replaced_by_a_neutral_picture(reference: bytes | str) -> None:
    """A light placeholder stands in its place, without the internet and without an error."""
    picture = drawn("edit this", references=(reference,))

    assert min(pixel(picture, 0.3, 0.3)) > 90


def test_a_huge_picture_is_not_opened() -> None:
    """A decompression bomb becomes a placeholder instead of eating the memory."""
    bomb = bytearray(encoded("red", (8, 8)))
    bomb[16:24] = (60000).to_bytes(4) * 2

    assert min(pixel(drawn("edit this", references=(bytes(bomb),)), 0.3, 0.3)) > 90


def test_a_photograph_is_turned_upright() -> None:
    """EXIF orientation counts, also for `auto`."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200), "red").save(buffer, "JPEG", exif=exif)
    picture = drawn("edit this", "auto", references=(buffer.getvalue(),))

    assert picture.width < picture.height


def test_transparent_and_grey_pictures_are_taken(tmp_path: Path) -> None:
    """RGBA, palette and grey pictures, and WebP."""
    for mode, name in (("RGBA", "a.png"), ("L", "b.png"), ("P", "c.png"), ("RGB", "d.webp")):
        Image.new(mode, (40, 40)).save(tmp_path / name)

        assert drawn("edit this", references=((tmp_path / name).read_bytes(),)).size == (1024, 1024)
