"""What a result shows: a collage of the reference pictures, or without any a landscape."""

import colorsys
import math
from collections.abc import Sequence
from random import Random
from typing import TypeAlias

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps

Colour: TypeAlias = tuple[int, int, int]

# Light, middle and dark; chosen by eye, since arithmetic on hues also gives olive and lilac.
HUES = (
    (0.11, 0.97, 0.72),
    (0.13, 0.58, 0.70),
    (0.06, 0.92, 0.66),
    (0.47, 0.46, 0.54),
    (0.55, 0.60, 0.66),
    (0.16, 0.38, 0.46),
    (0.93, 0.76, 0.68),
    (0.09, 0.05, 0.97),
)

# Edges are smooth when painted larger and made smaller; pictures of 2K have pixels enough by themselves.
SMOOTH_BELOW = 2_000_000
GLOW_SIDE = 320
POINTS = 160
# Masks are painted small and enlarged: a soft seam has no detail to lose.
MASK_SIDE = 256
MOST_IN_A_ROW = 4
OVERLAP = 0.28
"""Part of a panel's width by which it reaches into its neighbours; rows do so by less."""
OVERLAP_OF_ROWS = 0.12


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour; every argument counts 0 to 1, the hue goes round."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _mixed(one: Colour, other: Colour, part: float) -> Colour:
    """`one` with this part of `other` in it."""
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _harmony(random: Random) -> tuple[Colour, Colour, Colour]:
    """A light, a middle and a dark colour that go together."""
    shift = random.uniform(-0.025, 0.025)
    light, middle, dark = random.choice(HUES)
    return (
        _hsv(light + shift, random.uniform(0.25, 0.45), 0.98),
        _hsv(middle + shift, random.uniform(0.42, 0.6), random.uniform(0.7, 0.85)),
        _hsv(dark + shift, random.uniform(0.5, 0.7), random.uniform(0.2, 0.32)),
    )


def _gradient(size: tuple[int, int], first: Colour, last: Colour, angle: float = 0.0) -> Image.Image:
    """From one colour at the top to the other at the bottom, the whole turned by so many degrees."""
    ramp = Image.linear_gradient("L")
    if angle:
        # Turned, the square lacks corners: its inner part has them all.
        ramp = ramp.rotate(angle, Image.Resampling.BICUBIC).crop((38, 38, 218, 218))
    mask = ramp.resize(size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", size, last), Image.new("RGB", size, first), mask)


def landscape(size: tuple[int, int], random: Random) -> Image.Image:
    """Hills under a sky with a sun or a moon, of this width and height; all else follows from `random`."""
    light, middle, dark = _harmony(random)
    horizon = random.uniform(0.5, 0.62)
    picture = Image.new("RGB", size, light)
    sky = (size[0], round(size[1] * horizon))
    picture.paste(_gradient(sky, _mixed(middle, (24, 24, 60), 0.3), light))
    radius = min(size) * random.uniform(0.07, 0.13)
    x = size[0] * random.choice((random.uniform(0.2, 0.4), random.uniform(0.6, 0.8)))
    y = size[1] * (horizon - random.uniform(0.08, 0.3))
    # Painted small, since what is blurred has no detail to lose.
    small = GLOW_SIDE / max(size)
    glow = Image.new("L", (max(1, round(size[0] * small)), max(1, round(size[1] * small))), 0)
    ImageDraw.Draw(glow).circle((x * small, y * small), radius * small * 1.6, fill=210)
    glow = glow.filter(ImageFilter.GaussianBlur(radius * small * 1.1)).resize(size, Image.Resampling.BICUBIC)
    picture.paste(light, mask=glow)
    scale = 2 if size[0] * size[1] < SMOOTH_BELOW else 1
    large = picture.resize((size[0] * scale, size[1] * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    draw.circle((x * scale, y * scale), radius * scale, fill=_mixed(light, (255, 255, 255), 0.75))
    count = random.randint(5, 7)
    for number in range(count):
        depth = number / (count - 1)
        top, swing = horizon + (0.94 - horizon) * depth**1.15, 0.035 + 0.05 * depth
        ridge = _ridge(large.width, large.height * top, large.height * swing, random)
        colour = _mixed(_mixed(middle, light, 0.35), dark, depth)
        draw.polygon([*ridge, (large.width, large.height), (0, large.height)], fill=colour)
    return large.resize(size, Image.Resampling.BOX) if scale > 1 else large.filter(ImageFilter.SMOOTH)


def _ridge(width: int, top: float, swing: float, random: Random) -> list[tuple[float, float]]:
    waves = [
        (random.uniform(0.6, 1.0) / order, order * random.uniform(0.7, 1.3), random.random()) for order in (1, 2, 5)
    ]
    return [
        (
            width * step / POINTS,
            top
            - swing * sum(high * math.sin(math.tau * (often * step / POINTS + shift)) for high, often, shift in waves),
        )
        for step in range(POINTS + 1)
    ]


def collage(references: Sequence[Image.Image], size: tuple[int, int], random: Random) -> Image.Image:
    """1 to 8 references side by side, flowing into each other along slanted seams; all else follows from `random`."""
    picture = _cover(references[0], size) if len(references) == 1 else _rows(references, size, random)
    # One light over all pictures, so that they belong together.
    light, middle, dark = _harmony(random)
    lit = ImageChops.soft_light(picture, _gradient(size, light, middle, random.choice((-25, 0, 25))))
    shaded = ImageEnhance.Color(Image.blend(lit, Image.new("RGB", size, dark), 0.06)).enhance(1.1)
    ring = Image.radial_gradient("L").point([round(max(0, value - 110) * 0.6) for value in range(256)])
    vignette = ring.resize(size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", size, (12, 10, 16)), shaded, vignette)


def _rows(references: Sequence[Image.Image], size: tuple[int, int], random: Random) -> Image.Image:
    count = _row_count(len(references), size)
    if count == 1:
        return _row(references, size, random)
    per_row = math.ceil(len(references) / count)
    # As high as a panel of what is, turned over a corner, a row of rows.
    row = (size[0], math.ceil(size[1] / count * (1 + 2 * OVERLAP_OF_ROWS)))
    rows = [_row(references[first : first + per_row], row, random) for first in range(0, len(references), per_row)]
    turn = Image.Transpose.TRANSPOSE
    return _row([each.transpose(turn) for each in rows], (size[1], size[0]), random, OVERLAP_OF_ROWS).transpose(turn)


def _row_count(pictures: int, size: tuple[int, int]) -> int:
    shape = size[0] / size[1]
    if shape < 0.9:  # noqa: PLR2004  clearly upright: one above the other
        return min(pictures, 4) if pictures <= MOST_IN_A_ROW else math.ceil(pictures / 2)
    return 1 if pictures <= 3 else 2  # noqa: PLR2004  four panels in a row would be ribbons


def _row(
    references: Sequence[Image.Image], size: tuple[int, int], random: Random, overlap: float = OVERLAP
) -> Image.Image:
    width, height = size
    pitch = width / len(references)
    reach = round(pitch * overlap) if len(references) > 1 else 0
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
