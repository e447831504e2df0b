"""The contact sheet: what came out of what, one card per task, drawn with Pillow. Knows nothing of tasks."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeAlias

from PIL import Image, ImageDraw, ImageFont, ImageOps

from flux2_async.emulator.lettering import wrapped

Colour: TypeAlias = tuple[int, int, int]

PAPER: Final[Colour] = (243, 241, 236)
CARD: Final[Colour] = (255, 255, 255)
EDGE: Final[Colour] = (226, 222, 213)
STAGE: Final[Colour] = (235, 232, 225)
INK: Final[Colour] = (38, 40, 46)
QUIET: Final[Colour] = (122, 120, 114)
BLUSH: Final[Colour] = (248, 234, 230)
BRICK: Final[Colour] = (150, 58, 44)
AMBER: Final[Colour] = (253, 236, 200)
BROWN: Final[Colour] = (116, 76, 14)

COLUMNS: Final = 4
MARGIN: Final = 64
GAP: Final = 28
HEADER: Final = 176
WIDTH: Final = 440
PAD: Final = 22
STAGE_HEIGHT: Final = 330
STRIP: Final = 64
RADIUS: Final = 14
HEIGHT: Final = STAGE_HEIGHT + STRIP + 158

PROMPT_LINES: Final = 2
PROMPT_SIZE: Final = 20
LEADING: Final = 28
FACTS_SIZE: Final = 15
# The font that comes with Pillow has one weight.
BOLD: Final = 0.55


def draw_sheet(cards: Sequence[Image.Image], *, title: str, subtitle: str, remark: str) -> Image.Image:
    """Put cards that `draw_card` gave together in reading order, under a title, a line and a remark; blocks."""
    rows = -(-len(cards) // COLUMNS)
    width = 2 * MARGIN + COLUMNS * WIDTH + (COLUMNS - 1) * GAP
    height = HEADER + rows * (HEIGHT + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 94), title, INK, _font(46), anchor="ls", stroke_width=0.8)
    draw.text((MARGIN, 132), subtitle, QUIET, _font(20), anchor="ls")
    draw.text((width - MARGIN, 132), remark, QUIET, _font(20), anchor="rs")
    for index, card in enumerate(cards):
        row, column = divmod(index, COLUMNS)
        place = (MARGIN + column * (WIDTH + GAP), HEADER + row * (HEIGHT + GAP))
        sheet.paste(EDGE, (*place, place[0] + WIDTH, place[1] + HEIGHT), _rounded(card.size, RADIUS))
        inner = card.crop((1, 1, WIDTH - 1, HEIGHT - 1))
        sheet.paste(inner, (place[0] + 1, place[1] + 1), _rounded(inner.size, RADIUS - 1))
    return sheet


def draw_card(
    prompt: str,
    inputs: Sequence[Path] = (),
    picture: Path | None = None,
    *,
    reason: str = "",
    running: str = "",
    facts: str = "",
    figures: str = "",
    note: str = "",
) -> Image.Image:
    """Draw one task: the picture, or the reason in its place, with the reference pictures, shown small, below; blocks.

    Of one that has not ended `running` says where it is, and the reason when it was expected.

    The prompt is shortened to two lines; the facts stand to the left in the line below it, the figures to the right,
    and the note, a few words, in the corner of the picture. OSError: a picture cannot be read.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), CARD)
    draw = ImageDraw.Draw(image)
    if picture is None:
        _reason(draw, reason, running)
    else:
        image.paste(STAGE, (0, 0, WIDTH, STAGE_HEIGHT))
        shown = _thumbnail(picture, (WIDTH - 2 * PAD, STAGE_HEIGHT - 2 * PAD))
        image.paste(shown, ((WIDTH - shown.width) // 2, (STAGE_HEIGHT - shown.height) // 2))
    if note:
        size = (round(_font(FACTS_SIZE).getlength(note)) + 26, 30)
        pill = Image.new("RGB", size, AMBER)
        ImageDraw.Draw(pill).text((size[0] / 2, size[1] / 2), note, BROWN, _font(FACTS_SIZE), anchor="mm")
        image.paste(pill, (12, 12), _rounded(size, 15))
    _inputs(image, inputs)
    y = STAGE_HEIGHT + 20 + STRIP + 34
    for line in wrapped(prompt, _font(PROMPT_SIZE), WIDTH - 2 * PAD, PROMPT_LINES):
        draw.text((PAD, y), line, INK, _font(PROMPT_SIZE), anchor="ls", stroke_width=BOLD / 4)
        y += LEADING
    base = HEIGHT - PAD
    draw.text((PAD, base), facts, QUIET, _font(FACTS_SIZE), anchor="ls")
    draw.text((WIDTH - PAD, base), figures, INK, _font(FACTS_SIZE), anchor="rs", stroke_width=BOLD / 4)
    return image


def _inputs(image: Image.Image, inputs: Sequence[Path]) -> None:
    x, y = PAD, STAGE_HEIGHT + 20
    if not inputs:
        ImageDraw.Draw(image).text((x, y + STRIP / 2), "from words alone", QUIET, _font(FACTS_SIZE), anchor="lm")
        return
    # All of one height, so that the row is a line; four landscapes just fit.
    for path in inputs:
        thumbnail = _thumbnail(path, (WIDTH, STRIP))
        image.paste(thumbnail, (x, y), _rounded(thumbnail.size, 5))
        x += thumbnail.width + 8


def _reason(draw: ImageDraw.ImageDraw, reason: str, running: str) -> None:
    paper, ink = (STAGE, QUIET) if running else (BLUSH, BRICK)
    draw.rectangle((0, 0, WIDTH, STAGE_HEIGHT), paper)
    lines = wrapped(reason, _font(18), WIDTH - 4 * PAD, 5)
    y = STAGE_HEIGHT / 2 - 13 * len(lines)
    draw.text((WIDTH / 2, y - 14), running or "No picture", ink, _font(24), anchor="ms", stroke_width=BOLD)
    for line in lines:
        y += 26
        draw.text((WIDTH / 2, y), line, ink, _font(18), anchor="ms")


@functools.lru_cache(maxsize=64)
def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    # Four times as large and reduced: Pillow draws corners without anti-aliasing.
    large = Image.new("L", (size[0] * 4, size[1] * 4), 0)
    ImageDraw.Draw(large).rounded_rectangle((0, 0, size[0] * 4 - 1, size[1] * 4 - 1), radius * 4, fill=255)
    return large.resize(size, Image.Resampling.BOX)


@functools.lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise OSError(
            "this Pillow was built without FreeType; install the usual one with pip install --force-reinstall pillow"
        )
    return font


@functools.lru_cache(maxsize=64)
def _thumbnail(path: Path, box: tuple[int, int]) -> Image.Image:
    with Image.open(path) as opened:
        # A JPEG of 2K is decoded at a part of the work.
        opened.draft("RGB", (box[0] * 2, box[1] * 2))
        return ImageOps.contain(ImageOps.exif_transpose(opened).convert("RGB"), box, Image.Resampling.LANCZOS)
