"""A result without reference pictures: hills under a sky with a sun or a moon, from the prompt's colours."""

import math
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from flux2_async.emulator.palette import Colour, gradient, harmony, mixed

# Edges are smooth when painted larger and made smaller; pictures of 2K have pixels enough by themselves.
SMOOTH_BELOW = 2_000_000
GLOW_SIDE = 320
POINTS = 160


def compose(size: tuple[int, int], random: Random) -> Image.Image:
    """A landscape of this width and height; everything else follows from `random`."""
    light, middle, dark = harmony(random)
    horizon = random.uniform(0.5, 0.62)
    picture = _sky(size, light, middle, horizon)
    _sun(picture, light, horizon, random)
    _hills(picture, (mixed(middle, light, 0.35), dark), horizon, random)
    return picture


def _sky(size: tuple[int, int], light: Colour, middle: Colour, horizon: float) -> Image.Image:
    width, height = size
    picture = Image.new("RGB", size, light)
    picture.paste(gradient((width, round(height * horizon)), mixed(middle, (24, 24, 60), 0.3), light))
    return picture


def _sun(picture: Image.Image, light: Colour, horizon: float, random: Random) -> None:
    width, height = picture.size
    radius = min(width, height) * random.uniform(0.07, 0.13)
    x = width * random.choice((random.uniform(0.2, 0.4), random.uniform(0.6, 0.8)))
    y = height * (horizon - random.uniform(0.08, 0.3))
    glow = _glow(picture.size, (x, y), radius)
    shine, dark = (Image.new("RGB", picture.size, colour) for colour in (light, (0, 0, 0)))
    picture.paste(ImageChops.screen(picture, Image.composite(shine, dark, glow)))
    side = round(radius * 2)
    disc = Image.new("L", (side * 4, side * 4), 0)
    ImageDraw.Draw(disc).ellipse((0, 0, side * 4 - 1, side * 4 - 1), fill=255)
    disc = disc.resize((side, side), Image.Resampling.BOX)
    picture.paste(mixed(light, (255, 255, 255), 0.75), (round(x - radius), round(y - radius)), disc)


def _glow(size: tuple[int, int], centre: tuple[float, float], radius: float) -> Image.Image:
    scale = GLOW_SIDE / max(size)
    small = Image.new("L", (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), 0)
    x, y, wide = centre[0] * scale, centre[1] * scale, radius * scale * 1.6
    ImageDraw.Draw(small).ellipse((x - wide, y - wide, x + wide, y + wide), fill=210)
    return small.filter(ImageFilter.GaussianBlur(radius * scale * 1.1)).resize(size, Image.Resampling.BICUBIC)


def _hills(picture: Image.Image, colours: tuple[Colour, Colour], horizon: float, random: Random) -> None:
    scale = 2 if picture.width * picture.height < SMOOTH_BELOW else 1
    # The highest ridge stays below this line, so the sky above need not be painted again.
    above = round(picture.height * (horizon - 0.12))
    region = picture.crop((0, above, picture.width, picture.height))
    size = region.size
    large = region.resize((size[0] * scale, size[1] * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    far, near = colours
    count = random.randint(5, 7)
    for number in range(count):
        depth = number / (count - 1)
        top = picture.height * (horizon + (0.94 - horizon) * depth**1.15) - above
        ridge = _ridge(large.width, top * scale, picture.height * scale * (0.035 + 0.05 * depth), random)
        draw.polygon([*ridge, (large.width, large.height), (0, large.height)], fill=mixed(far, near, depth))
    smooth = large.resize(size, Image.Resampling.BOX) if scale > 1 else large.filter(ImageFilter.SMOOTH)
    picture.paste(smooth, (0, above))


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
