"""The contact sheet, pixel by pixel where it matters."""

from pathlib import Path

import pytest
from PIL import Image, ImageFont

from flux2_async.cli import sheet
from flux2_async.cli.sheet import draw_card, draw_sheet
from flux2_async.emulator.lettering import wrapped

GREEN = (20, 160, 60)
BLUE = (30, 60, 200)


def painted(path: Path, size: tuple[int, int], colour: tuple[int, int, int]) -> Path:
    """A picture of one colour."""
    Image.new("RGB", size, colour).save(path)
    return path


def box_of(image: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """Where a colour is."""
    same = [image.getchannel(n).point([255 * (value == colour[n]) for value in range(256)]) for n in range(3)]
    return Image.merge("RGB", same).convert("L").point([0] * 255 + [255]).getbbox()


@pytest.mark.parametrize("size", [(1280, 720), (720, 1280), (1024, 1024), (2496, 1664)])
def test_a_picture_keeps_its_ratio_and_stands_in_the_middle(tmp_path: Path, size: tuple[int, int]) -> None:
    """The thumbnail fills its stage in one direction, in its own ratio, with equal borders."""
    card = draw_card("x", picture=painted(tmp_path / "a.png", size, GREEN))
    box = box_of(card, GREEN)
    assert box is not None
    left, top, right, bottom = box
    assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.01)
    assert abs(left - (sheet.WIDTH - right)) <= 1
    assert abs(top - (sheet.STAGE_HEIGHT - bottom)) <= 1
    assert (right - left, bottom - top) == pytest.approx(
        max((sheet.WIDTH - 44, (sheet.WIDTH - 44) * size[1] / size[0]), (0, 0))
        if size[0] * (sheet.STAGE_HEIGHT - 44) > size[1] * (sheet.WIDTH - 44)
        else ((sheet.STAGE_HEIGHT - 44) * size[0] / size[1], sheet.STAGE_HEIGHT - 44),
        abs=1,
    )


def test_the_inputs_stand_under_the_picture(tmp_path: Path) -> None:
    """Every reference picture is shown small, in order, within the card."""
    inputs = [painted(tmp_path / f"{n}.png", (640, 427), (200, 40 * n, 10)) for n in range(4)]
    card = draw_card("x", inputs=inputs, picture=painted(tmp_path / "a.png", (100, 100), GREEN))
    boxes = [box_of(card, (200, 40 * n, 10)) for n in range(4)]
    assert all(box is not None and box[1] >= sheet.STAGE_HEIGHT and box[2] <= sheet.WIDTH for box in boxes)
    assert [box[0] for box in boxes if box] == sorted(box[0] for box in boxes if box)


def test_a_failed_task_shows_its_reason_in_place_of_a_picture() -> None:
    """Without a picture the stage is tinted and written on."""
    card = draw_card("x", reason="refused by moderation")
    assert card.getpixel((5, 5)) == sheet.BLUSH
    assert box_of(card, sheet.BRICK) is not None
    assert box_of(draw_card("x"), sheet.STAGE) is None


def test_a_note_is_a_pill_in_the_corner(tmp_path: Path) -> None:
    """A note is drawn over the upper left corner, and only when there is one."""
    picture = painted(tmp_path / "a.png", (800, 600), BLUE)
    assert box_of(draw_card("x", picture=picture), sheet.AMBER) is None
    box = box_of(draw_card("x", picture=picture, note="429 first"), sheet.AMBER)
    assert box is not None
    assert max(box[3], box[0]) < 60


def test_long_words_stay_inside(tmp_path: Path) -> None:
    """However long a prompt is, it takes two lines, ends with an ellipsis and stays within the card."""
    font = ImageFont.load_default(sheet.PROMPT_SIZE)
    lines = wrapped("many words " * 50, font, 396, 2)
    assert len(lines) == 2
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 396 for line in lines)
    [line] = wrapped("x" * 300, font, 396, 2)
    assert font.getlength(line) <= 396


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (4, 1), (5, 2), (16, 4)])
def test_a_sheet_is_as_tall_as_its_rows(count: int, rows: int) -> None:
    """Four cards a row, with the header above."""
    card = Image.new("RGB", (sheet.WIDTH, sheet.HEIGHT), GREEN)
    drawn = draw_sheet([card] * count, title="t", subtitle="s", remark="r")
    assert drawn.height == sheet.HEADER + rows * (sheet.HEIGHT + sheet.GAP) - sheet.GAP + sheet.MARGIN
    box = box_of(drawn, GREEN)
    assert box is not None
    assert box[1] - 1 <= sheet.HEADER <= box[1] + 1
    assert drawn.height - box[3] == pytest.approx(sheet.MARGIN, abs=1)
