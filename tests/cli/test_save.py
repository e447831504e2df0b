"""Files under the names that were asked for."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from flux2_async.cli.save import publish

RED = (220, 20, 20)


def picture(path: Path, kind: str, mode: str = "RGB") -> bytes:
    """Make a picture that is red, where it is not transparent; gives its bytes."""
    colour: tuple[int, ...] = (*RED, 0) if mode == "RGBA" else RED
    Image.new(mode, (32, 16), colour).save(path, kind)
    return path.read_bytes()


def test_a_picture_of_the_right_kind_is_not_touched(tmp_path: Path) -> None:
    """What fits already keeps every byte."""
    content = picture(tmp_path / "id-1.jpg", "JPEG")
    assert publish(tmp_path / "id-1.jpg", tmp_path / "out.jpeg") == tmp_path / "out.jpeg"
    assert (tmp_path / "out.jpeg").read_bytes() == content


@pytest.mark.parametrize(
    ("made", "name", "kind"), [("PNG", "o.jpg", "JPEG"), ("WEBP", "o.png", "PNG"), ("PNG", "o.webp", "WEBP")]
)
def test_another_kind_is_converted_over_an_older_file(tmp_path: Path, made: str, name: str, kind: str) -> None:
    """The content becomes what the name says, and replaces what was there."""
    picture(tmp_path / "id-1.bin", made)
    (tmp_path / name).write_bytes(b"older")
    publish(tmp_path / "id-1.bin", tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        assert opened.format == kind
        assert opened.size == (32, 16)
        pixel = opened.convert("RGB").getpixel((8, 8))
    assert pixel == pytest.approx(RED, abs=8)


def test_transparency_becomes_white_in_a_jpeg(tmp_path: Path) -> None:
    """JPEG has no transparency; white is what people expect behind a picture."""
    picture(tmp_path / "id-1.png", "PNG", "RGBA")
    publish(tmp_path / "id-1.png", tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as opened:
        assert opened.getpixel((8, 8)) == (255, 255, 255)


@pytest.mark.parametrize("spoil", [lambda content: b"no picture", lambda content: content[: len(content) // 2]])
def test_what_cannot_be_converted_is_kept(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """A picture that was paid for is never thrown away: it is kept as it came, and the error says where."""
    source = tmp_path / "scratch" / "id-1.png"
    source.parent.mkdir()
    content = spoil(picture(source, "PNG"))
    source.write_bytes(content)
    with pytest.raises(OSError, match=r"cannot be made a JPEG .* it is kept as .*id-1\.png"):
        publish(source, tmp_path / "out.jpg")
    assert (tmp_path / "id-1.png").read_bytes() == content
    assert not (tmp_path / "out.jpg").exists()
