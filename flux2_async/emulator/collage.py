"""A result made of reference pictures: side by side, flowing into each other along slanted seams."""

import math
from collections.abc import Sequence
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from flux2_async.emulator.palette import gradient, harmony

# Masks are painted small and enlarged: a soft seam has no detail to lose.
MASK_SIDE = 256
MOST_IN_A_ROW = 4
OVERLAP = 0.28
"""Part of a panel's width by which it reaches into its neighbours."""


def compose(references: Sequence[Image.Image], size: tuple[int, int], random: Random) -> Image.Image:
    """The references, 1 to 8, as one picture of this size; tint and seams follow from `random`."""
    picture = _cover(references[0], size) if len(references) == 1 else _rows(references, size, random)
    return _vignette(_tinted(picture, random))


def _rows(references: Sequence[Image.Image], size: tuple[int, int], random: Random) -> Image.Image:
    count = _row_count(len(references), size)
    per_row = math.ceil(len(references) / count)
    height = size[1] // count
    # Neighbouring rows reach this far into each other, and the upper edge of the lower one is faded in.
    fade = height // 8 if count > 1 else 0
    canvas = Image.new("RGB", size)
    for number in range(count):
        top = max(0, number * height - fade)
        bottom = size[1] if number == count - 1 else (number + 1) * height + fade
        row = _row(references[number * per_row : (number + 1) * per_row], (size[0], bottom - top), random)
        canvas.paste(row, (0, top), _top_fade(row.size, fade) if number else None)
    return canvas


def _row_count(pictures: int, size: tuple[int, int]) -> int:
    shape = size[0] / size[1]
    if shape < 0.9:  # noqa: PLR2004  clearly upright: one above the other
        return min(pictures, 4) if pictures <= MOST_IN_A_ROW else math.ceil(pictures / 2)
    return 1 if pictures <= 3 else 2  # noqa: PLR2004  four panels in a row would be ribbons


def _row(references: Sequence[Image.Image], size: tuple[int, int], random: Random) -> Image.Image:
    width, height = size
    pitch = width / len(references)
    reach = round(pitch * OVERLAP) if len(references) > 1 else 0
    canvas = Image.new("RGB", size)
    slant = random.choice((-1, 1))
    for number, reference in enumerate(references):
        left = max(0, round(number * pitch) - (reach if number else 0))
        right = min(width, round((number + 1) * pitch) + reach)
        panel = _cover(reference, (right - left, height))
        mask = _seam(panel.size, 2 * reach, slant) if number else None
        canvas.paste(panel, (left, 0), mask)
    return canvas


def _cover(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    # A little above the middle is where photographs have their faces.
    return ImageOps.fit(picture, size, Image.Resampling.BICUBIC, centering=(0.5, 0.4))


def _seam(size: tuple[int, int], reach: int, slant: int) -> Image.Image:
    """Transparent at the left, then opaque, along a slanted line."""
    edge = MASK_SIDE * reach / size[0]
    lean = edge * 0.3 * slant
    mask = Image.new("L", (MASK_SIDE, MASK_SIDE), 0)
    corners = [(edge / 2 + lean, -1), (MASK_SIDE * 2, -1), (MASK_SIDE * 2, MASK_SIDE), (edge / 2 - lean, MASK_SIDE)]
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    # Blurring takes the border for a continuation, so a slanted edge stays slanted there.
    soft = mask.filter(ImageFilter.GaussianBlur(max(1.0, edge * 0.12)))
    return soft.resize(size, Image.Resampling.BICUBIC)


def _top_fade(size: tuple[int, int], fade: int) -> Image.Image:
    ramp = Image.new("L", (1, max(1, size[1])), 255)
    for line in range(2 * fade):
        part = line / (2 * fade)
        ramp.putpixel((0, line), round(255 * part * part * (3 - 2 * part)))
    return ramp.resize(size)


def _tinted(picture: Image.Image, random: Random) -> Image.Image:
    """One light over all pictures, so that they belong together."""
    light, middle, dark = harmony(random)
    glow = gradient(picture.size, light, middle, random.choice((-25, 0, 25)))
    lit = ImageChops.soft_light(picture, glow)
    shaded = Image.blend(lit, Image.new("RGB", picture.size, dark), 0.06)
    return ImageEnhance.Color(shaded).enhance(1.1)


def _vignette(picture: Image.Image) -> Image.Image:
    ring = Image.radial_gradient("L").point([round(max(0, value - 110) * 0.6) for value in range(256)])
    mask = ring.resize(picture.size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", picture.size, (12, 10, 16)), picture, mask)
